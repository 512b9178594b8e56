"""`lutkern bench --device cuda` or `metal`: the operations on a GPU, beside a plain copy of its memory.

Calls go through all weights, more than the last-level cache holds, and are timed by events on the GPU. CUDA keeps them
in a graph, so that what the processor needs for a launch does not count. Metal has none: they are queued one behind the
other, and its events leave out the waits for the processor.
"""

from __future__ import annotations

import csv
import datetime
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import _core
from ..device_array import DeviceArray, to_device
from ..formats import Format, find_format
from ..moe import moe
from ..ops import matmul, matvec
from ..places import device_name, device_number
from ..reference import dequantize as defined
from ..runtime import devices, supports
from ..streams import Event, Stream, capture
from ..tensor import PackedTensor
from ..text_table import table
from .weights import EXPERTS_PER_TOKEN, MODELS, codebook_formats, experts_to_rotate, random_blocks, routes
from .work import relative_error

TOKENS = (1, 2, 4, 8, 16, 64, 256, 512)
QUICK_TOKENS = (1, 16)
QUICK_FORMATS = ("iq1_m", "iq2_xxs")
_CACHES = 4  # how many times the last-level cache the weights are
_LEAST_BYTES = 256 << 20
_UNKNOWN_CACHE = 128 << 20  # where the device does not tell: more than any Apple chip had in 2025
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Options:
    """What to measure on a GPU; empty tuples mean the usual choice."""

    device: str = "cuda"
    formats: tuple[str, ...] = ()
    ops: tuple[str, ...] = ("matvec", "matmul", "moe")
    shapes: dict[str, tuple[int, int]] = field(default_factory=lambda: {m: MODELS[m] for m in ("glm-4.7", "glm-5.2")})
    tokens: tuple[int, ...] = ()
    seconds: float = 0.5
    n_bytes: int = _LEAST_BYTES
    quick: bool = False

    def chosen_formats(self) -> list[Format]:
        """Return the formats; ValueError if one is unknown."""
        names = self.formats or (QUICK_FORMATS if self.quick else ())
        return [find_format(name) for name in names] or list(codebook_formats())

    def chosen_tokens(self, op: str) -> tuple[int, ...]:
        """Return the numbers of tokens that an operation runs with."""
        if op == "matvec":
            return (1,)
        chosen = self.tokens or (QUICK_TOKENS if self.quick else TOKENS)
        return tuple(n for n in chosen if op == "moe" or n > 1)


@dataclass(frozen=True)
class Row:
    """One measurement. `copy_part` is packed bytes per second over the bytes that a copy reads and writes."""

    format: str
    op: str
    model: str
    rows: int
    cols: int
    tokens: int
    kernel: str
    microseconds: float
    gweights_per_s: float
    gbytes_per_s: float
    copy_part: float
    error: float


