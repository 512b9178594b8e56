"""`lutkern quality A B`: its options, its text."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..text_table import printable, table
from .files import WINDOW_TOKENS, WINDOWS, Comparison, Skipped, compare_files
from .models import ModelErrors
from .plot import check_plot, plot
from .tensors import Errors

_COLUMNS = ("weights", "bits A", "bits B", "rel. error", "weighted", "max error", "cosine")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("a", metavar="A", type=Path, help="the original GGUF file, or any shard of a split one")
    parser.add_argument("b", metavar="B", type=Path, help="the packed GGUF file")
    parser.add_argument("--importance", type=Path, metavar="FILE", help="importance of columns: weighted errors, too")
    parser.add_argument("--match", metavar="REGEX", help="only tensors in whose name this is found")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="show the N worst tensors (default: 10)")
    parser.add_argument("--no-model", action="store_true", help="do not run the language model")
    parser.add_argument(
        "--windows", type=int, default=WINDOWS, metavar="N", help=f"windows of text to run it on (default: {WINDOWS})"
    )
    parser.add_argument(
        "--tokens", type=int, default=WINDOW_TOKENS, metavar="N", help=f"tokens of each (default: {WINDOW_TOKENS})"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw errors against bits per weight (png, pdf, svg)")


def run(options: argparse.Namespace) -> int:
    """Compare, tell, draw. Raises as `compare_files` and `plot` do, ValueError also for a wrong --top."""
    if options.top < 0:
        raise ValueError(f"quality: --top is {options.top}, expected 0 or more")
    if options.plot is not None:
        check_plot(options.plot)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        found = compare_files(
            options.a,
            options.b,
            importance=options.importance,
            match=options.match,
            model=not options.no_model,
            windows=options.windows,
            tokens=options.tokens,
            report=lambda line: None if options.json else print(line, file=sys.stderr, flush=True),
        )
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"lutkern: warning: {printable(text)}", file=sys.stderr)
    print(json.dumps(found.to_dict(), indent=2) if options.json else _text(found, options.top))
    if options.plot is not None:
        plot(found, options.plot)
    return 0


def _text(found: Comparison, top: int) -> str:
    """Lay the comparison out: the worst tensors, sums, what was left out, the model."""
    worst = [
        (t.name, " x ".join(map(str, t.shape)), t.format_a, t.format_b, *_cells(t.errors)[1:])
        for t in found.tensors[:top]
    ]
    groups = [(name, errors.tensors, *_cells(errors)) for name, errors in found.formats.items()]
    groups.append(("all", found.total.tensors, *_cells(found.total)))
    parts = [f"A  {printable(found.a)}\nB  {printable(found.b)}"]
    if worst:
        header = ("tensor", "shape", "A", "B", *_COLUMNS[1:])
        parts.append(f"The worst {len(worst)} of {found.total.tensors} tensors:\n" + table(header, worst, " r  rrrrrr"))
    parts.append("By format of B:\n" + table(("format", "tensors", *_COLUMNS), groups, " rrrrrrrr"))
    if found.total.not_finite:
        parts.append(f"{found.total.not_finite} weights are not finite in A or B; the errors are those of the others.")
    if found.skipped:
        parts.append("\n".join(_skipped(found.skipped, max(top, 1))))
    parts.append(f"Model not run: {found.model_skipped}" if found.model is None else _model(found.model))
    return "\n\n".join(parts)


def _cells(errors: Errors) -> tuple[object, ...]:
    weighted = "-" if errors.weighted is None else f"{errors.weighted:.4g}"
    cosine = "-" if errors.cosine is None else f"{errors.cosine:.6f}"
    bits = f"{errors.bits_a:.4f}", f"{errors.bits_b:.4f}"
    return errors.weights, *bits, f"{errors.rmse:.4g}", weighted, f"{errors.max_error:.4g}", cosine


def _skipped(skipped: tuple[Skipped, ...], most: int) -> Iterator[str]:
    yield f"{len(skipped)} tensors not compared:"
    for entry in skipped[:most]:
        yield f"  {printable(entry.name)}: {entry.reason}"
    if len(skipped) > most:
        yield f"  and {len(skipped) - most} more"


def _model(m: ModelErrors) -> str:
    rows = [
        ("perplexity of A", f"{m.perplexity_a:.3f}"),
        ("perplexity of B", f"{m.perplexity_b:.3f}"),
        ("loss of B over A, nats per token", f"{m.loss_increase:.4f} +- {m.loss_increase_error:.4f}"),
        ("KL divergence, nats: mean", f"{m.kl:.4f}"),
        ("KL divergence, nats: 95th percentile", f"{m.kl_p95:.4f}"),
        ("same most likely token", f"{100 * m.top1:.1f} %"),
    ]
    lines = [f"{name:<38}{value}" for name, value in rows]
    size = f"{m.predictions} predictions, {m.windows} windows of {m.tokens} tokens"
    title = f"{printable(m.name)}: {size}, dequantised weights and activations in float32"
    return "\n".join([title, *lines])
