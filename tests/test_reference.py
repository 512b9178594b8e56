"""The NumPy reference: exact against the gguf package, and against what each operation is by definition."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lutkern
from lutkern import reference
from reference_samples import (
    ALL,
    FLOAT,
    INTEGER,
    Q8_ROWS,
    ULP,
    X,
    experts,
    gaussian,
    gguf_dequantize,
    gguf_type,
    tensor,
)


def test_the_registry_is_the_librarys_list_of_formats() -> None:
    ours = [(f.name, f.block_size, f.block_bytes, f.is_float) for f in reference.FORMATS.values()]
    assert ours == [(f.name, f.block_size, f.block_bytes, f.is_float) for f in lutkern.formats()]


@pytest.mark.parametrize("name", ALL)
def test_sizes_are_those_of_gguf(name: str) -> None:
    fmt = reference.FORMATS[name]
    assert (fmt.block_size, fmt.block_bytes) == gguf.GGML_QUANT_SIZES[gguf_type(name)]


def test_the_reference_needs_numpy_alone() -> None:
    for path in sorted(Path(reference.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, f"{path.name} reaches outside the package"
                continue
            else:
                continue
            for module in modules:
                first = module.split(".")[0]
                assert first == "numpy" or first in sys.stdlib_module_names, f"{path.name} imports {module}"


# Bytes to draw from. Many zeros make scales zero or subnormal; the last set holds the largest fp16 and infinities.
ALPHABETS = {
    "any": range(256),
    "mostly zero": [0] * 40 + list(range(256))[::16],
    "zeros of both signs": [0, 0, 0x80],
    "small": [0, 1, 2, 3, 0x80, 0x81, 0x83],
    "extreme": [0, 0x7B, 0xFB, 0xFF, 0x80],
}


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("name", ALL)
def test_dequantize_equals_gguf_to_the_bit(name: str, alphabet: str) -> None:
    fmt = reference.FORMATS[name]
    rng = np.random.default_rng(7)
    blocks = rng.choice(np.array(ALPHABETS[alphabet], dtype=np.uint8), (256, fmt.block_bytes))
    expected = gguf_dequantize(blocks, name).reshape(256, fmt.block_size)
    got = reference.dequantize(blocks, name, expected.shape)
    assert got.dtype == np.float32
    finite = np.isfinite(expected)
    assert finite.any()
    np.testing.assert_array_equal(np.isfinite(got), finite)
    np.testing.assert_array_equal(got.view(np.uint32)[finite], expected.view(np.uint32)[finite])


@pytest.mark.parametrize("name", INTEGER)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_block_with_finite_scales_equals_gguf(name: str, data: st.DataObject) -> None:
    fmt = reference.FORMATS[name]
    raw = data.draw(st.binary(min_size=fmt.block_bytes, max_size=fmt.block_bytes))
    blocks = np.frombuffer(raw, dtype=np.uint8).reshape(1, -1)
    expected = gguf_dequantize(blocks, name)
    got = reference.dequantize(blocks, name, (1, fmt.block_size))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got.view(np.uint32)[finite], expected.view(np.uint32)[finite])


@pytest.mark.parametrize("name", INTEGER)
def test_unpack_gives_integers_whose_line_is_dequantize(name: str) -> None:
    t = tensor(name, rows=5, cols=1024)
    q, scale, offset = reference.unpack(t.blocks(), name)
    assert (q.dtype, scale.dtype, offset.dtype) == (np.int8, np.float32, np.float32)
    assert (q.shape, scale.shape, offset.shape) == ((5, 1024), (5, 64), (5, 64))
    line = np.repeat(scale, 16, axis=1) * q.astype(np.float32) + np.repeat(offset, 16, axis=1)
    np.testing.assert_array_equal(line.view(np.uint32), reference.dequantize(t).view(np.uint32))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("iq1_s", [-9, -7, -1, 1, 7, 9]),
        ("iq1_m", [-9, -7, -1, 1, 7, 9]),
        ("iq2_xxs", [-43, -25, -8, 8, 25, 43]),
        ("iq3_xxs", [-62, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 62]),
        ("tq2_0", [-1, 0, 1, 2]),
        ("q2_k", [0, 1, 2, 3]),
        ("mxfp4", [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12]),
    ],
)
def test_unpacked_integers_are_the_formats_own(name: str, values: list[int]) -> None:
    q = reference.unpack(tensor(name, rows=16, cols=1024).blocks(), name).q
    assert np.unique(q).tolist() == values


def test_one_block_of_q8_0_by_hand() -> None:
    scale = np.array([0.5], dtype="<f2").view(np.uint8)
    block = np.concatenate([scale, np.arange(-16, 16).astype(np.int8).view(np.uint8)])
    np.testing.assert_array_equal(reference.dequantize(block, "q8_0", (1, 32)), np.arange(-16, 16)[None] / 2)


def test_one_group_of_iq2_xxs_by_hand() -> None:
    block = np.zeros(66, dtype=np.uint8)
    block[0:2] = np.array([1.0], dtype="<f2").view(np.uint8)
    word = (
        3 << 28 | 0b0000001 | 0b0000011 << 7
    )  # s = 3; row 0: weights 0 and 7 negative; row 1: weights 0 and 1 negative
    block[6:10] = np.array([word], dtype="<u4").view(np.uint8)
    weight = 3.5 / 4 * 8  # row 0 of the codebook is eight times 8
    expected = np.full(32, weight, dtype=np.float32)
    expected[[0, 7, 8, 9]] *= -1
    np.testing.assert_array_equal(reference.dequantize(block, "iq2_xxs", (1, 256))[0, :32], expected)


def test_padding_columns_are_left_out_and_experts_stay_apart() -> None:
    t = experts("iq2_s", 3, 4, 300, seed=2)
    got = reference.dequantize(t)
    assert got.shape == (3, 4, 300)
    np.testing.assert_array_equal(got, gguf_dequantize(t.blocks(), "iq2_s")[..., :300])
    np.testing.assert_array_equal(reference.dequantize(t.blocks()[1], "iq2_s", (4, 300)), got[1])


def test_activations_lose_less_than_one_percent_of_a_gaussian() -> None:
    x = gaussian(64, 512)
    q, scale = reference.quantize_activations(x)
    error = np.linalg.norm(q * np.repeat(scale, 32, axis=1) - x) / np.linalg.norm(x)
    assert 0.001 < error < 0.01


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 100), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_activations_are_off_by_half_a_step_at_most(x: npt.NDArray[np.float32]) -> None:
    q, scale = reference.quantize_activations(x)
    assert q.shape == (-(-x.size // 32) * 32,)
    assert np.abs(q.astype(int)).max() <= 127
    step = np.repeat(scale.astype(np.float64), 32)
    restored = (step * q)[: x.size]
    # float32 rounds the product with 127 / amax: at 127 steps that is another 127 * 3 * 2^-24 of a step.
    allowed = np.maximum(step[: x.size] * (0.5 + 127 * 3 * ULP), 0)
    tiny = step[: x.size] == 0
    assert np.all(np.abs(restored - x)[~tiny] <= allowed[~tiny])
    assert np.all(np.abs(x[tiny]) < 127 * 2.0**-126)
    assert not q[x.size :].any()


def test_activations_round_half_to_even() -> None:
    x = np.zeros(32, dtype=np.float32)
    x[:5] = [127, 0.5, 1.5, 2.5, -0.5]
    q, scale = reference.quantize_activations(x)
    assert scale.tolist() == [1.0]
    assert q[:5].tolist() == [127, 0, 2, 2, 0]


def test_activations_below_the_smallest_scale_become_zero() -> None:
    limit = np.float32(127 * 2.0**-126)
    x = np.zeros((2, 32), dtype=np.float32)
    x[0, 3], x[1, 3] = limit, np.nextafter(limit, np.float32(0))
    q, scale = reference.quantize_activations(x)
    assert scale[:, 0].tolist() == [2.0**-126, 0.0]
    assert q[:, 3].tolist() == [127, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_activation_makes_its_scale_nan_and_no_other(value: float) -> None:
    x = gaussian(64)
    x[40] = value
    q, scale = reference.quantize_activations(x)
    assert np.isnan(scale).tolist() == [False, True]
    assert not q[32:].any()
    assert not np.isfinite(reference.matvec(tensor("iq1_m", cols=64), x)).any()


def test_activations_of_16_bits_are_taken_as_they_are() -> None:
    x = gaussian(64)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        short = x.astype(dtype)
        for got, expected in zip(
            reference.quantize_activations(short),
            reference.quantize_activations(short.astype(np.float32)),
            strict=True,
        ):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("cols", [512, 300, 32])
@pytest.mark.parametrize("name", ALL)
def test_exact_matvec_is_the_dot_product_of_gguf_weights(name: str, cols: int) -> None:
    t = tensor(name, cols=cols)
    x = gaussian(cols)
    weights = gguf_dequantize(t.blocks(), name)[:, :cols].astype(np.float64)
    bound = 512 * 2.0**-53 * (np.abs(weights) @ np.abs(x.astype(np.float64)))
    assert np.all(np.abs(reference.matvec(t, x, exact=True) - weights @ x.astype(np.float64)) <= bound)


@pytest.mark.parametrize("cols", [512, 300, 48])
@pytest.mark.parametrize("name", INTEGER)
def test_matvec_is_the_dot_product_with_quantised_activations(name: str, cols: int) -> None:
    t = tensor(name, cols=cols)
    x = gaussian(cols)
    q, scale = reference.quantize_activations(x)
    rounded = (q * np.repeat(scale.astype(np.float64), 32))[:cols]
    weights = gguf_dequantize(t.blocks(), name)[:, :cols].astype(np.float64)
    # gguf rounds scale * q + offset to float32: two roundings, each of a part of the terms.
    q_part, weight_scale, offset = reference.unpack(t.blocks(), name)
    terms = np.abs(np.repeat(weight_scale, 16, axis=1) * q_part) + np.abs(np.repeat(offset, 16, axis=1))
    bound = 2 * ULP * (terms[:, :cols] @ np.abs(rounded)) + 1e-12
    assert np.all(np.abs(reference.matvec(t, x) - weights @ rounded) <= bound)


@pytest.mark.parametrize("name", FLOAT)
def test_float_formats_never_quantise_activations(name: str) -> None:
    t = tensor(name)
    x = gaussian(512)
    np.testing.assert_array_equal(reference.matvec(t, x), reference.matvec(t, x, exact=True))


@pytest.mark.parametrize("name", ALL)
def test_matvec_with_a_one_hot_x_is_a_column(name: str) -> None:
    t = tensor(name, cols=300)
    x = np.zeros(300, dtype=np.float32)
    x[277] = 1
    column = reference.dequantize(t)[:, 277]
    np.testing.assert_array_equal(reference.matvec(t, x, exact=True), column)
    # Quantised, the 1 is 127 steps of float32(1 / 127); and float32 rounded the column.
    assert np.all(np.abs(reference.matvec(t, x) - column) <= reference.fp32_bound(t, x, n_ulp=4))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["iq1_s", "q4_k", "q8_0", "f16"])
def test_matmul_rows_are_matvecs(name: str, exact: bool) -> None:
    t = tensor(name)
    x = gaussian(3, 512)
    got = reference.matmul(t, x, exact=exact)
    assert (got.shape, got.dtype) == ((3, 6), np.float64)
    for row, token in zip(got, x, strict=True):
        np.testing.assert_array_equal(row, reference.matvec(t, token, exact=exact))
    assert reference.matmul(t, x[:0], exact=exact).shape == (0, 6)


def test_a_tuple_is_as_good_as_a_tensor() -> None:
    t = tensor("iq3_s")
    x = gaussian(512)
    given_parts = (t.blocks().tobytes(), "iq3_s", (6, 512))
    np.testing.assert_array_equal(reference.matvec(given_parts, x), reference.matvec(t, x))
    np.testing.assert_array_equal(reference.dequantize(*given_parts), reference.dequantize(t))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: reference.unpack(np.zeros(34, np.uint8), "q9"), ValueError,
         "unpack: unknown format 'q9', expected one of iq1_s iq1_m "),
        (lambda: reference.unpack(np.zeros(2, np.uint8), "f16"), ValueError,
         "unpack: f16 holds floating-point weights, expected an integer format"),
        (lambda: reference.unpack(np.zeros(35, np.uint8), "q8_0"), ValueError,
         "unpack: a row has 35 bytes, q8_0 needs a multiple of 34"),
        (lambda: reference.dequantize(np.zeros(35, np.uint8), "q8_0", (1, 32)), ValueError,
         "dequantize: blocks hold 35 bytes, q8_0 (1, 32) needs 34"),
        (lambda: reference.quantize_activations(np.zeros(4)), TypeError,
         "quantize_activations: x is float64, expected float32, float16 or bfloat16"),
        (lambda: reference.matvec(Q8_ROWS, X[:511]), ValueError, "matvec: x has 511 columns, the weight has 512"),
        (lambda: reference.matvec(Q8_ROWS, X[None]), ValueError, "matvec: x has shape (1, 512), expected (cols,)"),
        (lambda: reference.matvec(Q8_ROWS, X.astype(np.int32)), TypeError,
         "matvec: x is int32, expected float32, float16 or bfloat16"),
        (lambda: reference.matmul(Q8_ROWS, X), ValueError, "matmul: x has shape (512,), expected (tokens, cols)"),
        (lambda: reference.matmul((Q8_ROWS[0], "q8_0", (2, 3, 512)), X), ValueError,
         "matmul: the weight has shape (2, 3, 512), expected (rows, cols)"),
    ],
)  # fmt: skip
def test_errors_say_what_came_and_what_was_expected(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(text)
