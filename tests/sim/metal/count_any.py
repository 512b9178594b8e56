"""Count the operations of the inner loop of csrc/metal/any.metal: int8 activations, one token.

    (cd tests; python -m sim.metal.count_any)            operations for 8 columns of blocks, format by format

As count.py does it, for one unit of 16 columns. Both sides of branches count. Vectors count as their numbers, loads as
one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

from .count import CSRC, FREE, HERE, METAL, Amalgamation, find_clang, operation, upper_halves

LOOP = 4  # operations that step and compare
CODE = """
using namespace lutkern;
using namespace lutkern::metal_args;
using namespace lutkern::metal_kernels;
void unit(constant WeightArgs& w, const device uint8_t* matrix, int row, uint n, Staged x, int at, thread float* acc) {
  const Unit loaded = Units<LK_WEIGHT>::load(w, matrix, row, n);
  dot_integers<LK_WEIGHT>(loaded, x, at, 1, acc);
}
"""


def code_of(block: str) -> list[str]:
    """Return the lines of LLVM's code for a format."""
    source = Amalgamation()
    source.add(CSRC / "formats" / "port.h")
    source.add(METAL / "any.metal")
    text = "\n".join(source.lines).replace("#include <metal_stdlib>", "")
    text = re.sub(r"#if defined\(LK_(WEIGHT|UP)\)", "#if 0", text) + CODE
    text = re.sub(r"\b(half[24]|uint[24]|float[24]|uchar4)\(", r"lk_make<\1>(", text)
    flags = [
        *("-x", "c++", "-std=c++14", "--target=x86_64-linux-gnu", "-mavx512fp16", "-mavx512vl", "-O2", "-w"),
        *("-fno-vectorize", "-fno-slp-vectorize", "-fno-exceptions", "-ffp-contract=off", "-S", "-emit-llvm"),
        *("-mllvm", "-inline-threshold=1000000", "-D__METAL_VERSION__=240", "-DLK_METAL_CHECK"),
        *(f"-DLK_WEIGHT={block}", "-isystem", str(HERE / "include"), "-include", str(HERE / "include/metal_stdlib")),
    ]
    made = subprocess.run(
        [find_clang(), *flags, "-o", "-", "-"], input=text, capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise RuntimeError(f"count {block}: {made.stderr[:2000]}")
    function = re.search(r"^define[^\n]*unit[^\n]*\{\n(.*?)^\}", made.stdout, re.DOTALL | re.MULTILINE)
    if not function:
        raise RuntimeError(f"count {block}: clang made no function unit")
    return function[1].splitlines()


def count(block: str) -> Counter[str]:
    """Return the operations for 16 columns."""
    lines = code_of(block)
    free = upper_halves(lines)
    counts: Counter[str] = Counter(loop=LOOP)
    for line in lines:
        name = operation(line)
        if not name or name in FREE or line in free or name.startswith(("llvm.lifetime", "alloca")):
            continue
        vector = re.search(r"<(\d+) x ", line)
        counts[name] += int(vector[1]) if vector and not name.startswith(("load", "store")) else 1
    # Neighbouring bytes that a device loads at once
    counts["load of blocks"] = -(-counts.pop("load i8 1", 0) // 4)
    return counts


def per_codeword(block: str) -> float:
    """Return the operations for 8 columns."""
    return sum(count(block).values()) / 2


def main() -> int:
    """Print the table; return the exit status."""
    for block in ("Q80", "Q40", "Q4K", "Q5K", "Q6K", "Mxfp4", "Iq4Xs"):
        print(f"{block:6} {per_codeword(block):5.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
