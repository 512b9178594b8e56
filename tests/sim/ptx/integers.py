"""Integer arithmetic as the PTX ISA defines it, on arrays of unsigned or signed integers, where NumPy has another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]


def shift_left(a: Ints, n: U32) -> Ints:
    """`shl`: counts past the width give 0."""
    bits = 8 * a.dtype.itemsize
    return np.where(n >= bits, a.dtype.type(0), a << (n & np.uint32(bits - 1)).astype(a.dtype))


def shift_right(a: Ints, n: U32) -> Ints:
    """`shr`: counts past the width act as the width less one, or give 0 where there is no sign."""
    bits = 8 * a.dtype.itemsize
    if a.dtype.kind == "i":
        return a >> np.minimum(n, np.uint32(bits - 1)).astype(a.dtype)
    return np.where(n >= bits, a.dtype.type(0), a >> (n & np.uint32(bits - 1)).astype(a.dtype))


def high(a: Ints, b: Ints) -> Ints:
    """`mul.hi`."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)
    low, ah, bh = np.uint64(0xFFFFFFFF), a >> a.dtype.type(32), b >> b.dtype.type(32)
    al, bl = a.astype(np.uint64) & low, b.astype(np.uint64) & low
    if a.dtype.kind == "i":
        middle = ah * bl.astype(np.int64) + ((al * bl) >> np.uint64(32)).astype(np.int64)
        rest = al.astype(np.int64) * bh + (middle & np.int64(0xFFFFFFFF))
        return ah * bh + (middle >> np.int64(32)) + (rest >> np.int64(32))
    middle = ah * bl + ((al * bl) >> np.uint64(32))
    rest = al * bh + (middle & low)
    return ah * bh + (middle >> np.uint64(32)) + (rest >> np.uint64(32))


def divide(a: Ints, b: Ints) -> Ints:
    """`div`: rounds towards zero; by zero: all bits one."""
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient = quotient + ((quotient * safe != a) & ((a < 0) != (safe < 0))).astype(a.dtype)
        return np.where(zero, a.dtype.type(-1), quotient)
    return np.where(zero, a.dtype.type(np.iinfo(a.dtype).max), quotient)


def remainder(a: Ints, b: Ints) -> Ints:
    """`rem`: has the sign of a; by zero: a."""
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    return np.where(zero, a, np.fmod(a, safe))


def saturating(a: Ints, b: Ints, sign: int) -> Ints:
    """`add.sat.s32` (sign 1), `sub.sat.s32` (-1)."""
    return np.clip(a.astype(np.int64) + sign * b.astype(np.int64), -(1 << 31), (1 << 31) - 1).astype(np.int32)


def population(a: Ints) -> U32:
    """`popc`."""
    return np.bitwise_count(a).astype(np.uint32)


def leading_zeros(a: Ints) -> U32:
    """`clz` of an unsigned array."""
    bits = 8 * a.dtype.itemsize
    filled = a
    for shift in (1, 2, 4, 8, 16, 32)[: 6 if bits == 64 else 5]:
        filled = filled | (filled >> filled.dtype.type(shift))
    return (bits - np.bitwise_count(filled).astype(np.int32)).astype(np.uint32)


def reverse(a: Ints) -> Ints:
    """`brev` of an unsigned array."""
    raw = np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1)[:, ::-1]
    turned = np.packbits(np.unpackbits(raw, axis=1, bitorder="big"), axis=1, bitorder="little")
    return np.ascontiguousarray(turned).view(a.dtype)[:, 0]


def find_first(a: Ints, amount: bool) -> U32:
    """`bfind`: position of the highest bit that is no sign, or all ones; amount: the shift that brings it up."""
    bits = 8 * a.dtype.itemsize
    plain = np.where(a < 0, ~a, a) if a.dtype.kind == "i" else a
    zeros = leading_zeros(plain.astype(f"u{bits // 8}"))
    found = zeros if amount else np.uint32(bits - 1) - zeros
    return np.where(plain == 0, np.uint32(0xFFFFFFFF), found)


