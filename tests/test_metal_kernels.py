"""Every Metal kernel on the CPU, by itself: against the reference, and to the bit where integers leave no room."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import lutkern
from lutkern import reference
from metal_launch import (
    TILE_FORMATS,
    Array,
    Experts,
    Macros,
    Shape,
    compile_all,
    dequantize,
    experts,
    formats,
    kernels,
    library,
    macros_of,
    product,
)
from sim.kernels import ACTIVATIONS, DTYPES, Packed
from sim.layers import (
    NUMBERS,
    Layer,
    exact_sum,
    expert_layer,
    integer_activations,
    integer_weight,
    numbers,
    random_bytes,
    random_weight,
)
from sim.metal.run import MetalError

N_ULP = 8
ODD_ROWS = [1, 31, 32, 33, 65]
ODD_COLS = [32, 100, 256, 288, 520]
FORMATS = formats()
TESTED: set[str] = set()


def after(fmt: str, of: tuple[str, ...]) -> str:
    """The next format of a list, after the last one the first."""
    return of[(of.index(fmt) + 1) % len(of)]


def each(*names: str) -> Callable[[Any], Any]:
    """Run a test with these kernels."""
    TESTED.update(names)
    return pytest.mark.parametrize("kernel", names)


tiled_formats = pytest.mark.parametrize("tiled", TILE_FORMATS)
any_format = pytest.mark.parametrize("name", FORMATS)
products = each("matvec", "matmul_small", "matmul_large", "product_any")


MIXED = {fmt: after(fmt, TILE_FORMATS) for fmt in ("iq1_m", "iq2_xxs", "iq2_s", "iq3_s")}
"""Formats of up, and another one of gate: of the same family and of each other one."""
COUPLES: list[tuple[str | None, str]] = [*zip(FORMATS[::2], FORMATS[1::2], strict=False), (None, FORMATS[-1])]
"""Every format, as gate or as up."""
KINDS = ("q4_k", "f16")


def all_libraries() -> list[Macros]:
    """What the tests below run, the longest to compile first."""
    found = [macros_of("matvec", fmt) for fmt in TILE_FORMATS]
    found += [macros_of("moe_up", fmt, fmt) for fmt in TILE_FORMATS]
    found += [macros_of("moe_up", gate, up) for up, gate in MIXED.items()]
    found += [macros_of(kernel, gate, "iq2_xs") for kernel in ("moe_up", "moe_up_any") for gate in (None, "iq2_xs")]
    found += [macros_of("product_any", fmt) for fmt in FORMATS]
    found += [macros_of("moe_up_any", *couple) for couple in [*COUPLES, KINDS]]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Compile what is not in the cache, side by side."""
    compile_all(all_libraries())


def test_every_kernel_has_a_test():
    assert set(kernels()) == TESTED


@pytest.mark.parametrize("name", kernels())
def test_a_library_has_the_kernels_of_its_kind(name):
    fmts = ("iq2_xs",) if kernels()[name].startswith("weight") else ("iq2_xs", "iq2_xs")
    of_kind = [other for other, kind in kernels().items() if kind == kernels()[name]]
    assert sorted(library(macros_of(name, *fmts)).kernels()) == sorted(of_kind)


def test_what_is_wrong_is_named():
    with pytest.raises(MetalError, match="'Nothing'"):
        library((("LK_TILES", 0), ("LK_WEIGHT", "Nothing")))
    with pytest.raises(MetalError, match="no_such_kernel"):
        library(macros_of("matvec", "iq1_m")).launch("no_such_kernel", b"", [], (1,), 32)


def same_bits(a: Array, b: Array) -> bool:
    """Equal to the bit, but any NaN is as good as another."""
    as_bits = {2: np.uint16, 4: np.uint32}[a.dtype.itemsize]
    alike = a.view(as_bits) == b.view(as_bits)
    return a.shape == b.shape and bool(np.all(alike | (np.isnan(a) & np.isnan(b))))


# ---- dequantize ----


