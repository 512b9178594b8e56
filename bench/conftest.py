"""What the suites share: options, shapes, contestants, the weights of the running test, what is noted of each."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import lutkern
from lutkern.bench import MODELS
from lutkern.bench.bandwidth import Reader
from lutkern.bench.ggml import load
from lutkern.bench.rounds import clock_of, take_turns
from lutkern.bench.weights import codebook_formats
from lutkern.bench.work import Layer, Matrices
from lutkern.tensor import LAYOUTS

READ_SECONDS = 0.5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model", action="append", choices=list(MODELS), help="shapes of this model, again for another")
    parser.addoption(
        "--format", action="append", help="this format, again for another (default: those with a codebook)"
    )
    parser.addoption("--threads", type=int, default=1, help="threads of lutkern and of its rivals")
    parser.addoption("--megabytes", type=int, default=256, help="weights to go through")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    formats = option("--format") or [fmt.name for fmt in codebook_formats()]
    shapes = {}
    for model in option("--model") or ["glm-4.7"]:
        rows, cols = MODELS[model]
        shapes[f"{model}-gate"] = (rows, cols)
        shapes[f"{model}-down"] = (cols, rows)
    if "shape" in metafunc.fixturenames:
        names = [name for name in shapes if "layer" not in metafunc.fixturenames or name.endswith("-gate")]
        metafunc.parametrize("shape", [shapes[name] for name in names], ids=names)
    if "fmt" in metafunc.fixturenames:
        metafunc.parametrize("fmt", formats)
    if "who" in metafunc.fixturenames:
        rivals = metafunc.module.RIVALS  # what a suite sets beside lutkern
        metafunc.parametrize("who", [*LAYOUTS, *rivals])


@pytest.fixture(scope="session")
def n_bytes(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--megabytes")) << 20


@pytest.fixture(scope="session")
def threads(pytestconfig: pytest.Config) -> Iterator[int]:
    before = lutkern.num_threads()
    lutkern.set_num_threads(pytestconfig.getoption("--threads"))
    yield lutkern.num_threads()
    lutkern.set_num_threads(before)


@pytest.fixture(scope="session")
def bandwidth(threads: int, n_bytes: int) -> float:
    """Return the bytes per second that memory gives to as many threads."""
    with closing(Reader(threads, n_bytes)) as reader:
        (times,) = take_turns([reader], READ_SECONDS, clock_of("wall"))
        return reader.bytes_per_step / float(np.median(times))


_made: dict[Any, Any] = {}  # the weights of the test before: neighbours share them, two do not fit into every memory


def _weights(kind: type[Matrices] | type[Layer], fmt: str, shape: tuple[int, int], n_bytes: int) -> Any:
    key = (kind, fmt, shape)
    if key not in _made:
        _made.clear()
        gc.collect()
        (found,) = (f for f in lutkern.formats() if f.name == fmt)
        _made[key] = kind(found, *shape, n_bytes, load())
    return _made[key]


@pytest.fixture
def matrices(fmt: str, shape: tuple[int, int], n_bytes: int) -> Matrices:
    return _weights(Matrices, fmt, shape, n_bytes)


@pytest.fixture
def layer(fmt: str, shape: tuple[int, int], n_bytes: int) -> Layer:
    return _weights(Layer, fmt, shape, n_bytes)
