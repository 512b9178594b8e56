"""Faults that are put into the device text on purpose: the checks of tests/sim must find each of them.

A mutation replaces one piece of text in one file of csrc/cuda. The family of kernels that has it is compiled with the
mutated file, for one format, and meets tests/sim/test_kernels.cpp.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SIM = ROOT / "tests" / "sim"
CUDA = ROOT / "csrc" / "cuda"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-ffp-contract=off", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}", f"-I{SIM}"]
BLOCKS = {"iq1_s": "Iq1S", "iq1_m": "Iq1M", "iq2_xxs": "Iq2Xxs", "iq2_xs": "Iq2Xs", "iq2_s": "Iq2S", "iq3_s": "Iq3S"}

# What the simulator says of shared memory that is read too early, or overwritten too early
UNORDERED = r"race: |reads shared memory that no thread has written"
# What the comparison says
WRONG = r" is \S+, expected "
WRONG_OR_UNORDERED = rf"{UNORDERED}|{WRONG}|gives another result"


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in `file`; `kernel` of the text `family` must then fail with a message like `found`."""

    name: str
    family: str
    kernel: str
    file: str
    old: str
    new: str
    found: str


def mutate(name: str, kernel: str, place: str, old: str, new: str, found: str) -> Mutation:
    """`place`: the family's text, or 'family/file' where the mutated file is another one."""
    family, _, file = place.partition("/")
    return Mutation(name, family, kernel, file or family, old, new, found)


