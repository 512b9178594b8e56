"""float -> blocks, the naive way: plain scale choices, exhaustive searches. No packer of the library may be worse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from . import codebooks
from .activations import activations_of
from .fit import amplitude, best_line, best_scale, ratio, rounded
from .formats import Bytes, Doubles, Floats, Ints, find
from .pack_bytes import field_bytes, half_bytes, to_half
from .pack_codebook_formats import (
    pack_iq1_m,
    pack_iq1_s,
    pack_iq2_s,
    pack_iq2_xs,
    pack_iq2_xxs,
    pack_iq3_s,
    pack_iq3_xxs,
)

Packer = Callable[[Doubles, Doubles], Bytes]
"""Takes weights and their importance, float64 (n, block_size), and returns blocks, uint8 (n, block_bytes)."""

BATCH = 16
"""Blocks at a time: the exhaustive search holds a few arrays of 32 x 4096 float64 (1 MiB) per block."""

FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Scales to try, as parts of the one that maps the largest weight to the largest value."""


def _ternary(x: Doubles, w: Doubles) -> tuple[Doubles, Ints]:
    """Return d (n,) and digits 0, 1, 2 for -1, 0, 1, (n, 256)."""
    starts = (amplitude(x) * factor for factor in FACTORS)
    d = best_scale(x, w, starts, lambda scale: rounded(x, scale[:, None], -1, 1))
    return d, (rounded(x, to_half(d)[:, None], -1, 1) + 1).astype(np.int32)


def _ternary_bytes(digits: Ints, count: int) -> Bytes:
    """Return bytes (n, m / count): the digits as a fraction of 256, rounded up so that reading them back is exact."""
    parts = digits.reshape(len(digits), count, -1)
    number = np.sum(parts * 3 ** np.arange(4, 4 - count, -1)[:, None], axis=1)
    return np.asarray((number * 256 + 242) // 243, dtype=np.uint8)


def pack_tq1_0(x: Doubles, w: Doubles) -> Bytes:
    """Pack tq1_0."""
    d, digits = _ternary(x, w)
    parts = ((digits[:, :160], 5), (digits[:, 160:240], 5), (digits[:, 240:], 4))
    return np.concatenate([*(_ternary_bytes(part, count) for part, count in parts), half_bytes(d)], axis=1)


def pack_tq2_0(x: Doubles, w: Doubles) -> Bytes:
    """Pack tq2_0."""
    d, codes = _ternary(x, w)
    return np.concatenate([field_bytes(codes, bits=2, run=32), half_bytes(d)], axis=1)


def _lines(x: Doubles, w: Doubles, *, group: int, code_bits: int, scale_bits: int) -> tuple[Doubles, ...]:
    """Fit groups of q2_k or q4_k: return d (n,), d_min (n,), s and m (n, groups), codes (n, 256)."""
    n, top, high = len(x), 2**scale_bits - 1, 2**code_bits - 1
    scale, minimum = best_line(x.reshape(-1, group), w.reshape(-1, group), FACTORS, high)
    scale, minimum = scale.reshape(n, -1), minimum.reshape(n, -1)
    d, d_min = scale.max(axis=1) / top, minimum.max(axis=1) / top
    s, m = rounded(scale, d[:, None], 0, top), rounded(minimum, d_min[:, None], 0, top)
    step = (to_half(d)[:, None] * s)[..., None]
    raised = x.reshape(n, -1, group) + (to_half(d_min)[:, None] * m)[..., None]
    return d, d_min, s, m, rounded(raised, step, 0, high).reshape(n, -1)


def pack_q2_k(x: Doubles, w: Doubles) -> Bytes:
    """Pack q2_k."""
    d, d_min, s, m, codes = _lines(x, w, group=16, code_bits=2, scale_bits=4)
    scales = (s + 16 * m).astype(np.uint8)
    return np.concatenate([scales, field_bytes(codes, bits=2, run=32), half_bytes(d), half_bytes(d_min)], axis=1)


def pack_q4_k(x: Doubles, w: Doubles) -> Bytes:
    """Pack q4_k."""
    d, d_min, s, m, codes = _lines(x, w, group=32, code_bits=4, scale_bits=6)
    a, b = s.astype(np.int64), m.astype(np.int64)
    scales = np.concatenate(
        [a[:, :4] | a[:, 4:] >> 4 << 6, b[:, :4] | b[:, 4:] >> 4 << 6, a[:, 4:] & 15 | (b[:, 4:] & 15) << 4], axis=1
    )
    parts = [half_bytes(d), half_bytes(d_min), scales.astype(np.uint8), field_bytes(codes, bits=4, run=32)]
    return np.concatenate(parts, axis=1)


def pack_q6_k(x: Doubles, w: Doubles) -> Bytes:
    """Pack q6_k; scales of either sign, because the codes reach from -32 to 31."""
    n = len(x)
    groups, weights = x.reshape(-1, 16), w.reshape(-1, 16)
    starts = (amplitude(groups) * sign * factor / 32 for factor in (1.0, 0.97, 0.94, 0.9) for sign in (1, -1))
    scale = best_scale(groups, weights, starts, lambda tried: rounded(groups, tried[:, None], -32, 31)).reshape(n, 16)
    d = amplitude(scale) / 127
    s = rounded(scale, d[:, None], -127, 127)
    step = (to_half(d)[:, None] * s)[..., None]
    codes = rounded(x.reshape(n, 16, 16), step, -32, 31).reshape(n, 256).astype(np.int64) + 32
    low, high = field_bytes(codes & 15, bits=4, run=64), field_bytes(codes >> 4, bits=2, run=32)
    return np.concatenate([low, high, s.astype(np.int8).view(np.uint8), half_bytes(d)], axis=1)


def pack_iq4_nl(x: Doubles, w: Doubles) -> Bytes:
    """Pack iq4_nl; scales of either sign, because the sixteen values are not symmetric."""
    values = codebooks.IQ4.astype(np.float64)
    middles = (values[1:] + values[:-1]) / 2

    def nearest(scale: Doubles) -> npt.NDArray[np.int64]:
        return np.searchsorted(middles, ratio(x, np.broadcast_to(scale[:, None], x.shape)))

    starts = (amplitude(x) * sign * factor / 113 for factor in FACTORS for sign in (1, -1))
    d = best_scale(x, w, starts, lambda scale: values[nearest(scale)])
    return np.concatenate([half_bytes(d), field_bytes(nearest(to_half(d)), bits=4, run=16)], axis=1)


def pack_q8_0(x: Doubles, w: Doubles) -> Bytes:
    """Pack q8_0; importance changes nothing here."""
    d = amplitude(x) / 127
    q = rounded(x, to_half(d)[:, None], -127, 127)
    return np.concatenate([half_bytes(d), q.astype(np.int8).view(np.uint8)], axis=1)


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
    "q4_k": pack_q4_k,
    "q6_k": pack_q6_k,
    "iq4_nl": pack_iq4_nl,
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
