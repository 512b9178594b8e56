"""What lutkern is measured against, on the same bytes, in the same process, with the same number of threads.

ggml comes prebuilt (AVX2) in the libggml-python package and is driven through its C interface by ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

F32 = 0


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """ggml's matrix products. `Ggml.load()` is None where the package is missing."""

    def __init__(self, folder: Path) -> None:
        # The CPU library looks the base library up by name: it must be in the process first.
        ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self._lib = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
        self._base = ctypes.CDLL(str(folder / "libggml-base.so"))
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        for library, name, result, arguments in (
            (self._base, "ggml_init", pointer, (_InitParams,)),
            (self._base, "ggml_free", None, (pointer,)),
            (self._base, "ggml_new_tensor_2d", pointer, (pointer, ctypes.c_int, number, number)),
            (self._base, "ggml_mul_mat", pointer, (pointer, pointer, pointer)),
            (self._base, "ggml_new_graph", pointer, (pointer,)),
            (self._base, "ggml_build_forward_expand", None, (pointer, pointer)),
            (self._base, "ggml_get_data", pointer, (pointer,)),
            (self._lib, "ggml_graph_compute_with_ctx", ctypes.c_int, (pointer, pointer, ctypes.c_int)),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._lib.ggml_cpu_init()

    @staticmethod
    def load() -> Ggml | None:
        try:
            import libggml
        except ImportError:
            return None
        return Ggml(Path(libggml.__file__).parent / "lib64")

    def matmul(
        self, ggml_type: int, blocks: npt.NDArray[np.uint8], x: npt.NDArray[np.float32], threads: int
    ) -> tuple[Callable[[], None], npt.NDArray[np.float32]]:
        """Return a call that computes x (tokens, cols) times the rows, and the (tokens, rows) array that it fills.

        Setting up copies the blocks; the call itself is one ggml graph.
        """
        rows, (tokens, cols) = len(blocks), x.shape
        size = blocks.nbytes + x.nbytes + 4 * tokens * rows + (16 << 20) + 8 * x.nbytes
        context = self._base.ggml_init(_InitParams(size, None, False))
        weight = self._base.ggml_new_tensor_2d(context, ggml_type, cols, rows)
        vectors = self._base.ggml_new_tensor_2d(context, F32, cols, tokens)
        result = self._base.ggml_mul_mat(context, weight, vectors)
        graph = self._base.ggml_new_graph(context)
        self._base.ggml_build_forward_expand(graph, result)
        ctypes.memmove(self._base.ggml_get_data(weight), blocks.ctypes.data, blocks.nbytes)
        ctypes.memmove(self._base.ggml_get_data(vectors), x.ctypes.data, x.nbytes)
        address = self._base.ggml_get_data(result)
        out = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (tokens, rows))

        used = self._base.ggml_used_mem
        used.restype, used.argtypes = ctypes.c_size_t, (ctypes.c_void_p,)
        return _Call(self, context, graph, threads), out


class _Call:
    def __init__(self, ggml: Ggml, context: int, graph: int, threads: int) -> None:
        self._ggml, self._context, self._graph, self._threads = ggml, context, graph, threads

    def __call__(self) -> None:
        self._ggml._lib.ggml_graph_compute_with_ctx(self._context, self._graph, self._threads)

    def __del__(self) -> None:
        self._ggml._base.ggml_free(self._context)
