"""The importance of a model's columns, and what to tell about it."""

from __future__ import annotations

import os
import warnings
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..importance import Importance
from .source import SourceTensor


class ImportanceLike(Protocol):
    """What is used of `lutkern.Importance`."""

    def __contains__(self, name: object) -> bool: ...

    def for_weight(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return float32 (cols,) or (experts, cols), finite and positive; a warning tells what was replaced."""
        ...


class Weighting:
    """Importance for each tensor, (experts or 1, cols). `name` is the name of the file it is from, or None."""

    def __init__(self, importance: ImportanceLike | None = None, name: str | None = None) -> None:
        self._importance = importance
        self._replaced: dict[str, str] = {}
        self.name = name

    @classmethod
    def read(cls, importance: Any) -> Weighting:
        """Take an importance object, the path of an importance file, or None. Raises as `Importance.read` does."""
        if isinstance(importance, (str, os.PathLike)):
            return cls(Importance.read(importance), os.path.basename(os.fspath(importance)))
        return cls(importance)

    def of(self, tensor: SourceTensor) -> npt.NDArray[np.float32] | None:
        """Return float32 (experts, cols), one row for a tensor without experts; None if there is no importance."""
        if self._importance is None or tensor.name not in self._importance:
            return None
        # Hundreds of tensors would warn hundreds of times; the summary tells it instead.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values = self._importance.for_weight(tensor.name, tensor.shape)
        if caught:
            self._replaced[tensor.name] = str(caught[0].message).rpartition(": ")[2]
        return np.asarray(values, np.float32).reshape(-1, tensor.cols)

    def lacks(self, name: str) -> bool:
        """Tell whether there is an importance, but none for that tensor."""
        return self._importance is not None and name not in self._importance

    def notes(self) -> list[str]:
        """Say what was replaced in the importance that `of` gave."""
        return [f"importance of {name}: {text}" for name, text in self._replaced.items()]
