"""What nvcc made of the kernels, held against committed budgets: a gate of speed for a machine that cannot time a GPU.

    python tests/sim/gate.py                                            check every kernel; exit status 1 if one is over
    python tests/sim/gate.py --kernel matvec_iq1_m --arch sm_90a        show one: resources, its loop, its instructions
    python tests/sim/gate.py --write                                    set the budgets to what is reached plus 3 %

--source FILE      device text to compile, csrc/cuda/kernels.cu if not given
--cubins FOLDER    take sm_75.cubin ... from there (BUILD/cuda) and compile nothing

Every kernel: no stack frame, no local memory (spills), no more registers than its budget. The kernels with a loop over
weights: 16-byte loads, the matrix or dot instruction that is expected, and instructions per codeword (8 weights of one
row, one lane) within the budget. For one token that is what is executed; for batches it is the text of the loop, whose
parts run more or less often by the number of tokens: it shows a rise, not a speed.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sass

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "csrc" / "cuda" / "kernels.cu"
BUDGETS = HERE / "budgets.json"
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a", "sm_120")
OPTIONS = ("-std=c++17", "-O3", "-fmad=false")
SLACK = 1.03
# H200: multiprocessors, clocks per second, bytes per second of memory, instructions of threads issued per clock
H200_SMS, H200_CLOCK, H200_BANDWIDTH, H200_ISSUE = 132, 1.98e9, 4.8e12, 128


class ToolMissingError(RuntimeError):
    """A tool of the CUDA toolkit is not there, or refuses its input."""


def find_tool(name: str) -> str:
    """Return the path of nvcc, ptxas or nvdisasm: CUDA_HOME, the pip packages, PATH, the usual place."""
    folders = [Path(os.environ[v], "bin") for v in ("CUDA_HOME", "CUDA_PATH") if v in os.environ]
    folders += [f for p in sys.path if p for f in Path(p).glob("nvidia/cu1*/bin")]
    folders += [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p] + [Path("/usr/local/cuda/bin")]
    for folder in folders:
        found = shutil.which(name, path=str(folder))
        if found:
            return found
    raise ToolMissingError(f"gate: no {name}; pip install --group cuda, or set CUDA_HOME")


def run_tool(command: list[str]) -> str:
    """Run one command and return what it prints."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ToolMissingError(f"gate: {Path(command[0]).name} failed\n{result.stdout}{result.stderr}".rstrip())
    return result.stdout


def compile_cubin(source: Path, arch: str, patterns: list[str], folder: Path) -> Path:
    """Return a cubin, made in a folder, of the kernels whose names match, of all if there is no pattern."""
    virtual = "compute_75" if arch == "sm_75" else "compute_80"  # as in cmake/cuda.cmake
    ptx, cubin = folder / f"{virtual}.ptx", folder / f"{arch}.cubin"
    run_tool([find_tool("nvcc"), "-ptx", f"-arch={virtual}", *OPTIONS, str(source), "-o", str(ptx)])
    names = re.findall(r"\.entry (\w+)", ptx.read_text(encoding="utf-8"))
    only = [f"--entry={n}" for n in names if patterns and matches(n, patterns)]
    if patterns and not only:
        raise ToolMissingError(f"gate: no kernel in {source.name} is named {' or '.join(patterns)}")
    run_tool([find_tool("ptxas"), f"-arch={arch}", "-m64", *only, str(ptx), "-o", str(cubin)])
    return cubin


def matches(name: str, patterns: list[str]) -> bool:
    """Return whether a name fits one of the patterns."""
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)


def read_cubin(cubin: Path) -> dict[str, sass.Kernel]:
    """Return the kernels of a cubin by name."""
    return sass.parse(run_tool([find_tool("nvdisasm"), str(cubin)]))


# ---- what is measured ----


@dataclass(frozen=True)
class Figures:
    """What a budget speaks of."""

    registers: int
    frame: int
    local: int
    shared: int
    loop: int  # instructions in the main loop
    codewords: float  # that one lane finishes in it
    loads16: int  # 16-byte loads in it
    opcodes: Counter[str]  # in the kernel

    @property
    def per_codeword(self) -> float:
        """Instructions per codeword in the main loop."""
        return self.loop / self.codewords if self.codewords else math.inf


def figures(kernel: sass.Kernel, budget: dict[str, Any]) -> Figures:
    """Measure one kernel. Where its budget does not say how many codewords the loop finishes: two IDP are one."""
    loop = kernel.main_loop()
    body = loop.body if loop else ()
    wide = sum("128" in i.opcode and i.base in {"LDG", "LDGSTS"} for i in body)
    counted = loop.count("IDP") / 2 if loop else 0.0
    return Figures(
        registers=kernel.registers,
        frame=kernel.frame,
        local=kernel.local(),
        shared=kernel.shared,
        loop=len(body),
        codewords=float(budget.get("codewords", counted)),
        loads16=wide,
        opcodes=kernel.opcodes(),
    )


def problems(name: str, arch: str, got: Figures, budget: dict[str, Any] | None) -> Iterator[str]:
    """Yield one line for each way in which a kernel is over its budget."""
    where = f"{name} {arch}"
    if got.frame:
        yield f"{where}: a stack frame of {got.frame} bytes, expected none"
    if got.local:
        yield f"{where}: {got.local} instructions on local memory, expected none"
    if budget is None:
        yield f"{where}: no budget in {BUDGETS.name}; gate.py --write sets one"
        return
    registers = budget["registers"].get(arch)
    if registers is not None and got.registers > registers:
        yield f"{where}: {got.registers} registers, the budget is {registers}"
    limit = budget.get("instructions_per_codeword", {}).get(arch)
    if limit is not None and got.per_codeword > limit:
        yield f"{where}: {got.per_codeword:.2f} instructions per codeword, the budget is {limit}"
    if budget.get("loads16") and not got.loads16:
        yield f"{where}: no 16-byte load in the main loop, expected LDG.E.128"
    for wanted in budget.get("expects", {}).get(arch, []):
        if not any(fnmatch.fnmatchcase(opcode, wanted) for opcode in got.opcodes):
            yield f"{where}: no {wanted}, expected one"


