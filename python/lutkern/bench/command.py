"""`lutkern bench`: its options, its table."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from ..text_table import table
from . import gpu, measure
from .measure import Result, Row
from .options import CLOCKS, LAYOUT_CHOICES, Options
from .weights import MODELS, OPERATIONS

_SHAPE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")

EPILOG = """\
Weights are random and go through more memory than a cache holds; lutkern, ggml and a plain read of memory take turns.
G/s: 10^9 weights, times tokens, per second. GB/s: packed bytes. Roofline: GB/s over what the plain read gave. Spread:
interquartile range over median. Ratio: time of ggml over that of lutkern, from the llama-cpp-python package or else
libggml-python. Error: of a result, relative, against float64 on the decoded weights. LUTKERN_ISA chooses the kernels.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command, except `--json`."""
    parser.epilog = EPILOG
    default = Options()
    add = parser.add_argument
    add("--format", nargs="+", default=(), metavar="F", help="formats (default: those with a codebook)")
    add("--layout", choices=LAYOUT_CHOICES, default=default.layout, help="order of the bytes (default: %(default)s)")
    ops = f"operations (default: {' '.join(default.ops)})"
    add("--op", nargs="+", choices=OPERATIONS, default=default.ops, metavar="OP", help=ops)
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--model", choices=tuple(MODELS), help="shape of the experts of a model (default: glm-4.7)")
    shape.add_argument("--shape", metavar="ROWSxCOLS", help="shape of gate and up; down of moe is the transpose")
    add("--tokens", nargs="+", type=int, default=(), metavar="N", help="tokens of matmul and moe (default: 16 and 1)")
    add("--threads", nargs="+", type=int, default=(), metavar="N", help="threads (default: those of operations)")
    add("--seconds", type=float, default=default.seconds, metavar="S", help="time of each row (default: %(default)g)")
    megabytes = "packed weights to go through, and what each thread reads for the roofline (default: %(default)s)"
    add("--megabytes", type=int, default=default.megabytes, metavar="N", help=megabytes)
    clock = "wall time, or CPU time of one thread on a busy machine (default: %(default)s)"
    add("--clock", choices=CLOCKS, default=default.clock, help=clock)
    add("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:N, metal or metal:N (default: %(default)s)")
    add("--quick", action="store_true", help="on a GPU: two formats, 1 and 16 tokens")
    add("--record", type=Path, metavar="FILE.csv", help="on a GPU: also write the rows there, and a .json beside it")
    add("--no-rival", action="store_true", help="do not measure ggml")


def run(options: argparse.Namespace) -> int:
    """Measure and print; the exit code. Raises as `measure.run` does, ValueError also for a wrong --shape."""
    if options.device != "cpu":
        return _run_gpu(options)
    found = measure.run(
        Options(
            formats=tuple(options.format),
            layout=options.layout,
            ops=tuple(dict.fromkeys(options.op)),
            shape=_shape(options.shape) if options.shape is not None else MODELS[options.model or "glm-4.7"],
            tokens=tuple(options.tokens),
            threads=tuple(options.threads),
            seconds=options.seconds,
            megabytes=options.megabytes,
            clock=options.clock,
            rival=not options.no_rival,
        ),
        report=lambda line: None if options.json else print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(found.to_dict(), indent=2) if options.json else text_of(found))
    return 0


def _run_gpu(options: argparse.Namespace) -> int:
    default = Options()
    if options.threads or (options.layout, options.clock) != (default.layout, default.clock):
        raise ValueError(f"bench: --threads, --layout or --clock with {options.device}, expected them for the CPU only")
    shapes = gpu.Options().shapes
    if options.shape is not None:
        shapes = {"": _shape(options.shape)}
    elif options.model or options.quick:
        model = options.model or "glm-4.7"
        shapes = {model: MODELS[model]}
    found = gpu.run(
        gpu.Options(
            device=options.device,
            formats=tuple(options.format),
            ops=tuple(op for op in dict.fromkeys(options.op) if op != "dequantize"),
            shapes=shapes,
            tokens=tuple(options.tokens),
            seconds=options.seconds,
            n_bytes=options.megabytes << 20,
            quick=options.quick,
        ),
        report=lambda line: None if options.json else print(line, file=sys.stderr, flush=True),
    )
    if options.record is not None:
        gpu.write_record(found, options.record)
    print(json.dumps(found, indent=2) if options.json else gpu.text_of(found))
    return 0


def _shape(text: str) -> tuple[int, int]:
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError(f"bench: --shape is {text!r}, expected ROWSxCOLS, as in 1536x5120")
    return int(match[1]), int(match[2])


def text_of(found: Result) -> str:
    """Lay the figures out: where they come from, the table, what was left out."""
    where = found.environment
    rival = "no rival" if where["rival"] is None else f"ratio to {where['rival']}"
    title = f"{where['cpu']}, {where['cores']} cores, kernels {where['isa']}, {where['clock']} time, {rival}"
    header = (
        "format",
        "layout",
        "op",
        "shape",
        "tokens",
        "threads",
        "G/s",
        "GB/s",
        "roofline",
        "spread",
        "ratio",
        "error",
    )
    parts = [title, table(header, map(_cells, found.rows), "    rrrrrrrr")]
    if found.notes:
        parts.append("\n".join(f"note: {note}" for note in found.notes))
    return "\n\n".join(parts)


def _cells(row: Row) -> tuple[object, ...]:
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x"
    size = f"{row.rows}x{row.cols}"
    percent = f"{100 * row.roofline:.0f} %", f"{100 * row.spread:.0f} %"
    rates = f"{row.gweights_per_s:.1f}", f"{row.gbytes_per_s:.2f}"
    return row.format, row.layout, row.op, size, row.tokens, row.threads, *rates, *percent, ratio, f"{row.error:.2g}"
