"""`run`: every row of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..formats import Format
from ..runtime import info, num_threads, set_num_threads, supports
from . import ggml
from .bandwidth import Reader
from .environment import environment
from .options import Options, checked
from .rounds import clock_of, take_turns
from .work import Layer, Matrices, Work


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    isa, kernel
        The instruction set at which the search for kernels begins, and the kernel that it found.
    seconds_best, seconds_median, spread
        Of one call; the spread is the interquartile range over the median.
    gweights_per_s
        10^9 weights, times tokens, per second.
    gbytes_per_s, roofline_gbytes_per_s, roofline
        Packed bytes per second, what the memory gave in the same rounds, and the first as a part of the second.
    rival_seconds_best, rival_seconds_median, ratio
        Those of ggml, and the median over the rounds of its time over lutkern's; None without a rival.
    error, rival_error
        ``|y - exact| / |exact|`` of a result, against float64 on the decoded weights.
    """

    format: str
    layout: str
    isa: str
    kernel: str | None
    op: str
    rows: int
    cols: int
    experts: int
    tokens: int
    threads: int
    bits_per_weight: float
    rounds: int
    seconds_best: float
    seconds_median: float
    spread: float
    gweights_per_s: float
    gbytes_per_s: float
    roofline_gbytes_per_s: float
    roofline: float
    rival_seconds_best: float | None
    rival_seconds_median: float | None
    ratio: float | None
    error: float
    rival_error: float | None


@dataclass(frozen=True)
class Result:
    """What was found, and where."""

    environment: dict[str, Any]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        rows = [asdict(row) for row in self.rows]
        return {"environment": self.environment, "rows": rows, "notes": list(self.notes)}


@dataclass(frozen=True)
class _Case:
    """What a row is about."""

    format: str
    layout: str
    isa: str
    kernel: str | None
    op: str
    rows: int
    cols: int
    tokens: int
    threads: int


def run(options: Options, report: Callable[[str], None] = lambda line: None) -> Result:
    """Measure; `report` gets a line before each row.

    The number of threads is put back afterwards.

    Raises
    ------
    ValueError, TypeError
        If an option is wrong.
    RuntimeError
        If ggml fails.
    """
    options = checked(options)
    formats, notes = options.chosen_formats(), []
    rival = ggml.load() if options.rival else None
    if options.rival and rival is None:
        notes.append("no rival: neither llama-cpp-python nor libggml-python was found")
    found = environment(("lutkern", "numpy", "llama-cpp-python", "libggml-python"))
    found |= {"isa": info()["isa"], "rival": None if rival is None else rival.name, "clock": options.clock}
    found |= {"seconds": options.seconds, "megabytes": options.megabytes}
    before = num_threads()
    try:
        rows = tuple(_rows(options, formats, rival, report))
    finally:
        set_num_threads(before)
    return Result(found, rows, tuple(notes))


def _rows(
    options: Options,
    formats: list[Format],
    rival: ggml.Ggml | None,
    report: Callable[[str], None],
) -> Iterator[Row]:
    n_bytes = options.megabytes << 20
    with ExitStack() as stack:
        readers = {n: stack.enter_context(closing(Reader(n, n_bytes))) for n in dict.fromkeys(options.threads)}
        for fmt in formats:
            for kind in (Matrices, Layer):
                ops = [op for op in options.ops if (op == "moe") == (kind is Layer)]
                if not ops:
                    continue
                weights = kind(fmt, *options.shape, n_bytes, rival)
                for case in _cases(options, fmt, ops):
                    report(f"{fmt} {case.layout} {case.op}, tokens {case.tokens}, threads {case.threads}")
                    set_num_threads(case.threads)
                    work = weights.work(case.op, case.layout, case.tokens, case.threads)
                    with closing(work):
                        yield _row(case, work, readers[case.threads], options)
                del weights  # before the next ones are made


def _cases(options: Options, fmt: Format, ops: list[str]) -> Iterator[_Case]:
    isa = info()["isa"]
    for layout in options.chosen_layouts():
        for op in ops:
            kernel = supports(fmt, op, layout=layout)
            for tokens in options.tokens_of(op):
                for threads in options.threads:
                    yield _Case(fmt.name, layout, isa, kernel, op, *options.shape, tokens, threads)


def _row(case: _Case, work: Work, reader: Reader, options: Options) -> Row:
    contestants = [work.ours, reader, *([work.theirs] if work.theirs is not None else [])]
    ours, read, *others = take_turns(contestants, options.seconds, clock_of(options.clock))
    theirs = others[0] if others else None
    middle, low, high = (float(np.quantile(ours, q)) for q in (0.5, 0.25, 0.75))
    memory = reader.bytes_per_step / float(np.median(read))
    return Row(
        **asdict(case),
        experts=work.experts,
        bits_per_weight=work.bits_per_weight,
        rounds=len(ours),
        seconds_best=min(ours),
        seconds_median=middle,
        spread=(high - low) / middle,
        gweights_per_s=work.weights / middle / 1e9,
        gbytes_per_s=work.n_bytes / middle / 1e9,
        roofline_gbytes_per_s=memory / 1e9,
        roofline=work.n_bytes / middle / memory,
        rival_seconds_best=None if theirs is None else min(theirs),
        rival_seconds_median=None if theirs is None else float(np.median(theirs)),
        ratio=None if theirs is None else float(np.median(np.divide(theirs, ours))),
        error=work.error,
        rival_error=work.rival_error,
    )
