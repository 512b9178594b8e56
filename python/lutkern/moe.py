"""The expert layer of a Mixture-of-Experts model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from . import _core, device_ops, hybrid
from .arrays import as_array, expect_dimensions, float_input, output
from .ops import _expect_tensor, host_stream
from .places import CPU, place_of
from .tensor import PackedTensor

Parts = Sequence["PackedTensor | None"]
_ACTIVATIONS = {None: 0, "silu": 1, "gelu": 2, "relu2": 3}  # lutkern_activation


def ids_input(expert_ids: Any) -> npt.NDArray[np.int32]:
    """Return ids of the CPU as a copy: nobody may change one between its check and its use."""
    ids = as_array("moe", "expert_ids", expert_ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"moe: expert_ids is {ids.dtype}, expected integers")
    expect_dimensions("moe", "expert_ids", ids, 2)
    narrow = ids.astype(np.int32, order="C")
    if ids.dtype != np.int32 and not (narrow == ids).all():
        raise ValueError(f"moe: expert_ids reach from {ids.min()} to {ids.max()}, expected 32-bit numbers")
    return narrow


def weights_input(expert_weights: Any) -> npt.NDArray[np.float32]:
    """Return weights of the CPU as contiguous float32."""
    weights = as_array("moe", "expert_weights", expert_weights)
    if weights.dtype.kind != "f":
        raise TypeError(f"moe: expert_weights is {weights.dtype}, expected float32")
    return np.ascontiguousarray(weights, np.float32)


def expect_routes(ids: npt.NDArray[np.int32], weights: npt.NDArray[np.float32], tokens: int) -> None:
    """Raise ValueError unless there is a row of ids and weights for each token."""
    if ids.shape[0] != tokens:
        raise ValueError(f"moe: expert_ids has {ids.shape[0]} rows, x has {tokens}")
    if weights.shape != ids.shape:
        raise ValueError(f"moe: expert_weights has shape {weights.shape}, expert_ids has {ids.shape}")


def expect_ids(ids: npt.NDArray[np.int32], experts: int, least: int) -> None:
    """Raise ValueError unless every id is from `least` to less than `experts`."""
    wrong = np.argwhere((ids < least) | (ids >= experts))
    if len(wrong):
        token, slot = wrong[0]
        found = ids[token, slot]
        raise ValueError(f"moe: expert_ids[{token}, {slot}] is {found}, expected {least} to {experts - 1}")


def _expect_projections(*projections: Any) -> None:
    for t in projections:
        _expect_tensor("moe", t)
        if len(t.shape) != 3:
            raise ValueError(f"moe: a weight has shape {t.shape}, expected (experts, rows, cols)")


def _number_of(activation: str | None) -> int:
    if activation is not None and (not isinstance(activation, str) or activation not in _ACTIVATIONS):
        raise ValueError(f"moe: unknown activation {activation!r}, expected one of: silu, gelu, relu2, None")
    return _ACTIVATIONS[activation]


def moe(
    x: Any,
    expert_ids: Any,
    expert_weights: Any,
    gate: PackedTensor | Parts | None,
    up: PackedTensor | Parts,
    down: PackedTensor | Parts,
    *,
    activation: str | None = "silu",
    exact: bool = False,
    partial: bool = False,
    placement: Any = None,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """Run the routed experts: x (tokens, hidden) -> (tokens, hidden) float32.

    ``y[t] = sum_k expert_weights[t, k] * down[e] @ (act(gate[e] @ x[t]) * (up[e] @ x[t]))``, ``e = expert_ids[t, k]``.
    Tokens are grouped by expert, so each expert that is used is read once. An expert may be named twice; each time
    counts.

    Parameters
    ----------
    x
        (tokens, hidden) float32, float16 or bfloat16; zero tokens are fine. On the CPU or on the device of the weights.
    expert_ids
        (tokens, k) integers, each at least 0 and less than experts. Those on a GPU are not read by the host: there, an
        id that is out of range makes the results of its token NaN.
    expert_weights
        (tokens, k) floats.
    gate, up
        (experts, inter, hidden), each in its own format. ``gate=None``: the experts have no gate, ``act(up x)``.
    down
        (experts, hidden, inter), in its own format.
    activation
        ``"silu"``, ``"gelu"`` (the tanh form), ``"relu2"`` (the square of the positive part), or None.
    exact
        Use float activations throughout instead of int8, see `matvec`.
    partial
        An id of -1 names an expert that lives elsewhere, and is left out.
    placement
        (experts,) integers, if gate, up and down are lists with one part of the experts for each device
        (`split_experts`): which part has the expert. The experts of a part are in ascending order. The GPUs and the CPU
        work at the same time; the sum is made on the CPU.
    out
        Where to write: float32, C-contiguous, (tokens, hidden); may be `x` itself on the CPU.
    stream
        Of a GPU, see `matvec`.

    Returns
    -------
    numpy.ndarray or DeviceArray
        Where x is; `out` if it is given.

    Raises
    ------
    ValueError
        If a shape does not fit, an expert id is out of range or the activation is unknown.
    TypeError
        If an element type does not fit.
    RuntimeError
        If an array is on another device than the weights.
    """
    activation_number = _number_of(activation)
    if placement is not None:
        parts = hybrid.parts_of(gate, up, down, placement)
        return hybrid.run(x, expert_ids, expert_weights, parts, activation_number, exact, out, stream)
    _expect_projections(*((up, down) if gate is None else (gate, up, down)))
    layer = cast("tuple[PackedTensor | None, PackedTensor, PackedTensor]", (gate, up, down))
    if place_of(x) != CPU and layer[1]._handle.device != CPU:
        ids, weights = _routes_there(expert_ids, expert_weights, layer[1].shape[0], -1 if partial else 0)
        return device_ops.moe(x, ids, weights, layer, activation_number, exact, partial, out, stream)
    return _from_cpu(x, expert_ids, expert_weights, layer, activation_number, exact, partial, out, stream)


def _routes_there(expert_ids: Any, expert_weights: Any, experts: int, least: int) -> tuple[Any, Any]:
    """Check ids and weights that are on the CPU, for x on a GPU."""
    ids, weights = expert_ids, expert_weights
    if place_of(ids) == CPU:
        ids = ids_input(ids)
        expect_ids(ids, experts, least)
    if place_of(weights) == CPU:
        weights = weights_input(weights)
    return ids, weights


def _from_cpu(
    x: Any,
    expert_ids: Any,
    expert_weights: Any,
    layer: tuple[PackedTensor | None, PackedTensor, PackedTensor],
    activation: int,
    exact: bool,
    partial: bool,
    out: Any,
    stream: Any,
) -> npt.NDArray[np.float32]:
    gate, up, down = layer
    data, dtype = float_input("moe", "x", x)
    expect_dimensions("moe", "x", data, 2)
    ids = ids_input(expert_ids)
    weights = weights_input(expert_weights)
    expect_routes(ids, weights, data.shape[0])
    handle = host_stream("moe", stream, up._handle.device)
    result = output("moe", out, (data.shape[0], down.shape[1]))
    if out is not None and np.may_share_memory(result, data):
        data = data.copy()  # many tokens are worked on in parts, and a part must not overwrite the input of the next
    gate_handle = None if gate is None else gate._handle
    _core.moe(
        data, dtype, ids, weights, gate_handle, up._handle, down._handle, activation, exact, partial, result, handle
    )
    return result
