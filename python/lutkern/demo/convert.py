"""A dense model's feed-forward networks become packed experts.

The network `down(silu(gate x) * (up x))` is a sum over its inner neurons, so any partition of them into groups is a
set of experts whose sum, every one routed with weight 1, is the dense network. Here a group is 256 neighbouring
neurons: gate and up are (experts, 256, hidden), down is (experts, hidden, 256).

Packing goes layer by layer, with two copies of the calibration text running through the model: one through the float
layers, one through the layers packed so far. Three things keep two-bit weights close to the float model:

* importance: the mean square of each column's input, handed to `lutkern.pack`;
* feedback: columns are packed 256 at a time, and the columns that are still to come take over, by least squares on
  the calibration inputs, the error of those that are done;
* refit: before `down` is packed it is moved, by ridge regression, to where the packed gate and up and all earlier
  layers call for it, so that the residual stream comes back to that of the float model.

Every weight is still stored in the format that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..moe import moe
from ..ops import dequantize, pack
from ..tensor import PackedTensor
from .llama import DenseFfn, Floats, Llama, silu

EXPERT_NEURONS = 256
# Added to the diagonal of the inputs' second moments, relative to their mean: keeps the solves stable where the
# calibration text says little about a direction.
FEEDBACK_DAMPING = 0.01
REFIT_DAMPING = 0.3

Moments = NDArray[np.float64]


@dataclass(frozen=True)
class Experts:
    """One layer: gate, up (experts, 256, hidden), down (experts, hidden, 256)."""

    gate: PackedTensor
    up: PackedTensor
    down: PackedTensor

    @property
    def parts(self) -> tuple[PackedTensor, PackedTensor, PackedTensor]:
        """Gate, up, down."""
        return self.gate, self.up, self.down


@dataclass(frozen=True)
class Formats:
    """The format of each projection, by name."""

    gate: str
    up: str
    down: str


class PackedFfn:
    """Feed-forward networks that run through `lutkern.moe`, all experts routed with weight 1."""

    def __init__(self, layers: Iterable[Experts]) -> None:
        self.layers = [Experts(*(part.to(layout="tiles") for part in layer.parts)) for layer in layers]

    def __call__(self, layer: int, x: Floats) -> Floats:
        """Run one layer: x float32 (tokens, hidden) -> float32 (tokens, hidden)."""
        return run_experts(self.layers[layer], x)

    @property
    def nbytes(self) -> int:
        """Bytes of all packed experts."""
        return sum(part.nbytes for layer in self.layers for part in layer.parts)


def run_experts(experts: Experts, x: Floats) -> Floats:
    """Run all experts of a layer with weight 1: x float32 (tokens, hidden) -> float32 (tokens, hidden)."""
    shape = (len(x), experts.gate.shape[0])
    ids = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    weights = np.ones(shape, np.float32)
    return np.asarray(moe(np.ascontiguousarray(x), ids, weights, *experts.parts))


def expert_count(inter: int) -> int:
    """Return how many experts `inter` neurons make. ValueError if they do not come out even."""
    if inter < EXPERT_NEURONS or inter % EXPERT_NEURONS:
        raise ValueError(f"demo: the feed-forward length is {inter}, expected a multiple of {EXPERT_NEURONS}")
    return inter // EXPERT_NEURONS


def pack_model(
    model: Llama, dense: DenseFfn, windows: list[list[int]], formats: Formats, step: Callable[[], None] = lambda: None
) -> PackedFfn:
    """Pack every layer's feed-forward network, calibrated on `windows` of tokens; `step` is called after each layer.

    Raises
    ------
    ValueError
        If the feed-forward length is no multiple of 256, a format has no packer, or there is no calibration text.
    """
    expert_count(model.config.inter)
    if not windows:
        raise ValueError("demo: no calibration text, expected at least one window of tokens")
    cache = model.cache(max(map(len, windows)))
    starts = np.cumsum([len(window) for window in windows])[:-1]
    exact = np.concatenate([model.embed(window) for window in windows])
    drifted = exact.copy()
    layers = []
    for i in range(model.config.layers):
        exact, drifted = (
            np.concatenate([model.attend(i, window, cache) for window in np.split(x, starts)]) for x in (exact, drifted)
        )
        exact = exact + dense(i, model.ffn_input(i, exact))
        experts, output = _pack_layer(dense.layers[i], model.ffn_input(i, drifted), exact - drifted, formats)
        drifted = drifted + output
        layers.append(experts)
        step()
    return PackedFfn(layers)


def _pack_layer(
    dense: tuple[Floats, Floats, Floats], inputs: Floats, target: Floats, formats: Formats
) -> tuple[Experts, Floats]:
    """Pack one network so that on `inputs` (tokens, hidden) it comes close to `target` (tokens, hidden).

    Returns the experts, and what they make of `inputs` with float activations.
    """
    gate, up, down = dense
    moments = second_moments(inputs)
    packed_gate = join_rows(pack_columns(gate, formats.gate, moments))
    packed_up = join_rows(pack_columns(up, formats.up, moments))
    inner = silu(inputs @ _flat(packed_gate).T) * (inputs @ _flat(packed_up).T)
    moments = second_moments(inner)
    # What is left of the target, projected on the inputs of `down`: inner^T (target - inner down^T) / tokens.
    miss = (inner.T @ target).astype(np.float64) / len(inner) - moments @ down.T
    refitted = down + np.linalg.solve(_damped(moments, REFIT_DAMPING), miss).T
    packed_down = join_experts(pack_columns(refitted, formats.down, moments))
    output = inner @ np.concatenate(list(dequantize(packed_down)), axis=1).T
    return Experts(packed_gate, packed_up, packed_down), output


def second_moments(x: Floats) -> Moments:
    """Average the outer products of the rows of x (tokens, n): float64 (n, n)."""
    return np.asarray(x.T @ x, dtype=np.float64) / len(x)


def pack_columns(w: NDArray[np.floating], fmt: str, moments: Moments) -> list[PackedTensor]:
    """Pack w (rows, cols) in pieces of 256 columns, each (rows, <= 256), later pieces making up for earlier ones.

    `moments` (cols, cols) are the second moments of the inputs; their diagonal is the importance.
    """
    rest = np.array(w, dtype=np.float64)
    damped = _damped(moments, FEEDBACK_DAMPING)
    importance = np.maximum(np.diag(moments), np.finfo(np.float32).tiny)
    pieces = []
    for start in range(0, rest.shape[1], EXPERT_NEURONS):
        stop = min(start + EXPERT_NEURONS, rest.shape[1])
        piece = pack(
            rest[:, start:stop].astype(np.float32),
            fmt,
            importance=importance[start:stop].astype(np.float32),
            layout="blocks",
        )
        pieces.append(piece)
        if stop < rest.shape[1]:
            error = rest[:, start:stop] - dequantize(piece)
            share = np.linalg.solve(damped[stop:, stop:], damped[stop:, start:stop])
            rest[:, stop:] += error @ share.T
    return pieces


def join_rows(pieces: list[PackedTensor]) -> PackedTensor:
    """Join column pieces of a (rows, cols) weight: (rows / 256, 256, cols): every 256 rows are one expert."""
    rows, cols = pieces[0].shape[0], sum(piece.shape[1] for piece in pieces)
    blocks = np.ascontiguousarray(np.concatenate([piece.blocks() for piece in pieces], axis=1))
    return PackedTensor.from_blocks(blocks, pieces[0].format, (rows // EXPERT_NEURONS, EXPERT_NEURONS, cols))


def join_experts(pieces: list[PackedTensor]) -> PackedTensor:
    """Join column pieces of a (rows, cols) weight: (cols / 256, rows, 256): every piece is one expert."""
    blocks = np.stack([piece.blocks() for piece in pieces])
    return PackedTensor.from_blocks(blocks, pieces[0].format, (len(pieces), *pieces[0].shape))


def _flat(t: PackedTensor) -> Floats:
    """(experts, 256, hidden) -> float32 (inter, hidden)."""
    return np.asarray(dequantize(t).reshape(-1, t.shape[-1]))


def _damped(moments: Moments, damping: float) -> Moments:
    mean = float(np.mean(np.diag(moments)))
    ridge: Moments = np.eye(len(moments)) * (damping * mean + np.finfo(np.float32).tiny)
    return moments + ridge
