"""Count the operations of the inner loop of the Metal kernels for one token: csrc/metal/dot.metal.

    python tests/sim/metal/count.py            operations for a codeword (8 weights of a row), format by format

clang makes LLVM's code of dot_tile for two rows of 256 columns, as Metal's compiler does, which is made of clang too.
What Apple's devices do for nothing is left out: a half that is read as a float, either half of a register, addresses.
Vectors of four are loaded at once. It is a count, no measurement: nobody has run it on a device.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "csrc" / "metal"))
from amalgamate import CSRC, METAL, Amalgamation  # noqa: E402

# Words of a row that to_second_half of lane.metal moves as they are
MOVES = {"Iq1S": 6, "Iq1M": 6, "Iq2Xxs": 8, "Iq2Xs": 5, "Iq2S": 10, "Iq3Xxs": 12, "Iq3S": 13}
CODEWORDS = 64  # of two rows
FREE = (
    *("fpext", "bitcast", "extractelement", "getelementptr", "insertelement", "shufflevector", "phi"),
    *("zext", "sext", "trunc", "br", "ret", "freeze", "addrspacecast"),
)
CODE = """
using namespace lutkern;
using namespace lutkern::metal_args;
using namespace lutkern::metal_kernels;
void two_rows(device const uchar* tiles, threadgroup const uint* table, threadgroup const uint4* staged, uint lane,
              thread float* out) {
  Dot<LK_WEIGHT> a;
  Dot<LK_WEIGHT> b;
  a.load_tile(tiles, 0, lane);
  b.load_tile(tiles, 1, lane);
  dot_tile(a, b, table, table, staged);
  out[0] = a.sum * a.scale();
  out[1] = b.sum * b.scale();
}
"""


def find_clang() -> str:
    """Return the name of a clang that can compile Metal text; RuntimeError where there is none."""
    for name in ("clang++-16", "clang++-17", "clang++-18", "clang++-19", "clang++-15", "clang++"):
        if shutil.which(name):
            return name
    raise RuntimeError("count: no clang++, expected one of version 15 or newer")


def code_of(block: str) -> list[str]:
    """Return the lines of LLVM's code for a format."""
    source = Amalgamation()
    source.add(CSRC / "formats" / "port.h")
    source.add(METAL / "dot.metal")
    text = "\n".join(source.lines).replace("#include <metal_stdlib>", "") + CODE
    text = re.sub(r"\b(half[24]|uint[24]|float[24]|ushort2)\(", r"lk_make<\1>(", text)
    flags = [
        *("-x", "c++", "-std=c++14", "--target=x86_64-linux-gnu", "-mavx512fp16", "-mavx512vl", "-O2", "-w"),
        *("-fno-vectorize", "-fno-slp-vectorize", "-fno-exceptions", "-ffp-contract=off", "-S", "-emit-llvm"),
        *("-D__METAL_VERSION__=240", "-DLK_METAL_CHECK", f"-DLK_WEIGHT={block}", "-isystem", str(HERE / "include")),
        *("-include", str(HERE / "include" / "metal_stdlib")),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "two_rows.cpp"
        path.write_text(text, encoding="ascii")
        made = subprocess.run([find_clang(), *flags, "-o", "-", str(path)], capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"count {block}: {made.stderr[:2000]}")
    function = re.search(r"^define[^\n]*two_rows[^\n]*\{\n(.*?)^\}", made.stdout, re.DOTALL | re.MULTILINE)
    if not function:
        raise RuntimeError(f"count {block}: clang made no function two_rows")
    return function[1].splitlines()


def upper_halves(lines: list[str]) -> set[str]:
    """Lines that shift by 16 only to read the upper half of a register."""
    found = set()
    for line in lines:
        match = re.match(r"\s+(%\S+) = lshr i32 %\S+, 16", line)
        if match:
            name = re.compile(re.escape(match[1]) + r"(?![\w.])")
            uses = [other for other in lines if name.search(other) and other is not line]
            if all("= trunc i32 " in use for use in uses):
                found.add(line)
    return found


def operation(line: str) -> str:
    """Return what a line does, loads with their type and address space."""
    match = re.match(r"\s+(?:%\S+ = )?(?:tail |notail )?(\w+)", line)
    if not match:
        return ""
    if match[1] == "call":
        called = re.search(r"@([\w.]+)", line)
        return called[1] if called else "call"
    if match[1] == "load":
        kind = re.search(r"load ([^,]+), \S+ addrspace\((\d)\)", line)
        return f"load {kind[1]} {kind[2]}" if kind else "load"
    return match[1]


def count(block: str) -> Counter[str]:
    """Return the operations for two rows of 256 columns: the loop runs twice, what is around it once."""
    lines = code_of(block)
    free = upper_halves(lines)
    parts: list[list[str]] = [[]]
    for line in lines:
        if re.match(r"[\w.]+:", line):
            parts.append([])
        parts[-1].append(line)
    loop = max(parts, key=len)
    counts: Counter[str] = Counter()
    for part in parts:
        for line in part:
            name = operation(line)
            if name and name not in FREE and line not in free and not name.startswith("llvm.lifetime"):
                counts[name] += 2 if part is loop else 1
    # Neighbours that a device loads at once: words of tiles by four, the two words of an entry of iq2
    words = counts.pop("load i32 1", 0)
    counts["load of tiles"] = -(-words // 4)
    if block.startswith("Iq2"):
        counts["load i32 3"] //= 2
    counts["move"] = 2 * MOVES[block]
    return counts


def per_codeword(block: str) -> float:
    """Return the operations for a codeword."""
    return sum(count(block).values()) / CODEWORDS


def main() -> int:
    """Print the table; return the exit status."""
    for block in MOVES:
        counts = count(block)
        each = "  ".join(f"{name} {n / CODEWORDS:.2f}" for name, n in counts.most_common() if n >= CODEWORDS // 4)
        print(f"{block:7} {sum(counts.values()) / CODEWORDS:5.1f}   {each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
