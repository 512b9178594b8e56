"""The error of one packed weight: float64 sums over pieces of it, so that a weight of any size needs little memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..ops import dequantize
from ..tensor import PackedTensor

# Weights that are decoded at a time, a multiple of every block size; a few arrays of them fit into a cache.
PIECE_WEIGHTS = 1 << 18


@dataclass(frozen=True)
class Errors:
    """How far weights of B are from those of A. Weights that are not finite in A or in B only count as such.

    Attributes
    ----------
    tensors, weights
        How many.
    bits_a, bits_b
        Bits per weight in A and in B.
    rmse
        Relative root mean square error, ``sqrt(sum((a - b)**2) / sum(a**2))``; infinite if only A is all zero.
    weighted
        The same with each square times the importance of its column; None without importance. Of several tensors, the
        root of the mean of the squares of those that have importance, by their numbers of weights: importance has
        another scale in every tensor, and a sum would be that of the few with the largest inputs.
    max_error
        The largest ``abs(a - b)``.
    cosine
        Cosine similarity, ``sum(a * b) / sqrt(sum(a**2) * sum(b**2))``; None if A or B is all zero.
    not_finite
        Weights that are NaN or infinite in A or in B.
    """

    tensors: int
    weights: int
    bits_a: float
    bits_b: float
    rmse: float
    weighted: float | None
    max_error: float
    cosine: float | None
    not_finite: int

    @property
    def badness(self) -> tuple[bool, float]:
        """What sorts the worst last: weights that are not finite, then the weighted error if there is one."""
        return self.not_finite > 0, self.rmse if self.weighted is None else self.weighted


@dataclass(frozen=True)
class TensorErrors:
    """A tensor: its name, shape (as in the file, NumPy order), formats in A and B, errors."""

    name: str
    shape: tuple[int, ...]
    format_a: str
    format_b: str
    errors: Errors


@dataclass
class Sums:
    """What errors are made of. Sums of several tensors add up."""

    tensors: int = 0
    weights: int = 0
    bytes_a: int = 0
    bytes_b: int = 0
    error: float = 0.0
    energy_a: float = 0.0
    energy_b: float = 0.0
    product: float = 0.0
    has_importance: bool = False
    weighted_error: float = 0.0
    weighted_energy: float = 0.0
    max_error: float = 0.0
    not_finite: int = 0

    def add(self, other: Sums) -> None:
        """Take in the sums of other tensors."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name in ("max_error", "has_importance") else mine + value)

    def errors(self) -> Errors:
        """Turn the sums of at least one weight into errors."""
        energy = self.energy_a * self.energy_b
        return Errors(
            tensors=self.tensors,
            weights=self.weights,
            bits_a=8 * self.bytes_a / self.weights,
            bits_b=8 * self.bytes_b / self.weights,
            rmse=_root_ratio(self.error, self.energy_a),
            weighted=_root_ratio(self.weighted_error, self.weighted_energy) if self.has_importance else None,
            max_error=self.max_error,
            cosine=min(1.0, max(-1.0, self.product / math.sqrt(energy))) if energy else None,
            not_finite=self.not_finite,
        )


def _root_ratio(error: float, energy: float) -> float:
    if energy == 0:
        return math.inf if error else 0.0
    return math.sqrt(error / energy)


def measure(a: PackedTensor, b: PackedTensor, importance: npt.NDArray[np.float32] | None = None) -> Sums:
    """Sum up the errors of b against a, weights of the same shape.

    Parameters
    ----------
    a, b
        (rows, cols) or (experts, rows, cols).
    importance
        float32, (cols,) or (experts, cols).
    """
    cols = a.shape[-1]
    sums = Sums(1, math.prod(a.shape), a.nbytes, b.nbytes, has_importance=importance is not None)
    columns = None if importance is None else importance.astype(np.float64).reshape(-1, cols)
    space = np.empty((2, PIECE_WEIGHTS), np.float32)
    for expert, height, width in _pieces(a.shape):
        x, y = (_decoded(t, expert, height, width, part) for t, part in zip((a, b), space, strict=True))
        _add_piece(sums, x, y, None if columns is None else columns[expert % len(columns), width])
    if columns is not None:
        # The ratio stays; as a part of several tensors this one counts as many times as it has weights.
        ratio = _root_ratio(sums.weighted_error, sums.weighted_energy) ** 2
        sums.weighted_error, sums.weighted_energy = ratio * sums.weights, float(sums.weights)
    return sums


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, slice, slice]]:
    """Cut a weight into an expert's rows x cols of at most PIECE_WEIGHTS: whole rows, or part of one row."""
    rows, cols = shape[-2:]
    width = min(cols, PIECE_WEIGHTS)
    height = PIECE_WEIGHTS // width
    for expert in range(shape[0] if len(shape) == 3 else 1):
        for row in range(0, rows, height):
            for col in range(0, cols, width):
                yield expert, slice(row, min(row + height, rows)), slice(col, min(col + width, cols))


def _decoded(
    t: PackedTensor, expert: int, height: slice, width: slice, space: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Dequantise a piece: float64 (rows, cols) of it."""
    blocks = t.blocks() if len(t.shape) == 2 else t.blocks()[expert]
    part = blocks[height, t.format.row_bytes(width.start) : t.format.row_bytes(width.stop)]
    shape = height.stop - height.start, width.stop - width.start
    piece = PackedTensor.from_blocks(part, t.format, shape)
    weights: npt.NDArray[np.float32] = dequantize(piece, out=space[: math.prod(shape)].reshape(shape))
    return weights.astype(np.float64)


def _add_piece(
    sums: Sums, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], importance: npt.NDArray[np.float64] | None
) -> None:
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        bad = ~(np.isfinite(a) & np.isfinite(b))
        sums.not_finite += int(bad.sum())
        a[bad] = b[bad] = 0.0
    miss = a - b
    error, energy = np.square(miss).sum(axis=0), np.square(a).sum(axis=0)  # of each column
    sums.error += float(error.sum())
    sums.energy_a += float(energy.sum())
    sums.energy_b += float(np.square(b).sum(axis=0).sum())
    sums.product += float((a * b).sum(axis=0).sum())
    sums.max_error = max(sums.max_error, float(np.abs(miss).max()))
    if importance is not None:
        sums.weighted_error += float(error @ importance)
        sums.weighted_energy += float(energy @ importance)
