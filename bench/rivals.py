"""What lutkern is measured against, on the same bytes, in the same process, with the same number of threads.

ggml comes prebuilt (AVX2) in the libggml-python package and is driven through its C interface by ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_F32 = 0  # GGML_TYPE_F32
_OVERHEAD = 64 << 20  # tensors, graphs and ggml's copy of the quantised activations


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """ggml's matrix products."""

    def __init__(self, folder: Path) -> None:
        pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
        # The CPU library looks the base library up by name: it must be in the process first.
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
        signatures: tuple[tuple[Any, str, Any, tuple[Any, ...]], ...] = (
            (self.base, "ggml_init", pointer, (_InitParams,)),
            (self.base, "ggml_free", None, (pointer,)),
            (self.base, "ggml_new_tensor_2d", pointer, (pointer, ctypes.c_int, number, number)),
            (self.base, "ggml_new_tensor_3d", pointer, (pointer, ctypes.c_int, number, number, number)),
            (self.base, "ggml_view_2d", pointer, (pointer, pointer, number, number, size, size)),
            (self.base, "ggml_mul_mat", pointer, (pointer, pointer, pointer)),
            (self.base, "ggml_new_graph", pointer, (pointer,)),
            (self.base, "ggml_build_forward_expand", None, (pointer, pointer)),
            (self.base, "ggml_get_data", pointer, (pointer,)),
            (self.cpu, "ggml_graph_compute_with_ctx", ctypes.c_int, (pointer, pointer, ctypes.c_int)),
        )
        for library, name, result, arguments in signatures:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self.cpu.ggml_cpu_init()

    @staticmethod
    def load() -> Ggml | None:
        """Return ggml, or None where its package is missing."""
        try:
            import libggml
        except ImportError:
            return None
        return Ggml(Path(libggml.__file__).parent / "lib64")


class GgmlProducts:
    """Products of x with each of several matrices; the matrices are copied into ggml's memory once."""

    def __init__(
        self, ggml: Ggml, ggml_type: int, blocks: npt.NDArray[np.uint8], x: npt.NDArray[np.float32], threads: int
    ) -> None:
        (experts, rows, row_bytes), (tokens, cols) = blocks.shape, x.shape
        base = ggml.base
        # Each product keeps its result and ggml its graph in the same memory.
        size = blocks.nbytes + x.nbytes + experts * (4 * tokens * rows + (1 << 19)) + 4 * x.nbytes * experts + _OVERHEAD
        self._ggml, self._threads = ggml, threads
        self._context = base.ggml_init(_InitParams(size, None, False))
        weight = base.ggml_new_tensor_3d(self._context, ggml_type, cols, rows, experts)
        vectors = base.ggml_new_tensor_2d(self._context, _F32, cols, tokens)
        ctypes.memmove(base.ggml_get_data(weight), blocks.ctypes.data, blocks.nbytes)
        ctypes.memmove(base.ggml_get_data(vectors), x.ctypes.data, x.nbytes)
        self._graphs = []
        self.out = []
        for e in range(experts):
            view = base.ggml_view_2d(self._context, weight, cols, rows, row_bytes, e * rows * row_bytes)
            result = base.ggml_mul_mat(self._context, view, vectors)
            graph = base.ggml_new_graph(self._context)
            base.ggml_build_forward_expand(graph, result)
            self._graphs.append(graph)
            data = ctypes.cast(base.ggml_get_data(result), ctypes.POINTER(ctypes.c_float))
            self.out.append(np.ctypeslib.as_array(data, (tokens, rows)))

    def run(self, expert: int) -> None:
        """Fill out[expert], (tokens, rows)."""
        self._ggml.cpu.ggml_graph_compute_with_ctx(self._context, self._graphs[expert], self._threads)

    def close(self) -> None:
        """Give the memory back; out is invalid after it."""
        self.out = []
        self._ggml.base.ggml_free(self._context)


def rotating(call: Callable[[int], None], count: int) -> Callable[[], None]:
    """Return a call that goes through the matrices one after another, so that none stays in the cache."""
    turn = 0

    def step() -> None:
        nonlocal turn
        call(turn)
        turn = (turn + 1) % count

    return step
