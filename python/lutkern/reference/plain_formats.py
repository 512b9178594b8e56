"""The formats without a codebook: ternary, K, sixteen-value, and simple blocks of 32, then the floating-point ones."""

from __future__ import annotations

import numpy as np

from . import codebooks
from .formats import Bytes, Floats, Groups, Ints, fields, float_format, halves, integer_format


def _ternary_digits(part: Bytes, *, count: int) -> Ints:
    """Return the first ``count`` base-3 digits of bytes (n, m), int32 (n, count * m): digit by digit.

    A byte is a fraction of 256: multiplied by 3, its whole part is the first digit, and the rest holds the others.
    """
    rest = part.astype(np.int32)
    digits = []
    for _ in range(count):
        digits.append(rest * 3 >> 8)
        rest = rest * 3 & 255
    return np.concatenate(digits, axis=1)


@integer_format("tq1_0", block_size=256, block_bytes=54)
def tq1_0(blocks: Bytes) -> Groups:
    """Unpack tq1_0.

    byte 0..31   five base-3 digits each: digit i of byte j is weight 32 i + j
    byte 32..47  five base-3 digits each: digit i of byte j is weight 160 + 16 i + j
    byte 48..51  four base-3 digits each: digit i of byte j is weight 240 + 4 i + j
    byte 52..53  d, fp16

    weight = d * (digit - 1)
    """
    parts = ((blocks[:, 0:32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4))
    digits = np.concatenate([_ternary_digits(part, count=count) for part, count in parts], axis=1)
    return Groups(digits - 1, halves(blocks, 52))


@integer_format("tq2_0", block_size=256, block_bytes=66)
def tq2_0(blocks: Bytes) -> Groups:
    """Unpack tq2_0.

    byte 0..63   2-bit codes in runs of 32 bytes
    byte 64..65  d, fp16

    weight = d * (code - 1)
    """
    return Groups(fields(blocks[:, 0:64], bits=2, run=32) - 1, halves(blocks, 64))


@integer_format("q2_k", block_size=256, block_bytes=84)
def q2_k(blocks: Bytes) -> Groups:
    """Unpack q2_k.

    byte 0..15   per 16 weights: low nibble scale s, high nibble minimum m
    byte 16..79  2-bit codes in runs of 32 bytes
    byte 80..81  d, fp16
    byte 82..83  d_min, fp16

    weight = d * s * code - d_min * m
    """
    scale = halves(blocks, 80) * (blocks[:, 0:16] & 15)
    offset = -(halves(blocks, 82) * (blocks[:, 0:16] >> 4))
    return Groups(fields(blocks[:, 16:80], bits=2, run=32), scale, offset)


@integer_format("q3_k", block_size=256, block_bytes=110)
def q3_k(blocks: Bytes) -> Groups:
    """Unpack q3_k.

    byte 0..31     the high bits of the codes, in one run of 32 bytes
    byte 32..95    the low 2 bits of the codes, in runs of 32 bytes
    byte 96..103   low 4 bits of sixteen scales, one run of 8 bytes
    byte 104..107  high 2 bits of sixteen scales, one run of 4 bytes
    byte 108..109  d, fp16

    weight = d * (s - 32) * (code - 4), one scale s per 16 weights
    """
    code = fields(blocks[:, 32:96], bits=2, run=32) + 4 * fields(blocks[:, 0:32], bits=1, run=32)
    s = fields(blocks[:, 96:104], bits=4, run=8) + 16 * fields(blocks[:, 104:108], bits=2, run=4)
    return Groups(code - 4, halves(blocks, 108) * (s - 32))


def _eight_scales_and_minima(part: Bytes) -> tuple[Ints, Ints]:
    """Return the 6-bit scales and minima of q4_k and q5_k, (n, 8) each, from their 12 bytes.

    byte 0..3   bits 0..5 scale i, bits 6..7 the high bits of scale 4 + i
    byte 4..7   bits 0..5 minimum i, bits 6..7 the high bits of minimum 4 + i
    byte 8..11  low nibble: low bits of scale 4 + i, high nibble: low bits of minimum 4 + i
    """
    a, b, c = (part[:, start : start + 4].astype(np.int32) for start in (0, 4, 8))
    scales = np.concatenate([a & 63, (c & 15) + 16 * (a >> 6)], axis=1)
    minima = np.concatenate([b & 63, (c >> 4) + 16 * (b >> 6)], axis=1)
    return scales, minima


@integer_format("q4_k", block_size=256, block_bytes=144)
def q4_k(blocks: Bytes) -> Groups:
    """Unpack q4_k.

    byte 0..1     d, fp16
    byte 2..3     d_min, fp16
    byte 4..15    eight 6-bit scales s and minima m, one of each per 32 weights
    byte 16..143  4-bit codes in runs of 32 bytes

    weight = d * s * code - d_min * m
    """
    s, m = _eight_scales_and_minima(blocks[:, 4:16])
    return Groups(fields(blocks[:, 16:144], bits=4, run=32), halves(blocks, 0) * s, -(halves(blocks, 2) * m))


@integer_format("q5_k", block_size=256, block_bytes=176)
def q5_k(blocks: Bytes) -> Groups:
    """Unpack q5_k.

    byte 0..1     d, fp16
    byte 2..3     d_min, fp16
    byte 4..15    eight 6-bit scales s and minima m, one of each per 32 weights
    byte 16..47   the high bits of the codes, in one run of 32 bytes
    byte 48..175  the low 4 bits of the codes, in runs of 32 bytes

    weight = d * s * code - d_min * m
    """
    s, m = _eight_scales_and_minima(blocks[:, 4:16])
    code = fields(blocks[:, 48:176], bits=4, run=32) + 16 * fields(blocks[:, 16:48], bits=1, run=32)
    return Groups(code, halves(blocks, 0) * s, -(halves(blocks, 2) * m))


@integer_format("q6_k", block_size=256, block_bytes=210)
def q6_k(blocks: Bytes) -> Groups:
    """Unpack q6_k.

    byte 0..127    the low 4 bits of the codes, in runs of 64 bytes
    byte 128..191  the high 2 bits of the codes, in runs of 32 bytes
    byte 192..207  int8 scales s, one per 16 weights
    byte 208..209  d, fp16

    weight = d * s * (code - 32)
    """
    code = fields(blocks[:, 0:128], bits=4, run=64) + 16 * fields(blocks[:, 128:192], bits=2, run=32)
    return Groups(code - 32, halves(blocks, 208) * blocks[:, 192:208].astype(np.int8))


@integer_format("iq4_nl", block_size=32, block_bytes=18)
def iq4_nl(blocks: Bytes) -> Groups:
    """Unpack iq4_nl.

    byte 0..1   d, fp16
    byte 2..17  4-bit codes in one run of 16 bytes

    weight = d * value[code]
    """
    return Groups(codebooks.IQ4[fields(blocks[:, 2:18], bits=4, run=16)], halves(blocks, 0))


@integer_format("iq4_xs", block_size=256, block_bytes=136)
def iq4_xs(blocks: Bytes) -> Groups:
    """Unpack iq4_xs.

    byte 0..1    d, fp16
    byte 2..3    high 2 bits of eight scales
    byte 4..7    low 4 bits of eight scales
    byte 8..135  4-bit codes in runs of 16 bytes

    weight = d * (s - 32) * value[code], one scale s per 32 weights
    """
    s = fields(blocks[:, 4:8], bits=4) + 16 * fields(blocks[:, 2:4], bits=2)
    return Groups(codebooks.IQ4[fields(blocks[:, 8:136], bits=4, run=16)], halves(blocks, 0) * (s - 32))


@integer_format("mxfp4", block_size=32, block_bytes=17)
def mxfp4(blocks: Bytes) -> Groups:
    """Unpack mxfp4.

    byte 0      e, exponent
    byte 1..16  4-bit codes in one run of 16 bytes: e2m1 numbers, held here doubled

    weight = 2^(e - 128) * doubled[code]
    """
    scale = np.ldexp(np.float32(1), blocks[:, 0:1].astype(np.int32) - 128)
    return Groups(codebooks.FP4[fields(blocks[:, 1:17], bits=4, run=16)], scale)


@integer_format("q4_0", block_size=32, block_bytes=18)
def q4_0(blocks: Bytes) -> Groups:
    """Unpack q4_0.

    byte 0..1   d, fp16
    byte 2..17  4-bit codes in one run of 16 bytes

    weight = d * (code - 8)
    """
    return Groups(fields(blocks[:, 2:18], bits=4, run=16) - 8, halves(blocks, 0))


@integer_format("q4_1", block_size=32, block_bytes=20)
def q4_1(blocks: Bytes) -> Groups:
    """Unpack q4_1.

    byte 0..1   d, fp16
    byte 2..3   m, fp16
    byte 4..19  4-bit codes in one run of 16 bytes

    weight = d * code + m
    """
    return Groups(fields(blocks[:, 4:20], bits=4, run=16), halves(blocks, 0), halves(blocks, 2))


@integer_format("q5_0", block_size=32, block_bytes=22)
def q5_0(blocks: Bytes) -> Groups:
    """Unpack q5_0.

    byte 0..1   d, fp16
    byte 2..5   the high bits of the codes, in order
    byte 6..21  the low 4 bits of the codes, in one run of 16 bytes

    weight = d * (code - 16)
    """
    code = fields(blocks[:, 6:22], bits=4, run=16) + 16 * fields(blocks[:, 2:6], bits=1)
    return Groups(code - 16, halves(blocks, 0))


@integer_format("q5_1", block_size=32, block_bytes=24)
def q5_1(blocks: Bytes) -> Groups:
    """Unpack q5_1.

    byte 0..1   d, fp16
    byte 2..3   m, fp16
    byte 4..7   the high bits of the codes, in order
    byte 8..23  the low 4 bits of the codes, in one run of 16 bytes

    weight = d * code + m
    """
    code = fields(blocks[:, 8:24], bits=4, run=16) + 16 * fields(blocks[:, 4:8], bits=1)
    return Groups(code, halves(blocks, 0), halves(blocks, 2))


@integer_format("q8_0", block_size=32, block_bytes=34)
def q8_0(blocks: Bytes) -> Groups:
    """Unpack q8_0.

    byte 0..1   d, fp16
    byte 2..33  q, int8

    weight = d * q
    """
    return Groups(blocks[:, 2:34].astype(np.int8), halves(blocks, 0))


@float_format("bf16", block_bytes=2)
def bf16(blocks: Bytes) -> Floats:
    """Decode bf16: the upper half of a float32."""
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


@float_format("f16", block_bytes=2)
def f16(blocks: Bytes) -> Floats:
    """Decode f16: IEEE half precision."""
    return halves(blocks, 0)


@float_format("f32", block_bytes=4)
def f32(blocks: Bytes) -> Floats:
    """Decode f32: IEEE single precision."""
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)
