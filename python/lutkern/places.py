"""Where weights and arrays lie: ``"cpu"``, ``"cuda"`` (the first GPU), ``"cuda:1"``, ``"metal"``, as in the C API."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np

from . import _core

CPU = 0  # lutkern_device_kind
CUDA = 0x100
METAL = 0x200
GPUS = {"cuda": CUDA, "metal": METAL}  # kinds by name
_KIND = 0xFF00  # bits of the kind in the number of a device
_NAME = re.compile(rf"({'|'.join(GPUS)})(?::(\d{{1,3}}))?")
_EXPECTED = "cuda, cuda:N, metal or metal:N"

DL_CPU, DL_CUDA, DL_METAL = 1, 2, 8  # DLPack's numbers of devices


def device_number(operation: str, name: Any) -> int:
    """Return the number of a device in the C API.

    Raises
    ------
    RuntimeError
        If there is no such device; the text says why.
    """
    if isinstance(name, str) and name == "cpu":
        return CPU
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise RuntimeError(f"{operation}: no device {name!r}, expected cpu, {_EXPECTED}")
    kind = GPUS[found[1]]
    absent = _core.device_absent(kind)
    if absent is not None:
        raise RuntimeError(f"{operation}: no device {name!r}: {absent}")
    index, count = int(found[2] or 0), _core.device_count(kind)
    if index >= count:
        raise RuntimeError(f"{operation}: no device {name!r}, the last one is {device_name(kind + count - 1)}")
    return kind + index


def gpu_number(operation: str, device: str) -> int:
    """Return the number of a GPU; RuntimeError if it is not there, ValueError for the CPU."""
    number = device_number(operation, device)
    if number == CPU:
        raise ValueError(f"{operation}: device is {device!r}, expected {_EXPECTED}")
    return number


def device_name(number: int) -> str:
    """Return the name of a device: ``"cpu"``, ``"cuda:0"`` or ``"metal:0"``."""
    if number == CPU:
        return "cpu"
    kind = kind_of(number)
    return f"{next(name for name, known in GPUS.items() if known == kind)}:{number - kind}"


def kind_of(number: int) -> int:
    """Return what a device is: `CPU`, `CUDA` or `METAL`."""
    return number & _KIND


def place_of(x: Any) -> int:
    """Return the device on which the numbers of `x` lie; whatever is not known to be elsewhere is on the CPU.

    Of the arrays on Metal only those of this library are there: those of others are read as arrays of the CPU.
    """
    if isinstance(x, np.ndarray):
        return CPU
    own = getattr(x, "_lutkern_device", None)
    if own is not None:
        return int(own)
    if not hasattr(x, "__dlpack_device__"):
        return CPU
    kind, index = x.__dlpack_device__()
    return CUDA + int(index) if int(kind) == DL_CUDA else CPU


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
