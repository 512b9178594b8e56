"""Faults that are put into the Metal text on purpose: the simulator or the comparison with the reference finds each.

A mutation replaces one piece of the text that a library is compiled from; the kernel that has it runs once at small
shapes. Other kernels are taken out of the text, which compiles faster then.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import metal_launch
from lutkern import reference
from metal_launch import Macros, Shape, dequantize, experts, kernels, product, text_of
from sim.layers import Layer, expert_layer, integer_activations, integer_weight, random_bytes, random_weight
from sim.metal.run import Library, MetalError

# What the simulator says of memory that is read too early, or overwritten too early
UNORDERED = r"race: |reads shared memory that no thread has written"
OUTSIDE = r"of an allocation of|in no allocation|outside of its shared array"
# What the comparison says
WRONG = r"^wrong$"
ANY = rf"{UNORDERED}|{OUTSIDE}|{WRONG}"


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in the text of `kernel`, which then fails with a message like `found`."""

    name: str
    kernel: str
    old: str
    new: str
    found: str = WRONG
    fmt: str = "iq2_s"


MUTATIONS = [
    # ---- tables and lanes, which every kernel of tiles has ----
    Mutation("swapped_magnitudes", "dequantize", "code == 1 ? 0x0a40u : 0x0d60u", "code == 1 ? 0x0d60u : 0x0a40u"),
    Mutation("wrong_largest_magnitude", "matvec", "magnitude = 0x13c0u;", "magnitude = 0x1380u;", fmt="iq3_xxs"),
    Mutation(
        "table_not_filled_to_its_end", "matvec", "i < (1u << kIndexBits) / kShifts", "i < 1000u", UNORDERED, "iq1_m"
    ),
    Mutation(
        "scale_of_another_group",
        "dequantize",
        "return scale_number(scales[i / 8], 4 * (i % 8), 4);",
        "return scale_number(scales[i / 8], 4 * (i % 7), 4);",
    ),
    Mutation("ring_of_indices", "dequantize", "ring[(at / 32 + 1) % T::kRing]", "ring[at / 32]"),
    Mutation("signs_of_another_codeword", "matvec", "row.words[i / 4], 1, i % 4", "row.words[i / 4], 1, (i + 1) % 4"),
    Mutation("half_of_a_ring", "matvec", "codes[8] >> 16 | first << 16", "codes[8] >> 16", fmt="iq2_xs"),
    Mutation("scales_of_the_second_half", "matvec", "scales[0] >> 24 | scales[1] << 8", "scales[0] >> 24", fmt="iq1_m"),
    Mutation(
        "bias_of_another_field", "matvec", "1 + (1024 >> (2 * k))), begin", "1 + (1024 >> k)), begin", fmt="iq1_s"
    ),
    Mutation("shift_of_another_group", "matvec", "iq1_s_shift(row.words, g)", "iq1_s_shift(row.words, 0)", fmt="iq1_s"),
    # ---- dequantize ----
    Mutation(
        "dequantize_one_row_too_many",
        "dequantize",
        "r < rows && column < args.w.cols; r += 2",
        "r <= rows && column < args.w.cols; r += 2",
        ANY,
    ),
    Mutation(
        "dequantize_a_column_too_many",
        "dequantize",
        "column < args.w.cols; r += 2",
        "column <= args.w.cols; r += 2",
        ANY,
    ),
    Mutation(
        "dequantize_without_barrier",
        "dequantize",
        "put_numbers(row, g, table, square + kSquareRow * lane);\n    simdgroup_barrier(mem_flags::mem_threadgroup);",
        "put_numbers(row, g, table, square + kSquareRow * lane);",
        UNORDERED,
    ),
    # ---- matvec ----
    Mutation(
        "matvec_without_barrier_before_reading",
        "matvec",
        "simdgroup_barrier(mem_flags::mem_threadgroup);\n    dot_tile(a, b, table, table, own);",
        "dot_tile(a, b, table, table, own);",
        UNORDERED,
    ),
    Mutation(
        "matvec_without_barrier_after_the_table",
        "matvec",
        "Table<LK_WEIGHT>::fill(table, thread_index, threads.x);\n  threadgroup_barrier(mem_flags::mem_threadgroup);",
        "Table<LK_WEIGHT>::fill(table, thread_index, threads.x);",
        UNORDERED,
    ),
    Mutation("matvec_tail_not_cut", "matvec", "column + j < args.cols ?", "column + j < args.cols + 1 ?", ANY),
    Mutation("matvec_row_past_the_end", "matvec", "other >= begin && other < end && has_other", "has_other", ANY),
    Mutation(
        "matvec_drops_a_simd_group",
        "matvec",
        "for (uint s = 1; s < simdgroups; ++s) total",
        "for (uint s = 2; s < simdgroups; ++s) total",
    ),
    Mutation(
        "matvec_sum_of_a_quarter",
        "matvec",
        "static_cast<half>(0.25f * sum8)",
        "static_cast<half>(0.5f * sum8)",
        fmt="iq1_m",
    ),
    # ---- matmul_small ----
    Mutation(
        "small_activations_of_another_token",
        "matmul_small",
        "const int slot = token * groups + g;",
        "const int slot = g;",
    ),
    Mutation(
        "small_without_barrier",
        "matmul_small",
        "stage_slots(args.x, data, n, groups, column + 32 * g, staged, here.lane);\n"
        "        simdgroup_barrier(mem_flags::mem_threadgroup);",
        "stage_slots(args.x, data, n, groups, column + 32 * g, staged, here.lane);",
        UNORDERED,
    ),
    Mutation(
        "small_odd_scales_swapped",
        "matmul_small",
        "fma(last, w.odd[1], first * w.odd[0])",
        "fma(last, w.odd[0], first * w.odd[1])",
    ),
    # ---- matmul_large ----
    Mutation(
        "large_panel_of_another_half",
        "matmul_large",
        "a[k / 2 * 8 + 2 * m + k % 2]",
        "a[k / 2 * 8 + 2 * m + (k + 1) % 2]",
    ),
    Mutation("large_token_too_many", "matmul_large", "if (t < n) out[(first_token + t)", "out[(first_token + t)", ANY),
    Mutation(
        "large_without_barrier_around_sums",
        "matmul_large",
        "simdgroup_store(c[m], sums + 8 * m * kSumStride, kSumStride);\n"
        "      simdgroup_barrier(mem_flags::mem_threadgroup);",
        "simdgroup_store(c[m], sums + 8 * m * kSumStride, kSumStride);",
        UNORDERED,
    ),
    Mutation("large_scale_of_other_tokens", "matmul_large", "scales[2 * n + i]", "scales[i]"),
    # ---- experts of few tokens ----
    Mutation(
        "up_uses_the_gate_twice",
        "moe_up",
        "device const uchar* up_tiles = tiles_of(args.up, up,",
        "device const uchar* up_tiles = tiles_of(args.up, gate,",
        ANY,
    ),
    Mutation(
        "up_forgets_the_activation",
        "moe_up",
        "args.gate.experts > 0 ? activate(args.activation, gate) * up :",
        "args.gate.experts > 0 ? gate * up :",
    ),
    Mutation(
        "up_token_of_another_pair",
        "moe_up",
        "const int64_t x_row = pair / args.k * args.x.row_stride;",
        "const int64_t x_row = pair % args.x.rows * args.x.row_stride;",
    ),
    Mutation("down_weight_of_another_slot", "moe_down", "weight = from.weights[pair];", "weight = from.weights[0];"),
    Mutation(
        "down_without_barrier_after_the_order",
        "moe_down",
        "order, thread_index, threads.x);\n  threadgroup_barrier(mem_flags::mem_threadgroup);",
        "order, thread_index, threads.x);",
        UNORDERED,
    ),
    Mutation("down_equal_experts", "moe_down", "(e == expert && other < slot)", "(e == expert && other <= slot)", ANY),
    # ---- experts of many tokens ----
    Mutation("up_batch_list_not_ordered", "moe_up_batch", "if (s == here.simdgroup) before += found.all;", "", ANY),
    Mutation(
        "up_batch_scale_of_another_group",
        "moe_up_batch",
        "put_hidden(h, h_scale, first + tile_row,",
        "put_hidden(h, h_scale, first,",
        ANY,
    ),
    Mutation(
        "down_batch_split_left_out",
        "moe_down_batch",
        "for (int s = 0; s < kDownSplits; ++s) sum",
        "for (int s = 1; s < kDownSplits; ++s) sum",
    ),
    Mutation(
        "down_batch_without_barrier",
        "moe_down_batch",
        "      threadgroup_barrier(mem_flags::mem_threadgroup);\n      add_pairs(",
        "      add_pairs(",
        UNORDERED,
    ),
    # ---- every format ----
    Mutation(
        "any_copy_without_barrier",
        "dequantize_any",
        "begin, static_cast<int>(lane), mine);\n    }\n    simdgroup_barrier(mem_flags::mem_threadgroup);",
        "begin, static_cast<int>(lane), mine);\n    }",
        UNORDERED,
        "q4_k",
    ),
    Mutation(
        "any_swapped_nibbles",
        "dequantize_any",
        "(load_words(p) >> (4 * upper))",
        "(load_words(p) >> (4 - 4 * upper))",
        fmt="q4_k",
    ),
    Mutation(
        "any_wrong_bias",
        "product_any",
        "enum : int { kBias = kByteBias + 32 };",
        "enum : int { kBias = kByteBias + 31 };",
        fmt="q6_k",
    ),
    Mutation("any_without_offset", "product_any", "if (Block::kHasOffset) sum", "if (false) sum", fmt="q4_k"),
    Mutation(
        "any_product_without_barrier",
        "product_any",
        "stage(staged, input, first, n, begin, place);\n        threadgroup_barrier(mem_flags::mem_threadgroup);",
        "stage(staged, input, first, n, begin, place);",
        UNORDERED,
        "q4_k",
    ),
    Mutation("any_up_drops_a_chunk", "moe_up_any", "begin ? products[r] + y : y", "y", fmt="q4_k"),
    Mutation(
        "any_up_activation_of_up",
        "moe_up_any",
        "activate(args.activation, products[place.lane]) * y",
        "activate(args.activation, y) * products[place.lane]",
        fmt="q4_k",
    ),
    Mutation(
        "any_down_scale_of_another_group",
        "moe_down_any",
        "inside ? x.scale[at / kGroup] : 0.0f",
        "inside ? x.scale[0] : 0.0f",
        fmt="q4_k",
    ),
    Mutation(
        "any_down_weight_of_another_slot",
        "moe_down_any",
        "fma(weights[pair], simd_sum(acc[0]), total)",
        "fma(weights[token], simd_sum(acc[0]), total)",
        fmt="q4_k",
    ),
]
PAIRS = {
    "moe_up": ("moe_up", "moe_down"),
    "moe_up_batch": ("moe_up_batch", "moe_down_batch"),
    "moe_up_any": ("moe_up_any", "moe_down_any"),
}
PAIRS.update({down: (up, down) for up, down in PAIRS.values()})
TOKENS = {"matvec": 1, "matmul_small": 5, "matmul_large": 20, "product_any": 3}


