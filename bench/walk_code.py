"""Follows a compiled function of x86-64 through its control flow without running it, for bench/static_cycles.py.

`Code` is the disassembly of an object file or a library. `Walk` executes what a call does to the general registers and
to memory, and lists the instructions that it meets in order: loops as often as they turn, calls as they go. Numbers
that come from vectors or from memory that nobody wrote are unknown, and stay unknown; a branch that depends on one is
an error. Kernels compute addresses from such numbers, but their loops depend on shapes only.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

END = 0x7F0000000000  # where a call returns to
STACK = 0x7E0000000000
STACK_BEGIN = STACK - 0x10000000
DATA_BEGIN, DATA = 0x100000000, 0x3C  # what a kernel reads has this in all bytes: an ordinary number in half precision
_NAMES = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"]
_CONDITIONS: dict[str, Callable[[int, int, int], bool]] = {  # of a comparison of a with b, or of a result with 0
    "e": lambda a, b, bits: a == b,
    "l": lambda a, b, bits: _signed(a, bits) < _signed(b, bits),
    "le": lambda a, b, bits: _signed(a, bits) <= _signed(b, bits),
    "b": lambda a, b, bits: a < b,
    "be": lambda a, b, bits: a <= b,
    "s": lambda a, b, bits: _signed((a - b) & (1 << bits) - 1, bits) < 0,
}
_NEGATED = {"ne": "e", "ge": "l", "nl": "l", "g": "le", "nle": "le", "ae": "b", "nb": "b", "a": "be", "nbe": "be"}
_NEGATED |= {"ns": "s"}
_ALIASES = {"z": "e", "nz": "ne", "c": "b", "nc": "ae", "nge": "l", "ng": "le"}
_ONE: dict[str, Callable[[int], int]] = {
    "inc": lambda a: a + 1,
    "dec": lambda a: a - 1,
    "neg": lambda a: -a,
    "not": lambda a: ~a,
}
_TWO: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: b + a,
    "sub": lambda a, b: b - a,
    "and": lambda a, b: b & a,
    "or": lambda a, b: b | a,
    "xor": lambda a, b: b ^ a,
    "imul": lambda a, b: b * a,
    "shl": lambda a, b: b << (a & 63),
    "shr": lambda a, b: b >> (a & 63),
    "bts": lambda a, b: b | 1 << (a & 63),
}


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def _registers() -> dict[str, tuple[str, int]]:
    out = {
        f"r{n}{end}": (f"r{n}", bits) for n in range(8, 16) for end, bits in (("", 64), ("d", 32), ("w", 16), ("b", 8))
    }
    for name in _NAMES:
        low = name[1:]
        out |= {name: (name, 64), "e" + low: (name, 32), low: (name, 16)}
        out[low[0] + "l" if low.endswith("x") else low + "l"] = (name, 8)
    return out


REGISTERS = _registers()
_VECTOR = re.compile(r"%[xyz]mm\d+$")  # their low bits are the registers "0" to "31"
_MEMORY = re.compile(r"^(-?0x[0-9a-f]+|-?\d+)?\((%\w+)?(?:,(%\w+),(\d))?\)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: `text` as an assembler reads it, without what the disassembler adds."""

    address: int
    next: int
    name: str
    operands: tuple[str, ...]
    text: str


@dataclass
class Code:
    """The instructions of a file by address, and where its functions begin."""

    instructions: dict[int, Instruction]
    functions: dict[str, int]
    external: set[int] = field(default_factory=set)  # calls that leave the file

    def find(self, pattern: str) -> int | None:
        """Return the address of the one function whose name has the pattern, None if there is none."""
        found = {at for name, at in self.functions.items() if re.search(pattern, name)}
        if len(found) > 1:
            raise ValueError(f"find: {pattern} matches {len(found)} functions, expected one")
        return found.pop() if found else None


def _operands(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip())


