"""The operations on arrays that lie on a GPU: everything is queued on one stream, nothing is waited for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .device_array import dtype_number
from .device_input import View, device_output, expect_apart, float_numbers, hold, plain_array, uploaded, view
from .places import CPU, device_name, place_of
from .streams import Queue, chosen_queue, keep
from .tensor import PackedTensor


def expect_no_stream(operation: str, stream: Any) -> None:
    """Raise ValueError if a stream is given for work on the CPU."""
    if stream is not None:
        raise ValueError(f"{operation}: stream is {stream!r}, the weight is on the CPU")


def expect_ready(operation: str, queue: Queue, out: Any, weights: list[Any], inputs: dict[str, Any]) -> None:
    """Let a graph that is captured keep the operands; ValueError if it could not run a second time."""
    if not queue.captured:
        return
    keep(queue, [*weights, *inputs.values(), out])
    here = [name for name, x in inputs.items() if place_of(x) == CPU]
    where = f"expected an array on {device_name(queue.device)}: every launch of a graph uses the same memory"
    if here:
        raise ValueError(f"{operation}: {here[0]} is on the CPU while a graph is captured, {where}")
    if out is None:
        raise ValueError(f"{operation}: out is missing while a graph is captured, {where}")


def multiply(operation: str, t: PackedTensor, x: Any, dimensions: int, exact: bool, out: Any, stream: Any) -> Any:
    """Matvec (one dimension) or matmul (two) with x on the device of the weight."""
    queue = chosen_queue(operation, stream, t._handle.device, (x, out))
    expect_ready(operation, queue, out, [t], {"x": x})
    seen = view(operation, "x", x, queue)
    numbers = float_numbers(operation, "x", seen, dimensions)
    shape = (t.shape[-2],) if dimensions == 1 else (numbers[2], t.shape[-2])
    result, room = device_output(operation, out, shape, queue)
    expect_apart(operation, room, ("x", seen))
    run = _core.device_matvec if dimensions == 1 else _core.device_matmul
    run(t._handle, numbers, room.address, exact, queue.handle)
    hold(result, queue, seen)
    return result


def dequantize(t: PackedTensor, dtype: str, out: Any, stream: Any) -> Any:
    """Decode a weight of a device, into an array there."""
    queue = chosen_queue("dequantize", stream, t._handle.device, (out,))
    expect_ready("dequantize", queue, out, [t], {})
    result, room = device_output("dequantize", out, t.shape, queue, dtype)
    _core.device_dequantize(t._handle, dtype_number(dtype), room.address, queue.handle)
    return result


def moe(
    x: Any,
    ids: Any,
    weights: Any,
    layer: tuple[PackedTensor | None, PackedTensor, PackedTensor],
    activation: int,
    exact: bool,
    partial: bool,
    out: Any,
    stream: Any,
) -> Any:
    """Run an expert layer with x on the device of the weights.

    `ids` and `weights` are arrays of the device, or int32 and float32 arrays of the CPU whose values are checked.
    """
    gate, up, down = layer
    queue = chosen_queue("moe", stream, up._handle.device, (x, ids, weights, out))
    operands = {"x": x, "expert_ids": ids, "expert_weights": weights}
    expect_ready("moe", queue, out, [t for t in layer if t is not None], operands)
    seen = view("moe", "x", x, queue)
    numbers = float_numbers("moe", "x", seen, 2)
    ids_seen = _routing("expert_ids", ids, "int32", queue)
    weights_seen = _routing("expert_weights", weights, "float32", queue)
    _expect_routes(ids_seen, weights_seen, numbers[2])
    result, room = device_output("moe", out, (numbers[2], down.shape[1]), queue)
    expect_apart("moe", room, ("x", seen), ("expert_ids", ids_seen), ("expert_weights", weights_seen))
    _core.device_moe(
        numbers,
        ids_seen.address,
        weights_seen.address,
        ids_seen.shape[1],
        None if gate is None else gate._handle,
        up._handle,
        down._handle,
        activation,
        exact,
        partial,
        room.address,
        queue.handle,
    )
    hold(result, queue, seen, ids_seen, weights_seen)
    return result


def _routing(name: str, x: Any, dtype: str, queue: Queue) -> View:
    if place_of(x) == CPU:
        return uploaded(np.ascontiguousarray(x, dtype), dtype, queue)
    return plain_array("moe", name, x, dtype, queue)


def _expect_routes(ids: View, weights: View, tokens: int) -> None:
    if len(ids.shape) != 2:
        raise ValueError(f"moe: expert_ids has {len(ids.shape)} dimensions, expected 2")
    if ids.shape[0] != tokens:
        raise ValueError(f"moe: expert_ids has {ids.shape[0]} rows, x has {tokens}")
    if weights.shape != ids.shape:
        raise ValueError(f"moe: expert_weights has shape {weights.shape}, expert_ids has {ids.shape}")


def to_host(y: Any, out: npt.NDArray[Any]) -> None:
    """Wait for a result on a device and copy it into an array of the CPU with elements of its size."""
    if out.size:
        _core.copy_out(out.view(f"u{out.itemsize}"), y._memory.address, y._memory.device, y._memory.stream)
