"""Executed PTX instructions for each codeword (8 weights of a row) of the loops over weights.

    python tests/sim/ptx/count.py                       all matvec, moe_up and moe_down kernels
    python tests/sim/ptx/count.py matvec_iq1_m --opcodes

Two launches that differ in columns only; the difference of executed warp instructions, times 32 lanes, over the
difference of codewords. What is done once (tables, the reduction of a row) drops out; the activations that a block
quantises do not. ptxas merges and splits instructions: tests/sim/gate.py counts what remains of them.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from cuda_launch import Case, Maker, Simulator, sim_folder, tile_formats
from sim.ptx import Counts, Global, Program, Region
from sim.ptx.toolkit import kernels_ptx

COLUMNS = (2048, 4096)
ROWS = 64


def launch(program: Program, simulator: Simulator, case: Case) -> Counts:
    """Run a case; its results are not kept."""
    args = bytes(case.args or b"")
    x, y, z, threads, shared = simulator.plan(case.kernel, args)
    memory = Global(Region(a.ctypes.data, a, None, name) for name, a in case.arrays.items())
    return program.launch(case.kernel, (x, y, z), threads, shared, args, memory)


def case_of(make: Maker, kernel: str, fmt: str, columns: int) -> tuple[Case, int]:
    """A launch, and its codewords."""
    if kernel.startswith("matvec"):
        return make.product(kernel, fmt, True, ROWS, columns, 1), ROWS * columns // 8
    if kernel.startswith("moe_up"):
        case = make.moe(kernel, (fmt, fmt, "iq2_s"), True, (columns, ROWS), [[0]])
        return case, 2 * ROWS * columns // 8
    return make.moe(kernel, ("iq2_s", "iq2_s", fmt), True, (ROWS, columns), [[0]]), ROWS * columns // 8


def marginal(program: Program, simulator: Simulator, kernel: str) -> tuple[float, Counter[str]]:
    """Instructions for each codeword, and how many of them each opcode has."""
    fmt = next(f for f in tile_formats() if kernel.endswith(f"_{f}"))
    make = Maker(simulator)
    (small, few), (large, many) = (case_of(make, kernel, fmt, columns) for columns in COLUMNS)
    low, high = launch(program, simulator, small), launch(program, simulator, large)
    share = 32 / (many - few)
    return (high.total - low.total) * share, Counter({k: (n - low.opcodes[k]) * share for k, n in high.opcodes.items()})


def main(arguments: list[str]) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Executed PTX instructions for each codeword of 8 weights")
    parser.add_argument("kernels", nargs="*")
    parser.add_argument("--arch", default="80", help="virtual architecture, 80")
    parser.add_argument("--opcodes", action="store_true", help="the share of each opcode")
    options = parser.parse_args(arguments)
    folder = sim_folder()
    if folder is None:
        parser.error("no liblutkern_sim.so: build the target sim and set LUTKERN_SIM_DIR")
    simulator, program = Simulator(folder), Program(kernels_ptx(options.arch))
    names = [f"{verb}_{fmt}" for verb in ("matvec", "moe_up", "moe_down") for fmt in tile_formats()]
    print(f"{'kernel':24}instructions per codeword, compute_{options.arch}")
    for name in options.kernels or names:
        total, opcodes = marginal(program, simulator, name)
        print(f"{name:24}{total:6.2f}", flush=True)
        if options.opcodes:
            for opcode, share in opcodes.most_common():
                if np.round(share, 2):
                    print(f"  {opcode:36}{share:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
