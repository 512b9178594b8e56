"""Floating-point arithmetic as the PTX ISA defines it, on arrays.

NumPy rounds to nearest. The other roundings, and fma, go through float64 rounded to odd: 53 bits with a sticky last
bit, from which any rounding to 24 bits is exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]


def flush(x: F32) -> F32:
    """`.ftz`: a subnormal becomes a zero of its sign."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def odd_sum(a: F64, b: F64) -> F64:
    """a + b in float64; where that is not exact the last bit is one: a sum that later roundings can trust."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    bits = np.ascontiguousarray(total).view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & ((bits & 1) == 0)
    if not inexact.any():
        return total
    away = (error > 0) == (total > 0)  # the exact sum has the larger magnitude
    return np.where(inexact, np.where(away, bits + 1, bits - 1), bits).view(np.float64)


def narrow(x: F64, rounding: str) -> F32:
    """To float32 by rn, rz, rm or rp."""
    near = x.astype(np.float32)
    if rounding == "rn":
        return near
    wide = near.astype(np.float64)
    down, up = np.float32(-np.inf), np.float32(np.inf)
    too_high, too_low = wide > x, wide < x
    if rounding == "rz":
        too_high, too_low = too_high & (x > 0), too_low & (x < 0)
    if rounding in ("rm", "rz"):
        near = np.where(too_high, np.nextafter(near, down), near)
    if rounding in ("rp", "rz"):
        near = np.where(too_low, np.nextafter(near, up), near)
    return near


def add_f32(a: F32, b: F32, rounding: str) -> F32:
    """a + b with a rounding."""
    return narrow(odd_sum(a.astype(np.float64), b.astype(np.float64)), rounding)


def mul_f32(a: F32, b: F32, rounding: str) -> F32:
    """a * b with a rounding."""
    return narrow(a.astype(np.float64) * b.astype(np.float64), rounding)


def fma_f32(a: F32, b: F32, c: F32, rounding: str = "rn") -> F32:
    """a * b + c, rounded once."""
    return narrow(odd_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)), rounding)


def saturate(x: F32) -> F32:
    """`.sat`: into 0..1, NaN to 0."""
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, x.dtype.type(0), x.dtype.type(1)))


def rint(x: F32, rounding: str) -> F32:
    """To an integral float: rni, rzi, rmi, rpi."""
    return {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding](x)


def to_integer(x: npt.NDArray[np.floating], kind: str, rounding: str) -> npt.NDArray[np.integer]:
    """To an integer type, s32 and the like: out of range saturates, NaN is 0 (of 64 bits: the highest bit)."""
    bits = int(kind[1:])
    info = np.iinfo(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}")
    low, high = int(info.min), int(info.max)
    whole = rint(x.astype(np.float64), rounding)
    limit = np.float64(2.0 ** (bits - (kind[0] == "s")))
    inside = (whole >= low) & (whole < limit)
    out = np.where(inside, whole, 0).astype(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}")
    out[whole >= limit] = high
    out[whole < low] = low
    if bits == 64:
        out[np.isnan(whole)] = low if kind[0] == "s" else 1 << 63
    return out


def from_integer(x: npt.NDArray[np.integer], rounding: str) -> F32:
    """To float32. Integers of 64 bits are split so that nothing is rounded twice."""
    if x.dtype.itemsize < 8:
        return narrow(x.astype(np.float64), rounding)
    high = (x >> x.dtype.type(32)).astype(np.float64) * 2.0**32
    return narrow(odd_sum(high, (x & x.dtype.type(0xFFFFFFFF)).astype(np.float64)), rounding)


def half_bits(x: F32, rounding: str = "rn") -> U16:
    """float32 to the bits of a half; every NaN becomes 0x7fff."""
    half = x.astype(np.float16)
    if rounding == "rz":
        too_far = np.abs(half.astype(np.float32)) > np.abs(x)
        half = np.where(too_far, np.nextafter(half, np.float16(0)), half)
    bits: U16 = half.view(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), bits)


def half_value(bits: U16) -> F32:
    """The bits of a half to float32."""
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


def bfloat_bits(x: F32, rounding: str = "rn") -> U16:
    """float32 to the bits of a bfloat16; every NaN becomes 0x7fff."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    if rounding == "rn":
        bits = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return np.where(np.isnan(x), np.uint32(0x7FFF), bits >> np.uint32(16)).astype(np.uint16)


def bfloat_value(bits: U16) -> F32:
    """The bits of a bfloat16 to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def approximate(name: str, x: F32) -> F32:
    """ex2, lg2, tanh, sin, cos, rsqrt of the `.approx` kind; here correctly rounded."""
    wide = x.astype(np.float64)
    functions = {"ex2": np.exp2, "lg2": np.log2, "tanh": np.tanh, "sin": np.sin, "cos": np.cos}
    value = 1 / np.sqrt(wide) if name == "rsqrt" else functions[name](wide)
    return value.astype(np.float32)


def minimum(a: F32, b: F32) -> F32:
    """Of NaN and a number: the number; -0 is below +0."""
    return np.where((a == b) & np.signbit(a), a, np.fmin(a, b))


def maximum(a: F32, b: F32) -> F32:
    """Of NaN and a number: the number; +0 is above -0."""
    return np.where((a == b) & np.signbit(b), a, np.fmax(a, b))
