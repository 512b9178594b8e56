"""The codebook formats: IQ1, IQ2 and IQ3. 256 weights per block; an index selects a row of 8 (IQ3: 4) weights.

Where signs take seven bits per 8 weights, the eighth sign makes the number of minus signs even.
"""

from __future__ import annotations

import numpy as np

from . import codebooks
from .formats import Bytes, Groups, fields, halves, integer_format, words


@integer_format("iq1_s", block_size=256, block_bytes=50)
def iq1_s(blocks: Bytes) -> Groups:
    """Unpack iq1_s.

    byte 0..1    d, fp16
    byte 2..33   low 8 bits of 32 indices
    byte 34..49  per 32 weights a u16: bits 0..11 the high 3 bits of four indices, 12..14 scale s, 15 sign of the shift

    weight = d * (2 s + 1) * (row[j] +- 1/8) = d * (2 s + 1) / 8 * (8 row[j] +- 1)
    """
    word = words(blocks, 34, 8, size=2)
    high = (word[:, :, None] >> np.array([0, 3, 6, 9])) & 7
    rows = codebooks.IQ1[blocks[:, 2:34].reshape(-1, 8, 4) + 256 * high]
    shift = 1 - 2 * (word >> 15)
    return Groups(8 * rows + shift[:, :, None, None], halves(blocks, 0) * (2 * (word >> 12 & 7) + 1) / 8)


@integer_format("iq1_m", block_size=256, block_bytes=56)
def iq1_m(blocks: Bytes) -> Groups:
    """Unpack iq1_m.

    byte 0..31   low 8 bits of 32 indices
    byte 32..47  32 nibbles: bits 0..2 the high bits of an index, bit 3 the sign of that row's shift
    byte 48..55  four u16: bits 0..11 four 3-bit scales s, one per 16 weights; bits 12..15 a nibble of d, lowest first

    weight = d * (2 s + 1) / 8 * (8 row[j] +- 1)
    """
    nibble = fields(blocks[:, 32:48], bits=4)
    rows = codebooks.IQ1[blocks[:, 0:32] + 256 * (nibble & 7)]
    shift = 1 - 2 * (nibble >> 3)
    word = words(blocks, 48, 4, size=2)
    d_bits = np.sum((word >> 12) << np.array([0, 4, 8, 12]), axis=1, keepdims=True)
    d = d_bits.astype(np.uint16).view(np.float16).astype(np.float32)
    s = ((word[:, :, None] >> np.array([0, 3, 6, 9])) & 7).reshape(-1, 16)
    return Groups(8 * rows + shift[:, :, None], d * (2 * s + 1) / 8)


@integer_format("iq2_xxs", block_size=256, block_bytes=66)
def iq2_xxs(blocks: Bytes) -> Groups:
    """Unpack iq2_xxs.

    byte 0..1   d, fp16
    byte 2..65  per 32 weights: four 8-bit indices, then a u32: bits 0..27 four 7-bit sign codes, bits 28..31 scale s

    weight = d * (s + 1/2) / 4 * row[j] * sign[j]
    """
    index = blocks[:, 2:66].reshape(-1, 8, 8)[:, :, :4]
    word = words(blocks, 2, 16, size=4)[:, 1::2]
    signs = codebooks.signs_of_seven_bits((word[:, :, None] >> np.array([0, 7, 14, 21])) & 127)
    return Groups(codebooks.IQ2_XXS[index] * signs, halves(blocks, 0) * ((word >> 28) + 0.5) / 4)


@integer_format("iq2_xs", block_size=256, block_bytes=74)
def iq2_xs(blocks: Bytes) -> Groups:
    """Unpack iq2_xs.

    byte 0..1    d, fp16
    byte 2..65   per 8 weights a u16: bits 0..8 index, bits 9..15 sign code
    byte 66..73  16 nibbles: scale s, one per 16 weights

    weight = d * (s + 1/2) / 4 * row[j] * sign[j]
    """
    word = words(blocks, 2, 32, size=2)
    signs = codebooks.signs_of_seven_bits(word >> 9)
    return Groups(
        codebooks.IQ2_XS[word & 511] * signs, halves(blocks, 0) * (fields(blocks[:, 66:74], bits=4) + 0.5) / 4
    )


@integer_format("iq2_s", block_size=256, block_bytes=82)
def iq2_s(blocks: Bytes) -> Groups:
    """Unpack iq2_s.

    byte 0..1    d, fp16
    byte 2..33   low 8 bits of 32 indices
    byte 34..65  sign bits, one byte per 8 weights
    byte 66..73  high 2 bits of 32 indices
    byte 74..81  16 nibbles: scale s, one per 16 weights

    weight = d * (s + 1/2) / 4 * row[j] * sign[j]
    """
    index = blocks[:, 2:34] + 256 * fields(blocks[:, 66:74], bits=2)
    signs = codebooks.signs_of_bits(blocks[:, 34:66])
    return Groups(codebooks.IQ2_S[index] * signs, halves(blocks, 0) * (fields(blocks[:, 74:82], bits=4) + 0.5) / 4)


@integer_format("iq3_xxs", block_size=256, block_bytes=98)
def iq3_xxs(blocks: Bytes) -> Groups:
    """Unpack iq3_xxs.

    byte 0..1    d, fp16
    byte 2..65   64 indices, one per 4 weights
    byte 66..97  per 32 weights a u32: bits 0..27 four 7-bit sign codes, bits 28..31 scale s

    weight = d * (s + 1/2) / 2 * row[j] * sign[j]
    """
    rows = codebooks.IQ3_XXS[blocks[:, 2:66]].reshape(-1, 8, 4, 8)
    word = words(blocks, 66, 8, size=4)
    signs = codebooks.signs_of_seven_bits((word[:, :, None] >> np.array([0, 7, 14, 21])) & 127)
    return Groups(rows * signs, halves(blocks, 0) * ((word >> 28) + 0.5) / 2)


@integer_format("iq3_s", block_size=256, block_bytes=110)
def iq3_s(blocks: Bytes) -> Groups:
    """Unpack iq3_s.

    byte 0..1      d, fp16
    byte 2..65     low 8 bits of 64 indices, one per 4 weights
    byte 66..73    the high bit of 64 indices
    byte 74..105   sign bits, one byte per 8 weights
    byte 106..109  8 nibbles: scale s, one per 32 weights

    weight = d * (2 s + 1) * row[j] * sign[j]
    """
    index = blocks[:, 2:66] + 256 * fields(blocks[:, 66:74], bits=1)
    signs = codebooks.signs_of_bits(blocks[:, 74:106])
    rows = codebooks.IQ3_S[index].reshape(-1, 32, 8)
    return Groups(rows * signs, halves(blocks, 0) * (2 * fields(blocks[:, 106:110], bits=4) + 1))
