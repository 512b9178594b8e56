"""What is run: each operation by lutkern, and by ggml where it can, on weights that are too large for a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats import Format
from ..moe import moe
from ..ops import dequantize, matmul, matvec
from ..reference import dequantize as defined
from ..tensor import PackedTensor
from .ggml import Ggml, GgmlDequantize, GgmlMoe, GgmlProducts, aligned
from .rounds import Contestant
from .weights import EXPERTS_PER_TOKEN, experts_to_rotate, random_blocks, routes

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_CHUNK = 64  # rows
_CHECKED = 16  # most tokens or rows of a result that are held against the definition


class Ours:
    """lutkern, which needs no rest: its idle threads sleep."""

    def __init__(self, calls: list[Callable[[], object]]) -> None:
        self._calls: Iterator[Callable[[], object]] = cycle(calls)

    def step(self) -> None:
        """Make the next call."""
        next(self._calls)()

    def rest(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Work:
    """One operation, ready to run.

    Attributes
    ----------
    ours, theirs
        lutkern, and ggml or None.
    experts
        Matrices, or experts of a layer, that are gone through in turn.
    weights
        Weights that a step multiplies or decodes, times tokens.
    n_bytes
        Packed bytes that a step reads.
    bits_per_weight
        Of the packed weights, padding included.
    error, rival_error
        Relative error of a result: ``|y - exact| / |exact|``, against float64 on the decoded weights.
    """

    ours: Contestant
    theirs: Contestant | None
    experts: int
    weights: int
    n_bytes: float
    bits_per_weight: float
    error: float
    rival_error: float | None

    def close(self) -> None:
        """Give threads and memory of the contestants back."""
        self.ours.close()
        if self.theirs is not None:
            self.theirs.close()


def relative_error(found: npt.NDArray[Any], exact: npt.NDArray[Any]) -> float:
    """Return ``|found - exact| / |exact|`` over all elements of two arrays of one shape."""
    difference = found.astype(np.float64) - exact
    return float(np.linalg.norm(difference) / np.linalg.norm(exact.astype(np.float64)))


def _some(count: int) -> npt.NDArray[np.intp]:
    """Return at most 16 of the numbers below `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, _CHECKED)).round().astype(np.intp))


def _input(tokens: int, cols: int) -> Floats:
    return np.random.default_rng(1).standard_normal((tokens, cols), np.float32)


class Matrices:
    """Matrices of one format and shape, for matvec, matmul and dequantize.

    Parameters
    ----------
    fmt, rows, cols
        What they are.
    n_bytes
        How many packed bytes there are at least.
    ggml
        The rival, or None.
    """

    def __init__(self, fmt: Format, rows: int, cols: int, n_bytes: int, ggml: Ggml | None) -> None:
        experts = max(2, experts_to_rotate(fmt, [(rows, cols)], n_bytes, 1))
        self.fmt, self.shape = fmt, (experts, rows, cols)
        self._ggml = ggml if ggml is not None and ggml.supports(fmt, cols) else None
        self._blocks = random_blocks(fmt, self.shape)
        self._tensors = {"blocks": PackedTensor.from_blocks(self._blocks, fmt, self.shape)}

    @cached_property
    def _theirs(self) -> npt.NDArray[np.uint8]:
        return aligned(self._blocks)  # a copy: what one side has read must not lie in the cache for the other

    @cached_property
    def _exact(self) -> Doubles:
        weights: Floats = dequantize(self._tensors["blocks"][0])
        return weights.astype(np.float64)

    def tensor(self, layout: str) -> PackedTensor:
        """Return all of them, (experts, rows, cols), in a layout that the format has."""
        if layout not in self._tensors:
            self._tensors[layout] = self._tensors["blocks"].to(layout=layout)
        return self._tensors[layout]

    def work(self, op: str, layout: str, tokens: int, threads: int) -> Work:
        """Prepare matvec, matmul or dequantize; lutkern must already have its number of threads."""
        t = self.tensor(layout)
        experts = [t[e] for e in range(len(t))]
        make = self._dequantize if op == "dequantize" else self._product
        ours, theirs, error, rival_error = make(op, experts, tokens, threads)
        _, rows, cols = self.shape
        size = t.nbytes / len(experts)
        return Work(ours, theirs, len(experts), rows * cols * tokens, size, t.bits_per_weight, error, rival_error)

    def _product(
        self, op: str, experts: list[PackedTensor], tokens: int, threads: int
    ) -> tuple[Contestant, Contestant | None, float, float | None]:
        _, rows, cols = self.shape
        x, out = _input(tokens, cols), np.empty((tokens, rows), np.float32)
        if op == "matvec":
            ours = Ours([lambda t=t: matvec(t, x[0], out=out[0]) for t in experts])  # type: ignore[misc]
        else:
            ours = Ours([lambda t=t: matmul(t, x, out=out) for t in experts])  # type: ignore[misc]
        ours.step()
        some = _some(tokens)
        exact = x[some].astype(np.float64) @ self._exact.T
        error = relative_error(out[some], exact)
        if self._ggml is None:
            return ours, None, error, None
        theirs = GgmlProducts(self._ggml, self.fmt, self._theirs, x, threads)
        return ours, theirs, error, relative_error(theirs.compute(0)[some], exact)

    def _dequantize(
        self, op: str, experts: list[PackedTensor], tokens: int, threads: int
    ) -> tuple[Contestant, Contestant | None, float, float | None]:
        _, rows, cols = self.shape
        out = np.empty((rows, cols), np.float32)
        ours = Ours([lambda t=t: dequantize(t, out=out) for t in experts])  # type: ignore[misc]
        ours.step()
        some = _some(rows)
        exact = defined(self._blocks[0, some], self.fmt.name, (len(some), cols))
        error = relative_error(out[some], exact)
        if self._ggml is None or not self._ggml.decodes(self.fmt):
            return ours, None, error, None
        theirs = GgmlDequantize(self._ggml, self.fmt, self._theirs, cols, threads)
        return ours, theirs, error, relative_error(theirs.compute(0)[some], exact)


class Layer:
    """Expert layers of one format: gate and up (experts, rows, cols), down (experts, cols, rows).

    A call goes to 8 experts per token, as the models do; the calls together go through all experts. Parameters as those
    of `Matrices`.
    """

    def __init__(self, fmt: Format, rows: int, cols: int, n_bytes: int, ggml: Ggml | None) -> None:
        sizes = [(rows, cols), (rows, cols), (cols, rows)]
        self.fmt = fmt
        self._experts = max(2 * EXPERTS_PER_TOKEN, experts_to_rotate(fmt, sizes, n_bytes, EXPERTS_PER_TOKEN))
        self._sizes = [(self._experts, *size) for size in sizes]
        whole = ggml is not None and ggml.supports(fmt, cols) and ggml.supports(fmt, rows)
        self._ggml = ggml if whole else None
        self._blocks = [random_blocks(fmt, shape, seed) for seed, shape in enumerate(self._sizes)]
        self._tensors = {"blocks": [self._tensor(i) for i in range(3)]}
        self._decoded: dict[tuple[int, ...], Floats] = {}

    def _tensor(self, number: int) -> PackedTensor:
        return PackedTensor.from_blocks(self._blocks[number], self.fmt, self._sizes[number])

    @cached_property
    def _theirs(self) -> list[npt.NDArray[np.uint8]]:
        return [aligned(blocks) for blocks in self._blocks]

    def tensors(self, layout: str) -> list[PackedTensor]:
        """Return gate, up and down in a layout that the format has."""
        if layout not in self._tensors:
            self._tensors[layout] = [t.to(layout=layout) for t in self._tensors["blocks"]]
        return self._tensors[layout]

    def work(self, op: str, layout: str, tokens: int, threads: int) -> Work:
        """Prepare moe; lutkern must already have its number of threads."""
        gate, up, down = self.tensors(layout)
        _, rows, cols = self._sizes[0]
        ids = routes(self._experts, tokens)
        x, out = _input(tokens, cols), np.empty((tokens, cols), np.float32)
        shares = np.full(ids.shape[1:], 1 / EXPERTS_PER_TOKEN, np.float32)
        ours = Ours([lambda i=i: moe(x, i, shares, gate, up, down, out=out) for i in ids])  # type: ignore[misc]
        ours.step()
        exact = self._last_token(x[-1], ids[0, -1])
        error = relative_error(out[-1], exact)
        theirs, rival_error = None, None
        if self._ggml is not None:
            theirs = GgmlMoe(self._ggml, self.fmt, self._theirs, x, ids, threads)
            rival_error = relative_error(theirs.compute(0)[-1].mean(0), exact)
        packed = gate.nbytes + up.nbytes + down.nbytes
        used = float(np.mean([len(np.unique(call)) for call in ids]))
        weights = 3 * rows * cols
        bits = 8 * packed / (weights * self._experts)
        read = packed / self._experts * used
        return Work(ours, theirs, self._experts, weights * ids[0].size, read, bits, error, rival_error)

    def _last_token(self, x: Floats, experts: npt.NDArray[np.int32]) -> Doubles:
        gate, up, down = self._tensors["blocks"]
        total = np.zeros(len(x))
        for e in experts:
            z = self._exact(gate[e], x.astype(np.float64))
            total += self._exact(down[e], z / (1 + np.exp(-z)) * self._exact(up[e], x.astype(np.float64)))
        return total / EXPERTS_PER_TOKEN

    def _exact(self, t: PackedTensor, x: Doubles) -> Doubles:
        """Multiply in float64, some rows at a time, in memory that stays: fresh memory is slower than the product."""
        if t.shape not in self._decoded:
            self._decoded[t.shape] = np.empty(t.shape, np.float32)
        w = dequantize(t, out=self._decoded[t.shape])
        return np.concatenate([w[i : i + _CHUNK].astype(np.float64) @ x for i in range(0, len(w), _CHUNK)])
