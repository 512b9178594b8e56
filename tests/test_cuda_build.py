"""How the CUDA kernels get into a build: what CMake says to each choice, and a library that was built without them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sim.ptx.toolkit import find_nvcc

ROOT = Path(__file__).parents[1]
IN_CI = os.environ.get("CI") == "true"
needs_cmake = pytest.mark.skipif(
    not IN_CI and (shutil.which("cmake") is None or shutil.which("ninja") is None), reason="needs cmake and ninja"
)


def configure(folder: Path, *options: str) -> tuple[int, str]:
    """Configure the library; what became of it, and what was said of the kernels on one line."""
    command = ["cmake", "-S", str(ROOT), "-B", str(folder / "build"), "-G", "Ninja", "-DLUTKERN_PYTHON=OFF"]
    result = subprocess.run(
        [*command, *(f"-D{o}" for o in options)], capture_output=True, text=True, timeout=300, check=False
    )
    words = " ".join((result.stdout + result.stderr).split())
    return result.returncode, words[
        words.find("CUDA kernels:") if result.returncode == 0 else words.find("LUTKERN_CUDA is") :
    ]


def nvcc_script(folder: Path, text: str) -> str:
    """Return the option that names an nvcc that is a shell script."""
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return f"LUTKERN_NVCC={path}"


@needs_cmake
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["LUTKERN_CUDA=OFF"], "placeholder (LUTKERN_CUDA is OFF)"),
        (["LUTKERN_NVCC=/no/such/nvcc"], "placeholder (/no/such/nvcc does not run)"),
        (
            ["LUTKERN_TESTS=ON"],
            "placeholder (a build of the native tests, whose kernels run on the CPU; LUTKERN_CUDA=ON)",
        ),
    ],
    ids=["off", "auto without nvcc", "tests"],
)
def test_build_without_kernels_says_why(options: list[str], said: str, tmp_path: Path) -> None:
    code, text = configure(tmp_path, *options)
    assert code == 0, text
    assert text.startswith(f"CUDA kernels: {said} ")


@needs_cmake
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "does not run"),
        ("echo 'Cuda compilation tools, release 11.8, V11.8.89'", "is 11.8.89, needed is 12.8"),
        (
            '[ "$1" = --version ] && echo "compilation tools, release 13.0, V13.0.88" && exit; echo no parts; exit 1',
            "compiles nothing: no parts",
        ),
    ],
    ids=["broken", "old", "incomplete"],
)
def test_kernels_that_are_wished_for_need_a_working_nvcc(script: str, reason: str, tmp_path: Path) -> None:
    option = nvcc_script(tmp_path, script)
    code, text = configure(tmp_path, "LUTKERN_CUDA=ON", option)
    assert code != 0
    assert text.startswith(
        f"LUTKERN_CUDA is ON, but {option.split('=')[1]} {reason}. A toolkit of 12.8 or newer is needed"
    )
    code, text = configure(tmp_path, "LUTKERN_CUDA=AUTO", option)
    assert code == 0, text
    assert text.startswith(f"CUDA kernels: placeholder ({option.split('=')[1]} {reason}) ")


@needs_cmake
@pytest.mark.skipif(not IN_CI and find_nvcc() is None, reason="no nvcc: see CONTRIBUTING.md")
def test_build_with_kernels_says_for_what(tmp_path: Path) -> None:
    code, text = configure(tmp_path, "LUTKERN_CUDA=ON", "LUTKERN_CUDA_ARCHITECTURES=90a")
    assert code == 0, text
    assert text.startswith("CUDA kernels: nvcc 1")
    assert ", for 90a and PTX for 75 " in text


def test_extra_and_isolated_build_take_the_same_toolkit() -> None:
    tomllib: Any = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extra = [p.split(";")[0].strip() for p in project["project"]["optional-dependencies"]["cuda"]]
    (override,) = project["tool"]["scikit-build"]["overrides"]
    assert override["if"] == {"env": {"LUTKERN_CUDA": True}}
    assert override["cmake"]["define"] == {"LUTKERN_CUDA": "ON"}
    assert override["build"]["requires"] == extra
    assert all("==13.0." in package for package in extra)


# ---- a library without kernels ----

SHIM = """
#include "cuda/device.h"
#include "cuda/image.h"
extern "C" const char* absent() { return lutkern::cuda::no_devices(); }
extern "C" bool real() { return lutkern::cuda::kImageReal; }
"""
ASK = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.absent.restype, library.real.restype = ctypes.c_char_p, ctypes.c_bool
print(library.real(), library.absent())
"""


@pytest.mark.skipif(
    "LUTKERN_SIM_DIR" not in os.environ and not IN_CI, reason="needs LUTKERN_SIM_DIR, the simulated GPU"
)
def test_device_is_absent_where_nvcc_was(tmp_path: Path) -> None:
    cuda = ROOT / "csrc" / "cuda"
    shim, library = tmp_path / "shim.cpp", tmp_path / "libshim.so"
    shim.write_text(SHIM, encoding="utf-8")
    parts = [str(cuda / name) for name in ("device.cpp", "driver.cpp", "image.cpp")]
    command = [
        "c++",
        "-std=c++17",
        "-O0",
        "-fPIC",
        "-shared",
        "-I",
        str(ROOT / "csrc"),
        str(shim),
        *parts,
        "-ldl",
        "-pthread",
    ]
    subprocess.run([*command, "-o", str(library)], check=True, timeout=300)
    # A driver is found, so that what is missing is the kernels.
    driver = tmp_path / "libcuda.so.1"
    driver.symlink_to(Path(os.environ["LUTKERN_SIM_DIR"], "libcuda_fake.so").resolve())
    paths = f"{tmp_path}:{driver.resolve().parent}"
    environment = {**os.environ, "LD_LIBRARY_PATH": paths}
    environment.pop("LUTKERN_LIBCUDA", None)
    said = subprocess.run(
        [sys.executable, "-c", ASK, str(library)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert said.stdout == "False b'this build has no CUDA kernels: nvcc was not found when it was made'\n"
