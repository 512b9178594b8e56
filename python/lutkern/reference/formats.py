"""The registry of formats, and the readers that every format function is written with.

A format is one function: it takes blocks, uint8 (n, block_bytes), and says which integers and which scales they
hold. The decorator above it gives the name and the sizes. Blocks come one after the other along a row, and all
words are little endian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class Groups(NamedTuple):
    """What n blocks hold: weight = scale * q + offset.

    q : integers (n, ...) with block_size values per block, each within int8
    scale : (n, groups), each for block_size / groups consecutive weights
    offset : like scale, or None where the format has none
    """

    q: npt.NDArray[Any]
    scale: npt.NDArray[Any]
    offset: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class ReferenceFormat:
    """One format: its sizes and its function, ``unpack`` of an integer format or ``decode`` of a float format."""

    name: str
    block_size: int
    block_bytes: int
    unpack: Callable[[Bytes], Groups] | None = None
    decode: Callable[[Bytes], Floats] | None = None

    @property
    def is_float(self) -> bool:
        """Whether the weights are floating-point numbers themselves."""
        return self.decode is not None

    def row_bytes(self, cols: int) -> int:
        """Return the bytes of a row of ``cols`` weights; the last block may be partly padding."""
        return -(-cols // self.block_size) * self.block_bytes


FORMATS: dict[str, ReferenceFormat] = {}
"""Every format by its name, in the order of definition."""


def integer_format(
    name: str, *, block_size: int, block_bytes: int
) -> Callable[[Callable[[Bytes], Groups]], Callable[[Bytes], Groups]]:
    """Register the function below as the unpacking of an integer format."""

    def register(function: Callable[[Bytes], Groups]) -> Callable[[Bytes], Groups]:
        FORMATS[name] = ReferenceFormat(name, block_size, block_bytes, unpack=function)
        return function

    return register


def float_format(name: str, *, block_bytes: int) -> Callable[[Callable[[Bytes], Floats]], Callable[[Bytes], Floats]]:
    """Register the function below as the decoding of a float format; its block is one weight."""

    def register(function: Callable[[Bytes], Floats]) -> Callable[[Bytes], Floats]:
        FORMATS[name] = ReferenceFormat(name, 1, block_bytes, decode=function)
        return function

    return register


def find(operation: str, fmt: object) -> ReferenceFormat:
    """Return the format named ``fmt``, a string or anything with a ``name``; ValueError if there is none."""
    name = str(getattr(fmt, "name", fmt))
    if name not in FORMATS:
        raise ValueError(f"{operation}: unknown format {name!r}, expected one of {' '.join(FORMATS)}")
    return FORMATS[name]


def halves(blocks: Bytes, start: int) -> Floats:
    """Return the fp16 number at byte ``start`` of each block, (n, 1), as float32."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def words(blocks: Bytes, start: int, count: int, *, size: int) -> npt.NDArray[np.int64]:
    """Return ``count`` unsigned words of ``size`` bytes from byte ``start`` on, int64 (n, count)."""
    part = np.ascontiguousarray(blocks[:, start : start + count * size])
    return part.view(f"<u{size}").astype(np.int64)


def fields(part: Bytes, *, bits: int, run: int = 1) -> Ints:
    """Cut bytes (n, m) into fields of ``bits`` bits, int32 (n, m * 8 / bits).

    The bytes come in runs: first the lowest field of each byte of a run, then their next field, and so on. With a
    run of 1 the fields of a byte simply follow one another, lowest first.
    """
    n = part.shape[0]
    shifts = np.arange(0, 8, bits, dtype=np.int32)
    runs = part.reshape(n, -1, 1, run).astype(np.int32)
    return ((runs >> shifts[:, None]) & ((1 << bits) - 1)).reshape(n, -1)
