"""What the lanes of a warp do together: shuffles, votes, reductions, matrix units.

ids: the lanes that take part, ascending, as positions in the batch; 32 of them are a warp. Other arrays are beside ids.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .memory import Fault, Shared

U32 = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def shuffle(mode: str, a: U32, b: U32, c: U32, ids: Ints) -> tuple[U32, Bools]:
    """`shfl.sync`: the value of another lane, and whether that lane is in range."""
    lane = ids & 31
    step, clamp, segment = (b & np.uint32(31)).astype(np.int64), c.astype(np.int64) & 31, (c.astype(np.int64) >> 8) & 31
    low, last = lane & segment, (lane & segment) | (clamp & ~segment)
    if mode == "idx":
        other = low | (step & ~segment)
    else:
        other = {"up": lane - step, "down": lane + step, "bfly": lane ^ step}[mode]
    inside = other >= last if mode == "up" else other <= last
    wanted = (ids & ~np.int64(31)) + np.where(inside, other, lane)
    position = np.searchsorted(ids, wanted)
    position[position == len(ids)] = 0
    absent = ids[position] != wanted
    if absent.any():
        at = int(np.flatnonzero(absent)[0])
        raise Fault(at, f"takes the value of lane {wanted[at] & 31}, which does not take part")
    return a[position], inside


def _groups(mask: U32, ids: Ints) -> tuple[int, Ints]:
    """Lanes that share warp and mask: number of groups, group of each lane."""
    keys, inverse = np.unique((ids >> 5) << 32 | mask.astype(np.int64), return_inverse=True)
    return len(keys), inverse.reshape(-1)


def vote(mode: str, value: Bools, mask: U32, ids: Ints) -> npt.NDArray[np.generic]:
    """`vote.sync`: ballot (u32), any, all, uni (bool)."""
    count, group = _groups(mask, ids)
    bits = np.zeros(count, np.uint32)
    np.bitwise_or.at(bits, group, np.where(value, np.uint32(1) << (ids & 31).astype(np.uint32), np.uint32(0)))
    if mode == "ballot":
        return bits[group]
    yes = np.bincount(group, weights=value, minlength=count)
    of = np.bincount(group, minlength=count)
    answer = {"any": yes > 0, "all": yes == of, "uni": (yes == of) | (yes == 0)}[mode]
    return answer[group]


def reduce(mode: str, value: npt.NDArray[np.integer], mask: U32, ids: Ints) -> npt.NDArray[np.integer]:
    """`redux.sync`: add, min, max, and, or, xor."""
    count, group = _groups(mask, ids)
    info = np.iinfo(value.dtype)
    start = {"min": info.max, "max": info.min, "and": -1 if info.min < 0 else info.max}.get(mode, 0)
    out = np.full(count, start, value.dtype)
    functions: dict[str, np.ufunc] = {"add": np.add, "min": np.minimum, "max": np.maximum}
    functions |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    functions[mode].at(out, group, value)
    return out[group]


def active(ids: Ints) -> U32:
    """`activemask`."""
    full = np.full(len(ids), 0xFFFFFFFF, np.uint32)
    return vote("ballot", np.ones(len(ids), bool), full, ids)  # type: ignore[return-value]


def _bytes(registers: list[U32], kind: str) -> npt.NDArray[np.int32]:
    """Registers of whole warps to warps x 32 lanes x registers x elements."""
    table = np.ascontiguousarray(np.stack(registers, -1)).reshape(-1, 32, len(registers))
    if kind in ("s8", "u8"):
        return table.view(np.int8 if kind == "s8" else np.uint8).reshape(*table.shape, 4).astype(np.int32)
    raise ValueError(kind)


def _fragment(parts: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Lanes as 8 groups of 4, the elements of a group along a row: warps x 8 x registers x (4 * elements)."""
    warps, _, registers, elements = parts.shape
    return (
        parts.reshape(warps, 8, 4, registers, elements)
        .transpose(0, 1, 3, 2, 4)
        .reshape(warps, 8, registers, 4 * elements)
    )


def matrix_multiply(shape: str, a: list[U32], b: list[U32], c: list[U32], a_kind: str, b_kind: str) -> list[U32]:
    """`mma.sync` of bytes: m16n8k32, m16n8k16, m8n8k16. The lanes are whole warps.

    A register of a holds four columns of a row: lane / 4 in the first register, that plus 8 in the second; in the third
    and fourth the columns from 16 on. A register of b holds four rows of column lane / 4. c: two columns of a row.
    """
    left, right = _fragment(_bytes(a, a_kind)), _fragment(_bytes(b, b_kind))
    if shape == "m8n8k16":
        rows, columns = left[:, :, 0], right[:, :, 0]
    else:
        half = 2 if shape == "m16n8k32" else 1
        rows = np.concatenate([np.concatenate([left[:, :, 2 * k + r] for k in range(half)], -1) for r in (0, 1)], 1)
        columns = np.concatenate([right[:, :, k] for k in range(half)], -1)
    return _accumulate(np.matmul(rows, columns.transpose(0, 2, 1)), c)


def _accumulate(product: npt.NDArray[np.generic], c: list[U32]) -> list[U32]:
    """warps x m x 8 integers to the registers of each lane, added to c."""
    lanes = product.reshape(len(product), -1, 8, 4, 2)  # warps, upper and lower rows, row, lane in the row, columns
    out = []
    for half in range(lanes.shape[1]):
        for column in (0, 1):
            value = lanes[:, half, :, :, column].reshape(-1).astype(np.uint32)
            out.append(value + c[2 * half + column])
    return out


def load_matrices(shared: Shared, address: U32, count: int, transposed: bool, ids: Ints) -> list[U32]:
    """`ldmatrix`: count 8 x 8 matrices of 16-bit elements; lanes 8 k .. 8 k + 7 name the rows of matrix k."""
    chosen = np.flatnonzero((ids & 31) < 8 * count)
    try:
        rows = shared.load(ids[chosen], address[chosen], 8, 2)
    except Fault as fault:
        raise Fault(int(chosen[fault.lane]), str(fault)) from None
    matrices = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, count, 8, 8)
    if transposed:
        matrices = matrices.transpose(0, 1, 3, 2)
    words = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, count, 32)
    return [words[:, k].reshape(-1).copy() for k in range(count)]
