"""Runs a launch: batches of blocks, groups of lanes at one place of the text, barriers, counts.

Lanes that are at the same block of the text form a group. The group that is furthest behind runs next, so that lanes
that took different ways meet again as early as they can.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .build import Block, Built, build, place
from .machine import ALL, Ints, Lanes, Machine
from .memory import MODULE_BASE, PARAM_BASE, Global, Region
from .parse import Module, PtxError

LANES = 4096  # of a batch, about
MAX_STEPS = 2_000_000


@dataclass
class Counts:
    """What was executed: warp instructions by opcode with its modifiers, and by line of the PTX."""

    opcodes: Counter[str] = field(default_factory=Counter)
    lines: Counter[int] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All warp instructions."""
        return sum(self.lines.values())


class Program:
    """A PTX module that can be launched."""

    def __init__(self, text: str) -> None:
        self.module = Module(text)
        self._built: dict[str, Built] = {}
        addresses, end = place(self.module.variables, ("global", "const"), MODULE_BASE)
        self._addresses = addresses
        data = np.zeros(end - MODULE_BASE, np.uint8)
        for name, address in addresses.items():
            variable = self.module.variables[name]
            if variable.data is not None:
                data[address - MODULE_BASE : address - MODULE_BASE + variable.size] = variable.data
        self._data = data

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels."""
        return self.module.entries

    def text_of(self, name: str) -> str:
        """The PTX of a kernel."""
        function = self.module.functions[name]
        return self.module.text[function.start : function.end]

    def built(self, name: str) -> Built:
        """A kernel, compiled once."""
        if name not in self._built:
            self._built[name] = build(self.module.kernel(name), self.module.variables, self._addresses)
        return self._built[name]

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        args: bytes,
        memory: Global,
        lanes: int = LANES,
    ) -> Counts:
        """Run a kernel on memory; what it wrote is in the regions afterwards."""
        kernel = self.built(name)
        wanted = sum(size for _, size in kernel.kernel.parameters)
        if len(args) != wanted:
            raise ValueError(f"launch: {name} takes {wanted} bytes of arguments, {len(args)} were given")
        own = [Region(PARAM_BASE, np.frombuffer(args, np.uint8), name="arguments")]
        if self._data.size:
            own.append(Region(MODULE_BASE, self._data, name="module"))
        everything = Global([*memory.regions, *own])
        padded = -(-threads // 32) * 32
        blocks = int(np.prod(grid))
        step = max(1, lanes // padded)
        executed = np.zeros(len(kernel.blocks), np.int64)
        with np.errstate(all="ignore"):
            for first in range(0, blocks, step):
                batch = np.arange(first, min(first + step, blocks))
                launch = Launch(kernel, grid, threads, shared_bytes, args, everything, batch)
                launch.run()
                executed += launch.executed
        return _counts(kernel, executed)


def _counts(kernel: Built, executed: npt.NDArray[np.int64]) -> Counts:
    counts = Counts()
    for block, times in zip(kernel.blocks, executed.tolist(), strict=True):
        if times:
            for i in block.instructions:
                counts.opcodes[".".join((i.opcode, *i.modifiers))] += times
                counts.lines[i.line] += times
    return counts


class Launch(Machine):
    """A batch of blocks: which lanes run next, and which wait."""

    def __init__(
        self,
        kernel: Built,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        args: bytes,
        memory: Global,
        batch: Ints,
    ) -> None:
        super().__init__(kernel, grid, threads, shared_bytes, args, memory, batch)
        self.executed = np.zeros(len(kernel.blocks), np.int64)
        self.ready: dict[int, Lanes] = {}
        self.waiting: dict[int, Ints] = {}  # for lanes of their warp, by block of the text
        self.at_barrier = np.full(self.total, -1, np.int32)
        self.alive = (self.ids % self.padded) < threads
        self.add(0, np.flatnonzero(self.alive))

    # ---- groups ----

    def add(self, where: int, lanes: Lanes) -> None:
        """Lanes arrive at a block of the text."""
        if where in self.ready:
            lanes = np.sort(np.concatenate([self.ready[where], lanes]))
        self.ready[where] = ALL if lanes is ALL or len(lanes) == self.total else lanes

    def run(self) -> None:
        """Until every lane has ended."""
        for _ in range(MAX_STEPS):
            if not self.ready and not self.release():
                self.finish()
                return
            where = min(self.ready)
            lanes = self.ready.pop(where)
            block = self.kernel.blocks[where]
            if block.wait == "barrier":
                self.arrive(where, lanes)
            elif block.wait == "warp":
                complete = self.gather(where, block, lanes)
                if complete is not None:
                    self.step(where, block, complete)
            else:
                self.step(where, block, lanes)
        raise PtxError(0, self.kernel.kernel.name, f"does not end within {MAX_STEPS} steps")

    def step(self, where: int, block: Block, lanes: Lanes) -> None:
        """Run a block of the text and move its lanes on."""
        self.count(where, lanes)
        n = self.total if lanes is ALL else len(lanes)
        result = block.run(self, self.registers, lanes, n)
        if block.end == "jump":
            self.add(block.target, lanes)
        elif block.end == "next":
            self.add(where + 1, lanes)
        elif block.end == "branch":
            self.fork(lanes, result, block.target, where + 1)
        elif block.end == "index":
            ids = self.ids[lanes]
            for k in np.unique(result):
                if k >= len(block.targets):
                    raise block.instructions[-1].error(f"index {k} of {len(block.targets)} targets")
                self.add(block.targets[k], ids[result == k])
        elif result is None:
            self.alive[lanes] = False
        else:
            self.alive[self.ids[lanes][result]] = False
            if not result.all():
                self.add(where + 1, self.ids[lanes][~result])

    def fork(self, lanes: Lanes, taken: npt.NDArray[np.bool_], target: int, other: int) -> None:
        """A conditional branch."""
        if taken.all():
            self.add(target, lanes)
        elif not taken.any():
            self.add(other, lanes)
        else:
            ids = self.ids[lanes]
            self.add(target, ids[taken])
            self.add(other, ids[~taken])

    def count(self, where: int, lanes: Lanes) -> None:
        """Warps that execute a block of the text."""
        if lanes is ALL:
            self.executed[where] += self.total // 32
        else:
            self.executed[where] += 1 + np.count_nonzero(np.diff(lanes >> 5))

    # ---- barriers ----

    def arrive(self, where: int, lanes: Lanes) -> None:
        """At a barrier of the block."""
        self.count(where, lanes)
        self.at_barrier[lanes] = where
        self.release()

    def release(self) -> bool:
        """Let the blocks go whose threads have all arrived; say whether there was one."""
        at = self.at_barrier.reshape(-1, self.padded)
        alive = self.alive.reshape(-1, self.padded)
        arrived = at >= 0
        complete = arrived.any(1) & (arrived == alive).all(1)
        if not complete.any():
            return False
        low = np.where(alive, at, np.iinfo(np.int32).max).min(1)
        mixed = complete & (low != at.max(1))
        if mixed.any():
            slot = int(np.flatnonzero(mixed)[0])
            instruction = self.kernel.blocks[low[slot]].instructions[0]
            other = self.kernel.blocks[at[slot].max()].instructions[0]
            raise instruction.error(f"other threads of block {self.batch[slot]} wait at line {other.line}")
        self.shared.epoch[complete] += 1
        for where in np.unique(low[complete]):
            chosen = (complete & (low == where))[:, None] & alive
            self.add(int(where) + 1, np.flatnonzero(chosen))
        self.at_barrier.reshape(-1, self.padded)[complete] = -1
        return True

    def gather(self, where: int, block: Block, lanes: Lanes) -> Lanes | None:
        """Lanes of which all that their mask names have come; the others wait."""
        if block.mask is None and lanes is ALL:
            return lanes
        if where in self.waiting:
            lanes = np.sort(np.concatenate([self.waiting.pop(where), self.ids[lanes]]))
        ids = self.ids[lanes]
        n = len(ids)
        mask = np.full(n, 0xFFFFFFFF, np.uint32) if block.mask is None else block.mask(self, self.registers, lanes, n)
        if lanes is ALL and (mask == 0xFFFFFFFF).all():
            return lanes
        here = np.zeros(self.total, bool)
        here[ids] = True
        bits = np.packbits(here, bitorder="little").view(np.uint32)[ids >> 5]
        living = np.packbits(self.alive, bitorder="little").view(np.uint32)[ids >> 5]
        own = (mask >> (ids & 31).astype(np.uint32)) & np.uint32(1)
        if not own.all():
            raise self.wrong(block, int(ids[np.argmin(own)]), "the mask does not name its own lane")
        if block.mask is None and (mask & ~living).any():
            raise self.wrong(block, int(ids[0]), "needs all 32 lanes, of which some have ended")
        ready = (mask & living & ~bits) == 0
        if not ready.all():
            self.waiting[where] = ids[~ready]
        return ids[ready] if ready.any() else None

    def finish(self) -> None:
        """Nothing runs: all must have ended."""
        for where, lanes in self.waiting.items():
            raise self.wrong(self.kernel.blocks[where], int(lanes[0]), "waits for lanes of its mask that never come")
        stuck = np.flatnonzero(self.at_barrier >= 0)
        if len(stuck):
            block = self.kernel.blocks[self.at_barrier[stuck[0]]]
            raise self.wrong(block, int(stuck[0]), "waits at a barrier for threads that never come")

    def wrong(self, block: Block, lane: int, problem: str) -> PtxError:
        """An error of a lane at the first instruction of a block of the text."""
        return block.instructions[0].error(f"{self.who(lane)} {problem}")
