"""The address spaces of a launch, and what is checked at each access.

global and const   named regions: alignment, range, reads of bytes that nobody wrote (where the caller tracks them)
shared             one array for each block of the batch: also races between two barriers
local              one row for each thread

A fault names the position among the lanes of the access; run.py adds the line and the thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

GRAIN = 32  # bytes: the widest access
# Where the windows of the generic address space begin. Addresses of the host and of devices are below 2^57.
MODULE_BASE = 1 << 58
PARAM_BASE = 1 << 59
SHARED_BASE = 1 << 60
LOCAL_BASE = 1 << 61


class Fault(Exception):
    """An access that is wrong; lane: its position in the arrays of the access."""

    def __init__(self, lane: int, problem: str) -> None:
        super().__init__(problem)
        self.lane = lane


def _first(bad: npt.NDArray[np.bool_]) -> int:
    """Lane of the first wrong element of a vector or a table with one row for each lane."""
    return int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])


def check_aligned(address: Array, size: int) -> None:
    """Raise a Fault where an address is not a multiple of the access."""
    if size > 1 and (address & address.dtype.type(size - 1)).any():
        lane = _first((address % address.dtype.type(size)) != 0)
        raise Fault(lane, f"address {int(address[lane]):#x} is not a multiple of {size}")


class Region:
    """Bytes at an address. written: which bytes hold something; None: all. The data is copied in."""

    def __init__(self, address: int, data: Bytes, written: npt.NDArray[np.bool_] | None = None, name: str = "") -> None:
        self.address, self.size, self.name = address, data.size, name
        self.end = address + data.size
        self.base = address & ~(GRAIN - 1)
        lead = address - self.base
        total = -(-(lead + data.size) // GRAIN) * GRAIN
        self._cells = np.zeros(total, np.uint8)
        self._cells[lead : lead + data.size] = data
        self._views = {w: self._cells.view(f"u{w}") for w in (1, 2, 4, 8)}
        self._known: npt.NDArray[np.bool_] | None = None
        if written is not None:
            self._known = np.zeros(total, bool)
            self._known[lead : lead + data.size] = written
        self._lead = lead

    @property
    def data(self) -> Bytes:
        """The bytes now."""
        return self._cells[self._lead : self._lead + self.size]

    @property
    def written(self) -> npt.NDArray[np.bool_] | None:
        """Which bytes hold something."""
        return None if self._known is None else self._known[self._lead : self._lead + self.size]

    def load(self, address: npt.NDArray[np.uint64], width: int, count: int) -> Array:
        """count values of width bytes, lanes x count."""
        size = width * count
        row = ((address - np.uint64(self.base)) // np.uint64(size)).astype(np.int64)
        if self._known is not None:
            known = self._known.reshape(-1, size)[row]
            if not known.all():
                lane = _first(~known)
                raise Fault(lane, f"reads unwritten memory at {int(address[lane]):#x}{self.place(int(address[lane]))}")
        return self._views[width].reshape(-1, count)[row]

    def store(self, address: npt.NDArray[np.uint64], values: Array) -> None:
        """Values, lanes x count."""
        width, count = values.dtype.itemsize, values.shape[1]
        row = ((address - np.uint64(self.base)) // np.uint64(width * count)).astype(np.int64)
        target = self._views[width].reshape(-1, count)
        target[row] = values
        wrong = target[row] != values
        if wrong.any():
            lane = _first(wrong)
            raise Fault(lane, f"two threads write different values at {int(address[lane]):#x}")
        if self._known is not None:
            self._known.reshape(-1, width * count)[row] = True

    def place(self, address: int) -> str:
        """Where an address is in a region with a name."""
        return f" ({self.name} + {address - self.address})" if self.name else ""


class Global:
    """Regions that do not overlap."""

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        self.regions = sorted(regions, key=lambda r: r.address)
        for low, high in zip(self.regions, self.regions[1:], strict=False):
            if low.end > high.address:
                raise ValueError(f"global memory: {low.address:#x}..{low.end:#x} overlaps {high.address:#x}..")
        self._starts = np.array([r.address for r in self.regions], np.uint64)

    def _split(self, address: npt.NDArray[np.uint64], size: int) -> Iterator[tuple[Region, slice | Ints]]:
        check_aligned(address, size)
        low, high = int(address.min()), int(address.max())
        at = int(np.searchsorted(self._starts, np.uint64(low), side="right")) - 1
        if at >= 0 and high + size <= self.regions[at].end:
            yield self.regions[at], slice(None)
            return
        which = np.searchsorted(self._starts, address, side="right").astype(np.int64) - 1
        ends = np.array([r.end for r in self.regions] + [0], np.uint64)  # the last is that of which == -1
        outside = address + np.uint64(size) > ends[which]
        if outside.any():
            lane = _first(outside)
            region = self.regions[which[lane]] if which[lane] >= 0 else None
            near = f"; before it ends {region.end:#x}{region.place(region.end)}" if region else ""
            raise Fault(lane, f"{size} bytes at {int(address[lane]):#x} are outside of known memory{near}")
        for region in np.unique(which):
            yield self.regions[region], np.flatnonzero(which == region)

    def load(self, address: npt.NDArray[np.uint64], width: int, count: int) -> Array:
        """count values of width bytes, lanes x count."""
        out: Array | None = None
        for region, lanes in self._split(address, width * count):
            try:
                values = region.load(address[lanes], width, count)
            except Fault as fault:
                raise Fault(int(np.arange(len(address))[lanes][fault.lane]), str(fault)) from None
            if isinstance(lanes, slice):
                return values
            if out is None:
                out = np.zeros((len(address), count), values.dtype)
            out[lanes] = values
        assert out is not None
        return out

    def store(self, address: npt.NDArray[np.uint64], values: Array) -> None:
        """Values, lanes x count."""
        for region, lanes in self._split(address, values.dtype.itemsize * values.shape[1]):
            region.store(address[lanes], values[lanes])


class Shared:
    """Shared memory of the blocks of a batch.

    Of each unit (the smallest access of the kernel) it is known who wrote and who read it last and in which epoch: the
    number of barriers of the block, and of the warp, that its thread had passed. Two threads of which one writes must
    be separated by a barrier that both passed.
    """

    def __init__(self, blocks: int, size: int, threads: int, unit: int) -> None:
        self.size, self.threads, self.unit = size, threads, unit
        self.stride = -(-max(size, 1) // GRAIN) * GRAIN
        self._views = {w: np.zeros(blocks * self.stride // w, f"u{w}") for w in (1,)}
        self._views |= {w: self._views[1].view(f"u{w}") for w in (2, 4, 8)}
        units = blocks * self.stride // unit
        self.epoch = np.zeros(blocks, np.int32)
        self.warp_epoch = np.zeros(blocks * threads // 32, np.int32)
        self._write_epoch = np.full(units, -1, np.int32)
        self._writer = np.full(units, -1, np.int32)
        self._write_warp_epoch = np.zeros(units, np.int32)
        self._read_epoch = np.full(units, -1, np.int32)
        self._reader = np.full(units, -1, np.int32)  # -2: several threads
        self._read_warp = np.full(units, -1, np.int32)  # -2: several warps
        self._read_warp_epoch = np.zeros(units, np.int32)
        self._coming = np.zeros(units, np.int32)  # copies that no wait has completed
        self._copies: list[tuple[Ints, Ints, Ints]] = []  # threads, units, group
        self._groups: Ints = np.zeros(blocks * threads, np.int64)  # closed by each thread

    def copy(self, ids: Ints, address: Array, values: Array) -> None:
        """`cp.async`: the bytes are there once the thread has waited for its group."""
        self.store(ids, address, values)
        _, units, _ = self._units(ids, address, values.dtype.itemsize * values.shape[1])
        np.add.at(self._coming, units, 1)
        self._copies.append((ids, units, self._groups[ids]))

    def commit(self, ids: Ints) -> None:
        """`cp.async.commit_group`."""
        self._groups[ids] += 1

    def wait(self, ids: Ints, youngest: int) -> None:
        """`cp.async.wait_group`: all but the youngest groups of these threads are complete; -1: everything is."""
        waits = np.zeros(len(self._groups), bool)
        waits[ids] = True
        left = []
        for threads, units, group in self._copies:
            done = waits[threads] & ((group < self._groups[threads] - youngest) | (youngest < 0))
            np.subtract.at(self._coming, units[done], 1)
            if not done.all():
                left.append((threads[~done], units[~done], group[~done]))
        self._copies = left

    def _units(self, ids: Ints, address: Array, size: int) -> tuple[Ints, Ints, Array]:
        """Position of the bytes, of the units (lanes x units), and the epoch of each lane."""
        check_aligned(address, size)
        where = address.astype(np.int64)
        if (where + size > self.size).any():
            lane = _first(where + size > self.size)
            raise Fault(lane, f"{size} bytes at {where[lane]} are outside of shared memory of {self.size} bytes")
        block = ids // self.threads
        where += block * self.stride
        first = where // self.unit
        units = first[:, None] + np.arange(size // self.unit) if size > self.unit else first[:, None]
        return where, units, self.epoch[block][:, None]

    def load(self, ids: Ints, address: Array, width: int, count: int) -> Array:
        """count values of width bytes, lanes x count; ids: the lanes in the batch."""
        where, units, epoch = self._units(ids, address, width * count)
        thread, warp = ids.astype(np.int32)[:, None], (ids >> 5).astype(np.int32)[:, None]
        wrote = self._write_epoch[units]
        if (wrote < 0).any():
            lane = _first(wrote < 0)
            raise Fault(lane, f"reads unwritten shared memory at {int(address[lane])}")
        if self._copies and self._coming[units].any():
            lane = _first(self._coming[units] > 0)
            raise Fault(lane, f"reads shared memory at {int(address[lane])} whose copy was not waited for")
        self._check_writer(wrote == epoch, units, thread, warp, address, "reads")
        again = self._read_epoch[units] == epoch
        reader = np.where(again & (self._reader[units] != thread), np.int32(-2), thread)
        reader_warp = np.where(again & (self._read_warp[units] != warp), np.int32(-2), warp)
        self._reader[units], self._read_warp[units] = reader, reader_warp
        several = self._reader[units] != reader  # two lanes of this access
        self._reader[units[several]] = -2
        several = self._read_warp[units] != reader_warp
        self._read_warp[units[several]] = -2
        self._read_epoch[units] = epoch
        self._read_warp_epoch[units] = self.warp_epoch[warp]
        return self._views[width].reshape(-1, count)[where // (width * count)]

    def store(self, ids: Ints, address: Array, values: Array) -> None:
        """Values, lanes x count."""
        width, count = values.dtype.itemsize, values.shape[1]
        where, units, epoch = self._units(ids, address, width * count)
        thread, warp = ids.astype(np.int32)[:, None], (ids >> 5).astype(np.int32)[:, None]
        self._check_writer(self._write_epoch[units] == epoch, units, thread, warp, address, "writes")
        recent = (self._read_epoch[units] == epoch) & (self._reader[units] != thread)
        if recent.any():
            ordered = (self._read_warp[units] == warp) & (self._read_warp_epoch[units] < self.warp_epoch[warp])
            self._race(recent & ~ordered, self._reader[units], thread, address, "writes", "read")
        target = self._views[width].reshape(-1, count)
        row = where // (width * count)
        target[row] = values
        if (target[row] != values).any():
            lane = _first(target[row] != values)
            raise Fault(lane, f"two threads write different values to shared memory at {int(address[lane])}")
        self._writer[units], self._write_epoch[units] = thread, epoch
        self._write_warp_epoch[units] = self.warp_epoch[warp]

    def _check_writer(
        self, recent: npt.NDArray[np.bool_], units: Ints, thread: Array, warp: Array, address: Array, verb: str
    ) -> None:
        if recent.any():
            writer = self._writer[units]
            ordered = (writer >> 5 == warp) & (self._write_warp_epoch[units] < self.warp_epoch[warp])
            self._race(recent & (writer != thread) & ~ordered, writer, thread, address, verb, "wrote")

    def _race(
        self, race: npt.NDArray[np.bool_], other: Array, thread: Array, address: Array, verb: str, did: str
    ) -> None:
        if race.any():
            lane = _first(race)
            who = int(other[lane][race[lane]][0])
            name = f"thread {who % self.threads}" if who >= 0 else "another thread"
            raise Fault(lane, f"{verb} shared memory at {int(address[lane])} that {name} {did}, no barrier between")


class Local:
    """Local memory: one row for each lane of the batch."""

    def __init__(self, lanes: int, size: int) -> None:
        self.size = size
        self._stride = -(-max(size, 1) // GRAIN) * GRAIN
        self._cells = np.zeros(lanes * self._stride, np.uint8)
        self._known = np.zeros(lanes * self._stride, bool)

    def _rows(self, ids: Ints, address: Array, size: int) -> Ints:
        check_aligned(address, size)
        where = address.astype(np.int64)
        if (where + size > self.size).any():
            lane = _first(where + size > self.size)
            raise Fault(lane, f"{size} bytes at {where[lane]} are outside of local memory of {self.size} bytes")
        rows: Ints = (where + ids * self._stride) // size
        return rows

    def load(self, ids: Ints, address: Array, width: int, count: int) -> Array:
        """count values of width bytes, lanes x count."""
        rows = self._rows(ids, address, width * count)
        known = self._known.reshape(-1, width * count)[rows]
        if not known.all():
            lane = _first(~known)
            raise Fault(lane, f"reads unwritten local memory at {int(address[lane])}")
        return self._cells.view(f"u{width}").reshape(-1, count)[rows]

    def store(self, ids: Ints, address: Array, values: Array) -> None:
        """Values, lanes x count."""
        size = values.dtype.itemsize * values.shape[1]
        rows = self._rows(ids, address, size)
        self._cells.view(values.dtype).reshape(-1, values.shape[1])[rows] = values
        self._known.reshape(-1, size)[rows] = True