MUTATIONS = [
    # ---- repack ----
    mutate(
        "to_tiles_without_barrier",
        "to_tiles_iq2_s",
        "repack.cuh",
        "    barrier();\n    const int column",
        "    const int column",
        UNORDERED,
    ),
    mutate(
        "to_tiles_one_row_too_many",
        "to_tiles_iq2_s",
        "repack.cuh",
        "if (static_cast<int>(lane()) < part.rows) {",
        "if (static_cast<int>(lane()) <= part.rows) {",
        UNORDERED,
    ),
    mutate(
        "to_tiles_swapped_words",
        "to_tiles_iq2_s",
        "repack.cuh",
        "Words4{w[i], w[i + 1], w[i + 2], w[i + 3]}",
        "Words4{w[i], w[i + 1], w[i + 3], w[i + 2]}",
        "of tiles is",
    ),
    mutate(
        "to_blocks_half_of_the_bytes",
        "to_blocks_iq1_s",
        "repack.cuh",
        "i < Block::kBlockBytes; i += 2) store2(to + i,",
        "i < Block::kBlockBytes - 2; i += 2) store2(to + i,",
        UNORDERED,
    ),
    # ---- dequantize, and the lanes that all families share ----
    mutate(
        "dequantize_without_first_warp_barrier",
        "dequantize_iq1_m",
        "dequantize.cuh",
        "    warp_barrier();\n    const int column",
        "    const int column",
        UNORDERED,
    ),
    mutate(
        "dequantize_without_second_warp_barrier",
        "dequantize_iq1_m",
        "dequantize.cuh",
        "    }\n    warp_barrier();\n",
        "    }\n",
        UNORDERED,
    ),
    mutate(
        "dequantize_without_barrier",
        "dequantize_iq2_xxs",
        "dequantize.cuh",
        "  barrier();\n",
        "",
        UNORDERED,
    ),
    mutate(
        "dequantize_scale_of_neighbour",
        "dequantize_iq1_m",
        "dequantize.cuh",
        "words.scale16(2 * group + k / 2)",
        "words.scale16(2 * group)",
        WRONG,
    ),
    mutate(
        "wrong_magnitude",
        "dequantize_iq2_xs",
        "dequantize.cuh/lane.cuh",
        "kIq2Positive = 0x002b1908u",
        "kIq2Positive = 0x002b1808u",
        WRONG,
    ),
    mutate(
        "wrong_entry",
        "dequantize_iq1_s",
        "dequantize.cuh/lane.cuh",
        "return ternary_codes(low_word(row)) << 2 | ternary_codes(high_word(row)) << 6;",
        "return ternary_codes(low_word(row)) << 2 | ternary_codes(high_word(row)) << 5;",
        WRONG,
    ),
    mutate(
        "swapped_nibble",
        "dequantize_iq1_m",
        "dequantize.cuh/lane.cuh",
        "low = iq1_bytes((nibbles << 1) & 0x1e1e1e1eu);",
        "low = iq1_bytes((nibbles >> 3) & 0x1e1e1e1eu);",
        WRONG,
    ),
    mutate(
        "sign_that_is_lost",
        "dequantize_iq2_s",
        "dequantize.cuh/lane.cuh",
        "& 0x44444444u",
        "& 0x40444444u",
        WRONG,
    ),
    mutate(
        "last_entry_missing",
        "dequantize_iq2_xxs",
        "dequantize.cuh/lane.cuh",
        "for (uint32_t i = thread; i < kEntries; i += threads) {",
        "for (uint32_t i = thread; i < kEntries - 1; i += threads) {",
        UNORDERED,
    ),
    # ---- quantize ----
    mutate(
        "quantize_half_of_the_group",
        "quantize",
        "quantize.cuh",
        "  largest = larger(largest, shuffle_xor(largest, 2));\n",
        "",
        "of codes is",
    ),
    mutate(
        "quantize_not_finite",
        "quantize",
        "quantize.cuh",
        "const uint32_t keep = rule.inverse == 0.0f ? 0u : ~0u;",
        "const uint32_t keep = ~0u;",
        "of codes is",
    ),
    mutate(
        "quantize_past_the_last_column",
        "quantize",
        "quantize.cuh",
        "v[j] = column + j < x.cols ?",
        "v[j] = column + j <= x.cols ?",
        r"of codes is|of an allocation of",
    ),
    # ---- matvec ----
    mutate(
        "matvec_without_barrier",
        "matvec_iq3_s",
        "matvec.cuh",
        "          barrier();\n          is_staged",
        "          is_staged",
        UNORDERED,
    ),
    mutate(
        "matvec_one_row_too_many",
        "matvec_iq3_s",
        "matvec.cuh",
        "row < args.row_end) {",
        "row <= args.row_end) {",
        r"writes row \d+|of an allocation of",
    ),
    mutate(
        "sums_without_barrier",
        "matvec_iq1_m",
        "matvec.cuh/sums.cuh",
        "  barrier();\n  if (warp() > 0) return;",
        "  if (warp() > 0) return;",
        UNORDERED,
    ),
    mutate(
        "sums_without_a_warp",
        "matvec_iq1_m",
        "matvec.cuh/sums.cuh",
        "uint32_t i = lane() + 32; i < threads()",
        "uint32_t i = lane() + 64; i < threads()",
        WRONG,
    ),
    mutate(
        "largest_of_half_a_group",
        "matvec_iq2_s",
        "matvec.cuh/activations.cuh",
        "mask < 8; mask *= 2) largest",
        "mask < 4; mask *= 2) largest",
        WRONG,
    ),
    mutate(
        "sum_of_the_other_half",
        "matvec_iq1_m",
        "matvec.cuh/activations.cuh",
        "static_cast<uint32_t>(-72 * second)}",
        "static_cast<uint32_t>(-72 * first)}",
        WRONG,
    ),
    # ---- matmul ----
    mutate(
        "small_without_warp_barrier",
        "matmul_small_iq2_xs",
        "matmul.cuh/fragments.cuh",
        "    multiply_quarter<Block, kN>(panel, b, quarter % 2, acc);\n    warp_barrier();\n",
        "    multiply_quarter<Block, kN>(panel, b, quarter % 2, acc);\n",
        UNORDERED,
    ),
    mutate(
        "small_without_barrier",
        "matmul_small_iq2_xs",
        "matmul.cuh",
        "  barrier();\n  add_warps",
        "  add_warps",
        UNORDERED,
    ),
    mutate(
        "small_without_last_warps",
        "matmul_small_iq1_s",
        "matmul.cuh",
        "for (int w = 0; w < kSmallWarps; ++w) {",
        "for (int w = 0; w < kSmallWarps - 6; ++w) {",
        WRONG,
    ),
    mutate(
        "large_without_wait",
        "matmul_large_iq1_m",
        "matmul.cuh",
        "    copy_wait<0>();\n    barrier();\n",
        "    barrier();\n",
        WRONG_OR_UNORDERED,
    ),
    mutate(
        "large_without_barrier",
        "matmul_large_iq1_m",
        "matmul.cuh",
        "    copy_wait<0>();\n    barrier();\n",
        "    copy_wait<0>();\n",
        UNORDERED,
    ),
    mutate(
        "fragments_without_warp_barrier",
        "matmul_large_iq3_s",
        "matmul.cuh/fragments.cuh",
        "    warp_barrier();\n    if (quarter % 2 == 0)",
        "    if (quarter % 2 == 0)",
        UNORDERED,
    ),
    mutate(
        "fragments_scale_of_neighbour",
        "matmul_small_iq1_m",
        "matmul.cuh/fragments.cuh",
        "i % 2 == 0 ? x0 : x1",
        "i % 2 == 0 ? x1 : x0",
        WRONG,
    ),
    # ---- a layer, pair by pair ----
    mutate(
        "moe_up_without_barrier",
        "moe_up_iq1_s",
        "moe_one.cuh",
        "    barrier();\n    SumOfEach sums",
        "    SumOfEach sums",
        UNORDERED,
    ),
    mutate(
        "moe_up_largest_of_half",
        "moe_up_iq1_s",
        "moe_one.cuh",
        "mask < 32; mask *= 2) largest",
        "mask < 16; mask *= 2) largest",
        WRONG,
    ),
    mutate(
        "moe_down_without_barrier",
        "moe_down_iq2_xxs",
        "moe_one.cuh",
        "      barrier();\n      walk.run(dot, part.staged, sums);",
        "      walk.run(dot, part.staged, sums);",
        UNORDERED,
    ),
    mutate(
        "moe_down_equal_experts",
        "moe_down_iq2_xxs",
        "moe_one.cuh",
        "(e == expert && other < slot)",
        "(e == expert && other <= slot)",
        rf"{UNORDERED}|outside of its shared array",
    ),
    # ---- a layer, expert by expert ----
    mutate(
        "moe_up_batch_without_barrier",
        "moe_up_batch_iq2_xxs",
        "moe_batch.cuh",
        "    barrier();\n  }\n};\n\nLK_DEVICE UpBlock",
        "  }\n};\n\nLK_DEVICE UpBlock",
        UNORDERED,
    ),
    mutate(
        "moe_up_batch_code_in_the_wrong_place",
        "moe_up_batch_iq2_xxs",
        "moe_batch.cuh",
        "codes |= odd << 8;",
        "codes |= odd << 4;",
        WRONG,
    ),
    mutate(
        "moe_batch_list_from_one",
        "moe_up_batch_iq1_m",
        "moe_batch.cuh",
        "before + count_ones(votes & ((1u << lane()) - 1));",
        "before + count_ones(votes & ((2u << lane()) - 1));",
        UNORDERED,
    ),
    mutate(
        "moe_down_batch_without_barrier",
        "moe_down_batch_iq1_m",
        "moe_batch.cuh",
        "    barrier();\n    add_items",
        "    add_items",
        UNORDERED,
    ),
    mutate(
        "moe_down_batch_without_last_item",
        "moe_down_batch_iq1_m",
        "moe_batch.cuh",
        "int item = begin_item; item < end_item;",
        "int item = begin_item; item + 1 < end_item;",
        WRONG,
    ),
    # ---- every format ----
    mutate(
        "any_without_first_barrier",
        "product_any",
        "any.cuh",
        "    stage(staged, x, first, tokens, chunk);\n    barrier();\n",
        "    stage(staged, x, first, tokens, chunk);\n",
        UNORDERED,
    ),
    mutate(
        "any_without_second_barrier",
        "product_any",
        "any.cuh",
        "    }\n    barrier();\n  }\n}\n\nLK_DEVICE float sum_of_lanes",
        "    }\n  }\n}\n\nLK_DEVICE float sum_of_lanes",
        UNORDERED,
    ),
    mutate(
        "any_scale_of_neighbour",
        "product_any",
        "any.cuh/any_codeword.cuh",
        ">> (4 * (k % 8))) & 15u;",
        ">> (4 * (k % 7))) & 15u;",
        WRONG,
    ),
    mutate(
        "any_without_warp_barrier",
        "dequantize_any",
        "any.cuh",
        "    warp_barrier();\n    for (int c = static_cast<int>(lane()); c < kAnyCopy",
        "    for (int c = static_cast<int>(lane()); c < kAnyCopy",
        UNORDERED,
    ),
    mutate(
        "any_wrong_gelu",
        "moe_up_any",
        "any.cuh/numbers.cuh",
        "0.044715f",
        "0.04f",
        WRONG,
    ),
    mutate(
        "any_slots_of_equal_experts",
        "moe_down_any",
        "any.cuh",
        "(e == expert && s > slot)",
        "(e == expert && s > slot + 1)",
        WRONG,
    ),
]
FAMILIES = sorted({m.family for m in MUTATIONS})


