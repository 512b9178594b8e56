"""The smallest error that a codebook format can reach on one block: every row, sign and scale, and every d near a given
one. The judge of the search in pack.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf import quants

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Book:
    """What a format can write: rows of codes, by variant, and units of a sub-block's scale."""

    quants_name: str
    subs: int
    units: Doubles
    shifts: tuple[float, ...] = (0.0,)
    shift_per_row: bool = False
    signed: bool = True
    parity: bool = False

    def rows(self) -> Doubles:
        cls = getattr(quants, self.quants_name)
        cls.init_grid()
        return np.asarray(cls.grid, np.float64).reshape(-1, cls.grid_shape[-1])


_HALVES = (np.arange(16) + 0.5) / 4
BOOKS = {
    "iq1_s": Book("IQ1_S", 8, 2.0 * np.arange(8) + 1, (0.125, -0.125), signed=False),
    "iq1_m": Book("IQ1_S", 16, 2.0 * np.arange(8) + 1, (0.125, -0.125), shift_per_row=True, signed=False),
    "iq2_xxs": Book("IQ2_XXS", 8, _HALVES, parity=True),
    "iq2_xs": Book("IQ2_XS", 16, _HALVES, parity=True),
    "iq2_s": Book("IQ2_S", 16, _HALVES),
    "iq3_xxs": Book("IQ3_XXS", 8, 2 * _HALVES, parity=True),
    "iq3_s": Book("IQ3_S", 8, 2.0 * np.arange(16) + 1),
}


class _Rows:
    """The error of every group for every row of codes, as a function of the scale."""

    def __init__(self, w: Doubles, a: Doubles, codes: Doubles, *, flips: bool) -> None:
        self.energy = (a * w**2).sum(1)
        self.along, self.square = (a * w) @ codes.T, a @ (codes**2).T
        # What the cheapest flip of a row costs is proportional to the scale too.
        self.flip = np.min((a * w)[:, None, :] * codes, axis=2) if flips else None

    def smallest(self, sigma: float) -> Doubles:
        return np.asarray(self.energy + (sigma**2 * self.square - 2 * sigma * self.along).min(1))

    def smallest_flipped(self, sigma: float) -> Doubles:
        rows = sigma**2 * self.square - 2 * sigma * self.along + 4 * sigma * self.flip
        return np.asarray(self.energy + rows.min(1))


class _Block:
    """One block's smallest error as a function of d."""

    def __init__(self, book: Book, w: Doubles, a: Doubles) -> None:
        codes = book.rows()
        self.book, self.dims = book, codes.shape[1]
        w, a = w.reshape(-1, self.dims), a.reshape(-1, self.dims)
        self.odd = (w < 0).reshape(-1, 8).sum(1) % 2 == 1
        magnitude = np.abs(w) if book.signed else w
        self.rows = [_Rows(magnitude, a, codes + shift, flips=book.parity) for shift in book.shifts]

    def group_errors(self, sigma: float) -> Doubles:
        """Smallest error by variant and group, or by eight weights where they share a parity."""
        if not self.book.parity:
            return np.stack([rows.smallest(sigma) for rows in self.rows])
        plain, flipped = self.rows[0].smallest(sigma), self.rows[0].smallest_flipped(sigma)
        if self.dims == 8:
            return np.where(self.odd, flipped, plain)[None]
        one = np.minimum(flipped[::2] + plain[1::2], plain[::2] + flipped[1::2])
        return np.where(self.odd, one, plain[::2] + plain[1::2])[None]

    def error(self, half: int) -> float:
        d = float(np.uint16(half).view(np.float16))
        best = np.full(self.book.subs, np.inf)
        for unit in self.book.units:
            errors = self.group_errors(d * unit)
            if self.book.shift_per_row:
                errors = errors.min(0, keepdims=True)
            best = np.minimum(best, errors.reshape(len(errors), self.book.subs, -1).sum(2).min(0))
        return float(best.sum())


def smallest_error(name: str, w: npt.NDArray[np.float32], a: npt.NDArray[np.float32], near: float) -> float:
    """Return the smallest sum(a * (w - decoded)^2) of one block, w and a (256,), with d from near / 1.5 to 1.5 near."""
    block = _Block(BOOKS[name], w.astype(np.float64), a.astype(np.float64))
    first, last = (int(np.float16(x).view(np.uint16)) for x in (near / 1.5, near * 1.5))
    best = min(range(first, last, 16), key=block.error)
    return min(block.error(half) for half in range(best - 16, best + 17, 2))
