"""The format of each tensor that makes the whole model's error smallest for a given number of bits.

Every tensor is packed into every candidate format on a sample of its rows. The error of a format is the share of the
weighted energy that is lost, for each row by itself, and then the mean over the rows,

    mean over rows of  sum(importance * (w - decoded)^2) / sum(importance * w^2)

which is how large the noise of an output is beside the output. It counts as often as `sensitivity` says: more in the
matrix that makes the logits, in the embedding, and in the feed-forward matrices of the first and the last layer, less
in attention.

This follows a measurement on SmolLM2-135M: one matrix was packed, the divergence of the model's predictions taken. The
divergence is the mean share times a factor that depends on the kind of the matrix, hardly on its layer and not on its
size: 0.07 to 0.13 in feed-forward matrices, but 0.1 to 1.5 in the first and the last layer; 0.01 to 0.1 in attention;
17 in the embedding and 49 in the matrix of the logits. The share of the whole matrix predicts worse (a row with huge
outputs hides all others), sums that count the number of weights or are not divided by the energy far worse.

Choosing one format for each tensor under a limit on the sum of bits is a multiple-choice knapsack. It is solved along
the convex hulls of bits and error (what Lagrangian relaxation gives), the rest of the budget is filled greedily, and
the result is compared with every uniform choice, filled the same way, so that it is never worse than one of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..formats import Format, formats
from ..gguf_metadata import quoted
from ..ops import dequantize, pack
from .rules import Chooser, fitting, packable
from .source import Source, SourceTensor
from .weighting import Weighting

MAX_CANDIDATE_BITS = 7.0
DEFAULT_SAMPLE_ROWS = 64
SENSITIVITIES = {"output": 300.0, "embedding": 100.0, "values": 0.5, "attention": 0.5}  # by kind, of all others 1
EDGE_SENSITIVITY = 4.0  # of feed-forward matrices in the first and the last layer


class Option(NamedTuple):
    """A format for a tensor (None: its bytes are kept), the bits it takes, its error, the format asked for."""

    format: Format | None
    bits: int
    error: float
    wanted: str


def sensitivity(chooser: Chooser, tensor: SourceTensor) -> float:
    """Return how often the error of a tensor counts."""
    return SENSITIVITIES.get(chooser.kind(tensor), EDGE_SENSITIVITY if chooser.at_an_end(tensor) else 1.0)


def candidate_formats(names: Sequence[str] | None) -> tuple[Format, ...]:
    """Look the candidates up; by default all that can be packed in less than 7 bits. ValueError for a wrong name."""
    if names is None:
        return tuple(fmt for fmt in formats() if fmt.can_pack and fmt.bits_per_weight < MAX_CANDIDATE_BITS)
    if not names:
        raise ValueError("pack_file: candidates are empty, expected at least one format")
    return tuple(dict.fromkeys(packable(name) for name in names))


def measure(
    source: Source,
    tensor: SourceTensor,
    candidates: Sequence[Format],
    weighting: Weighting,
    *,
    sample_rows: int = DEFAULT_SAMPLE_ROWS,
    effort: str = "default",
    threads: int | None = None,
) -> list[Option]:
    """Measure what each candidate that fits the columns loses on `sample_rows` rows, spread evenly over the tensor.

    If none fits, the only option is the one that takes their place, see `fitting`. A tensor that is packed in fewer
    bits than the candidates' limit already can also stay as it is, without an error.
    """
    fits = [fmt for fmt in candidates if tensor.cols % fmt.block_size == 0]
    fits = fits or [fitting(candidates[0], tensor)]
    n_rows = min(sample_rows, tensor.n_rows)
    rows = (np.arange(n_rows) * 2 + 1) * tensor.n_rows // (2 * n_rows)
    w = np.concatenate([source.floats(tensor, row, row + 1) for row in map(int, rows)])
    importance = weighting.of(tensor)
    columns = importance
    if importance is not None and len(importance) > 1:
        columns = importance[rows // tensor.expert_rows]
    options = []
    for fmt in fits:
        bits = 8 * tensor.n_rows * fmt.row_bytes(tensor.cols)
        if fmt is tensor.format:
            options.append(Option(None, bits, 0.0, fmt.name))
            continue
        decoded = _decoded(w, fmt, columns, effort, threads, tensor)
        options.append(Option(fmt, bits, lost_share(w, decoded, columns), fmt.name))
    own = tensor.format
    if own is not None and own not in fits and own.bits_per_weight < MAX_CANDIDATE_BITS:
        options.append(Option(None, 8 * tensor.nbytes, 0.0, own.name))
    return options


def lost_share(
    w: npt.NDArray[np.float32], decoded: npt.NDArray[np.float32], columns: npt.NDArray[np.float32] | None
) -> float:
    """Average the share of each row's weighted energy that is lost; rows of zeros do not count.

    w, decoded: (rows, cols); columns: importance (1 or rows, cols), or None.
    """
    importance = np.ones((1, 1), np.float32) if columns is None else columns
    energy = (np.square(w, dtype=np.float64) * importance).sum(axis=1)
    lost = (np.square(w - decoded, dtype=np.float64) * importance).sum(axis=1)
    counted = energy > 0
    return float((lost[counted] / energy[counted]).mean()) if counted.any() else 0.0


def _decoded(
    w: npt.NDArray[np.float32],
    fmt: Format,
    columns: npt.NDArray[np.float32] | None,
    effort: str,
    threads: int | None,
    tensor: SourceTensor,
) -> npt.NDArray[np.float32]:
    """Pack and decode the sample; rows of different experts have different importance, so each is an expert here."""
    try:
        if columns is None or len(columns) == 1:
            one = None if columns is None else columns[0]
            alone: npt.NDArray[np.float32] = dequantize(
                pack(w, fmt, importance=one, effort=effort, layout="blocks", threads=threads)
            )
            return alone
        packed = pack(w[:, None, :], fmt, importance=columns, effort=effort, layout="blocks", threads=threads)
    except ValueError as error:
        raise ValueError(f"pack_file: tensor {quoted(tensor.name)}: {error}") from error
    weights: npt.NDArray[np.float32] = dequantize(packed)
    return weights.reshape(w.shape)


def choose(options: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """Choose one option of each tensor, at most `budget` bits in all, with a small sum of errors.

    The result is never worse than the same format for every tensor where that fits the budget (a tensor without it
    takes its cheapest option). ValueError if the cheapest options exceed the budget.
    """
    cheapest = [_cheapest(tensor) for tensor in options]
    if _bits(options, cheapest) > budget:
        raise ValueError(f"choose: the budget is {budget} bits, expected at least {_bits(options, cheapest)}")
    starts = [_along_hulls(options, cheapest, budget)]
    for name in dict.fromkeys(option.wanted for tensor in options for option in tensor):
        uniform = [_same(tensor, name) for tensor in options]
        if _bits(options, uniform) <= budget:
            starts.append(uniform)
    filled = [_fill(options, start, budget) for start in starts]
    return min(filled, key=lambda chosen: sum(o[i].error for o, i in zip(options, chosen, strict=True)))


def _bits(options: Sequence[Sequence[Option]], chosen: Sequence[int]) -> int:
    return sum(o[i].bits for o, i in zip(options, chosen, strict=True))


def _same(tensor: Sequence[Option], name: str) -> int:
    """Find the option of that name; where there is none, the cheapest."""
    for i, option in enumerate(tensor):
        if option.wanted == name:
            return i
    return _cheapest(tensor)


def _cheapest(tensor: Sequence[Option]) -> int:
    return min(range(len(tensor)), key=lambda i: (tensor[i].bits, tensor[i].error))


def _along_hulls(options: Sequence[Sequence[Option]], start: Sequence[int], budget: int) -> list[int]:
    """Take the steps of all lower convex hulls in the order of error saved per bit, as long as they fit."""
    chosen, left = list(start), budget - _bits(options, start)
    steps: list[tuple[float, int, int, int]] = []
    for t, (tensor, first) in enumerate(zip(options, start, strict=True)):
        at = first
        order = 0
        while True:
            better = [
                ((tensor[at].error - o.error) / (o.bits - tensor[at].bits), i)
                for i, o in enumerate(tensor)
                if o.bits > tensor[at].bits and o.error < tensor[at].error
            ]
            if not better:
                break
            gain, at = max(better, key=lambda pair: (pair[0], tensor[pair[1]].bits))
            steps.append((-gain, order, t, at))
            order += 1
    blocked: set[int] = set()
    for _, _, t, i in sorted(steps):
        more = options[t][i].bits - options[t][chosen[t]].bits
        if t in blocked or more > left:
            blocked.add(t)
            continue
        chosen[t], left = i, left - more
    return chosen


def _fill(options: Sequence[Sequence[Option]], start: Sequence[int], budget: int) -> list[int]:
    """Spend what is left of the budget: again and again the change that saves the most error for its bits."""
    chosen, left = np.array(start), budget - _bits(options, start)
    width, every = max(map(len, options)), np.arange(len(options))
    bits = np.full((len(options), width), np.inf)
    errors = np.full((len(options), width), np.inf)
    for t, tensor in enumerate(options):
        bits[t, : len(tensor)] = [option.bits for option in tensor]
        errors[t, : len(tensor)] = [option.error for option in tensor]
    while True:
        more = bits - bits[every, chosen][:, None]
        saved = errors[every, chosen][:, None] - errors
        useful = (saved > 0) & (more <= left)
        if not useful.any():
            return [int(i) for i in chosen]
        # A change that saves bits as well comes before all others.
        rate = np.divide(saved, np.maximum(more, 1e-6), out=np.full(bits.shape, -np.inf), where=useful)
        t, i = divmod(int(rate.argmax()), width)
        left -= int(more[t, i])
        chosen[t] = i


def mixed(
    measured: Sequence[tuple[SourceTensor, Sequence[Option]]], pinned_bits: int, pinned_weights: int, target_bpw: float
) -> list[Option]:
    """Choose the formats for a target of bits per weight over the measured and the pinned tensors together.

    Raises
    ------
    ValueError
        The target is below the smallest reachable, which the text names; or there is nothing to choose for.
    """
    if not measured:
        raise ValueError("pack_file: target_bpw is given, but no tensor is left to choose a format for")
    weights = pinned_weights + sum(tensor.n_weights for tensor, _ in measured)
    smallest = pinned_bits + sum(min(option.bits for option in options) for _, options in measured)
    if smallest > target_bpw * weights:
        # Rounded up, so that the number of the message is one that works.
        reachable = np.ceil(smallest / weights * 1e4) / 1e4
        text = f"target_bpw is {target_bpw:g}, expected at least {reachable:.4f} bits per weight"
        raise ValueError(f"pack_file: {text} with these rules and candidates")
    options = [options for _, options in measured]
    chosen = choose(options, int(target_bpw * weights) - pinned_bits)
    return [o[i] for o, i in zip(options, chosen, strict=True)]
