"""pack: its error against ggml and the reference, what it keeps exactly, and every kind of odd input."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import exhaustive_pack
import ggml_rival
import lutkern
from conftest import PACKABLE
from lutkern import reference

Floats = npt.NDArray[np.float32]

INTEGER_PACKABLE = [f for f in PACKABLE if not f.is_float]
LINES = [f for f in INTEGER_PACKABLE if f.name in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "q4_1", "q5_1")]
"""Two or three real numbers make a weight, so several blocks mean nearly the same: packing again may pick another."""
EXACT = [f for f in INTEGER_PACKABLE if f not in LINES]
FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}

EFFORTS = ("fast", "default", "best")

integer_packable = pytest.mark.parametrize("target", INTEGER_PACKABLE, ids=str)


def gaussian(*shape: int, seed: int = 0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


def laplace(*shape: int, seed: int = 0) -> Floats:
    return (np.random.default_rng(seed).laplace(size=shape) * 0.02).astype(np.float32)


def like_a_model(*shape: int, seed: int = 0) -> Floats:
    """Rows and columns of different size, and a few outliers."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape) * rng.lognormal(0, 0.3, (shape[0], 1)) * rng.lognormal(0, 0.3, shape[1])
    return np.where(rng.random(shape) < 0.001, 8 * w, w).astype(np.float32)


def ones(cols: int) -> Floats:
    return np.ones(cols, np.float32)


def lognormal(cols: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).lognormal(0, 1, cols).astype(np.float32)


def error(w: Floats, t: lutkern.PackedTensor, importance: npt.ArrayLike = 1.0) -> float:
    difference = w.astype(np.float64) - lutkern.dequantize(t)
    return float(np.sum(np.asarray(importance, np.float64) * difference**2))


# ---- error ----


@pytest.mark.parametrize("importance", [ones, lognormal])
@pytest.mark.parametrize("weights", [gaussian, laplace, like_a_model])
@integer_packable
def test_error_is_not_above_ggml(target, weights, importance):
    w, a = weights(24, 768), importance(768)
    assert error(w, lutkern.pack(w, target, importance=a), a) <= 1.02 * error(w, ggml_rival.pack(w, target, a), a)


@pytest.mark.parametrize("weights", [gaussian, laplace])
@integer_packable
def test_error_is_not_above_the_reference(target, weights):
    w, a = weights(8, 512, seed=1), lognormal(512, seed=1)
    naive = lutkern.PackedTensor.from_blocks(reference.pack(w, target.name, a), target, w.shape)
    assert error(w, lutkern.pack(w, target, importance=a), a) <= 1.005 * error(w, naive, a)


@pytest.mark.parametrize("target", [f for f in INTEGER_PACKABLE if f.name != "q8_0"], ids=str)
def test_importance_lowers_the_error_that_it_weights(target):
    w, a = gaussian(16, 512, seed=2), lognormal(512, seed=2) ** 2
    assert error(w, lutkern.pack(w, target, importance=a), a) < 0.97 * error(w, lutkern.pack(w, target), a)


@pytest.mark.parametrize("name", FLOATS)
def test_float_formats_round_to_nearest_even(name):
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, (16, 512), dtype=np.uint32).view(np.float32)
    ties = (rng.integers(0, 0x7B00, (16, 512), dtype=np.uint16).view(np.float16).astype(np.float32)) * (1 + 2.0**-11)
    w = np.where(np.isfinite(bits) & (np.abs(bits) < 65504), bits, ties.astype(np.float32))
    expected = np.ascontiguousarray(w.astype(FLOATS[name])).view(np.uint8)
    np.testing.assert_array_equal(lutkern.pack(w, name).blocks(), expected)


def scale_of(t: lutkern.PackedTensor) -> float:
    """d of the first block."""
    block = t.blocks()[0]
    if t.format.name != "iq1_m":
        return float(block[:2].view(np.float16)[0])
    words = block[-8:].view(np.uint16)
    bits = sum(int(word >> 12) << (4 * k) for k, word in enumerate(words))
    return float(np.uint16(bits).view(np.float16))


