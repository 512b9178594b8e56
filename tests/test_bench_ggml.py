"""ggml as the rival of `lutkern bench`: it computes the same as lutkern, or it does not run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import lutkern
from lutkern.bench import ggml, weights
from lutkern.bench.work import Layer, Matrices, relative_error
from lutkern.formats import find_format
from lutkern.tensor import LAYOUTS


@pytest.fixture
def rival() -> ggml.Ggml:
    found = ggml.load()
    if found is None:
        pytest.skip("no package with ggml is installed")
    return found


@pytest.mark.parametrize("op", ["matvec", "matmul", "dequantize"])
def test_work_on_matrices(op: str, integer: lutkern.Format, rival: ggml.Ggml) -> None:
    matrices = Matrices(integer, 24, 512, 1, rival)
    tokens = 5 if op == "matmul" else 1
    for layout in LAYOUTS:
        work = matrices.work(op, layout, tokens, threads=2)
        assert (work.weights, work.experts) == (24 * 512 * tokens, 2)
        assert work.n_bytes == pytest.approx(24 * 512 * work.bits_per_weight / 8)
        assert work.theirs is not None
        assert work.rival_error is not None
        if op == "dequantize":
            assert (work.error, work.rival_error) == (0, 0)
        else:
            assert 0 < work.error < 0.015
            assert 0 < work.rival_error < 0.03
        for _ in range(3):
            work.ours.step()
            work.theirs.step()
        work.theirs.rest()
        work.close()


def test_work_on_a_layer(integer: lutkern.Format, rival: ggml.Ggml) -> None:
    layer = Layer(integer, 256, 512, 1, rival)
    for layout in LAYOUTS:
        work = layer.work("moe", layout, 3, threads=2)
        assert (work.weights, work.experts) == (3 * 8 * 3 * 256 * 512, 16)
        assert work.rival_error is not None
        assert 0 < work.error < 0.03
        assert 0 < work.rival_error < 0.06
        used = np.mean([len(set(call.ravel())) for call in weights.routes(16, 3)])
        assert work.n_bytes == pytest.approx(used * 3 * 256 * 512 * work.bits_per_weight / 8)
        work.close()


def test_a_format_that_the_rival_lacks_runs_alone(rival: ggml.Ggml) -> None:
    padded = Matrices(find_format("iq2_xs"), 24, 288, 1, rival).work("matvec", "blocks", 1, 1)
    assert padded.theirs is None
    assert padded.rival_error is None
    assert padded.error < 0.015
    assert Matrices(find_format("f32"), 24, 256, 1, rival).work("dequantize", "blocks", 1, 1).theirs is None
    assert Layer(find_format("iq2_xs"), 32, 256, 1, rival).work("moe", "blocks", 1, 1).theirs is None


def test_ggml_multiplies_with_the_matrix_that_it_is_told(rival: ggml.Ggml) -> None:
    fmt = find_format("iq3_s")
    blocks = ggml.aligned(weights.random_blocks(fmt, (3, 16, 256)))
    exact = lutkern.dequantize(lutkern.PackedTensor.from_blocks(blocks, fmt, (3, 16, 256)))
    x = np.random.default_rng(5).standard_normal((4, 256), np.float32)
    products = ggml.GgmlProducts(rival, fmt, blocks, x, 2)
    for e in (2, 0, 1):
        assert relative_error(products.compute(e), x @ exact[e].T) < 0.03
    for _ in range(2):
        products.step()
    assert relative_error(products.out, x @ exact[1].T) < 0.03
    products.close()
    decoded = ggml.GgmlDequantize(rival, fmt, blocks, 256, 3)
    assert np.array_equal(decoded.compute(1), exact[1])
    decoded.close()


def test_ggml_runs_the_experts_of_each_call(rival: ggml.Ggml) -> None:
    fmt, (tokens, k, hidden, inter) = find_format("q8_0"), (2, 8, 64, 96)
    sizes = [(8, inter, hidden), (8, inter, hidden), (8, hidden, inter)]
    blocks = [weights.random_blocks(fmt, size, seed) for seed, size in enumerate(sizes)]
    gate, up, down = (lutkern.PackedTensor.from_blocks(b, fmt, size) for b, size in zip(blocks, sizes, strict=True))
    routes = weights.routes(8, tokens)
    x = np.random.default_rng(5).standard_normal((tokens, hidden), np.float32)
    layer = ggml.GgmlMoe(rival, fmt, [ggml.aligned(b) for b in blocks], x, routes, 2)
    for call in (1, 0):
        exact = lutkern.moe(x, routes[call], np.ones((tokens, k), np.float32), gate, up, down, exact=True)
        assert relative_error(layer.compute(call).sum(1), exact) < 0.03
    layer.close()


def test_ggml_says_what_it_knows(rival: ggml.Ggml) -> None:
    fmt = find_format("iq1_s")
    assert rival.supports(fmt, 512)
    assert not rival.supports(fmt, 288)
    assert not rival.supports(replace(fmt, name="iq9_z"), 512)
    assert rival.decodes(fmt)
    assert not rival.decodes(find_format("f32"))
    assert rival.name.split()[0] in {"llama-cpp-python", "libggml-python"}


def test_ggml_without_a_package_or_too_old_is_no_rival(rival: ggml.Ggml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ggml._BASE, "ggml_of_another_time", (None,))
    assert ggml.load.__wrapped__() is None
    monkeypatch.undo()
    assert ggml.load.__wrapped__() is not None
    monkeypatch.setattr(ggml, "_PACKAGES", (("none", "no_such_module", "lib"),))
    assert ggml.load.__wrapped__() is None


def test_ggml_that_fails_is_an_error(rival: ggml.Ggml, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = find_format("q8_0")
    blocks = ggml.aligned(weights.random_blocks(fmt, (1, 4, 32)))
    products = ggml.GgmlProducts(rival, fmt, blocks, np.ones((1, 32), np.float32), 1)
    monkeypatch.setattr(rival.cpu, "ggml_graph_compute", lambda graph, plan: -1)
    with pytest.raises(RuntimeError, match=r"^bench: ggml failed to compute a graph$"):
        products.step()
    products.close()
