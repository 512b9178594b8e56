"""The CUDA kernels on the CPU: arguments.h and kernels.h in Python, memory, launches through liblutkern_sim."""

from __future__ import annotations

import ctypes
import os
import re
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lutkern

ROOT = Path(__file__).resolve().parents[2]
FORMATS = {fmt.name: fmt for fmt in lutkern.formats()}
FORMAT_IDS = {name: i for i, name in enumerate(FORMATS)}
TILE_ROWS, TILE_COLS, GROUP = 32, 256, 32
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
ACTIVATIONS: dict[str | None, int] = {None: 0, "silu": 1, "gelu": 2, "relu2": 3}

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


class Arguments(ctypes.Structure):
    """A struct of arguments.h; every field that is not given is zero."""


class WeightArgs(Arguments):
    _fields_ = (
        ("data", c_void_p),
        ("expert_bytes", c_int64),
        ("row_bytes", c_int64),
        ("format", c_int32),
        ("tiles", c_int32),
        ("experts", c_int32),
        ("rows", c_int32),
        ("cols", c_int32),
        ("stored_cols", c_int32),
    )


class MatrixArgs(Arguments):
    _fields_ = (
        ("data", c_void_p),
        ("row_stride", c_int64),
        ("dtype", c_int32),
        ("rows", c_int32),
        ("cols", c_int32),
        ("padding", c_int32),
    )


class RepackArgs(Arguments):
    _fields_ = (
        ("source", c_void_p),
        ("to", c_void_p),
        ("experts", c_int32),
        ("rows", c_int32),
        ("row_blocks", c_int32),
        ("padding", c_int32),
    )


class DequantizeArgs(Arguments):
    _fields_ = (("w", WeightArgs), ("out", c_void_p), ("dtype", c_int32), ("padding", c_int32))


class Quantized(Arguments):
    _fields_ = (("q", c_void_p), ("scale", c_void_p), ("stride", c_int64))


class QuantizeArgs(Arguments):
    _fields_ = (("x", MatrixArgs), ("to", Quantized))


class ProductArgs(Arguments):
    _fields_ = (
        ("w", WeightArgs),
        ("x", MatrixArgs),
        ("xq", Quantized),
        ("out", c_void_p),
        ("out_stride", c_int64),
        ("row_begin", c_int32),
        ("row_end", c_int32),
        ("exact", c_int32),
        ("padding", c_int32),
    )


class MoeArgs(Arguments):
    _fields_ = (
        ("gate", WeightArgs),
        ("up", WeightArgs),
        ("down", WeightArgs),
        ("x", MatrixArgs),
        ("ids", c_void_p),
        ("weights", c_void_p),
        ("h", Quantized),
        ("h_float", c_void_p),
        ("h_stride", c_int64),
        ("out", c_void_p),
        ("k", c_int32),
        ("activation", c_int32),
        ("exact", c_int32),
        ("partial", c_int32),
    )


# ---- the list of kernels, as the header has it ----


@dataclass(frozen=True)
class Kernel:
    """A kernel of kernels.h: its family is its name without the tile format it is made for, if there is one."""

    name: str
    family: str
    fmt: str | None
    args: type[Arguments]


@cache
def kernels() -> tuple[Kernel, ...]:
    text = "".join((ROOT / "csrc" / name).read_text() for name in ("cuda/kernels.h", "gpu/tile.h"))
    macros = dict(re.findall(r"#define (\w+)\([^)]*\)((?:.*\\\n)*.*\n)", text))
    formats = re.findall(r"X\((\w+), \w+\)", macros["LUTKERN_GPU_TILE_FORMATS"])
    out = []
    for family, args in re.findall(r"X\((\w+)_##name, (\w+)\)", macros["LUTKERN_CUDA_KERNELS_OF"]):
        out += [Kernel(f"{family}_{fmt}", family, fmt, globals()[args]) for fmt in formats]
    for name, args in re.findall(r"X\((\w+), (\w+)\)", macros["LUTKERN_CUDA_KERNELS_OF_ALL"]):
        out.append(Kernel(name, name, None, globals()[args]))
    return tuple(out)


TILE_FORMATS = tuple(dict.fromkeys(kernel.fmt for kernel in kernels() if kernel.fmt))


# ---- the library ----


class SimError(RuntimeError):
    """What the simulator found."""


@cache
def library() -> ctypes.CDLL:
    folder = os.environ.get("LUTKERN_SIM_DIR")
    found = [Path(folder)] if folder else [path.parent for path in sorted(ROOT.glob("build/**/liblutkern_sim.so"))]
    if not found:
        raise FileNotFoundError("liblutkern_sim.so: set LUTKERN_SIM_DIR to the folder where the target sim was built")
    out = ctypes.CDLL(str(found[0] / "liblutkern_sim.so"))
    out.lk_sim_run.argtypes = [c_char_p, c_void_p, c_size_t, c_int32, c_uint64, c_char_p, c_size_t]
    out.lk_sim_register.argtypes = [c_void_p, c_size_t]
    out.lk_sim_unregister.argtypes = [c_void_p]
    out.lk_sim_kernel_at.argtypes = [c_int32, POINTER(c_size_t)]
    out.lk_sim_kernel_at.restype = c_char_p
    out.lk_sim_tile_bytes.argtypes = [c_int32]
    return out


