"""The expert layer against the float64 reference."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lutkern
from lutkern import reference
from lutkern.tensor import LAYOUTS
from weights import by_name, random_tensor

N_ULP = 8
EXPERTS, INTER, HIDDEN = 5, 96, 288


def layer(gate="iq2_xxs", up="iq1_m", down="iq3_xxs", inter=INTER, hidden=HIDDEN, layout="blocks"):
    """layout: of all three, or one for each."""
    layouts = [layout] * 3 if isinstance(layout, str) else layout
    tensors = [
        random_tensor(by_name(gate), (EXPERTS, inter, hidden), 1, layouts[0]) if gate else None,
        random_tensor(by_name(up), (EXPERTS, inter, hidden), 2, layouts[1]),
        random_tensor(by_name(down), (EXPERTS, hidden, inter), 3, layouts[2]),
    ]
    return tensors


def routes(tokens, k, seed=0, hidden=HIDDEN):
    rng = np.random.default_rng(seed)
    x = (0.01 * rng.standard_normal((tokens, hidden))).astype(np.float32)
    ids = rng.integers(0, EXPERTS, (tokens, k), dtype=np.int32)
    return x, ids, rng.random((tokens, k), dtype=np.float32)


def assert_is_reference(arguments, **options):
    y = lutkern.moe(*arguments, **options)
    expected = reference.moe(*arguments, **options)
    assert np.all(np.abs(y - expected) <= reference.moe_bound(*arguments, n_ulp=N_ULP, **options))


def test_every_format_in_every_projection(fmt, layout, isa):
    x, ids, weights = routes(3, 2)
    assert_is_reference((x, ids, weights, *layer(fmt.name, fmt.name, fmt.name, layout=layout)))
    assert_is_reference((x, ids, weights, *layer("iq1_s", fmt.name, "iq2_xs", layout=layout)))


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu2", None])
@pytest.mark.parametrize("gate", ["iq2_s", None], ids=["gate", "no gate"])
@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
def test_activations_and_gates(layout, isa, activation, gate, exact):
    x, ids, weights = routes(4, 2)
    assert_is_reference((x, ids, weights, *layer(gate, layout=layout)), activation=activation, exact=exact)


@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=3)), ids="-".join)
def test_every_projection_has_its_own_layout(isa, layouts):
    x, ids, weights = routes(5, 2)
    assert_is_reference((x, ids, weights, *layer(layout=layouts)))


@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
def test_tokens_are_grouped_and_put_back(layout, isa, tokens):
    x, ids, weights = routes(tokens, 3)
    assert_is_reference((x, ids, weights, *layer(layout=layout)))


def test_more_pairs_than_are_worked_on_at_once():
    tensors = layer("q8_0", "q8_0", "q8_0", inter=32, hidden=32)
    x, ids, weights = routes(1500, 5, hidden=32)
    y = lutkern.moe(x, ids, weights, *tensors)
    some = slice(None, None, 97)
    alone = np.concatenate(
        [lutkern.moe(x[t : t + 1], ids[t : t + 1], weights[t : t + 1], *tensors) for t in range(0, 1500, 97)]
    )
    assert np.all(
        np.abs(y[some] - alone) <= reference.moe_bound(x[some], ids[some], weights[some], *tensors, n_ulp=2 * N_ULP)
    )


def test_repeated_experts_count_each_time():
    gate, up, down = layer()
    x, _, _ = routes(1, 2)
    once = lutkern.moe(x, [[3]], [[1.0]], gate, up, down)
    twice = lutkern.moe(x, [[3, 3]], [[0.25, 0.75]], gate, up, down)
    assert np.allclose(twice, once, rtol=1e-5, atol=1e-6 * np.abs(once).max())


def test_zero_tokens_and_zero_experts():
    tensors = layer()
    empty = np.zeros((0, HIDDEN), np.float32)
    assert lutkern.moe(empty, np.zeros((0, 2), np.int32), np.zeros((0, 2), np.float32), *tensors).shape == (0, HIDDEN)
    x, _, _ = routes(2, 1)
    none = lutkern.moe(x, np.zeros((2, 0), np.int32), np.zeros((2, 0), np.float32), *tensors)
    assert np.array_equal(none, np.zeros((2, HIDDEN), np.float32))


def test_threads_never_change_a_bit(layout, all_threads):
    x, ids, weights = routes(9, 3)
    tensors = layer(layout=layout)
    results = []
    for threads in (1, 2, 4):
        lutkern.set_num_threads(threads)
        results.append(lutkern.moe(x, ids, weights, *tensors))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_out_and_id_types():
    x, ids, weights = routes(3, 2)
    tensors = layer()
    expected = lutkern.moe(x, ids, weights, *tensors)
    out = np.full((3, HIDDEN), np.nan, np.float32)
    assert lutkern.moe(x, ids.astype(np.int64), weights.astype(np.float64), *tensors, out=out) is out
    assert np.array_equal(out, expected)


class Dlpack:
    """An array that is known only by DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return (1, 0)


def test_routing_enters_by_dlpack_and_as_bfloat16():
    x, ids, weights = routes(3, 2)
    tensors = layer()
    expected = lutkern.moe(x, ids, weights, *tensors)
    assert np.array_equal(lutkern.moe(Dlpack(x), Dlpack(ids), Dlpack(weights), *tensors), expected)
    brief = weights.astype(ml_dtypes.bfloat16)
    expected = lutkern.moe(x, ids, brief.astype(np.float32), *tensors)
    assert np.array_equal(lutkern.moe(x, ids, brief, *tensors), expected)


