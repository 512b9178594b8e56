"""matvec and matmul beside ggml, in one run: pytest bench --benchmark-group-by=group

Each row says in extra_info: format, tokens, threads, kernel, G weights/s of the median, GB/s of packed bytes,
and the relative error against the dequantised weights in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lutkern
from rivals import Ggml, GgmlProducts, rotating
from shapes import FAST_FORMATS

TOKENS = (1, 4, 16, 64)


def inputs(t: lutkern.PackedTensor, tokens: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((tokens, t.shape[2]), np.float32)


def describe(benchmark: Any, t: lutkern.PackedTensor, tokens: int, threads: int, error: float) -> None:
    seconds = benchmark.stats.stats.median
    benchmark.extra_info.update(
        format=str(t.format),
        tokens=tokens,
        threads=threads,
        kernel=lutkern.supports(t.format, "matvec" if tokens == 1 else "matmul"),
        gweights_per_s=round(t.shape[1] * t.shape[2] * tokens / seconds / 1e9, 2),
        gbytes_per_s=round(t.nbytes / t.shape[0] / seconds / 1e9, 2),
        relative_error=float(f"{error:.2g}"),
    )


def relative_error(t: lutkern.PackedTensor, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> float:
    exact = x @ lutkern.dequantize(t[0]).T
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("fmt", FAST_FORMATS)
def test_lutkern(benchmark: Any, fmt: str, tokens: int, weights: lutkern.PackedTensor, threads: int) -> None:
    benchmark.group = f"{fmt}, {tokens} tokens"
    experts = [weights[e] for e in range(weights.shape[0])]
    x = inputs(weights, tokens)
    out = np.empty((tokens, weights.shape[1]), np.float32)

    def one(e: int) -> None:
        if tokens == 1:
            lutkern.matvec(experts[e], x[0], out=out[0])
        else:
            lutkern.matmul(experts[e], x, out=out)

    benchmark(rotating(one, len(experts)))
    one(0)
    error = relative_error(weights, x, out)
    assert error < 0.02
    describe(benchmark, weights, tokens, threads, error)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("fmt", FAST_FORMATS)
def test_ggml(benchmark: Any, fmt: str, tokens: int, weights: lutkern.PackedTensor, threads: int, ggml: Ggml) -> None:
    benchmark.group = f"{fmt}, {tokens} tokens"
    x = inputs(weights, tokens)
    products = GgmlProducts(ggml, weights.format.ggml_type, weights.blocks(), x, threads)
    benchmark(rotating(products.run, weights.shape[0]))
    products.run(0)
    error = relative_error(weights, x, products.out[0])
    products.close()
    assert error < 0.05
    describe(benchmark, weights, tokens, threads, error)
    benchmark.extra_info["kernel"] = "ggml"
