"""Operations per codeword of whole Metal kernels, held against committed budgets; count.py has their inner product.

    python tests/sim/metal/gate.py                                   every kernel and format; exit status 1 if over
    python tests/sim/metal/gate.py --kernel matvec --weight iq1_m    one, by class and by operation
    python tests/sim/metal/gate.py --write                           set the budgets to what is reached plus 2 %

A codeword is 8 weights of one row, for one lane. What counts is the loop over tiles, all of it: staging, scales, loads.
The text is compiled to LLVM's intermediate language, everything inlined, no loop unrolled that the text does not
unroll. Branches go either way alike. Free: widening of halfs and the halves of a word (Apple's units read half
operands as they are, and take sign changes along), names for the same bits, constant offsets of addresses and their
64-bit parts. Everything else is one operation for each number of a vector; a load or store is one, whatever it moves.
Apple's compiler may do better or worse, and adds an index to an address for nothing: the count shows a rise, not a
speed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "csrc" / "metal"), str(ROOT / "tests")]
import amalgamate  # noqa: E402

from sim.metal.run import bound  # noqa: E402

BUDGETS = HERE / "budgets.json"
SLACK = 1.02
# The formats that have tiles on a GPU, and their structs
FORMATS = dict(re.findall(r"X\((\w+), (Iq\w+)\)", (ROOT / "csrc" / "gpu" / "tile.h").read_text(encoding="ascii")))
# Two rows of 32 codewords in a pass of the loop over tiles
CODEWORDS = {"matvec": 64, "moe_up": 64, "moe_down": 64}
FREE = {
    *("phi", "bitcast", "extractelement", "insertelement", "shufflevector", "extractvalue", "insertvalue", "freeze"),
    *("fpext", "fptrunc", "fneg", "trunc", "zext", "sext", "inttoptr", "ptrtoint", "addrspacecast", "alloca"),
    *("ret", "unreachable"),
}
FREE_CALLS = re.compile(r"@llvm\.(lifetime|dbg|assume|experimental\.noalias|fabs)|simdgroup_barrier")
FLAGS = [
    *("-x", "c++", "-std=c++14", "-O2", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-Wno-everything"),
    *("-fno-vectorize", "-fno-slp-vectorize", "-fno-unroll-loops", "-DLK_METAL_COUNT", "-S", "-emit-llvm"),
    *("-mllvm", "-inline-threshold=1000000", "-mllvm", "-inlinehint-threshold=1000000"),
]


@dataclass(frozen=True)
class Instruction:
    """One line of intermediate language: what it does, on how many numbers."""

    opcode: str
    width: int

    @property
    def kind(self) -> str:
        """Class: arithmetic, memory, address, together (SIMD group), control."""
        if self.opcode in ("load", "store"):
            return "memory"
        if self.opcode in ("getelementptr", "call lk_counted", "br", "switch"):
            return {"getelementptr": "address", "call lk_counted": "together"}.get(self.opcode, "control")
        return "arithmetic"


@dataclass
class Block:
    """A basic block of a function."""

    instructions: list[Instruction]
    next: list[str]


def _read(line: str) -> Instruction | None:
    """Return what a line costs; None if it is free."""
    text = re.sub(r"^\s*(%\S+ = )?((tail|musttail|notail) )?", "", line)
    opcode = text.split(" ", 1)[0]
    if opcode in FREE or opcode.startswith((";", "!", "source_filename")):
        return None
    vector = re.search(r"<(\d+) x (?:i\d+|half|float|double)>", text)
    width = int(vector[1]) if vector else 1
    if opcode == "call":
        if FREE_CALLS.search(text):
            return None
        name = re.search(r"@([\w.]+)", text)
        label = name[1] if name else "call"
        if "lk_counted" in label:
            return Instruction("call lk_counted", 1)
        return Instruction(
            re.sub(r"^llvm\.(\w+).*", r"\1", label) if label.startswith("llvm.") else f"call {label}", width
        )
    if opcode in ("load", "store"):
        return Instruction(opcode, 1)
    if opcode == "getelementptr":
        indices = re.findall(r", i\d+ (%\S+|-?\d+)", text)
        return Instruction(opcode, 1) if any(i.startswith("%") for i in indices) else None
    if opcode == "br":
        return Instruction("br", 1) if text.startswith("br i1") else None
    return Instruction(opcode, width)


def _upper_halves(body: str) -> set[str]:
    """Return the names of shifts by 16 whose low 16 bits alone are used: they name the upper half of a word."""
    names = set(re.findall(r"^  (%\d+) = lshr i32 %\d+, 16$", body, re.MULTILINE))
    for line in body.splitlines():
        if " = trunc i32 " in line and line.endswith("to i16"):
            continue
        head, _, rest = line.partition(" = ")
        names -= set(re.findall(r"%\d+", rest or head))
    return names


def blocks_of(text: str, kernel: str) -> dict[str, Block]:
    """Return the basic blocks of a kernel, in order."""
    body = re.search(rf"^define [^\n]*@_ZL\d+{kernel}_lk_bodyPKv\([^\n]*\{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    if body is None:
        raise ValueError(f"gate: no kernel {kernel}")
    upper = _upper_halves(body[1])
    blocks: dict[str, Block] = {}
    now = Block([], [])
    blocks["entry"] = now
    for line in body[1].splitlines():
        label = re.match(r"^([\w.$-]+):", line)
        if label:
            now = Block([], [])
            blocks[label[1]] = now
            continue
        if not line.startswith("  "):
            continue
        now.next += re.findall(r"label %([\w.$-]+)", line)
        is_case = line.strip() == "]" or re.match(r"\s+i\d+ -?\d+, label", line)
        found = None if is_case or line.split(" = ")[0].strip() in upper else _read(line)
        if found is not None:
            now.instructions.append(found)
    return blocks


def _order(blocks: dict[str, Block]) -> list[str]:
    """Return names so that a block comes after those that lead to it, loops aside."""
    seen: set[str] = set()
    out: list[str] = []
    stack = [("entry", iter(blocks["entry"].next))]
    seen.add("entry")
    while stack:
        name, rest = stack[-1]
        step = next((n for n in rest if n not in seen), None)
        if step is None:
            out.append(name)
            stack.pop()
        else:
            seen.add(step)
            stack.append((step, iter(blocks[step].next)))
    return out[::-1]


def loops_of(blocks: dict[str, Block]) -> list[set[str]]:
    """Return the natural loops, by their heads."""
    order = _order(blocks)
    before: dict[str, list[str]] = {name: [] for name in order}
    for name in order:
        for step in blocks[name].next:
            before[step].append(name)
    dominators = {name: set(order) for name in order}
    dominators["entry"] = {"entry"}
    changed = True
    while changed:
        changed = False
        for name in order[1:]:
            found = set.intersection(*(dominators[p] for p in before[name])) | {name}
            changed = changed or found != dominators[name]
            dominators[name] = found
    loops: dict[str, set[str]] = {}
    for name in order:
        for head in blocks[name].next:
            if head not in dominators[name]:
                continue
            members, work = loops.setdefault(head, {head}), [name]
            while work:
                member = work.pop()
                if member not in members:
                    members.add(member)
                    work += before[member]
    return list(loops.values())


def compiled(text: str) -> str:
    """Return the intermediate language of a text."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "text.cpp")
        source.write_text(bound(text), encoding="utf-8")
        head = ["-isystem", str(HERE / "include"), "-include", str(HERE / "include" / "metal_glue")]
        for name in ("clang++-16", "clang++-17", "clang++-18", "clang++-19", "clang++-15", "clang++"):
            try:
                result = subprocess.run([name, *FLAGS, *head, str(source), "-o", "-"], capture_output=True, text=True)
            except FileNotFoundError:
                continue
            if result.returncode:
                raise ValueError(f"gate: {result.stderr}")
            return result.stdout
    raise FileNotFoundError("clang++ (Debian: clang-16)")


