"""Pictures of a record of product_speed.py: speed against the roofline, and speed over the number of tokens.

Two files lie beside the record, or in --out: RECORD-roofline.png with matvec's GB/s of packed bytes, and
RECORD-batches.png with matmul's multiply-adds per second. They show the best instruction set and the first shape of the
record unless told otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import lutkern
import records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart; hatches and markers say the same again.
STYLES = {
    "ggml": {"color": "#777777", "marker": "s", "hatch": "////", "linestyle": ":"},
    "blocks": {"color": "#0072B2", "marker": "o", "hatch": "", "linestyle": "--"},
    "tiles": {"color": "#D55E00", "marker": "^", "hatch": "", "linestyle": "-"},
}
NAMES = {"ggml": "ggml", "blocks": "lutkern, blocks", "tiles": "lutkern, tiles"}
Rows = list[dict[str, str]]


def chosen(rows: Rows, op: str, isa: str | None, shape: str | None) -> Rows:
    """Return the rows of an operation on one instruction set and shape. SystemExit if there are none."""
    rows = [row for row in rows if row["op"] == op]
    isa = isa or next((row["isa"] for row in rows), None)
    rows = [row for row in rows if row["isa"] == isa]
    shape = shape or next((f"{row['rows']}x{row['cols']}" for row in rows), None)
    rows = [row for row in rows if f"{row['rows']}x{row['cols']}" == shape]
    if not rows:
        raise SystemExit(f"plot: no rows of {op} for isa {isa} and shape {shape}")
    return rows


def _distinct(rows: Rows, name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows))


def speeds(rows: Rows, column: str) -> dict[str, float]:
    """Return a rate of ggml and of each layout, from the rows of one format and number of tokens and threads.

    GB/s of ggml are those of the bytes that it reads: blocks.
    """
    found: dict[str, float] = {}
    for row in rows:
        found[row["layout"]] = float(row[column])
        if row["rival_seconds_median"]:
            (fmt,) = (f for f in lutkern.formats() if f.name == row["format"])
            smaller = fmt.bits_per_weight / float(row["bits_per_weight"]) if column == "gbytes_per_s" else 1.0
            theirs = float(row["seconds_median"]) / float(row["rival_seconds_median"])
            found.setdefault("ggml", float(row[column]) * theirs * smaller)
    return {name: found[name] for name in STYLES if name in found}


def roofline(rows: Rows, title: str) -> Figure:
    """Draw GB/s of packed bytes for each format, a panel for each number of threads."""
    from matplotlib.figure import Figure

    panels = sorted(_distinct(rows, "threads"), key=int)
    formats = _distinct(rows, "format")
    size = (1.6 + 5.4 * len(panels), 1.9 + 0.75 * len(formats))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, threads in zip(all_axes, panels, strict=True):
        _draw_bars(axes, [row for row in rows if row["threads"] == threads], formats)
        axes.set_title(f"{threads} thread{'s' if threads != '1' else ''}", fontsize=11)
    handles = all_axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2 if len(panels) == 1 else len(STYLES) + 1, frameon=False)
    figure.suptitle(title, fontsize=12)
    return figure


def _draw_bars(axes: Axes, rows: Rows, formats: Sequence[str]) -> None:
    memory = median(float(row["roofline_gbytes_per_s"]) for row in rows)
    found = {fmt: speeds([row for row in rows if row["format"] == fmt], "gbytes_per_s") for fmt in formats}
    names = [name for name in STYLES if any(name in speed for speed in found.values())]
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [y - 0.4 + (i + 0.5) * height for y, fmt in enumerate(formats) if name in found[fmt]]
        values = [found[fmt][name] for fmt in formats if name in found[fmt]]
        look = {key: STYLES[name][key] for key in ("color", "hatch")}
        axes.barh(places, values, 0.92 * height, edgecolor="white", label=NAMES[name], zorder=2, **look)
        for y, value in zip(places, values, strict=True):
            # Inside of a long bar: outside it would meet the line of the roofline.
            inside = value > 0.6 * memory
            place = {"color": "white", "ha": "right"} if inside else {"color": "black", "ha": "left"}
            text, shift = f"{value:.1f}  ({100 * value / memory:.0f} %)", (-4 if inside else 4, -0.5)
            axes.annotate(text, (value, y), shift, textcoords="offset points", va="center", fontsize=8, **place)
    axes.axvline(memory, color="black", linewidth=1.5, zorder=1, label="roofline: a plain read of memory")
    axes.annotate(f" {memory:.1f}", (memory, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    axes.set_xlim(0, 1.1 * max(memory, *(value for speed in found.values() for value in speed.values())))
    axes.set_ylim(len(formats) - 0.5, -0.7)
    axes.set_yticks(range(len(formats)), formats)
    axes.set_xlabel("GB/s of packed bytes (part of the roofline)")
    axes.spines[["top", "right"]].set_visible(False)


def batches(rows: Rows, title: str) -> Figure:
    """Draw multiply-adds per second over the number of tokens, a panel for each format."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    formats = _distinct(rows, "format")
    columns = min(4, len(formats))
    lines = -(-len(formats) // columns)
    figure = Figure(figsize=(1 + 3.1 * columns, 1.5 + 2.5 * lines), dpi=150, layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    counts = sorted({int(row["tokens"]) for row in rows})
    for axes, fmt in zip(grid.flat, formats, strict=False):
        _draw_curves(axes, [row for row in rows if row["format"] == fmt])
        axes.set_title(fmt, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(_ticks(counts)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(formats) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(0, len(formats) - columns) : len(formats)]:  # the lowest of each column
        axes.set_xlabel("tokens")
    grid[0, 0].set_ylim(bottom=0)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(STYLES), frameon=False)
    figure.supylabel("10⁹ multiply-adds per second", fontsize=10)
    figure.suptitle(title, fontsize=12)
    return figure


def _ticks(counts: Sequence[int]) -> list[int]:
    """Return the powers of two among them, or all if there are none: neighbours would touch."""
    return [count for count in counts if count & (count - 1) == 0] or list(counts)


def _draw_curves(axes: Axes, rows: Rows) -> None:
    tokens = sorted({int(row["tokens"]) for row in rows})
    found = {n: speeds([row for row in rows if int(row["tokens"]) == n], "gweights_per_s") for n in tokens}
    for name, style in STYLES.items():
        points = [(n, speed[name]) for n, speed in found.items() if name in speed]
        if points:
            line = {key: style[key] for key in ("color", "marker", "linestyle")}
            axes.plot(*zip(*points, strict=True), markersize=4.5, linewidth=1.6, label=NAMES[name], **line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw both pictures, each if the record has its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="CSV file of product_speed.py")
    parser.add_argument("--out", type=Path, help="folder (default: that of the record)")
    parser.add_argument("--isa", help="instruction set (default: the first of the record)")
    parser.add_argument("--shape", metavar="ROWSxCOLS", help="default: the first of the record")
    parser.add_argument("--threads", help="of the second picture (default: the most of the record)")
    options = parser.parse_args(arguments)
    rows = records.read(options.record)
    cpu = records.environment(options.record).get("cpu")
    folder = options.out or options.record.parent
    for name, op, draw in (("roofline", "matvec", roofline), ("batches", "matmul", batches)):
        shown = chosen(rows, op, options.isa, options.shape)
        what = f"{op}, {shown[0]['rows']} x {shown[0]['cols']}, {shown[0]['isa']}{f' on {cpu}' if cpu else ''}"
        if op == "matmul":
            threads = options.threads or max(_distinct(shown, "threads"), key=int)
            shown = [row for row in shown if row["threads"] == threads]
            what += f", {threads} thread{'s' if threads != '1' else ''}"
        path = folder / f"{options.record.stem}-{name}.png"
        draw(shown, what).savefig(path)
        print(path)


if __name__ == "__main__":
    main()
