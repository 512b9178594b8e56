"""float -> blocks, the naive way: plain scale choices, exhaustive searches. No packer of the library may be worse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .activations import activations_of
from .fit import ratio
from .formats import Bytes, Doubles, Floats, find
from .pack_codebook_formats import (
    pack_iq1_m,
    pack_iq1_s,
    pack_iq2_s,
    pack_iq2_xs,
    pack_iq2_xxs,
    pack_iq3_s,
    pack_iq3_xxs,
)
from .pack_plain_formats import (
    pack_iq4_nl,
    pack_iq4_xs,
    pack_mxfp4,
    pack_q2_k,
    pack_q3_k,
    pack_q4_0,
    pack_q4_1,
    pack_q4_k,
    pack_q5_0,
    pack_q5_1,
    pack_q5_k,
    pack_q6_k,
    pack_q8_0,
    pack_tq1_0,
    pack_tq2_0,
)

Packer = Callable[[Doubles, Doubles], Bytes]
"""Takes weights and their importance, float64 (n, block_size), and returns blocks, uint8 (n, block_bytes)."""

BATCH = 16
"""Blocks at a time: the exhaustive search holds a few arrays of 32 x 4096 float64 (1 MiB) per block."""


def pack_bf16(values: Floats) -> Bytes:
    """Round float32 (n, 1) to bf16, half to even; a NaN stays a NaN."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded_bits = bits + 0x7FFF + (bits >> 16 & 1)
    kept = np.where(np.isnan(values), bits | 0x400000, rounded_bits)
    return (kept >> 16).astype("<u2").view(np.uint8)


def pack_f16(values: Floats) -> Bytes:
    """Round float32 (n, 1) to fp16."""
    with np.errstate(over="ignore"):
        return values.astype("<f2").view(np.uint8)


def pack_f32(values: Floats) -> Bytes:
    """Keep float32 (n, 1)."""
    return values.astype("<f4").view(np.uint8)


PACKERS: dict[str, Packer] = {
    "iq1_s": pack_iq1_s,
    "iq1_m": pack_iq1_m,
    "iq2_xxs": pack_iq2_xxs,
    "iq2_xs": pack_iq2_xs,
    "iq2_s": pack_iq2_s,
    "iq3_xxs": pack_iq3_xxs,
    "iq3_s": pack_iq3_s,
    "tq1_0": pack_tq1_0,
    "tq2_0": pack_tq2_0,
    "q2_k": pack_q2_k,
    "q3_k": pack_q3_k,
    "q4_k": pack_q4_k,
    "q5_k": pack_q5_k,
    "q6_k": pack_q6_k,
    "iq4_nl": pack_iq4_nl,
    "iq4_xs": pack_iq4_xs,
    "mxfp4": pack_mxfp4,
    "q4_0": pack_q4_0,
    "q4_1": pack_q4_1,
    "q5_0": pack_q5_0,
    "q5_1": pack_q5_1,
    "q8_0": pack_q8_0,
}
FLOAT_PACKERS: dict[str, Callable[[Floats], Bytes]] = {"bf16": pack_bf16, "f16": pack_f16, "f32": pack_f32}


def importance_of(importance: npt.ArrayLike | None, shape: tuple[int, ...]) -> Doubles:
    """Return the importance of every weight, float64 (..., rows, cols), each vector with mean 1 and above zero.

    ``importance`` is (cols,) or, for experts, (experts, cols). Entries that are not finite or not positive become a
    millionth of the mean of the others; a vector without a usable entry becomes ones. ValueError for another shape.
    """
    if importance is None:
        return np.broadcast_to(np.float64(1), shape)
    given = np.asarray(importance, dtype=np.float64)
    allowed = [shape[-1:]] if len(shape) == 2 else [shape[-1:], (*shape[:-2], shape[-1])]
    if given.shape not in allowed:
        expected = " or ".join(str(item) for item in allowed)
        raise ValueError(f"pack: importance has shape {given.shape}, expected {expected}")
    usable = np.isfinite(given) & (given > 0)
    count = usable.sum(axis=-1, keepdims=True)
    mean = np.sum(np.where(usable, given, 0), axis=-1, keepdims=True) / np.maximum(count, 1)
    relative = np.where(count > 0, np.where(usable, ratio(given, np.broadcast_to(mean, given.shape)), 0), 1)
    return np.broadcast_to(np.maximum(relative, 1e-6)[..., None, :], shape)


def pack(w: npt.ArrayLike, fmt: object, importance: npt.ArrayLike | None = None) -> Bytes:
    """Quantise w, float (rows, cols) or (experts, rows, cols), to blocks: uint8 (..., rows, row_bytes).

    Columns are padded with zeros to whole blocks. ``importance`` weighs the squared error of each column, see
    ``importance_of``. ValueError for an unknown format or one without a packer, for a shape, or for weights that
    are not finite (integer formats); TypeError if w is not float32, float16 or bfloat16.
    """
    known = find("pack", fmt)
    values = activations_of("pack", w, "w")
    if values.ndim not in (2, 3):
        raise ValueError(f"pack: w has shape {values.shape}, expected (rows, cols) or (experts, rows, cols)")
    shape = (*values.shape[:-1], known.row_bytes(values.shape[-1]))
    if known.name in FLOAT_PACKERS:
        return FLOAT_PACKERS[known.name](values.reshape(-1, 1)).reshape(shape)
    if known.name not in PACKERS:
        supported = " ".join([*PACKERS, *FLOAT_PACKERS])
        raise ValueError(f"pack: {known.name} can be read but not packed, expected one of {supported}")
    if not np.all(np.isfinite(values)):
        raise ValueError("pack: w holds a value that is not finite, expected finite weights")
    padding = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % known.block_size)]
    weighting = np.pad(importance_of(importance, values.shape), padding, constant_values=1e-6)
    x_blocks = np.pad(values.astype(np.float64), padding).reshape(-1, known.block_size)
    w_blocks = weighting.reshape(-1, known.block_size)
    packer = PACKERS[known.name]
    parts = [packer(x_blocks[i : i + BATCH], w_blocks[i : i + BATCH]) for i in range(0, len(x_blocks), BATCH)]
    return np.concatenate([np.zeros((0, known.block_bytes), np.uint8), *parts]).reshape(shape)
