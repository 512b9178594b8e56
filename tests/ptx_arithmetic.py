"""What single PTX instructions compute, in Python integers and fractions: the judge of the interpreter.

A value is a Python integer (of a signed type: signed), a float, or a bool. Each row of OPERATIONS: the instruction with
%d for the destination and %a %b %c for sources, their types, the type of the result, and a function.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Value = Any
Row = tuple[str, tuple[str, ...], str, Callable[..., Value]]

ONES = 0xFFFFFFFF


def wrap(value: int, kind: str) -> int:
    """An integer in a type of PTX."""
    bits = int(kind[1:])
    value %= 1 << bits
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def signed(value: int, bits: int = 32) -> int:
    return wrap(value, f"s{bits}")


def bits_of(x: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", x))[0])


def float_of(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def rounded(x: Fraction, mode: str = "rn", digits: int = 24, lowest: int = -149) -> float:
    """A fraction to a binary float of some digits; lowest: exponent of the smallest subnormal."""
    if x == 0:
        return 0.0
    exponent = max(lowest, abs(x.numerator).bit_length() - x.denominator.bit_length() - digits)
    while abs(x) >= Fraction(2) ** (exponent + digits):
        exponent += 1
    scaled = x / Fraction(2) ** exponent
    down = math.floor(scaled)
    rest = scaled - down
    if mode == "rn":
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and down % 2 == 1)
    else:
        up = rest > 0 and (mode == "rp" or (mode == "rz" and x < 0))
    value = Fraction(down + up) * Fraction(2) ** exponent
    if digits == 24 and abs(value) >= 2**128:
        away = mode == "rn" or mode == ("rp" if x > 0 else "rm")
        return math.copysign(math.inf if away else float_of(0x7F7FFFFF), x)
    return math.copysign(float(value), x)


def exact(function: Callable[..., Fraction], mode: str = "rn") -> Callable[..., float]:
    """A function of fractions, rounded once; a zero or what is not finite is left to Python's floats."""

    def call(*values: float) -> float:
        if not all(map(math.isfinite, values)):
            return function(*values)  # type: ignore[return-value]
        result = function(*map(Fraction, values))
        return function(*values) if result == 0 else rounded(result, mode)  # type: ignore[return-value]

    return call


def to_integer(rounding: Callable[[float], int], kind: str) -> Callable[[float], int]:
    bits = int(kind[1:])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)

    def call(x: float) -> int:
        if math.isnan(x):
            return 0
        return max(low, min(high, rounding(x))) if math.isfinite(x) else (high if x > 0 else low)

    return call


def byte(word: int, k: int, sign: bool = False) -> int:
    return wrap(word >> 8 * k, "s8" if sign else "u8")


def dot4(a: int, b: int, c: int, a_sign: bool, b_sign: bool) -> int:
    return c + sum(byte(a, k, a_sign) * byte(b, k, b_sign) for k in range(4))


def permute(a: int, b: int, selector: int) -> int:
    result = 0
    for k in range(4):
        nibble = selector >> 4 * k & 15
        value = byte(b << 32 | a, nibble & 7)
        result |= (255 * (value >> 7) if nibble & 8 else value) << 8 * k
    return result


def lop3(table: int) -> Callable[[int, int, int], int]:
    def call(a: int, b: int, c: int) -> int:
        rows = (((a >> k & 1) << 2 | (b >> k & 1) << 1 | (c >> k & 1)) for k in range(32))
        return sum((table >> row & 1) << k for k, row in enumerate(rows))

    return call