def library_text(kernel: str, weight: str) -> str:
    """Return the text of the library that has a kernel, for one format of all weights."""
    macros: dict[str, int | str] = {"LK_TILES": 1}
    words = ("LK_GATE", "LK_UP") if kernel == "moe_up" else ("LK_WEIGHT",)
    text = amalgamate.library_text(**macros, **dict.fromkeys(words, FORMATS[weight]))
    keep = re.compile(r"^kernel void (\w+)\(.*?^\}\n", re.MULTILINE | re.DOTALL)
    return keep.sub(lambda m: m[0] if m[1] == kernel else "", text)


def _shares(blocks: dict[str, Block], loop: set[str]) -> dict[str, float]:
    """Return how often each block of a loop runs in a pass: branches go either way alike, loops in it run once."""
    order = [name for name in _order(blocks) if name in loop]
    place = {name: i for i, name in enumerate(order)}
    shares = dict.fromkeys(order, 0.0)
    shares[order[0]] = 1.0
    for name in order:
        ahead = [step for step in blocks[name].next if step in loop and place[step] > place[name]]
        for step in ahead:
            shares[step] += shares[name] / len(ahead)
    return shares


def count(kernel: str, weight: str, change: Callable[[str], str] = str) -> dict[Instruction, float]:
    """Return the operations of a pass of the loop over tiles; loops in it that run twice count twice."""
    blocks = blocks_of(compiled(change(library_text(kernel, weight))), kernel)
    loops = loops_of(blocks)

    def products(loop: set[str]) -> int:
        return sum(i.opcode in ("fma", "fmuladd") for name in loop for i in blocks[name].instructions)

    most = max(products(loop) for loop in loops)
    outer = max((loop for loop in loops if products(loop) == most), key=len)
    inner = [loop for loop in loops if loop < outer and products(loop) > most / 2]
    twice = set.union(set(), *inner) if most < 8 * CODEWORDS[kernel] else set()
    out: dict[Instruction, float] = {}
    for name, share in _shares(blocks, outer).items():
        for instruction in blocks[name].instructions:
            out[instruction] = out.get(instruction, 0.0) + share * (2 if name in twice else 1)
    return out


