"""Where weights and arrays lie: ``"cpu"``, ``"cuda"`` (the first GPU), ``"cuda:1"``, and their numbers in the C API."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np

from . import _core

CPU = 0  # lutkern_device_kind
CUDA = 0x100
_DL_CUDA = 2  # kDLCUDA
_CUDA_NAME = re.compile(r"cuda(?::(\d{1,3}))?")


def device_number(operation: str, name: Any) -> int:
    """Return the number of a device in the C API.

    Raises
    ------
    RuntimeError
        If there is no such device; the text says why.
    """
    if name == "cpu":
        return CPU
    found = _CUDA_NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise RuntimeError(f"{operation}: no device {name!r}, expected cpu, cuda or cuda:N")
    absent = _core.device_absent(CUDA)
    if absent is not None:
        raise RuntimeError(f"{operation}: no device {name!r}: {absent}")
    index, count = int(found[1] or 0), _core.device_count(CUDA)
    if index >= count:
        raise RuntimeError(f"{operation}: no device {name!r}, the last one is cuda:{count - 1}")
    return CUDA + index


def device_name(number: int) -> str:
    """Return the name of a device: ``"cpu"`` or ``"cuda:0"``."""
    return "cpu" if number == CPU else f"cuda:{number - CUDA}"


def place_of(x: Any) -> int:
    """Return the device on which the numbers of `x` lie; whatever is not known to be elsewhere is on the CPU."""
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack_device__"):
        return CPU
    kind, index = x.__dlpack_device__()
    return CUDA + int(index) if int(kind) == _DL_CUDA else CPU


def library_of(x: Any) -> str:
    """Return ``"torch"`` or ``"cupy"`` if `x` is an array of theirs, else an empty text. Neither is imported."""
    roots = {base.__module__.partition(".")[0] for base in type(x).__mro__}
    return next((name for name in ("torch", "cupy") if name in roots and name in sys.modules), "")


def current_stream(library: str, device: int) -> int:
    """Return the handle of the stream on which torch or CuPy queue their work at the moment."""
    cuda = sys.modules[library].cuda
    index = device - CUDA
    if library == "torch":
        return int(cuda.current_stream(index).cuda_stream)
    with cuda.Device(index):
        return int(cuda.get_current_stream().ptr)
