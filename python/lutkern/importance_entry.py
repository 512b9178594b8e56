"""The statistics of one weight's inputs: sums of squares and counts, for the weight or for each of its experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Numbers that are squared at a time: 1 MB stays in the cache; with experts more tokens, so that each has several.
CHUNK, ROUTED_CHUNK = 1 << 17, 1 << 22

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


@dataclass
class Entry:
    """Sums of squares and counts of one weight.

    `sums` (n, cols) is float64, or float32 as it came from a file; `counts` (n,) are the tokens in each row of it. n is
    1, or the number of experts when the entry is `routed`. The number of experts grows with the ids unless it is
    `settled`, by a caller or a file. A settled entry that is not routed came from a file, and may hold experts in a
    row. `skipped` counts the tokens that were not finite.
    """

    sums: npt.NDArray[np.floating[Any]]
    counts: Int64s
    routed: bool
    settled: bool
    skipped: int = 0

    @classmethod
    def empty(cls, experts: int | None, cols: int, settled: bool) -> Entry:
        """Make an entry that has seen nothing; `experts` is None for a weight without experts."""
        n = 1 if experts is None else experts
        return cls(np.zeros((n, cols)), np.zeros(n, np.int64), experts is not None, settled)

    @property
    def size(self) -> str:
        """The sizes, for messages."""
        return f"{self.sums.shape[0]} x {self.sums.shape[1]} (experts x columns)"

    def copy(self) -> Entry:
        """Copy, so that `add` to one leaves the other."""
        return replace(self, sums=self.sums.copy(), counts=self.counts.copy())

    def joined(self, cols: int) -> bool:
        """Whether this can only be experts in a row if the weight has `cols` columns."""
        return not self.routed and self.settled and self.sums.shape[1] > cols

    def mean(self) -> Float64s:
        """Divide: float64 (n, cols), NaN where nothing was counted."""
        counts = np.where(self.counts > 0, self.counts, np.nan)
        return np.asarray(self.sums / counts[:, None], np.float64)

    def fit(self, experts: int, cols: int) -> Entry | None:
        """Return the entry as (experts, cols): itself, or a copy that is grown or split; None if it does not fit."""
        have, width = self.sums.shape
        if (have, width) == (experts, cols):
            return self
        if self.routed and not self.settled and width == cols and have < experts:
            more = experts - have
            sums, counts = np.pad(self.sums, ((0, more), (0, 0))), np.pad(self.counts, (0, more))
            return Entry(sums, counts, True, False, self.skipped)
        if self.joined(cols) and width == experts * cols:
            return self._split(experts, cols)
        return None

    def _split(self, experts: int, cols: int) -> Entry:
        """Take concatenated experts apart, as legacy files hold them: one count for all of them.

        Experts without data are all zeros there, or ones: no measured vector has the mean one in every column.
        """
        sums = self.sums.reshape(experts, cols).copy()
        mean = sums / max(int(self.counts[0]), 1)
        marked = (np.abs(mean - 1) <= 1e-6).all(axis=1) | ~sums.any(axis=1)
        sums[marked] = 0
        return Entry(sums, np.where(marked, 0, self.counts[0]), True, True, self.skipped)

    def plus(self, other: Entry) -> Entry | None:
        """Add two entries; None if their sizes do not agree."""
        experts = max(len(self.counts), len(other.counts))
        cols = min(self.sums.shape[1], other.sums.shape[1])
        left, right = self.fit(experts, cols), other.fit(experts, cols)
        if left is None or right is None:
            return None
        sums = np.add(left.sums, right.sums, dtype=np.float64)
        routed, settled = left.routed or right.routed, left.settled or right.settled
        return Entry(sums, left.counts + right.counts, routed, settled, left.skipped + right.skipped)

    def add(self, x: npt.NDArray[Any], expert_ids: npt.NDArray[np.integer[Any]] | None) -> None:
        """Add tokens: x (tokens, cols) of at most 32 bits, expert_ids (tokens, k), each at least 0 and less than n."""
        sums = self.sums.astype(np.float64, copy=False)
        self.sums = sums
        step = max(1, (CHUNK if expert_ids is None else ROUTED_CHUNK) // x.shape[1])
        for start in range(0, len(x), step):
            part = x[start : start + step]
            finite = np.isfinite(part).all(axis=1)
            kept = slice(None) if finite.all() else finite
            squares = np.square(part[kept], dtype=np.float64)
            self.skipped += len(part) - len(squares)
            if expert_ids is None:
                sums[0] += squares.sum(axis=0)
                self.counts[0] += len(squares)
            else:
                self._add_routed(sums, squares, expert_ids[start : start + step][kept])

    def _add_routed(
        self, sums: Float64s, squares: npt.NDArray[np.floating[Any]], expert_ids: npt.NDArray[np.integer[Any]]
    ) -> None:
        flat = expert_ids.reshape(-1).astype(np.int64)
        order = np.argsort(flat, kind="stable")
        experts, starts = np.unique(flat[order], return_index=True)
        tokens = order // max(1, expert_ids.shape[1])
        for expert, rows in zip(experts, np.split(tokens, starts[1:]), strict=False):
            sums[expert] += squares[rows].sum(axis=0)
        self.counts += np.bincount(flat, minlength=len(self.counts))


class Cleaned(NamedTuple):
    """Importance that `pack` takes as it is: `values` float32 (n, cols), and how much of it was replaced."""

    values: npt.NDArray[np.float32]
    experts: int
    entries: int


def clean(mean: Float64s) -> Cleaned | None:
    """Make every number of mean (n, cols) finite and positive; None if not a single one is.

    A number that is not becomes the mean of the others of its row. A row without a good number becomes the mean of the
    nearest rows that have one, one on each side; at the ends it is the nearest.
    """
    limits = np.finfo(np.float32)
    good = np.isfinite(mean) & (mean > 0)
    n_good = good.sum(axis=1)
    usable = np.flatnonzero(n_good)
    if not usable.size:
        return None
    values = np.clip(np.where(good, mean, 0), 0, float(limits.max))
    row_means = values.sum(axis=1) / np.maximum(n_good, 1)
    values = np.where(good, values, row_means[:, None])
    missing = np.flatnonzero(n_good == 0)
    after = np.searchsorted(usable, missing)
    left, right = usable[np.maximum(after - 1, 0)], usable[np.minimum(after, len(usable) - 1)]
    values[missing] = (values[left] + values[right]) / 2
    entries = int(good[usable].size - n_good.sum())
    return Cleaned(np.maximum(values, float(limits.tiny)).astype(np.float32), len(missing), entries)
