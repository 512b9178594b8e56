"""Speed of the operations beside ggml and the memory, as a record: every format, layout, instruction set, threads.

Each row is one of `lutkern bench`, in which lutkern, ggml and a plain read of memory take turns. Each format and
instruction set runs in processes of its own, with LUTKERN_ISA. The record is written anew after each of them, so that
an interrupted run leaves what it has. `--quick` measures little, in a minute or two.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lutkern
import records
from lutkern.bench import MODELS
from lutkern.bench.environment import cpu_name
from lutkern.bench.options import CLOCKS, LAYOUT_CHOICES, OPERATIONS
from lutkern.bench.weights import codebook_formats

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
MOE_TOKENS = (1, 4, 16, 64)  # times 8 experts
QUICK = {
    "formats": ["iq1_m", "iq2_xxs", "iq3_s"],
    "tokens": [1, 4, 64],
    "moe_tokens": [1],
    "threads": [1],
    "seconds": 0.2,
}


def machine_name() -> str:
    """Return a name for this machine that a folder can have: its processor and its number of cores."""
    return re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()}-{os.cpu_count()}-cores".lower()).strip("-")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, help="CSV file (default: bench/record/MACHINE/DATE-product_speed.csv)")
    add("--machine", default=machine_name(), help="name of the folder (default: %(default)s)")
    add("--quick", action="store_true", help="few formats and tokens, one thread, short rounds")
    add("--formats", nargs="+", help="default: those with a codebook")
    add("--layout", choices=LAYOUT_CHOICES, default="all")
    add("--isas", nargs="+", default=list(lutkern.isas()), help="default: all of this machine")
    add("--ops", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    add("--models", nargs="+", choices=list(MODELS), default=["glm-4.7"])
    add("--shapes", nargs="+", default=[], metavar="ROWSxCOLS", help="in place of those of the models")
    add("--down", action="store_true", help="the transposes, too, for all but moe")
    add("--tokens", nargs="+", type=int, help=f"of matmul (default: {' '.join(map(str, TOKENS))})")
    add("--moe-tokens", nargs="+", type=int, help=f"of moe (default: {' '.join(map(str, MOE_TOKENS))})")
    add("--threads", nargs="+", type=int, help="default: 1 and as many as operations use")
    add("--seconds", type=float, help="of each row (default: 1)")
    add("--megabytes", type=int, default=256)
    add("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args(arguments)
    normal = {
        "formats": [fmt.name for fmt in codebook_formats()],
        "tokens": list(TOKENS),
        "moe_tokens": list(MOE_TOKENS),
        "threads": sorted({1, lutkern.num_threads()}),
        "seconds": 1.0,
    }
    for name, value in (QUICK if options.quick else normal).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.out is None:
        options.out = records.FOLDER / options.machine / f"{time.strftime('%Y-%m-%d')}-product_speed.csv"
    return options


def jobs(options: argparse.Namespace) -> list[tuple[str, str, list[str], str]]:
    """Return (format, instruction set, operations, shape) of each process."""
    shapes = options.shapes or ["{}x{}".format(*MODELS[model]) for model in options.models]
    ops = [op for op in options.ops if op != "moe"]
    wanted = [(shape, ops) for shape in shapes]
    if options.down:
        wanted += [("x".join(reversed(shape.split("x"))), ops) for shape in shapes]
    wanted += [(shape, ["moe"]) for shape in shapes if "moe" in options.ops]
    return [(fmt, isa, ops, shape) for shape, ops in wanted if ops for isa in options.isas for fmt in options.formats]


def measure(options: argparse.Namespace, fmt: str, isa: str, ops: list[str], shape: str) -> dict[str, Any]:
    """Run `lutkern bench` and return what it says."""
    command = [sys.executable, "-m", "lutkern", "bench", "--json", "--format", fmt, "--op", *ops, "--shape", shape]
    command += ["--layout", options.layout, "--clock", options.clock, "--seconds", str(options.seconds)]
    tokens = options.moe_tokens if ops == ["moe"] else options.tokens
    command += ["--megabytes", str(options.megabytes), "--tokens", *map(str, tokens)]
    command += ["--threads", *map(str, options.threads)]
    done = subprocess.run(command, env=os.environ | {"LUTKERN_ISA": isa}, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{fmt} on {isa}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the record."""
    options = parse(arguments)
    rows: list[dict[str, Any]] = []
    todo = jobs(options)
    for number, (fmt, isa, ops, shape) in enumerate(todo, 1):
        print(f"{number}/{len(todo)}: {fmt} {isa} {shape}, {' '.join(ops)}", file=sys.stderr, flush=True)
        found = measure(options, fmt, isa, ops, shape)
        rows += [{name: _short(value) for name, value in row.items()} for row in found["rows"]]
        environment = {name: value for name, value in found["environment"].items() if name != "isa"}
        given = sys.argv[1:] if arguments is None else arguments
        environment |= {"isas": options.isas, "command": " ".join(["python bench/product_speed.py", *given])}
        records.write(options.out, rows, environment)
    print(f"{len(rows)} rows in {options.out}")


if __name__ == "__main__":
    main()