def extract(a: Ints, start: U32, length: U32) -> Ints:
    """`bfe`: length bits from bit start, sign or zero before them."""
    bits = 8 * a.dtype.itemsize
    p, n = (start & np.uint32(255)).astype(np.int64), (length & np.uint32(255)).astype(np.int64)
    word = a.view(f"u{bits // 8}")
    field = shift_right(word, p.astype(np.uint32)) & _mask(n, bits)
    if a.dtype.kind == "u":
        return field
    top = np.minimum(p + n - 1, bits - 1).astype(np.uint32)
    sign = (n > 0) & ((shift_right(word, top) & word.dtype.type(1)) != 0)
    filled = np.where(sign, field | ~_mask(np.minimum(n, np.maximum(bits - p, 0)), bits), field)
    return filled.view(a.dtype)


def insert(a: Ints, b: Ints, start: U32, length: U32) -> Ints:
    """`bfi`: the low length bits of a put into b from bit start."""
    bits = 8 * a.dtype.itemsize
    p, n = start & np.uint32(255), (length & np.uint32(255)).astype(np.int64)
    mask = shift_left(_mask(n, bits), p)
    return (b & ~mask) | (shift_left(a, p) & mask)


def _mask(n: npt.NDArray[np.int64], bits: int) -> Ints:
    kind = np.uint32 if bits == 32 else np.uint64
    ones = ~np.zeros(np.shape(n), kind)
    return np.where(n == 0, kind(0), ones >> np.clip(bits - n, 0, bits - 1).astype(kind))


def field_mask(start: U32, length: U32, clamp: bool) -> U32:
    """`bmsk`: length ones from bit start."""
    if not clamp:
        start, length = start & np.uint32(31), length & np.uint32(31)
    return shift_left(_mask(np.minimum(length, 32).astype(np.int64), 32), start)  # type: ignore[return-value]


def funnel(low: U32, up: U32, n: U32, left: bool, clamp: bool) -> U32:
    """`shf`: 64 bits up:low shifted; the high word of a left, the low word of a right shift."""
    count = (np.minimum(n, np.uint32(32)) if clamp else n & np.uint32(31)).astype(np.uint64)
    both = low.astype(np.uint64) | up.astype(np.uint64) << np.uint64(32)
    if left:
        return ((both << count) >> np.uint64(32)).astype(np.uint32)
    return (both >> count).astype(np.uint32)


def permute(a: U32, b: U32, selector: U32) -> U32:
    """`prmt`: each nibble of the selector names a byte of b:a; its bit 3 repeats that byte's sign."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.zeros(np.broadcast(both, selector).shape, np.uint32)
    for k in range(4):
        nibble = (selector >> np.uint32(4 * k)) & np.uint32(15)
        byte = (both >> (nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8)).astype(np.uint32) & np.uint32(255)
        byte = np.where(nibble > 7, (byte >> np.uint32(7)) * np.uint32(255), byte)
        out |= byte << np.uint32(8 * k)
    return out


def logic(a: Ints, b: Ints, c: Ints, table: int) -> Ints:
    """`lop3`: bit 4 a + 2 b + c of the table."""
    out = np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            out |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return out


def dot4(a: U32, b: U32, c: U32, a_signed: bool, b_signed: bool) -> U32:
    """`dp4a`: c + the sum of four products of bytes."""
    left, right = _bytes(a, a_signed), _bytes(b, b_signed)
    return (left * right).sum(1, dtype=np.int32).view(np.uint32) + c


def dot2(a: U32, b: U32, c: U32, a_signed: bool, b_signed: bool, upper: bool) -> U32:
    """`dp2a`: c + the sum of two products, half words of a with the lower or upper two bytes of b."""
    left = np.ascontiguousarray(a).view(np.int16 if a_signed else np.uint16).reshape(-1, 2).astype(np.int64)
    right = _bytes(b, b_signed)[:, 2:] if upper else _bytes(b, b_signed)[:, :2]
    return (left * right).sum(1).astype(np.uint32) + c


def _bytes(a: U32, signed: bool) -> npt.NDArray[np.int32]:
    return np.ascontiguousarray(a).view(np.int8 if signed else np.uint8).reshape(-1, 4).astype(np.int32)


def saturate(a: Ints, kind: str) -> Ints:
    """`cvt.sat`: the nearest value that the type has."""
    info = np.iinfo(kind)
    low, high_ = max(int(info.min), int(np.iinfo(a.dtype).min)), min(int(info.max), int(np.iinfo(a.dtype).max))
    return np.clip(a, a.dtype.type(low), a.dtype.type(high_)).astype(kind)
