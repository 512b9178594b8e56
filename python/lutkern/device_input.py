"""Arrays on a GPU enter by DLPack without a copy, and results go into arrays there.

The library that owns an array is told on which stream it will be read (DLPack's ``stream``), so that its pending work
comes first. Work on the same stream as the library's own needs no more: the memory cannot be used anew before. On
another stream, what is borrowed lives as long as the result.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import _core
from .device_array import DeviceArray, filled
from .places import current_stream, device_name, library_of, place_of
from .streams import Queue

_FLOATS = {"float32": 0, "float16": 1, "bfloat16": 2}  # lutkern_dtype
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_VERSION = (1, 1)  # of DLPack, the newest that is understood

Numbers = tuple[int, int, int, int, int, int]  # address, dtype, rows, cols, row stride, device


class View(NamedTuple):
    """An array on a GPU: `kept` is what must live while it is read, `owner` the array if it is of another library."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: int
    read_only: bool
    kept: Any
    owner: Any
    converted: bool = False  # a copy that nobody else holds

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie side by side in C order."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != step:
                return False
            step *= size
        return True

    @property
    def end(self) -> int:
        """First address past the elements of a C-contiguous or row-wise strided array."""
        if not math.prod(self.shape):
            return self.address
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.address + (last + 1) * _bytes_of(self.dtype)


def _bytes_of(dtype: str) -> int:
    return int("".join(filter(str.isdigit, dtype)) or 8) // 8


def view(operation: str, name: str, x: Any, queue: Queue) -> View:
    """Return an array of the device; work on the queue waits for the work that fills it, unless a graph keeps it.

    Raises
    ------
    RuntimeError
        If it is on another device.
    TypeError
        If its library does not hand it out.
    """
    place = place_of(x)
    if place != queue.device:
        here = device_name(queue.device)
        raise RuntimeError(f"{operation}: {name} is on {device_name(place)}, the weight is on {here}")
    if isinstance(x, DeviceArray):
        return _own(x, queue)
    try:
        # DLPack's 1 is the default stream, its -1: nobody waits
        borrowed = _core.Borrowed(_capsule(x, -1 if queue.captured else max(queue.handle, 1)))
    except (BufferError, RuntimeError) as error:
        raise TypeError(f"{operation}: {name} cannot be read through DLPack: {error}") from error
    code, bits, lanes = borrowed.dtype
    dtype = f"{_CODES.get(code, f'DLPack type {code} of ')}{bits}" + (f"x{lanes}" if lanes != 1 else "")
    return View(borrowed.address, dtype, borrowed.shape, borrowed.strides, place, borrowed.read_only, borrowed, x)


def _own(x: DeviceArray, queue: Queue) -> View:
    memory = x._memory
    if not queue.captured and max(memory.stream, 1) != max(queue.handle, 1):
        _core.wait(memory.device, queue.handle, memory.stream)
    memory.use_on(queue.handle)
    strides = tuple(math.prod(x.shape[i + 1 :]) for i in range(len(x.shape)))
    return View(memory.address, x.dtype, x.shape, strides, memory.device, False, x, None)


def _capsule(x: Any, stream: int) -> Any:
    try:
        return x.__dlpack__(stream=stream, max_version=_VERSION)
    except TypeError:  # a library from before versions
        return x.__dlpack__(stream=stream)


def float_numbers(operation: str, name: str, array: View, dimensions: int) -> Numbers:
    """Return a vector or a matrix as the native side reads it.

    Raises
    ------
    TypeError
        If the element type is another.
    ValueError
        If it has other dimensions, or the numbers of a row do not lie side by side.
    """
    if array.dtype not in _FLOATS:
        raise TypeError(f"{operation}: {name} is {array.dtype}, expected float32, float16 or bfloat16")
    if len(array.shape) != dimensions:
        raise ValueError(f"{operation}: {name} has {len(array.shape)} dimensions, expected {dimensions}")
    rows, cols = array.shape if dimensions == 2 else (1, array.shape[0])
    row_stride = array.strides[0] if rows > 1 else cols
    if (cols > 1 and array.strides[-1] != 1) or row_stride < cols:
        raise ValueError(
            f"{operation}: {name} has strides {array.strides} on {device_name(array.device)}, expected rows whose "
            "numbers lie side by side"
        )
    return (array.address, _FLOATS[array.dtype], rows, cols, row_stride, array.device)