# ---- what is shown ----


def h200_bound(loop: sass.Loop, codewords: float, bytes_per_codeword: float) -> str:
    """Return which share of an H200's memory speed a loop leaves room for, by issued instructions and by pipe."""
    needed = H200_BANDWIDTH / bytes_per_codeword / (H200_SMS * H200_CLOCK)
    issued = sum(i.pipe != "uniform" for i in loop.body)
    limits = {"issue": H200_ISSUE * codewords / max(issued, 1)}
    for pipe, (rate, _) in sass.PIPES.items():
        used = sum(i.pipe == pipe for i in loop.body)
        if used and pipe != "control":
            limits[pipe] = rate * codewords / used
    tightest = sorted(limits.items(), key=lambda item: item[1])[:4]
    shares = ", ".join(f"{name} {100 * rate / needed:.0f} %" for name, rate in tightest)
    return f"H200: 100 % of HBM needs {needed:.1f} codewords per clock and SM; bound by {shares}"


def show(kernel: sass.Kernel, arch: str, budget: dict[str, Any], block_bytes: dict[str, int]) -> None:
    """Print everything about one kernel."""
    got = figures(kernel, budget)
    print(f"{kernel.name} {arch}: {got.registers} registers, {got.frame} bytes of stack, {got.local} local accesses,")
    print(f"  {got.shared} bytes of static shared memory, {len(kernel.code)} instructions")
    print("  loops: " + (", ".join(f"{len(x.body)} ({x.math} math)" for x in kernel.loops()) or "none"))
    loop = kernel.main_loop()
    if loop is None:
        return
    source = "by budgets.json" if "codewords" in budget else "two IDP each"
    print(f"  main loop: {got.loop} instructions, {got.codewords:g} codewords ({source}), {got.loads16} 16-byte loads")
    if got.codewords:
        print(f"  {got.per_codeword:.2f} instructions per codeword")
    tile = next((n for f, n in block_bytes.items() if kernel.name.endswith(f"_{f}")), None)
    if tile and got.codewords:
        print(f"  {h200_bound(loop, got.codewords, tile / 32)}")
    print(
        "  opcodes of the loop: " + ", ".join(f"{o} {n}" for o, n in Counter(i.opcode for i in loop.body).most_common())
    )
    for i in loop.body:
        print(f"    {i.address:05x}  {i.opcode} {i.operands}")


# ---- the command ----


def write_budgets(budgets: dict[str, Any], measured: dict[str, dict[str, Figures]]) -> None:
    """Set the numbers of the kernels measured to what is reached, registers to whole groups of 8; the rest stays."""
    for name, by_arch in measured.items():
        budget = budgets["kernels"].setdefault(name, {"registers": {}})
        for arch, got in by_arch.items():
            budget["registers"][arch] = (got.registers + 7) // 8 * 8
            if "instructions_per_codeword" in budget:
                budget["instructions_per_codeword"][arch] = math.ceil(100 * SLACK * got.per_codeword) / 100
    budgets["kernels"] = dict(sorted(budgets["kernels"].items()))


def read_kernels(options: argparse.Namespace, arch: str) -> dict[str, sass.Kernel]:
    """Return the kernels asked for, of one architecture."""
    patterns = options.kernel or []
    with tempfile.TemporaryDirectory() as folder:
        made = options.cubins and options.cubins / f"{arch}.cubin"
        kernels = read_cubin(made or compile_cubin(options.source, arch, patterns, Path(folder)))
    return {n: k for n, k in kernels.items() if not patterns or matches(n, patterns)}


def main(arguments: list[str]) -> int:
    """Run the command and return how the program exits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kernel", action="append", help="name or pattern; shows it instead of checking all")
    parser.add_argument("--arch", action="append", help=f"one of {' '.join(ARCHITECTURES)} (all of them)")
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--cubins", type=Path)
    parser.add_argument("--budgets", type=Path, default=BUDGETS)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    budgets = json.loads(options.budgets.read_text(encoding="utf-8"))
    found: list[str] = []
    measured: dict[str, dict[str, Figures]] = {}
    for arch in options.arch or ARCHITECTURES:
        for name, kernel in read_kernels(options, arch).items():
            budget = budgets["kernels"].get(name)
            got = figures(kernel, budget or {})
            measured.setdefault(name, {})[arch] = got
            if options.kernel and not options.write:
                show(kernel, arch, budget or {}, budgets["tile_bytes"])
            found += problems(name, arch, got, budget)
    if options.write:
        write_budgets(budgets, measured)
        options.budgets.write_text(json.dumps(budgets, indent=1) + "\n", encoding="utf-8")
        return 0
    missing = [] if options.kernel or options.source != SOURCE else sorted(budgets["kernels"].keys() - measured.keys())
    found += [f"{name}: has a budget but is not compiled" for name in missing]
    print("\n".join(found) if found else f"gate: {len(measured)} kernels are within their budgets")
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolMissingError as error:
        sys.exit(str(error))
