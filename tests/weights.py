"""Packed weights for the tests of the operations."""

from __future__ import annotations

import numpy as np

import lutkern
from reference_samples import finite_rows


def random_tensor(
    fmt: lutkern.Format, shape: tuple[int, ...], seed: int = 0, layout: str = "blocks"
) -> lutkern.PackedTensor:
    """Return a tensor of random bytes whose weights are finite and below 100: any such bytes are a valid weight."""
    rows = int(np.prod(shape[:-1]))
    blocks = lutkern.PackedTensor.from_blocks(finite_rows(fmt.name, rows, shape[-1], seed), fmt, shape)
    return blocks.to(layout=layout)


def by_name(name: str) -> lutkern.Format:
    return next(f for f in lutkern.formats() if f.name == name)