def command(arguments: list[str]) -> None:
    """Runs a command that must succeed."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The simulator and the checks, compiled: everything but kernels."""
    folder = tmp_path_factory.mktemp("sim")
    sources = [SIM / f"{name}.cpp" for name in ("simt", "fiber", "watch", "launch", "parity", "test_kernels")]
    sources.append(ROOT / "csrc" / "formats" / "codebooks.cpp")
    for source in sources:
        command([COMPILER, *FLAGS, "-O1", "-c", str(source), "-o", str(folder / f"{source.stem}.o")])
    return sorted(str(path) for path in folder.glob("*.o"))


def build(folder: Path, objects: list[str], family: str, formats: list[str], file: str = "", text: str = "") -> Path:
    """A program that checks the kernels of one family, where the text of `file` is another one."""
    cuda = folder / "csrc" / "cuda"
    shutil.copytree(CUDA, cuda, ignore=shutil.ignore_patterns("*.cpp", "*.cu"))
    for room in ("formats", "gpu"):
        (folder / "csrc" / room).symlink_to(ROOT / "csrc" / room)
    if file:
        (cuda / file).write_text(text)
    (cuda / "part.cpp").write_text(f'#include "kernels.h"\n#include "machine.h"\n#include "{family}"\n')
    # The kernels that take every format need all of them.
    named = " ".join(f"X({name}, {BLOCKS[name]})" for name in formats)
    some = [f"-DLUTKERN_CUDA_TILE_FORMATS(X)={named}"] if formats else []
    optimize = "-O0" if formats else "-O1"  # less to run than to compile
    part = folder / "part.o"
    command([COMPILER, *FLAGS, optimize, "-fsanitize=thread", *some, "-c", str(cuda / "part.cpp"), "-o", str(part)])
    program = folder / "kernels"
    command([COMPILER, str(part), *objects, "-o", str(program), "-ldl", "-pthread"])
    return program