def test_strided_routing():
    x, ids, weights = routes(3, 2)
    tensors = layer()
    expected = lutkern.moe(x, ids, weights, *tensors)
    assert np.array_equal(
        lutkern.moe(x, np.asfortranarray(ids), np.repeat(weights, 2, axis=1)[:, ::2], *tensors), expected
    )


@pytest.mark.parametrize("shift", [0, 1])
def test_out_may_overlap_x(shift):
    tensors = layer("q8_0", "q8_0", "q8_0", inter=32, hidden=32)
    x, ids, weights = routes(1500, 5, hidden=32)
    expected = lutkern.moe(x, ids, weights, *tensors)
    memory = np.zeros((1501, 32), np.float32)
    memory[:1500] = x
    out = memory[shift : shift + 1500]
    assert np.array_equal(lutkern.moe(memory[:1500], ids, weights, *tensors, out=out), expected)


def test_a_non_finite_token_stays_alone(layout, isa):
    x, ids, weights = routes(4, 2)
    x[2, 5] = np.nan
    y = lutkern.moe(x, ids, weights, *layer(layout=layout))
    assert not np.isfinite(y[2]).any()
    assert np.isfinite(y[[0, 1, 3]]).all()


@given(st.data())
def test_moe_is_the_sum_over_experts(data):
    tokens, k = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 4))
    names = [data.draw(st.sampled_from([f.name for f in lutkern.formats()])) for _ in range(3)]
    x, ids, weights = routes(tokens, k, seed=data.draw(st.integers(0, 999)))
    layouts = [data.draw(st.sampled_from(list(LAYOUTS))) for _ in range(3)]
    assert_is_reference((x, ids, weights, *layer(*names, layout=layouts)))


BAD = {
    "id too large": (dict(ids=[[0, 5], [1, 2]]), ValueError, "moe: expert_ids[0, 1] is 5, expected 0 to 4"),
    "id negative": (dict(ids=[[0, 1], [-1, 2]]), ValueError, "moe: expert_ids[1, 0] is -1, expected 0 to 4"),
    "id huge": (
        dict(ids=np.array([[0, 1], [1, 2**40]])),
        ValueError,
        "moe: expert_ids reach from 0 to 1099511627776, expected 32-bit numbers",
    ),
    "ids float": (dict(ids=np.zeros((2, 2))), TypeError, "moe: expert_ids is float64, expected integers"),
    "ids one dimension": (dict(ids=[0, 1]), ValueError, "moe: expert_ids has 1 dimensions, expected 2"),
    "ids rows": (dict(ids=[[0, 1]], weights=[[1.0, 1.0]]), ValueError, "moe: expert_ids has 1 rows, x has 2"),
    "weights shape": (
        dict(weights=[[1.0], [1.0]]),
        ValueError,
        "moe: expert_weights has shape (2, 1), expert_ids has (2, 2)",
    ),
    "weights int": (dict(weights=[[1, 1], [1, 1]]), TypeError, "moe: expert_weights is int64, expected float32"),
    "hidden": (
        dict(x=np.zeros((2, 256), np.float32)),
        ValueError,
        "moe: x has 256 columns, the hidden size of up is 288",
    ),
    "x dtype": (dict(x=np.zeros((2, 288))), TypeError, "moe: x is float64, expected float32, float16 or bfloat16"),
    "activation": (
        dict(activation="swish"),
        ValueError,
        "moe: unknown activation 'swish', expected one of: silu, gelu, relu2, None",
    ),
    "activation type": (
        dict(activation=[]),
        ValueError,
        "moe: unknown activation [], expected one of: silu, gelu, relu2, None",
    ),
    "gate shape": (dict(gate=(5, 96, 256)), ValueError, "moe: gate is 96 x 256, up is 96 x 288"),
    "down shape": (
        dict(down=(5, 96, 288)),
        ValueError,
        "moe: down is 96 x 288, expected 288 x 96, the transpose of up",
    ),
    "down experts": (dict(down=(4, 288, 96)), ValueError, "moe: down has 4 experts, up has 5"),
    "gate experts": (dict(gate=(6, 96, 288)), ValueError, "moe: gate has 6 experts, up has 5"),
    "one matrix": (
        dict(gate=(96, 288)),
        ValueError,
        "moe: a weight has shape (96, 288), expected (experts, rows, cols)",
    ),
    "out shape": (dict(out=np.zeros((2, 96), np.float32)), ValueError, "moe: out has shape (2, 96), expected (2, 288)"),
    "out dtype": (dict(out=np.zeros((2, 288))), TypeError, "moe: out is float64, expected a float32 NumPy array"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    changes, error, text = BAD[case]
    x, ids, weights = routes(2, 2)
    gate, up, down = layer("q8_0", "q8_0", "q8_0")
    if "gate" in changes:
        gate = random_tensor(by_name("q8_0"), changes["gate"])
    if "down" in changes:
        down = random_tensor(by_name("q8_0"), changes["down"])
    options = {name: changes[name] for name in ("activation", "out") if name in changes}
    with pytest.raises(error) as caught:
        lutkern.moe(
            changes.get("x", x), changes.get("ids", ids), changes.get("weights", weights), gate, up, down, **options
        )
    assert str(caught.value) == text


def test_a_weight_must_be_packed():
    x, ids, weights = routes(1, 1)
    with pytest.raises(TypeError, match="moe: the weight is ndarray, expected a PackedTensor"):
        lutkern.moe(x, ids, weights, np.zeros((1, 2, 3)), *layer()[1:])
