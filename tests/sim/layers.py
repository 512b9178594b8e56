"""Operands for the tests of the CUDA kernels: weights, integer-exact weights, expert layers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lutkern import reference
from reference_samples import finite_rows

from .kernels import (
    ACTIVATIONS,
    FORMATS,
    ROOT,
    Array,
    Memory,
    MoeArgs,
    Packed,
    Quantized,
    WeightArgs,
    address,
    matrix_args,
    quantized_room,
    round_up,
    run,
    weight_args,
)

NUMBERS: dict[str, npt.DTypeLike] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def random_weight(fmt: str, rows: int, cols: int, experts: int = 1, seed: int = 0) -> Packed:
    """Random bytes whose weights are finite and below 100."""
    return Packed(fmt, experts, rows, cols, finite_rows(fmt, experts * rows, cols, seed))


def random_bytes(fmt: str, rows: int, cols: int, experts: int = 1, seed: int = 0) -> Packed:
    """Any bytes at all: scales that are infinite or NaN too."""
    shape = (experts * rows, FORMATS[fmt].row_bytes(cols))
    return Packed(fmt, experts, rows, cols, np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def numbers(*shape: int, seed: int = 1, scale: float = 1.0, dtype: str = "float32") -> Array:
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return values.astype(NUMBERS[dtype])


# ---- where every partial sum is an integer below 2^24, so that any order of a sum gives the same bits ----


def _half_fields(fmt: str) -> list[int]:
    """First bytes of the fp16 fields of a block, read from the drawing in its header."""
    text = (ROOT / f"csrc/formats/{fmt}.h").read_text()
    return [int(first) for first in re.findall(r"^//\s+byte (\d+)\.\.\d+\s+\w+\s+fp16", text, re.MULTILINE)]


def integer_weight(fmt: str, rows: int, cols: int, experts: int = 1, seed: int = 0) -> Packed:
    """Random blocks whose fp16 scales are one."""
    w = random_bytes(fmt, rows, cols, experts, seed)
    blocks = w.all_blocks.reshape(-1, FORMATS[fmt].block_bytes)
    one = np.array([1.0], np.float16).view(np.uint8)
    for first in _half_fields(fmt):
        blocks[:, first : first + 2] = one
    if fmt == "iq1_m":  # a nibble of its scale in each of four words
        for k, nibble in enumerate((0x0, 0x0, 0xC, 0x3)):
            blocks[:, 49 + 2 * k] = (blocks[:, 49 + 2 * k] & 15) | nibble << 4
    if fmt == "mxfp4":  # the exponent of 2
        blocks[:, 0] = 128
    return Packed(fmt, experts, rows, cols, blocks.reshape(experts * rows, -1))


def integer_activations(tokens: int, cols: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Small integers with one 127 in each 32 columns: the scale is one."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (tokens, cols)).astype(np.float32)
    for first in range(0, cols, 32):
        at = first + rng.integers(0, min(32, cols - first), tokens)
        x[np.arange(tokens), at] = 127 * rng.choice([-1, 1], tokens)
    return x


def exact_sum(w: Packed, x: Array) -> npt.NDArray[np.float32]:
    """Return x times the first expert, (tokens, rows), after a check that no order of the sum can round."""
    values = reference.dequantize(*w.matrix).astype(np.float64)
    wide = x.astype(np.float64)
    steps = next(n for n in (1, 2, 4, 8) if np.array_equal(values * n, np.rint(values * n)))
    assert np.max(np.abs(wide) @ np.abs(values).T) * steps < 2**24, "the sum is no sum of integers below 2^24"
    return np.asarray(wide @ values.T, np.float32)


# ---- expert layers ----


@dataclass
class Layer:
    """Operands of one moe call; tiles: layout of gate, up, down."""

    gate: Packed | None
    up: Packed
    down: Packed
    x: Array
    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    activation: str | None = "silu"
    exact: bool = False
    partial: bool = False
    tiles: tuple[bool, bool, bool] = (True, True, True)
    seed: int = 0
    hidden: dict[str, Array] = field(default_factory=dict)

    def arguments(self) -> tuple[Any, ...]:
        return self.x, self.ids, self.weights, self.gate, self.up, self.down

    def expected(self) -> Array:
        return reference.moe(*self.arguments(), activation=self.activation, exact=self.exact)

    def bound(self, n_ulp: float) -> Array:
        options: dict[str, Any] = {"activation": self.activation, "exact": self.exact}
        return reference.moe_bound(*self.arguments(), n_ulp=n_ulp, **options)

    def run(self, up_kernel: str, down_kernel: str, both: bool = False) -> Array:
        """Return y of two launches; both: h as integers and as floats, kept in hidden."""
        floats = self.exact or FORMATS[self.down.format].is_float
        tokens, k = self.ids.shape
        with Memory() as memory:
            out = memory.room((tokens, self.down.rows), np.float32)
            args = MoeArgs(
                gate=weight_args(memory, self.gate, self.tiles[0]) if self.gate else WeightArgs(),
                up=weight_args(memory, self.up, self.tiles[1]),
                down=weight_args(memory, self.down, self.tiles[2]),
                x=matrix_args(memory, self.x),
                ids=address(memory.put(self.ids)),
                weights=address(memory.put(self.weights)),
                h=Quantized(),
                out=address(out),
                k=k,
                activation=ACTIVATIONS[self.activation],
                exact=int(self.exact),
                partial=int(self.partial),
            )
            if floats or both:
                self.hidden["float"] = memory.room((tokens * k, round_up(self.up.rows, 256)), np.float32, fill=0xFF)
                args.h_float = address(self.hidden["float"])
                args.h_stride = self.hidden["float"].shape[1]
            if not floats or both:
                args.h, self.hidden["q"], self.hidden["scale"] = quantized_room(memory, tokens * k, self.up.rows)
            run(up_kernel, args, self.seed)
            run(down_kernel, args, self.seed)
            self.hidden = {name: values.copy() for name, values in self.hidden.items()}
            return out.copy()


def expert_layer(
    gate: str | None,
    up: str,
    down: str,
    *,
    tokens: int = 3,
    k: int = 2,
    experts: int = 5,
    inter: int = 40,
    hidden: int = 100,
    seed: int = 0,
    **options: Any,
) -> Layer:
    """Random operands; tokens may ask for an expert twice, and some experts get no token."""
    rng = np.random.default_rng(seed)
    return Layer(
        random_weight(gate, inter, hidden, experts, seed + 1) if gate else None,
        random_weight(up, inter, hidden, experts, seed + 2),
        random_weight(down, hidden, inter, experts, seed + 3),
        numbers(tokens, hidden, seed=seed, scale=0.01),
        rng.integers(0, experts, (tokens, k), dtype=np.int32),
        rng.random((tokens, k), dtype=np.float32),
        **options,
    )
