"""Experts of one layer on several devices: some on the GPU, the rest on the CPU, at work at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _core, device_ops
from .arrays import FloatInput, as_array, expect_dimensions, float_input, output
from .device_array import DeviceArray, filled
from .device_input import View, device_output, float_numbers, view
from .memory import aligned_bytes
from .places import CPU, METAL, device_name, kind_of, place_of
from .streams import Queue, chosen_queue
from .tensor import PackedTensor

_BITS = {"bfloat16": np.uint16}
_NAMES = ("float32", "float16", "bfloat16")  # by lutkern_dtype


class Part(NamedTuple):
    """The experts of a layer that lie on one device; `local` is the number of each expert there, or -1."""

    gate: PackedTensor | None
    up: PackedTensor
    down: PackedTensor
    local: npt.NDArray[np.int32]

    @property
    def device(self) -> int:
        """The device of the C API."""
        return self.up._handle.device


def split_experts(
    t: PackedTensor, placement: Any, devices: Sequence[str] = ("cpu", "cuda:0")
) -> list[PackedTensor | None]:
    """Put the experts of a weight on several devices, for ``lutkern.moe(..., placement=placement)``.

    Parameters
    ----------
    t
        (experts, rows, cols).
    placement
        (experts,) integers: which of `devices` each expert goes to.
    devices
        Where to.

    Returns
    -------
    list
        For each device its experts in ascending order, or None if it has none. Experts side by side that stay on
        the CPU are not copied.

    Raises
    ------
    TypeError, ValueError
        If the weight has no experts, or the placement does not fit.
    RuntimeError
        If a device is not there.
    """
    if not isinstance(t, PackedTensor):
        raise TypeError(f"split_experts: the weight is {type(t).__name__}, expected a PackedTensor")
    if len(t.shape) != 3:
        raise ValueError(f"split_experts: the weight has shape {t.shape}, expected (experts, rows, cols)")
    where = placement_of("split_experts", placement, t.shape[0], len(devices))
    source = t.to(device="cpu")
    parts: list[PackedTensor | None] = []
    for number, device in enumerate(devices):
        experts = np.flatnonzero(where == number)
        parts.append(_some(source, experts).to(device=device) if len(experts) else None)
    return parts


def _some(t: PackedTensor, experts: npt.NDArray[np.intp]) -> PackedTensor:
    assert t._data is not None
    first, last = int(experts[0]), int(experts[-1])
    if last - first + 1 == len(experts):
        data = t._data[first : last + 1]
    else:
        shape = (len(experts), *t._data.shape[1:])
        data = aligned_bytes(int(np.prod(shape))).reshape(shape)
        np.take(t._data, experts, axis=0, out=data)
    return PackedTensor._make(data, t.format, (len(experts), *t.shape[1:]), t.layout)


def placement_of(operation: str, placement: Any, experts: int | None, parts: int) -> npt.NDArray[np.int64]:
    """Return which part has each expert; TypeError or ValueError if the vector does not fit."""
    vector = as_array(operation, "placement", placement)
    if vector.dtype.kind not in "iu":
        raise TypeError(f"{operation}: placement is {vector.dtype}, expected integers")
    expect_dimensions(operation, "placement", vector, 1)
    if experts is not None and len(vector) != experts:
        raise ValueError(f"{operation}: placement has {len(vector)} entries, the weight has {experts} experts")
    if len(vector) and not 0 <= vector.min() <= vector.max() < parts:
        raise ValueError(
            f"{operation}: placement reaches from {vector.min()} to {vector.max()}, expected 0 to {parts - 1}"
        )
    return vector.astype(np.int64)


def parts_of(gate: Any, up: Any, down: Any, placement: Any) -> list[Part]:
    """Return the parts of a layer that have experts, in the order of the lists.

    Raises
    ------
    TypeError, ValueError
        If the lists do not fit together, or not to the placement.
    """
    named = {"gate": gate, "up": up, "down": down}
    lists: dict[str, list[Any]] = {}
    for name, given in named.items():
        if name == "gate" and given is None:
            given = [None] * len(up) if isinstance(up, (list, tuple)) else []
        if not isinstance(given, (list, tuple)):
            raise TypeError(f"moe: {name} is {type(given).__name__}, expected a list of parts, as there is a placement")
        lists[name] = list(given)
    counts = {name: len(entries) for name, entries in lists.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"moe: gate, up and down have {', '.join(map(str, counts.values()))} parts, expected as many each"
        )
    where = placement_of("moe", placement, None, counts["up"])
    found = []
    for number, (g, u, d) in enumerate(zip(lists["gate"], lists["up"], lists["down"], strict=True)):
        mine = where == number
        if not mine.any() and u is None:
            continue
        for name, t in (("gate", g), ("up", u), ("down", d)):
            _expect_part(name, number, t, int(mine.sum()), name == "gate" and gate is None)
        local = np.where(mine, np.cumsum(mine) - 1, -1).astype(np.int32)
        found.append(Part(g, u, d, local))
    if not found:
        raise ValueError("moe: no part has an expert, expected at least one")
    hidden = found[0].down.shape[1]  # of all results
    for part in found:
        if part.down.shape[1] != hidden:
            raise ValueError(
                f"moe: parts of down have {hidden} and {part.down.shape[1]} rows, expected one hidden size"
            )
    return found


def _expect_part(name: str, number: int, t: Any, experts: int, may_be_none: bool) -> None:
    if t is None and may_be_none:
        return
    if not isinstance(t, PackedTensor):
        raise TypeError(f"moe: {name}[{number}] is {type(t).__name__}, expected a PackedTensor")
    if len(t.shape) != 3 or t.shape[0] != experts:
        raise ValueError(f"moe: {name}[{number}] has shape {t.shape}, the placement gives it {experts} experts")


def run(x: Any, ids: Any, weights: Any, parts: list[Part], activation: int, exact: bool, out: Any, stream: Any) -> Any:
    """Run the parts of a layer: the GPUs get their work first, the CPU works meanwhile, then everything is added."""
    place = place_of(x)
    hidden = parts[0].down.shape[1]
    queues = _queues(parts, place, stream, x)
    here = _fetched(x, queues[place]) if place in queues else float_input("moe", "x", x)
    expect_dimensions("moe", "x", here.data, 2)
    tokens = here.data.shape[0]
    ids, weights = (_routes(name, given, place, queues) for name, given in (("ids", ids), ("weights", weights)))
    _expect_routes(ids, weights, tokens, len(parts[0].local))
    total = output("moe", out if place == CPU else None, (tokens, hidden))
    local = [part.local[ids] if tokens else ids.astype(np.int32) for part in parts]
    results: list[Any] = [None] * len(parts)
    for number in sorted(range(len(parts)), key=lambda i: parts[i].device == CPU):
        part = parts[number]
        layer = (part.gate, part.up, part.down)
        if not (local[number] >= 0).any():
            continue
        if part.device != CPU:
            queue = queues[part.device]
            given = x if place == part.device else _sent(here, queue)
            results[number] = device_ops.moe(
                given, local[number], weights, layer, activation, exact, True, None, queue.handle
            )
            _start(queue)
        else:
            results[number] = _on_cpu(here, local[number], weights, part, activation, exact, hidden)
    added = _sum(results, (tokens, hidden))
    if place == CPU:
        total[...] = added
        return total
    return _delivered(added, out, queues[place])


def _queues(parts: list[Part], place: int, stream: Any, x: Any) -> dict[int, Queue]:
    """Return a stream for each GPU; the caller's is that of x, or of the first GPU."""
    devices = list(dict.fromkeys([place, *(part.device for part in parts)]))
    gpus = [device for device in devices if device != CPU]
    if stream is not None and not gpus:
        device_ops.expect_no_stream("moe", stream)
    queues = {
        gpu: chosen_queue("moe", stream if i == 0 else None, gpu, (x,) if gpu == place else ())
        for i, gpu in enumerate(gpus)
    }
    if any(queue.captured for queue in queues.values()):
        raise ValueError("moe: a placement is given while a graph is captured, expected the experts on one device")
    return queues


