"""Memory for tiles: aligned, on large pages where the system gives them, untouched until it is written."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import numpy.typing as npt

_LINE = 64  # bytes of a cache line
_PAGE = 2 << 20  # bytes of a large page


def aligned_bytes(n: int) -> npt.NDArray[np.uint8]:
    """Return `n` bytes, uint8, not yet written, aligned to 64; from 2 MiB on aligned to 2 MiB and on large pages.

    A page gets its place in memory when it is first written: by the threads that make the tiles, on their NUMA node.
    """
    align = _LINE if n < _PAGE else _PAGE
    if n < _PAGE:
        whole = np.empty(n + align, np.uint8)
    else:
        region = mmap.mmap(-1, n + align)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                region.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(region, np.uint8)
    skip = -whole.ctypes.data % align
    return whole[skip : skip + n]