def plain_array(operation: str, name: str, x: Any, dtype: str, queue: Queue) -> View:
    """Return `x` as a C-contiguous array of int32 or float32 on the device, from the CPU or the device.

    Another element type or order is converted by the library that owns the array: torch's router gives int64.

    Raises
    ------
    TypeError
        If it has another element type and cannot convert it.
    RuntimeError
        If it is on another device.
    """
    found = view(operation, name, x, queue)
    if found.dtype == dtype and found.contiguous:
        return found
    kind = "int" if dtype == "int32" else "float"
    if found.dtype.lstrip("ub").startswith(kind):
        converted = _converted(x, kind, dtype)
        if converted is not None:
            again = view(operation, name, converted, queue)
            if again.dtype == dtype and again.contiguous:
                return again._replace(converted=True)
    where = f"{device_name(queue.device)}, expected C-contiguous {dtype}"
    raise TypeError(f"{operation}: {name} is {found.dtype} with strides {found.strides} on {where}")


def _converted(x: Any, kind: str, dtype: str) -> Any:
    short = getattr(x, kind, None)  # torch: x.int(), x.float()
    if callable(short):
        narrow = short()
        return narrow.contiguous() if hasattr(narrow, "contiguous") else narrow
    if hasattr(x, "astype"):  # CuPy, JAX
        return x.astype(np.dtype(dtype))
    return None


def uploaded(array: np.ndarray[Any, Any], dtype: str, queue: Queue) -> View:
    """Return a copy of a contiguous array of the CPU on the device."""
    return _own(filled(array, dtype, queue.device, queue.handle), queue)


def device_output(
    operation: str, out: Any, shape: tuple[int, ...], queue: Queue, dtype: str = "float32"
) -> tuple[Any, View]:
    """Return the array for a result, `out` or a new one, and a view of it.

    Raises
    ------
    RuntimeError
        If `out` is on another device.
    TypeError
        If it has another element type.
    ValueError
        If it has another shape, is not C-contiguous, or is read-only.
    """
    if out is None:
        made = DeviceArray._empty(shape, dtype, queue.device, queue.handle)
        return made, _own(made, queue)
    if place_of(out) != queue.device:
        where = f"{device_name(place_of(out))}, expected {device_name(queue.device)}"
        raise RuntimeError(f"{operation}: out is {type(out).__name__} on {where}")
    found = view(operation, "out", out, queue)
    if found.dtype != dtype:
        raise TypeError(f"{operation}: out is {found.dtype}, expected {dtype}")
    if found.shape != shape:
        raise ValueError(f"{operation}: out has shape {found.shape}, expected {shape}")
    if found.read_only or not found.contiguous:
        raise ValueError(f"{operation}: out is read-only or not C-contiguous, expected a writable C-contiguous array")
    return out, found


def expect_apart(operation: str, out: View, *inputs: tuple[str, View]) -> None:
    """Raise ValueError if a result would overwrite what is still to be read: blocks of a kernel run in any order."""
    for name, array in inputs:
        if array.address < out.end and out.address < array.end:
            raise ValueError(
                f"{operation}: out overlaps {name}, expected memory of its own on {device_name(out.device)}"
            )


def hold(result: Any, queue: Queue, *arrays: View) -> None:
    """See to it that no input's memory is used anew before the work that was in the queue is done."""
    for array in arrays:
        library = library_of(array.owner)
        own = current_stream(library, array.device) if library else None
        if array.owner is None or (own is not None and max(own, 1) == max(queue.handle, 1)):
            continue  # what comes next in that memory is queued behind this work
        if isinstance(result, DeviceArray):
            result._kept.append(array.kept)
        elif array.converted and own is not None:
            _core.wait(array.device, own, queue.handle)
