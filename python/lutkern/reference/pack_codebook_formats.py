"""Packing the codebook formats: a scale per group, then the common scale d, then the rows nearest under both."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import codebooks
from .fit import Indices, RowSearch, amplitude, best_scale, ratio, refit
from .formats import Bytes, Doubles
from .pack_bytes import field_bytes, half_bytes, word_bytes

# Codebooks in units of d * (2 s + 1).
IQ1_UP = codebooks.IQ1 + np.float64(0.125)
IQ1_DOWN = codebooks.IQ1 - np.float64(0.125)
IQ2_XXS = codebooks.IQ2_XXS / np.float64(8)
IQ2_XS = codebooks.IQ2_XS / np.float64(8)
IQ2_S = codebooks.IQ2_S / np.float64(8)
IQ3_XXS = codebooks.IQ3_XXS / np.float64(4)
IQ3_S = codebooks.IQ3_S / np.float64(1)

FACTORS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Scales to try, as parts of the one that maps the largest weight to the largest codebook value."""


class Rows(NamedTuple):
    """A packed group of formats' common parts, for n blocks.

    d : (n,)      s : scale codes (n, groups)      row : row numbers (n, rows)      grid : grid numbers (n, groups)
    """

    d: Doubles
    s: Indices
    row: Indices
    grid: Indices


