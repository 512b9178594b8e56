"""Every CUDA kernel on the CPU, by itself: against the reference, and to the bit where integers leave no room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lutkern
from lutkern import reference
from sim import kernels as sim
from sim.kernels import DequantizeArgs, Memory, ProductArgs, QuantizeArgs, RepackArgs, SimError, address
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

N_ULP = 8
ODD_ROWS = [1, 31, 32, 33, 65]
ODD_COLS = [32, 100, 256, 288, 520]
TESTED: set[str] = set()


def each(*families: str) -> Callable[[Any], Any]:
    """Run a test with every kernel of these families."""
    TESTED.update(families)
    cases = [kernel for kernel in sim.kernels() if kernel.family in families]
    assert {kernel.family for kernel in cases} == set(families)
    return pytest.mark.parametrize("kernel", cases, ids=lambda kernel: kernel.name)


def test_every_kernel_has_a_test():
    assert {kernel.family for kernel in sim.kernels()} == TESTED


def test_the_device_text_has_the_kernels_of_the_header():
    assert sim.registry() == {kernel.name: sim.ctypes.sizeof(kernel.args) for kernel in sim.kernels()}


def same_bits(a: sim.Array, b: sim.Array) -> bool:
    """Equal to the bit, but any NaN is as good as another."""
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    as_bits = {2: np.uint16, 4: np.uint32}[a.dtype.itemsize]
    alike = a.view(as_bits) == b.view(as_bits)
    return a.shape == b.shape and bool(np.all(alike | (np.isnan(a) & np.isnan(b))))


# ---- repack ----


@each("to_tiles", "to_blocks")
@pytest.mark.parametrize("rows", ODD_ROWS)
def test_tiles_hold_all_bytes(kernel, rows):
    """Both ways; and the rows of a tile that the weight does not have are what zero bytes make."""
    w = random_bytes(kernel.fmt, rows, 700, experts=2, seed=rows)
    with Memory() as memory:
        tiles = sim.to_tiles(memory, w, seed=1)
        back = memory.room(w.all_blocks.shape, np.uint8)
        args = RepackArgs(source=address(tiles), to=address(back), experts=2, rows=rows, row_blocks=3)
        sim.run(f"to_blocks_{kernel.fmt}", args, seed=2)
        assert np.array_equal(back, w.all_blocks)
        padded = np.zeros((2, sim.round_up(rows, 32), w.all_blocks.shape[1]), np.uint8)
        padded[:, :rows] = w.blocks()
        filled = sim.Packed(w.format, 2, padded.shape[1], w.cols, padded.reshape(-1, padded.shape[2]))
        assert np.array_equal(sim.to_tiles(memory, filled), tiles)


# ---- dequantize ----


def dequantize(kernel: str, w: sim.Packed, tiles: bool, dtype: str = "float32", seed: int = 0) -> sim.Array:
    with Memory() as memory:
        out = memory.room(w.shape, NUMBERS[dtype])
        args = DequantizeArgs(w=sim.weight_args(memory, w, tiles), out=address(out), dtype=sim.DTYPES[dtype])
        sim.run(kernel, args, seed)
        return out.copy()


def decoded(w: sim.Packed, dtype: str) -> sim.Array:
    with np.errstate(all="ignore"):
        return reference.dequantize(w).astype(NUMBERS[dtype])


@each("dequantize")
@pytest.mark.parametrize("rows", ODD_ROWS)
@pytest.mark.parametrize("dtype", sim.DTYPES)
def test_decoding_is_exact(kernel, rows, dtype):
    for cols in ODD_COLS:
        w = random_bytes(kernel.fmt, rows, cols, experts=2, seed=cols)
        assert same_bits(dequantize(kernel.name, w, True, dtype, seed=cols), decoded(w, dtype))


@each("dequantize_any")
def test_decoding_of_any_format_is_exact(kernel, fmt):
    for rows, cols in zip(ODD_ROWS, ODD_COLS, strict=True):
        w = random_bytes(fmt.name, rows, cols, experts=2, seed=cols)
        for dtype in sim.DTYPES:
            assert same_bits(dequantize(kernel.name, w, False, dtype), decoded(w, dtype))
        if fmt.name in sim.TILE_FORMATS:
            assert same_bits(dequantize(kernel.name, w, True, seed=3), decoded(w, "float32"))


# ---- quantize ----


def quantize(kernel: str, x: sim.Array, gap: int = 0, seed: int = 0) -> tuple[sim.Array, sim.Array]:
    with Memory() as memory:
        to, q, scale = sim.quantized_room(memory, *x.shape)
        sim.run(kernel, QuantizeArgs(x=sim.matrix_args(memory, x, gap), to=to), seed)
        return q.copy(), scale.copy()


def assert_quantised(x: sim.Array, q: sim.Array, scale: sim.Array) -> None:
    expected = reference.quantize_activations(x)
    cols, groups = expected.q.shape[1], expected.scale.shape[1]
    assert np.array_equal(q[:, :cols], expected.q)
    assert np.array_equal(scale[:, :groups], expected.scale, equal_nan=True)
    assert not q[:, cols:].any()
    assert not np.any(scale[:, groups:])


@each("quantize")
@pytest.mark.parametrize("dtype", sim.DTYPES)
def test_activations_quantise_like_the_reference(kernel, dtype):
    for tokens, cols in [(1, 32), (3, 100), (2, 257), (33, 288), (9, 1100)]:
        x = numbers(tokens, cols, seed=cols, dtype=dtype)
        x[0, :32] = 0
        assert_quantised(x, *quantize(kernel.name, x, gap=cols % 7, seed=cols))


@each("quantize")
def test_activations_that_are_tiny_huge_or_not_finite_quantise_like_the_reference(kernel):
    x = numbers(6, 320, seed=5)
    x[0] *= np.float32(1e-39)
    x[1] *= np.float32(1e38)
    x[2, 40], x[3, 41], x[4, 42] = np.nan, np.inf, -np.inf
    x[5] = np.float32(127) * np.arange(-160, 160, dtype=np.float32) / 318  # halves: to even
    x[1, 0] = np.float32(3.4028234663852886e38)
    with np.errstate(over="ignore"):
        assert_quantised(x, *quantize(kernel.name, x))


# ---- products ----


def product(
    kernel: str,
    w: sim.Packed,
    x: sim.Array,
    *,
    tiles: bool = True,
    exact: bool = False,
    row_range: tuple[int, int] | None = None,
    gap: int = 0,
    seed: int = 0,
) -> sim.Array:
    """Return out (tokens, rows); rows outside of row_range keep the bytes 0xA5."""
    begin, end = row_range or (0, w.rows)
    with Memory() as memory:
        out = memory.room((len(x), w.rows + 3), np.float32)
        args = ProductArgs(
            w=sim.weight_args(memory, w, tiles),
            x=sim.matrix_args(memory, x, gap),
            out=address(out),
            out_stride=w.rows + 3,
            row_begin=begin,
            row_end=end,
            exact=int(exact),
        )
        if kernel.startswith("matmul_large"):
            args.xq, _, _ = sim.quantized_room(memory, *x.shape)
            sim.run("quantize", QuantizeArgs(x=args.x, to=args.xq), seed)
        sim.run(kernel, args, seed)
        untouched = out.view(np.uint32) == 0xA5A5A5A5
        assert np.all(untouched[:, w.rows :]), "written past the last row"
        assert np.all(untouched[:, :begin]), "written before the range"
        assert np.all(untouched[:, end : w.rows]), "written past the range"
        return out[:, : w.rows].copy()


def assert_product(kernel: str, w: sim.Packed, x: sim.Array, **options: Any) -> None:
    exact = options.get("exact", False)
    error = np.abs(product(kernel, w, x, **options) - reference.matmul(w.matrix, x, exact=exact))
    assert np.all(error <= reference.fp32_bound(w.matrix, x, n_ulp=N_ULP, exact=exact))


def assert_integers(kernel: str, w: sim.Packed, x: sim.Array, **options: Any) -> None:
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
    "product_any": [1, 2, 8, 9, 17],
}


@each("matvec", "matmul_small", "matmul_large")
def test_products_are_the_reference(kernel):
    tokens = TOKENS[kernel.family]
    for i, (rows, cols) in enumerate(zip(ODD_ROWS, ODD_COLS, strict=True)):
        w = random_weight(kernel.fmt, rows, cols, seed=i)
        assert_product(kernel.name, w, numbers(tokens[i % len(tokens)], cols, seed=i), gap=i, seed=i)


@each("matvec", "matmul_small", "matmul_large")
def test_products_have_the_integers_of_the_cpu(kernel):
    for i, tokens in enumerate(TOKENS[kernel.family]):
        rows, cols = ODD_ROWS[::-1][i % 5], [512, 300, 64][i % 3]
        w = integer_weight(kernel.fmt, rows, cols, seed=i)
        assert_integers(kernel.name, w, integer_activations(tokens, cols, seed=i), seed=i)


@each("matvec", "matmul_small", "matmul_large")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_take_halves(kernel, dtype):
    w = random_weight(kernel.fmt, 34, 300)
    tokens = TOKENS[kernel.family][-1]
    assert_product(kernel.name, w, numbers(tokens, 300, dtype=dtype), gap=3)


@each("product_any")
@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
def test_products_of_any_format_are_the_reference(kernel, fmt, exact):
    layouts = [False, True] if fmt.name in sim.TILE_FORMATS else [False]
    for i, tokens in enumerate(TOKENS["product_any"]):
        rows, cols = ODD_ROWS[i], [520, 288, 1100, 100, 33][i]
        w = random_weight(fmt.name, rows, cols, seed=i)
        x = numbers(tokens, cols, seed=i, dtype=list(sim.DTYPES)[i % 3])
        for tiles in layouts:
            assert_product(kernel.name, w, x, tiles=tiles, exact=exact, gap=i, seed=i)


@each("product_any")
def test_products_of_any_format_have_the_integers_of_the_cpu(kernel, integer):
    w = integer_weight(integer.name, 18, 300, seed=1)
    x = integer_activations(9, 300)
    assert_integers(kernel.name, w, x, tiles=False)
    if integer.name in sim.TILE_FORMATS:
        assert_integers(kernel.name, w, x, tiles=True)


@each("matvec", "matmul_small", "matmul_large", "product_any")
def test_a_range_of_rows_is_those_rows(kernel):
    fmt = kernel.fmt or "q4_k"
    tokens = TOKENS[kernel.family][-1]
    w = random_weight(fmt, 100, 256, seed=4)
    x = numbers(tokens, 256, seed=4)
    whole = product(kernel.name, w, x, tiles=kernel.fmt is not None)
    for begin, end in [(0, 1), (5, 32), (31, 97), (64, 100)]:
        part = product(kernel.name, w, x, tiles=kernel.fmt is not None, row_range=(begin, end))
        assert same_bits(part[:, begin:end], whole[:, begin:end])


@each("matvec", "matmul_small", "matmul_large", "product_any")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_gives_nan_and_no_other_does(kernel, bad):
    fmt = kernel.fmt or "q2_k"
    tokens = TOKENS[kernel.family][-1]
    w = random_weight(fmt, 40, 288, seed=5)
    x = numbers(tokens, 288, seed=5)
    x[tokens // 2, 270] = bad
    y = product(kernel.name, w, x, tiles=kernel.fmt is not None)
    not_finite = ~np.isfinite(y)
    assert np.all(not_finite[tokens // 2])
    assert not np.any(np.delete(not_finite, tokens // 2, axis=0))


@each("matvec", "matmul_small", "matmul_large", "product_any")
def test_the_order_of_threads_changes_nothing(kernel):
    w = random_weight(kernel.fmt or "q6_k", 65, 600, seed=6)
    x = numbers(TOKENS[kernel.family][-1], 600, seed=6)
    runs = [product(kernel.name, w, x, tiles=kernel.fmt is not None, seed=seed) for seed in (0, 1, 2)]
    assert same_bits(runs[0], runs[1])
    assert same_bits(runs[0], runs[2])


# ---- experts ----

PAIRS = [
    ("moe_up", "moe_down"),
    ("moe_up_batch", "moe_down_batch"),
    ("moe_up_any", "moe_down_any"),
    ("moe_up_mixed", "moe_down"),
    ("moe_up_batch_mixed", "moe_down_batch"),
]
TESTED.update(family for pair in PAIRS for family in pair)
NEIGHBOUR = dict(zip(sim.TILE_FORMATS, sim.TILE_FORMATS[1:] + sim.TILE_FORMATS[:1], strict=True))
"""Another format with tiles."""


def name_of(family: str, fmt: str) -> str:
    names = {kernel.name for kernel in sim.kernels()}
    return family if family in names else f"{family}_{fmt}"


def layer_of(pair: tuple[str, str], fmt: str, **options: Any) -> Layer:
    """Gate, up and down as these kernels take them: of one format, or of three."""
    if "mixed" in pair[0]:
        return expert_layer(NEIGHBOUR[fmt], fmt, NEIGHBOUR[NEIGHBOUR[fmt]], **options)
    return expert_layer(options.pop("gate", fmt), fmt, NEIGHBOUR[fmt], **options)


def run_layer(pair: tuple[str, str], layer: Layer, both: bool = False) -> sim.Array:
    return layer.run(name_of(pair[0], layer.up.format), name_of(pair[1], layer.down.format), both)


def assert_layer(pair: tuple[str, str], layer: Layer) -> None:
    error = np.abs(run_layer(pair, layer) - layer.expected())
    assert np.all(error <= layer.bound(N_ULP))


pairs = pytest.mark.parametrize("pair", PAIRS, ids="+".join)


@pairs
@pytest.mark.parametrize("tiled", sim.TILE_FORMATS)
def test_experts_are_the_reference(pair, tiled):
    assert_layer(pair, layer_of(pair, tiled, tokens=2, k=2, inter=65, hidden=288, seed=1))
    assert_layer(pair, layer_of(pair, tiled, tokens=5, k=3, inter=31, seed=2))


@pairs
@pytest.mark.parametrize("activation", sim.ACTIVATIONS)
def test_activation_functions(pair, activation):
    assert_layer(pair, layer_of(pair, "iq2_xs", activation=activation))


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if "mixed" not in pair[0]], ids="+".join)
@pytest.mark.parametrize("activation", sim.ACTIVATIONS)
def test_a_layer_without_a_gate(pair, activation):
    assert_layer(pair, layer_of(pair, "iq1_m", gate=None, activation=activation))


@pytest.mark.parametrize("exact", [False, True], ids=["int8", "exact"])
def test_experts_of_any_format_are_the_reference(fmt, exact):
    layer = expert_layer(fmt.name, "q8_0", fmt.name, tokens=2, exact=exact, tiles=(False, False, False))
    assert_layer(PAIRS[2], layer)
    tiles = (False, fmt.name in sim.TILE_FORMATS, False)
    layer = expert_layer(None, fmt.name, "f16", tokens=1, k=1, exact=exact, tiles=tiles)
    assert_layer(PAIRS[2], layer)


@pairs
@pytest.mark.parametrize("tokens", [1, 9, 33])
def test_layers_of_several_tiles(pair, tokens):
    """More rows of h than one tile, and experts with none, one and many tokens."""
    layer = layer_of(pair, "iq1_s", tokens=tokens, k=2, experts=4, inter=70, hidden=264, seed=tokens)
    layer.ids[:] = np.where(np.arange(tokens)[:, None] % 8 == 7, [[3, 0]], [[2, 0]])
    assert_layer(pair, layer)


@pairs
def test_a_token_may_ask_for_an_expert_twice(pair):
    layer = layer_of(pair, "iq3_s", tokens=4, k=3)
    layer.ids[:] = [[2, 2, 1], [4, 4, 4], [0, 1, 0], [3, 3, 2]]
    assert_layer(pair, layer)


@pairs
def test_ids_outside_of_the_experts_make_their_token_nan(pair):
    layer = layer_of(pair, "iq2_s", tokens=5, k=2)
    layer.ids[:] = [[0, 1], [5, 1], [2, -1], [-7, 2**31 - 1], [4, 3]]
    y = run_layer(pair, layer)
    assert np.all(np.isnan(y[[1, 2, 3]]))
    layer.ids[[1, 2, 3]] = 0
    good = [0, 4]
    assert np.all(np.abs(y - layer.expected())[good] <= layer.bound(N_ULP)[good])


@pairs
def test_partial_layers_leave_ids_of_minus_one_out(pair):
    layer = layer_of(pair, "iq2_xxs", tokens=4, k=3, partial=True)
    layer.ids[:] = [[-1, 1, 4], [-1, -1, -1], [2, 3, -1], [0, -2, 1]]
    y = run_layer(pair, layer)
    left_out = layer.ids < 0
    layer.ids[left_out] = 0
    layer.weights[left_out] = 0
    assert np.all(np.isnan(y[3]))
    assert not np.any(y[1])
    assert np.all(np.abs(y - layer.expected())[:3] <= layer.bound(N_ULP)[:3])


@pairs
def test_a_token_of_experts_that_is_not_finite_gives_nan_and_no_other_does(pair):
    layer = layer_of(pair, "iq3_xxs", tokens=9, k=2, activation=None)
    layer.x[4, 99] = np.inf
    not_finite = ~np.isfinite(run_layer(pair, layer))
    assert np.all(not_finite[4])
    assert not np.any(np.delete(not_finite, 4, axis=0))


@pairs
def test_hidden_numbers_come_as_integers_and_as_floats(pair):
    """The integers are those of the floats, and both end with zeros."""
    layer = layer_of(pair, "iq1_m", tokens=3, k=2, inter=75)
    run_layer(pair, layer, both=True)
    floats = layer.hidden["float"]
    assert np.all(np.isfinite(floats))
    assert not np.any(floats[:, 75:])
    assert_quantised(floats, layer.hidden["q"], layer.hidden["scale"])
    h = reference.matvec((layer.up.blocks()[layer.ids[1, 1]], layer.up.format, (75, 100)), layer.x[1])
    g = reference.matvec((layer.gate.blocks()[layer.ids[1, 1]], layer.gate.format, (75, 100)), layer.x[1])
    expected = h * g / (1 + np.exp(-g))
    assert np.allclose(floats[3, :75], expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


@pairs
def test_the_order_of_threads_changes_nothing_in_a_layer(pair):
    layer = layer_of(pair, "iq2_xs", tokens=5, k=2)
    runs = []
    for layer.seed in (0, 1, 2):
        runs.append(run_layer(pair, layer))
    assert same_bits(runs[0], runs[1])
    assert same_bits(runs[0], runs[2])


# ---- the simulator is told ----


def test_a_launch_names_what_is_wrong():
    with pytest.raises(SimError, match="there is no kernel matvec"):
        sim.run("matvec", ProductArgs())
    with pytest.raises(SimError, match=r"launch: \d+ bytes of arguments for quantize, expected \d+"):
        sim.run("quantize", ProductArgs())
