"""Packing by ggml, the rival that judges our packers. Its shared libraries come with the libggml-python package."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import libggml
import numpy as np
import numpy.typing as npt

import lutkern


@cache
def _library() -> ctypes.CDLL:
    folder = Path(libggml.__file__).parent / "lib64"
    base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
    cpu.ggml_cpu_init()
    base.ggml_quantize_init.argtypes = [ctypes.c_int]
    base.ggml_quantize_init.restype = None
    base.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    return base


def pack(w: npt.NDArray[np.float32], fmt: lutkern.Format, importance: npt.NDArray[np.float32]) -> lutkern.PackedTensor:
    """Pack w (rows, cols) float32, cols whole blocks, with importance (cols,) float32."""
    rows, cols = w.shape
    blocks = np.zeros((rows, fmt.row_bytes(cols)), np.uint8)
    source, weights = np.ascontiguousarray(w, np.float32), np.ascontiguousarray(importance, np.float32)
    _library().ggml_quantize_init(fmt.ggml_type)
    written = _library().ggml_quantize_chunk(
        fmt.ggml_type, source.ctypes.data, blocks.ctypes.data, 0, rows, cols, weights.ctypes.data
    )
    assert written == blocks.size
    return lutkern.PackedTensor.from_blocks(blocks, fmt, (rows, cols))
