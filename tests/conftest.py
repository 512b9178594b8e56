"""The axes of the tests: formats, layouts, instruction sets, shapes. Nothing else lists them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import lutkern
from lutkern.places import GPUS
from lutkern.tensor import LAYOUTS


def fake_driver(name: str) -> Path | None:
    """Return a driver that runs kernels on the CPU: of LUTKERN_SIM_DIR, else of the newest build here."""
    folder = os.environ.get("LUTKERN_SIM_DIR")
    if folder is not None:
        return Path(folder) / name
    found = Path(__file__).parents[1].glob(f"build/*/tests/sim/{name}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


# Before the first call of a GPU: the tests run on simulated devices, if no driver is named.
if "LUTKERN_LIBCUDA" not in os.environ and (driver := fake_driver("libcuda_fake.so")) is not None:
    os.environ["LUTKERN_LIBCUDA"] = str(driver)
    os.environ.setdefault("LUTKERN_FAKE_CUDA", "devices=2")
if "LUTKERN_OBJC" not in os.environ and (runtime := fake_driver("metal/fake/libobjc_fake.so")) is not None:
    os.environ["LUTKERN_OBJC"] = str(runtime)
    os.environ.setdefault("LUTKERN_FAKE_METAL", "devices=2")

settings.register_profile("default", max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci-fuzz", max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

FORMATS = lutkern.formats()
PACKABLE = tuple(f for f in FORMATS if f.can_pack)
INTEGER = tuple(f for f in FORMATS if not f.is_float)

# rows, cols: why
SHAPES = {
    (1, 256): "one row, one block",
    (3, 512): "rows that fill no panel of four",
    (4, 768): "one whole panel",
    (5, 100): "less than a block, padded",
    (7, 288): "a block and a bit: whole blocks of 32, padding for 256",
    (33, 576): "SmolLM2's hidden size, no multiple of 256",
    (2, 1536): "several blocks",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    axes = {
        "fmt": FORMATS,
        "packable": PACKABLE,
        "integer": INTEGER,
        "layout": list(LAYOUTS),
        "isa": lutkern.isas(),
        "shape": list(SHAPES),
        "gpu": list(GPUS),
    }
    for name, values in axes.items():
        if name in metafunc.fixturenames:
            indirect = name in ("isa", "gpu")
            metafunc.parametrize(
                name, values, ids=lambda v: "x".join(map(str, v)) if isinstance(v, tuple) else str(v), indirect=indirect
            )


def need_gpu(name: str) -> None:
    """Need a GPU, or the simulated one. Where LUTKERN_SIM_DIR says that there is one, its absence is a failure."""
    absent = lutkern._core.device_absent(GPUS[name])
    if absent is not None and "LUTKERN_SIM_DIR" in os.environ:
        pytest.fail(f"no GPU: {absent}")
    elif absent is not None:
        pytest.skip(f"no GPU: {absent}")


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> str:
    """Run the test on a GPU of each kind."""
    name: str = request.param
    need_gpu(name)
    return name


@pytest.fixture(scope="session")
def cuda() -> None:
    """Need a CUDA device."""
    need_gpu("cuda")


@pytest.fixture(scope="session")
def metal() -> None:
    """Need a Metal device."""
    need_gpu("metal")


@pytest.fixture(scope="session")
def fake_metal(metal: None) -> ctypes.CDLL:
    """Need the simulated device of tests/sim/metal/fake, and return its library: fake_metal.h."""
    if "fake" not in os.environ.get("LUTKERN_OBJC", ""):
        pytest.skip("this Metal is the real one")
    library = ctypes.CDLL(os.environ["LUTKERN_OBJC"])
    library.fake_metal_count.argtypes = [ctypes.c_char_p]
    library.fake_metal_count.restype = ctypes.c_int64
    return library


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with the kernels of one instruction set."""
    lutkern.use_isa(request.param)
    yield request.param
    lutkern.use_isa(None)


@pytest.fixture
def all_threads() -> Iterator[None]:
    """Put the number of threads back after the test."""
    before = lutkern.num_threads()
    yield
    lutkern.set_num_threads(before)
