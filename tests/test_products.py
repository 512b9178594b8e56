"""matvec and matmul against the float64 reference, on every format, layout, instruction set and odd shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lutkern
from lutkern import reference
from lutkern.tensor import LAYOUTS
from weights import by_name, random_tensor

# Class "reduction": fp32 sums of exact integers, two or three roundings for each 32 columns, in lanes.
N_ULP = 8


def activations(tokens: int, cols: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, cols), np.float32)


@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
def test_matvec_is_the_reference(fmt, layout, isa, shape, exact):
    t = random_tensor(fmt, shape, layout=layout)
    x = activations(1, shape[1])[0]
    error = np.abs(lutkern.matvec(t, x, exact=exact) - reference.matvec(t, x, exact=exact))
    assert np.all(error <= reference.fp32_bound(t, x, n_ulp=N_ULP, exact=exact))


@pytest.mark.parametrize("tokens", [1, 2, 4, 7, 33])
@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
def test_matmul_is_the_reference(fmt, layout, isa, tokens, exact):
    for shape in [(7, 288), (4, 768)]:
        t = random_tensor(fmt, shape, layout=layout)
        x = activations(tokens, shape[1])
        y = lutkern.matmul(t, x, exact=exact)
        assert y.shape == (tokens, shape[0])
        error = np.abs(y - reference.matmul(t, x, exact=exact))
        assert np.all(error <= reference.fp32_bound(t, x, n_ulp=N_ULP, exact=exact))


@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
def test_products_on_a_gpu_are_the_reference(gpu, fmt, shape, exact):
    here = random_tensor(fmt, shape)
    there = here.to(device=gpu)
    x = activations(2, shape[1])
    error = np.abs(lutkern.matmul(there, x, exact=exact) - reference.matmul(here, x, exact=exact))
    assert np.all(error <= reference.fp32_bound(here, x, n_ulp=N_ULP, exact=exact))
    error = np.abs(lutkern.matvec(there, x[0], exact=exact) - reference.matvec(here, x[0], exact=exact))
    assert np.all(error <= reference.fp32_bound(here, x[0], n_ulp=N_ULP, exact=exact))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gpu_never_makes_a_finite_number_of_a_non_finite_one(gpu, fmt, bad):
    t = random_tensor(fmt, (6, 512)).to(device=gpu)
    x = activations(3, 512)
    x[1, 300] = bad
    y = lutkern.matmul(t, x)
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()
    assert not np.isfinite(lutkern.matvec(t, x[1])).any()
    assert not np.isfinite(lutkern.matvec(t, x[1], exact=True)).any()


def test_matmul_rows_are_matvecs(fmt, layout, isa):
    t = random_tensor(fmt, (33, 576), layout=layout)
    x = activations(6, 576)
    y = lutkern.matmul(t, x)
    for token in range(6):
        error = np.abs(y[token] - lutkern.matvec(t, x[token]))
        assert np.all(error <= reference.fp32_bound(t, x[token], n_ulp=N_ULP))


@pytest.mark.parametrize("tokens", [2, 40])
def test_matmul_rows_of_tiles_are_matvecs_to_the_bit(fmt, isa, tokens):
    t = random_tensor(fmt, (33, 576), layout="tiles")
    x = activations(tokens, 576)
    y = lutkern.matmul(t, x)
    for token in range(tokens):
        assert np.array_equal(y[token], lutkern.matvec(t, x[token]))


@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
def test_tokens_in_parts_are_the_reference(layout, isa, exact):
    """So many tokens that they meet the weights in three parts: of 31, 31 and 30 tokens."""
    t = random_tensor(by_name("iq2_xs"), (19, 12800), layout=layout)
    x = activations(92, 12800)
    y = np.full((92, 19), np.nan, np.float32)
    lutkern.matmul(t, x, out=y, exact=exact)
    error = np.abs(y - reference.matmul(t, x, exact=exact))
    assert np.all(error <= reference.fp32_bound(t, x, n_ulp=N_ULP, exact=exact))


def test_one_hot_gives_a_column(fmt, layout, isa):
    t = random_tensor(fmt, (9, 300), layout=layout)
    w = lutkern.dequantize(t)
    for column in (0, 31, 32, 255, 256, 299):
        x = np.zeros(300, np.float32)
        x[column] = 127.0  # quantises to 127 at scale one, exactly
        expected = 127.0 * w[:, column].astype(np.float64)
        error = np.abs(lutkern.matvec(t, x) - expected)
        assert np.all(error <= reference.fp32_bound(t, x, n_ulp=N_ULP))


def test_a_zero_weight_gives_zero_at_any_scale(fmt, layout, isa):
    """The bound is zero there: what a code is stored above its weight must be taken off before anything is rounded."""
    t = random_tensor(fmt, (33, 256), layout=layout)
    for column in (0, 17, 255):
        x = np.zeros(256, np.float32)
        x[column] = 1.117622
        error = np.abs(lutkern.matvec(t, x) - reference.matvec(t, x))
        subnormal = 1e-37  # scales of mxfp4 are that small
        assert np.all(error <= reference.fp32_bound(t, x, n_ulp=N_ULP) + subnormal)


def test_every_isa_has_the_same_integers(fmt, layout):
    """Activations and weights that are exact at every step must give the same bits everywhere."""
    t = random_tensor(fmt, (16, 1024), layout=layout)
    x = activations(1, 1024)[0]
    results = {}
    for name in lutkern.isas():
        lutkern.use_isa(name)
        results[name] = (lutkern.dequantize(t), lutkern.matvec(t, x))
    lutkern.use_isa(None)
    weights, scalar = results["scalar"]
    bound = reference.fp32_bound(t, x, n_ulp=N_ULP)
    for other_weights, other in results.values():
        assert np.array_equal(other_weights.view(np.uint32), weights.view(np.uint32))
        assert np.all(np.abs(other - scalar) <= bound)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_activations_quantise_alike_everywhere(isa, scale):
    x = activations(1, 1000)[0] * np.float32(scale)
    x[32:64] = 0.0
    x[64:96] = np.float32(1e-39)
    q, d = lutkern._core.quantize_activations(x, 0)
    expected = reference.quantize_activations(x)
    assert np.array_equal(q, expected.q.reshape(-1)[:1000])
    assert np.array_equal(d, expected.scale.reshape(-1)[: len(d)])


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=70))
def test_any_activation_quantises_like_the_reference(values):
    x = np.array(values, np.float32)
    expected = reference.quantize_activations(x)
    for name in lutkern.isas():
        lutkern.use_isa(name)
        q, d = lutkern._core.quantize_activations(x, 0)
        assert np.array_equal(q, expected.q.reshape(-1)[: len(x)])
        assert np.array_equal(d, expected.scale.reshape(-1)[: len(d)], equal_nan=True)
    lutkern.use_isa(None)


def test_int8_activations_cost_less_than_a_percent_on_gaussian_input():
    w = np.random.default_rng(0).standard_normal((256, 4096), np.float32)
    t = lutkern.pack(w, "q8_0")
    x = activations(8, 4096)
    exact = lutkern.matmul(t, x, exact=True)
    error = np.linalg.norm(lutkern.matmul(t, x) - exact) / np.linalg.norm(exact)
    assert 0.001 < error < 0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_activation_never_gives_a_finite_output(fmt, layout, isa, bad):
    t = random_tensor(fmt, (6, 512), layout=layout)
    x = activations(3, 512)
    x[1, 300] = bad
    y = lutkern.matmul(t, x)
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()
    assert not np.isfinite(lutkern.matvec(t, x[1])).any()
    assert not np.isfinite(lutkern.matvec(t, x[1], exact=True)).any()


def test_threads_never_change_a_bit(fmt, layout, all_threads):
    t = random_tensor(fmt, (530, 512), layout=layout)
    x = activations(3, 512)
    results = []
    for threads in (1, 2, 5):
        lutkern.set_num_threads(threads)
        results.append((lutkern.matvec(t, x[0]), lutkern.matmul(t, x), lutkern.dequantize(t)))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_large_row_count_and_many_columns(layout, isa):
    t = random_tensor(by_name("iq2_xxs"), (3, 40_960), layout=layout)
    x = activations(1, 40_960)[0]
    error = np.abs(lutkern.matvec(t, x) - reference.matvec(t, x))
    assert np.all(error <= reference.fp32_bound(t, x, n_ulp=4 * N_ULP))


@given(st.data())
def test_any_bytes_with_finite_scales_are_a_weight(data):
    fmt = data.draw(st.sampled_from(lutkern.formats()))
    rows = data.draw(st.integers(1, 9))
    cols = data.draw(st.integers(1, 600))
    layout = data.draw(st.sampled_from(list(LAYOUTS)))
    t = random_tensor(fmt, (rows, cols), seed=data.draw(st.integers(0, 2**16)), layout=layout)
    x = activations(1, cols, seed=data.draw(st.integers(0, 2**16)))[0]
    error = np.abs(lutkern.matvec(t, x) - reference.matvec(t, x))
    assert np.all(error <= reference.fp32_bound(t, x, n_ulp=N_ULP))
