"""Stand-ins for the arrays of torch, CuPy and JAX on a GPU: they hand out memory of the device and write down how."""

from __future__ import annotations

from typing import Any

import numpy as np

import lutkern
from lutkern import _core


class Foreign:
    """An array on a device that is known only by DLPack.

    Parameters
    ----------
    array
        Its numbers.
    versions
        Whether its library knows ``max_version``.
    read_only
        Whether it says so.
    """

    def __init__(self, array: Any, device: str = "cuda:0", *, versions: bool = True, code: int | None = None):
        array = np.ascontiguousarray(array)
        name = array.dtype.name
        self.shape, self.dtype = array.shape, array.dtype
        self.code = code if code is not None else {"f": 2, "i": 0, "u": 1, "V": 4, "b": 6}[array.dtype.kind]
        self.bits = 8 * array.dtype.itemsize
        self.versions = versions
        self.streams: list[Any] = []
        words = array.view(np.uint8).reshape(-1)
        padded = np.zeros(-(-max(words.size, 4) // 4) * 4, np.uint8)
        padded[: words.size] = words
        self.held = lutkern.to_device(padded.view(np.int32), device)
        assert name

    @property
    def memory(self) -> Any:
        return self.held._memory

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        if options and not self.versions:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.streams.append(stream)
        return _core.lend(self.memory, list(self.shape), self.code, self.bits, bool(options))

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.held.__dlpack_device__()

    def numpy(self) -> np.ndarray[Any, Any]:
        words = self.held.numpy().view(np.uint8)
        size = int(np.prod(self.shape)) * self.bits // 8
        return words[:size].view(self.dtype).reshape(self.shape)


class Router(Foreign):
    """Ids or weights that can turn into the short types, as those of torch (`int`, `float`)."""

    def int(self) -> Foreign:
        return Foreign(self.numpy().astype(np.int32), self.held.device)

    def float(self) -> Foreign:
        return Foreign(self.numpy().astype(np.float32), self.held.device)


class Astype(Foreign):
    """The same as those of CuPy and JAX do it."""

    def astype(self, dtype: Any) -> Foreign:
        return Foreign(self.numpy().astype(dtype), self.held.device)


def read(y: Any) -> np.ndarray[Any, Any]:
    """Return a result, of whatever kind, on the CPU."""
    return y if isinstance(y, np.ndarray) else np.asarray(y.numpy())
