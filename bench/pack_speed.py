"""Speed and error of packing, lutkern beside ggml: python bench/pack_speed.py [--out FILE.csv]

Every format, on the matrices of pack_matrices.py. The two take turns; the time of one thread is its CPU time, that of
all threads is wall time; best and median of several runs, in million weights per second. The error is sum(importance *
(w - decoded)^2), as a ratio of lutkern's to ggml's; errors below 1e-5 of sum(importance * w^2) count as that. The last
lines are, per format and effort, the speeds over the whole test set and the mean and the worst ratio of errors.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import lutkern
import records
from lutkern.bench.environment import environment as bench_environment
from pack_matrices import Case, cases

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import ggml_rival

EFFORTS = ("fast", "default", "best")
NEGLIGIBLE = 1e-5  # error, relative to sum(importance * w^2): q4_1 and q5_1 hold the matrices of SmolLM2 exactly


def seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return how long one run takes."""
    start = clock()
    run()
    return clock() - start


def ggml_on(pool: ThreadPoolExecutor, threads: int, case: Case, fmt: lutkern.Format) -> None:
    """Pack with ggml, an equal share of the rows on each thread."""
    parts = np.array_split(case.w, threads)
    list(pool.map(lambda part: ggml_rival.pack(part, fmt, case.importance), parts))


def error(case: Case, t: lutkern.PackedTensor) -> float:
    """Return the importance-weighted squared error."""
    return float(np.square(case.w.astype(np.float64) - lutkern.dequantize(t)).sum(0) @ case.importance)


def measure(case: Case, fmt: lutkern.Format, runs: int, threads: int, pool: ThreadPoolExecutor) -> list[dict[str, Any]]:
    """One row for each effort."""
    packers: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "ggml": (lambda: ggml_rival.pack(case.w, fmt, case.importance), lambda: ggml_on(pool, threads, case, fmt))
    }
    for effort in EFFORTS:
        packers[effort] = tuple(  # type: ignore[assignment]
            lambda e=effort, n=n: lutkern.pack(case.w, fmt, importance=case.importance, effort=e, threads=n)
            for n in (1, threads)
        )
    one, every = defaultdict(list), defaultdict(list)
    for _ in range(runs):
        for who, (alone, together) in packers.items():
            one[who].append(seconds(alone, time.thread_time))
            every[who].append(seconds(together, time.perf_counter))
    negligible = NEGLIGIBLE * float(np.square(case.w, dtype=np.float64).sum(0) @ case.importance)
    theirs = error(case, ggml_rival.pack(case.w, fmt, case.importance))
    rows = []
    for effort in EFFORTS:
        row: dict[str, Any] = {"format": fmt.name, "effort": effort, "matrix": case.matrix}
        row |= {"importance": case.importance_name, "weights": case.w.size}
        for who, name in ((effort, "lutkern"), ("ggml", "ggml")):
            row |= {f"{name}_seconds": min(one[who]), f"{name}_seconds_median": float(np.median(one[who]))}
            row |= {f"{name}_seconds_all": min(every[who]), f"{name}_seconds_all_median": float(np.median(every[who]))}
        ours = error(case, lutkern.pack(case.w, fmt, importance=case.importance, effort=effort))
        ratio = max(ours, negligible) / max(theirs, negligible)
        rows.append(row | {"lutkern_error": ours, "ggml_error": theirs, "error_ratio": ratio})
    return rows


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """A table over the whole test set, one line for each format and effort."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["format"], row["effort"]].append(row)
    columns = ["format", "effort", "M weights/s, 1 thread: lutkern", "ggml", "ratio", "all threads: lutkern", "ggml"]
    columns += ["ratio", "error ratio, mean", "worst"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for (fmt, effort), group in groups.items():
        weights = sum(row["weights"] for row in group) / 1e6
        cells = [fmt, effort]
        for suffix in ("", "_all"):
            ours, theirs = (
                weights / sum(row[f"{who}_seconds{suffix}"] for row in group) for who in ("lutkern", "ggml")
            )
            cells += [f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.1f}x"]
        ratios = [row["error_ratio"] for row in group]
        lines.append("| " + " | ".join([*cells, f"{np.mean(ratios):.3f}", f"{max(ratios):.3f}"]) + " |")
    return lines


def environment(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("lutkern", "numpy", "libggml-python")
    return {"threads": threads, "kernels": lutkern.supports("iq1_m", "pack"), **bench_environment(packages)}


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the rows as CSV, the environment beside it as JSON")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--formats", help="names, separated by commas (default: all that both can pack)")
    options = parser.parse_args()
    threads = lutkern.num_threads()
    wanted = options.formats.split(",") if options.formats else None
    formats = [f for f in lutkern.formats() if f.can_pack and not f.is_float]
    rows: list[dict[str, Any]] = []
    test_set = list(cases())
    with ThreadPoolExecutor(threads) as pool:
        for fmt in formats:
            if wanted is None or fmt.name in wanted:
                for case in test_set:
                    rows += measure(case, fmt, options.runs, threads, pool)
                print(f"{fmt.name} done", file=sys.stderr, flush=True)
    print("\n".join(summary(rows)))
    if options.out:
        records.write(options.out, rows, environment(threads))


if __name__ == "__main__":
    main()