@pytest.mark.parametrize("name", exhaustive_pack.BOOKS)
def test_best_is_near_what_an_exhaustive_search_finds(name):
    ratios = []
    for seed, weights in enumerate([gaussian, laplace]):
        w, a = weights(1, 256, seed=seed), lognormal(256, seed=seed)
        t = lutkern.pack(w, name, importance=a, effort="best")
        ratios.append(error(w, t, a) / exhaustive_pack.smallest_error(name, w[0], a, scale_of(t)))
    assert min(ratios) > 1 - 1e-4  # d of odd numbers is not tried
    assert max(ratios) < 1.03


@integer_packable
def test_more_effort_is_less_error(target):
    w, a = like_a_model(48, 1024, seed=20), lognormal(1024, seed=20)
    fast, default, best = (error(w, lutkern.pack(w, target, importance=a, effort=e), a) for e in EFFORTS)
    assert best <= default <= fast


# ---- what is kept exactly ----


@pytest.mark.parametrize("target", EXACT, ids=str)
def test_pack_of_what_was_packed_has_the_same_weights(target):
    w = lutkern.dequantize(lutkern.pack(gaussian(24, 512, seed=4), target))
    np.testing.assert_array_equal(lutkern.dequantize(lutkern.pack(w, target)), w)


@pytest.mark.parametrize("target", LINES, ids=str)
def test_pack_of_what_was_packed_adds_little(target):
    w = gaussian(24, 512, seed=4)
    first = lutkern.pack(w, target)
    once = lutkern.dequantize(first)
    # A sub-block whose codes leave out the lowest one lies as well on the line that starts a code higher.
    allowed = 0.06 if target.name == "q5_k" else 0.02
    assert error(once, lutkern.pack(once, target)) <= allowed * error(w, first)


@pytest.mark.parametrize("target", EXACT, ids=str)
def test_what_ggml_packed_has_the_same_weights(target):
    w = lutkern.dequantize(ggml_rival.pack(gaussian(8, 512, seed=5), target, ones(512)))
    np.testing.assert_array_equal(lutkern.dequantize(lutkern.pack(w, target)), w)


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
@given(digits=hnp.arrays(np.int8, (1, 256), elements=st.integers(-1, 1)), exponent=st.integers(-12, 12))
def test_ternary_weights_are_kept(name, digits, exponent):
    w = digits.astype(np.float32) * np.float32(1.375 * 2.0**exponent)
    np.testing.assert_array_equal(lutkern.dequantize(lutkern.pack(w, name)), w)


@given(codes=hnp.arrays(np.int8, (1, 64), elements=st.integers(-127, 127)), exponent=st.integers(-12, 6))
def test_q8_0_weights_are_kept(codes, exponent):
    codes[:, ::32] = 127
    w = codes.astype(np.float32) * np.float32(1.375 * 2.0**exponent)
    np.testing.assert_array_equal(lutkern.dequantize(lutkern.pack(w, "q8_0")), w)


def test_zero_rows_are_zero(packable):
    w = gaussian(3, 512)
    w[1] = 0
    restored = lutkern.dequantize(lutkern.pack(w, packable))
    np.testing.assert_array_equal(restored[1], np.zeros(512))
    assert np.abs(restored[[0, 2]]).min(axis=0).max() > 0


@pytest.mark.parametrize("value", [1.0, -1.0, 0.37, -3000.0])
def test_constant_rows_are_kept_to_the_rounding_of_a_scale(packable, value):
    w = np.full((2, 512), value, np.float32)
    rounding = {"bf16": 2.0**-8, "mxfp4": 1 / 7}  # mxfp4 has no number between 3 and 4 times a power of two
    restored = lutkern.dequantize(lutkern.pack(w, packable))
    np.testing.assert_allclose(restored, w, rtol=rounding.get(packable.name, 2.0**-11))


# ---- invariance ----


