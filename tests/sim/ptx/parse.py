"""PTX text to kernels: instructions with resolved operands, variables, calls put in place.

A module is split into its functions at once; a function is parsed when it is asked for. A call of a .func is replaced
by the body of the function with registers and labels of its own, so that what runs has no call stack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

WIDTHS = {"8": 1, "16": 2, "32": 4, "64": 8}


class PtxError(Exception):
    """Something that the hardware would not do, or that the interpreter does not know; names the line of the PTX."""

    def __init__(self, line: int, text: str, problem: str) -> None:
        super().__init__(f"ptx line {line}: {text}: {problem}")
        self.line = line


_TYPE = re.compile(r"(bf|[subf])\d+(x2)?|pred")


@dataclass(frozen=True, eq=False)
class Operand:
    """One operand. kind: register, immediate, address, vector, name, special, sink."""

    kind: str
    name: str = ""
    type: str = ""  # of a register, as declared: b32, f32, pred
    offset: int = 0  # of an address
    parts: tuple[Operand, ...] = ()  # of a vector, of a pair of destinations; the base of an address
    negated: bool = False  # of a predicate


@dataclass
class Instruction:
    """A line of PTX: `@guard opcode.modifiers operands`."""

    line: int
    text: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: list[Operand]
    guard: Operand | None = None
    type: str = ""  # the last modifier that is one

    def __post_init__(self) -> None:
        self.type = next((m for m in reversed(self.modifiers) if _TYPE.fullmatch(m)), "")

    def error(self, problem: str) -> PtxError:
        """An error at this line."""
        return PtxError(self.line, self.text, problem)


@dataclass
class Variable:
    """A named array in an address space; data is None where it is not initialised."""

    space: str
    align: int
    size: int
    data: npt.NDArray[np.uint8] | None = None


@dataclass
class Kernel:
    """The straight text of an entry or a function, with all names unique."""

    name: str
    parameters: list[tuple[str, int]]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # the instruction that follows
    targets: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets
    variables: dict[str, Variable] = field(default_factory=dict)  # .shared, .local, .param of the body


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_HEAD = re.compile(
    r"((?:\.(?:visible|weak|extern)\s+)*)\.(entry|func)\b\s*(\([^()]*\))?\s*([\w$]+)\s*(\([^()]*\))?([^{;]*)([{;])"
)
_VARIABLE = re.compile(
    r"(?:\.(?:visible|weak|extern|common)\s+)*\.(global|const|shared|local|param)\s+(?:\.align\s+(\d+)\s+)?"
    r"\.(\w+)\s+([\w$]+)\s*(?:\[\s*(\d*)\s*\])?\s*(?:=\s*(.*))?",
    re.S,
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
_LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
_NUMBER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+U?|0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|\d+U?)")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.\w?(\d+)\s+(?:\.ptr\S*\s+(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?"
)
SPECIAL = re.compile(r"%(?:n?tid|n?ctaid)\.[xyz]|%(?:laneid|warpid|nwarpid|lanemask_\w+|dynamic_smem_size)")


def _parameters(text: str | None) -> list[tuple[str, int]]:
    return [(name, int(bits) // 8 * int(count or 1)) for bits, name, count in _PARAMETER.findall(text or "")]


def _variable(match: re.Match[str]) -> tuple[str, Variable]:
    space, align, kind, name, count, value = match.groups()
    width = WIDTHS[kind[1:]]
    size = width * (int(count) if count else 0 if count == "" else 1)
    data = None
    if value is not None:
        body = value.strip().strip("{}").replace("{", "").replace("}", "")
        numbers = np.array([int(v, 0) for v in body.split(",") if v.strip()], np.int64)
        data = np.zeros(size, np.uint8)
        packed = numbers.astype(f"u{width}").view(np.uint8)
        data[: packed.size] = packed
    elif space in ("global", "const"):
        data = np.zeros(size, np.uint8)
    return name, Variable(space, int(align or width), size, data)


@dataclass
class _Function:
    entry: bool
    returned: list[tuple[str, int]]
    parameters: list[tuple[str, int]]
    start: int
    end: int


class Module:
    """A PTX file: `functions` by name, `variables` of the module by name."""

    def __init__(self, text: str) -> None:
        self.text = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
        self._lines = np.flatnonzero(np.frombuffer(self.text.encode(), np.uint8) == 10)
        self.functions: dict[str, _Function] = {}
        self.variables: dict[str, Variable] = {}
        position, outside = 0, []
        while match := _HEAD.search(self.text, position):
            outside.append(self.text[position : match.start()])
            position = match.end()
            if match.group(7) == ";":
                continue
            end = self._closing(match.end() - 1)
            entry = match.group(2) == "entry"
            returned = [] if entry else _parameters(match.group(3))
            self.functions[match.group(4)] = _Function(entry, returned, _parameters(match.group(5)), position, end)
            position = end + 1
        outside.append(self.text[position:])
        for statement in ";".join(outside).split(";"):
            found = _VARIABLE.fullmatch(
                re.sub(r"^(\s*\.(version|target|address_size|file)[^\n]*\n)+", "", statement).strip()
            )
            if found:
                name, variable = _variable(found)
                self.variables[name] = variable

    @property
    def entries(self) -> list[str]:
        """Names of the kernels."""
        return [name for name, function in self.functions.items() if function.entry]

    def line(self, position: int) -> int:
        """The line of a position of the text, from 1."""
        return int(np.searchsorted(self._lines, position)) + 1

    def _closing(self, position: int) -> int:
        depth = 0
        for match in re.compile(r"[{}]").finditer(self.text, position):
            depth += 1 if match.group() == "{" else -1
            if depth == 0:
                return match.start()
        raise PtxError(self.line(position), "{", "no closing brace")

    def kernel(self, name: str) -> Kernel:
        """An entry, parsed, with its calls in place."""
        if name not in self.functions:
            raise KeyError(f"the module has no kernel {name}, only {', '.join(self.entries)}")
        return Body(self, name, "").parse()


class Body:
    """Parses one function; prefix makes the names of a body that replaces a call unique."""

    def __init__(self, module: Module, name: str, prefix: str, actual: dict[str, str] | None = None) -> None:
        self.module = module
        self.function = module.functions[name]
        self.prefix = prefix
        self.kernel = Kernel(name, self.function.parameters)
        self.scopes: list[dict[str, tuple[str, str]]] = [dict() for _ in range(1)]
        self.scope_count = 0
        self._operands: dict[str, Operand] = {}  # of the scope that is open
        for formal, new in (actual or {}).items():
            self.scopes[0][formal] = (new, "variable")

    def parse(self) -> Kernel:
        """Read statement after statement."""
        text, position, end = self.module.text, self.function.start, self.function.end
        space = re.compile(r"[\s;]*")
        while True:
            position = space.match(text, position).end()  # type: ignore[union-attr]
            if position >= end:
                return self.kernel
            if text[position] == "{":
                self.scopes.append({})
                self._operands.clear()
                self.scope_count += 1
                position += 1
            elif text[position] == "}":
                self.scopes.pop()
                self._operands.clear()
                position += 1
            elif label := _LABEL.match(text, position):
                self.label(label.group(1))
                position = label.end()
            else:
                stop = text.index(";", position)
                self.statement(" ".join(text[position:stop].split()), self.module.line(position))
                position = stop + 1

    def label(self, name: str) -> None:
        """A label names the next instruction."""
        self.last_label = self.prefix + name
        self.kernel.labels[self.last_label] = len(self.kernel.instructions)

    def statement(self, text: str, line: int) -> None:
        """A declaration, a directive or an instruction."""
        if text.startswith(".reg"):
            self.registers(text)
        elif text.startswith(".branchtargets"):
            self.kernel.targets[self.last_label] = [self.prefix + t.strip() for t in text.split(None, 1)[1].split(",")]
        elif match := _VARIABLE.fullmatch(text):
            name, variable = _variable(match)
            unique = self.unique(name)
            self.scopes[-1][name] = (unique, "variable")
            self._operands.clear()
            self.kernel.variables[unique] = variable
        elif not text.startswith((".pragma", ".loc")):
            self.instruction(text, line)

    def unique(self, name: str) -> str:
        """A name that no other scope has."""
        return f"{self.prefix}{name}" + (f"@{self.scope_count}" if len(self.scopes) > 1 else "")

    def registers(self, text: str) -> None:
        """`.reg .b32 %r<9>` or `.reg .b32 a, b`."""
        kind, names = _REGISTERS.fullmatch(text).groups()  # type: ignore[union-attr]
        self._operands.clear()
        for name in names.split(","):
            base = name.strip().split("<")[0]
            self.scopes[-1][base + ("<>" if "<" in name else "")] = (self.unique(base), kind)

    def find(self, name: str) -> tuple[str, str] | None:
        """Unique name and type of a declared name, innermost scope first."""
        stem = name.rstrip("0123456789")
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
            if stem != name and stem + "<>" in scope:
                unique, kind = scope[stem + "<>"]
                return unique + name[len(stem) :], kind
        return None

    def operand(self, text: str) -> Operand:
        """One operand from its text."""
        text = text.strip()
        if text not in self._operands:
            self._operands[text] = self._read(text)
        return self._operands[text]

    def _read(self, text: str) -> Operand:
        if text == "_":
            return Operand("sink")
        if text.startswith("["):
            return self.address(text[1:-1])
        if text.startswith(("{", "(")):
            return Operand("vector", parts=tuple(self.operand(t) for t in _split(text[1:-1])))
        if text.startswith("!"):
            return replace(self.operand(text[1:]), negated=True)
        if "|" in text:
            return Operand("vector", parts=tuple(self.operand(t) for t in text.split("|")))
        if _NUMBER.fullmatch(text):
            return Operand("immediate", text)
        if SPECIAL.fullmatch(text):
            return Operand("special", text[1:])
        found = self.find(text)
        if found is None:
            return Operand("name", text)
        return Operand("name", found[0]) if found[1] == "variable" else Operand("register", found[0], found[1])

    def address(self, text: str) -> Operand:
        """`[base+offset]`."""
        base, _, offset = text.partition("+")
        inner = self.operand(base)
        return Operand("address", offset=int(offset, 0) if offset else 0, parts=(inner,))

    def instruction(self, text: str, line: int) -> None:
        """`@guard opcode operands`."""
        guard, rest = None, text
        if text.startswith("@"):
            word, rest = text[1:].split(None, 1)
            guard = self.operand(word)
        opcode, _, operands = rest.partition(" ")
        name, *modifiers = opcode.split(".")
        parts = [self.operand(t) for t in _split(operands)] if operands.strip() else []
        instruction = Instruction(line, text, name, tuple(modifiers), parts, guard)
        if name == "call":
            self.call(instruction)
            return
        if name in ("bra", "brx"):
            parts[-1] = replace(parts[-1], name=self.prefix + parts[-1].name)
        self.kernel.instructions.append(instruction)

    def call(self, instruction: Instruction) -> None:
        """Put the body of the function here."""
        operands = [o for o in instruction.operands if o.kind != "immediate"]
        position = next((i for i, o in enumerate(operands) if o.kind == "name"), -1)
        callee = operands[position].name if position >= 0 else ""
        if callee not in self.module.functions:
            raise instruction.error("call of a function that the module does not have")
        returned = operands[0].parts if position == 1 else ()
        given = operands[position + 1].parts if len(operands) > position + 1 else ()
        function = self.module.functions[callee]
        formals = [n for n, _ in function.returned + function.parameters]
        prefix = f"{self.prefix}{callee}#{len(self.kernel.instructions)}:"
        body = Body(
            self.module, callee, prefix, dict(zip(formals, (o.name for o in (*returned, *given)), strict=True))
        ).parse()
        end = prefix + "end"
        shift = len(self.kernel.instructions)
        for inner in body.instructions:
            if inner.opcode == "ret":
                inner.opcode, inner.modifiers, inner.operands = "bra", (), [Operand("name", end)]
        self.kernel.instructions += body.instructions
        self.kernel.labels |= {label: at + shift for label, at in body.labels.items()}
        self.kernel.labels[end] = len(self.kernel.instructions)
        self.kernel.targets |= body.targets
        self.kernel.variables |= body.variables


def _split(text: str) -> list[str]:
    """Comma-separated parts, braces and parentheses kept whole."""
    if "{" not in text and "(" not in text:
        return text.split(",")
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "{([") - (letter in "})]")
        if letter == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [*parts, current]
