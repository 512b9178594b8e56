"""Read what nvdisasm prints of a cubin: each kernel's resources, its instructions, its loops.

The numbers are those of the code that ships, not of a compiler's log: registers and the stack frame stand in the cubin,
a spill is an instruction on local memory.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

# /*0240*/   @!P0 IDP.4A.U8.S8 R27, R7, R23, R22 ;
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_LABEL = re.compile(r"^(\.L_x_\d+):", re.MULTILINE)
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_CODE = re.compile(r'^\s*\.section\s+\.text\.(\w+),"ax",@progbits$', re.MULTILINE)
_SHARED = re.compile(r"^\s*\.section\s+\.nv\.shared\.(\w+),.*\n(?:.*\n)*?\s*\.zero\s+(\d+)", re.MULTILINE)
_RESOURCE = r"EIATTR_%s\n(?:.*\n)*?.*index@\((\w+)\)\n.*\.word\s+(0x[0-9a-f]+)"

# What does the arithmetic, by the first part of its name.
MATH = frozenset({"IDP", "IMMA", "HMMA", "FFMA", "HFMA2", "QGMMA", "IGMMA"})
# Threads per clock and SM of each pipe, compute capability 9.0 (CUDA programming guide, arithmetic instructions);
# of shared memory where no two lanes meet in a bank.
PIPES: dict[str, tuple[int, frozenset[str]]] = {
    "fma": (128, frozenset({"FFMA", "FADD", "FMUL"})),
    "multiply": (64, frozenset({"IMAD", "IDP"})),
    "convert": (16, frozenset({"I2F", "F2I", "F2F", "MUFU", "I2FP", "POPC", "FLO"})),
    "shared": (32, frozenset({"LDS", "STS", "LDSM", "SHFL", "LDG", "STG", "LDGSTS"})),
    "control": (64, frozenset({"BRA", "EXIT", "BAR", "NOP", "BSSY", "BSYNC", "WARPSYNC", "DEPBAR", "LDGDEPBAR"})),
    "alu": (64, frozenset()),  # everything else that a thread has for itself
}


@dataclass(frozen=True)
class Instruction:
    """One instruction: where it is, its full name, its operands."""

    address: int
    opcode: str
    operands: str

    @property
    def base(self) -> str:
        """The name without its suffixes: IDP of IDP.4A.U8.S8."""
        return self.opcode.split(".", 1)[0]

    @property
    def pipe(self) -> str:
        """The unit that runs it; uniform: once for the warp."""
        if self.base.startswith("U") or self.base in {"R2UR", "S2UR", "LDC", "LDCU"}:
            return "uniform"
        if self.base in {"IMMA", "HMMA"}:
            return "matrix"
        return next((name for name, (_, members) in PIPES.items() if self.base in members), "alu")


@dataclass(frozen=True)
class Loop:
    """Instructions from the target of a backward branch to the branch."""

    body: tuple[Instruction, ...]

    def count(self, *bases: str) -> int:
        """Return how many instructions have one of these names."""
        return sum(i.base in bases for i in self.body)

    @property
    def math(self) -> int:
        """How many instructions do the arithmetic."""
        return self.count(*MATH)

    def holds(self, other: Loop) -> bool:
        """Whether another loop lies inside of this one."""
        return (
            self is not other
            and self.body[0].address <= other.body[0].address
            and other.body[-1].address <= self.body[-1].address
            and len(other.body) < len(self.body)
        )


@dataclass
class Kernel:
    """One kernel of a cubin."""

    name: str
    registers: int
    frame: int
    shared: int
    code: tuple[Instruction, ...]
    labels: dict[str, int] = field(repr=False)

    def opcodes(self) -> Counter[str]:
        """Return how often each full name occurs in the kernel."""
        return Counter(i.opcode for i in self.code)

    def local(self) -> int:
        """Return how many instructions touch local memory: spills, and arrays that are no registers."""
        return sum(i.base in {"LDL", "STL"} for i in self.code)

    def loops(self) -> list[Loop]:
        """Return the loops, one for each head, largest first."""
        ends: dict[int, int] = {}
        for i in self.code:
            match = _TARGET.search(i.operands) if i.base == "BRA" else None
            target = self.labels.get(match[1]) if match else None
            if target is not None and target < i.address:
                ends[target] = max(ends.get(target, 0), i.address)
        loops = [Loop(tuple(i for i in self.code if head <= i.address <= end)) for head, end in ends.items()]
        return sorted(loops, key=lambda loop: -len(loop.body))

    def main_loop(self) -> Loop | None:
        """Return the loop that does the work: the one with most of the arithmetic, loads where there is none.

        Of nested loops the innermost one that still has two fifths of it: gate and up may have a loop each.
        """

        def work(loop: Loop) -> tuple[int, int]:
            return loop.math, loop.count("LDG", "LDGSTS")

        loops = self.loops()
        if not loops:
            return None
        best = max(loops, key=work)
        while True:
            inner = [x for x in loops if best.holds(x) and work(x) > (0, 0) and 5 * sum(work(x)) >= 2 * sum(work(best))]
            if not inner:
                return best
            best = max(inner, key=work)


def parse(text: str) -> dict[str, Kernel]:
    """Return the kernels in the output of ``nvdisasm CUBIN``, by name."""
    registers = {name: int(value, 16) for name, value in re.findall(_RESOURCE % "REGCOUNT", text)}
    frames = {name: int(value, 16) for name, value in re.findall(_RESOURCE % "FRAME_SIZE", text)}
    shared = {name: int(value) for name, value in _SHARED.findall(text)}
    kernels = {}
    for match in _CODE.finditer(text):
        end = text.find("//---------------------", match.end())
        code, labels = _code(text[match.end() : end if end >= 0 else len(text)])
        name = match[1]
        kernels[name] = Kernel(name, registers[name], frames[name], shared.get(name, 0), code, labels)
    return kernels


def _code(text: str) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    found = [(m.start(), Instruction(int(m[1], 16), m[2], m[3].strip())) for m in _INSTRUCTION.finditer(text)]
    labels = {}
    position = 0
    for label in _LABEL.finditer(text):
        while position < len(found) and found[position][0] < label.start():
            position += 1
        if position < len(found):
            labels[label[1]] = found[position][1].address
    return tuple(i for _, i in found), labels
