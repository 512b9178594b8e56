"""Random packed weights and activations for the tests of the NumPy reference."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
from gguf import quants

from lutkern import reference

ALL = list(reference.FORMATS)
INTEGER = [name for name, fmt in reference.FORMATS.items() if not fmt.is_float]
FLOAT = [name for name, fmt in reference.FORMATS.items() if fmt.is_float]
ULP = 2.0**-24


def gguf_type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def gguf_dequantize(blocks: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return np.asarray(quants.dequantize(blocks, gguf_type(name)), dtype=np.float32)


def finite_rows(name: str, rows: int, cols: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return random blocks of moderate weights: bytes drawn until every weight is finite and below 100."""
    fmt = reference.FORMATS[name]
    rng = np.random.default_rng(seed)
    wanted = rows * -(-cols // fmt.block_size)
    found = np.zeros((0, fmt.block_bytes), dtype=np.uint8)
    while len(found) < wanted:
        drawn = rng.integers(0, 256, (2 * wanted, fmt.block_bytes), dtype=np.uint8)
        fits = np.abs(gguf_dequantize(drawn, name)) < 100
        found = np.concatenate([found, drawn[fits.reshape(len(drawn), -1).all(axis=1)]])
    return found[:wanted].reshape(rows, -1)


class Tensor:
    """What the reference sees of a PackedTensor."""

    def __init__(self, blocks: npt.NDArray[np.uint8], fmt: str, shape: tuple[int, ...]) -> None:
        self._blocks, self.format, self.shape = blocks, fmt, shape

    def blocks(self) -> npt.NDArray[np.uint8]:
        return self._blocks


def tensor(name: str, rows: int = 6, cols: int = 512, seed: int = 0) -> Tensor:
    return Tensor(finite_rows(name, rows, cols, seed), name, (rows, cols))


def experts(name: str, count: int, rows: int, cols: int, seed: int) -> Tensor:
    blocks = finite_rows(name, count * rows, cols, seed).reshape(count, rows, -1)
    return Tensor(blocks, name, (count, rows, cols))


def gaussian(*shape: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


X = np.zeros(512, dtype=np.float32)
Q8_ROWS = (np.zeros((6, 544), dtype=np.uint8), "q8_0", (6, 512))
