"""Count operations of the inner loops of the Metal kernels: csrc/metal/dot.metal for one token, panels.metal for more.

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
NAMES = """
using namespace lutkern;
using namespace lutkern::metal_args;
using namespace lutkern::metal_kernels;
"""
CODE = """
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
UNPACK = """
void unpack(const thread Lane<LK_WEIGHT>& from, threadgroup const uint* table, thread Group* to) {
  const Lane<LK_WEIGHT> row = from;
  Group group[8];
  unpack_at<LK_WEIGHT, 0>(row, table, group[0]);
  unpack_at<LK_WEIGHT, 1>(row, table, group[1]);
  unpack_at<LK_WEIGHT, 2>(row, table, group[2]);
  unpack_at<LK_WEIGHT, 3>(row, table, group[3]);
  unpack_at<LK_WEIGHT, 4>(row, table, group[4]);
  unpack_at<LK_WEIGHT, 5>(row, table, group[5]);
  unpack_at<LK_WEIGHT, 6>(row, table, group[6]);
  unpack_at<LK_WEIGHT, 7>(row, table, group[7]);
  for (int i = 0; i < 8; ++i) to[i] = group[i];
}
"""
FEW = """
void few(const thread Group& from, float unit, threadgroup const uint4* x, thread float* acc) {
  const Group group = from;
  multiply_few<16, LK_FEW>(group, unit, x, acc);
}
"""


def find_clang() -> str:
    """Return the name of a clang that can compile Metal text; RuntimeError where there is none."""
    for name in ("clang++-16", "clang++-17", "clang++-18", "clang++-19", "clang++-15", "clang++"):
        if shutil.which(name):
            return name
    raise RuntimeError("count: no clang++, expected one of version 15 or newer")


def code_of(block: str, code: str = CODE, file: str = "dot.metal", tokens: int = 0) -> list[str]:
    """Return the lines of LLVM's code of a function for a format."""
    source = Amalgamation()
    source.add(CSRC / "formats" / "port.h")
    source.add(METAL / file)
    text = "\n".join(source.lines).replace("#include <metal_stdlib>", "") + NAMES + code
    text = re.sub(r"\b(half[24]|uint[24]|float[24]|ushort2)\(", r"lk_make<\1>(", text)
    flags = [
        *("-x", "c++", "-std=c++14", "--target=x86_64-linux-gnu", "-mavx512fp16", "-mavx512vl", "-O2", "-w"),
        *("-fno-vectorize", "-fno-slp-vectorize", "-fno-exceptions", "-ffp-contract=off", "-S", "-emit-llvm"),
        *("-D__METAL_VERSION__=240", "-DLK_METAL_CHECK", f"-DLK_WEIGHT={block}", f"-DLK_FEW={tokens}"),
        *("-isystem", str(HERE / "include")),
        *("-include", str(HERE / "include" / "metal_stdlib")),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "two_rows.cpp"
        path.write_text(text, encoding="ascii")
        made = subprocess.run([find_clang(), *flags, "-o", "-", str(path)], capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"count {block}: {made.stderr[:2000]}")
    name = code.split("(")[0].split()[-1]
    function = re.search(rf"^define[^\n]*{name}[^\n]*\{{\n(.*?)^\}}", made.stdout, re.DOTALL | re.MULTILINE)
    if not function:
        raise RuntimeError(f"count {block}: clang made no function {name}")
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


def straight(lines: list[str]) -> int:
    """Return the operations of a function without loops, its variables in registers, conversions to half free."""
    free = upper_halves(lines)
    names = [operation(line) for line in lines if line not in free]
    kept = [name for name in names if name and name not in (*FREE, "load", "store", "fptrunc")]
    return sum(not name.startswith(("llvm.lifetime", "llvm.memcpy")) for name in kept)


def unpacking(block: str) -> float:
    """Return the operations that unpack 32 columns of a row: unpack_at of panels.metal."""
    lines = code_of(block, UNPACK, "panels.metal")
    entries = sum(operation(line) == "load i32 3" for line in lines)  # the two words of an entry of iq2 are one load
    return (straight(lines) - (entries // 2 if block.startswith("Iq2") else 0)) / 8


def few_tokens(tokens: int) -> int:
    """Return the operations for 32 columns of a row and 2 or 4 tokens: multiply_few of panels.metal."""
    return straight(code_of("Iq1M", FEW, "panels.metal", tokens))


def main() -> int:
    """Print the tables; return the exit status."""
    for block in MOVES:
        counts = count(block)
        each = "  ".join(f"{name} {n / CODEWORDS:.2f}" for name, n in counts.most_common() if n >= CODEWORDS // 4)
        print(f"{block:7} {sum(counts.values()) / CODEWORDS:5.1f}   {each}")
    print("32 columns, several tokens: unpack ", *(f"{block} {unpacking(block):.0f}" for block in MOVES))
    print(f"then 2 tokens {few_tokens(2)}, 4 tokens {few_tokens(4)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
