"""The expert layer, 8 experts per token: lutkern in each layout beside ggml; for one token beside float32, too."""

from __future__ import annotations

from typing import Any

import pytest

import rivals
from lutkern.bench.work import Layer
from side_by_side import in_float32, packed

RIVALS = ("ggml", *rivals.FLOAT_RIVALS)
TOKENS = (1, 4, 16, 64, 512)


@pytest.mark.parametrize("tokens", TOKENS)
def test_moe(
    benchmark: Any,
    fmt: str,
    shape: tuple[int, int],
    tokens: int,
    who: str,
    layer: Layer,
    threads: int,
    n_bytes: int,
    bandwidth: float,
) -> None:
    rows, cols = shape
    benchmark.group = f"moe {fmt} {rows}x{cols}, {tokens} tokens"
    if who not in rivals.FLOAT_RIVALS:
        packed(benchmark, layer, "moe", who, tokens, threads, bandwidth)
        return
    if tokens > 1:
        pytest.skip("float32 rivals run one token")
    rivals.set_threads(who, threads)
    experts = rivals.FloatExperts(who, layer.tensors("blocks"), n_bytes)
    in_float32(benchmark, experts.step, 1, threads, 8 * 3 * rows * cols, bandwidth)