def _start(queue: Queue) -> None:
    """Let Metal begin: it collects work until somebody waits, or marks a moment."""
    if kind_of(queue.device) == METAL:
        _core.Event(queue.device).record(queue.handle)


def _fetched(x: Any, queue: Queue) -> FloatInput:
    """Return x of a device as numbers of the CPU."""
    seen = view("moe", "x", x, queue)
    _, dtype, rows, cols, row_stride, _ = float_numbers("moe", "x", seen, 2)
    flat = _copied(seen, (rows - 1) * row_stride + cols if rows else 0, queue)
    steps = (row_stride * flat.itemsize, flat.itemsize)
    return FloatInput(np.lib.stride_tricks.as_strided(flat, (rows, cols), steps), dtype)


def _copied(seen: View, size: int, queue: Queue) -> npt.NDArray[Any]:
    flat = np.empty(size, _BITS.get(seen.dtype, seen.dtype))
    if size:
        _core.copy_out(flat, seen.address, seen.device, queue.handle)
    return flat


def _routes(name: str, x: Any, place: int, queues: dict[int, Queue]) -> npt.NDArray[Any]:
    from .moe import ids_input, weights_input

    where = place_of(x)
    if where != CPU:
        if where != place:
            raise RuntimeError(f"moe: expert_{name} is on {device_name(where)}, x is on {device_name(place)}")
        seen = view("moe", f"expert_{name}", x, queues[where])
        if not seen.contiguous:
            raise ValueError(f"moe: expert_{name} has strides {seen.strides}, expected a C-contiguous array")
        flat = _copied(seen, int(np.prod(seen.shape)), queues[where]).reshape(seen.shape)
        x = (flat.astype(np.uint32) << 16).view(np.float32) if seen.dtype == "bfloat16" else flat
    return ids_input(x) if name == "ids" else weights_input(x)


def _expect_routes(ids: npt.NDArray[Any], weights: npt.NDArray[Any], tokens: int, experts: int) -> None:
    from .moe import expect_ids, expect_routes

    expect_routes(ids, weights, tokens)
    expect_ids(ids, experts, 0)


def _sent(here: FloatInput, queue: Queue) -> DeviceArray:
    return filled(np.ascontiguousarray(here.data), _NAMES[here.dtype], queue.device, queue.handle)


def _on_cpu(
    x: FloatInput, ids: Any, weights: Any, part: Part, activation: int, exact: bool, hidden: int
) -> npt.NDArray[np.float32]:
    result = np.empty((x.data.shape[0], hidden), np.float32)
    gate = None if part.gate is None else part.gate._handle
    _core.moe(
        x.data, x.dtype, ids, weights, gate, part.up._handle, part.down._handle, activation, exact, True, result, 0
    )
    return result


def _sum(results: list[Any], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return the sum in the order of the parts, whoever finished first."""
    total = np.zeros(shape, np.float32)
    for result in results:
        if result is not None:
            total += result.numpy() if isinstance(result, DeviceArray) else result
    return total


def _delivered(total: npt.NDArray[np.float32], out: Any, queue: Queue) -> Any:
    result, room = device_output("moe", out, total.shape, queue)
    if total.size:
        _core.copy_in(room.address, queue.device, total, queue.handle)
    return result
