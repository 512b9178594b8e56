"""The expert layer on a GPU, and with its experts on several devices."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import lutkern
from gpu import Astype, Foreign, Router, read
from lutkern import reference
from test_moe import EXPERTS, HIDDEN, N_ULP, layer, routes

pytestmark = pytest.mark.usefixtures("cuda")


def on_gpu(tensors, device="cuda"):
    return [None if t is None else t.to(device=device) for t in tensors]


def assert_close(y, x, ids, weights, tensors, n_ulp=N_ULP, **options):
    expected = reference.moe(x, ids, weights, *tensors, **options)
    bound = reference.moe_bound(x, ids, weights, *tensors, n_ulp=n_ulp, **options)
    assert np.all(np.abs(read(y) - expected) <= bound)


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
    y = lutkern.moe(Foreign(x), Foreign(ids), Foreign(weights), *on_gpu(tensors))
    assert y.shape == (tokens, HIDDEN)
    assert_close(y, x, ids, weights, tensors)
    assert_close(lutkern.moe(x, ids, weights, *on_gpu(tensors)), x, ids, weights, tensors)


@pytest.mark.parametrize("activation", ["gelu", "relu2", None])
@pytest.mark.parametrize("exact", [False, True])
def test_activations(activation, exact):
    tensors = layer()
    x, ids, weights = routes(2, 2)
    y = lutkern.moe(Foreign(x), ids, weights, *on_gpu(tensors), activation=activation, exact=exact)
    assert_close(y, x, ids, weights, tensors, activation=activation, exact=exact)


@pytest.mark.parametrize("kind", [Router, Astype])
def test_the_types_of_a_router(kind):
    tensors = on_gpu(layer())
    x, ids, weights = routes(3, 2)
    expected = read(lutkern.moe(Foreign(x), Foreign(ids), Foreign(weights), *tensors))
    wide = kind(ids.astype(np.int64)), kind(weights.astype(np.float64))
    assert np.array_equal(read(lutkern.moe(Foreign(x), *wide, *tensors)), expected)
    half = weights.astype(ml_dtypes.bfloat16)
    y = lutkern.moe(Foreign(x), ids, kind(half), *tensors)
    assert np.array_equal(read(y), read(lutkern.moe(Foreign(x), ids, half.astype(np.float32), *tensors)))


def test_an_id_out_of_range_on_the_device_gives_nan():
    tensors = on_gpu(layer())
    x, ids, weights = routes(3, 2)
    good = read(lutkern.moe(Foreign(x), Foreign(ids), Foreign(weights), *tensors))
    ids[1, 0] = EXPERTS
    y = read(lutkern.moe(Foreign(x), Foreign(ids), Foreign(weights), *tensors))
    assert np.isnan(y[1]).all()
    assert np.array_equal(y[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("place", ["cpu", "host arrays", "device arrays"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_partial_layers_leave_experts_out(place, tokens):
    tensors = layer()
    x, ids, weights = routes(tokens, 3)
    missing = ids >= 3
    partial = np.where(missing, -1, ids).astype(np.int32)
    if place == "cpu":
        y = lutkern.moe(x, partial, weights, *tensors, partial=True)
    elif place == "host arrays":
        y = lutkern.moe(x, partial, weights, *on_gpu(tensors), partial=True)
    else:
        y = lutkern.moe(Foreign(x), Foreign(partial), Foreign(weights), *on_gpu(tensors), partial=True)
    assert_close(y, x, ids, np.where(missing, np.float32(0), weights), tensors)
    none = np.full_like(ids, -1)
    assert not read(lutkern.moe(x, none, weights, *on_gpu(tensors), partial=True)).any()


def split(tensors, placement, devices):
    return [[None] * len(devices) if t is None else lutkern.split_experts(t, placement, devices) for t in tensors]


PLACEMENTS = {
    "some": ([0, 1, 0, 1, 1], ("cpu", "cuda:0")),
    "side by side": ([1, 1, 0, 0, 0], ("cpu", "cuda:0")),
    "all on the GPU": ([1] * 5, ("cpu", "cuda:0")),
    "all on the CPU": ([0] * 5, ("cpu", "cuda:0")),
    "GPU first": ([0, 1, 1, 0, 1], ("cuda:0", "cpu")),
}


@pytest.mark.parametrize("case", list(PLACEMENTS))
def test_experts_on_two_devices(case, layout):
    placement, devices = PLACEMENTS[case]
    tensors = layer(layout=layout)
    parts = split(tensors, placement, devices)
    x, ids, weights = routes(3, 2)
    y = lutkern.moe(x, ids, weights, *parts, placement=placement)
    assert isinstance(y, np.ndarray)
    assert_close(y, x, ids, weights, tensors)
    assert np.array_equal(y, lutkern.moe(x, ids, weights, *parts, placement=placement))  # whoever is faster


def test_a_layer_without_gates_and_one_token():
    placement = [0, 1, 0, 1, 1]
    tensors = layer(None, layout="tiles")
    _, up, down = split(tensors, placement, ("cpu", "cuda:0"))
    x, ids, weights = routes(1, 2)
    assert_close(lutkern.moe(x, ids, weights, None, up, down, placement=placement), x, ids, weights, tensors)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_arrays_of_the_device_through_two_devices(dtype):
    placement = np.array([0, 1, 0, 1, 1])
    tensors = layer()
    parts = split(tensors, placement, ("cpu", "cuda:0"))
    x, ids, weights = routes(4, 2)
    x = x.astype(dtype)
    expected = lutkern.moe(x, ids, weights, *parts, placement=placement)
    y = lutkern.moe(Foreign(x), Foreign(ids.astype(np.int64)), Foreign(weights), *parts, placement=placement)
    assert (y.device, y.shape) == ("cuda:0", (4, HIDDEN))
    assert np.array_equal(read(y), expected)
    out = Foreign(np.zeros((4, HIDDEN), np.float32))
    brief = Foreign(weights.astype(ml_dtypes.bfloat16))
    assert lutkern.moe(lutkern.to_device(x), ids, brief, *parts, placement=placement, out=out) is out
    rounded = weights.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(out.numpy(), lutkern.moe(x, ids, rounded, *parts, placement=placement))


def test_host_out_and_zero_tokens():
    placement = [0, 1, 0, 1, 1]
    parts = split(layer(), placement, ("cpu", "cuda:0"))
    x, ids, weights = routes(4, 2)
    out = np.zeros((4, HIDDEN), np.float32)
    assert lutkern.moe(x, ids, weights, *parts, placement=placement, out=out, stream=lutkern.Stream()) is out
    assert np.array_equal(out, lutkern.moe(x, ids, weights, *parts, placement=placement))
    empty = lutkern.moe(x[:0], ids[:0], weights[:0], *parts, placement=placement)
    assert empty.shape == (0, HIDDEN)


def test_the_gpu_is_queued_before_the_cpu_works(monkeypatch):
    from lutkern import hybrid

    order = []
    there, here = hybrid.device_ops.moe, hybrid._on_cpu
    monkeypatch.setattr(hybrid.device_ops, "moe", lambda *a: (order.append("gpu"), there(*a))[1])
    monkeypatch.setattr(hybrid, "_on_cpu", lambda *a: (order.append("cpu"), here(*a))[1])
    placement = [0, 1, 0, 1, 1]
    parts = split(layer(), placement, ("cpu", "cuda:0"))
    x, ids, weights = routes(3, 3)
    lutkern.moe(x, ids, weights, *parts, placement=placement)
    assert order == ["gpu", "cpu"]


def test_two_gpus():
    if sum(d.name.startswith("cuda:") for d in lutkern.devices()) < 2:
        pytest.skip("one device")
    placement = [0, 1, 2, 1, 2]
    tensors = layer()
    parts = split(tensors, placement, ("cpu", "cuda:0", "cuda:1"))
    x, ids, weights = routes(5, 3)
    assert_close(lutkern.moe(x, ids, weights, *parts, placement=placement), x, ids, weights, tensors)
    y = lutkern.moe(Foreign(x, "cuda:1"), ids, weights, *parts, placement=placement)
    assert y.device == "cuda:1"
    assert_close(y, x, ids, weights, tensors)


def test_parts_are_views_where_they_can_be():
    t = layer()[0]
    here, there = lutkern.split_experts(t, [0, 0, 0, 1, 1])
    assert np.shares_memory(here.blocks(), t.blocks())
    assert (there.device, there.shape[0]) == ("cuda:0", 2)
    assert np.array_equal(there.blocks(), t.blocks()[3:])
    again = lutkern.split_experts(t.to(device="cuda"), [1, 0, 1, 0, 1])
    assert np.array_equal(again[0].blocks(), t.blocks()[1::2])
    assert lutkern.split_experts(t, [0] * 5)[1] is None


def split_down(hidden, number=0):
    return lutkern.split_experts(layer(hidden=hidden)[2], [0, 1, 0, 1, 1], ("cpu", "cuda:0"))[number]


def call(**changed):
    placement = changed.pop("placement", [0, 1, 0, 1, 1])
    parts = dict(zip(("gate", "up", "down"), split(layer(), [0, 1, 0, 1, 1], ("cpu", "cuda:0")), strict=True))
    x, ids, weights = routes(2, 2)
    given = {"x": x, "ids": ids, "weights": weights, **parts, **changed}
    return lutkern.moe(*given.values(), placement=placement)


BAD = {
    "placement type": (
        lambda: call(placement=[0.5] * 5),
        TypeError,
        "moe: placement is float64, expected integers",
    ),
    "placement values": (
        lambda: call(placement=[0, 1, 0, 1, 2]),
        ValueError,
        "moe: placement reaches from 0 to 2, expected 0 to 1",
    ),
    "placement dimensions": (
        lambda: call(placement=[[0, 1]]),
        ValueError,
        "moe: placement has 2 dimensions, expected 1",
    ),
    "another placement": (
        lambda: call(placement=[0, 1, 0, 0, 1]),
        ValueError,
        "moe: gate[0] has shape (2, 96, 288), the placement gives it 3 experts",
    ),
    "no list": (
        lambda: call(up=layer()[1]),
        TypeError,
        "moe: up is PackedTensor, expected a list of parts, as there is a placement",
    ),
    "a missing part": (
        lambda: call(up=[None, None]),
        TypeError,
        "moe: up[0] is NoneType, expected a PackedTensor",
    ),
    "numbers of parts": (
        lambda: call(down=[None]),
        ValueError,
        "moe: gate, up and down have 2, 2, 1 parts, expected as many each",
    ),
    "parts of two sizes": (
        lambda: call(down=[split_down(320), split_down(288, 1)]),
        ValueError,
        "moe: parts of down have 320 and 288 rows, expected one hidden size",
    ),
    "no experts": (
        lambda: call(placement=np.zeros(0, int), gate=[None], up=[None], down=[None]),
        ValueError,
        "moe: no part has an expert, expected at least one",
    ),
    "an id": (
        lambda: call(ids=[[0, 1], [5, 1]]),
        ValueError,
        "moe: expert_ids[1, 0] is 5, expected 0 to 4",
    ),
    "ids elsewhere": (
        lambda: call(ids=Foreign(np.zeros((2, 2), np.int32))),
        RuntimeError,
        "moe: expert_ids is on cuda:0, x is on cpu",
    ),
    "rows of ids": (
        lambda: call(ids=[[0, 1]], weights=[[1.0, 1.0]]),
        ValueError,
        "moe: expert_ids has 1 rows, x has 2",
    ),
    "split of a matrix": (
        lambda: lutkern.split_experts(layer()[0][0], [0]),
        ValueError,
        "split_experts: the weight has shape (96, 288), expected (experts, rows, cols)",
    ),
    "split of an array": (
        lambda: lutkern.split_experts(np.zeros(3), [0]),
        TypeError,
        "split_experts: the weight is ndarray, expected a PackedTensor",
    ),
    "split without all": (
        lambda: lutkern.split_experts(layer()[0], [0, 1]),
        ValueError,
        "split_experts: placement has 2 entries, the weight has 5 experts",
    ),
    "ids of a router without a conversion": (
        lambda: lutkern.moe(
            Foreign(routes(2, 2)[0]), Foreign(np.zeros((2, 2), np.int64)), [[1.0] * 2] * 2, *on_gpu(layer())
        ),
        TypeError,
        "moe: expert_ids is int64 with strides (2, 1) on cuda:0, expected C-contiguous int32",
    ),
    "a host id with x on the device": (
        lambda: lutkern.moe(Foreign(routes(1, 2)[0]), [[0, -1]], [[1.0] * 2], *on_gpu(layer())),
        ValueError,
        "moe: expert_ids[0, 1] is -1, expected 0 to 4",
    ),
    "two places": (
        lambda: lutkern.moe(*routes(1, 2), layer()[0], *on_gpu(layer()[1:])),
        ValueError,
        "moe: gate is on the CPU, up is on cuda:0",
    ),
    "weights of another shape": (
        lambda: lutkern.moe(
            Foreign(routes(1, 2)[0]), [[0, 1]], Foreign(np.zeros((1, 3), np.float32)), *on_gpu(layer())
        ),
        ValueError,
        "moe: expert_weights has shape (1, 3), expert_ids has (1, 2)",
    ),
    "ids of one dimension": (
        lambda: lutkern.moe(Foreign(routes(1, 2)[0]), Foreign(np.zeros(2, np.int32)), [[1.0] * 2], *on_gpu(layer())),
        ValueError,
        "moe: expert_ids has 1 dimensions, expected 2",
    ),
    "rows of ids on the device": (
        lambda: lutkern.moe(
            Foreign(routes(1, 2)[0]), Foreign(np.zeros((2, 2), np.int32)), [[1.0] * 2] * 2, *on_gpu(layer())
        ),
        ValueError,
        "moe: expert_ids has 2 rows, x has 1",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    run, error, text = BAD[case]
    with pytest.raises(error) as caught:
        run()
    assert str(caught.value).startswith(text)
