"""Packed weights back to numbers: ``unpack`` gives integers, scales and offsets, ``dequantize`` gives float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from . import codebook_formats, plain_formats  # noqa: F401  (importing them fills the registry)
from .formats import Bytes, Floats, ReferenceFormat, find

GROUP = 16
"""Columns that share one scale and one offset after unpacking; no format has smaller groups."""


class Packed(Protocol):
    """What the reference needs to know of a PackedTensor."""

    @property
    def format(self) -> Any:
        """The format; its ``name``, or its text, is the GGUF name in lower case."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols) or (experts, rows, cols)."""

    def blocks(self) -> npt.NDArray[np.uint8]:
        """Return the GGUF bytes, uint8 (..., rows, row_bytes)."""


WeightLike = Packed | tuple[Any, Any, tuple[int, ...]]
"""A PackedTensor, or the three things that make one: (blocks, format, shape)."""


@dataclass(frozen=True)
class Weight:
    """A packed weight whose bytes fit its format and shape: blocks are uint8 (..., rows, row_bytes)."""

    blocks: Bytes
    format: ReferenceFormat
    shape: tuple[int, ...]

    def expert(self, index: int) -> Weight:
        """Return one expert of an (experts, rows, cols) weight."""
        return Weight(self.blocks[index], self.format, self.shape[1:])


class Unpacked(NamedTuple):
    """Integers and what turns them into weights: weight = scale * q + offset, in float32, in this order.

    q : int8 (..., padded cols); padded cols is a multiple of the block
    scale, offset : float32 (..., padded cols / 16). Where a format has no offset it is -0.0, the one number whose
        addition changes nothing, not even the sign of a zero.
    """

    q: npt.NDArray[np.int8]
    scale: Floats
    offset: Floats


def weight_of(operation: str, weight: WeightLike) -> Weight:
    """Check a weight, given as a PackedTensor or as (blocks, format, shape).

    ValueError if the format is unknown, or if the number of bytes does not fit format and shape.
    """
    if isinstance(weight, tuple):
        blocks, fmt, shape = weight
    else:
        blocks, fmt, shape = weight.blocks(), weight.format, weight.shape
    known = find(operation, fmt)
    shape = tuple(int(n) for n in shape)
    data = np.frombuffer(np.ascontiguousarray(blocks), dtype=np.uint8)
    row_bytes = known.row_bytes(shape[-1])
    expected = math.prod(shape[:-1]) * row_bytes
    if data.size != expected:
        raise ValueError(f"{operation}: blocks hold {data.size} bytes, {known.name} {shape} needs {expected}")
    return Weight(data.reshape(*shape[:-1], row_bytes), known, shape)


def unpack(blocks: npt.ArrayLike, fmt: object) -> Unpacked:
    """Unpack uint8 (..., row_bytes) of an integer format: q int8 (..., cols), scale and offset (..., cols / 16).

    ValueError if the format is unknown or a float format, or if a row is not a whole number of blocks.
    """
    known = find("unpack", fmt)
    if known.unpack is None:
        raise ValueError(f"unpack: {known.name} holds floating-point weights, expected an integer format")
    data = np.asarray(blocks, dtype=np.uint8)
    if data.ndim == 0 or data.shape[-1] % known.block_bytes:
        got = data.shape[-1] if data.ndim else 0
        raise ValueError(f"unpack: a row has {got} bytes, {known.name} needs a multiple of {known.block_bytes}")
    with np.errstate(invalid="ignore"):
        groups = known.unpack(data.reshape(-1, known.block_bytes))
    lead = data.shape[:-1]

    def per_16_columns(values: npt.NDArray[Any]) -> Floats:
        # Every scale and offset has at most 24 significant bits, so float32 holds it exactly, whatever computed it.
        repeats = known.block_size // GROUP // values.shape[1]
        return np.repeat(values, repeats, axis=1).astype(np.float32).reshape(*lead, -1)

    scale = per_16_columns(groups.scale)
    offset = np.full_like(scale, -0.0) if groups.offset is None else per_16_columns(groups.offset)
    return Unpacked(groups.q.astype(np.int8).reshape(*lead, -1), scale, offset)


def dequantize_weight(weight: Weight) -> Floats:
    """Return the weights of a checked weight, float32 of its shape."""
    cols = weight.shape[-1]
    if weight.format.decode is not None:
        with np.errstate(invalid="ignore"):
            return weight.format.decode(weight.blocks.reshape(-1, weight.format.block_bytes)).reshape(weight.shape)
    q, scale, offset = unpack(weight.blocks, weight.format)
    groups = q.reshape(*scale.shape, GROUP).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        values = scale[..., None] * groups + offset[..., None]
    return np.ascontiguousarray(values.reshape(q.shape)[..., :cols])


def dequantize(weight: WeightLike | npt.ArrayLike, fmt: object = None, shape: tuple[int, ...] | None = None) -> Floats:
    """Return the weights, float32 (..., rows, cols): ``dequantize(t)`` or ``dequantize(blocks, fmt, shape)``.

    Padding columns are left out. ValueError if the format is unknown, or if the bytes do not fit format and shape.
    """
    given: Any = weight if fmt is None else (weight, fmt, shape)
    return dequantize_weight(weight_of("dequantize", given))
