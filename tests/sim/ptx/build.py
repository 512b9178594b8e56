"""A kernel as blocks of Python: one function for each stretch of instructions without a branch.

A function has the parameters m (the launch), R (registers by name, one element for each lane of the batch), L (the
lanes that run: all, or an array of positions) and n (their number). Registers that live in one stretch only stay local
names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from . import floats, integers, warps
from .emit import ARITHMETIC
from .emit_move import MOVES, TOGETHER
from .parse import Instruction, Kernel, Variable
from .writer import WIDTH, Writer

EMITTERS = ARITHMETIC | MOVES
BRANCHES = ("bra", "brx", "ret", "exit")


@dataclass
class Block:
    """A stretch of instructions, and what comes after it. wait: barrier, warp (lanes of a mask) or nothing."""

    first: int
    instructions: list[Instruction]
    wait: str = ""
    end: str = "next"  # next, jump, branch, index, exit
    target: int = -1
    targets: list[int] = field(default_factory=list)
    run: Callable[..., Any] = lambda *_: None
    mask: Callable[..., Any] | None = None  # of the lanes to wait for; None: all 32


@dataclass
class Built:
    """A kernel that can run."""

    kernel: Kernel
    blocks: list[Block]
    kinds: dict[str, str]  # registers of the register file
    shared_bytes: int  # static
    shared_addresses: dict[str, int]
    local_bytes: int
    shared_unit: int  # the smallest access to shared memory


def place(variables: dict[str, Variable], space: tuple[str, ...], start: int = 0) -> tuple[dict[str, int], int]:
    """Addresses of the variables of a space, one after another, and the end."""
    addresses = {}
    for name, variable in variables.items():
        if variable.space in space:
            start = -(-start // variable.align) * variable.align
            addresses[name] = start
            start += variable.size
    return addresses, start


def waits(i: Instruction) -> str:
    """Whether an instruction waits for other threads."""
    if i.opcode in ("bar", "barrier"):
        if "warp" in i.modifiers:
            return "warp"
        if "sync" not in i.modifiers or len(i.operands) != 1 or i.operands[0].kind != "immediate":
            raise i.error("unknown form of a barrier")
        return "barrier"
    return "warp" if i.opcode in TOGETHER else ""


def split(kernel: Kernel) -> list[Block]:
    """Cut at labels, branches and waits; resolve the targets."""
    starts = {0, *kernel.labels.values(), len(kernel.instructions)}
    for at, i in enumerate(kernel.instructions):
        if i.opcode in BRANCHES:
            starts.add(at + 1)
        if waits(i):
            starts |= {at, at + 1}
            if i.guard is not None:
                raise i.error("a guarded wait is not known")
    cuts = sorted(starts)
    index = {at: k for k, at in enumerate(cuts)}
    blocks = [Block(a, kernel.instructions[a:b]) for a, b in pairwise(cuts)]
    for block in blocks:
        if not block.instructions:
            continue
        last = block.instructions[-1]
        block.wait = waits(block.instructions[0])
        if last.opcode == "bra":
            block.end = "branch" if last.guard else "jump"
            block.target = index[_label(kernel, last, last.operands[0].name)]
        elif last.opcode == "brx":
            block.end = "index"
            block.targets = [index[_label(kernel, last, t)] for t in kernel.targets[last.operands[1].name]]
        elif last.opcode in ("ret", "exit"):
            block.end = "exit"
    blocks.append(Block(len(kernel.instructions), [], end="exit"))
    return blocks


def _label(kernel: Kernel, i: Instruction, name: str) -> int:
    if name not in kernel.labels:
        raise i.error(f"no label {name}")
    return kernel.labels[name]


def _shared_unit(kernel: Kernel) -> int:
    smallest = 16
    for i in kernel.instructions:
        generic = not any(m.split("::")[0] in ("global", "const", "local", "param") for m in i.modifiers)
        if i.opcode in ("ld", "st") and generic:
            count = next((int(m[1]) for m in i.modifiers if m in ("v2", "v4", "v8")), 1)
            smallest = min(smallest, WIDTH[i.type] * count)
        elif i.opcode in ("cp", "ldmatrix"):
            smallest = min(smallest, 4)
    return smallest


def _draft(w: Writer, block: Block) -> Draft:
    """The lines of a block; result is what the branch needs."""
    w.lines, w.read, w.written = [], [], {}
    for k, i in enumerate(block.instructions):
        w.instruction, w.position, w.lanewise = i, block.first + k, False
        if i.opcode in ("bra", "ret", "exit"):
            if i.guard is not None:
                w.emit(f"result = {w.guard()}")
        elif i.opcode == "brx":
            w.emit(f"result = {w.source(i.operands[0], 'u4')}")
        elif i.opcode in ("bar", "barrier"):
            w.emit(f"m.warp_barrier({w.position}, L)" if "warp" in i.modifiers else "pass")
        elif i.opcode in EMITTERS:
            EMITTERS[i.opcode](w, i)
        else:
            raise i.error(f"unknown opcode {i.opcode}")
    return Draft(w.lines, w.read, list(w.written))


@dataclass
class Draft:
    """The body of a function, and the registers that it reads before it writes them, and writes."""

    lines: list[str]
    read: list[str]
    written: list[str]

    def function(self, kinds: dict[str, str], kept: set[str]) -> str:
        """Its text."""
        gets = [f" {r} = m.get({r!r}, {kinds[r]!r})[L]" for r in self.read]
        puts = [f" m.put({r!r}, L, {r})" for r in self.written if r in kept]
        body = [" " + line for line in self.lines]
        return "\n".join(["def run(m, R, L, n):", " result = None", *gets, *body, *puts, " return result", ""])


class Lazy:
    """A function from its text, compiled when it is first called: most kernels have parts that a launch leaves out."""

    def __init__(self, text: str, names: dict[str, Any]) -> None:
        self.text, self._names = text, names
        self._run: Callable[..., Any] | None = None

    def __call__(self, *values: Any) -> Any:
        if self._run is None:
            own: dict[str, Any] = {}
            exec(compile(self.text, "<ptx>", "exec"), self._names, own)
            self._run = own["run"]
        return self._run(*values)


def _mask(w: Writer, block: Block) -> Draft | None:
    """The mask of a wait of the warp."""
    i = block.instructions[0]
    which = 0 if i.opcode in ("bar", "barrier") else TOGETHER[i.opcode]
    if which is None:
        return None
    w.lines, w.read, w.written, w.lanewise, w.instruction = [], [], {}, False, i
    mask = w.source(i.operands[which], "u4")
    return Draft([f"result = m.spread({mask}, n)"], w.read, [])


def _param_offsets(kernel: Kernel) -> dict[str, int]:
    offsets, at = {}, 0
    for name, size in kernel.parameters:
        align = min(8, size & -size)
        at = -(-at // align) * align
        offsets[name] = at
        at += size
    return offsets


def build(kernel: Kernel, module_variables: dict[str, Variable], addresses: dict[str, int]) -> Built:
    """Write and compile the Python of a kernel. addresses: of the variables of the module in global memory."""
    shared, static = place(kernel.variables, ("shared",))
    used = {o.name for i in kernel.instructions for p in i.operands for o in (p, *p.parts) if o.kind == "name"}
    outer = {k: v for k, v in module_variables.items() if k in used}
    outer_shared, static = place(outer, ("shared",), -(-static // 16) * 16)
    local, local_bytes = place(kernel.variables, ("local", "param"))
    for name, variable in outer.items():
        if variable.space == "shared" and variable.size == 0:
            outer_shared[name] = -(-static // 16) * 16  # dynamic: after everything static
    writer = Writer(addresses | shared | outer_shared | local, _param_offsets(kernel))
    blocks = split(kernel)
    drafts = {f"block_{k}": _draft(writer, block) for k, block in enumerate(blocks)}
    for k, block in enumerate(blocks):
        if block.wait == "warp" and (mask := _mask(writer, block)):
            drafts[f"mask_{k}"] = mask
    kept = _kept(drafts.values())
    names: dict[str, Any] = {"np": np, "floats": floats, "integers": integers, "warps": warps} | writer.constants
    for k, block in enumerate(blocks):
        block.run = Lazy(drafts[f"block_{k}"].function(writer.kinds, kept), names)
        if f"mask_{k}" in drafts:
            block.mask = Lazy(drafts[f"mask_{k}"].function(writer.kinds, kept), names)
    kinds = {r: writer.kinds[r] for r in kept}
    return Built(kernel, blocks, kinds, static, outer_shared | shared, local_bytes, _shared_unit(kernel))


def _kept(drafts: Iterable[Draft]) -> set[str]:
    """Registers that more than one block names, or that a block reads before it writes them."""
    seen: Counter[str] = Counter()
    kept: set[str] = set()
    for draft in drafts:
        kept |= set(draft.read)
        seen.update({*draft.read, *draft.written})
    return kept | {name for name, count in seen.items() if count > 1}
