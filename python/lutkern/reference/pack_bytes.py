"""Writing blocks: the inverses of the readers in formats.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .formats import Bytes, Doubles

LARGEST_HALF = 65504.0


def to_half(values: Doubles) -> Doubles:
    """Round to fp16, saturating at its largest number; return float64 of the same shape."""
    return np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float16).astype(np.float64)


def half_bytes(values: Doubles) -> Bytes:
    """Return values (n,) as fp16, saturating: bytes (n, 2)."""
    return to_half(values).astype("<f2").reshape(-1, 1).view(np.uint8)


def word_bytes(words: npt.NDArray[Any], *, size: int) -> Bytes:
    """Return unsigned words (n, m) as little-endian bytes (n, m * size)."""
    return np.asarray(words).astype(f"<u{size}", order="C").view(np.uint8)


def field_bytes(codes: npt.NDArray[Any], *, bits: int, run: int = 1) -> Bytes:
    """Join codes (n, m) of ``bits`` bits to bytes (n, m * bits / 8); ``run`` as in formats.fields."""
    shifts = np.arange(0, 8, bits)
    parts = codes.astype(np.int64).reshape(len(codes), -1, len(shifts), run)
    joined: Bytes = np.sum(parts << shifts[:, None], axis=2).astype(np.uint8)
    return joined.reshape(len(codes), -1)
