"""dequantize, matvec, matmul and pack."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .arrays import as_array, expect_dimensions, float_input, output
from .formats import Format, find_format
from .runtime import thread_count
from .tensor import LAYOUTS, PackedTensor

_EFFORTS = {"fast": 1, "default": 0, "best": 2}  # lutkern_effort


def _expect_tensor(operation: str, t: Any) -> None:
    if not isinstance(t, PackedTensor):
        raise TypeError(f"{operation}: the weight is {type(t).__name__}, expected a PackedTensor")


def dequantize(t: PackedTensor, *, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """Return the weights as float32, shape ``t.shape``, equal to the GGUF definition to the bit.

    Parameters
    ----------
    t
        A packed weight.
    out
        Where to write: float32, C-contiguous, shape ``t.shape``.

    Raises
    ------
    TypeError, ValueError
        If `out` does not fit.
    """
    _expect_tensor("dequantize", t)
    result = output("dequantize", out, t.shape)
    _core.dequantize(t._handle, result)
    return result


def matvec(
    t: PackedTensor, x: Any, *, exact: bool = False, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Multiply a (rows, cols) weight with a vector: x (cols,) -> (rows,) float32.

    Parameters
    ----------
    t
        A packed weight of one matrix; of several experts take one, ``t[e]``.
    x
        (cols,) float32, float16 or bfloat16; any array with DLPack or the buffer protocol.
    exact
        Use the activations as they are. Otherwise they are rounded to int8 with one scale for 32 columns, a relative
        error of the product of about 0.7 %; the formats bf16, f16 and f32 never round.
    out
        Where to write: float32, C-contiguous, (rows,).

    Raises
    ------
    ValueError
        If a shape does not fit.
    TypeError
        If an element type does not fit.
    """
    _expect_tensor("matvec", t)
    data, dtype = float_input("matvec", "x", x)
    expect_dimensions("matvec", "x", data, 1)
    result = output("matvec", out, (t.shape[-2],))
    _core.matvec(t._handle, data, dtype, result, exact)
    return result


def matmul(
    t: PackedTensor, x: Any, *, exact: bool = False, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Multiply a (rows, cols) weight with several vectors: x (tokens, cols) -> (tokens, rows) float32.

    Parameters
    ----------
    t
        A packed weight of one matrix; of several experts take one, ``t[e]``.
    x
        (tokens, cols) float32, float16 or bfloat16; any array with DLPack or the buffer protocol. Zero tokens are fine.
    exact
        Use the activations as they are, see `matvec`.
    out
        Where to write: float32, C-contiguous, (tokens, rows).

    Raises
    ------
    ValueError
        If a shape does not fit.
    TypeError
        If an element type does not fit.
    """
    _expect_tensor("matmul", t)
    data, dtype = float_input("matmul", "x", x)
    expect_dimensions("matmul", "x", data, 2)
    result = output("matmul", out, (data.shape[0], t.shape[-2]))
    _core.matmul(t._handle, data, dtype, result, exact)
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