def decoded(w: Packed, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        return reference.dequantize(w).astype(dtype)


@each("dequantize")
@tiled_formats
@pytest.mark.parametrize("dtype", DTYPES)
def test_decoding_is_exact(kernel, tiled, dtype):
    for rows, cols in zip(ODD_ROWS, ODD_COLS, strict=True):
        w = random_bytes(tiled, rows, cols, experts=2, seed=cols)
        found = dequantize(kernel, w, True, NUMBERS[dtype], Shape(seed=rows))
        assert same_bits(found, decoded(w, NUMBERS[dtype]))


@each("dequantize_any")
@any_format
def test_decoding_of_any_format_is_exact(kernel, name):
    for i, (rows, cols) in enumerate(zip(ODD_ROWS, [32, 100, 1256, 288, 520], strict=True)):
        w = random_bytes(name, rows, cols, experts=2, seed=cols)
        dtype = NUMBERS[list(DTYPES)[i % 3]]
        assert same_bits(dequantize(kernel, w, False, dtype), decoded(w, dtype))
        if name in TILE_FORMATS:
            assert same_bits(dequantize(kernel, w, True, dtype, Shape(seed=3)), decoded(w, dtype))


@contextmanager
def flushed_subnormals() -> Iterator[None]:
    """Take subnormal floats for zero in and out of arithmetic, as a GPU may: two bits of the register MXCSR."""
    libm, kept, changed = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
    for environment in (kept, changed):
        libm.fegetenv(environment)
    changed[7] |= 0x8040
    libm.fesetenv(changed)
    try:
        yield
    finally:
        libm.fesetenv(kept)


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="sets a register of x86-64")
@each("dequantize_any")
@any_format
def test_decoding_is_exact_where_subnormals_are_flushed(kernel, name):
    w = random_bytes(name, 33, 1256, seed=1)
    if name == "mxfp4":  # the two exponents of subnormal scales with every code
        w.all_blocks[:, ::17] &= 1
    for dtype in NUMBERS.values():
        expected = decoded(w, dtype)
        with flushed_subnormals():
            found = dequantize(kernel, w, False, dtype)
        assert same_bits(found, expected)


@each("dequantize", "dequantize_any")
@pytest.mark.parametrize("threads", [32, 64, 96])
def test_decoding_with_fewer_threads(kernel, threads):
    w = random_bytes("iq2_s", 65, 600, seed=threads)
    assert same_bits(dequantize(kernel, w, True, shape=Shape(threads=threads)), decoded(w, np.float32))


# ---- products ----


def assert_product(kernel: str, w: Packed, x: Array, **options: Any) -> None:
    exact = options.get("exact", False)
    error = np.abs(product(kernel, w, x, **options) - reference.matmul(w.matrix, x, exact=exact))
    assert np.all(error <= reference.fp32_bound(w.matrix, x, n_ulp=N_ULP, exact=exact))


def assert_integers(kernel: str, w: Packed, x: Array, **options: Any) -> None:
    """Equal to the bit to the exact sum, as the scalar kernels of the CPU are."""
    expected = exact_sum(w, x)
    t = lutkern.PackedTensor.from_blocks(w.matrix[0], w.format, (w.rows, w.cols))
    lutkern.use_isa("scalar")
    try:
        scalar = lutkern.matmul(t, x)
    finally:
        lutkern.use_isa(None)
    assert np.array_equal(scalar, expected)
    assert np.array_equal(product(kernel, w, x, **options), expected)


TOKENS = {
    "matvec": [1],
    "matmul_small": [2, 3, 4, 5, 6, 7, 8],
    "matmul_large": [9, 16, 17, 33, 64],
    "product_any": [1, 2, 3, 8, 9],
}


@each("matvec", "matmul_small", "matmul_large")
@tiled_formats
def test_products_are_the_reference(kernel, tiled):
    tokens = TOKENS[kernel]
    for i, (rows, cols) in enumerate(zip(ODD_ROWS, ODD_COLS, strict=True)):
        w = random_weight(tiled, rows, cols, seed=i)
        x = numbers(tokens[i % len(tokens)], cols, seed=i)
        assert_product(kernel, w, x, gap=i, shape=Shape(seed=i))


@each("matvec", "matmul_small", "matmul_large")
@tiled_formats
def test_products_have_the_integers_of_the_cpu(kernel, tiled):
    for i, tokens in enumerate(TOKENS[kernel]):
        rows, cols = ODD_ROWS[::-1][i % 5], [512, 300, 64][i % 3]
        w = integer_weight(tiled, rows, cols, seed=i)
        assert_integers(kernel, w, integer_activations(tokens, cols, seed=i), shape=Shape(seed=i))


