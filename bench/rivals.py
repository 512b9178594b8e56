"""Rivals on dequantised float32 weights: NumPy, and torch where it is installed. ggml is in `lutkern.bench.ggml`."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

import lutkern

Floats = npt.NDArray[np.float32]
FLOAT_RIVALS = ("numpy", *(("torch",) if find_spec("torch") else ()))


def set_threads(rival: str, threads: int) -> None:
    """Let NumPy's BLAS or torch use as many threads."""
    if rival == "torch":
        import torch

        torch.set_num_threads(threads)
    else:
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads, "blas")


def _array(rival: str, values: Floats) -> Any:
    if rival == "numpy":
        return values
    import torch

    return torch.from_numpy(values)


def floats_of(rival: str, t: lutkern.PackedTensor, n_bytes: int) -> list[Any]:
    """Return experts of (experts, rows, cols), dequantised, until they have `n_bytes`; at least 2."""
    least = max(2, -(-n_bytes // (4 * t.shape[1] * t.shape[2])))
    return [_array(rival, lutkern.dequantize(t[e % len(t)])) for e in range(least)]


class FloatProducts:
    """Products of x (tokens, cols) with one matrix after another."""

    def __init__(self, rival: str, t: lutkern.PackedTensor, tokens: int, n_bytes: int) -> None:
        self._x = _array(rival, np.random.default_rng(1).standard_normal((tokens, t.shape[2]), np.float32))
        self._turn = cycle(floats_of(rival, t, n_bytes))

    def step(self) -> None:
        """Multiply with the next matrix."""
        self._x @ next(self._turn).T


class FloatExperts:
    """The expert layer for one token (hidden,): 8 experts, one after another."""

    def __init__(self, rival: str, tensors: list[lutkern.PackedTensor], n_bytes: int) -> None:
        self._rival = rival
        self._x = _array(rival, np.random.default_rng(1).standard_normal(tensors[0].shape[2], np.float32))
        self._turn = cycle(list(zip(*(floats_of(rival, t, n_bytes // 3) for t in tensors), strict=True)))

    def step(self) -> None:
        """Run the next 8 experts."""
        for _ in range(8):
            gate, up, down = next(self._turn)
            z = gate @ self._x
            silu = z / (1 + np.exp(-z)) if self._rival == "numpy" else z * z.sigmoid()
            down @ (silu * (up @ self._x))
