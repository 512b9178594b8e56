"""Finding scales: try a few around the largest weight, keep the one with the least weighted squared error.

Everywhere here x are the weights to quantise and w their importance, float64 arrays of equal shape. One row of
them, (n, k), shares one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from .formats import Doubles

Indices = npt.NDArray[np.int64]


def ratio(numerator: Doubles, denominator: Doubles) -> Doubles:
    """Return numerator / denominator, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def amplitude(x: Doubles) -> Doubles:
    """Return the largest magnitude of each row, (n,)."""
    return np.asarray(np.max(np.abs(x), axis=-1))


def refit(x: Doubles, w: Doubles, values: Doubles) -> Doubles:
    """Return the scale (n,) that brings scale * values closest to x."""
    return ratio(np.sum(w * x * values, axis=-1), np.sum(w * values * values, axis=-1))


def best_scale(
    x: Doubles, w: Doubles, candidates: Iterable[Doubles], quantize: Callable[[Doubles], Doubles]
) -> Doubles:
    """Return the best scale of each row, (n,).

    candidates : scales (n,) to try; of equals the first wins
    quantize : takes scales (n,) and returns the values (n, k), times that scale nearest to x, that the format can hold
    """
    best = np.zeros(len(x))
    best_error = np.full(len(x), np.inf)
    for candidate in candidates:
        values = quantize(candidate)
        scale = refit(x, w, values)
        error = np.sum(w * (x - scale[:, None] * values) ** 2, axis=-1)
        better = error < best_error
        best = np.where(better, scale, best)
        best_error = np.where(better, error, best_error)
    return best


def rounded(x: Doubles, scale: Doubles, low: int, high: int) -> Doubles:
    """Return the integers from low to high nearest to x / scale; the scale broadcasts against x, and 0 / 0 is 0."""
    return np.clip(np.rint(ratio(x, np.broadcast_to(scale, x.shape))), low, high)


def best_line(
    x: Doubles, w: Doubles, factors: Iterable[float], high: int, *, signed: bool = False
) -> tuple[Doubles, Doubles]:
    """Return scale and minimum, (n,) each and not negative: x ~ scale * q - minimum with q from 0 to ``high``.

    signed : the minimum may be negative
    """
    low = x.min(axis=-1) if signed else np.minimum(x.min(axis=-1), 0)
    span = (x.max(axis=-1) if signed else np.maximum(x.max(axis=-1), 0)) - low
    best_error = np.full(len(x), np.inf)
    best = np.zeros((2, len(x)))
    for factor in factors:
        q = rounded(x - low[:, None], (span * factor / high)[:, None], 0, high)
        # The weighted least squares line through the points (q, x); through 0 if it falls or its minimum is below 0.
        mean_w = np.mean(w, axis=-1)
        mean_q, mean_x = (ratio(np.mean(w * v, axis=-1), mean_w) for v in (q, x))
        centred = q - mean_q[:, None]
        slope = refit(x - mean_x[:, None], w, centred)
        minimum = slope * mean_q - mean_x
        if not signed:
            through_zero = (slope <= 0) | (minimum < 0)
            slope = np.maximum(np.where(through_zero, refit(x, w, q), slope), 0)
            minimum = np.where(through_zero, 0, minimum)
        error = np.sum(w * (x - slope[:, None] * q + minimum[:, None]) ** 2, axis=-1)
        better = error < best_error
        best = np.where(better, (slope, minimum), best)
        best_error = np.where(better, error, best_error)
    return best[0], best[1]


class RowSearch:
    """Exhaustive search in codebooks: x is (n, rows, length), a grid (size, length); one scale serves all rows of an n.

    With several grids, all rows of one n use the same grid: the one with the lower error.
    """

    def __init__(self, x: Doubles, w: Doubles, grids: list[Doubles]) -> None:
        # error = sum w (x - scale * row)^2 = constant - 2 scale * sum(w x row) + scale^2 * sum(w row^2)
        self.grids = grids
        self.products = [(w * x) @ grid.T for grid in grids]
        self.powers = [w @ (grid * grid).T for grid in grids]

    def nearest(self, scale: Doubles) -> tuple[Indices, Indices]:
        """Return the best row numbers (n, rows) and grid numbers (n,) for scales (n,)."""
        s = scale[:, None, None]
        found, costs = [], []
        for product, power in zip(self.products, self.powers, strict=True):
            cost = s * (s * power - 2 * product)
            index = np.argmin(cost, axis=-1)
            found.append(index)
            costs.append(np.take_along_axis(cost, index[..., None], axis=-1).sum(axis=(1, 2)))
        number = np.argmin(costs, axis=0)
        return np.choose(number[:, None], found), number

    def values(self, scale: Doubles) -> Doubles:
        """Return the codebook values (n, rows * length) that are nearest for scales (n,)."""
        index, number = self.nearest(scale)
        return self.values_of(index, number)

    def values_of(self, index: Indices, number: Indices) -> Doubles:
        """Return the codebook values (n, rows * length) of row numbers (n, rows) and grid numbers (n,)."""
        return np.stack(self.grids)[number[:, None], index].reshape(len(index), -1)