def disassemble(path: Path) -> Code:
    """Disassemble the code of an object file or a library."""
    command = ["objdump", "-d", "-r", "-C", "--no-show-raw-insn", "-w", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    code = Code({}, {})
    found: list[tuple[int, str]] = []
    for line in lines:
        if header := re.match(r"^([0-9a-f]+) <(.*)>:$", line):
            code.functions[header[2].partition("@@")[0]] = int(header[1], 16)
        elif match := re.match(r"^\s*([0-9a-f]+):\t(.*)$", line):
            text, *relocations = match[2].split("\t")
            found.append((int(match[1], 16), text))
            if text.startswith("call") and any("PLT32" in r for r in relocations):
                code.external.add(found[-1][0])
    ends = [address for address, _ in found[1:]] + [found[-1][0] + 1]
    for (address, text), end in zip(found, ends, strict=True):
        text = re.sub(r"\s+(<.*|#.*)$", "", text.strip())
        text = re.sub(r"^(?:(?:data16|cs|notrack|bnd|lock|rep|repz) )+", "", text)
        name, _, rest = text.partition(" ")
        code.instructions[address] = Instruction(address, end, name, _operands(rest), text)
    return code


class WalkError(ValueError):
    """A call that cannot be followed."""


class Walk:
    """One call: what it does to registers, memory and flags, and the instructions it meets."""

    def __init__(self, code: Code, limit: int = 2_000_000) -> None:
        self.code = code
        self.limit = limit
        self.registers: dict[str, int | None] = {"rsp": STACK}
        self.memory: dict[int, int] = {}  # by byte
        self.flags: tuple[int, int, int] | None = None
        self.trace: list[Instruction] = []

    # ---- operands ----

    def _address(self, operand: str) -> int | None:
        match = _MEMORY.match(operand)
        if match is None:
            return None
        total = int(match[1] or "0", 0)
        for name, scale in ((match[2], 1), (match[3], int(match[4] or 1))):
            if name is None:
                continue
            value = self.registers.get(name[1:])
            if value is None:
                return None
            total += value * scale
        return total & (1 << 64) - 1

    def put(self, address: int | None, size: int, value: int | None) -> None:
        """Write bytes; what is written to an unknown address is taken to be out of the way of the stack."""
        for i in range(size if address is not None else 0):
            assert address is not None
            if value is None:
                self.memory.pop(address + i, None)
            else:
                self.memory[address + i] = value >> (8 * i) & 255

    def _load(self, address: int | None, size: int) -> int | None:
        if address is None:
            return None
        known = DATA if DATA_BEGIN <= address < STACK_BEGIN else None
        got = [self.memory.get(address + i, known) for i in range(size)]
        return None if None in got else sum(byte << (8 * i) for i, byte in enumerate(got) if byte is not None)

    def _get(self, operand: str, bits: int) -> int | None:
        if operand.startswith("$"):
            return int(operand[1:], 0) & (1 << bits) - 1
        if operand.startswith("%"):
            name, _ = REGISTERS.get(operand[1:], (operand[4:] if _VECTOR.match(operand) else "", 0))
            value = self.registers.get(name)
            return None if value is None else value & (1 << bits) - 1
        return self._load(self._address(operand), bits // 8)

    def _set(self, operand: str, bits: int, value: int | None) -> None:
        if not operand.startswith("%"):
            self.put(self._address(operand), bits // 8, value)
            return
        name, width = REGISTERS.get(operand[1:], ("", 0))
        if not name:
            return
        old = self.registers.get(name)
        if value is not None and width < 32:
            value = None if old is None else old & ~((1 << width) - 1) | value & (1 << width) - 1
        if value is not None and width >= 32:
            value &= (1 << max(bits, width)) - 1
        self.registers[name] = value

    # ---- instructions ----

    def _holds(self, condition: str, at: Instruction) -> bool:
        condition = _ALIASES.get(condition, condition)
        if self.flags is None:
            raise WalkError(f"walk: a branch at {at.address:#x} ({at.text}) depends on data, expected shapes only")
        return _CONDITIONS[_NEGATED.get(condition, condition)](*self.flags) != (condition in _NEGATED)

    @staticmethod
    def _width(at: Instruction) -> int:
        for operand in reversed(at.operands):
            if operand[1:] in REGISTERS:
                return REGISTERS[operand[1:]][1]
        return {"b": 8, "w": 16, "l": 32, "q": 64}.get(at.name[-1], 64)

    def _arithmetic(self, at: Instruction, name: str) -> None:
        bits = self._width(at)
        a = self._get(at.operands[0], bits) if len(at.operands) > 1 else 1
        b = self._get(at.operands[-2 if len(at.operands) == 3 else -1], bits)
        if len(at.operands) == 3:
            a, b = b, a
        same = len(at.operands) == 2 and at.operands[0] == at.operands[1] and name in ("xor", "sub")
        result = 0 if same else None
        if not same and a is not None and b is not None:
            result = _signed(b, bits) >> (a & 63) if name == "sar" else _TWO[name](a, b)
            result &= (1 << bits) - 1
        self._set(at.operands[-1], bits, result)
        if name == "sub":
            self.flags = None if a is None or b is None else (b, a, bits)
        else:
            self.flags = None if result is None else (result, 0, bits)

    def _move(self, at: Instruction, name: str) -> None:
        source, target = at.operands
        bits = self._width(at)
        if match := re.match(r"mov([sz])([bwl])([wlq])$", name):
            narrow = {"b": 8, "w": 16, "l": 32}[match[2]]
            value = self._get(source, narrow)
            if value is not None and match[1] == "s":
                value = _signed(value, narrow) & (1 << bits) - 1
        elif name == "lea":
            value = self._address(source)
        else:
            value = self._get(source, bits)
        self._set(target, bits, value)

    def _other(self, at: Instruction, name: str) -> bool:
        """Run an instruction that is neither arithmetic nor a jump; False if nothing is known of it."""
        bits = self._width(at)
        if name in ("cmp", "test"):
            a, b = (self._get(operand, bits) for operand in at.operands)
            if a is None or b is None:
                self.flags = None
            else:
                self.flags = (b, a, bits) if name == "cmp" else (a & b, 0, bits)
        elif name.startswith("cmov"):
            # Without flags either value may come.
            value = self._get(at.operands[0], bits) if self.flags is not None and self._holds(name[4:], at) else None
            if self.flags is None or value is not None:
                self._set(at.operands[1], bits, value)
        elif name.startswith("set"):
            self._set(at.operands[0], 8, None if self.flags is None else int(self._holds(name[3:], at)))
        elif name in ("inc", "dec", "neg", "not"):
            value = self._get(at.operands[0], bits)
            result = None if value is None else _ONE[name](value) & (1 << bits) - 1
            self._set(at.operands[0], bits, result)
            self.flags = self.flags if name == "not" else None if result is None else (result, 0, bits)
        elif name == "push":
            self.registers["rsp"] = (self.registers["rsp"] or 0) - 8
            self.put(self.registers["rsp"], 8, self._get(at.operands[0], 64))
        elif name in ("pop", "leave"):
            if name == "leave":
                self.registers["rsp"] = self.registers["rbp"]
            self._set("%rbp" if name == "leave" else at.operands[0], 64, self._load(self.registers["rsp"], 8))
            self.registers["rsp"] = (self.registers["rsp"] or 0) + 8
        elif name == "cltq":
            value = self._get("%eax", 32)
            self._set("%rax", 64, None if value is None else _signed(value, 32) & (1 << 64) - 1)
        else:
            return False
        return True

    def _vector(self, at: Instruction) -> int | None:
        """Return the low 128 bits of what it makes, where general registers take a way through vectors."""
        *sources, target = at.operands
        if _VECTOR.match(target) is None and not any(map(_VECTOR.match, sources)):
            return None
        if at.name in ("vmovd", "vmovq"):
            return self._get(sources[0], 32 if at.name == "vmovd" else 64)
        if at.name in ("vmovdqa", "vmovdqu", "vmovaps", "vmovups", "vmovdqa64", "vmovdqu64") and "%xmm" in at.text:
            return self._get(sources[0], 128)
        if at.name in ("vpinsrq", "vpextrq", "vpunpcklqdq"):
            a = self._get(sources[-1], 128)
            if at.name == "vpextrq":
                return None if a is None else a >> 64
            b = self._get(sources[-2], 64)
            return None if a is None or b is None else a & (1 << 64) - 1 | b << 64
        return None

    def _forget(self, at: Instruction) -> None:
        """Its target becomes what a vector says, or unknown."""
        if at.name.startswith(("prefetch", "nop", "vzero")) or not at.operands:
            return
        target = at.operands[-1].split("{")[0]
        value = self._vector(at)
        if _VECTOR.match(target):
            self.registers[target[4:]] = value
        elif target[1:] in REGISTERS:
            self._set(target, 64, value)
        elif target.endswith(")"):
            sizes = {"x": 16, "y": 32, "z": 64}
            size = max((sizes.get(o[1], 8) for o in at.operands if o.startswith("%")), default=8)
            size = {"vmovq": 8, "vmovd": 4, "vpextrq": 8, "vmovss": 4, "vmovsd": 8}.get(at.name, size)
            self.put(self._address(target), size, value)
        if not at.name.startswith(("v", "kmov")):
            self.flags = None

    def run(self, function: int) -> list[Instruction]:
        """Walk a call of the function and return the instructions met."""
        self._other(Instruction(0, 0, "push", (f"${END}",), ""), "push")
        address: int | None = function
        while address != END:
            at = self.code.instructions.get(address or 0)
            if at is None or len(self.trace) > self.limit:
                raise WalkError(f"walk: came to {address} after {len(self.trace)} instructions, expected code")
            self.trace.append(at)
            address = self._step(at)
        return self.trace

    def _step(self, at: Instruction) -> int | None:
        """Run one instruction and return where the next one is."""
        bare = at.name[:-1] if at.name[-1] in "bwlq" else at.name
        name = bare if bare in _TWO or bare in ("sar", "cmp", "test", "inc", "dec", "neg", "not") else at.name
        name = bare if name in ("pushq", "popq", "leaq") else name
        if name == "ret":
            target = self._load(self.registers["rsp"], 8)
            self.registers["rsp"] = (self.registers["rsp"] or 0) + 8
            return target
        if name == "call":
            target = int(at.operands[0], 16)
            if at.address in self.code.external or target not in self.code.instructions:
                self.registers["rax"] = None
                return at.next
            self._other(Instruction(0, 0, "push", (f"${at.next}",), ""), "push")
            return target
        if name == "jmp":
            return int(at.operands[0], 16)
        if name.startswith("j"):
            return int(at.operands[0], 16) if self._holds(name[1:], at) else at.next
        if name in _TWO or name == "sar":
            self._arithmetic(at, name)
        elif name.startswith(("mov", "lea")) and len(at.operands) == 2 and name != "leave":
            self._move(at, name)
        elif not self._other(at, name):
            self._forget(at)
        return at.next
