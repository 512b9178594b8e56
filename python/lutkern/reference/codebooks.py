"""The codebooks as arrays of int8, and the rule for the eighth sign."""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt

from . import _codebooks


def _grid(text: str, columns: int, values: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """Return the rows that ``text`` packs, int8 (n_rows, columns)."""
    bits = (len(values) - 1).bit_length()
    rows = np.frombuffer(base64.b64decode(text), dtype="<u2").astype(np.int64)
    codes = (rows[:, None] >> (bits * np.arange(columns))) & ((1 << bits) - 1)
    return np.take(np.array(values, dtype=np.int8), codes)


IQ1 = _grid(_codebooks.IQ1_CODES, 8, (-1, 0, 1))
IQ2_XXS = _grid(_codebooks.IQ2_XXS_CODES, 8, (8, 25, 43))
IQ2_XS = _grid(_codebooks.IQ2_XS_CODES, 8, (8, 25, 43))
IQ2_S = _grid(_codebooks.IQ2_S_CODES, 8, (8, 25, 43))
IQ3_XXS = _grid(_codebooks.IQ3_XXS_CODES, 4, (4, 12, 20, 28, 36, 44, 52, 62))
IQ3_S = _grid(_codebooks.IQ3_S_CODES, 4, (1, 3, 5, 7, 9, 11, 13, 15))

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8)
"""The sixteen values of iq4_nl and iq4_xs."""

FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8)
"""The sixteen values of mxfp4, doubled so that they are integers."""


def signs_of_bits(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Return +1 or -1, int32 (..., 8), for 8-bit codes (...): a set bit is a minus."""
    return (1 - 2 * ((codes[..., None].astype(np.int32) >> np.arange(8, dtype=np.int32)) & 1)).astype(np.int32)


def signs_of_seven_bits(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Return +1 or -1, int32 (..., 8), for 7-bit codes (...): the eighth sign makes the number of minus signs even."""
    signs = signs_of_bits(codes)
    signs[..., 7] = np.prod(signs[..., :7], axis=-1)
    return signs
