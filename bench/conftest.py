"""What the suites share: the options, the rival, weights that do not fit into a cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import lutkern
from rivals import Ggml
from shapes import BYTES_TO_ROTATE, SHAPES


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shape", default="glm-4.7", choices=list(SHAPES), help="expert shape of this model")
    parser.addoption("--threads", type=int, default=1, help="threads of lutkern and of its rival")
    parser.addoption("--megabytes", type=int, default=BYTES_TO_ROTATE >> 20, help="packed weights to rotate over")


@pytest.fixture(scope="session")
def ggml() -> Ggml:
    found = Ggml.load()
    if found is None:
        pytest.skip("libggml-python is not installed")
    return found


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = lutkern.num_threads()
    lutkern.set_num_threads(request.config.getoption("--threads"))
    yield lutkern.num_threads()
    lutkern.set_num_threads(before)


@pytest.fixture
def weights(request: pytest.FixtureRequest, fmt: str) -> lutkern.PackedTensor:
    """Return (experts, rows, cols) of random blocks, with more bytes than a cache has."""
    rows, cols = SHAPES[request.config.getoption("--shape")]
    found = next(f for f in lutkern.formats() if f.name == fmt)
    one = rows * found.row_bytes(cols)
    experts = max(2, (request.config.getoption("--megabytes") << 20) // one)
    small = np.random.default_rng(0).standard_normal((16, cols), np.float32)
    rows_of_blocks = lutkern.pack(small, fmt).blocks()
    blocks = np.tile(rows_of_blocks, (experts * rows // 16, 1)).reshape(experts, rows, -1)
    return lutkern.PackedTensor.from_blocks(blocks, fmt, (experts, rows, cols))