def check_dequantize(kernel: str, fmt: str) -> None:
    w = random_bytes(fmt, 39, 600, experts=2)
    expected = reference.dequantize(w)
    for seed in (0, 1):
        found = dequantize(kernel, w, "any" not in kernel, shape=Shape(seed=seed))
        assert np.array_equal(found, expected, equal_nan=True), "wrong"


def check_product(kernel: str, fmt: str) -> None:
    w = random_weight(fmt, 70, 603)
    x = np.random.default_rng(1).standard_normal((TOKENS[kernel], 603), dtype=np.float32)
    options: dict[str, Any] = {"gap": 1, "tiles": "any" not in kernel}
    error = np.abs(product(kernel, w, x, **options) - reference.matmul(w.matrix, x))
    assert np.all(error <= reference.fp32_bound(w.matrix, x, n_ulp=8)), "wrong"
    w = integer_weight(fmt, 34, 300)
    x = integer_activations(TOKENS[kernel], 300)
    expected = reference.matmul(w.matrix, x)
    error = np.abs(product(kernel, w, x, row_range=(1, 33), shape=Shape(seed=1), **options) - expected)[:, 1:33]
    assert np.all(error <= reference.fp32_bound(w.matrix, x, n_ulp=8)[:, 1:33]), "wrong"


