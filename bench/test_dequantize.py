"""Packed to float32: lutkern in each layout beside ggml."""

from __future__ import annotations

from typing import Any

from lutkern.bench.work import Matrices
from side_by_side import packed

RIVALS = ("ggml",)


def test_dequantize(
    benchmark: Any, fmt: str, shape: tuple[int, int], who: str, matrices: Matrices, threads: int, bandwidth: float
) -> None:
    benchmark.group = f"dequantize {fmt} {shape[0]}x{shape[1]}"
    packed(benchmark, matrices, "dequantize", who, 1, threads, bandwidth)
