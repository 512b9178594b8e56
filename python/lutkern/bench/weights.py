"""What is measured on: the shapes of released models, weights that do not fit into a cache, their layouts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..formats import Format, formats
from ..ops import pack

OPERATIONS = ("matvec", "matmul", "moe", "dequantize")
# Rows x cols of gate and up; down is the transpose.
MODELS = {
    "glm-4.7": (1536, 5120),
    "glm-5.2": (2048, 6144),
    "deepseek-v3": (2048, 7168),
    "qwen3-30b": (768, 2048),
}
EXPERTS_PER_TOKEN = 8  # of all these models
_SAMPLE_ROWS = 64  # that are packed; a weight repeats them in random order
_SAMPLE_SCALE = 1 / 16  # keeps the inside of an expert layer within float16, which ggml uses for some formats


def codebook_formats() -> tuple[Format, ...]:
    """Return the formats that this library is about: those with a codebook."""
    return tuple(fmt for fmt in formats() if fmt.name.startswith(("iq1", "iq2", "iq3")))


def random_blocks(fmt: Format, shape: tuple[int, int, int], seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return GGUF bytes of normally distributed weights, (experts, rows, row_bytes) uint8."""
    experts, rows, cols = shape
    rng = np.random.default_rng(seed)
    if fmt.can_pack:
        sample = np.float32(_SAMPLE_SCALE) * rng.standard_normal((_SAMPLE_ROWS, cols), np.float32)
        known = pack(sample, fmt, effort="fast", layout="blocks").blocks()
    else:
        # Scales are fp16; without a byte of 64 or more their exponents stay small.
        known = rng.integers(0, 64, (_SAMPLE_ROWS, fmt.row_bytes(cols)), np.uint8)
    return known[rng.integers(0, len(known), (experts, rows))]


def experts_to_rotate(fmt: Format, sizes: list[tuple[int, int]], n_bytes: int, least: int) -> int:
    """Return how many experts of matrices of these sizes have at least `n_bytes`; a multiple of `least`."""
    one = sum(rows * fmt.row_bytes(cols) for rows, cols in sizes)
    return -(-n_bytes // (one * least)) * least


def routes(experts: int, tokens: int, seed: int = 0) -> npt.NDArray[np.int32]:
    """Return which experts the tokens of each call go to: (calls, tokens, 8) int32.

    The experts of a token differ, and all calls together use every expert about equally often. `experts` is a multiple
    of 8.
    """
    rng = np.random.default_rng(seed)
    calls = max(4, -(-experts // (tokens * EXPERTS_PER_TOKEN)))
    needed = calls * tokens * EXPERTS_PER_TOKEN
    rounds = [rng.permutation(experts) for _ in range(-(-needed // experts))]
    picked = np.concatenate(rounds)[:needed].astype(np.int32)
    return picked.reshape(calls, tokens, EXPERTS_PER_TOKEN)
