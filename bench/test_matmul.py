"""Matrix times several vectors: lutkern in each layout beside ggml and float32 products.

The numbers of tokens are those of speculative decoding, of busy experts and of prompts, and the neighbours of 32, where
kernels change.
"""

from __future__ import annotations

from typing import Any

import pytest

import rivals
from lutkern.bench.work import Matrices
from side_by_side import in_float32, packed

RIVALS = ("ggml", *rivals.FLOAT_RIVALS)
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 31, 32, 33, 48, 64, 128, 512)


@pytest.mark.parametrize("tokens", TOKENS)
def test_matmul(
    benchmark: Any,
    fmt: str,
    shape: tuple[int, int],
    tokens: int,
    who: str,
    matrices: Matrices,
    threads: int,
    n_bytes: int,
    bandwidth: float,
) -> None:
    rows, cols = shape
    benchmark.group = f"matmul {fmt} {rows}x{cols}, {tokens} tokens"
    if who not in rivals.FLOAT_RIVALS:
        packed(benchmark, matrices, "matmul", who, tokens, threads, bandwidth)
        return
    rivals.set_threads(who, threads)
    products = rivals.FloatProducts(who, matrices.tensor("blocks"), tokens, n_bytes)
    in_float32(benchmark, products.step, tokens, threads, rows * cols * tokens, bandwidth)