@given(exponent=st.integers(-1, 6), seed=st.integers(0, 100))
@integer_packable
def test_powers_of_two_pass_through(target, exponent, seed):
    w = 50 * gaussian(2, 256, seed=seed)  # every fp16 scale stays normal
    scaled = lutkern.dequantize(lutkern.pack(np.ldexp(w, exponent), target))
    np.testing.assert_array_equal(scaled, np.ldexp(lutkern.dequantize(lutkern.pack(w, target)), exponent))


@pytest.mark.parametrize("name", ["iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "tq1_0", "tq2_0", "mxfp4", "q8_0"])
def test_minus_passes_through(name):
    w = gaussian(8, 512, seed=6)
    np.testing.assert_array_equal(
        lutkern.dequantize(lutkern.pack(-w, name)), -lutkern.dequantize(lutkern.pack(w, name))
    )


@pytest.mark.parametrize("exponent", [-80, -1, 3, 90])
@integer_packable
def test_only_the_ratios_of_importance_count(target, exponent):
    w, a = gaussian(4, 512, seed=7), lognormal(512, seed=7)
    scaled = lutkern.pack(w, target, importance=np.ldexp(a, exponent))
    np.testing.assert_array_equal(scaled.blocks(), lutkern.pack(w, target, importance=a).blocks())


def test_rows_are_packed_alone(packable):
    w = gaussian(9, 512, seed=8)
    order = np.random.default_rng(8).permutation(9)
    blocks = lutkern.pack(w, packable).blocks()
    np.testing.assert_array_equal(lutkern.pack(w[order], packable).blocks(), blocks[order])
    np.testing.assert_array_equal(lutkern.pack(w[3:4], packable).blocks(), blocks[3:4])


def test_blocks_are_packed_alone(packable):
    w = gaussian(3, 768, seed=9)
    halves = [lutkern.pack(part, packable).blocks() for part in (w[:, :256], w[:, 256:])]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), lutkern.pack(w, packable).blocks())


def test_threads_change_nothing(packable):
    w, a = gaussian(37, 512, seed=10), lognormal(512, seed=10)
    one, two, all_of_them = (lutkern.pack(w, packable, importance=a, threads=n).blocks() for n in (1, 2, None))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, all_of_them)


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_instruction_set_gives_the_same_bytes(packable, effort):
    w, a = like_a_model(24, 768, seed=19), lognormal(768, seed=19)
    try:
        lutkern.use_isa("scalar")
        expected = lutkern.pack(w, packable, importance=a, effort=effort).blocks()
        for isa in lutkern.isas():
            lutkern.use_isa(isa)
            packed = lutkern.pack(w, packable, importance=a, effort=effort).blocks()
            np.testing.assert_array_equal(packed, expected, err_msg=isa)
    finally:
        lutkern.use_isa(None)


# ---- shapes ----


@pytest.mark.parametrize("cols", [1, 31, 100, 257, 300])
def test_columns_are_padded(packable, cols):
    w = gaussian(4, cols, seed=11)
    t = lutkern.pack(w, packable)
    assert (t.shape, t.blocks().shape) == (w.shape, (4, packable.row_bytes(cols)))
    whole = cols // packable.block_size * packable.block_size
    if whole:
        np.testing.assert_array_equal(
            t.blocks()[:, : packable.row_bytes(whole)], lutkern.pack(w[:, :whole], packable).blocks()
        )
    assert error(w, t) <= 0.3 * float(np.sum(w.astype(np.float64) ** 2))


def test_padding_costs_the_columns_before_it_nothing(packable):
    w = gaussian(16, 512, seed=12)
    w[:, 300:] = 0
    short, long = lutkern.pack(w[:, :300], packable), lutkern.pack(w, packable)
    assert error(w[:, :300], short) <= 1.02 * float(np.sum((w - lutkern.dequantize(long))[:, :300] ** 2))


