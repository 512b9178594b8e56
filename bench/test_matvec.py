"""Matrix times vector: lutkern in each layout beside ggml and float32 products."""

from __future__ import annotations

from typing import Any

import rivals
from lutkern.bench.work import Matrices
from side_by_side import in_float32, packed

RIVALS = ("ggml", *rivals.FLOAT_RIVALS)


def test_matvec(
    benchmark: Any,
    fmt: str,
    shape: tuple[int, int],
    who: str,
    matrices: Matrices,
    threads: int,
    n_bytes: int,
    bandwidth: float,
) -> None:
    rows, cols = shape
    benchmark.group = f"matvec {fmt} {rows}x{cols}"
    if who not in rivals.FLOAT_RIVALS:
        packed(benchmark, matrices, "matvec", who, 1, threads, bandwidth)
        return
    rivals.set_threads(who, threads)
    products = rivals.FloatProducts(who, matrices.tensor("blocks"), 1, n_bytes)
    in_float32(benchmark, products.step, 1, threads, rows * cols, bandwidth)