def layer_for(kernel: str, fmt: str) -> Layer:
    """Some tokens ask for an expert twice. Layers of any format have rows of several chunks."""
    tokens, hidden = (20, 300) if "batch" in kernel else (3, 600)
    if "any" in kernel:
        layer = expert_layer("iq1_m", fmt, fmt, tokens=2, inter=33, hidden=4128, experts=3, tiles=(False, False, False))
    else:
        layer = expert_layer("iq1_m", "iq3_s", fmt, tokens=tokens, inter=70, hidden=hidden, experts=4)
    layer.ids[0] = 2
    return layer


def check_experts(kernel: str, fmt: str) -> None:
    layer = layer_for(kernel, fmt)
    expected, bound = layer.expected(), layer.bound(8)
    for seed in (0, 1):
        y = experts(PAIRS[kernel], layer, gap=1, shape=Shape(seed=seed)).y
        assert np.all(np.abs(y - expected) <= bound), "wrong"


def check(kernel: str, fmt: str) -> None:
    """Run a kernel; AssertionError or MetalError where it is wrong."""
    checks: dict[str, Callable[[str, str], None]] = {"dequantize": check_dequantize, "dequantize_any": check_dequantize}
    checks.update(dict.fromkeys(TOKENS, check_product))
    checks.get(kernel, check_experts)(kernel, fmt)


