"""The importance of a model's columns, made fit for packing, and what to tell about it."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .source import SourceTensor


class ImportanceLike(Protocol):
    """What `lutkern.Importance` offers here."""

    def __contains__(self, name: object) -> bool: ...

    def for_weight(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return float32 (cols,) or (experts, cols)."""
        ...


class Weighting:
    """Importance for each tensor, (experts or 1, cols), positive everywhere.

    `name` is the file's name or None. `missing` and `repaired` collect the tensors that have none, and those some of
    whose entries were replaced by the mean of the others of their expert.
    """

    def __init__(self, importance: Any = None, name: str | None = None) -> None:
        self._importance: ImportanceLike | None = importance
        self.name = name
        self.missing: set[str] = set()
        self.repaired: dict[str, int] = {}

    @classmethod
    def read(cls, importance: Any) -> Weighting:
        """Take an importance object, the path of an importance file, or None. Raises as `lutkern.Importance.read`."""
        if isinstance(importance, (str, os.PathLike)):
            from ..importance import Importance

            return cls(Importance.read(importance), os.path.basename(os.fspath(importance)))
        return cls(importance)

    def of(self, tensor: SourceTensor) -> npt.NDArray[np.float32] | None:
        """Return float32 (experts, cols), one row for a tensor without experts; None if there is no importance."""
        if self._importance is None:
            return None
        if tensor.name not in self._importance:
            self.missing.add(tensor.name)
            return None
        found = self._importance.for_weight(tensor.name, tensor.shape)
        values = np.array(found, np.float32).reshape(-1, tensor.cols)
        good = np.isfinite(values) & (values > 0)
        if not good.all():
            self.repaired[tensor.name] = int((~good).sum())
            totals = np.where(good, values, 0).sum(axis=1, dtype=np.float64)
            counts = good.sum(axis=1)
            means = np.where(counts > 0, totals / np.maximum(counts, 1), 1.0).astype(np.float32)
            values = np.where(good, values, means[:, None])
        return values

    def notes(self) -> list[str]:
        """Say what was missing and what was replaced."""
        notes = []
        if self.missing:
            notes.append(f"no importance for {_some(sorted(self.missing))}: packed without")
        if self.repaired:
            count = sum(self.repaired.values())
            notes.append(f"{count} entries of importance are not positive, in {_some(list(self.repaired))}: replaced")
        return notes


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
