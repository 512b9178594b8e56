"""Metal kernels of several tokens: a token gets the same whatever tokens it meets, and whoever does the work."""

from __future__ import annotations

import numpy as np
import pytest

from lutkern import reference
from metal_launch import Shape, experts, product
from sim.layers import Layer, expert_layer, numbers, random_weight

PAIR = ("moe_up_batch", "moe_down_batch")
N_ULP = 8


def layer_of(**options: int) -> Layer:
    return expert_layer("iq2_xxs", "iq2_xxs", "iq2_xs", **options)


def assert_layer(layer: Layer, seed: int = 0) -> None:
    y = experts(PAIR, layer, shape=Shape(seed=seed)).y
    assert np.all(np.abs(y - layer.expected()) <= layer.bound(N_ULP))


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 9, 17])
def test_a_token_gets_the_same_whatever_tokens_meet_its_experts(tokens):
    """Alone it is multiplied by one way, with more than 4 others by matrices, and the 17th begins another round."""
    layer = layer_of(tokens=20, k=1, experts=1, seed=1)
    y = experts(PAIR, layer).y
    layer.x, layer.ids, layer.weights = layer.x[-tokens:], layer.ids[-tokens:], layer.weights[-tokens:]
    assert np.array_equal(experts(PAIR, layer).y, y[-tokens:])


@pytest.mark.parametrize("threads", [32, 64, 96])
def test_a_layer_is_the_same_with_fewer_threads(threads):
    layer = layer_of(tokens=6, k=3, experts=3, inter=200, hidden=70, seed=2)
    assert np.array_equal(experts(PAIR, layer, shape=Shape(threads=threads)).y, experts(PAIR, layer).y)


def test_more_pairs_of_an_expert_than_a_list_holds():
    assert_layer(layer_of(tokens=530, k=1, experts=1, inter=5, hidden=32))


def test_many_experts_for_few_pairs():
    assert_layer(layer_of(tokens=3, k=8, experts=600, inter=1, hidden=32), seed=1)


def test_rows_and_columns_of_several_threadgroups():
    assert_layer(layer_of(tokens=7, k=2, experts=2, inter=290, hidden=530), seed=2)


def test_the_order_of_ids_changes_nothing():
    """Experts come in ascending order."""
    layer = layer_of(tokens=4, k=4, experts=9, seed=3)
    layer.ids[:] = [np.random.default_rng(i).permutation(9)[:4] for i in range(4)]
    y = experts(PAIR, layer).y
    layer.ids, layer.weights = layer.ids[:, ::-1], layer.weights[:, ::-1]
    assert np.array_equal(experts(PAIR, layer).y, y)


@pytest.mark.parametrize("tiled", ["iq1_m", "iq3_s"])
def test_rows_of_several_threadgroups(tiled):
    w, x = random_weight(tiled, 170, 288, seed=1), numbers(37, 288)
    y = product("matmul_large", w, x)
    assert np.all(np.abs(y - reference.matmul(w.matrix, x)) <= reference.fp32_bound(w.matrix, x, n_ulp=N_ULP))
    for threads in (32, 96):
        part = product("matmul_large", w, x, row_range=(33, 165), shape=Shape(seed=1, threads=threads))
        assert np.array_equal(part[:, 33:165], y[:, 33:165])


@pytest.mark.parametrize("tokens", [2, 4, 5, 8])
def test_a_product_is_the_same_with_other_tokens(tokens):
    w, x = random_weight("iq2_s", 40, 800, seed=2), numbers(8, 800)
    assert np.array_equal(product("matmul_small", w, x[:tokens]), product("matmul_small", w, x)[:tokens])
