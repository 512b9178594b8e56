"""Turns operands into Python text: what an instruction reads and writes, with the types it declares.

Registers are arrays, one element for each lane: unsigned integers of their width, float32, float64 or bool, as
declared. Where an instruction reads them as something else of that width, it reads a view.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from .memory import PARAM_BASE
from .parse import Instruction, Operand

WIDTH = {"pred": 1, "b8": 1, "s8": 1, "u8": 1, "b16": 2, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "f64": 8}
WIDTH |= {"b32": 4, "s32": 4, "u32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "b64": 8, "s64": 8, "u64": 8}


@functools.cache
def numpy_kind(kind: str) -> str:
    """The NumPy type code of a PTX type: s32 is i4; halves are their bits."""
    if kind == "pred":
        return "?"
    letter = "i" if kind[0] == "s" else "f" if kind in ("f32", "f64") else "u"
    return f"{letter}{WIDTH[kind]}"


class Writer:
    """Lines of Python for a stretch of instructions. addresses: of variables, by name."""

    def __init__(self, addresses: dict[str, int], params: dict[str, int]) -> None:
        self.addresses = addresses
        self.params = params  # parameters of the kernel: offset in the args
        self.constants: dict[str, np.generic] = {}
        self.kinds: dict[str, str] = {}  # register: NumPy type code
        self._names: dict[str, str] = {}
        self.lines: list[str] = []
        self.instruction: Instruction
        self.position = 0
        self.lanewise = False
        self.read: list[str] = []  # registers in the order of their first read before any write
        self.written: dict[str, None] = {}

    # ---- what an instruction reads ----

    def register(self, operand: Operand) -> str:
        """The Python name of a register; notes that it is read."""
        name = self._name(operand)
        self.lanewise = True
        if name not in self.written and name not in self.read:
            self.read.append(name)
        return name

    def _name(self, operand: Operand) -> str:
        if operand.name not in self._names:
            name = "v_" + re.sub(r"\W", lambda m: f"_{ord(m.group()):x}", operand.name)
            self._names[operand.name] = name
            self.kinds[name] = numpy_kind(operand.type)
        return self._names[operand.name]

    def source(self, operand: Operand, kind: str) -> str:
        """An expression for an operand as a NumPy type code."""
        if operand.kind == "register":
            name = self.register(operand)
            stored = self.kinds[name]
            if stored == "?" or kind == "?":
                if stored != kind:
                    raise self.instruction.error(f"reads {operand.name} as {kind}")
                return f"~{name}" if operand.negated else name
            if stored == kind:
                return name
            if stored[1] == kind[1]:
                return f"{name}.view({kind!r})"
            if int(stored[1]) < int(kind[1]):
                raise self.instruction.error(f"reads {operand.name} as {kind}")
            plain = name if stored[0] == "u" else f"{name}.view('u{stored[1]}')"
            cut = f"{plain}.astype('u{kind[1]}')"
            return cut if kind[0] == "u" else f"{cut}.view({kind!r})"
        if operand.kind == "immediate":
            return self.constant(_immediate(operand.name), kind)
        if operand.kind == "special":
            return self._special(operand.name)
        if operand.kind == "name":
            return self.constant(self.address_of(operand.name), kind)
        raise self.instruction.error(f"a {operand.kind} is no value here")

    def _special(self, name: str) -> str:
        if name.startswith(("tid", "lane", "warpid", "ctaid")):
            self.lanewise = True
            return f"m.special({name!r}, L)"
        return f"m.uniform({name!r})"

    def address_of(self, name: str) -> int:
        """Address of a variable in its own space; of a parameter of the kernel: generic."""
        if name in self.params:
            return PARAM_BASE + self.params[name]
        if name not in self.addresses:
            raise self.instruction.error(f"{name} is not declared")
        return self.addresses[name]

    def constant(self, value: int, kind: str) -> str:
        """A name for a constant; of a float, value is its bits."""
        number = _number(value, kind)
        name = f"k_{kind.replace('?', 'b')}_{number.tobytes().hex()}"
        self.constants[name] = number
        return name

    def address(self, operand: Operand, space: str) -> tuple[str, str]:
        """Expression of an address, and the space: param may turn into local."""
        base = operand.parts[0]
        kind = "u8"
        if base.kind == "register":
            kind = "u4" if base.type in ("b32", "u32", "s32") else "u8"
            text = self.source(base, kind)
            if operand.offset:
                text = f"({text} + {self.constant(operand.offset % (1 << 8 * int(kind[1])), kind)})"
            return text, space
        if base.kind == "immediate":
            return f"np.full(n, {self.constant(int(base.name, 0) + operand.offset, kind)})", space
        if base.name in self.params or space != "param":
            return f"np.full(n, {self.constant(self.address_of(base.name) + operand.offset, kind)})", space
        return f"np.full(n, {self.constant(self.address_of(base.name) + operand.offset, kind)})", "local"

    # ---- what it writes ----

    def emit(self, line: str) -> None:
        """A line as it is."""
        self.lines.append(line)

    def guard(self) -> str | None:
        """Expression of the guard."""
        guard = self.instruction.guard
        return None if guard is None else self.source(guard, "?")

    def assign(self, operand: Operand, expression: str, kind: str, fresh: bool = True) -> None:
        """Write a register. kind: of the expression; fresh: it shares memory with no register."""
        if operand.kind == "sink":
            return
        if operand.kind != "register":
            raise self.instruction.error(f"a {operand.kind} is no destination")
        if not self.lanewise:
            expression, fresh = f"np.full(n, {expression})", True
        stored = numpy_kind(operand.type)
        value = _convert(expression, kind, stored)
        if value is None:
            raise self.instruction.error(f"writes {kind} into {operand.name} of type {operand.type}")
        guard = self.guard()
        if guard is not None:
            value, fresh = f"np.where({guard}, {value}, {self.register(operand)})", True
        name = self._name(operand)
        self.written[name] = None
        self.emit(f"{name} = {value}" if fresh else f"{name} = ({value}).copy()")


def _convert(expression: str, kind: str, stored: str) -> str | None:
    if kind == stored:
        return expression
    if "?" in (kind, stored):
        return None
    have, want = int(kind[1]), int(stored[1])
    if have == want:
        return f"({expression}).view({stored!r})"
    if have > want or "f" in (kind[0], stored[0]):
        return None
    wide = f"({expression}).astype('{kind[0]}{want}')"
    return wide if kind[0] == stored[0] else f"{wide}.view({stored!r})"


def _immediate(text: str) -> int:
    """A number; of a float its bits."""
    if text[:2] in ("0f", "0F", "0d", "0D"):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0)


def _number(value: int, kind: str) -> np.generic:
    """A constant from its bits."""
    if kind == "?":
        return np.bool_(value)
    bits = np.array([value % (1 << 8 * int(kind[1]))], f"u{kind[1]}")
    number: np.generic = bits.view(kind)[0]
    return number
