"""Every Metal kernel under AddressSanitizer and UndefinedBehaviorSanitizer; planted errors are found.

The sanitizers' runtime is preloaded into a process of its own; buffers of a launch are allocations there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metal_launch import kernels

TESTS = Path(__file__).resolve().parent
# Of UndefinedBehaviorSanitizer what text without null pointers needs: the rest takes long to compile.
SANITIZERS = "address,alignment,bounds,float-cast-overflow,integer-divide-by-zero,shift,signed-integer-overflow"
HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
KERNEL = HEAD + "kernel void f(device {type}* y [[buffer(1)]], uint t [[thread_index_in_threadgroup]]) {{\n{body}\n}}\n"


def clang() -> str:
    """Return the compiler that the simulator takes."""
    for name in ["clang++-16", *(f"clang++-{n}" for n in range(22, 14, -1)), "clang++"]:
        try:
            subprocess.run([name, "--version"], capture_output=True, check=True)
        except FileNotFoundError:
            continue
        return name
    raise FileNotFoundError("clang++ (Debian: clang-16, libclang-rt-16-dev)")


def sanitized(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the runtime of the sanitizers, and texts compiled with them."""
    machine = os.uname().machine
    runtime = [clang(), f"-print-file-name=libclang_rt.asan-{machine}.so"]
    library = subprocess.run(runtime, capture_output=True, text=True, check=True).stdout.strip()
    assert os.path.isabs(library), f"{library} is not there (Debian: libclang-rt-16-dev)"
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        "LUTKERN_SIM_SANITIZE": SANITIZERS,
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300)


def test_every_kernel_runs_under_sanitizers():
    found = sanitized(str(TESTS / "metal_small.py"))
    assert found.returncode == 0, found.stderr[-3000:]
    assert sorted(found.stdout.split()) == sorted(kernels())


@pytest.mark.parametrize(
    ("kind", "body", "error"),
    [
        ("float", "y[t + 1u] = 0.0f;", r"AddressSanitizer: heap-buffer-overflow .*\n.*WRITE of size 4"),
        ("float", "y[t] = (y - 1)[t];", r"AddressSanitizer: use-after-poison .*\n.*READ of size 4"),
        (
            "float",
            "threadgroup float a[31];\nthreadgroup float* b = a;\nb[t] = 0.0f;\ny[t] = b[t];",
            r"AddressSanitizer: use-after-poison .*\n.*WRITE of size 4",
        ),
        ("float", "float a[4];\na[t] = y[t];\ny[t] = a[t ^ 1u];", r"out of bounds for type 'float\[4\]'"),
        ("int", "y[t] = 2147483647 + y[t];", "signed integer overflow"),
        ("int", "y[t] = 1 << (31 + y[t]);", "shift exponent 32 is too large"),
        ("float", "y[t] = float(uint(y[t] * -8.0f));", "is outside the range of representable values"),
    ],
    ids=["past_the_end", "before", "threadgroup", "local_array", "overflow", "shift", "conversion"],
)
def test_planted_errors_are_found(kind, body, error):
    program = "import sys, numpy as np\nsys.path.insert(0, sys.argv[1])\nfrom sim.metal.run import Library\n"
    program += f"Library(sys.argv[2]).launch('f', b'', [np.ones(32, np.{kind}32)], (1,), 32)\nprint('passed')"
    found = sanitized("-c", program, str(TESTS), KERNEL.format(type=kind, body=body))
    assert found.returncode != 0
    assert re.search(error, found.stderr), found.stdout + found.stderr[-3000:]
