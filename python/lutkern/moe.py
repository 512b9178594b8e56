"""The expert layer of a Mixture-of-Experts model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .arrays import as_array, expect_dimensions, float_input, output
from .ops import _expect_tensor
from .tensor import PackedTensor

_ACTIVATIONS = {None: 0, "silu": 1, "gelu": 2, "relu2": 3}  # lutkern_activation


def _ids_input(expert_ids: Any) -> npt.NDArray[np.int32]:
    ids = as_array("moe", "expert_ids", expert_ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"moe: expert_ids is {ids.dtype}, expected integers")
    expect_dimensions("moe", "expert_ids", ids, 2)
    # A copy: nobody may change an id between its check and its use.
    narrow = ids.astype(np.int32, order="C")
    if ids.dtype != np.int32 and not np.array_equal(narrow, ids):
        raise ValueError(f"moe: expert_ids reach from {ids.min()} to {ids.max()}, expected 32-bit numbers")
    return narrow


def _weights_input(expert_weights: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    weights = as_array("moe", "expert_weights", expert_weights)
    if weights.dtype.kind != "f":
        raise TypeError(f"moe: expert_weights is {weights.dtype}, expected float32")
    if weights.shape != shape:
        raise ValueError(f"moe: expert_weights has shape {weights.shape}, expert_ids has {shape}")
    return np.ascontiguousarray(weights, np.float32)


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
    gate: PackedTensor | None,
    up: PackedTensor,
    down: PackedTensor,
    *,
    activation: str | None = "silu",
    exact: bool = False,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Run the routed experts: x (tokens, hidden) -> (tokens, hidden) float32.

    ``y[t] = sum_k expert_weights[t, k] * down[e] @ (act(gate[e] @ x[t]) * (up[e] @ x[t]))``, ``e = expert_ids[t, k]``.
    Tokens are grouped by expert, so each expert that is used is read once. An expert may be named twice; each time
    counts.

    Parameters
    ----------
    x
        (tokens, hidden) float32, float16 or bfloat16; zero tokens are fine.
    expert_ids
        (tokens, k) integers, each at least 0 and less than experts.
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
    out
        Where to write: float32, C-contiguous, (tokens, hidden); may be `x` itself.

    Raises
    ------
    ValueError
        If a shape does not fit, an expert id is out of range or the activation is unknown.
    TypeError
        If an element type does not fit.
    """
    _expect_projections(*((up, down) if gate is None else (gate, up, down)))
    activation_number = _number_of(activation)
    data, dtype = float_input("moe", "x", x)
    expect_dimensions("moe", "x", data, 2)
    ids = _ids_input(expert_ids)
    if ids.shape[0] != data.shape[0]:
        raise ValueError(f"moe: expert_ids has {ids.shape[0]} rows, x has {data.shape[0]}")
    weights = _weights_input(expert_weights, ids.shape)
    result = output("moe", out, (data.shape[0], down.shape[1]))
    if out is not None and np.may_share_memory(result, data):
        data = data.copy()  # many tokens are worked on in parts, and a part must not overwrite the input of the next
    gate_handle = None if gate is None else gate._handle
    _core.moe(data, dtype, ids, weights, gate_handle, up._handle, down._handle, activation_number, exact, result)
    return result
