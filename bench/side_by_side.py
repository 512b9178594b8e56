"""One contestant of a group, and what its row says in extra_info.

format (that of the bytes it reads), tokens, threads, G weights/s of the median, GB/s of these bytes, % of the roofline,
and the relative error against float64 on the decoded weights.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from lutkern.bench.work import Layer, Matrices

MOST_ERROR = 0.05  # of a product, relative


def packed(
    benchmark: Any, weights: Matrices | Layer, op: str, who: str, tokens: int, threads: int, bandwidth: float
) -> None:
    """Measure lutkern in the layout `who`, or ggml, on packed weights; skip what cannot run."""
    layout = "blocks" if who == "ggml" else who
    with closing(weights.work(op, layout, tokens, threads)) as work:
        contestant, error = (work.theirs, work.rival_error) if who == "ggml" else (work.ours, work.error)
        if contestant is None or error is None:
            pytest.skip("ggml is not installed, or does not run this")
        assert error < MOST_ERROR
        benchmark(contestant.step)
        benchmark.extra_info["relative_error"] = float(f"{error:.2g}")
        describe(benchmark, weights.fmt.name, tokens, threads, work.weights, work.n_bytes, bandwidth)


def in_float32(
    benchmark: Any, step: Callable[[], None], tokens: int, threads: int, macs: int, bandwidth: float
) -> None:
    """Measure a rival that multiplies with float32 weights `macs` times, each weight once for each token."""
    benchmark(step)
    describe(benchmark, "f32", tokens, threads, macs, 4 * macs / tokens, bandwidth)


def describe(benchmark: Any, fmt: str, tokens: int, threads: int, macs: int, n_bytes: float, bandwidth: float) -> None:
    benchmark.extra_info.update(format=fmt, tokens=tokens, threads=threads)
    if benchmark.stats is not None:  # None with --benchmark-disable
        seconds = benchmark.stats.stats.median
        benchmark.extra_info.update(
            gweights_per_s=round(macs / seconds / 1e9, 2),
            gbytes_per_s=round(n_bytes / seconds / 1e9, 2),
            percent_of_roofline=round(100 * n_bytes / seconds / bandwidth, 1),
        )
