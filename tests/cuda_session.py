"""Calls of the public API on a device that together launch every CUDA kernel; small, and without expf and tanhf.

LUTKERN_LIBCUDA=libcuda_fake.so LUTKERN_SIM_TRACE=FOLDER python tests/cuda_session.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import lutkern

sys.path.insert(0, str(Path(__file__).parent))
from reference_samples import finite_rows

ROWS, COLS, EXPERTS = 40, 256, 3


def tensor(fmt: str, *shape: int) -> lutkern.PackedTensor:
    """Random weights on the device."""
    rows = int(np.prod(shape[:-1]))
    blocks = finite_rows(fmt, rows, shape[-1], 0)
    return lutkern.PackedTensor.from_blocks(blocks, fmt, shape).to(device="cuda")


def layer(gate: str, up: str, down: str, tokens: int) -> None:
    """Experts of which each has some pairs."""
    hidden, inter = 256, 256
    ids = np.arange(tokens * 2, dtype=np.int32).reshape(tokens, 2) % EXPERTS
    weights = np.full((tokens, 2), 0.5, np.float32)
    x = activations(tokens, hidden)
    projections = tensor(gate, EXPERTS, inter, hidden), tensor(up, EXPERTS, inter, hidden)
    y = lutkern.moe(x, ids, weights, *projections, tensor(down, EXPERTS, hidden, inter), activation="relu2")
    assert np.isfinite(y).all()


def activations(*shape: int) -> np.ndarray:
    """Normal numbers."""
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def main() -> None:
    """Run."""
    tiled = [f.name for f in lutkern.formats() if f.name.startswith("iq") and not f.name.startswith("iq4")]
    for fmt in tiled:
        w = tensor(fmt, ROWS, COLS)
        w.blocks()
        lutkern.dequantize(w)
        lutkern.matvec(w, activations(COLS))
        for tokens in (5, 18):
            lutkern.matmul(w, activations(tokens, COLS))
        for tokens in (1, 24):
            layer(fmt, fmt, fmt, tokens)
    for tokens in (1, 24):
        layer("iq1_m", "iq2_xs", "iq2_xxs", tokens)
    other = tensor("q4_k", ROWS, COLS)
    lutkern.dequantize(other)
    lutkern.matmul(other, activations(2, COLS))
    layer("q4_k", "iq2_s", "q8_0", 1)


if __name__ == "__main__":
    main()
