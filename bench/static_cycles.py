"""Predicts the speed of compiled kernels on processors that are not at hand, by llvm-mca. Nothing is run.

What it prints are predictions, not measurements. llvm-mca knows the pipes, latencies and queues of a core as the
authors of LLVM describe them, and neither caches nor memory: every load hits the first level, no branch is
mispredicted, no store delays a load, no front end runs dry. A kernel that streams weights is no faster than the
memory; that limit stands beside, as cycles at --ghz and --bandwidth, and `ratio_with_memory` respects it on both sides.

A loop is not cut out of a kernel. walk_code.py follows one call of the function, for 16 rows of 1024 columns, through
as many turns of each loop and calls of each function as it has, and llvm-mca sees that sequence of instructions,
without calls and returns. A walk of half the columns is subtracted: what a call costs once does not count. ggml's
function is walked in the same way, for one row; a batch is as many calls as there are tokens. Batches of 512 tokens are
extrapolated from 4 and 16.

Cycles, instructions and bytes are for 256 weights and all tokens together. The pressing resource is the one that is
busy most of the time, with its part of the cycles; `decoder_cycles` is what the width of the front end alone would
take. A kernel that is well above both waits for results: latencies, or full queues.

Where the models of LLVM 16 are known to be wrong for an instruction that decides, another one with the same operands
stands in: see CORRECTIONS. What is left of errors: LLVM 16 describes sapphirerapids with the ports of Skylake servers;
znver4 and icelake-server wait for the old value of a masked load as long as for memory (IQ1 in blocks is faster than
predicted). Beside ratios measured on Zen 3 (`--measured`), for formats that memory does not limit, the median
prediction was 9 % too high, single ones from 19 % too low (tq2_0) to 69 % too high (iq3_s).

  python bench/static_cycles.py OBJECTS... [--cpus znver4 ...] [--formats ...] [--out RECORD.csv] [--measured FILE.csv]

OBJECTS: BUILD/CMakeFiles/lutkern.dir/csrc/cpu/avx512_tiles.cpp.o, avx512.cpp.o, or those of avx2; the operations follow
from their functions. ggml's library comes from the package libggml-python, whose kernels for AVX2 are what ggml runs on
every x86-64 processor for these formats.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np

import lutkern
import records
from walk_code import Code, Instruction, Walk, WalkError, disassemble

CPUS = ("znver4", "icelake-server", "sapphirerapids")
COLUMNS = 1024
ROWS = 16
# Only operations for tiles say so in their names.
FUNCTION = {
    "gemv_tiles": "gemv_tiles<lutkern::{}>",
    "gemm_tiles": "gemm_tiles<lutkern::{}>",
    "gemv_blocks": "gemv(?:_planes|_ternary|_rows)?<lutkern::{}>",
    "gemm_blocks": "gemm<lutkern::{}>",
}


@dataclass(frozen=True)
class Cost:
    """What llvm-mca says of a sequence."""

    instructions: float
    uops: float
    cycles: float
    decoder: float  # cycles
    busy: tuple[tuple[str, float], ...]  # cycles of each resource

    def __sub__(self, other: Cost) -> Cost:
        busy = tuple((name, cycles - less) for (name, cycles), (_, less) in zip(self.busy, other.busy, strict=True))
        return Cost(
            self.instructions - other.instructions,
            self.uops - other.uops,
            self.cycles - other.cycles,
            self.decoder - other.decoder,
            busy,
        )

    def per(self, units: float) -> Cost:
        busy = tuple((name, cycles / units) for name, cycles in self.busy)
        return Cost(self.instructions / units, self.uops / units, self.cycles / units, self.decoder / units, busy)

    def pressing(self) -> str:
        name, cycles = max(self.busy, key=lambda pair: pair[1])
        return f"{name} {100 * cycles / self.cycles:.0f}%"


def parse_mca(text: str) -> Cost:
    """Read the summary and the resource pressure of one iteration."""

    def number(label: str) -> float:
        found = re.search(rf"^{label}:\s+([\d.]+)", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"llvm-mca: no line '{label}', expected its summary: {text[:200]}")
        return float(found[1])

    names = re.findall(r"^\[([\d.]+)\]\s+- (\w+)$", text, re.MULTILINE)
    after = text.partition("Resource pressure per iteration:\n")[2].splitlines()
    values = [0.0 if value == "-" else float(value) for value in (after[1].split() if len(after) > 1 else [])]
    busy: dict[str, float] = {}
    units: dict[str, int] = {}
    for (_, name), value in zip(names, values, strict=True):
        busy[name] = busy.get(name, 0.0) + value
        units[name] = units.get(name, 0) + 1
    pairs = tuple((name, busy[name] / units[name]) for name in busy)
    return Cost(
        number("Instructions"),
        number("Total uOps"),
        number("Total Cycles"),
        number("Total uOps") / number("Dispatch Width"),
        pairs,
    )


# Where the models of LLVM 16 differ from measured tables (uops.info, Agner Fog): another instruction, with the same
# operands, that the model prices as measured.
_MERGED = r"vmulps \1,\2{%k7}"
_ZEN_INSERT = (r"vpinsr[bwdq] \$\w+,([^,]*\(.*\)),(%xmm\d+),(%xmm\d+)$", r"vpunpcklqdq \1,\2,\3")
_INTEL_LOAD = (r"v(?:mov|p?broadcast)\w+ ([^%]*\(.*\)),(%zmm\d+)$", r"vmovntdqa \1,\2")
CORRECTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "znver3": (_ZEN_INSERT,),
    "znver4": (
        _ZEN_INSERT,
        # Half as fast in the model (LLVM issue 63877)
        (r"vf\w*(?:add|sub)\d+[ps][sd] (.*),(%[xyz]mm\d+)$", _MERGED),
        (r"vpdp(?:busd|wssd) (.*),(%[xyz]mm\d+)$", _MERGED),
        # Twice as fast in the model as with a table in a register
        (r"vperm[it]2[bwd] ([^%]*\(.*\).*),(%zmm\d+)$", r"vpshufb \1,\2{%k7}"),
        (r"vperm(?:b|w|d|ps) ([^%]*\(.*\).*,%zmm\d+)$", r"vpshufb \1"),
        # A broadcast from memory needs no shuffle.
        (r"vp?broadcast(?:d|q|ss|sd) ([^%]*\(.*\)),(%zmm\d+)$", r"vmovups \1,\2"),
        (r"vpbroadcastq ([^%]*\(.*\)),(%ymm\d+\{%k\d\})$", r"vmovdqu64 \1,\2"),
    ),
    "icelake-server": (_INTEL_LOAD,),  # the model adds an operation to loads of 64 bytes
    "sapphirerapids": (_INTEL_LOAD,),
}


def corrected(text: str, cpu: str) -> str:
    text = re.sub(r"\s+", " ", text)
    for pattern, replacement in CORRECTIONS.get(cpu, ()):
        text = re.sub("^" + pattern, replacement, text)
    return text


def simulate(sequence: Sequence[Instruction], cpu: str, mca: str) -> Cost:
    """Let llvm-mca run the sequence once."""
    # llvm-mca takes 100 cycles for a call; only where it leads is of interest here.
    text = "\n".join(
        corrected(at.text, cpu) for at in sequence if at.name not in ("call", "ret") and not at.name.startswith("nop")
    )
    command = [mca, f"-mcpu={cpu}", "-iterations=1", "-instruction-info=0", "-resource-pressure=1", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"llvm-mca: {done.stderr.strip()[:400]}")
    return parse_mca(done.stdout)


# ---- calls ----


def _struct(walk: Walk, address: int, *values: int) -> int:
    for i, value in enumerate(values):
        walk.put(address + 8 * i, 8, value)
    return address


def kernel_call(code: Code, function: int, columns: int, tokens: int) -> list[Instruction]:
    """Walk a kernel of ours: see csrc/cpu/kernels.h. Rows of tiles are 16 rows, those of blocks one; 0 tokens: gemv."""
    walk = Walk(code)
    tiles = any(at == function and "_tiles<" in name for name, at in code.functions.items())
    rows = _struct(walk, 0x1000, 0x100000000, 1 << 20, ROWS // 16 if tiles else ROWS, columns)
    x = _struct(walk, 0x2000, 0x200000000, 0x210000000, 0x220000000, 0x230000000, columns)
    walk.registers |= {"rdi": rows, "rsi": x, "rdx": 0x300000000}
    if tokens:
        walk.registers |= {"rdx": 0x3000, "rcx": tokens, "r8": 0x300000000, "r9": 4096}
        for i in range(tokens):
            walk.put(0x3000 + 4 * i, 4, i)
    return walk.run(function)


def ggml_call(code: Code, function: int, columns: int) -> list[Instruction]:
    """Walk ggml_vec_dot_...(n, s, bs, vx, bx, vy, by, nrc)."""
    walk = Walk(code)
    walk.registers |= {"rdi": columns, "rsi": 0x300000000, "rdx": 0, "rcx": 0x100000000, "r8": 0, "r9": 0x200000000}
    walk.registers["rsp"] = (walk.registers["rsp"] or 0) - 16
    _struct(walk, walk.registers["rsp"] or 0, 0, 1)
    return walk.run(function)


def steady(sequences: tuple[list[Instruction], list[Instruction]], cpu: str, mca: str, units: float) -> Cost:
    """Return the cost of one unit: of the longer call less the shorter one, which are `units` apart."""
    long, short = (simulate(sequence, cpu, mca) for sequence in sequences)
    return (long - short).per(units)


# ---- tables ----


def type_name(fmt: str) -> str:
    """Return the name of the block type of a format."""
    return "".join(part.capitalize() for part in fmt.split("_"))


@cache
def bits_per_weight(fmt: str, layout: str) -> float:
    info = next(f for f in lutkern.formats() if f.name == fmt)
    blocks = np.zeros((16, 256 // info.block_size * info.block_bytes), np.uint8)
    return float(lutkern.PackedTensor.from_blocks(blocks, fmt, (16, 256)).to(layout=layout).bits_per_weight)


def ggml_library() -> Path:
    spec = find_spec("libggml")
    if spec is None or spec.origin is None:
        raise SystemExit("static_cycles: no package libggml-python, expected it for the rival")
    return Path(spec.origin).parent / "lib64" / "libggml-cpu.so"


class Predictor:
    """The kernels of some objects and of ggml, and what they cost on a processor."""

    def __init__(self, objects: Sequence[Path], options: argparse.Namespace) -> None:
        self.codes = {path: disassemble(path) for path in objects}
        self.rival = disassemble(ggml_library())
        self.options = options
        self.rivals: dict[tuple[str, str], Cost] = {}
        self.calls: dict[tuple[Path, int, int], tuple[list[Instruction], list[Instruction]]] = {}

    def memory_cycles(self, fmt: str, layout: str) -> float:
        return 32 * bits_per_weight(fmt, layout) * float(self.options.ghz) / float(self.options.bandwidth)

    def ggml(self, fmt: str, cpu: str) -> Cost:
        if (fmt, cpu) not in self.rivals:
            at = self.rival.find(rf"^ggml_vec_dot_(?i:{fmt})_q8_[K01]$")
            if at is None:
                raise ValueError(f"static_cycles: ggml has no kernel for {fmt}, expected one")
            calls = ggml_call(self.rival, at, COLUMNS), ggml_call(self.rival, at, COLUMNS // 2)
            self.rivals[fmt, cpu] = steady(calls, cpu, self.options.mca, COLUMNS / 512)
        return self.rivals[fmt, cpu]

    def _cost(self, path: Path, function: int, tokens: int, cpu: str) -> Cost:
        if (path, function, tokens) not in self.calls:
            code = self.codes[path]
            calls = tuple(kernel_call(code, function, columns, tokens) for columns in (COLUMNS, COLUMNS // 2))
            self.calls[path, function, tokens] = calls[0], calls[1]
        return steady(self.calls[path, function, tokens], cpu, self.options.mca, ROWS * COLUMNS / 512)

    def rows(self, fmt: str, op: str, tokens: Sequence[int], cpu: str) -> Iterator[dict[str, Any]]:
        """Yield rows of the table; none if the objects have no such kernel."""
        layout = op.partition("_")[2]
        for path, code in self.codes.items():
            function = code.find(FUNCTION[op].format(type_name(fmt)) + r"\(")
            if function is None:
                continue
            costs: dict[int, Cost] = {}
            for count in tokens:
                gemm = count if op.startswith("gemm") else 0
                costs[count] = self._cost(path, function, gemm, cpu)
            if 4 in costs and 16 in costs:
                costs[512] = costs[4] - (costs[4] - costs[16]).per(12 / 508)
            for count, cost in costs.items():
                yield self._row(fmt, op, layout, re.split(r"[._]", path.name)[0], count, cpu, cost)

    def _row(self, fmt: str, op: str, layout: str, isa: str, tokens: int, cpu: str, cost: Cost) -> dict[str, Any]:
        rival = self.ggml(fmt, cpu)
        memory, rival_memory = self.memory_cycles(fmt, layout), self.memory_cycles(fmt, "blocks")
        numbers = {
            "instructions": cost.instructions,
            "uops": cost.uops,
            "cycles": cost.cycles,
            "decoder_cycles": cost.decoder,
            "memory_cycles": memory,
            "rival_instructions": rival.instructions * tokens,
            "rival_cycles": rival.cycles * tokens,
            "ratio": rival.cycles * tokens / cost.cycles,
            "ratio_with_memory": max(rival.cycles * tokens, rival_memory) / max(cost.cycles, memory),
        }
        what = {"format": fmt, "layout": layout, "isa": isa, "op": op.partition("_")[0], "tokens": tokens, "cpu": cpu}
        rounded = {name: float(f"{value:.4g}") for name, value in numbers.items()}
        return what | rounded | {"pressing": cost.pressing(), "rival_pressing": rival.pressing()}


def measured_ratios(path: Path) -> dict[tuple[str, str], float]:
    """Return the ratios of matvec with one thread on AVX2, by format and layout."""
    rows = [row for row in records.read(path) if (row["op"], row["isa"], row["threads"]) == ("matvec", "avx2", "1")]
    return {(row["format"], row["layout"]): float(row["ratio"]) for row in rows if row["ratio"]}


def shown(row: dict[str, Any]) -> str:
    """Return a row as a line."""
    what = f"{row['format']:8s}{row['op']} {row['layout']:7s}{row['tokens']:4d} {row['cpu']:15s}"
    ours = (
        f"{row['instructions']:7.1f} ins {row['cycles']:7.1f} cyc {row['pressing']:18s} mem {row['memory_cycles']:5.1f}"
    )
    rival = f"ggml {row['rival_instructions']:7.0f} ins {row['rival_cycles']:7.1f} cyc {row['rival_pressing']:18s}"
    return f"{what}{ours} | {rival} | {row['ratio']:5.2f}x, with memory {row['ratio_with_memory']:5.2f}x"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("objects", nargs="+", type=Path)
    add("--cpus", nargs="+", default=list(CPUS), help="names that llvm-mca knows (default: %(default)s)")
    add("--formats", nargs="+", help="default: all with integer kernels")
    add("--ops", nargs="+", choices=list(FUNCTION), default=list(FUNCTION))
    add("--tokens", nargs="+", type=int, default=[4, 16], help="of batches (default: %(default)s)")
    add("--ghz", type=float, default=3.5, help="of all cores, to turn bytes into cycles (default: %(default)s)")
    add("--bandwidth", type=float, default=25.0, help="GB/s of one core (default: %(default)s)")
    add("--mca", default=which("llvm-mca-16") or "llvm-mca", help="default: %(default)s")
    add("--out", type=Path, help="CSV file")
    add("--measured", type=Path, help="a record of product_speed.py, to be printed beside")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write the record."""
    options = parse(arguments)
    predictor = Predictor(options.objects, options)
    measured = measured_ratios(options.measured) if options.measured else {}
    rows: list[dict[str, Any]] = []
    print("Predictions of llvm-mca, without caches and memory; cycles for 256 weights")
    for fmt in options.formats or [f.name for f in lutkern.formats() if f.name not in ("bf16", "f16", "f32")]:
        for op, cpu in ((op, cpu) for op in options.ops for cpu in options.cpus):
            try:
                found = list(predictor.rows(fmt, op, options.tokens if op.startswith("gemm") else [1], cpu))
            except WalkError as error:
                print(f"{fmt} {op}: no prediction: {error}", file=sys.stderr)
                continue
            for row in found:
                ratio = measured.get((fmt, row["layout"])) if row["op"] == "gemv" else None
                print(shown(row) + (f", measured {ratio:.2f}x" if ratio else ""), flush=True)
                rows.append(row)
    if options.out:
        given = sys.argv[1:] if arguments is None else arguments
        version = subprocess.run([options.mca, "--version"], capture_output=True, text=True, check=True).stdout
        environment = {
            "what": "predictions by llvm-mca: nothing was run",
            "command": " ".join(["python bench/static_cycles.py", *map(str, given)]),
            "llvm": next(line.strip() for line in version.splitlines() if "LLVM version" in line),
            "ggml": f"libggml-python {metadata.version('libggml-python')}",
        }
        records.write(options.out, rows, environment)


if __name__ == "__main__":
    main()
