"""The gate of compiled CUDA code: the shipped kernels pass it, and it sees what it is there for.

Needs nvcc and nvdisasm. LUTKERN_PTX_DIR names the cuda/ folder of a build; without it the kernels are compiled, which
takes minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sim.ptx.toolkit import find_nvcc

TESTS = Path(__file__).parent
ROOT = TESTS.parent
GATE = TESTS / "sim" / "gate.py"
BUDGETS: dict[str, Any] = json.loads((TESTS / "sim" / "budgets.json").read_text(encoding="utf-8"))
IN_CI = os.environ.get("CI") == "true"
BUILD = os.environ.get("LUTKERN_PTX_DIR")


def can_disassemble() -> bool:
    folders = [*(Path(p) / "nvidia" for p in sys.path if p), Path("/usr/local/cuda/bin")]
    return shutil.which("nvdisasm") is not None or any(next(f.glob("**/bin/nvdisasm"), None) for f in folders)


MISSING = "no nvcc" if find_nvcc() is None else "" if can_disassemble() else "no nvdisasm"
pytestmark = pytest.mark.skipif(bool(MISSING) and not IN_CI, reason=f"{MISSING}: see CONTRIBUTING.md")

# A matvec in small: 16 codewords of a row for each lane and step, two dp4a each.
KERNEL = """
extern "C" __global__ void matvec_fake(const uint4* weights, const uint4* x, int* out, int steps) {
  int sum = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint4 w = weights[(step * 8 + i) * 32 + threadIdx.x];
      const uint4 a = x[step * 8 + i];
      sum = __dp4a(int(w.x), int(a.x), sum);
      sum = __dp4a(int(w.y), int(a.y), sum);
      sum = __dp4a(int(w.z), int(a.z), sum);
      sum = __dp4a(int(w.w), int(a.w), sum);
      MORE
    }
  }
  out[threadIdx.x] = sum;
}
"""
BUDGET: dict[str, Any] = {
    "registers": {"sm_90a": 64},
    "instructions_per_codeword": {"sm_90a": 4.5},
    "loads16": True,
    "expects": {"sm_90a": ["IDP.4A.*"]},
}


def gate(*arguments: str | Path) -> tuple[int, str]:
    command = [sys.executable, str(GATE), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    return result.returncode, result.stdout + result.stderr


def fake(folder: Path, more: str = "", source: str = KERNEL, **budget: Any) -> tuple[int, list[str]]:
    """Run the gate on a kernel of this file, with a budget of its own."""
    path, budgets = folder / "fake.cu", folder / "budgets.json"
    path.write_text(source.replace("MORE", more), encoding="utf-8")
    entry = {"matvec_fake": BUDGET | budget} if budget.get("known", True) else {}
    budgets.write_text(json.dumps({"tile_bytes": {}, "kernels": entry}), encoding="utf-8")
    code, text = gate("--source", path, "--arch", "sm_90a", "--budgets", budgets)
    return code, text.splitlines()


# ---- the kernels that ship ----


def test_every_kernel_is_within_its_budget() -> None:
    where = ["--cubins", BUILD] if BUILD else ["--arch", "sm_90a"]
    code, text = gate(*where)
    assert (code, text) == (0, f"gate: {len(BUDGETS['kernels'])} kernels are within their budgets\n")


def test_one_token_kernels_have_the_figures_of_the_design() -> None:
    limits = {"iq1_m": 12.5, "iq1_s": 12.5, "iq2_xxs": 17, "iq2_xs": 20, "iq2_s": 20, "iq3_xxs": 22, "iq3_s": 22}
    for fmt, limit in limits.items():
        for verb in ("matvec", "moe_up", "moe_down"):
            budget = BUDGETS["kernels"][f"{verb}_{fmt}"]
            assert budget["loads16"]
            assert budget["codewords"] == 32
            assert budget["instructions_per_codeword"]["sm_90a"] <= limit * 1.03, f"{verb}_{fmt}"


def test_command_shows_a_kernel() -> None:
    where = ["--cubins", BUILD] if BUILD else []
    code, text = gate("--kernel", "matvec_iq1_m", "--arch", "sm_90a", *where)
    assert code == 0
    for pattern in (
        r"matvec_iq1_m sm_90a: \d+ registers, 0 bytes of stack, 0 local accesses,",
        r"main loop: \d+ instructions, 32 codewords \(by budgets\.json\), \d+ 16-byte loads",
        r"1\d\.\d\d instructions per codeword",
        r"H200: 100 % of HBM needs 10\.5 codewords per clock and SM; bound by issue \d+ %",
        r"opcodes of the loop: LOP3\.LUT \d+",
        r"[0-9a-f]{5}  LDG\.E\S*\.128\S* R\d+",
    ):
        assert re.search(pattern, text), pattern


# ---- what the gate is there for ----


def test_gate_passes_a_good_kernel(tmp_path: Path) -> None:
    assert fake(tmp_path) == (0, ["gate: 1 kernels are within their budgets"])


def test_gate_sees_instructions_over_the_budget(tmp_path: Path) -> None:
    more = "sum ^= (sum << 3) + (sum >> 5) * step; sum ^= __popc(sum) * i; sum = sum * sum + int(w.x);" * 2
    code, lines = fake(tmp_path, more)
    assert code == 1
    assert len(lines) == 1
    assert re.fullmatch(r"matvec_fake sm_90a: \d+\.\d\d instructions per codeword, the budget is 4\.5", lines[0]), lines


def test_gate_sees_local_memory(tmp_path: Path) -> None:
    code, lines = fake(
        tmp_path, "int kept[32]; for (int j = 0; j < 32; ++j) kept[(w.x + j) & 31] = j; sum += kept[w.y & 31];"
    )
    assert code == 1
    assert any(re.fullmatch(r"matvec_fake sm_90a: a stack frame of \d+ bytes, expected none", x) for x in lines), lines
    assert any(re.fullmatch(r"matvec_fake sm_90a: \d+ instructions on local memory, expected none", x) for x in lines)


def test_gate_sees_a_spill(tmp_path: Path) -> None:
    source = KERNEL.replace("matvec_fake(", "__launch_bounds__(1024, 2) matvec_fake(")
    many = " ".join(f"int v{j} = weights[step * 77 + threadIdx.x * {j + 3}].x;" for j in range(64))
    used = " ".join(f"sum = sum * v{j} + v{63 - j};" for j in range(64))
    code, lines = fake(tmp_path, f"{many} __syncwarp(); {used}", source)
    assert code == 1
    assert any(re.fullmatch(r"matvec_fake sm_90a: \d+ instructions on local memory, expected none", x) for x in lines)


def test_gate_sees_registers_over_the_budget(tmp_path: Path) -> None:
    code, lines = fake(tmp_path, registers={"sm_90a": 8})
    assert code == 1
    assert re.fullmatch(r"matvec_fake sm_90a: \d+ registers, the budget is 8", lines[0]), lines


def test_gate_sees_narrow_loads_and_a_missing_instruction(tmp_path: Path) -> None:
    narrow = KERNEL.replace("const uint4 w = weights[(step * 8 + i) * 32 + threadIdx.x];", "uint4 w = LOAD;").replace(
        "const uint4 a = x[step * 8 + i];", "uint4 a = make_uint4(1, step, i, 4);"
    )
    loads = ", ".join(f"((const unsigned*)weights)[(step * 32 + i * 4 + {k}) * 32 + threadIdx.x]" for k in range(4))
    budget = {"instructions_per_codeword": {}, "expects": {"sm_90a": ["IDP.4A.*", "IMMA.*"]}}
    code, lines = fake(tmp_path, "", narrow.replace("LOAD", f"make_uint4({loads})"), **budget)
    assert code == 1
    assert lines == [
        "matvec_fake sm_90a: no 16-byte load in the main loop, expected LDG.E.128",
        "matvec_fake sm_90a: no IMMA.*, expected one",
    ]


def test_gate_wants_a_budget_for_every_kernel(tmp_path: Path) -> None:
    expected = "matvec_fake sm_90a: no budget in budgets.json; gate.py --write sets one"
    assert fake(tmp_path, known=False) == (1, [expected])


def test_gate_names_a_kernel_that_is_not_there() -> None:
    code, text = gate("--kernel", "matvec_nothing", "--arch", "sm_90a", "--source", TESTS / "sim" / "nothing.cu")
    assert code == 1
    assert text.startswith("gate: nvcc failed\n")


# ---- PTX for older drivers ----


def lower(text: str, folder: Path) -> tuple[int, str]:
    """Run cmake/lower_ptx.cmake on a text; what it says and what it wrote."""
    cmake, nvcc = shutil.which("cmake"), find_nvcc()
    assert cmake is not None
    assert nvcc is not None
    ptxas = shutil.which("ptxas", path=str(Path(nvcc).parent)) or "/usr/local/cuda/bin/ptxas"
    source, lowered = folder / "new.ptx", folder / "old.ptx"
    source.write_text(text, encoding="utf-8")
    command = [cmake, f"-DPTX={source}", f"-DLOWERED={lowered}", f"-DPTXAS={ptxas}"]
    command += ["-P", str(ROOT / "cmake" / "lower_ptx.cmake")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return result.returncode, lowered.read_text(encoding="utf-8") if lowered.exists() else result.stderr


HEAD = "\n.version 9.0\n.target sm_75\n.address_size 64\n\n.visible .entry f() {\n.reg .b32 %r<4>;\n"


@pytest.mark.skipif(shutil.which("cmake") is None and not IN_CI, reason="no cmake")
@pytest.mark.parametrize(
    ("body", "version"),
    [
        ("mov.u32 %r1, %tid.x;", "6.3"),
        ("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r2];", "6.5"),
        ('mov.u32 %r1, %tid.x;\n\t.pragma "used_bytes_mask 0xf";', "6.3"),
    ],
    ids=["plain", "ldmatrix", "pragma"],
)
def test_lowered_ptx_is_as_old_as_it_can_be(body: str, version: str, tmp_path: Path) -> None:
    code, text = lower(f"{HEAD}{body}\nret;\n}}\n", tmp_path)
    assert code == 0, text
    assert f"\n.version {version}\n" in text
    assert "used_bytes_mask" not in text


@pytest.mark.skipif(shutil.which("cmake") is None and not IN_CI, reason="no cmake")
def test_ptx_that_is_too_new_is_refused(tmp_path: Path) -> None:
    code, text = lower(f"{HEAD}no.such.instruction;\nret;\n}}\n", tmp_path)
    assert code != 0
    assert "needs PTX newer than 8.0" in " ".join(text.split())


@pytest.mark.skipif(BUILD is None and not IN_CI, reason="needs LUTKERN_PTX_DIR, the cuda/ folder of a build")
@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
def test_lowered_kernels_assemble_for_every_device(arch: str, tmp_path: Path) -> None:
    assert BUILD is not None
    lowered = Path(BUILD, "lowered.ptx")
    version = re.search(r"^\.version ([\d.]+)$", lowered.read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert version[1] in {"6.3", "6.5"}  # drivers of CUDA 10.0, 10.2
    nvcc = find_nvcc()
    assert nvcc is not None
    ptxas = shutil.which("ptxas", path=str(Path(nvcc).parent)) or "/usr/local/cuda/bin/ptxas"
    command = [ptxas, f"-arch={arch}", "-O0", str(lowered), "-o", str(tmp_path / "out.cubin")]
    subprocess.run(command, check=True, timeout=300)
