"""A launch of a CUDA kernel on memory of this process: the argument structs, the simulator, one case for each kernel.

The structs are read from csrc/cuda/arguments.h, the kernels from csrc/cuda/kernels.h: nothing is listed twice.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lutkern
from reference_samples import finite_rows

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc" / "cuda"
Bytes = npt.NDArray[np.uint8]
DTYPES = {"f32": 0, "f16": 1, "bf16": 2}
ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2, "relu2": 3}
FORMATS = [f.name for f in lutkern.formats()]
_SCALARS = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64}


@functools.cache
def structs() -> dict[str, type[ctypes.Structure]]:
    """The structs of arguments.h."""
    text = re.sub(r"//[^\n]*", "", (CUDA / "arguments.h").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.S):
        fields = []
        for line in filter(None, map(str.strip, body.split(";"))):
            kind, member = re.fullmatch(r"(?:const )?(\w+)( ?\*? ?\w+)", line).groups()  # type: ignore[union-attr]
            pointer = "*" in line
            fields.append((member.strip(" *"), ctypes.c_uint64 if pointer else _SCALARS.get(kind) or found[kind]))
        found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


@functools.cache
def kernels() -> dict[str, str]:
    """Name of each kernel and of its struct, from kernels.h, for the formats of gpu/tile.h."""
    texts = [path.read_text(encoding="utf-8") for path in (CUDA / "kernels.h", CUDA.parent / "gpu" / "tile.h")]
    lists = dict(re.findall(r"#define (LUTKERN_\w+)\([^)]*\)(.*)", "".join(texts).replace("\\\n", " ")))
    formats = re.findall(r"X\((\w+), \w+\)", lists["LUTKERN_GPU_TILE_FORMATS"])
    of_each = re.findall(r"X\((\w+)_##name, (\w+)\)", lists["LUTKERN_CUDA_KERNELS_OF"])
    of_all = re.findall(r"X\((\w+), (\w+)\)", lists["LUTKERN_CUDA_KERNELS_OF_ALL"])
    return {f"{verb}_{f}": args for f in formats for verb, args in of_each} | dict(of_all)


def tile_formats() -> list[str]:
    """The formats that have tiles on the device."""
    return [name.removeprefix("to_tiles_") for name in kernels() if name.startswith("to_tiles_")]


def sim_folder() -> Path | None:
    """Where liblutkern_sim.so is: LUTKERN_SIM_DIR, or below build/."""
    given = os.environ.get("LUTKERN_SIM_DIR")
    if given:
        return Path(given)
    built = sorted(ROOT.glob("build/**/liblutkern_sim.so"), key=lambda p: p.stat().st_mtime)
    return built[-1].parent if built else None


class Simulator:
    """liblutkern_sim."""

    def __init__(self, folder: Path) -> None:
        self.library = ctypes.CDLL(str(folder / "liblutkern_sim.so"))

    def plan(self, name: str, args: bytes) -> tuple[int, ...]:
        """Grid in x, y and z, threads, bytes of dynamic shared memory."""
        numbers = (ctypes.c_uint32 * 5)()
        self._call("lk_sim_plan", name, args, numbers)
        return tuple(numbers)

    def run(self, case: Case) -> None:
        """Launch by its plan, with the arrays of the case as the memory that there is."""
        spans = [(ctypes.c_void_p(a.ctypes.data), ctypes.c_size_t(a.size)) for a in case.arrays.values() if a.size]
        for begin, size in spans:
            self.library.lk_sim_register(begin, size)
        try:
            self._call("lk_sim_run", case.kernel, bytes(case.args), ctypes.c_int32(-1), ctypes.c_uint64(0))  # type: ignore[arg-type]
        finally:
            for begin, _ in spans:
                self.library.lk_sim_unregister(begin)

    def tile_bytes(self, fmt: str) -> int:
        """Bytes of a tile of a format."""
        return int(self.library.lk_sim_tile_bytes(ctypes.c_int32(FORMATS.index(fmt))))

    def _call(self, function: str, name: str, args: bytes, *more: Any) -> None:
        error = ctypes.create_string_buffer(1024)
        size = ctypes.c_size_t(len(args))
        failed = getattr(self.library, function)(name.encode(), args, size, *more, error, ctypes.c_size_t(1024))
        if failed:
            raise RuntimeError(error.value.decode())


@dataclass
class Case:
    """A launch: arrays at multiples of 256; written: what a kernel may read before it writes."""

    kernel: str
    what: str = ""
    arrays: dict[str, Bytes] = field(default_factory=dict)
    written: dict[str, bool] = field(default_factory=dict)
    args: ctypes.Structure | None = None
    approximate: bool = False  # expf or tanhf enter
    _kept: list[Bytes] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.kernel}{'-' + self.what if self.what else ''}"

    def add(self, name: str, data: npt.NDArray[Any], written: bool = True) -> int:
        """Keep an array; return its address."""
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        room = np.empty(raw.size + 256, np.uint8)
        start = -room.ctypes.data % 256
        array = room[start : start + raw.size]
        array[:] = raw
        self._kept.append(room)
        self.arrays[name], self.written[name] = array, written
        return int(array.ctypes.data)

    def output(self, name: str, size: int) -> int:
        """Room that the kernel writes."""
        return self.add(name, np.full(size, 0xA5, np.uint8), False)

    def outputs(self) -> dict[str, Bytes]:
        """Copies of what was written."""
        return {name: self.arrays[name].copy() for name, written in self.written.items() if not written}

    def clear(self) -> None:
        """As before the launch."""
        for name, written in self.written.items():
            if not written:
                self.arrays[name][:] = 0xA5


@functools.cache
def rows_of(fmt: str, rows: int, cols: int, seed: int) -> Bytes:
    """Random blocks."""
    return finite_rows(fmt, rows, cols, seed)


def padded(n: int, to: int = 256) -> int:
    """n rounded up."""
    return -(-n // to) * to


class Maker:
    """Makes cases. Tiles are made by the simulator's own repack kernels."""

    def __init__(self, simulator: Simulator, seed: int = 0) -> None:
        self.simulator = simulator
        self.seed = seed
        self.struct = structs()

    def numbers(self, *shape: int, dtype: str = "f32") -> npt.NDArray[Any]:
        """Activations: normal, a group of zeros."""
        self.seed += 1
        x = np.random.default_rng(self.seed).standard_normal(shape).astype(np.float32)
        x[..., 32:64] = 0
        if dtype == "bf16":
            return (x.view(np.uint32) >> 16).astype(np.uint16)
        return x.astype(np.float16) if dtype == "f16" else x

    def weight(self, case: Case, name: str, fmt: str, experts: int, rows: int, cols: int, tiles: bool) -> Any:
        """A weight on the device."""
        info = next(f for f in lutkern.formats() if f.name == fmt)
        stored = padded(cols, info.block_size)
        blocks = rows_of(fmt, experts * rows, stored, name == "up")
        data, row_bytes = blocks, blocks.shape[1]
        expert_bytes = rows * row_bytes
        if tiles:
            row_bytes = stored // 256 * self.simulator.tile_bytes(fmt)
            expert_bytes = -(-rows // 32) * row_bytes
            data = self.repack(fmt, blocks, experts, rows, expert_bytes * experts)
        weight = self.struct["WeightArgs"](
            data=case.add(name, data),
            expert_bytes=expert_bytes,
            row_bytes=row_bytes,
            format=FORMATS.index(fmt),
            tiles=int(tiles),
            experts=experts,
            rows=rows,
            cols=cols,
            stored_cols=stored,
        )
        return weight

    def repack(self, fmt: str, blocks: Bytes, experts: int, rows: int, size: int) -> Bytes:
        """Tiles of blocks."""
        case = self.repack_case(f"to_tiles_{fmt}", fmt, blocks, experts, rows, size)
        self.simulator.run(case)
        return case.arrays["to"]

    def repack_case(self, kernel: str, fmt: str, data: Bytes, experts: int, rows: int, size: int) -> Case:
        """A case of to_tiles or to_blocks."""
        case = Case(kernel)
        info = next(f for f in lutkern.formats() if f.name == fmt)
        row_bytes = data.size // (experts * rows) if kernel.startswith("to_tiles") else size // (experts * rows)
        # fmt: off
        case.args = self.struct["RepackArgs"](
            **{"from": case.add("from", data)}, to=case.output("to", size), experts=experts, rows=rows,
            row_blocks=row_bytes // info.block_bytes,
        )
        # fmt: on
        return case

    def matrix(self, case: Case, rows: int, cols: int, dtype: str = "f32") -> Any:
        """Activations on the device, rows further apart than they are long."""
        stride = cols + 8
        data = self.numbers(rows, stride, dtype=dtype)
        return self.struct["MatrixArgs"](case.add("x", data), stride, DTYPES[dtype], rows, cols, 0)

    def room(self, case: Case, name: str, rows: int, cols: int) -> Any:
        """Room for quantised activations."""
        stride = padded(cols)
        q = case.output(f"{name}.q", rows * stride)
        return self.struct["Quantized"](q, case.output(f"{name}.scale", rows * stride // 8), stride)

    def quantized(self, case: Case, name: str, rows: int, cols: int) -> Any:
        """Quantised activations, as a kernel before would have left them."""
        stride = padded(cols)
        self.seed += 1
        chance = np.random.default_rng(self.seed)
        q = np.zeros((rows, stride), np.int8)
        q[:, :cols] = chance.integers(-127, 128, (rows, cols))
        scale = chance.uniform(0.001, 0.1, (rows, stride // 32)).astype(np.float32)
        return self.struct["Quantized"](case.add(f"{name}.q", q), case.add(f"{name}.scale", scale), stride)

    def quantize(self, kernel: str, rows: int, cols: int, dtype: str) -> Case:
        """A case of quantize."""
        case = Case(kernel, f"{rows}x{cols}-{dtype}")
        x = self.matrix(case, rows, cols, dtype)
        case.args = self.struct["QuantizeArgs"](x, self.room(case, "to", rows, cols))
        return case

    def dequantize(self, kernel: str, fmt: str, tiles: bool, rows: int, cols: int, dtype: str) -> Case:
        """A case of dequantize, two experts."""
        case = Case(kernel, f"{fmt}-{'tiles' if tiles else 'blocks'}-{rows}x{cols}-{dtype}")
        w = self.weight(case, "w", fmt, 2, rows, cols, tiles)
        out = case.output("out", 2 * rows * cols * (4 if dtype == "f32" else 2))
        case.args = self.struct["DequantizeArgs"](w, out, DTYPES[dtype], 0)
        return case

    def product(
        self,
        kernel: str,
        fmt: str,
        tiles: bool,
        rows: int,
        cols: int,
        tokens: int,
        exact: bool = False,
        dtype: str = "f32",
    ) -> Case:
        """A case of matvec and matmul, of all rows but the first and the last."""
        case = Case(kernel, f"{fmt}-{'tiles' if tiles else 'blocks'}-{rows}x{cols}x{tokens}{'-exact' * exact}")
        w = self.weight(case, "w", fmt, 1, rows, cols, tiles)
        x = self.matrix(case, tokens, cols, dtype)
        nothing = self.struct["Quantized"]()
        xq = self.quantized(case, "xq", tokens, cols) if "large" in kernel else nothing
        out = case.output("out", 4 * tokens * (rows + 3))
        # fmt: off
        case.args = self.struct["ProductArgs"](
            w, x, xq, out, out_stride=rows + 3, row_begin=1, row_end=rows - 1, exact=int(exact),
        )
        # fmt: on
        return case

    def moe(
        self,
        kernel: str,
        formats: tuple[str | None, str, str],
        tiles: bool,
        shape: tuple[int, int],
        ids: list[list[int]],
        activation: str = "relu2",
        partial: bool = False,
        exact: bool = False,
    ) -> Case:
        """A case of a half of a MoE layer: formats of gate, up and down; shape: hidden, inter."""
        case = Case(kernel, f"{'-'.join(str(f) for f in formats)}-{'tiles' if tiles else 'blocks'}-{activation}")
        case.approximate = activation in ("silu", "gelu") and "up" in kernel
        hidden, inter = shape
        tokens, k = len(ids), len(ids[0])
        gate, up, down = formats
        args = self.struct["MoeArgs"](k=k, activation=ACTIVATIONS[activation], exact=int(exact), partial=int(partial))
        if gate:
            args.gate = self.weight(case, "gate", gate, 3, inter, hidden, tiles)
        args.up = self.weight(case, "up", up, 3, inter, hidden, tiles)
        args.down = self.weight(case, "down", down, 3, hidden, inter, tiles)
        args.x = self.matrix(case, tokens, hidden)
        args.ids = case.add("ids", np.array(ids, np.int32))
        args.weights = case.add("weights", np.abs(self.numbers(tokens, k)) + np.float32(0.1))
        args.h_stride = padded(inter)
        floats = exact or lutkern.formats()[FORMATS.index(down)].is_float
        first = "up" in kernel
        if floats:
            h = np.zeros((tokens * k, padded(inter)), np.float32)
            h[:, :inter] = self.numbers(tokens * k, inter)
            args.h_float = case.output("h_float", h.nbytes) if first else case.add("h_float", h)
        else:
            args.h = (self.room if first else self.quantized)(case, "h", tokens * k, inter)
        args.out = 0 if first else case.output("out", 4 * tokens * hidden)
        case.args = args
        return case
