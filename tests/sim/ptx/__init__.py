"""Runs the PTX that nvcc emits on the CPU, with NumPy: one array lane for each thread of a launch.

parse: text to instructions. writer, emit, emit_move: an instruction to a line of Python over arrays. build: a kernel to
one Python function for each stretch of instructions without a branch. machine, integers, floats, warps: what those
lines call. memory: the address spaces and their checks. run: divergence, barriers, counts.
"""

from .memory import Global, Region
from .parse import Module, PtxError
from .run import Counts, Program

__all__ = ["Counts", "Global", "Module", "Program", "PtxError", "Region"]
