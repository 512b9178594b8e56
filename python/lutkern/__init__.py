"""Runs the 1-bit and 2-bit weights of large Mixture-of-Experts models at memory speed.

>>> import lutkern, numpy as np
>>> w = np.random.default_rng(0).standard_normal((64, 512), np.float32)
>>> t = lutkern.pack(w, "iq2_xxs")
>>> y = lutkern.matvec(t, np.ones(512, np.float32))
"""

from __future__ import annotations

from . import reference
from ._core import tile_version as TILE_VERSION
from ._core import version as __version__
from .compare import Comparison, compare_files
from .device_array import DeviceArray, to_device
from .files import pack_file
from .formats import Format, formats
from .gguf import open_gguf, write_gguf
from .hybrid import split_experts
from .importance import Importance
from .moe import moe
from .ops import dequantize, matmul, matvec, pack
from .runtime import (
    Device,
    devices,
    get_cmake_dir,
    get_include,
    get_library,
    info,
    isas,
    num_threads,
    set_num_threads,
    supports,
    use_isa,
)
from .streams import Event, Graph, Stream, capture, synchronize
from .tensor import PackedTensor

__all__ = [
    "TILE_VERSION",
    "Comparison",
    "Device",
    "DeviceArray",
    "Event",
    "Format",
    "Graph",
    "Importance",
    "PackedTensor",
    "Stream",
    "__version__",
    "capture",
    "compare_files",
    "dequantize",
    "devices",
    "formats",
    "get_cmake_dir",
    "get_include",
    "get_library",
    "info",
    "isas",
    "matmul",
    "matvec",
    "moe",
    "num_threads",
    "open_gguf",
    "pack",
    "pack_file",
    "reference",
    "set_num_threads",
    "split_experts",
    "supports",
    "synchronize",
    "to_device",
    "use_isa",
    "write_gguf",
]