def fit_rows(x: Doubles, w: Doubles, grids: list[Doubles], *, groups: int, scale_bits: int) -> Rows:
    """Fit blocks x (n, 256) to codebook rows; each group has a scale d * (2 s + 1), with ``scale_bits`` bits for s."""
    n, size = x.shape
    length = grids[0].shape[1]
    by_row = (n * groups, size // groups // length, length)
    by_group = (n * groups, size // groups)
    search = RowSearch(x.reshape(by_row), w.reshape(by_row), grids)
    start = amplitude(x.reshape(by_group)) / max(grid.max() for grid in grids)
    scale = best_scale(x.reshape(by_group), w.reshape(by_group), (start * f for f in FACTORS), search.values)
    scale = np.maximum(scale, 0).reshape(n, groups)

    top = 2**scale_bits - 1
    d = scale.max(axis=1) / (2 * top + 1)
    s = np.clip(np.rint((ratio(scale, np.repeat(d[:, None], groups, axis=1)) - 1) / 2), 0, top)
    multiple = 2 * s + 1
    index, number = search.nearest((d[:, None] * multiple).reshape(-1))
    values = search.values_of(index, number).reshape(n, groups, -1) * multiple[:, :, None]
    d = np.maximum(refit(x, w, values.reshape(n, -1)), 0)
    return Rows(d, s.astype(np.int64), index.reshape(n, -1), number.reshape(n, groups))


def any_signs(x: Doubles) -> tuple[Doubles, Indices]:
    """Return the magnitudes of x (n, 256) and one byte of sign bits per 8 weights, (n, 32)."""
    bits = (x < 0).reshape(len(x), -1, 8)
    return np.abs(x), np.sum(bits << np.arange(8), axis=-1)


def even_signs(x: Doubles, w: Doubles) -> tuple[Doubles, Indices]:
    """Return x (n, 256) without its signs, and 7-bit sign codes per 8 weights, (n, 32), with an even number of minus.

    Where the number of minus signs is odd, the weight that matters least takes the wrong sign, and its magnitude stays
    negative: the row search then knows that zero is the best it can hope for.
    """
    shape = (len(x), -1, 8)
    negative = (x < 0).reshape(shape)
    odd = negative.sum(axis=-1, keepdims=True) % 2 == 1
    least = np.argmin((w * x * x).reshape(shape), axis=-1)[..., None]
    negative ^= odd & (np.arange(8) == least)
    magnitudes = np.where(negative, -1, 1) * x.reshape(shape)
    return magnitudes.reshape(x.shape), np.sum(negative[..., :7] << np.arange(7), axis=-1)


def pack_iq1_s(x: Doubles, w: Doubles) -> Bytes:
    """Pack iq1_s: the shift is common to 32 weights."""
    d, s, index, down = fit_rows(x, w, [IQ1_UP, IQ1_DOWN], groups=8, scale_bits=3)
    high = np.sum((index >> 8).reshape(-1, 8, 4) << np.array([0, 3, 6, 9]), axis=-1)
    word = high | s << 12 | down << 15
    return np.concatenate([half_bytes(d), (index & 255).astype(np.uint8), word_bytes(word, size=2)], axis=1)


def pack_iq1_m(x: Doubles, w: Doubles) -> Bytes:
    """Pack iq1_m: each row of 8 has its own shift, so that both shifted codebooks are one of 4096 rows."""
    d, s, index, _ = fit_rows(x, w, [np.concatenate([IQ1_UP, IQ1_DOWN])], groups=16, scale_bits=3)
    high = (index >> 8 & 7) | index >> 11 << 3
    d_bits = half_bytes(d).view("<u2").astype(np.int64)
    scales = np.sum(s.reshape(-1, 4, 4) << np.array([0, 3, 6, 9]), axis=-1)
    word = scales | (d_bits >> np.array([0, 4, 8, 12]) & 15) << 12
    return np.concatenate([(index & 255).astype(np.uint8), field_bytes(high, bits=4), word_bytes(word, size=2)], axis=1)


def pack_iq2_xxs(x: Doubles, w: Doubles) -> Bytes:
    """Pack iq2_xxs."""
    magnitudes, signs = even_signs(x, w)
    d, s, index, _ = fit_rows(magnitudes, w, [IQ2_XXS], groups=8, scale_bits=4)
    word = np.sum(signs.reshape(-1, 8, 4) << np.array([0, 7, 14, 21]), axis=-1) | s << 28
    low = np.sum(index.reshape(-1, 8, 4) << np.array([0, 8, 16, 24]), axis=-1)
    return np.concatenate([half_bytes(d), word_bytes(np.stack([low, word], axis=-1).reshape(-1, 16), size=4)], axis=1)


def pack_iq2_xs(x: Doubles, w: Doubles) -> Bytes:
    """Pack iq2_xs."""
    magnitudes, signs = even_signs(x, w)
    d, s, index, _ = fit_rows(magnitudes, w, [IQ2_XS], groups=16, scale_bits=4)
    return np.concatenate([half_bytes(d), word_bytes(index | signs << 9, size=2), field_bytes(s, bits=4)], axis=1)


def pack_iq2_s(x: Doubles, w: Doubles) -> Bytes:
    """Pack iq2_s."""
    magnitudes, signs = any_signs(x)
    d, s, index, _ = fit_rows(magnitudes, w, [IQ2_S], groups=16, scale_bits=4)
    parts = [half_bytes(d), index & 255, signs, field_bytes(index >> 8, bits=2), field_bytes(s, bits=4)]
    return np.concatenate([part.astype(np.uint8) for part in parts], axis=1)


def pack_iq3_xxs(x: Doubles, w: Doubles) -> Bytes:
    """Pack iq3_xxs."""
    magnitudes, signs = even_signs(x, w)
    d, s, index, _ = fit_rows(magnitudes, w, [IQ3_XXS], groups=8, scale_bits=4)
    word = np.sum(signs.reshape(-1, 8, 4) << np.array([0, 7, 14, 21]), axis=-1) | s << 28
    return np.concatenate([half_bytes(d), index.astype(np.uint8), word_bytes(word, size=4)], axis=1)


def pack_iq3_s(x: Doubles, w: Doubles) -> Bytes:
    """Pack iq3_s."""
    magnitudes, signs = any_signs(x)
    d, s, index, _ = fit_rows(magnitudes, w, [IQ3_S], groups=8, scale_bits=4)
    parts = [half_bytes(d), index & 255, field_bytes(index >> 8, bits=1), signs, field_bytes(s, bits=4)]
    return np.concatenate([part.astype(np.uint8) for part in parts], axis=1)