def only(text: str, names: tuple[str, ...]) -> str:
    """Return a text without its other kernels; its lines keep their numbers."""

    def kept(match: re.Match[str]) -> str:
        return match[0] if match[1] in names else "\n" * match[0].count("\n")

    return re.sub(r"^kernel void (\w+)\(.*?^\}\n", kept, text, flags=re.MULTILINE | re.DOTALL)


@functools.cache
def compiled(text: str) -> Library:
    return Library(text)


def use_text(patch: pytest.MonkeyPatch, kernel: str, change: Callable[[str], str] = str) -> None:
    """Launch kernels of the changed text where the library has this kernel, of the text as it is where it has not."""
    names = PAIRS.get(kernel, (kernel,))

    def library(macros: Macros) -> Library:
        text = only(text_of(macros), names)
        return compiled(change(text) if f"kernel void {kernel}(" in text else text)

    patch.setattr(metal_launch, "library", library)


def test_every_kernel_has_two_mutations():
    shared = {"dequantize": 3, "matvec": 3}  # of tables and lanes
    counts = {kernel: sum(m.kernel == kernel for m in MUTATIONS) for kernel in kernels()}
    assert {k: n for k, n in counts.items() if n < 2 + shared.get(k, 0)} == {}
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("case", sorted({(m.kernel, m.fmt) for m in MUTATIONS}), ids="-".join)
def test_the_text_as_it_is_passes(monkeypatch, case):
    use_text(monkeypatch, case[0])
    check(*case)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_is_found(monkeypatch, mutation):
    def change(text: str) -> str:
        assert text.count(mutation.old) == 1, f"{text.count(mutation.old)} places have {mutation.old}"
        return text.replace(mutation.old, mutation.new)

    use_text(monkeypatch, mutation.kernel, change)
    with pytest.raises((MetalError, AssertionError)) as raised:
        check(mutation.kernel, mutation.fmt)
    message = str(raised.value).split("\n")[0]
    assert re.search(mutation.found, message), message