@each("matvec", "matmul_small", "matmul_large")
@tiled_formats
def test_the_largest_sums_of_a_group_are_exact(kernel, tiled):
    """Nothing inside of 32 columns is rounded, whatever a kernel adds to its weights and takes away again."""
    w = integer_weight(tiled, 33, 32, seed=3)
    x = np.full((TOKENS[kernel][0], 32), 127, np.float32)
    assert_integers(kernel, w, x)
    assert_integers(kernel, w, -x)


@each("matvec", "matmul_small", "matmul_large")
def test_a_row_of_many_tiles(kernel):
    """More tiles than simdgroups of a threadgroup."""
    assert_product(kernel, random_weight("iq1_m", 40, 8448, seed=2), numbers(TOKENS[kernel][0], 8448, seed=2))


@products
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_take_halves(kernel, dtype):
    w = random_weight("iq3_s", 34, 300)
    x = numbers(TOKENS[kernel][-1], 300, dtype=dtype)
    assert_product(kernel, w, x, gap=3)


@each("product_any")
@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
@any_format
def test_products_of_any_format_are_the_reference(kernel, name, exact):
    for i, tokens in enumerate(TOKENS["product_any"]):
        rows, cols = [1, 17, 16, 33, 5][i], [520, 288, 2500, 100, 33][i]
        w = random_weight(name, rows, cols, seed=i)
        x = numbers(tokens, cols, seed=i, dtype=list(DTYPES)[i % 3])
        assert_product(kernel, w, x, tiles=False, exact=exact, gap=i, shape=Shape(seed=i))
        if name in TILE_FORMATS and i < 2:
            assert_product(kernel, w, x, tiles=True, exact=exact, gap=i, shape=Shape(seed=i))


@each("product_any")
def test_a_long_row_takes_several_chunks(kernel):
    for tokens, cols in [(1, 4500), (2, 2600)]:
        assert_product(kernel, random_weight("q4_k", 3, cols), numbers(tokens, cols), tiles=False)
        assert_product(kernel, random_weight("bf16", 3, cols), numbers(tokens, cols), tiles=False)


@each("product_any")
def test_products_of_any_format_have_the_integers_of_the_cpu(kernel, integer):
    w = integer_weight(integer.name, 18, 300, seed=1)
    x = integer_activations(9, 300)
    assert_integers(kernel, w, x, tiles=False)
    if integer.name in TILE_FORMATS:
        assert_integers(kernel, w, x, tiles=True)


@products
def test_a_range_of_rows_is_those_rows(kernel):
    w = random_weight("iq2_xs", 100, 256, seed=4)
    x = numbers(TOKENS[kernel][-1], 256, seed=4)
    whole = product(kernel, w, x)
    for begin, end in [(0, 1), (5, 32), (31, 97), (64, 100)]:
        part = product(kernel, w, x, row_range=(begin, end))
        assert same_bits(part[:, begin:end], whole[:, begin:end])


