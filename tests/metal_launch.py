"""Metal kernels on memory of this process: the argument structs, the libraries, launches by their plans.

The structs are read from csrc/metal/arguments.h, the kernels from csrc/metal/kernels.h: nothing is listed twice.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lutkern
from sim.kernels import ACTIVATIONS, DTYPES, FORMAT_IDS, FORMATS, TILE_COLS, TILE_ROWS, Packed, round_up
from sim.layers import Layer
from sim.metal import run as simulator

METAL = Path(__file__).resolve().parents[1] / "csrc" / "metal"
Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Macros = tuple[tuple[str, int | str], ...]
_SCALARS = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64}


# ---- the headers ----


@functools.cache
def structs() -> dict[str, Any]:
    """The structs of arguments.h."""
    text = re.sub(r"//[^\n]*", "", (METAL / "arguments.h").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.S):
        members = [member.split() for member in body.split(";") if member.strip()]
        fields = [(member, _SCALARS.get(kind) or found[kind]) for kind, member in members]
        found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


def _lists() -> dict[str, str]:
    files = (METAL / "kernels.h", METAL.parent / "gpu" / "tile.h")
    text = "".join(file.read_text(encoding="utf-8") for file in files).replace("\\\n", " ")
    return dict(re.findall(r"#define (LUTKERN_(?:METAL|GPU)_\w+)\(X\)(.*)", text))


@functools.cache
def kernels() -> dict[str, str]:
    """Each kernel and the kind of its library."""
    found = re.findall(r"X\((\w+), (\w+), \w+\)", _lists()["LUTKERN_METAL_KERNELS"])
    return {name: kind for name, kind in found}


@functools.cache
def block_types() -> dict[str | None, str]:
    """Each format and its struct; None: there is no gate."""
    text = (METAL.parent / "formats" / "formats.h").read_text(encoding="utf-8")
    found: dict[str | None, str] = dict(re.findall(r"X\((\w+), (\w+)\)", text))
    return {**found, None: "NoGate"}


TILE_FORMATS = tuple(re.findall(r"X\((\w+), \w+\)", _lists()["LUTKERN_GPU_TILE_FORMATS"]))


@functools.cache
def _plans() -> ctypes.CDLL:
    return ctypes.CDLL(str(simulator.simulator_path().parent / "liblutkern_metal_plans.so"))


def plan(kernel: str, args: ctypes.Structure) -> tuple[int, int, int, int]:
    """Threadgroups in x, y and z, threads of one."""
    numbers = (ctypes.c_uint32 * 4)()
    assert (
        _plans().lk_metal_plan(kernel.encode(), ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)), numbers) == 0
    )
    return numbers[0], numbers[1], numbers[2], numbers[3]


# ---- libraries ----


@functools.cache
def _amalgamate() -> Any:
    spec = importlib.util.spec_from_file_location("amalgamate", METAL / "amalgamate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def macros_of(kernel: str, *formats: str | None) -> Macros:
    """The macros of the library that has a kernel: format of the weight, or of gate and up."""
    kind = kernels()[kernel]
    names = [block_types()[fmt] for fmt in formats]
    words = ["LK_WEIGHT"] if kind.startswith("weight") else ["LK_GATE", "LK_UP"]
    return (("LK_TILES", int("any" not in kind)), *zip(words, names, strict=True))


@functools.cache
def text_of(macros: Macros) -> str:
    """The text of a library."""
    return str(_amalgamate().library_text(**dict(macros)))


@functools.cache
def library(macros: Macros) -> simulator.Library:
    """A library, compiled once."""
    return simulator.Library(text_of(macros))


def compile_all(wanted: Iterable[Macros]) -> None:
    """Compile libraries side by side. What is wrong with one is said where it is used."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(_try, wanted))


def _try(macros: Macros) -> None:
    try:
        library(macros)
    except simulator.MetalError:
        return


# ---- weights ----


def at_byte(data: Array, byte: int) -> Bytes:
    """Return the bytes of an array, copied to an address that is `byte` above a multiple of 256."""
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    room = np.empty(raw.size + 512, np.uint8)
    start = -room.ctypes.data % 256 + byte
    out = room[start : start + raw.size]
    out[:] = raw
    return out


def tile_bytes(fmt: str) -> int:
    """Bytes of a tile of a format; 0: it has none."""
    return int(_plans().lk_metal_tile_bytes(FORMAT_IDS[fmt]))


