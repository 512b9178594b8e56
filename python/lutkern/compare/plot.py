"""A picture of a comparison: the error of each tensor against its bits per weight. Needs matplotlib, extra `[plot]`."""

from __future__ import annotations

import errno
import math
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text_table import printable
from .tensors import Errors, TensorErrors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .files import Comparison

_SUFFIXES = (".png", ".pdf", ".svg")
_TICKS = (1, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 10, 12, 16, 24, 32)


def check_plot(path: Path) -> None:
    """Find out whether a picture could be drawn into a file of that name.

    Raises
    ------
    ValueError
        If the name does not end as a picture does.
    OSError
        If the folder is not there.
    ImportError
        If matplotlib is not installed.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"plot: the file is {path.name!r}, expected a name that ends in {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("plot: the package 'matplotlib' is missing: pip install 'lutkern[plot]'") from None


def plot(found: Comparison, path: Path) -> None:
    """Draw a comparison into a file: png, pdf or svg by its name. Raises as `check_plot` and `draw` do."""
    check_plot(path)
    draw(found).savefig(path)


def draw(found: Comparison) -> Figure:
    """Draw a comparison: a matplotlib figure.

    A point for each tensor, at its bits per weight in B (points of one format stand side by side in the order of
    their names), a diamond for all tensors of a format, a star for the whole. Tensors without an error are left out.

    Raises
    ------
    ValueError
        If no tensor has an error.
    ImportError
        If matplotlib is not installed.
    """
    from matplotlib import color_sequences
    from matplotlib.figure import Figure

    shown = [tensor for tensor in found.tensors if _drawn(tensor.errors)]
    if not shown:
        raise ValueError("plot: no tensor of B differs from A by a finite error, expected at least one")
    figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    lanes = _lanes({tensor.format_b: tensor.errors.bits_b for tensor in shown})
    colors = color_sequences["tab10" if len(lanes) <= 10 else "tab20"]
    for number, (name, lane) in enumerate(lanes.items()):
        tensors = [tensor for tensor in shown if tensor.format_b == name]
        label = f"{name}: {found.formats[name].tensors}, {_error(found.formats[name]):.3g}"
        _draw_points(axes, tensors, lane, colors[number % len(colors)], label, found.total.weighted is not None)
    groups = {name: found.formats[name] for name in lanes if _drawn(found.formats[name])}
    centres = [math.sqrt(math.prod(lanes[name])) for name in groups]
    errors = [_error(group) for group in groups.values()]
    axes.plot(centres, errors, "D", ms=7, mfc="none", mec="black", mew=1.2, zorder=4, label="all of a format")
    if _drawn(found.total) and len(found.formats) > 1:
        label = f"all {found.total.tensors}, {found.total.bits_b:.2f} bits: {_error(found.total):.3g}"
        axes.plot(found.total.bits_b, _error(found.total), "*", color="black", ms=14, ls="none", zorder=4, label=label)
    _dress(axes, found, len(shown))
    figure.legend(loc="outside right upper", title="format of B: tensors, error", alignment="left", frameon=False)
    return figure


def _error(errors: Errors) -> float:
    return errors.badness[1]


def _drawn(errors: Errors) -> bool:
    return 0 < _error(errors) < math.inf


def _lanes(bits: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Give each format its own room on the axis, left and right end; those with the same bits share theirs."""
    places = sorted(set(bits.values()))
    # Distances are ratios: the axis is logarithmic.
    gaps = [math.inf, *(math.log2(b / a) for a, b in pairwise(places)), math.inf]
    lanes = {}
    for place, (below, above) in zip(places, pairwise(gaps), strict=True):
        half = min(0.4 * below, 0.4 * above, 0.08)
        names = sorted(name for name in bits if bits[name] == place)
        for i, name in enumerate(names):
            ends = (-half + 2 * half * (i + side) / len(names) for side in (0.1, 0.9))
            left, right = (place * 2.0**end for end in ends)
            lanes[name] = left, right
    return lanes


def _draw_points(
    axes: Axes, tensors: list[TensorErrors], lane: tuple[float, float], color: Any, label: str, weighted: bool
) -> None:
    """Draw the tensors of one format side by side in their lane."""
    left, right = lane
    tensors = sorted(tensors, key=lambda tensor: _natural(tensor.name))
    places = [left + (right - left) * (i + 0.5) / len(tensors) for i in range(len(tensors))]
    hollow = [weighted and tensor.errors.weighted is None for tensor in tensors]
    faces = ["white" if empty else color for empty in hollow]
    errors = [_error(tensor.errors) for tensor in tensors]
    axes.scatter(places, errors, s=12, facecolors=faces, edgecolors=color, linewidths=0.8, alpha=0.7, zorder=3)
    axes.plot([], [], "o", color=color, label=label)  # a full point for the legend


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: numbers in a name count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _dress(axes: Axes, found: Comparison, n_shown: int) -> None:
    """Scales, labels, ticks, title."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    weighted = found.total.weighted is not None
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(_widened(axes.get_xlim(), ratio=2))
    axes.set_ylim(_widened(axes.get_ylim(), ratio=10))
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel(f"relative {'importance-weighted ' if weighted else ''}RMS error of B against A")
    axes.grid(alpha=0.3)
    title = f"{Path(found.b).name} (B) against {Path(found.a).name} (A)"
    axes.set_title(printable(title), fontsize=11, parse_math=False)
    notes = ["bits per weight of B (tensors of one format lie side by side, in the order of their names)"]
    if weighted and any(tensor.errors.weighted is None for tensor in found.tensors):
        notes.append("hollow points: no importance, plain RMS error")
    if n_shown < found.total.tensors:
        notes.append(f"not shown: {found.total.tensors - n_shown} tensors whose error is 0 or not finite")
    axes.set_xlabel("\n".join(notes))


def _widened(limits: tuple[float, float], ratio: float) -> tuple[float, float]:
    """Make the range of an axis at least `ratio` wide, so that small differences look small."""
    low, high = limits
    factor = max(1.0, ratio / (high / low)) ** 0.5
    return low / factor, high * factor