def quotient(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def bfind(a: int) -> int:
    return (a if a >= 0 else ~a).bit_length() - 1


def bfe(a: int, start: int, length: int, bits: int = 32, sign: bool = False) -> int:
    start, length = start & 255, length & 255
    top = min(start + length - 1, bits - 1)
    fill = a >> top & 1 if sign and length else 0
    return sum((a >> start + k & 1 if start + k < bits else fill) << k for k in range(min(length, bits))) | (
        sum(fill << k for k in range(length, bits)) if sign else 0
    )


def bfi(a: int, b: int, start: int, length: int, bits: int = 32) -> int:
    start, length = start & 255, length & 255
    for k in range(length):
        if start + k < bits:
            b = b & ~(1 << start + k) | (a >> k & 1 if k < bits else 0) << start + k
    return b


def half_bits(x: float) -> int:
    if math.isnan(x):
        return 0x7FFF
    value = rounded(Fraction(x), "rn", 11, -24) if math.isfinite(x) and x else x
    return 0x7C00 | 0x8000 * (x < 0) if abs(value) > 65504 else int(struct.unpack("<H", struct.pack("<e", value))[0])


def bfloat_bits(x: float) -> int:
    if math.isnan(x):
        return 0x7FFF
    value = rounded(Fraction(x), "rn", 8, -133) if math.isfinite(x) and x else x
    if abs(value) > float_of(0x7F7F0000):
        return 0x7F80 | 0x8000 * (x < 0)
    return bits_of(value) >> 16


def shift(a: int, n: int, bits: int = 32) -> int:
    return a >> min(n, bits)


def c_min(a: float, b: float) -> float:
    return b if math.isnan(a) else a if math.isnan(b) else min(a, b)


def c_max(a: float, b: float) -> float:
    return b if math.isnan(a) else a if math.isnan(b) else max(a, b)


def saturated(x: float) -> float:
    return 0.0 if math.isnan(x) else min(max(x, 0.0), 1.0)


def flushed(x: float) -> float:
    return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x


def safe(function: Callable[[float], float]) -> Callable[[float], float]:
    """Nothing raises: NaN instead, or infinity."""

    def call(x: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return math.inf
        except ValueError:
            return math.nan

    return call


def root(x: float) -> float:
    if math.isnan(x) or x < 0:
        return math.nan
    if x in (0.0, math.inf):
        return x
    scale = 1 << 400
    value = Fraction(x) * scale * scale  # exact: the scale is a square
    floor = math.isqrt(math.floor(value))
    return rounded(Fraction(2 * floor + (floor * floor != value), 2 * scale))


def over(a: float, b: float) -> float:
    if b == 0:
        nothing = math.isnan(a) or a == 0
        return math.nan if nothing else math.copysign(math.inf, math.copysign(1, a) * math.copysign(1, b))
    return exact(lambda x, y: x / y)(a, b)


def whole(rounding: Callable[[float], int]) -> Callable[[float], float]:
    return lambda x: math.copysign(float(rounding(x)), x) if math.isfinite(x) else x


def nearest(x: float) -> int:
    return round(x)  # halves to even


_I32, _U32, _F32 = ("s32", "s32"), ("u32", "u32"), ("f32", "f32")
U3, F3 = ("u32",) * 3, ("f32",) * 3

INTEGERS: list[Row] = [
    ("add.s32 %d, %a, %b;", _I32, "s32", lambda a, b: a + b),
    ("add.u64 %d, %a, %b;", ("u64", "u64"), "u64", lambda a, b: a + b),
    ("add.s16 %d, %a, -5;", ("s16",), "s16", lambda a: a - 5),
    ("add.sat.s32 %d, %a, %b;", _I32, "s32", lambda a, b: max(-(1 << 31), min((1 << 31) - 1, a + b))),
    ("sub.s32 %d, %a, %b;", _I32, "s32", lambda a, b: a - b),
    ("mul.lo.s32 %d, %a, %b;", _I32, "s32", lambda a, b: a * b),
    ("mul.lo.u16 %d, %a, %b;", ("u16", "u16"), "u16", lambda a, b: a * b),
    ("mul.hi.u32 %d, %a, %b;", _U32, "u32", lambda a, b: a * b >> 32),
    ("mul.hi.s32 %d, %a, %b;", _I32, "s32", lambda a, b: a * b >> 32),
    ("mul.hi.u64 %d, %a, %b;", ("u64", "u64"), "u64", lambda a, b: a * b >> 64),
    ("mul.hi.s64 %d, %a, %b;", ("s64", "s64"), "s64", lambda a, b: a * b >> 64),
    ("mul.wide.s32 %d, %a, %b;", _I32, "s64", lambda a, b: a * b),
    ("mul.wide.u32 %d, %a, 613566757;", ("u32",), "u64", lambda a: a * 613566757),
    ("mul.wide.u16 %d, %a, %b;", ("u16", "u16"), "u32", lambda a, b: a * b),
    ("mad.lo.s32 %d, %a, %b, %c;", ("s32",) * 3, "s32", lambda a, b, c: a * b + c),
    ("mad.wide.s32 %d, %a, %b, %c;", ("s32", "s32", "s64"), "s64", lambda a, b, c: a * b + c),
    ("mad.hi.u32 %d, %a, %b, %c;", U3, "u32", lambda a, b, c: (a * b >> 32) + c),
    ("div.s32 %d, %a, %b;", _I32, "s32", quotient),
    ("div.u32 %d, %a, %b;", _U32, "u32", lambda a, b: a // b if b else ONES),
    ("div.s64 %d, %a, %b;", ("s64", "s64"), "s64", quotient),
    ("rem.s32 %d, %a, %b;", _I32, "s32", lambda a, b: a - quotient(a, b) * b if b else a),
    ("rem.u32 %d, %a, 7;", ("u32",), "u32", lambda a: a % 7),
    ("min.s32 %d, %a, %b;", _I32, "s32", min),
    ("max.u32 %d, %a, %b;", _U32, "u32", max),
    ("abs.s32 %d, %a;", ("s32",), "s32", abs),
    ("neg.s32 %d, %a;", ("s32",), "s32", lambda a: -a),
    ("not.b32 %d, %a;", ("u32",), "u32", lambda a: ~a),
    ("cnot.b32 %d, %a;", ("u32",), "u32", lambda a: int(a == 0)),
    ("and.b32 %d, %a, -32;", ("u32",), "u32", lambda a: a & -32),
    ("or.b64 %d, %a, %b;", ("u64", "u64"), "u64", lambda a, b: a | b),
    ("xor.b16 %d, %a, %b;", ("u16", "u16"), "u16", lambda a, b: a ^ b),
    ("lop3.b32 %d, %a, %b, %c, 0x6a;", U3, "u32", lop3(0x6A)),
    ("lop3.b32 %d, %a, %b, %c, 150;", U3, "u32", lop3(0x96)),
    ("lop3.b32 %d, %a, %b, 252645135, 0xEA;", ("u32", "u32"), "u32", lambda a, b: lop3(0xEA)(a, b, 0x0F0F0F0F)),
    ("shl.b32 %d, %a, %b;", ("u32", "n32"), "u32", lambda a, b: a << min(b, 32)),
    ("shl.b64 %d, %a, 33;", ("u64",), "u64", lambda a: a << 33),
    ("shr.u32 %d, %a, %b;", ("u32", "n32"), "u32", shift),
    ("shr.s32 %d, %a, %b;", ("s32", "n32"), "s32", shift),
    ("shr.s64 %d, %a, 40;", ("s64",), "s64", lambda a: a >> 40),
    ("shr.u16 %d, %a, 9;", ("u16",), "u16", lambda a: a >> 9),
    ("shf.l.wrap.b32 %d, %a, %b, %c;", U3, "u32", lambda a, b, c: (b << 32 | a) << (c & 31) >> 32),
    ("shf.r.wrap.b32 %d, %a, %b, %c;", U3, "u32", lambda a, b, c: (b << 32 | a) >> (c & 31)),
    ("shf.r.clamp.b32 %d, %a, %b, %c;", ("u32", "u32", "n32"), "u32", lambda a, b, c: (b << 32 | a) >> min(c, 32)),
    ("prmt.b32 %d, %a, %b, %c;", U3, "u32", permute),
    ("prmt.b32 %d, %a, %b, 0x5140;", _U32, "u32", lambda a, b: permute(a, b, 0x5140)),
    ("dp4a.s32.s32 %d, %a, %b, %c;", U3, "u32", lambda a, b, c: dot4(a, b, c, True, True)),
    ("dp4a.u32.s32 %d, %a, %b, %c;", U3, "u32", lambda a, b, c: dot4(a, b, c, False, True)),
    ("dp4a.u32.u32 %d, %a, %b, %c;", U3, "u32", lambda a, b, c: dot4(a, b, c, False, False)),
    ("dp4a.u32.s32 %d, 16843009, %b, 0;", ("u32", "u32"), "u32", lambda a, b: dot4(0x01010101, b, 0, False, True)),
    (
        "dp2a.hi.s32.u32 %d, %a, %b, %c;",
        U3,
        "u32",
        lambda a, b, c: c + signed(a, 16) * byte(b, 2) + signed(a >> 16, 16) * byte(b, 3),
    ),
    ("popc.b32 %d, %a;", ("u32",), "u32", lambda a: bin(a).count("1")),
    ("popc.b64 %d, %a;", ("u64",), "u32", lambda a: bin(a).count("1")),
    ("clz.b32 %d, %a;", ("u32",), "u32", lambda a: 32 - a.bit_length()),
    ("clz.b64 %d, %a;", ("u64",), "u32", lambda a: 64 - a.bit_length()),
    ("brev.b32 %d, %a;", ("u32",), "u32", lambda a: int(f"{a:032b}"[::-1], 2)),
    ("bfind.u32 %d, %a;", ("u32",), "u32", bfind),
    ("bfind.s32 %d, %a;", ("s32",), "u32", bfind),
    ("bfind.shiftamt.u32 %d, %a;", ("u32",), "u32", lambda a: 31 - bfind(a) if a else -1),
    ("bfe.u32 %d, %a, %b, %c;", ("u32", "n32", "n32"), "u32", bfe),
    ("bfe.s32 %d, %a, %b, %c;", ("s32", "n32", "n32"), "s32", lambda a, b, c: bfe(a, b, c, 32, True)),
    ("bfe.u64 %d, %a, %b, %c;", ("u64", "n32", "n32"), "u64", lambda a, b, c: bfe(a, b, c, 64)),
    ("bfi.b32 %d, %a, %b, %c, 5;", ("u32", "u32", "n32"), "u32", lambda a, b, c: bfi(a, b, c, 5)),
    ("bmsk.clamp.b32 %d, %a, %b;", ("n32", "n32"), "u32", lambda a, b: ((1 << b) - 1) << a),
    ("selp.b32 %d, %a, %b, %c;", ("u32", "u32", "pred"), "u32", lambda a, b, c: a if c else b),
    ("setp.lt.s32 %d, %a, %b;", _I32, "pred", lambda a, b: a < b),
    ("setp.hs.u32 %d, %a, %b;", _U32, "pred", lambda a, b: a >= b),
    ("setp.lo.u64 %d, %a, %b;", ("u64", "u64"), "pred", lambda a, b: a < b),
    ("setp.eq.and.b16 %d, %a, 0, %c;", ("u16", "u16", "pred"), "pred", lambda a, b, c: a == 0 and c),
    ("setp.ne.or.s32 %d, %a, %b, !%c;", ("s32", "s32", "pred"), "pred", lambda a, b, c: a != b or not c),
    ("xor.pred %d, %a, %b;", ("pred", "pred"), "pred", lambda a, b: a != b),
    ("not.pred %d, %a;", ("pred",), "pred", lambda a: not a),
    ("mov.b32 %d, {%a, %b};", ("u16", "u16"), "u32", lambda a, b: b << 16 | a),
    ("mov.b64 %d, {%a, %b};", _U32, "u64", lambda a, b: b << 32 | a),
    ("mov.b64 {_, %d}, %a;", ("u64",), "u32", lambda a: a >> 32),
    ("@%b mov.u32 %d, 77;\n@!%b mov.u32 %d, %a;", ("u32", "pred"), "u32", lambda a, b: 77 if b else a),
    ("cvt.s64.s32 %d, %a;", ("s32",), "s64", lambda a: a),
    ("cvt.u64.u32 %d, %a;", ("u32",), "u64", lambda a: a),
    ("cvt.u32.u64 %d, %a;", ("u64",), "u32", lambda a: a),
    ("cvt.s32.s8 %d, %a;", ("u32",), "s32", lambda a: wrap(a, "s8")),
    ("cvt.s16.s8 %d, %a;", ("u16",), "s16", lambda a: wrap(a, "s8")),
    ("cvt.u32.u8 %d, %a;", ("u16",), "u32", lambda a: a & 255),
    ("cvt.u16.u32 %d, %a;", ("u32",), "u16", lambda a: a),
    ("cvt.sat.s8.s32 %d, %a;", ("s32",), "s16", lambda a: max(-128, min(127, a))),
    ("cvt.sat.u8.s32 %d, %a;", ("s32",), "u16", lambda a: max(0, min(255, a))),
]

FLOATS: list[Row] = [
    ("add.f32 %d, %a, %b;", _F32, "f32", exact(lambda a, b: a + b)),
    ("add.rz.f32 %d, %a, %b;", _F32, "f32", exact(lambda a, b: a + b, "rz")),
    ("sub.rn.f32 %d, %a, %b;", _F32, "f32", exact(lambda a, b: a - b)),
    ("mul.rn.f32 %d, %a, %b;", _F32, "f32", exact(lambda a, b: a * b)),
    ("mul.rm.f32 %d, %a, %b;", _F32, "f32", exact(lambda a, b: a * b, "rm")),
    ("mul.rp.f32 %d, %a, %b;", _F32, "f32", exact(lambda a, b: a * b, "rp")),
    ("fma.rn.f32 %d, %a, %b, %c;", F3, "f32", exact(lambda a, b, c: a * b + c)),
    ("fma.rm.f32 %d, %a, %b, %c;", F3, "f32", exact(lambda a, b, c: a * b + c, "rm")),
    ("fma.rz.f32 %d, %a, %b, %c;", F3, "f32", exact(lambda a, b, c: a * b + c, "rz")),
    (
        "fma.rn.ftz.f32 %d, %a, %b, 0f00000000;",
        _F32,
        "f32",
        lambda a, b: flushed(exact(lambda x, y: x * y)(flushed(a), flushed(b)) + 0.0),
    ),
    ("div.rn.f32 %d, %a, %b;", _F32, "f32", over),
    ("rcp.rn.f32 %d, %a;", ("f32",), "f32", lambda a: over(1.0, a)),
    ("sqrt.rn.f32 %d, %a;", ("f32",), "f32", root),
    ("min.f32 %d, %a, %b;", _F32, "f32", c_min),
    ("max.f32 %d, %a, %b;", _F32, "f32", c_max),
    ("abs.f32 %d, %a;", ("f32",), "f32", abs),
    ("neg.f32 %d, %a;", ("f32",), "f32", lambda a: -a),
    ("copysign.f32 %d, %a, %b;", _F32, "f32", lambda a, b: math.copysign(b, a)),
    ("setp.lt.f32 %d, %a, %b;", _F32, "pred", lambda a, b: a < b),
    ("setp.ne.f32 %d, %a, %b;", _F32, "pred", lambda a, b: a < b or a > b),
    ("setp.neu.f32 %d, %a, %b;", _F32, "pred", lambda a, b: a != b),
    ("setp.equ.f32 %d, %a, %b;", _F32, "pred", lambda a, b: not (a < b or a > b)),
    ("setp.gtu.f32 %d, %a, 0f7F800000;", ("f32",), "pred", lambda a: not a <= math.inf),
    ("setp.nan.f32 %d, %a, %a;", ("f32",), "pred", math.isnan),
    ("setp.num.f32 %d, %a, %b;", _F32, "pred", lambda a, b: not (math.isnan(a) or math.isnan(b))),
    ("selp.f32 %d, %a, 0f40400000, %b;", ("f32", "pred"), "f32", lambda a, b: a if b else 3.0),
    ("mov.b32 %d, %a;", ("f32",), "u32", lambda a: bits_of(a)),
    ("mov.f32 %d, 0f3FB8AA3B;", (), "f32", lambda: float_of(0x3FB8AA3B)),
    ("cvt.sat.f32.f32 %d, %a;", ("f32",), "f32", saturated),
    ("cvt.rni.f32.f32 %d, %a;", ("f32",), "f32", whole(round)),
    ("cvt.rmi.f32.f32 %d, %a;", ("f32",), "f32", whole(math.floor)),
    ("cvt.rni.s32.f32 %d, %a;", ("f32",), "s32", to_integer(nearest, "s32")),
    ("cvt.rzi.s32.f32 %d, %a;", ("f32",), "s32", to_integer(math.trunc, "s32")),
    ("cvt.rpi.s32.f32 %d, %a;", ("f32",), "s32", to_integer(math.ceil, "s32")),
    ("cvt.rzi.u32.f32 %d, %a;", ("f32",), "u32", to_integer(math.trunc, "u32")),
    (
        "cvt.rni.s64.f32 %d, %a;",
        ("f32",),
        "s64",
        lambda a: -(1 << 63) if math.isnan(a) else to_integer(nearest, "s64")(a),
    ),
    ("cvt.rn.f32.s32 %d, %a;", ("s32",), "f32", lambda a: rounded(Fraction(a))),
    ("cvt.rz.f32.u32 %d, %a;", ("u32",), "f32", lambda a: rounded(Fraction(a), "rz")),
    ("cvt.rn.f32.u64 %d, %a;", ("u64",), "f32", lambda a: rounded(Fraction(a))),
    ("cvt.rn.f32.s64 %d, %a;", ("s64",), "f32", lambda a: rounded(Fraction(a))),
    ("cvt.rn.f32.s16 %d, %a;", ("s16",), "f32", float),
    ("cvt.rn.f32.s8 %d, %a;", ("u32",), "f32", lambda a: float(wrap(a, "s8"))),
    ("cvt.rn.f16.f32 %d, %a;", ("f32",), "u16", half_bits),
    ("cvt.rn.bf16.f32 %d, %a;", ("f32",), "u16", bfloat_bits),
    ("cvt.rn.f16x2.f32 %d, %a, %b;", _F32, "u32", lambda a, b: half_bits(a) << 16 | half_bits(b)),
    ("cvt.rn.bf16x2.f32 %d, %a, %b;", _F32, "u32", lambda a, b: bfloat_bits(a) << 16 | bfloat_bits(b)),
    ("cvt.f32.f16 %d, %a;", ("u16",), "f32", lambda a: float(struct.unpack("<e", struct.pack("<H", a))[0])),
    ("cvt.f32.bf16 %d, %a;", ("u16",), "f32", lambda a: float_of(a << 16)),
    ("cvt.f64.f32 %d, %a;", ("f32",), "f64", float),
    ("cvt.rn.f32.f64 %d, %a;", ("f64",), "f32", exact(lambda a: a)),
    ("cvt.rn.f64.s32 %d, %a;", ("s32",), "f64", float),
    ("add.f64 %d, %a, %b;", ("f64", "f64"), "f64", lambda a, b: a + b),
    ("mul.rn.f64 %d, %a, 0d4008000000000000;", ("f64",), "f64", lambda a: a * 3.0),
]

# Not exact on hardware: compared within 2^-20.
APPROXIMATE: list[Row] = [
    ("ex2.approx.ftz.f32 %d, %a;", ("f32",), "f32", safe(lambda a: rounded(Fraction(flushed(2.0 ** flushed(a)))))),
    ("lg2.approx.f32 %d, %a;", ("f32",), "f32", lambda a: -math.inf if a == 0 else safe(math.log2)(a)),
    ("tanh.approx.f32 %d, %a;", ("f32",), "f32", math.tanh),
    ("sin.approx.f32 %d, %a;", ("f32",), "f32", safe(math.sin)),
    ("cos.approx.f32 %d, %a;", ("f32",), "f32", safe(math.cos)),
    (
        "rsqrt.approx.f32 %d, %a;",
        ("f32",),
        "f32",
        lambda a: math.copysign(math.inf, a) if a == 0 else over(1.0, root(a)),
    ),
    ("rcp.approx.ftz.f32 %d, %a;", ("f32",), "f32", lambda a: flushed(over(1.0, flushed(a)))),
    ("div.full.f32 %d, %a, %b;", _F32, "f32", over),
]

OPERATIONS = INTEGERS + FLOATS + APPROXIMATE