def to_tiles(w: Packed) -> Bytes:
    """The tiles of a weight: (experts, rows of tiles, bytes)."""
    row_blocks = round_up(w.cols, TILE_COLS) // TILE_COLS
    out = np.zeros((w.experts, round_up(w.rows, TILE_ROWS) // TILE_ROWS, row_blocks * tile_bytes(w.format)), np.uint8)
    for blocks, tiles in zip(w.blocks(), out, strict=True):
        source = np.ascontiguousarray(blocks)
        sizes = ctypes.c_int64(w.rows), ctypes.c_int64(row_blocks)
        target = ctypes.c_void_p(tiles.ctypes.data)
        fmt = FORMAT_IDS[w.format]
        assert _plans().lk_metal_tiles(fmt, ctypes.c_void_p(source.ctypes.data), *sizes, target) == 0
    return out


def weight(w: Packed | None, tiles: bool) -> tuple[Any, Bytes | None]:
    """WeightArgs and the bytes. Tiles lie at a multiple of 16, blocks of codes at an odd address, as they may."""
    if w is None:
        return structs()["WeightArgs"](), None
    fmt = FORMATS[w.format]
    data = to_tiles(w) if tiles else w.blocks()
    args = structs()["WeightArgs"](
        expert_bytes=data.strides[0],
        row_bytes=data.strides[1],
        tiles=int(tiles),
        experts=w.experts,
        rows=w.rows,
        cols=w.cols,
        stored_cols=round_up(w.cols, fmt.block_size),
    )
    return args, at_byte(data, 16 if tiles else 4 if fmt.is_float else 1)


def matrix(x: Array, gap: int) -> tuple[Any, Bytes]:
    """MatrixArgs and the bytes of x: (tokens, cols); gap: elements between rows, NaN."""
    rows, cols = x.shape
    wide = np.full(rows * (cols + gap) * x.itemsize, 0xFF, np.uint8).view(x.dtype).reshape(rows, cols + gap)
    wide[:, :cols] = x
    args = structs()["MatrixArgs"](row_stride=cols + gap, dtype=DTYPES[x.dtype.name], rows=rows, cols=cols)
    return args, at_byte(wide.reshape(-1)[: wide.size - gap], x.itemsize)


# ---- launches ----


@dataclass(frozen=True)
class Shape:
    """How a launch differs from its plan."""

    seed: int = 0
    threads: int | None = None  # None: those of the plan


def launch(kernel: str, macros: Macros, args: ctypes.Structure, arrays: list[Array | None], shape: Shape) -> None:
    """Run a kernel by its plan. The simulator holds every access against the arrays."""
    *groups, threads = plan(kernel, args)
    wanted = min(shape.threads or threads, threads)
    library(macros).launch(kernel, args, arrays, groups, wanted, shape.seed)


def room(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array to write, of bytes 0xA5."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return at_byte(np.full(size, 0xA5, np.uint8), np.dtype(dtype).itemsize).view(dtype).reshape(shape)


def dequantize(kernel: str, w: Packed, tiles: bool, dtype: Any = np.float32, shape: Shape = Shape()) -> Array:
    """Return the weights, (experts, rows, cols)."""
    weight_args, data = weight(w, tiles)
    out = room(w.shape, dtype)
    args = structs()["DequantizeArgs"](w=weight_args, dtype=DTYPES[np.dtype(dtype).name])
    launch(kernel, macros_of(kernel, w.format), args, [data, out], shape)
    return out


def product(
    kernel: str,
    w: Packed,
    x: Array,
    *,
    tiles: bool = True,
    exact: bool = False,
    row_range: tuple[int, int] | None = None,
    gap: int = 0,
    shape: Shape = Shape(),
) -> Array:
    """Return out (tokens, rows); rows outside of row_range keep the bytes 0xA5."""
    begin, end = row_range or (0, w.rows)
    weight_args, data = weight(w, tiles)
    x_args, numbers = matrix(x, gap)
    out = room((len(x), w.rows + 3), np.float32)
    args = structs()["ProductArgs"](
        w=weight_args, x=x_args, out_stride=w.rows + 3, row_begin=begin, row_end=end, exact=int(exact)
    )
    launch(kernel, macros_of(kernel, w.format), args, [data, numbers, out], shape)
    untouched = out.view(np.uint32) == 0xA5A5A5A5
    assert np.all(untouched[:, w.rows :]), "written past the last row"
    assert np.all(untouched[:, :begin]), "written before the range"
    assert np.all(untouched[:, end : w.rows]), "written past the range"
    return out[:, : w.rows]


@dataclass(frozen=True)
class Experts:
    """What two launches of an expert layer leave: y, h of each pair, its scales where it is integers."""

    y: Array
    h: Array
    h_scale: npt.NDArray[np.float32] | None


def experts(pair: tuple[str, str], layer: Layer, gap: int = 0, shape: Shape = Shape()) -> Experts:
    """Run a layer by the kernels of a pair: up, and down."""
    up_kernel, down_kernel = pair
    tokens, k = layer.ids.shape
    stride = round_up(layer.up.rows, 256)
    floats = layer.exact or FORMATS[layer.down.format].is_float
    h = np.full((tokens * k, stride), -1, np.float32 if floats else np.float16)
    h_scale = None if floats else np.full((tokens * k, stride // 32), -1, np.float32)
    ids, weights = np.ascontiguousarray(layer.ids), np.ascontiguousarray(layer.weights)
    (gate_args, gate), (up_args, up), (down_args, down) = (
        weight(w, tiles) for w, tiles in zip((layer.gate, layer.up, layer.down), layer.tiles, strict=True)
    )
    x_args, x = matrix(layer.x, gap)
    args = structs()["MoeArgs"](
        gate=gate_args,
        up=up_args,
        down=down_args,
        x=x_args,
        h_stride=stride,
        k=k,
        activation=ACTIVATIONS[layer.activation],
        exact=int(layer.exact),
        partial=int(layer.partial),
        h_floats=int(floats),
    )
    y = room((tokens, layer.down.rows), np.float32)
    gate_format = layer.gate.format if layer.gate else None
    launch(up_kernel, macros_of(up_kernel, gate_format, layer.up.format), args, [gate, up, x, ids, h, h_scale], shape)
    launch(down_kernel, macros_of(down_kernel, layer.down.format), args, [down, ids, weights, h, h_scale, y], shape)
    return Experts(y, h, h_scale)


def formats() -> list[str]:
    """Every format."""
    return [fmt.name for fmt in lutkern.formats()]