@products
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_gives_nan_and_no_other_does(kernel, bad):
    tokens = TOKENS[kernel][-1]
    w = random_weight("iq1_s", 40, 288, seed=5)
    x = numbers(tokens, 288, seed=5)
    x[tokens // 2, 270] = bad
    not_finite = ~np.isfinite(product(kernel, w, x))
    assert np.all(not_finite[tokens // 2])
    assert not np.any(np.delete(not_finite, tokens // 2, axis=0))


@products
def test_activations_that_are_tiny_or_huge(kernel):
    """Groups whose scale would be subnormal are zeros; the largest floats have a scale."""
    w = random_weight("iq3_xxs", 33, 256, seed=8)
    x = numbers(TOKENS[kernel][-1], 256, seed=8)
    x[:, :64] *= np.float32(1e-38)
    x[:, 64:96] *= np.float32(1e-40)
    assert_product(kernel, w, x)
    x[:, :] = 0
    x[0, 5], x[0, 77] = np.float32(3e34), np.float32(-3e34)
    assert_product(kernel, w, x)


@products
def test_the_order_of_threads_changes_nothing(kernel):
    w = random_weight("iq2_xxs", 65, 600, seed=6)
    x = numbers(TOKENS[kernel][-1], 600, seed=6)
    runs = [product(kernel, w, x, shape=Shape(seed=seed)) for seed in (0, 1, 2)]
    assert same_bits(runs[0], runs[1])
    assert same_bits(runs[0], runs[2])


@products
@pytest.mark.parametrize("threads", [32, 64, 96, 224])
def test_products_with_fewer_threads(kernel, threads):
    w = random_weight("iq1_m", 40, 520, seed=7)
    x = numbers(TOKENS[kernel][-1], 520, seed=7)
    assert_product(kernel, w, x, shape=Shape(seed=1, threads=threads))


@each("product_any")
def test_tokens_and_threads_change_no_row_of_any_format(kernel):
    w = random_weight("q6_k", 20, 2100, seed=9)
    x = numbers(5, 2100, seed=9)
    together = product(kernel, w, x, tiles=False)
    for token in range(5):
        alone = product(kernel, w, x[token : token + 1], tiles=False, shape=Shape(threads=96))
        assert same_bits(together[token : token + 1], alone)


# ---- experts ----

PAIRS = [("moe_up", "moe_down"), ("moe_up_batch", "moe_down_batch"), ("moe_up_any", "moe_down_any")]
TESTED.update(kernel for pair in PAIRS for kernel in pair)
pairs = pytest.mark.parametrize("pair", PAIRS, ids="+".join)
tuned_pairs = pytest.mark.parametrize("pair", PAIRS[:2], ids="+".join)
Pair = tuple[str, str]


def layer_of(fmt: str, **options: Any) -> Layer:
    """Gate and up of one format, down of another."""
    return expert_layer(options.pop("gate", fmt), fmt, after(fmt, TILE_FORMATS), **options)


def assert_layer(pair: Pair, layer: Layer, **options: Any) -> Experts:
    found = experts(pair, layer, **options)
    assert np.all(np.abs(found.y - layer.expected()) <= layer.bound(N_ULP))
    return found


@tuned_pairs
@tiled_formats
def test_experts_are_the_reference(pair, tiled):
    shape = {"inter": 65, "hidden": 288}
    assert_layer(pair, layer_of(tiled, tokens=2, k=2, seed=1, **shape), gap=3)
    assert_layer(pair, layer_of(tiled, tokens=5, k=3, inter=31, seed=2), shape=Shape(seed=2))


@tuned_pairs
@pytest.mark.parametrize("up", MIXED)
def test_gate_up_and_down_of_three_formats(pair, up):
    gate = MIXED[up]
    assert_layer(pair, expert_layer(gate, up, after(gate, TILE_FORMATS), tokens=3, inter=65, hidden=288, seed=1))


@pairs
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_functions(pair, activation):
    assert_layer(pair, layer_of("iq2_xs", activation=activation))


@pairs
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_layer_without_a_gate(pair, activation):
    assert_layer(pair, layer_of("iq2_xs", gate=None, activation=activation))


@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
@pytest.mark.parametrize("couple", COUPLES, ids=lambda couple: "+".join(map(str, couple)))
def test_experts_of_any_format_are_the_reference(couple, exact):
    """In blocks and in tiles, and every format as down too."""
    gate, up = couple
    for i, down in enumerate(filter(None, couple)):
        tiles = (gate in TILE_FORMATS and i == 0, up in TILE_FORMATS and i == 0, down in TILE_FORMATS and i == 0)
        layer = expert_layer(gate, up, down, tokens=2, inter=33, exact=exact, tiles=tiles)
        assert_layer(PAIRS[2], layer, shape=Shape(seed=i))


@pytest.mark.parametrize("threads", [96, None])
def test_gate_may_meet_integers_and_up_floats(threads):
    """Rows of several chunks, and a down of floats."""
    layer = expert_layer(*KINDS, "f32", tokens=1, hidden=2300, inter=33, tiles=(False, False, False))
    assert_layer(PAIRS[2], layer, shape=Shape(threads=threads))


@tuned_pairs
@pytest.mark.parametrize("tokens", [1, 9, 33])
def test_layers_of_several_tiles(pair, tokens):
    """More rows of h than one tile, and experts with none, one and many tokens."""
    layer = layer_of("iq1_s", tokens=tokens, k=2, experts=4, inter=270, hidden=264, seed=tokens)
    layer.ids[:] = np.where(np.arange(tokens)[:, None] % 8 == 7, [[3, 0]], [[2, 0]])
    assert_layer(pair, layer)


@pairs
def test_a_token_may_ask_for_an_expert_twice(pair):
    layer = layer_of("iq2_xs", tokens=4, k=3)
    layer.ids[:] = [[2, 2, 1], [4, 4, 4], [0, 1, 0], [3, 3, 2]]
    assert_layer(pair, layer)


@pairs
def test_ids_outside_of_the_experts_make_their_token_nan(pair):
    layer = layer_of("iq2_xs", tokens=5, k=2)
    layer.ids[:] = [[0, 1], [5, 1], [2, -1], [-7, 2**31 - 1], [4, 3]]
    y = experts(pair, layer).y
    assert np.all(np.isnan(y[[1, 2, 3]]))
    layer.ids[[1, 2, 3]] = 0
    good = [0, 4]
    assert np.all(np.abs(y - layer.expected())[good] <= layer.bound(N_ULP)[good])


@pairs
def test_partial_layers_leave_ids_of_minus_one_out(pair):
    layer = layer_of("iq2_xs", tokens=4, k=3, partial=True)
    layer.ids[:] = [[-1, 1, 4], [-1, -1, -1], [2, 3, -1], [0, -2, 1]]
    y = experts(pair, layer).y
    left_out = layer.ids < 0
    layer.ids[left_out] = 0
    layer.weights[left_out] = 0
    assert np.all(np.isnan(y[3]))
    assert not np.any(y[1])
    assert np.all(np.abs(y - layer.expected())[:3] <= layer.bound(N_ULP)[:3])


@pairs
def test_a_token_of_experts_that_is_not_finite_gives_nan_and_no_other_does(pair):
    layer = layer_of("iq2_xs", tokens=9, k=2, activation=None)
    layer.x[4, 99] = np.inf
    not_finite = ~np.isfinite(experts(pair, layer).y)
    assert np.all(not_finite[4])
    assert not np.any(np.delete(not_finite, 4, axis=0))


@pairs
@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
def test_hidden_numbers_are_those_of_the_reference(pair, exact):
    """As integers they are quantised like activations; rows past the last are zero."""
    if exact and "any" not in pair[0]:
        return
    layer = layer_of("iq2_xs", tokens=3, k=2, inter=75, activation="relu2", exact=exact)
    found = experts(pair, layer)
    floats = expert_layer("iq2_xs", "iq2_xs", "f32", k=2, inter=75, activation="relu2", exact=exact)
    floats.tiles = (True, True, False)
    floats.x, floats.ids = layer.x, layer.ids
    h = experts(PAIRS[2], floats).h
    assert not np.any(h[:, 75:])
    for token in range(3):
        for slot in range(2):
            expert = layer.ids[token, slot]
            g, u = (
                reference.matvec((w.blocks()[expert], w.format, (75, 100)), layer.x[token], exact=exact)
                for w in (layer.gate, layer.up)
                if w is not None
            )
            expected = np.maximum(g, 0) ** 2 * u
            assert np.allclose(h[2 * token + slot, :75], expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
    if found.h_scale is None:
        assert np.allclose(found.h, h, rtol=1e-5, atol=2e-6 * np.abs(h).max())
        return
    scales = np.repeat(found.h_scale, 32, axis=1)
    assert not np.any(found.h[:, 75:])
    assert np.array_equal(found.h, np.rint(found.h))
    assert np.abs(found.h).max() == 127
    assert np.all(np.abs(found.h * scales - h) <= 0.501 * scales)


@pairs
def test_the_order_of_threads_changes_nothing_in_a_layer(pair):
    layer = layer_of("iq2_xs", tokens=5, k=2)
    runs = [experts(pair, layer, shape=Shape(seed=seed)).y for seed in (0, 1, 2)]
    assert same_bits(runs[0], runs[1])
    assert same_bits(runs[0], runs[2])


@pairs
@pytest.mark.parametrize("threads", [32, 96, 224])
def test_layers_with_fewer_threads(pair, threads):
    layer = layer_of("iq2_xs", tokens=10, k=2, experts=3, inter=70)
    assert_layer(pair, layer, shape=Shape(seed=1, threads=threads))