@integer_packable
def test_each_expert_has_its_own_importance(target):
    w, a = gaussian(3, 4, 300, seed=13), np.stack([lognormal(300, seed=s) for s in range(3)])
    t = lutkern.pack(w, target, importance=a)
    assert t.shape == w.shape
    for e in range(3):
        np.testing.assert_array_equal(t[e].blocks(), lutkern.pack(w[e], target, importance=a[e]).blocks())


# ---- odd values ----


@integer_packable
def test_missing_importance_is_ones(target):
    w = gaussian(4, 512, seed=14)
    np.testing.assert_array_equal(
        lutkern.pack(w, target, importance=ones(512)).blocks(), lutkern.pack(w, target).blocks()
    )


@pytest.mark.parametrize("useless", [0.0, -1.0, np.nan, np.inf])
@integer_packable
def test_useless_importance_is_replaced_by_the_mean(target, useless):
    w, a = gaussian(4, 512, seed=15), lognormal(512, seed=15)
    with_holes, filled = a.copy(), a.copy()
    with_holes[5::50] = useless
    filled[5::50] = np.delete(a, np.s_[5::50]).mean(dtype=np.float64)
    text = "pack: 11 of 512 entries of importance are not finite and positive, replaced by the mean of the others"
    with pytest.warns(RuntimeWarning, match=text):
        t = lutkern.pack(w, target, importance=with_holes)
    np.testing.assert_array_equal(t.blocks(), lutkern.pack(w, target, importance=filled).blocks())


@pytest.mark.parametrize("useless", [0.0, np.nan])
@integer_packable
def test_importance_without_any_use_is_ones(target, useless):
    w = gaussian(4, 512, seed=16)
    with pytest.warns(RuntimeWarning, match="pack: 512 of 512 entries of importance"):
        t = lutkern.pack(w, target, importance=np.full(512, useless))
    np.testing.assert_array_equal(t.blocks(), lutkern.pack(w, target).blocks())


@integer_packable
def test_importance_may_span_sixty_orders_of_magnitude(target):
    w = gaussian(8, 512, seed=17)
    a = (10.0 ** np.random.default_rng(17).uniform(-30, 30, 512)).astype(np.float32)
    t = lutkern.pack(w, target, importance=a)
    assert error(w, t, a) <= 0.5 * float(np.sum(a * w.astype(np.float64) ** 2))


@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-30, 1e-10, 1e-8, 1e-6, 1e-5])
def test_tiny_rows_are_no_worse_than_zeros(packable, magnitude):
    w = (np.random.default_rng(18).standard_normal((6, 512)) * magnitude).astype(np.float32)
    t = lutkern.pack(w, packable)
    assert np.isfinite(lutkern.dequantize(t)).all()
    assert error(w, t) <= 1.0001 * float(np.sum(w.astype(np.float64) ** 2))


@given(w=hnp.arrays(np.float32, (1, 256), elements=st.floats(-32768, 32768, width=32)))
def test_any_row_is_no_worse_than_zeros(packable, w):
    t = lutkern.pack(w, packable)
    assert np.isfinite(lutkern.dequantize(t)).all()
    assert error(w, t) <= 1.0001 * float(np.sum(w.astype(np.float64) ** 2))


@pytest.mark.parametrize("name", ["mxfp4", "bf16", "f32"])
def test_scales_that_reach_as_far_as_float32_refuse_nothing(name):
    w = gaussian(4, 512)
    w[2, 300] = 3e38
    restored = lutkern.dequantize(lutkern.pack(w, name))
    np.testing.assert_allclose(restored[2, 300], w[2, 300], rtol=1 / 6)


@pytest.mark.parametrize("target", [f for f in PACKABLE if f.name not in ("f32", "bf16", "mxfp4")], ids=str)
def test_rows_past_the_scale_are_refused(target):
    w = gaussian(4, 512)
    w[2, 300] = 3e38
    with pytest.raises(
        ValueError, match=rf"^pack: row 2 of w reaches 3e\+38, too large for the fp16 scale of {target}$"
    ):
        lutkern.pack(w, target)