def _all_of(stream: Stream, calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """Return what queues all calls."""

    def one_by_one() -> None:
        for call in calls:
            call()

    calls[0]()
    stream.synchronize()
    if not stream.device.startswith("cuda"):
        return one_by_one
    with capture(stream) as graph:
        one_by_one()
    return graph.launch


def time_calls(stream: Stream, calls: Sequence[Callable[[], object]], seconds: float) -> float:
    """Return the seconds that one call takes: the median over rounds of all calls."""
    launch = _all_of(stream, calls)
    begin, end = Event(stream.device), Event(stream.device)
    launch()
    stream.synchronize()
    found: list[float] = []
    stop = time.perf_counter() + seconds
    while len(found) < _LEAST_ROUNDS or time.perf_counter() < stop:
        begin.record(stream)
        launch()
        end.record(stream)
        found.append(begin.elapsed(end))
    return max(median(found), 1e-9) / 1e3 / len(calls)


def copy_rate(device: str, n_bytes: int, seconds: float) -> float:
    """Return the bytes per second, read and written, of a copy inside the memory of a GPU."""
    stream, number = Stream(device), device_number("bench", device)
    n_bytes = max(n_bytes // 4, 1) * 4
    a, b = (DeviceArray._empty((n_bytes // 4,), "float32", number, stream.handle) for _ in range(2))

    def call() -> None:
        _core.copy_there(b._memory.address, number, a._memory.address, number, n_bytes, stream.handle)

    return 2 * n_bytes / time_calls(stream, [call], seconds)


def run(options: Options, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure; the result is a dictionary that JSON can hold.

    Raises
    ------
    RuntimeError
        If the device is not there.
    ValueError
        If a format is unknown.
    """
    number = device_number("bench", options.device)
    name = device_name(number)
    gpu = next(d for d in devices() if d.name == name)
    formats = options.chosen_formats()
    cache = gpu.cache_bytes or _UNKNOWN_CACHE
    n_bytes = max(options.n_bytes, _CACHES * cache if options.n_bytes >= _LEAST_BYTES else 0)
    rate = copy_rate(name, n_bytes, options.seconds)
    report(f"copy: {rate / 1e9:.1f} GB/s")
    rows = []
    for fmt in formats:
        for row in _rows(fmt, name, options, n_bytes, rate):
            report(f"{row.format} {row.op} {row.model} {row.tokens}: {row.microseconds:.1f} us")
            rows.append(row)
    return {
        "device": asdict(gpu),
        "driver": _core.driver_version(number & ~0xFF),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": _core.version,
        "machine": platform.machine(),
        "system": platform.platform(),
        "copy_gbytes_per_s": rate / 1e9,
        "rotated_bytes": n_bytes,
        "rows": [asdict(row) for row in rows],
    }


def _rows(fmt: Format, device: str, options: Options, n_bytes: int, rate: float) -> Iterator[Row]:
    for model, (rows, cols) in options.shapes.items():
        products = [op for op in options.ops if op in ("matvec", "matmul")]
        if products:
            experts = max(2, experts_to_rotate(fmt, [(rows, cols)], n_bytes, 1))
            blocks = random_blocks(fmt, (experts, rows, cols))
            t = PackedTensor.from_blocks(blocks, fmt, (experts, rows, cols)).to(device=device)
            for op in products:
                for tokens in options.chosen_tokens(op):
                    seconds, error = _product(t, blocks, op, tokens, options.seconds)
                    size = t.nbytes / experts
                    yield _row(fmt, op, model, t, tokens, seconds, rows * cols * tokens, size, rate, error)
        if "moe" in options.ops:
            layer = _Layer(fmt, rows, cols, n_bytes, device)
            for tokens in options.chosen_tokens("moe"):
                seconds, used = layer.time(tokens, options.seconds)
                weights = 3 * rows * cols * tokens * EXPERTS_PER_TOKEN
                size = layer.n_bytes / layer.experts * used
                yield _row(fmt, "moe", model, layer.up, tokens, seconds, weights, size, rate, layer.error)


def _row(
    fmt: Format,
    op: str,
    model: str,
    t: PackedTensor,
    tokens: int,
    seconds: float,
    weights: float,
    n_bytes: float,
    rate: float,
    error: float,
) -> Row:
    count = tokens * EXPERTS_PER_TOKEN if op == "moe" else tokens
    kernel = supports(fmt, op, t.device, layout=t.layout, tokens=count) or "-"
    speed = n_bytes / seconds
    rows, cols = t.shape[1:]
    timed = {
        "microseconds": 1e6 * seconds,
        "gweights_per_s": weights / seconds / 1e9,
        "gbytes_per_s": speed / 1e9,
        "copy_part": speed / rate,
    }
    return Row(
        format=fmt.name, op=op, model=model, rows=rows, cols=cols, tokens=tokens, kernel=kernel, error=error, **timed
    )


def _input(tokens: int, cols: int) -> Any:
    return np.random.default_rng(1).standard_normal((tokens, cols), np.float32)


def _product(t: PackedTensor, blocks: Any, op: str, tokens: int, seconds: float) -> tuple[float, float]:
    stream = Stream(t.device)
    _, rows, cols = t.shape
    x = _input(tokens, cols) if op == "matmul" else _input(1, cols)[0]
    there = to_device(x, t.device, stream=stream)
    out = to_device(np.zeros((tokens, rows) if op == "matmul" else (rows,), np.float32), t.device, stream=stream)
    run_one = matmul if op == "matmul" else matvec
    experts = [t[e] for e in range(len(t))]
    run_one(experts[0], there, out=out, stream=stream)
    some = np.unique(np.linspace(0, rows - 1, min(rows, 16)).astype(int))
    exact = x.astype(np.float64) @ defined(blocks[0, some], t.format.name, (len(some), cols)).astype(np.float64).T
    error = relative_error(out.numpy()[..., some], exact)
    calls = [partial(run_one, w, there, out=out, stream=stream) for w in experts]
    return time_calls(stream, calls, seconds), error


class _Layer:
    """Expert layers of one format on a GPU: 8 experts per token, all experts in turn."""

    def __init__(self, fmt: Format, rows: int, cols: int, n_bytes: int, device: str) -> None:
        sizes = [(rows, cols), (rows, cols), (cols, rows)]
        self.experts = max(2 * EXPERTS_PER_TOKEN, experts_to_rotate(fmt, sizes, n_bytes, EXPERTS_PER_TOKEN))
        self.here = [
            PackedTensor.from_blocks(random_blocks(fmt, (self.experts, *size), seed), fmt, (self.experts, *size))
            for seed, size in enumerate(sizes)
        ]
        self.gate, self.up, self.down = (t.to(device=device) for t in self.here)
        self.n_bytes = self.gate.nbytes + self.up.nbytes + self.down.nbytes
        self.error = 0.0

    def time(self, tokens: int, seconds: float) -> tuple[float, float]:
        """Return the seconds of a call and how many experts it uses; sets `error`."""
        stream, device = Stream(self.up.device), self.up.device
        ids = routes(self.experts, tokens)
        cols = self.up.shape[2]
        x = _input(tokens, cols)
        shares = np.full(ids.shape[1:], 1 / EXPERTS_PER_TOKEN, np.float32)
        there, there_shares = (to_device(a, device, stream=stream) for a in (x, shares))
        there_ids = [to_device(i, device, stream=stream) for i in ids]
        out = to_device(np.zeros((tokens, cols), np.float32), device, stream=stream)

        def call(i: DeviceArray) -> None:
            moe(there, i, there_shares, self.gate, self.up, self.down, out=out, stream=stream)

        call(there_ids[0])
        one = moe(x[:1], ids[0, :1], shares[:1], *self.here, exact=True)
        self.error = relative_error(out.numpy()[:1], one)
        calls = [partial(call, i) for i in there_ids]
        return time_calls(stream, calls, seconds), float(np.mean([len(np.unique(i)) for i in ids]))


def text_of(found: dict[str, Any]) -> str:
    """Lay the figures out."""
    device = found["device"]
    title = f"{device['name']}: {device['detail']}; copy {found['copy_gbytes_per_s']:.1f} GB/s, read and written"
    header = ("format", "op", "model", "shape", "tokens", "kernel", "us", "G/s", "GB/s", "of copy", "error")
    rows = [
        (
            r["format"], r["op"], r["model"], f"{r['rows']}x{r['cols']}", r["tokens"], r["kernel"],
            f"{r['microseconds']:.1f}", f"{r['gweights_per_s']:.1f}", f"{r['gbytes_per_s']:.1f}",
            f"{100 * r['copy_part']:.0f} %", f"{r['error']:.2g}",
        )
        for r in found["rows"]
    ]  # fmt: skip
    return f"{title}\n\n{table(header, rows, '    r rrrrr')}"


def write_record(found: dict[str, Any], path: Path) -> None:
    """Write the rows as CSV, and everything as JSON beside it."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found["rows"][0]))
        writer.writeheader()
        writer.writerows(found["rows"])
    path.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