def per_codeword(kernel: str, weight: str, change: Callable[[str], str] = str) -> float:
    """Return operations per codeword."""
    return sum(n * i.width for i, n in count(kernel, weight, change).items()) / CODEWORDS[kernel]


def show(kernel: str, weight: str) -> None:
    """Print one kernel by class and by operation."""
    found = count(kernel, weight)
    total = sum(n * i.width for i, n in found.items())
    print(f"{kernel} {weight}: {total / CODEWORDS[kernel]:.1f} operations per codeword")
    for label in ("arithmetic", "memory", "address", "together", "control"):
        names: dict[str, float] = {}
        for i, n in found.items():
            if i.kind == label:
                names[i.opcode] = names.get(i.opcode, 0.0) + n * i.width
        ordered = sorted(names.items(), key=lambda item: -item[1])
        each = ", ".join(f"{name} {n / CODEWORDS[kernel]:.2f}" for name, n in ordered)
        print(f"  {label:<11} {sum(names.values()) / CODEWORDS[kernel]:5.2f}   {each}")


def main(arguments: list[str] | None = None) -> int:
    """Count; return the exit status."""
    parser = argparse.ArgumentParser(description="Count operations per codeword of Metal kernels.")
    parser.add_argument("--kernel", choices=CODEWORDS)
    parser.add_argument("--weight", choices=FORMATS)
    parser.add_argument("--write", action="store_true", help="set the budgets")
    options = parser.parse_args(arguments)
    kernels = [options.kernel] if options.kernel else list(CODEWORDS)
    weights = [options.weight] if options.weight else list(FORMATS)
    if options.kernel and options.weight:
        show(options.kernel, options.weight)
    budgets = json.loads(BUDGETS.read_text(encoding="utf-8")) if BUDGETS.exists() else {}
    over = False
    for kernel in kernels:
        for weight in weights:
            found = per_codeword(kernel, weight)
            if options.write:
                budgets.setdefault(kernel, {})[weight] = round(found * SLACK, 1)
            budget = budgets.get(kernel, {}).get(weight, 0.0)
            over = over or found > budget
            print(f"{kernel:<10} {weight:<8} {found:6.1f} of {budget:5.1f}{'  over' if found > budget else ''}")
    if options.write:
        BUDGETS.write_text(json.dumps(budgets, indent=2) + "\n", encoding="utf-8")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