def format_of(kernel: str) -> list[str]:
    """The tile format that the name of a kernel ends with."""
    return [name for name in BLOCKS if kernel.endswith(f"_{name}")]


def without_line_ends(text: str) -> str:
    """For messages: one line."""
    return re.sub(r"\s+", " ", text)


def test_every_family_has_two_mutations() -> None:
    text = (CUDA / "kernels.cu").read_text()
    included = set(re.findall(r'#include "(\w+\.cuh)"', text))
    assert included == set(FAMILIES)
    for family in FAMILIES:
        assert sum(m.family == family for m in MUTATIONS) >= 2, family


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_are_right_as_they_are(tmp_path: Path, objects: list[str], family: str) -> None:
    kernels = sorted({m.kernel for m in MUTATIONS if m.family == family})
    formats = sorted({name for kernel in kernels for name in format_of(kernel)})
    program = build(tmp_path, objects, family, formats)
    done = subprocess.run([str(program), "2", *kernels], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"kernels: {len(kernels)} checked with 2 seeds\n"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: str(m.name))
def test_mutation_is_found(tmp_path: Path, objects: list[str], mutation: Mutation) -> None:
    text = (CUDA / mutation.file).read_text()
    assert text.count(mutation.old) == 1, f"{mutation.file} has another text now: {without_line_ends(mutation.old)}"
    text = text.replace(mutation.old, mutation.new)
    program = build(tmp_path, objects, mutation.family, format_of(mutation.kernel), mutation.file, text)
    done = subprocess.run([str(program), "2", mutation.kernel], capture_output=True, text=True, check=False)
    assert done.returncode == 1, f"{mutation.kernel} passes: {without_line_ends(mutation.old)} -> {mutation.new}"
    assert re.search(mutation.found, done.stderr), done.stderr
