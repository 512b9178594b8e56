"""The installed header, shared library and CMake package, used from C without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lutkern

EXAMPLE = Path(__file__).parent / "native" / "example.c"
WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
CMAKE_PROJECT = """
cmake_minimum_required(VERSION 3.21)
project(example LANGUAGES C)
find_package(lutkern 0.1 CONFIG REQUIRED)
add_executable(example "{example}")
target_link_libraries(example PRIVATE lutkern::lutkern m)
"""


def tool(*names: str) -> str:
    """Return the path of the first program that is there, in PATH or beside the interpreter."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    found = next((program for name in names if (program := shutil.which(name, path=path))), None)
    if found is None:
        pytest.skip(f"needs one of: {', '.join(names)}")
    return found


def run(*command: str | Path) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def assert_rows_agree(output: str) -> None:
    assert output == f"lutkern {lutkern.__version__}, kernels {lutkern.isas()[0]}: 40 rows agree\n"


LOAD_AND_CLOSE = """
import _ctypes, ctypes, sys
class Tensor(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("layout", ctypes.c_int32), ("experts", ctypes.c_int64),
                ("rows", ctypes.c_int64), ("cols", ctypes.c_int64),
                ("data", ctypes.c_void_p), ("nbytes", ctypes.c_size_t), ("device", ctypes.c_int32)]
data = ctypes.create_string_buffer(34 * 16 * 1024)
out = (ctypes.c_float * (1024 * 512))()
weight = Tensor(8, 0, 1, 1024, 512, ctypes.addressof(data), len(data))
for _ in range(20):
    library = ctypes.CDLL(sys.argv[1])
    assert library.lutkern_set_num_threads(4) == 0
    assert library.lutkern_dequantize(ctypes.byref(weight), out, None) == 0
    _ctypes.dlclose(library._handle)
print("survived")
"""


@pytest.fixture(autouse=True)
def _no_choice_of_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUTKERN_ISA", raising=False)


def test_c_program_with_the_shared_library(tmp_path: Path) -> None:
    program = tmp_path / "example"
    library = lutkern.get_library()
    rpath = f"-Wl,-rpath,{os.path.dirname(library)}"
    run(
        tool("cc", "gcc", "clang"),
        "-std=c11",
        *WARNINGS,
        EXAMPLE,
        "-I",
        lutkern.get_include(),
        library,
        "-lm",
        rpath,
        "-o",
        program,
    )
    assert_rows_agree(run(program))


def test_a_host_may_close_the_library_while_its_threads_run(tmp_path: Path) -> None:
    library = shutil.copy(lutkern.get_library(), tmp_path)  # another file than the one that this process has open
    assert run(sys.executable, "-c", LOAD_AND_CLOSE, library) == "survived\n"


@pytest.mark.parametrize(("compiler", "standard", "suffix"), [("cc", "c11", "c"), ("c++", "c++17", "cpp")])
def test_header_alone(compiler: str, standard: str, suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"header.{suffix}"
    source.write_text("#include <lutkern.h>\n", encoding="utf-8")
    run(tool(compiler), f"-std={standard}", *WARNINGS, "-fsyntax-only", "-I", lutkern.get_include(), source)


@pytest.mark.parametrize("variable", ["lutkern_DIR", "CMAKE_PREFIX_PATH"])
def test_cmake_package(variable: str, tmp_path: Path) -> None:
    tool("cc", "gcc", "clang")
    cmake = tool("cmake")
    package = lutkern.get_cmake_dir() if variable == "lutkern_DIR" else os.path.dirname(lutkern.get_include())
    (tmp_path / "CMakeLists.txt").write_text(CMAKE_PROJECT.format(example=EXAMPLE.as_posix()), encoding="utf-8")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"] if shutil.which("make") is None else []
    build = tmp_path / "build"
    run(
        cmake,
        *generator,
        "-S",
        tmp_path,
        "-B",
        build,
        f"-D{variable}={package}",
        "-DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF",
    )
    run(cmake, "--build", build)
    assert_rows_agree(run(build / "example"))


def test_cmake_package_refuses_another_minor_version(tmp_path: Path) -> None:
    tool("cc", "gcc", "clang")
    cmake = tool("cmake")
    project = CMAKE_PROJECT.format(example=EXAMPLE.as_posix()).replace("lutkern 0.1", "lutkern 0.2")
    (tmp_path / "CMakeLists.txt").write_text(project, encoding="utf-8")
    command = [cmake, "-S", str(tmp_path), "-B", str(tmp_path / "build"), f"-Dlutkern_DIR={lutkern.get_cmake_dir()}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode != 0
    assert 'compatible with requested version "0.2"' in " ".join(result.stderr.split())
