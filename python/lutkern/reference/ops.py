"""The matrix products, accumulated in float64: the judge of every kernel.

With an integer format and ``exact=False`` the activations are quantised to int8 first, as the kernels do, and all
sums inside a group of 16 columns are integers: what remains is the float64 sum over groups, in which nothing
visible is lost. With a float format, or with ``exact=True``, it is the plain dot product of the dequantised weights
with the activations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .activations import COLUMNS, activations_of, quantize_activations
from .dequantize import GROUP, Weight, WeightLike, dequantize_weight, unpack, weight_of
from .formats import Doubles

LANE = 4
"""Columns whose exact integer sum meets a scale: what one 32-bit lane of the byte dot products holds."""


class Product:
    """A (rows, cols) weight, unpacked once, ready to be multiplied with activations of its width."""

    def __init__(self, weight: Weight, *, exact: bool) -> None:
        self.cols = weight.shape[-1]
        self.quantizes = not exact and not weight.format.is_float
        if self.quantizes:
            q, scale, offset = unpack(weight.blocks, weight.format)
            self.q = q.reshape(*scale.shape, GROUP).astype(np.int32)
            self.scale = scale.astype(np.float64)
            self.offset = offset.astype(np.float64)
        else:
            self.values = dequantize_weight(weight).astype(np.float64)

    def terms(self, x: Doubles) -> tuple[Doubles, ...]:
        """Return arrays (rows, n) whose sum over all their columns is the product with x (cols,)."""
        if not self.quantizes:
            return (self.values * x,)
        # In this mode x holds float32 numbers, so nothing is lost here.
        xq, x_scale = quantize_activations(x.astype(np.float32))
        groups = np.zeros((self.scale.shape[1], GROUP), dtype=np.int32)
        groups.reshape(-1)[: self.cols] = xq[: self.cols]
        d = np.zeros(groups.shape[0])
        per_group = np.repeat(x_scale.astype(np.float64), COLUMNS // GROUP)[: d.size]
        d[: per_group.size] = per_group
        lanes = (*groups.shape[:1], GROUP // LANE, LANE)
        dots = np.einsum("rglk,glk->rgl", self.q.reshape(-1, *lanes), groups.reshape(lanes))
        scaled = (self.scale * d)[:, :, np.newaxis] * dots
        return scaled.reshape(len(scaled), -1), self.offset * groups.sum(axis=1) * d

    def __call__(self, x: Doubles) -> Doubles:
        """Return the product with x (cols,): float64 (rows,)."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(sum(np.sum(term, axis=1) for term in self.terms(x)))

    def magnitude(self, x: Doubles) -> Doubles:
        """Return the sum of the magnitudes of the terms for x (cols,): float64 (rows,)."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(sum(np.sum(np.abs(term), axis=1) for term in self.terms(x)))


def two_dimensional(operation: str, t: WeightLike) -> Weight:
    """Check a weight and that it is (rows, cols); ValueError otherwise."""
    weight = weight_of(operation, t)
    if len(weight.shape) != 2:
        raise ValueError(f"{operation}: the weight has shape {weight.shape}, expected (rows, cols)")
    return weight


def operand(operation: str, x: npt.ArrayLike, weight: Weight, ndim: int) -> Doubles:
    """Check activations of ``ndim`` axes against the weight's columns and return them as float64."""
    values = activations_of(operation, x)
    if values.ndim != ndim:
        expected = "(cols,)" if ndim == 1 else "(tokens, cols)"
        raise ValueError(f"{operation}: x has shape {values.shape}, expected {expected}")
    if values.shape[-1] != weight.shape[-1]:
        raise ValueError(f"{operation}: x has {values.shape[-1]} columns, the weight has {weight.shape[-1]}")
    return values.astype(np.float64)


def matvec(t: WeightLike, x: npt.ArrayLike, *, exact: bool = False) -> Doubles:
    """Multiply a (rows, cols) weight with x, float (cols,): float64 (rows,).

    ValueError for a shape, TypeError for a dtype.
    """
    weight = two_dimensional("matvec", t)
    return Product(weight, exact=exact)(operand("matvec", x, weight, 1))


def matmul(t: WeightLike, x: npt.ArrayLike, *, exact: bool = False) -> Doubles:
    """Multiply a (rows, cols) weight with every row of x, float (tokens, cols): float64 (tokens, rows).

    ValueError for a shape, TypeError for a dtype.
    """
    weight = two_dimensional("matmul", t)
    tokens = operand("matmul", x, weight, 2)
    product = Product(weight, exact=exact)
    return np.array([product(token) for token in tokens]).reshape(len(tokens), weight.shape[0])
