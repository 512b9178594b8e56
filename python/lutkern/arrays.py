"""What comes in as an array, and where results go.

Arrays enter through NumPy, DLPack (torch, JAX on the CPU) or the buffer protocol (MLX), as float32, float16 or
bfloat16. They are read in place if the numbers of a row lie side by side; any other arrangement is copied first.
"""

from __future__ import annotations

import importlib.util
import operator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _core
from .places import DL_METAL

_F32, _F16, _BF16 = 0, 1, 2  # lutkern_dtype
_FLOAT32, _FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
_EXPECTED = "expected float32, float16 or bfloat16"
_CPU_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost


class FloatInput(NamedTuple):
    """Numbers for the native side: `data` holds float32, float16, or the bits of bfloat16 as uint16."""

    data: npt.NDArray[Any]
    dtype: int


class _Bfloat16Bits(np.ndarray[Any, Any]):
    """A uint16 array that is known to hold bfloat16."""


def _holds_bfloat16(array: npt.NDArray[Any]) -> bool:
    # NumPy takes microseconds to make the name of a type, and numbers of its own are of another kind.
    return isinstance(array, _Bfloat16Bits) or (array.dtype.kind == "V" and array.dtype.name == "bfloat16")


def _from_dlpack(operation: str, name: str, x: Any) -> npt.NDArray[Any]:
    device = x.__dlpack_device__()[0]
    if device == DL_METAL:
        return _from_metal(operation, name, x)
    if device not in _CPU_DEVICES:
        raise RuntimeError(f"{operation}: {name} is on DLPack device {int(device)}, expected the CPU")
    try:
        bits = _core.bfloat16_bits(x.__dlpack__())
        if bits is not None:
            return np.asarray(bits).view(_Bfloat16Bits)
        return np.from_dlpack(x)
    except (BufferError, RuntimeError) as error:
        # The other library does not hand it out (gradients, read-only memory), or NumPy has no such element type.
        raise TypeError(f"{operation}: {name} cannot be read through DLPack: {error}") from error


def _from_metal(operation: str, name: str, x: Any) -> npt.NDArray[Any]:
    """Return an array that another library keeps on Metal: the CPU sees that memory, and MLX lends it as a buffer.

    DLPack would hand out the object of its driver, which is no address.
    """
    try:
        if "bfloat16" in str(getattr(x, "dtype", "")):  # no buffer has a letter for it
            bits: npt.NDArray[np.uint16] = np.frombuffer(x, np.uint16).reshape(x.shape)
            return bits.view(_Bfloat16Bits)
        return np.asarray(memoryview(x))
    except (TypeError, ValueError, BufferError, RuntimeError):
        library = type(x).__module__.partition(".")[0]
        raise RuntimeError(
            f"{operation}: {name} is an array of {library} on Metal, expected one on the CPU, as its cpu() gives it"
        ) from None


def _read(operation: str, name: str, x: Any) -> npt.NDArray[Any]:
    if isinstance(x, np.ndarray):
        return x
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        return _from_dlpack(operation, name, x)
    return np.asarray(x)


def as_array(operation: str, name: str, x: Any) -> npt.NDArray[Any]:
    """Return `x`, a NumPy array, a DLPack array, a buffer or lists of numbers, as a NumPy array; bfloat16 as float32.

    Raises
    ------
    TypeError
        If DLPack cannot read it.
    RuntimeError
        If `x` is not in CPU memory.
    """
    array = _read(operation, name, x)
    if _holds_bfloat16(array):
        bits = np.asarray(array.view(np.uint16))
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return array


def float_input(operation: str, name: str, x: Any) -> FloatInput:
    """Return `x` as numbers that the native side reads.

    Raises
    ------
    TypeError
        If the element type is another.
    RuntimeError
        If `x` is not in CPU memory.
    """
    array = _read(operation, name, x)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == _FLOAT32:
        dtype = _F32
    elif array.dtype == _FLOAT16:
        dtype = _F16
    elif _holds_bfloat16(array):
        dtype = _BF16
        array = array.view(np.uint16)
    else:
        raise TypeError(f"{operation}: {name} is {array.dtype}, {_EXPECTED}")
    return FloatInput(_rows_in_place(np.asarray(array)), dtype)


def _rows_in_place(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `array` if its rows can be read where they are, else a contiguous copy."""
    if array.ndim == 0:
        return array
    item = array.dtype.itemsize
    strides = array.strides
    if array.ndim == 1 and strides[0] == item and array.flags.aligned:
        return array
    if array.ndim == 2 and strides[1] == item and strides[0] >= array.shape[1] * item and strides[0] % item == 0:
        return array if array.flags.aligned else np.ascontiguousarray(array)
    return np.ascontiguousarray(array)


FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}  # name: the NumPy type of the bits


def bfloat16_view(bits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return bits, uint16, as the bfloat16 of ml_dtypes; as they are where it is not installed."""
    if importlib.util.find_spec("ml_dtypes") is None:
        return bits
    import ml_dtypes

    return bits.view(ml_dtypes.bfloat16)


def _holds(out: npt.NDArray[Any], dtype: str) -> bool:
    # The name of a type that NumPy must first make takes microseconds.
    return out.dtype == FLOATS[dtype] or out.dtype.name in (dtype, np.dtype(FLOATS[dtype]).name)


def output(operation: str, out: Any, shape: tuple[int, ...], dtype: str = "float32") -> npt.NDArray[Any]:
    """Return `out`, or a new array if it is None.

    Raises
    ------
    TypeError
        If `out` is not a NumPy array of the element type; bfloat16 may come as its bits, uint16.
    ValueError
        If it has another shape, is not C-contiguous, or is read-only.
    """
    if out is None:
        made = np.empty(shape, FLOATS[dtype])
        return bfloat16_view(made) if dtype == "bfloat16" else made
    if not isinstance(out, np.ndarray) or not _holds(out, dtype):
        kind = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"{operation}: out is {kind}, expected a {dtype} NumPy array")
    if out.shape != shape:
        raise ValueError(f"{operation}: out has shape {out.shape}, expected {shape}")
    flags = out.flags
    if not (flags.c_contiguous and flags.writeable and flags.aligned and out.dtype.isnative):
        raise ValueError(f"{operation}: out is read-only or not C-contiguous, expected a writable C-contiguous array")
    return out


def expect_dimensions(operation: str, name: str, array: npt.NDArray[Any], *expected: int) -> None:
    """Raise ValueError unless `array` has one of the numbers of dimensions."""
    if array.ndim not in expected:
        wanted = " or ".join(str(n) for n in expected)
        raise ValueError(f"{operation}: {name} has {array.ndim} dimensions, expected {wanted}")


def whole_number(operation: str, name: str, value: Any, limit: int) -> int:
    """Return `value` as an int. TypeError if it is no whole number, ValueError if it is not from 1 to `limit`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{operation}: {name} is {type(value).__name__}, expected a whole number") from None
    if not 1 <= number <= limit:
        raise ValueError(f"{operation}: {name} is {number}, expected 1 to {limit}")
    return number
