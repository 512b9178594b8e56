"""float -> blocks for the formats without a codebook: ternary, K, sixteen-value, and simple blocks of 32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from . import codebooks
from .fit import amplitude, best_line, best_scale, ratio, rounded
from .formats import Bytes, Doubles, Ints
from .pack_bytes import field_bytes, half_bytes, to_half

FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Scales to try, as parts of the one that maps the largest weight to the largest value."""

Nearest = Callable[[Doubles, Doubles], Doubles]
"""Takes weights and their scale, and returns the value of the format that is nearest to their ratio."""


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
    """Fit groups of q2_k, q4_k or q5_k: return d (n,), d_min (n,), s and m (n, groups), codes (n, 256)."""
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


def _eight_scales_and_minima(s: Doubles, m: Doubles) -> Bytes:
    """Join the 6-bit scales and minima of q4_k and q5_k, (n, 8) each, to 12 bytes."""
    a, b = s.astype(np.int64), m.astype(np.int64)
    parts = [a[:, :4] | a[:, 4:] >> 4 << 6, b[:, :4] | b[:, 4:] >> 4 << 6, a[:, 4:] & 15 | (b[:, 4:] & 15) << 4]
    return np.concatenate(parts, axis=1).astype(np.uint8)


def _high_and_low(codes: npt.NDArray[np.float64 | np.int64], *, low_bits: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the bits of codes (n, m) above the ``low_bits`` lowest ones, and these."""
    whole = codes.astype(np.int64)
    return whole >> low_bits, whole & (2**low_bits - 1)


def pack_q4_k(x: Doubles, w: Doubles) -> Bytes:
    """Pack q4_k."""
    d, d_min, s, m, codes = _lines(x, w, group=32, code_bits=4, scale_bits=6)
    parts = [half_bytes(d), half_bytes(d_min), _eight_scales_and_minima(s, m), field_bytes(codes, bits=4, run=32)]
    return np.concatenate(parts, axis=1)


def pack_q5_k(x: Doubles, w: Doubles) -> Bytes:
    """Pack q5_k."""
    d, d_min, s, m, codes = _lines(x, w, group=32, code_bits=5, scale_bits=6)
    high, low = _high_and_low(codes, low_bits=4)
    parts = [field_bytes(high, bits=1, run=32), field_bytes(low, bits=4, run=32)]
    return np.concatenate([half_bytes(d), half_bytes(d_min), _eight_scales_and_minima(s, m), *parts], axis=1)


def _scaled(x: Doubles, w: Doubles, nearest: Nearest, starts: Iterator[Doubles]) -> Doubles:
    """Return the scale (n,) of each row: times ``nearest`` of the row and this scale, it is close to the row."""
    return best_scale(x, w, starts, lambda scale: nearest(x, scale[:, None]))


def _scaled_groups(
    x: Doubles, w: Doubles, nearest: Nearest, *, group: int, end: float, factors: tuple[float, ...], top: int
) -> tuple[Doubles, Doubles, Doubles]:
    """Fit groups whose scales are integers s up to ``top`` times d: return d (n,), s and d * s (n, groups).

    ``end`` is the largest value; scales have either sign, because the values are not symmetric.
    """
    groups, weights = x.reshape(-1, group), w.reshape(-1, group)
    starts = (amplitude(groups) * sign * factor / end for factor in factors for sign in (1, -1))
    scale = _scaled(groups, weights, nearest, starts).reshape(len(x), -1)
    d = amplitude(scale) / top
    s = rounded(scale, d[:, None], -top, top)
    return d, s, to_half(d)[:, None] * s


def pack_q3_k(x: Doubles, w: Doubles) -> Bytes:
    """Pack q3_k."""

    def nearest(values: Doubles, scale: Doubles) -> Doubles:
        return rounded(values, scale, -4, 3)

    d, s, step = _scaled_groups(x, w, nearest, group=16, end=4, factors=FACTORS, top=31)
    codes = nearest(x.reshape(len(x), 16, 16), step[..., None]).reshape(len(x), 256) + 4
    high, low = _high_and_low(codes, low_bits=2)
    s_high, s_low = _high_and_low(s + 32, low_bits=4)
    code_parts = [field_bytes(high, bits=1, run=32), field_bytes(low, bits=2, run=32)]
    scale_parts = [field_bytes(s_low, bits=4, run=8), field_bytes(s_high, bits=2, run=4)]
    return np.concatenate([*code_parts, *scale_parts, half_bytes(d)], axis=1)


def pack_q6_k(x: Doubles, w: Doubles) -> Bytes:
    """Pack q6_k."""

    def nearest(values: Doubles, scale: Doubles) -> Doubles:
        return rounded(values, scale, -32, 31)

    d, s, step = _scaled_groups(x, w, nearest, group=16, end=32, factors=(1.0, 0.97, 0.94, 0.9), top=127)
    codes = nearest(x.reshape(len(x), 16, 16), step[..., None]).reshape(len(x), 256) + 32
    high, low = _high_and_low(codes, low_bits=4)
    code_parts = [field_bytes(low, bits=4, run=64), field_bytes(high, bits=2, run=32)]
    return np.concatenate([*code_parts, s.astype(np.int8).view(np.uint8), half_bytes(d)], axis=1)


IQ4_VALUES = codebooks.IQ4.astype(np.float64)


def _iq4_codes(x: Doubles, scale: Doubles) -> npt.NDArray[np.int64]:
    """Return the codes of the values nearest to x / scale; the scale broadcasts against x."""
    return np.searchsorted((IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2, ratio(x, np.broadcast_to(scale, x.shape)))


def _iq4_nearest(x: Doubles, scale: Doubles) -> Doubles:
    return IQ4_VALUES[_iq4_codes(x, scale)]


def pack_iq4_nl(x: Doubles, w: Doubles) -> Bytes:
    """Pack iq4_nl; scales of either sign, because the sixteen values are not symmetric."""
    d = _scaled(x, w, _iq4_nearest, (amplitude(x) * sign * factor / 113 for factor in FACTORS for sign in (1, -1)))
    return np.concatenate([half_bytes(d), field_bytes(_iq4_codes(x, to_half(d)[:, None]), bits=4, run=16)], axis=1)


def pack_iq4_xs(x: Doubles, w: Doubles) -> Bytes:
    """Pack iq4_xs."""
    d, s, step = _scaled_groups(x, w, _iq4_nearest, group=32, end=113, factors=FACTORS, top=31)
    codes = _iq4_codes(x.reshape(len(x), 8, 32), step[..., None]).reshape(len(x), 256)
    high, low = _high_and_low(s + 32, low_bits=4)
    scales = [field_bytes(high, bits=2), field_bytes(low, bits=4)]
    return np.concatenate([half_bytes(d), *scales, field_bytes(codes, bits=4, run=16)], axis=1)


FP4_MAGNITUDES = codebooks.FP4[:8].astype(np.float64)


def pack_mxfp4(x: Doubles, w: Doubles) -> Bytes:
    """Pack mxfp4: of the two exponents that bring the largest weight to 4 .. 8 or to 2 .. 4 the better one."""
    middles = (FP4_MAGNITUDES[1:] + FP4_MAGNITUDES[:-1]) / 2
    least_error = np.full(len(x), np.inf)
    exponent = np.zeros(len(x), np.int64)
    codes = np.zeros(x.shape, np.int64)
    for more in (0, 1):
        e = np.clip(np.frexp(amplitude(x))[1] + 124 + more, 0, 252)
        scale = np.ldexp(1.0, e - 128)[:, None]
        magnitude = np.searchsorted(middles, np.abs(x) / scale)
        error = np.sum(w * (np.abs(x) - scale * FP4_MAGNITUDES[magnitude]) ** 2, axis=-1)
        better = error < least_error
        least_error = np.where(better, error, least_error)
        exponent = np.where(better, e, exponent)
        codes = np.where(better[:, None], magnitude + 8 * (x < 0), codes)
    return np.concatenate([exponent[:, None].astype(np.uint8), field_bytes(codes, bits=4, run=16)], axis=1)


def _around_zero(x: Doubles, w: Doubles, half: int) -> tuple[Doubles, Doubles]:
    """Fit q4_0 or q5_0: return d (n,) and codes (n, 32) from 0 to 2 * half - 1."""

    def nearest(values: Doubles, scale: Doubles) -> Doubles:
        return rounded(values, scale, -half, half - 1)

    d = _scaled(x, w, nearest, (amplitude(x) * sign * factor / half for factor in FACTORS for sign in (1, -1)))
    return d, nearest(x, to_half(d)[:, None]) + half


def _from_minimum(x: Doubles, w: Doubles, high: int) -> tuple[Doubles, Doubles, Doubles]:
    """Fit q4_1 or q5_1: return d (n,), m (n,) and codes (n, 32) from 0 to ``high``."""
    d, minimum = best_line(x, w, FACTORS, high, signed=True)
    return d, -minimum, rounded(x + to_half(minimum)[:, None], to_half(d)[:, None], 0, high)


def _five_bits(codes: Doubles) -> Bytes:
    """Join codes (n, 32) of five bits: the high bits in order, then the others in one run."""
    high, low = _high_and_low(codes, low_bits=4)
    return np.concatenate([field_bytes(high, bits=1), field_bytes(low, bits=4, run=16)], axis=1)


def pack_q4_0(x: Doubles, w: Doubles) -> Bytes:
    """Pack q4_0."""
    d, codes = _around_zero(x, w, 8)
    return np.concatenate([half_bytes(d), field_bytes(codes, bits=4, run=16)], axis=1)


def pack_q4_1(x: Doubles, w: Doubles) -> Bytes:
    """Pack q4_1."""
    d, m, codes = _from_minimum(x, w, 15)
    return np.concatenate([half_bytes(d), half_bytes(m), field_bytes(codes, bits=4, run=16)], axis=1)


def pack_q5_0(x: Doubles, w: Doubles) -> Bytes:
    """Pack q5_0."""
    d, codes = _around_zero(x, w, 16)
    return np.concatenate([half_bytes(d), _five_bits(codes)], axis=1)


def pack_q5_1(x: Doubles, w: Doubles) -> Bytes:
    """Pack q5_1."""
    d, m, codes = _from_minimum(x, w, 31)
    return np.concatenate([half_bytes(d), half_bytes(m), _five_bits(codes)], axis=1)


def pack_q8_0(x: Doubles, w: Doubles) -> Bytes:
    """Pack q8_0; importance changes nothing here."""
    d = amplitude(x) / 127
    q = rounded(x, to_half(d)[:, None], -127, 127)
    return np.concatenate([half_bytes(d), q.astype(np.int8).view(np.uint8)], axis=1)
