"""ggml, the rival: the same bytes, in the same process, with as many threads.

It comes in the llama-cpp-python package (built for this processor) or in libggml-python (prebuilt, AVX2), and is driven
through its C interface by ctypes. All data lie in NumPy arrays, in the same kind of memory as those of lutkern. ggml's
threads live as long as a product and are paused after each turn: they would poll while others are measured.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats import Format

_F32, _I32 = 0, 26  # ggml_type
_PACKAGES = (("llama-cpp-python", "llama_cpp", "lib"), ("libggml-python", "libggml", "lib64"))
_SUFFIX = "dylib" if sys.platform == "darwin" else "so"
_ALIGNMENT = 64  # of arrays that ggml reads and writes
_NODES = 16  # most tensors of a graph


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Plan(ctypes.Structure):
    """ggml_cplan; the library may know fewer members at its end."""

    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("later", ctypes.c_uint64 * 4),
    )


class _PoolParams(ctypes.Structure):
    """ggml_threadpool_params, which only the library looks into."""

    _fields_ = (("bytes", ctypes.c_uint8 * 1024),)


class _Traits(ctypes.Structure):
    """The beginning of ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a copy of an array, of any shape and dtype, at an address that is a multiple of 64."""
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Ggml:
    """The two libraries of ggml.

    Parameters
    ----------
    folder
        Where they lie.
    name
        The package and its version.

    Raises
    ------
    OSError
        If a library cannot be loaded.
    AttributeError
        If it is too old: a function is missing.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        # The CPU library looks the base library up by name: it must be in the process first.
        self.base = ctypes.CDLL(str(folder / f"libggml-base.{_SUFFIX}"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(folder / f"libggml-cpu.{_SUFFIX}"), mode=ctypes.RTLD_GLOBAL)
        for library, functions in ((self.base, _BASE), (self.cpu, _CPU)):
            for function_name, (result, *arguments) in functions.items():
                function = getattr(library, function_name)
                function.restype, function.argtypes = result, arguments
        self.cpu.ggml_cpu_init()

    def supports(self, fmt: Format, cols: int) -> bool:
        """Whether it knows the format, and rows of this many weights in it: it does not pad."""
        name = self.base.ggml_type_name(fmt.ggml_type)
        return name is not None and name.decode().lower() == fmt.name and cols % fmt.block_size == 0

    def decodes(self, fmt: Format) -> bool:
        """Whether it has a function that decodes a format that it supports: f32 needs none."""
        return bool(self.base.ggml_get_type_traits(fmt.ggml_type).contents.to_float)


_POINTER, _NUMBER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t, ctypes.c_int
_BASE: dict[str, tuple[Any, ...]] = {
    "ggml_version": (ctypes.c_char_p,),  # older ones know fewer formats, and end the process when asked for others
    "ggml_init": (_POINTER, _InitParams),
    "ggml_free": (None, _POINTER),
    "ggml_tensor_overhead": (_SIZE,),
    "ggml_graph_overhead_custom": (_SIZE, _SIZE, ctypes.c_bool),
    "ggml_type_name": (ctypes.c_char_p, _INT),
    "ggml_get_type_traits": (ctypes.POINTER(_Traits), _INT),
    "ggml_new_tensor_2d": (_POINTER, _POINTER, _INT, _NUMBER, _NUMBER),
    "ggml_new_tensor_3d": (_POINTER, _POINTER, _INT, _NUMBER, _NUMBER, _NUMBER),
    "ggml_mul_mat": (_POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_mul_mat_id": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_swiglu_split": (_POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_new_graph_custom": (_POINTER, _POINTER, _SIZE, ctypes.c_bool),
    "ggml_build_forward_expand": (None, _POINTER, _POINTER),
    "ggml_backend_cpu_buffer_from_ptr": (_POINTER, _POINTER, _SIZE),
    "ggml_backend_buffer_free": (None, _POINTER),
    "ggml_backend_tensor_alloc": (_INT, _POINTER, _POINTER, _POINTER),
    "ggml_threadpool_params_default": (_PoolParams, _INT),
}
_CPU: dict[str, tuple[Any, ...]] = {
    "ggml_cpu_init": (None,),
    "ggml_graph_plan": (_Plan, _POINTER, _INT, _POINTER),
    "ggml_graph_compute": (_INT, _POINTER, ctypes.POINTER(_Plan)),
    "ggml_threadpool_new": (_POINTER, ctypes.POINTER(_PoolParams)),
    "ggml_threadpool_pause": (None, _POINTER),
    "ggml_threadpool_free": (None, _POINTER),
}


@cache
def load() -> Ggml | None:
    """Return ggml from the first package that has it, or None."""
    for package, module, folder in _PACKAGES:
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            continue
        try:
            return Ggml(Path(spec.origin).parent / folder, f"{package} {version(package)}")
        except (OSError, AttributeError, PackageNotFoundError):
            continue
    return None


class _Graphs:
    """Graphs over NumPy arrays, and the threads that compute them."""

    def __init__(self, ggml: Ggml, threads: int, graphs: int) -> None:
        base = ggml.base
        size = (_NODES * base.ggml_tensor_overhead() + base.ggml_graph_overhead_custom(_NODES, False)) * graphs
        self.ggml = ggml
        self.context = base.ggml_init(_InitParams(size + (1 << 20), None, True))
        self._threads = threads
        parameters = base.ggml_threadpool_params_default(threads)
        self._pool = ggml.cpu.ggml_threadpool_new(ctypes.byref(parameters))
        self._buffers: dict[int, Any] = {}
        self._arrays: list[npt.NDArray[Any]] = []  # that ggml reads and writes: they stay alive
        self._plans: list[tuple[Any, _Plan]] = []

    def place(self, tensor: Any, array: npt.NDArray[Any], offset: int = 0) -> Any:
        """Let the data of a tensor be those of an aligned array, from a byte on; the tensor."""
        address = array.ctypes.data
        if address not in self._buffers:
            self._buffers[address] = self.ggml.base.ggml_backend_cpu_buffer_from_ptr(address, array.nbytes)
            self._arrays.append(array)
        self.ggml.base.ggml_backend_tensor_alloc(self._buffers[address], tensor, address + offset)
        return tensor

    def weight(self, fmt: Format, blocks: npt.NDArray[np.uint8], cols: int) -> Any:
        """Return a tensor of (experts, rows, row_bytes) uint8."""
        experts, rows, _ = blocks.shape
        new = self.ggml.base.ggml_new_tensor_3d
        return self.place(new(self.context, fmt.ggml_type, cols, rows, experts), blocks)

    def add(self, result: Any) -> None:
        """Add the graph that ends in this tensor."""
        graph = self.ggml.base.ggml_new_graph_custom(self.context, _NODES, False)
        self.ggml.base.ggml_build_forward_expand(graph, result)
        plan = self.ggml.cpu.ggml_graph_plan(graph, self._threads, self._pool)
        work = aligned(np.zeros(plan.work_size + 1, np.uint8))
        self._arrays.append(work)
        plan.work_data = work.ctypes.data
        self._plans.append((graph, plan))

    def compute(self, number: int) -> None:
        """Run a graph. RuntimeError if ggml fails."""
        graph, plan = self._plans[number]
        if self.ggml.cpu.ggml_graph_compute(graph, ctypes.byref(plan)) != 0:
            raise RuntimeError("bench: ggml failed to compute a graph")

    def __len__(self) -> int:
        return len(self._plans)

    def rest(self) -> None:
        """Let the threads sleep until the next graph."""
        self.ggml.cpu.ggml_threadpool_pause(self._pool)

    def close(self) -> None:
        """Give threads and memory back."""
        self.ggml.cpu.ggml_threadpool_free(self._pool)
        for buffer in self._buffers.values():
            self.ggml.base.ggml_backend_buffer_free(buffer)
        self.ggml.base.ggml_free(self.context)


class GgmlProducts:
    """Products of x with one matrix after another.

    Parameters
    ----------
    ggml
        The library.
    fmt, blocks
        A format that it supports, (experts, rows, row_bytes) uint8, aligned.
    x
        (tokens, cols) float32.
    threads
        How many, the calling one included.
    """

    def __init__(
        self, ggml: Ggml, fmt: Format, blocks: npt.NDArray[np.uint8], x: npt.NDArray[np.float32], threads: int
    ) -> None:
        (experts, rows, row_bytes), (tokens, cols) = blocks.shape, x.shape
        self._graphs = graphs = _Graphs(ggml, threads, experts)
        self._turn = 0
        self.out = aligned(np.zeros((tokens, rows), np.float32))
        base, context = ggml.base, graphs.context
        vectors = graphs.place(base.ggml_new_tensor_2d(context, _F32, cols, tokens), aligned(x))
        for e in range(experts):
            matrix = base.ggml_new_tensor_2d(context, fmt.ggml_type, cols, rows)
            graphs.place(matrix, blocks, e * rows * row_bytes)
            graphs.add(graphs.place(base.ggml_mul_mat(context, matrix, vectors), self.out))
        self.rest, self.close = graphs.rest, graphs.close

    def step(self) -> None:
        """Multiply with the next matrix."""
        self.compute(self._turn % len(self._graphs))
        self._turn += 1

    def compute(self, expert: int) -> npt.NDArray[np.float32]:
        """Multiply with one matrix: (tokens, rows)."""
        self._graphs.compute(expert)
        return self.out


class GgmlMoe:
    """The expert layer: gate and up by mul_mat_id, SwiGLU, down by mul_mat_id; the sum over experts is left out.

    Parameters
    ----------
    ggml
        The library.
    fmt, projections
        A format that it supports; gate, up and down, each (experts, rows, row_bytes) uint8, aligned.
    x
        (tokens, hidden) float32.
    routes
        (calls, tokens, k) int32: the experts of each call, in turn.
    threads
        How many, the calling one included.
    """

    def __init__(
        self,
        ggml: Ggml,
        fmt: Format,
        projections: Sequence[npt.NDArray[np.uint8]],
        x: npt.NDArray[np.float32],
        routes: npt.NDArray[np.int32],
        threads: int,
    ) -> None:
        (tokens, hidden), k, inter = x.shape, routes.shape[2], projections[0].shape[1]
        self._graphs = graphs = _Graphs(ggml, threads, 1)
        self._turn = 0
        self._routes = routes
        self._ids = aligned(routes[0])
        base, context, inner = ggml.base, graphs.context, np.zeros((tokens, k, inter), np.float32)
        gate, up = (graphs.weight(fmt, blocks, hidden) for blocks in projections[:2])
        down = graphs.weight(fmt, projections[2], inter)
        vectors = graphs.place(base.ggml_new_tensor_3d(context, _F32, hidden, 1, tokens), aligned(x[:, None]))
        ids = graphs.place(base.ggml_new_tensor_2d(context, _I32, k, tokens), self._ids)
        h = [graphs.place(base.ggml_mul_mat_id(context, w, vectors, ids), aligned(inner)) for w in (gate, up)]
        product = graphs.place(base.ggml_swiglu_split(context, *h), aligned(inner))
        self._out = aligned(np.zeros((tokens, k, hidden), np.float32))
        graphs.add(graphs.place(base.ggml_mul_mat_id(context, down, product, ids), self._out))
        self.rest, self.close = graphs.rest, graphs.close

    def step(self) -> None:
        """Run the next call."""
        self.compute(self._turn % len(self._routes))
        self._turn += 1

    def compute(self, call: int) -> npt.NDArray[np.float32]:
        """Run one call: (tokens, k, hidden), one vector for each expert of a token."""
        self._ids[...] = self._routes[call]
        self._graphs.compute(0)
        return self._out


class GgmlDequantize:
    """One matrix after another to float32, by to_float; each thread takes an equal share of the rows.

    Parameters
    ----------
    ggml
        The library.
    fmt, blocks
        A format that it supports and that has a `to_float`, (experts, rows, row_bytes) uint8.
    cols
        Weights in a row.
    threads
        How many.
    """

    def __init__(self, ggml: Ggml, fmt: Format, blocks: npt.NDArray[np.uint8], cols: int, threads: int) -> None:
        _, rows, row_bytes = blocks.shape
        self._to_float = ggml.base.ggml_get_type_traits(fmt.ggml_type).contents.to_float
        self._blocks = blocks
        self._turn = 0
        self.out = aligned(np.zeros((rows, cols), np.float32))
        ends = [rows * i // threads for i in range(threads + 1)]
        self._shares = [(a * row_bytes, 4 * a * cols, (b - a) * cols) for a, b in pairwise(ends) if a < b]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def step(self) -> None:
        """Decode the next matrix."""
        self.compute(self._turn % len(self._blocks))
        self._turn += 1

    def compute(self, expert: int) -> npt.NDArray[np.float32]:
        """Decode one matrix: (rows, cols)."""
        source, target = self._blocks[expert].ctypes.data, self.out.ctypes.data
        parts = [(source + a, target + b, n) for a, b, n in self._shares]
        if self._pool is None:
            self._to_float(*parts[0])
        else:
            list(self._pool.map(lambda part: self._to_float(*part), parts))
        return self.out

    def rest(self) -> None:
        """Nothing to do: idle threads sleep."""

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
