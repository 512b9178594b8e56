"""Activations: their int8 form, and the functions between the projections of an expert."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .formats import Doubles, Floats

COLUMNS = 32
"""Columns that share one activation scale."""

SMALLEST_NORMAL = np.float32(2.0**-126)
FLOAT_DTYPES = ("float32", "float16", "bfloat16")
ACTIVATIONS = ("silu", "gelu", "relu2", None)


class QuantizedActivations(NamedTuple):
    """x ~ scale * q: q int8 (..., padded cols), scale float32 (..., padded cols / 32); zeros pad to 32 columns."""

    q: npt.NDArray[np.int8]
    scale: Floats


def activations_of(operation: str, x: npt.ArrayLike, name: str = "x") -> Floats:
    """Return float32, float16 or bfloat16 activations as float32; TypeError for another dtype."""
    array = np.asarray(x)
    if array.dtype.name not in FLOAT_DTYPES:
        raise TypeError(f"{operation}: {name} is {array.dtype.name}, expected float32, float16 or bfloat16")
    return array.astype(np.float32)


def quantize_activations(x: npt.ArrayLike) -> QuantizedActivations:
    """Quantise x, float (..., cols), to int8 (..., padded cols) with one float32 scale per 32 columns.

    All arithmetic is float32. With amax the largest magnitude of 32 columns:

        scale = amax / 127                      q = x * (127 / amax), rounded half to even
        scale = 0    if amax / 127 < 2^-126     q = 0    (127 / amax would overflow)
        scale = NaN  if amax is not finite      q = 0    (the output shall not be finite either)

    TypeError if x is not float32, float16 or bfloat16.
    """
    values = activations_of("quantize_activations", x)
    padding = -values.shape[-1] % COLUMNS
    values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, padding)])
    groups = values.reshape(*values.shape[:-1], -1, COLUMNS)
    amax = np.max(np.abs(groups), axis=-1, initial=0)
    scale = amax / np.float32(127)
    finite = np.isfinite(amax)
    usable = finite & (scale >= SMALLEST_NORMAL)
    inverse = np.float32(127) / np.where(usable, amax, np.float32(1))
    q = np.rint(np.where(usable[..., None], groups, np.float32(0)) * inverse[..., None])
    scale = np.where(finite, np.where(usable, scale, np.float32(0)), np.float32(np.nan))
    return QuantizedActivations(q.astype(np.int8).reshape(values.shape), scale)


def check_activation(operation: str, activation: str | None) -> None:
    """Raise ValueError if there is no activation function of this name."""
    if activation not in ACTIVATIONS:
        known = ", ".join(repr(name) for name in ACTIVATIONS)
        raise ValueError(f"{operation}: unknown activation {activation!r}, expected one of {known}")


def activate(z: Doubles, activation: str | None) -> Doubles:
    """Apply a known activation function to float64 values of any shape.

    silu : z / (1 + exp(-z))      gelu : z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 z^3)))
    relu2 : max(z, 0)^2           None : z
    """
    with np.errstate(over="ignore"):
        if activation == "silu":
            return np.asarray(z / (1 + np.exp(-z)))
        if activation == "gelu":
            return np.asarray(z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))))
        if activation == "relu2":
            return np.maximum(z, 0) ** 2
        return z
