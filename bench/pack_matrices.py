"""The test set of packing: matrices of 1536 columns, drawn ones and those of two real models, each with uniform
importance and with another one (measured for the models, lognormal for the drawn ones).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import lutkern
from lutkern.demo.evaluate import read_text
from lutkern.demo.fetch import cache_folder, fetch_model
from lutkern.demo.llama import DenseFfn, Llama
from lutkern.demo.tokenizer import Tokenizer
from minilm import LAYERS, MiniLm

Floats = npt.NDArray[np.float32]

COLS = 1536
ROWS = 96


class Case(NamedTuple):
    """w (rows, cols), importance (cols,)."""

    matrix: str
    importance_name: str
    w: Floats
    importance: Floats


def cases() -> Iterator[Case]:
    """Yield every matrix with every importance."""
    for matrix, name, w, importance in (*_drawn(), *_minilm(), *_smollm2()):
        yield Case(matrix, "uniform", w, np.ones(COLS, np.float32))
        yield Case(matrix, name, w, importance)


def _drawn() -> Iterator[tuple[str, str, Floats, Floats]]:
    rng = np.random.default_rng(0)
    lognormal = rng.lognormal(0, 1, COLS).astype(np.float32)
    gaussian = 0.02 * rng.standard_normal((ROWS, COLS))
    columns = np.where(rng.random(COLS) < 0.01, 12.0, 1.0) * rng.lognormal(0, 0.3, COLS)
    for name, w in (
        ("gaussian", gaussian),
        ("laplace", 0.02 * rng.laplace(size=(ROWS, COLS))),
        ("outlier columns", gaussian * columns),
    ):
        yield name, "lognormal", w.astype(np.float32), lognormal


def _spread(w: Floats) -> Floats:
    return np.ascontiguousarray(w[:: max(1, len(w) // (ROWS // 2))][: ROWS // 2])


def _minilm() -> Iterator[tuple[str, str, Floats, Floats]]:
    model = MiniLm()
    importance = model.importance()
    for layer in (0, LAYERS - 1):
        yield f"MiniLM {layer}", "measured", _spread(model.down(layer)), importance[layer]


def _smollm2() -> Iterator[tuple[str, str, Floats, Floats]]:
    with lutkern.open_gguf(fetch_model(cache_folder(), print)) as file:
        model = Llama(file)
        dense = DenseFfn(file, model.config)
        text = read_text(Tokenizer(file.metadata), calibration=2, evaluation=1, tokens=512)
    collected = lutkern.Importance()

    def watched(layer: int, x: Floats) -> Floats:
        inner = dense.inner(layer, x)
        collected.update(str(layer), inner)
        return np.asarray(inner @ dense.layers[layer][2].T)

    for window in text.calibration:
        model.hidden(window, watched)
    for layer in (1, 15, 29):
        w = dense.layers[layer][2]
        yield f"SmolLM2 {layer}", "measured", _spread(w), collected.for_weight(str(layer), w.shape)
