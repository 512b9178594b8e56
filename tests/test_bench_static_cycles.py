"""bench/static_cycles.py: the walk turns loops as often as they turn, and the table holds what llvm-mca says."""

from __future__ import annotations

import csv
import importlib
import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"

SUMMARY = """Iterations:        1
Instructions:      {n}
Total Cycles:      {cycles}
Total uOps:        {n}

Dispatch Width:    4
uOps Per Cycle:    1.00

Resources:
[0]   - FP0
[1.0] - Load
[1.1] - Load

Resource pressure per iteration:
[0]    [1.0]  [1.1]
 -     {n}.00   0.00
"""


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        names = ("records", "walk_code", "static_cycles")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name in names:
            sys.modules.pop(name)


def code_of(scripts: SimpleNamespace, text: str) -> Any:
    """Return code whose instruction number i is at 0x10 + i; a line "name:" begins a function."""
    code = scripts.walk_code.Code({}, {})
    at = 0x10
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.endswith(":"):
            code.functions[line[:-1]] = at
            continue
        name, _, rest = line.partition(" ")
        operands = scripts.walk_code._operands(rest)
        code.instructions[at] = scripts.walk_code.Instruction(at, at + 1, name, operands, line)
        at += 1
    return code


def walked(scripts: SimpleNamespace, text: str, **registers: int) -> list[str]:
    code = code_of(scripts, "f:\n" + text)
    walk = scripts.walk_code.Walk(code)
    walk.registers |= registers
    return [at.text for at in walk.run(0x10)]


def test_loops_turn_as_often_as_they_turn(scripts: SimpleNamespace) -> None:
    trace = walked(
        scripts, "xor %eax,%eax\nvpaddd %ymm0,%ymm1,%ymm1\nadd $0x20,%rax\ncmp %rdi,%rax\njl 11\nret", rdi=100
    )
    assert trace.count("vpaddd %ymm0,%ymm1,%ymm1") == 4


def test_numbers_keep_their_way_through_the_stack_and_through_vectors(scripts: SimpleNamespace) -> None:
    text = """
      vmovq %rdi,%xmm9
      call 1a
      vmovq %xmm9,%rsi
      push %rsi
      pop %rcx
      dec %rcx
      test %rcx,%rcx
      jne 15
      ret
      nop
      movl $0x7,-0x8(%rsp)
      ret
    """
    assert [at.split()[0] for at in walked(scripts, text, rdi=3)].count("dec") == 3


def test_parts_of_registers(scripts: SimpleNamespace) -> None:
    # The low byte is cleared and the rest stays; 32 bits clear the upper half; a negative number is below zero.
    text = """
      xor %al,%al
      cmp $0x1200,%rax
      jne 19
      mov $0xffffffff,%ecx
      movslq %ecx,%rdx
      test %rdx,%rdx
      js 18
      nop
      ret
      int3
    """
    assert walked(scripts, text, rax=0x1234)[-2:] == ["js 18", "ret"]


def test_a_branch_on_data_is_an_error(scripts: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"^walk: a branch at 0x12 \(jne 10\) depends on data, expected shapes only$"):
        walked(scripts, "vmovd %xmm0,%eax\ntest %eax,%eax\njne 10\nret")


def test_code_without_an_end_is_an_error(scripts: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"^walk: came to 17 after 1 instructions, expected code$"):
        walked(scripts, "nop")


