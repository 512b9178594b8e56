"""How fast this machine reads memory: the roofline."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

_PARTS = 4  # steps that one array lasts


class Reader:
    """Reads large arrays with several threads, as fast as NumPy can.

    The read is the maximum of bytes, ``ndarray.max`` on uint8: vector code that was as fast as the C library's
    ``memchr`` where it was tried, and faster than sums of floats, which are bound by their additions. Each thread has
    an array of its own; a step reads the next quarter of each, so that what is read has long left the caches.

    Parameters
    ----------
    threads
        Threads that read at the same time.
    n_bytes
        Size of the array of each thread; 256 MB unless a test asks for less.
    """

    def __init__(self, threads: int, n_bytes: int) -> None:
        part = max(1, n_bytes // _PARTS)
        self._arrays = [np.ones((_PARTS, part), np.uint8) for _ in range(threads)]
        # One thread is the calling one, whose CPU time may be what counts.
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._turn = 0
        self.bytes_per_step = threads * part

    def step(self) -> None:
        """Read `bytes_per_step` bytes."""
        parts = [array[self._turn % _PARTS] for array in self._arrays]
        self._turn += 1
        if self._pool is None:
            parts[0].max()
        else:
            list(self._pool.map(np.ndarray.max, parts))

    def rest(self) -> None:
        """Nothing to do: idle threads sleep."""

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
