"""What the lines of a kernel call: registers, special registers, memory with its checks, warps.

Every method that takes L gets the lanes that run: all of the batch, or an array of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .build import Built
from .memory import LOCAL_BASE, SHARED_BASE, Fault, Global, Local, Shared
from .warps import load_matrices

Ints = npt.NDArray[np.int64]
ALL = slice(None)
Lanes = Any  # ALL, or Ints


class Machine:
    """A batch of blocks of a launch: lanes, registers, memory. Lane = block of the batch * padded threads + thread."""

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
        self.kernel, self.grid, self.threads, self.memory, self.batch = kernel, grid, threads, memory, batch
        self.padded = -(-threads // 32) * 32
        self.total = len(batch) * self.padded
        self.ids = np.arange(self.total, dtype=np.int64)
        static = -(-kernel.shared_bytes // 16) * 16 if shared_bytes else kernel.shared_bytes
        self.dynamic_bytes = shared_bytes
        self.shared = Shared(len(batch), static + shared_bytes, self.padded, kernel.shared_unit)
        self.local = Local(self.total if kernel.local_bytes else 0, kernel.local_bytes)
        self.args = args + bytes(-len(args) % 16)
        self.registers: dict[str, npt.NDArray[np.generic]] = {}

    def who(self, lane: int) -> str:
        """Thread and block of a lane."""
        return f"thread {lane % self.padded} of block {self.batch[lane // self.padded]}"

    def get(self, name: str, kind: str) -> npt.NDArray[np.generic]:
        """A register; before it is written it holds what cannot be a result by chance."""
        if name not in self.registers:
            size = np.dtype(kind).itemsize
            self.registers[name] = (
                np.frombuffer(b"\xcd" * size * self.total, kind).copy() if kind != "?" else np.zeros(self.total, bool)
            )
        return self.registers[name]

    def put(self, name: str, lanes: Lanes, value: npt.NDArray[np.generic]) -> None:
        """Write a register."""
        if lanes is ALL:
            self.registers[name] = value
        else:
            self.get(name, value.dtype.str[1:].replace("b1", "?"))[lanes] = value

    def special(self, name: str, lanes: Lanes) -> npt.NDArray[np.uint32]:
        """A special register that lanes do not share."""
        ids = self.ids[lanes]
        thread, block = ids % self.padded, self.batch[ids // self.padded]
        values = {
            "tid.x": lambda: thread,
            "tid.y": lambda: 0 * thread,
            "tid.z": lambda: 0 * thread,
            "ctaid.x": lambda: block % self.grid[0],
            "ctaid.y": lambda: block // self.grid[0] % self.grid[1],
            "ctaid.z": lambda: block // (self.grid[0] * self.grid[1]),
            "laneid": lambda: thread % 32,
            "warpid": lambda: thread // 32,
        }
        return values[name]().astype(np.uint32)

    def uniform(self, name: str) -> np.uint32:
        """A special register that all lanes share."""
        values = {"ntid.x": self.threads, "ntid.y": 1, "ntid.z": 1, "nwarpid": self.padded // 32}
        values |= {f"nctaid.{axis}": n for axis, n in zip("xyz", self.grid, strict=True)}
        return np.uint32(values.get(name, self.dynamic_bytes))

    @staticmethod
    def spread(value: npt.NDArray[np.generic], n: int) -> npt.NDArray[np.generic]:
        """A value for each lane."""
        return value if np.ndim(value) else np.full(n, value)

    def parameter(self, offset: int, width: int, count: int, n: int) -> npt.NDArray[np.generic]:
        """Values of the argument struct, the same for every lane."""
        values = np.frombuffer(self.args, f"u{width}", count, offset)
        return np.tile(values, (n, 1))

    def together(self, position: int, lanes: Lanes, function: Callable[..., Any], *values: Any) -> Any:
        """Call a function of warps."""
        ids = self.ids[lanes]
        return self.checked(position, ids, lambda: function(*values, ids))

    @staticmethod
    def units(function: Callable[..., Any], shape: str, *values: Any) -> Any:
        """Matrix units: target = a * b + c."""
        *lists, a_kind, b_kind = values
        return function(shape, *lists, a_kind, b_kind)

    def matrices(self, position: int, lanes: Lanes, address: Any, count: int, transposed: bool) -> Any:
        """`ldmatrix`."""
        ids = self.ids[lanes]
        return self.checked(position, ids, lambda: load_matrices(self.shared, address, count, transposed, ids))

    def copy(self, position: int, address: Any, lanes: Lanes, values: Any) -> None:
        """`cp.async`."""
        ids = self.ids[lanes]
        self.checked(position, ids, lambda: self.shared.copy(ids, address, values))

    def trap(self, position: int, lanes: Lanes, guard: Any) -> None:
        """`trap`: an error, if any lane comes here."""
        ids = self.ids[lanes] if guard is None else self.ids[lanes][guard]
        if len(ids):
            raise self.kernel.kernel.instructions[position].error(f"{self.who(int(ids[0]))} traps")

    def warp_barrier(self, position: int, lanes: Lanes) -> None:
        """`bar.warp.sync`."""
        self.shared.warp_epoch[np.unique(self.ids[lanes] >> 5)] += 1

    def checked(self, position: int, ids: Ints, access: Callable[[], Any]) -> Any:
        """Run an access; a fault names line and thread."""
        try:
            return access()
        except Fault as fault:
            instruction = self.kernel.kernel.instructions[position]
            raise instruction.error(f"{self.who(int(ids[fault.lane]))}: {fault}") from None

    def load(
        self, position: int, space: str, address: Any, lanes: Lanes, width: int, count: int, guard: Any
    ) -> npt.NDArray[np.generic]:
        """count values of width bytes for each lane; zero where the guard is false."""
        ids = self.ids[lanes]
        if guard is not None:
            out = np.zeros((len(ids), count), f"u{width}")
            if guard.any():
                out[guard] = self._load(position, space, address[guard], ids[guard], width, count)
            return out
        return self._load(position, space, address, ids, width, count)

    def _load(self, position: int, space: str, address: Any, ids: Ints, width: int, count: int) -> Any:
        if space == "generic":
            out = np.zeros((len(ids), count), f"u{width}")
            for real, base, chosen in _spaces(address):
                out[chosen] = self._load(position, real, address[chosen] - base, ids[chosen], width, count)
            return out
        if space == "shared":
            return self.checked(position, ids, lambda: self.shared.load(ids, address, width, count))
        if space == "local":
            return self.checked(position, ids, lambda: self.local.load(ids, address, width, count))
        return self.checked(position, ids, lambda: self.memory.load(address, width, count))

    def store(
        self, position: int, space: str, address: Any, lanes: Lanes, width: int, values: tuple[Any, ...], guard: Any
    ) -> None:
        """Values of width bytes for each lane where the guard is true."""
        ids = self.ids[lanes]
        table = np.empty((len(ids), len(values)), f"u{width}")
        for k, value in enumerate(values):
            table[:, k] = value
        if guard is None:
            self._store(position, space, address, ids, table)
        elif guard.any():
            self._store(position, space, address[guard], ids[guard], table[guard])

    def _store(self, position: int, space: str, address: Any, ids: Ints, table: Any) -> None:
        if space == "generic":
            for real, base, chosen in _spaces(address):
                self._store(position, real, address[chosen] - base, ids[chosen], table[chosen])
        elif space == "shared":
            self.checked(position, ids, lambda: self.shared.store(ids, address, table))
        elif space == "local":
            self.checked(position, ids, lambda: self.local.store(ids, address, table))
        else:
            self.checked(position, ids, lambda: self.memory.store(address, table))


def _spaces(address: npt.NDArray[np.uint64]) -> list[tuple[str, np.uint64, npt.NDArray[np.bool_]]]:
    """The spaces that generic addresses lie in, with their base."""
    local, shared = address >= np.uint64(LOCAL_BASE), address >= np.uint64(SHARED_BASE)
    found = [
        ("local", np.uint64(LOCAL_BASE), local),
        ("shared", np.uint64(SHARED_BASE), shared & ~local),
        ("global", np.uint64(0), ~shared),
    ]
    return [f for f in found if f[2].any()]
