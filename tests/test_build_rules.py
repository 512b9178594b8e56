"""The rules that hold the native parts apart, and that their checkers see a rule broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lutkern

TESTS = Path(__file__).parent
ROOT = TESTS.parent
CSRC = ROOT / "csrc"
SEALED = """namespace lutkern {
struct BlockKernels { int entry; };
extern const BlockKernels kFakeKernels;
%s
extern const BlockKernels kFakeKernels = {%s};
}
"""


def check(script: str, *arguments: str | Path) -> tuple[int, str]:
    command = [sys.executable, str(TESTS / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.stderr == ""
    return result.returncode, result.stdout


# ---- who includes whom ----


def test_includes_of_the_library() -> None:
    assert check("check_includes.py") == (0, "includes: every rule is kept\n")


@pytest.mark.parametrize(
    ("file", "line", "problem"),
    [
        ("formats/q2_k.h", '#include "../tensor.h"', "but formats may include only: formats"),
        (
            "pack/pack.h",
            '#include "../cpu/kernels.h"',
            "but pack may include only: formats, once.h, pack, parallel.h, tensor.h",
        ),
        (
            "cpu/threads.h",
            '#  include "../lutkern.h"',
            "but cpu may include only: cpu, formats, once.h, parallel.h, tensor.h, tiles",
        ),
        ("bindings/module.cpp", '#include "../tensor.h"', "but bindings may include only: bindings, lutkern.h"),
        ("lutkern.h", '#include "tensor.h"', "but lutkern.h may include only: nothing of ours"),
        ("api.cpp", "#include <pybind11/numpy.h>", "which belongs into bindings/"),
        ("cpu/operations.cpp", "#include <Python.h>", "which belongs into bindings/"),
        ("cpu/operations.cpp", "#include <immintrin.h>", "which belongs into a file of cpu/ with a table of kernels"),
        ("formats/port.h", "#include <arm_neon.h>", "which belongs into a file of cpu/ with a table of kernels"),
        (
            "cpu/scalar.cpp",
            "#include <vector>",
            "but a file with a table of kernels may include only intrinsics and our own headers",
        ),
        ("pack/packer.cpp", '#include "nowhere.h"', "which is no file of csrc/ beside it"),
        ("fast/gemv.cpp", '#include "../tensor.h"', "but no rule names fast"),
        (
            "cuda/driver.h",
            '#include "../cpu/kernels.h"',
            "but cuda may include only: backend.h, cuda, formats, gpu, once.h, parallel.h, tensor.h",
        ),
        ("cuda/driver.h", '#include "cuda_spelling.h"', "which is no file of csrc/ beside it"),
        ("cuda/matvec.cuh", "#include <cuda_fp16.h>", "which is the CUDA toolkit's"),
        ("cuda/driver.cpp", "#include <cuda.h>", "which is the CUDA toolkit's"),
        ("metal/new.metal", "#include <string.h>", "which is not Metal's"),
        ("metal/plan.h", "#include <metal_stdlib>", "which belongs into a .metal file, or into formats/port.h"),
        (
            "metal/new.metal",
            '#include "../cpu/kernels.h"',
            "but metal may include only: backend.h, formats, gpu, metal, once.h, parallel.h, tensor.h",
        ),
    ],
)
def test_broken_include_is_reported(file: str, line: str, problem: str, tmp_path: Path) -> None:
    tree = tmp_path / "csrc"
    shutil.copytree(CSRC, tree)
    path = tree / file
    path.parent.mkdir(exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{line}\n{before}", encoding="utf-8")
    name = line.split('"')[1] if '"' in line else line.split("<")[1].rstrip(">")
    assert check("check_includes.py", tree) == (1, f"{file}:1: includes {name}, {problem}\n")


# ---- objects of one instruction set ----


def compile_object(folder: Path, source: str) -> None:
    """Leave a build folder behind with one object of csrc/cpu/ and the command that made it."""
    compiler = shutil.which("c++")
    if compiler is None or shutil.which("nm") is None:
        pytest.skip("needs c++ and nm")
    path = folder / "csrc" / "cpu" / "fake.cpp"
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    flags = ["-mavx2"] if os.uname().machine in ("x86_64", "amd64") else []
    command = [compiler, "-std=c++17", "-O0", *flags, "-o", "fake.o", "-c", str(path)]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    entry = {"directory": str(folder), "file": str(path), "command": " ".join(command)}
    (folder / "compile_commands.json").write_text(json.dumps([entry]), encoding="utf-8")


@pytest.mark.parametrize(
    ("helper", "leak"),
    [
        ("inline int helper() { return 7; }", "lutkern::helper()"),
        ("template <class T> T helper() { return 7; } ", "int lutkern::helper<int>()"),
        ("int helper() { return 7; }", "lutkern::helper()"),
    ],
    ids=["inline", "template", "plain"],
)
def test_leaking_object_is_reported(helper: str, leak: str, tmp_path: Path) -> None:
    call = "helper<int>()" if "template" in helper else "helper()"
    compile_object(tmp_path, SEALED % (helper, call))
    assert check("native/check_sealed.py", tmp_path) == (1, f"fake.o: leaks {leak}\n")


def test_sealed_object_passes(tmp_path: Path) -> None:
    compile_object(tmp_path, SEALED % ("namespace { inline int helper() { return 7; } }", "helper()"))
    assert check("native/check_sealed.py", tmp_path) == (0, "fake.o: sealed\n")


def test_build_without_instruction_sets_is_reported(tmp_path: Path) -> None:
    (tmp_path / "compile_commands.json").write_text("[]", encoding="utf-8")
    assert check("native/check_sealed.py", tmp_path) == (1, f"{tmp_path}: no object of an instruction set\n")


# ---- the shared library ----


def test_shared_library_exports_the_c_api_and_nothing_else() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm")
    command = [nm, "-D", "--defined-only", lutkern.get_library()]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    exported = {line.split()[2] for line in output.splitlines()}
    header = Path(lutkern.get_include(), "lutkern.h").read_text(encoding="utf-8")
    declared = {word for word in header.replace("(", " ( ").split() if word.startswith("lutkern_")}
    assert "lutkern_matvec" in exported
    assert exported <= declared


# ---- presets ----


def test_presets_are_told_and_whole() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    presets = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))["configurePresets"]
    assert {"emulated", "aarch64", "macos"} <= {preset["name"] for preset in presets}
    for preset in presets:
        assert f"cmake --preset {preset['name']} " in text
        toolchain = preset.get("toolchainFile", "${sourceDir}")
        assert Path(toolchain.replace("${sourceDir}", str(ROOT))).exists()


def test_the_compiler_for_macos(tmp_path: Path) -> None:
    """What zig does not know is said in its words."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake")
    zig = tmp_path / "python-zig"
    zig.write_text('#!/bin/sh\necho "$@"\n')
    zig.chmod(0o755)
    command = [cmake, "-P", str(ROOT / "cmake" / "aarch64-macos.cmake")]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    flags = ["-O3", "-bundle", "-march=armv8.2-a+dotprod+i8mm", "a b.cpp"]
    for tool, target in (("c++", " -target aarch64-macos.13.0"), ("cc", " -target aarch64-macos.13.0"), ("ar", "")):
        told = subprocess.run([tmp_path / "zig" / tool, *flags], capture_output=True, text=True, check=True, timeout=60)
        assert told.stdout == f"{tool}{target} -O3 -dynamiclib -mcpu=generic+v8_2a+dotprod+i8mm a b.cpp\n"