def test_corrections_keep_operands(scripts: SimpleNamespace) -> None:
    corrected = scripts.static_cycles.corrected
    for cpu, text, expected in (
        ("znver4", "vfmadd231ps 0x4(%rax){1to16},%zmm2,%zmm3", "vmulps 0x4(%rax){1to16},%zmm2,%zmm3{%k7}"),
        ("znver4", "vpdpbusd %zmm1,%zmm2,%zmm30", "vmulps %zmm1,%zmm2,%zmm30{%k7}"),
        ("znver4", "vpermi2b 0x40(%rax,%rcx,8),%zmm2,%zmm3", "vpshufb 0x40(%rax,%rcx,8),%zmm2,%zmm3{%k7}"),
        ("znver4", "vpermi2b %zmm1,%zmm2,%zmm3", "vpermi2b %zmm1,%zmm2,%zmm3"),
        ("znver4", "vpbroadcastd  (%rax),%zmm3", "vmovups (%rax),%zmm3"),
        ("znver4", "vpbroadcastd %xmm1,%zmm3", "vpbroadcastd %xmm1,%zmm3"),
        ("znver3", "vpinsrq $0x1,(%rax),%xmm1,%xmm2", "vpunpcklqdq (%rax),%xmm1,%xmm2"),
        ("znver3", "vpinsrq $0x1,%rax,%xmm1,%xmm2", "vpinsrq $0x1,%rax,%xmm1,%xmm2"),
        ("icelake-server", "vmovdqu8 (%rax),%zmm17", "vmovntdqa (%rax),%zmm17"),
        ("icelake-server", "vmovdqu8 %zmm17,(%rax)", "vmovdqu8 %zmm17,(%rax)"),
    ):
        assert corrected(text, cpu) == expected


def test_what_llvm_mca_says(scripts: SimpleNamespace) -> None:
    cost = scripts.static_cycles.parse_mca(SUMMARY.format(n=12, cycles=10))
    assert (cost.instructions, cost.cycles, cost.decoder) == (12, 10, 3)
    assert cost.busy == (("FP0", 0), ("Load", 6))  # two pipes share it
    assert cost.pressing() == "Load 60%"
    with pytest.raises(ValueError, match=r"^llvm-mca: no line 'Instructions', expected its summary"):
        scripts.static_cycles.parse_mca("")


KERNELS = """
gemv_tiles<lutkern::Q4K>(lutkern::TileRows const&):
mov 0x18(%rdi),%rax
vpaddd %zmm0,%zmm1,%zmm1
sub $0x100,%rax
jg 11
ret
gemm_tiles<lutkern::Q4K>(lutkern::TileRows const&):
mov 0x18(%rdi),%rax
mov %rcx,%rdx
dec %rdx
jne 17
sub $0x100,%rax
jg 16
ret
ggml_vec_dot_q4_K_q8_K:
movslq %edi,%rax
vpaddd %ymm0,%ymm1,%ymm1
sub $0x80,%rax
jg 1d
ret
"""


def test_the_table(scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mca = tmp_path / "mca"
    lines = ["import sys", "n = len(sys.stdin.readlines()) if '-' in sys.argv else 0", f"text = {SUMMARY!r}"]
    lines += ["print(text.format(n=n, cycles=2 * n) if n else 'LLVM version 0')"]
    mca.write_text("\n".join([f"#!{sys.executable}", *lines]))
    mca.chmod(mca.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(scripts.static_cycles, "disassemble", lambda path: code_of(scripts, KERNELS))
    monkeypatch.setattr(scripts.static_cycles, "ggml_library", lambda: Path("ggml"))
    monkeypatch.setattr(scripts.static_cycles.metadata, "version", lambda name: "0")
    out = tmp_path / "table.csv"
    scripts.static_cycles.main(["wide.o", "--formats", "q4_k", "--cpus", "any", "--mca", str(mca), "--out", str(out)])
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["op"], row["tokens"], row["isa"]) for row in rows] == [
        ("gemv", "1", "wide"), ("gemm", "4", "wide"), ("gemm", "16", "wide"), ("gemm", "512", "wide"),
    ]  # fmt: skip
    # 3 instructions for 256 columns of 16 rows; 2 for each token, 3 more for a panel; ggml's 6 for one row
    expected = [3 / 16, 11 / 16, 35 / 16, 1027 / 16]
    assert [float(row["instructions"]) for row in rows] == pytest.approx(expected, rel=1e-3)
    assert [float(row["rival_instructions"]) for row in rows] == [6, 24, 96, 3072]
    assert float(rows[0]["ratio"]) == 32
    # 4.5 bits in blocks, as many in tiles: 144 bytes at 25 GB/s and 3.5 GHz are 20.16 cycles, more than ggml's 12.
    assert float(rows[0]["memory_cycles"]) == 20.16
    assert float(rows[0]["ratio_with_memory"]) == 1
    assert json.loads(out.with_suffix(".json").read_text())["what"] == "predictions by llvm-mca: nothing was run"
