"""dequantize, matvec, matmul and pack."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core, device_ops
from .arrays import FLOATS, as_array, expect_dimensions, float_input, output
from .device_array import dtype_number
from .formats import Format, find_format
from .places import CPU, place_of
from .runtime import thread_count
from .streams import chosen_queue
from .tensor import LAYOUTS, PackedTensor

_EFFORTS = {"fast": 1, "default": 0, "best": 2}  # lutkern_effort


def _expect_tensor(operation: str, t: Any) -> None:
    if not isinstance(t, PackedTensor):
        raise TypeError(f"{operation}: the weight is {type(t).__name__}, expected a PackedTensor")


def host_stream(operation: str, stream: Any, device: int) -> int:
    """Return the stream for work whose arrays are on the CPU; ValueError if the weight is there too."""
    if device == CPU:
        device_ops.expect_no_stream(operation, stream)
        return 0
    queue = chosen_queue(operation, stream, device, ())
    if queue.captured:
        raise ValueError(f"{operation}: x is on the CPU while a graph is captured, expected an array on the device")
    return queue.handle


def dequantize(t: PackedTensor, *, dtype: str = "float32", out: Any = None, stream: Any = None) -> Any:
    """Return the weights as floats, shape ``t.shape``: float32 is equal to the GGUF definition to the bit.

    Parameters
    ----------
    t
        A packed weight.
    dtype
        ``"float32"``, ``"float16"`` or ``"bfloat16"``, rounded to nearest even. On the CPU bfloat16 comes as that type
        of ml_dtypes, or as its bits, uint16, where ml_dtypes is not installed.
    out
        Where to write: of `dtype`, C-contiguous, shape ``t.shape``; of a weight of a GPU also an array on the CPU.
    stream
        Of a GPU, see `matvec`.

    Returns
    -------
    numpy.ndarray or DeviceArray
        Where the weight is; `out` if it is given.

    Raises
    ------
    TypeError, ValueError
        If `dtype` is unknown or `out` does not fit.
    RuntimeError
        If `out` is on another device.
    """
    _expect_tensor("dequantize", t)
    if not isinstance(dtype, str) or dtype not in FLOATS:
        raise ValueError(f"dequantize: unknown dtype {dtype!r}, expected one of: {', '.join(FLOATS)}")
    device = t._handle.device
    if device == CPU:
        device_ops.expect_no_stream("dequantize", stream)
        result = output("dequantize", out, t.shape, dtype)
        _core.dequantize(t._handle, dtype_number(dtype), result.view(np.uint16) if dtype == "bfloat16" else result)
        return result
    if out is None or place_of(out) != CPU:
        return device_ops.dequantize(t, dtype, out, stream)
    room = output("dequantize", out, t.shape, dtype)
    host_stream("dequantize", stream, device)
    made = device_ops.dequantize(t, dtype, None, stream)
    device_ops.to_host(made, room)
    return room


def matvec(t: PackedTensor, x: Any, *, exact: bool = False, out: Any = None, stream: Any = None) -> Any:
    """Multiply a (rows, cols) weight with a vector: x (cols,) -> (rows,) float32.

    Parameters
    ----------
    t
        A packed weight of one matrix; of several experts take one, ``t[e]``.
    x
        (cols,) float32, float16 or bfloat16; any array with DLPack or the buffer protocol, on the CPU or on the device
        of the weight.
    exact
        Use the activations as they are. Otherwise they are rounded to int8 with one scale for 32 columns, a relative
        error of the product of about 0.7 %; the formats bf16, f16 and f32 never round.
    out
        Where to write: float32, C-contiguous, (rows,), where x is.
    stream
        Of a GPU: a `Stream`; of CUDA also a ``CUstream`` as a number, or a stream of torch or CuPy. By default the
        current one of torch or CuPy, if x comes from there; that of x, if it is a `DeviceArray`; else the default
        stream. With x on the device the work is only queued; a foreign x must then live until it is done, unless its
        library works on the same stream. With x on the CPU it is done on return.

    Returns
    -------
    numpy.ndarray or DeviceArray
        Where x is; `out` if it is given.

    Raises
    ------
    ValueError
        If a shape does not fit.
    TypeError
        If an element type does not fit.
    RuntimeError
        If an array is on another device than the weight.
    """
    return _multiply("matvec", t, x, 1, exact, out, stream)


def matmul(t: PackedTensor, x: Any, *, exact: bool = False, out: Any = None, stream: Any = None) -> Any:
    """Multiply a (rows, cols) weight with several vectors: x (tokens, cols) -> (tokens, rows) float32.

    Parameters
    ----------
    t
        A packed weight of one matrix; of several experts take one, ``t[e]``.
    x
        (tokens, cols) float32, float16 or bfloat16; any array with DLPack or the buffer protocol, on the CPU or on the
        device of the weight. Zero tokens are fine.
    exact
        Use the activations as they are, see `matvec`.
    out
        Where to write: float32, C-contiguous, (tokens, rows), where x is.
    stream
        Of a GPU, see `matvec`.

    Returns
    -------
    numpy.ndarray or DeviceArray
        Where x is; `out` if it is given.

    Raises
    ------
    ValueError
        If a shape does not fit.
    TypeError
        If an element type does not fit.
    RuntimeError
        If an array is on another device than the weight.
    """
    return _multiply("matmul", t, x, 2, exact, out, stream)


def _multiply(operation: str, t: PackedTensor, x: Any, dimensions: int, exact: bool, out: Any, stream: Any) -> Any:
    _expect_tensor(operation, t)
    if stream is None:  # arrays that need nothing are checked by the native side, in a third of the time
        plain = _core.plain_matvec if dimensions == 1 else _core.plain_matmul
        result = plain(t._handle, x, out, exact)
        if result is not None:
            return result
    device = t._handle.device
    if device != CPU and place_of(x) != CPU:
        return device_ops.multiply(operation, t, x, dimensions, exact, out, stream)
    data, dtype = float_input(operation, "x", x)
    expect_dimensions(operation, "x", data, dimensions)
    handle = host_stream(operation, stream, device)
    result = output(operation, out, (t.shape[-2],) if dimensions == 1 else (data.shape[0], t.shape[-2]))
    run = _core.matvec if dimensions == 1 else _core.matmul
    run(t._handle, data, dtype, result, exact, handle)
    return result


def _importance_input(importance: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    if importance is None:
        return None
    array = as_array("pack", "importance", importance)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"pack: importance is {array.dtype}, expected float32")
    expected = (*shape[:-2], shape[-1])
    if array.shape != expected:
        raise ValueError(f"pack: importance has shape {array.shape}, expected {expected}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)


def pack(
    w: Any,
    fmt: str | Format,
    *,
    importance: Any = None,
    effort: str = "default",
    layout: str = "tiles",
    threads: int | None = None,
) -> PackedTensor:
    """Quantise weights: w (rows, cols) or (experts, rows, cols) -> PackedTensor of the same shape.

    The error that is kept small is ``sum(importance * (w - dequantised) ** 2)``. Columns that are no multiple of the
    format's block are padded; the result keeps the shape of `w`.

    Parameters
    ----------
    w
        float32, float16 or bfloat16, finite.
    fmt
        A format with ``can_pack``, or its name.
    importance
        How much each column matters, (cols,) or (experts, cols): usually the mean square of the inputs. Entries that
        are zero, negative or not finite are replaced by the mean of the others of their expert (one if there are none),
        with one warning.
    effort
        How long to search for a smaller error: ``"fast"``, ``"default"`` or ``"best"``.
    layout
        ``"tiles"``, which the kernels read fastest, or ``"blocks"``, the GGUF bytes. `PackedTensor.blocks` gives the
        GGUF bytes of either.
    threads
        How many threads to use; by default all of the pool.

    Raises
    ------
    ValueError
        If `w` is not finite or too large for the format's scale, or a shape, format, effort or layout does not fit.
    TypeError
        If an element type does not fit.
    """
    fmt = find_format(fmt)
    if not isinstance(effort, str) or effort not in _EFFORTS:
        raise ValueError(f"pack: unknown effort {effort!r}, expected one of: {', '.join(_EFFORTS)}")
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ValueError(f"pack: unknown layout {layout!r}, expected one of: {', '.join(LAYOUTS)}")
    n_threads = thread_count("pack", threads)
    data, dtype = float_input("pack", "w", w)
    expect_dimensions("pack", "w", data, 2, 3)
    shape = data.shape
    if min(shape) < 1:
        raise ValueError(f"pack: w has shape {shape}, expected sizes of at least 1")
    weights = _importance_input(importance, shape)
    blocks = np.empty((*shape[:-1], fmt.row_bytes(shape[-1])), np.uint8)
    experts = shape[0] if len(shape) == 3 else 1
    rows = data.reshape(-1, shape[-1])
    replaced = _core.pack(fmt.ggml_type, experts, rows, dtype, weights, blocks, n_threads, _EFFORTS[effort])
    if replaced:
        warnings.warn(
            f"pack: {replaced} of {experts * shape[-1]} entries of importance are not finite and positive, replaced by "
            "the mean of the others",
            RuntimeWarning,
            stacklevel=2,
        )
    return PackedTensor._make(blocks, fmt, shape, "blocks").to(layout=layout)
