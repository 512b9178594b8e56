"""`lutkern pack IN OUT`: the options, the progress bar, the tables."""

from __future__ import annotations

import argparse
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..text_table import table
from .mix import DEFAULT_SAMPLE_ROWS
from .pack import EFFORTS, pack_file
from .plan import Plan, PlannedTensor
from .rules import PRESETS

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_TERMINATED = 143

EPILOG = """\
Rules: --type before --preset before --default; what none of them decides stays as it is. Norms, biases, routers and
tensors of one dimension stay floats. Columns that are no multiple of a format's block get a format of blocks of 32.
Sizes are decimal: 4G is 4000000000 bytes of tensors.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, except `--json`."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("source", metavar="IN", type=Path, help="a GGUF file (any shard of a split one) or a safetensors folder")
    add("target", metavar="OUT", type=Path, help="the GGUF file to write")
    add("--preset", choices=tuple(PRESETS), help="formats for every kind of tensor")
    add("--type", dest="types", action="append", default=[], metavar="REGEX=FORMAT", help="format of what matches")
    add("--default", metavar="FORMAT", help="format of what nothing else decides")
    add("--importance", type=Path, metavar="FILE", help="importance of the columns (imatrix file)")
    add("--target-bpw", type=float, metavar="BITS", help="choose the best format of each tensor for this size")
    add("--candidates", metavar="FORMATS", help="formats to choose from, with commas between them")
    text = f"rows of a tensor that are measured (default: {DEFAULT_SAMPLE_ROWS})"
    add("--sample-rows", type=int, default=DEFAULT_SAMPLE_ROWS, metavar="N", help=text)
    add("--name-map", type=Path, metavar="FILE", help="JSON pairs [regex, GGUF name] for a safetensors folder")
    add("--allow-requantize", action="store_true", help="pack tensors again that are packed already")
    add("--split-size", type=_size, metavar="SIZE", help="write shards of at most this size, such as 4G")
    add("--effort", choices=EFFORTS, default="default", help="how long to search (default: default)")
    add("--threads", type=int, metavar="N", help="threads to use (default: all)")
    add("--force", action="store_true", help="replace existing files")
    add("--dry-run", action="store_true", help="print the plan, write nothing")


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"size is {text!r}, expected a number with K, M, G or T")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def run(options: argparse.Namespace) -> int:
    """Run the command; its exit code. Raises as `pack_file` does, and ImportError if tqdm is missing."""
    try:
        from tqdm import tqdm
    except ImportError:
        text = "pack: the tqdm package is not installed, expected it (pip install 'lutkern[pack]')"
        raise ImportError(text) from None
    candidates = None if options.candidates is None else [name for name in options.candidates.split(",") if name]
    bars = _Bars(tqdm, quiet=options.json)
    with _ended_by_sigterm(), bars:
        plan = pack_file(
            options.source,
            options.target,
            types=options.types,
            preset=options.preset,
            default=options.default,
            importance=options.importance,
            target_bpw=options.target_bpw,
            candidates=candidates,
            sample_rows=options.sample_rows,
            name_map=options.name_map,
            allow_requantize=options.allow_requantize,
            split_size=options.split_size,
            effort=options.effort,
            threads=options.threads,
            force=options.force,
            dry_run=options.dry_run,
            progress=bars.packed,
            measured=bars.measured,
            planned=bars.planned,
        )
    if options.json:
        print(json.dumps(plan.as_dict(), indent=2))
    else:
        print(text_of(plan, all_tensors=options.dry_run or options.target_bpw is not None))
    return 0


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as an exception does, so that nothing half-written stays."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(_TERMINATED)

    if threading.current_thread() is not threading.main_thread():  # only that one can handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Bars:
    """A bar for what is measured, then one for what is packed, on stderr."""

    def __init__(self, bar: Callable[..., Any], *, quiet: bool) -> None:
        self._new = bar
        self._quiet = quiet
        self._bar: Any = None
        self._weights = 0

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def measured(self, name: str, n_bytes: int, weights: int) -> None:
        """Count a tensor that was measured; how many there will be is not known."""
        if self._bar is None:
            self._bar = self._new(desc="measuring", unit=" tensors", disable=self._quiet)
        self._bar.update()

    def planned(self, plan: Plan) -> None:
        """Begin with the packing."""
        if self._bar is not None:
            self._bar.close()
        total = sum(tensor.source.nbytes for tensor in plan.tensors)
        self._bar = self._new(total=total, desc="packing", unit="B", unit_scale=True, disable=self._quiet)
        self._weights = 0

    def packed(self, name: str, n_bytes: int, weights: int) -> None:
        """Count a piece that was packed."""
        self._weights += weights
        seconds = self._bar.format_dict["elapsed"]
        if seconds > 0:
            self._bar.set_postfix_str(f"{self._weights / seconds / 1e6:.1f} M weights/s", refresh=False)
        self._bar.update(n_bytes)


def text_of(plan: Plan, *, all_tensors: bool) -> str:
    """Lay a plan or a result out: the tensors if asked for, the sums per format, before and after, the notes."""
    parts = []
    if all_tensors:
        header = ("tensor", "shape", "source", "format", "bytes", "bits", "error", "why")
        parts.append(table(header, map(_row, plan.tensors), "    rrr"))
    found = plan.as_dict()
    rows: list[Sequence[object]] = [
        (name, sums["tensors"], sums["weights"], sums["bytes"], _bits(sums["bits_per_weight"]))
        for name, sums in found["formats"].items()
    ]
    for name, sums in (("all", found["result"]), ("before", {**found["source"], "tensors": len(plan.tensors)})):
        rows.append((name, sums["tensors"], sums["weights"], sums["bytes"], _bits(sums["bits_per_weight"])))
    parts.append(table(("format", "tensors", "weights", "bytes", "bits"), rows, " rrrr"))
    if plan.notes:
        parts.append("\n".join(f"note: {note}" for note in plan.notes))
    if plan.seconds is None:
        parts.append("nothing was written")
    else:
        rate = found["source"]["weights"] / max(plan.seconds, 1e-9) / 1e6
        files = "\n".join(plan.files)
        parts.append(f"{files}\nwritten in {plan.seconds:.1f} s, {rate:.1f} M weights/s")
    return "\n\n".join(parts)


def _row(tensor: PlannedTensor) -> tuple[object, ...]:
    error = "" if tensor.error is None else f"{tensor.error:.4f}"
    shape = " x ".join(map(str, tensor.source.shape))
    bits = _bits(tensor.bits_per_weight)
    why = tensor.why if tensor.wanted is None else f"{tensor.why} ({tensor.wanted} does not fit)"
    return tensor.name, shape, tensor.source.type_name, tensor.type_name, tensor.nbytes, bits, error, why


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