def registry() -> dict[str, int]:
    """Return name and bytes of arguments of the kernels that the device text has."""
    out: dict[str, int] = {}
    size = c_size_t()
    while name := library().lk_sim_kernel_at(len(out), ctypes.byref(size)):
        out[name.decode()] = size.value
    return out


def run(kernel: str, args: Arguments, seed: int = 0) -> None:
    error = ctypes.create_string_buffer(512)
    name = kernel.encode()
    if library().lk_sim_run(name, ctypes.byref(args), ctypes.sizeof(args), -1, seed, error, len(error)):
        raise SimError(error.value.decode(errors="replace"))


# ---- memory ----


class Memory:
    """Device memory: buffers of exactly the asked size, at a multiple of 256, between guards that must stay."""

    GUARD = 256

    def __init__(self) -> None:
        self._buffers: list[tuple[Bytes, int, int]] = []

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for _, address, _size in self._buffers:
            library().lk_sim_unregister(address)
        if kind is None:
            self.check()

    def room(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike, fill: int = 0xA5) -> Array:
        """Return an array that is filled with one byte."""
        shape = (shape,) if isinstance(shape, int) else shape
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        whole = np.full(size + 3 * self.GUARD, 0x5A, np.uint8)
        begin = -whole.ctypes.data % self.GUARD + self.GUARD
        library().lk_sim_register(whole.ctypes.data + begin, size)
        self._buffers.append((whole, whole.ctypes.data + begin, size))
        inner = whole[begin : begin + size]
        inner[:] = fill
        return inner.view(dtype).reshape(shape)

    def put(self, values: Array) -> Array:
        out = self.room(values.shape, values.dtype)
        out[...] = values
        return out

    def check(self) -> None:
        for whole, address, size in self._buffers:
            begin = address - whole.ctypes.data
            assert np.all(whole[:begin] == 0x5A), "written before a buffer"
            assert np.all(whole[begin + size :] == 0x5A), "written past a buffer"


def address(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


# ---- operands ----


@dataclass(frozen=True)
class Packed:
    """A weight as the reference sees it: blocks are (experts * rows, row_bytes)."""

    format: str
    experts: int
    rows: int
    cols: int
    all_blocks: Bytes

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.experts, self.rows, self.cols)

    def blocks(self) -> Bytes:
        return self.all_blocks.reshape(self.experts, self.rows, -1)

    @property
    def matrix(self) -> tuple[Bytes, str, tuple[int, int]]:
        """The first expert, for matvec and matmul."""
        return self.all_blocks[: self.rows], self.format, (self.rows, self.cols)


def round_up(n: int, size: int) -> int:
    return -(-n // size) * size


def tile_row_bytes(fmt: str, cols: int) -> int:
    return -(-cols // TILE_COLS) * int(library().lk_sim_tile_bytes(FORMAT_IDS[fmt]))


def to_tiles(memory: Memory, w: Packed, seed: int = 0) -> Bytes:
    """Return the tiles of a weight, made by its kernel."""
    row_bytes = tile_row_bytes(w.format, w.cols)
    tiles = memory.room((w.experts, -(-w.rows // TILE_ROWS), row_bytes), np.uint8)
    source = memory.put(w.all_blocks)
    args = RepackArgs(
        source=address(source), to=address(tiles), experts=w.experts, rows=w.rows, row_blocks=-(-w.cols // TILE_COLS)
    )
    run(f"to_tiles_{w.format}", args, seed)
    return tiles


def weight_args(memory: Memory, w: Packed | None, tiles: bool) -> WeightArgs:
    if w is None:
        return WeightArgs()
    fmt = FORMATS[w.format]
    data = to_tiles(memory, w) if tiles else memory.put(w.blocks())
    return WeightArgs(
        data=address(data),
        expert_bytes=data.strides[0],
        row_bytes=data.strides[1],
        format=FORMAT_IDS[w.format],
        tiles=int(tiles),
        experts=w.experts,
        rows=w.rows,
        cols=w.cols,
        stored_cols=round_up(w.cols, fmt.block_size),
    )


def matrix_args(memory: Memory, x: Array, gap: int = 0) -> MatrixArgs:
    """x: (tokens, cols); gap: elements between rows, NaN."""
    rows, cols = x.shape
    buffer = memory.room(rows * (cols + gap) - gap, x.dtype, fill=0xFF)
    for row in range(rows):
        buffer[row * (cols + gap) : row * (cols + gap) + cols] = x[row]
    return MatrixArgs(data=address(buffer), row_stride=cols + gap, dtype=DTYPES[x.dtype.name], rows=rows, cols=cols)


def quantized_room(memory: Memory, rows: int, cols: int) -> tuple[Quantized, Array, Array]:
    stride = round_up(cols, TILE_COLS)
    q = memory.room((rows, stride), np.int8)
    scale = memory.room((rows, stride // GROUP), np.float32)
    return Quantized(q=address(q), scale=address(scale), stride=stride), q, scale
