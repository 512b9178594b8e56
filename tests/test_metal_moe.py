"""The expert layer on Metal, and with its experts on Metal and on the CPU."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import lutkern
from gpu import read
from test_cuda_moe import assert_close, split
from test_moe import EXPERTS, HIDDEN, layer, routes

pytestmark = pytest.mark.usefixtures("metal")
DEVICES = ("cpu", "metal:0")
PLACEMENT = [0, 1, 0, 1, 1]


def there(array):
    return lutkern.to_device(array, "metal")


def on_metal(tensors, layout=None):
    return [None if t is None else t.to(device="metal", layout=layout) for t in tensors]


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(
    "formats",
    [
        ("iq1_m", "iq1_m", "iq2_xxs"),
        ("iq1_s", "iq2_xs", "iq3_xxs"),
        ("q4_k", "iq2_s", "q8_0"),
        (None, "iq3_s", "iq1_m"),
    ],
    ids=lambda f: "-".join(map(str, f)),
)
def test_a_layer_is_the_reference(formats, tokens):
    tensors = layer(*formats)
    x, ids, weights = routes(tokens, 2)
    y = lutkern.moe(there(x), there(ids), there(weights), *on_metal(tensors))
    assert (y.shape, y.device) == ((tokens, HIDDEN), "metal:0")
    assert_close(y, x, ids, weights, tensors)
    here = lutkern.moe(x, ids, weights, *on_metal(tensors))
    assert isinstance(here, np.ndarray)
    assert_close(here, x, ids, weights, tensors)


def test_many_pairs_of_a_token_and_an_expert():
    tensors = layer("iq1_m", "iq1_m", "iq2_xxs")
    x, ids, weights = routes(20, 2)
    assert_close(lutkern.moe(x, ids, weights, *on_metal(tensors)), x, ids, weights, tensors)


def test_blocks_and_tiles_mixed():
    tensors = layer("iq1_m", "iq1_m", "iq2_xxs")
    x, ids, weights = routes(2, 2)
    gate, up, down = on_metal(tensors, "blocks")
    assert_close(lutkern.moe(x, ids, weights, gate, up, down), x, ids, weights, tensors)
    mixed = (gate, up.to(layout="tiles"), down.to(layout="tiles"))
    assert_close(lutkern.moe(x, ids, weights, *mixed), x, ids, weights, tensors)


@pytest.mark.parametrize("activation", ["gelu", "relu2", None])
@pytest.mark.parametrize("exact", [False, True])
def test_activations(activation, exact):
    tensors = layer("iq1_m", "iq1_m", "iq2_xxs")
    x, ids, weights = routes(2, 2)
    y = lutkern.moe(there(x), ids, weights, *on_metal(tensors), activation=activation, exact=exact)
    assert_close(y, x, ids, weights, tensors, activation=activation, exact=exact)


def test_an_id_out_of_range_on_the_device_gives_nan():
    tensors = on_metal(layer("iq1_m", "iq1_m", "iq2_xxs"))
    x, ids, weights = routes(3, 2)
    good = read(lutkern.moe(there(x), there(ids), there(weights), *tensors))
    ids[1, 0] = EXPERTS
    y = read(lutkern.moe(there(x), there(ids), there(weights), *tensors))
    assert np.isnan(y[1]).all()
    assert np.array_equal(y[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("place", ["host arrays", "device arrays"])
@pytest.mark.parametrize("tokens", [1, 20])
def test_partial_layers_leave_experts_out(place, tokens):
    tensors = layer("iq1_m", "iq1_m", "iq2_xxs")
    x, ids, weights = routes(tokens, 3)
    missing = ids >= 3
    partial = np.where(missing, -1, ids).astype(np.int32)
    given = (x, partial, weights) if place == "host arrays" else (there(x), there(partial), there(weights))
    y = lutkern.moe(*given, *on_metal(tensors), partial=True)
    assert_close(y, x, ids, np.where(missing, np.float32(0), weights), tensors)
    none = np.full_like(ids, -1)
    assert not read(lutkern.moe(x, none, weights, *on_metal(tensors), partial=True)).any()


PLACEMENTS = {
    "some": (PLACEMENT, DEVICES),
    "side by side": ([1, 1, 0, 0, 0], DEVICES),
    "all on the GPU": ([1] * 5, DEVICES),
    "all on the CPU": ([0] * 5, DEVICES),
    "GPU first": ([0, 1, 1, 0, 1], ("metal:0", "cpu")),
}


@pytest.mark.parametrize("case", list(PLACEMENTS))
def test_experts_on_two_devices(case, layout):
    placement, devices = PLACEMENTS[case]
    tensors = layer("iq1_m", "iq1_m", "iq2_xxs", layout=layout)
    parts = split(tensors, placement, devices)
    x, ids, weights = routes(3, 2)
    y = lutkern.moe(x, ids, weights, *parts, placement=placement)
    assert isinstance(y, np.ndarray)
    assert_close(y, x, ids, weights, tensors)
    assert np.array_equal(y, lutkern.moe(x, ids, weights, *parts, placement=placement))  # whoever is faster


def test_experts_side_by_side_are_not_copied():
    t = layer("q4_k", "q4_k", "q4_k")[0]
    here, metal = lutkern.split_experts(t, [0, 0, 0, 1, 1], DEVICES)
    assert (metal.device, metal.shape[0], metal.layout) == ("metal:0", 2, "blocks")
    assert np.shares_memory(here.blocks(), t.blocks())
    assert np.shares_memory(metal.blocks(), t.blocks())
    again = lutkern.split_experts(t.to(device="metal"), [1, 0, 1, 0, 1], DEVICES)
    assert np.array_equal(again[0].blocks(), t.blocks()[1::2])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_arrays_of_the_device_through_two_devices(dtype):
    parts = split(layer("iq1_m", "iq1_m", "iq2_xxs"), PLACEMENT, DEVICES)
    x, ids, weights = routes(4, 2)
    x = x.astype(dtype)
    expected = lutkern.moe(x, ids, weights, *parts, placement=PLACEMENT)
    y = lutkern.moe(there(x), there(ids), there(weights), *parts, placement=PLACEMENT)
    assert (y.device, y.shape) == ("metal:0", (4, HIDDEN))
    assert np.array_equal(read(y), expected)
    out = there(np.zeros((4, HIDDEN), np.float32))
    assert lutkern.moe(there(x), ids, weights, *parts, placement=PLACEMENT, out=out) is out
    assert np.array_equal(out.numpy(), expected)


def test_host_out_and_zero_tokens():
    parts = split(layer("iq1_m", "iq1_m", "iq2_xxs"), PLACEMENT, DEVICES)
    x, ids, weights = routes(4, 2)
    out = np.zeros((4, HIDDEN), np.float32)
    y = lutkern.moe(x, ids, weights, *parts, placement=PLACEMENT, out=out, stream=lutkern.Stream("metal"))
    assert y is out
    assert np.array_equal(out, lutkern.moe(x, ids, weights, *parts, placement=PLACEMENT))
    empty = lutkern.moe(x[:0], ids[:0], weights[:0], *parts, placement=PLACEMENT)
    assert empty.shape == (0, HIDDEN)


def test_metal_works_before_the_cpu_does(monkeypatch, fake_metal):
    from lutkern import hybrid

    commits = []
    metal, here = hybrid.device_ops.moe, hybrid._on_cpu

    def watched(run):
        def call(*arguments):
            lutkern.synchronize("metal") if run is metal else None
            commits.append(fake_metal.fake_metal_count(b"commits"))
            return run(*arguments)

        return call

    monkeypatch.setattr(hybrid.device_ops, "moe", watched(metal))
    monkeypatch.setattr(hybrid, "_on_cpu", watched(here))
    parts = split(layer("iq1_m", "iq1_m", "iq2_xxs"), PLACEMENT, DEVICES)
    x, ids, weights = routes(3, 3)
    lutkern.moe(x, ids, weights, *parts, placement=PLACEMENT)
    before, after = commits
    assert after > before


BAD = {
    "an id": (
        lambda: lutkern.moe(there(routes(1, 2)[0]), [[0, -1]], [[1.0] * 2], *on_metal(layer())),
        ValueError,
        "moe: expert_ids[0, 1] is -1, expected 0 to 4",
    ),
    "two places": (
        lambda: lutkern.moe(*routes(1, 2), layer()[0], *on_metal(layer()[1:])),
        ValueError,
        "moe: gate is on the CPU, up is on metal:0",
    ),
    "ids of another type": (
        lambda: lutkern.moe(
            there(routes(2, 2)[0]), there(np.zeros((2, 2), np.float32)), [[1.0] * 2] * 2, *on_metal(layer())
        ),
        TypeError,
        "moe: expert_ids is float32 with strides (2, 1) on metal:0, expected C-contiguous int32",
    ),
    "ids elsewhere": (
        lambda: lutkern.moe(
            routes(2, 2)[0],
            there(np.zeros((2, 2), np.int32)),
            [[1.0] * 2] * 2,
            *split(layer(), PLACEMENT, DEVICES),
            placement=PLACEMENT,
        ),
        RuntimeError,
        "moe: expert_ids is on metal:0, x is on cpu",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    run, error, text = BAD[case]
    with pytest.raises(error) as caught:
        run()
    assert str(caught.value).startswith(text)
