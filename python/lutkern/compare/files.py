"""Two GGUF files, one the packed form of the other: which tensors they share, the errors, the totals."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..formats import formats
from ..gguf import GgufFile, TensorInfo, open_gguf
from ..gguf_metadata import quoted
from ..importance import Importance
from .models import ModelErrors, compare_models
from .tensors import Errors, Sums, TensorErrors, measure

WINDOWS, WINDOW_TOKENS = 8, 512  # 4088 predictions


@dataclass(frozen=True)
class Skipped:
    """A tensor that was not compared, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """How far file B is from file A.

    Attributes
    ----------
    a, b
        The paths.
    tensors
        Those of the same name and shape, worst first.
    formats
        Sums over the tensors of each format of B, by its name, fewest bits per weight first.
    total
        Sums over all of them.
    skipped
        Tensors of either file that were not compared.
    model
        What becomes of the language model; None if it was not run.
    model_skipped
        Why it was not run, in one line; None if it was.
    """

    a: str
    b: str
    tensors: tuple[TensorErrors, ...]
    formats: dict[str, Errors]
    total: Errors
    skipped: tuple[Skipped, ...]
    model: ModelErrors | None
    model_skipped: str | None

    def to_dict(self) -> dict[str, Any]:
        """Turn it into dicts, lists, str, int, float and None, for JSON; a number that is not finite becomes None."""
        found = asdict(self)
        found["tensors"] = [{**entry, **entry.pop("errors")} for entry in found["tensors"]]
        plain: dict[str, Any] = _plain(found)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare_files(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    importance: Importance | str | os.PathLike[str] | None = None,
    match: str | None = None,
    model: bool = True,
    windows: int = WINDOWS,
    tokens: int = WINDOW_TOKENS,
    report: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Measure how far a packed GGUF file is from its original.

    Tensors are read piece by piece, so files of any size need little memory. A dense llama model with a byte-level
    tokenizer is also run, from both files, on the help texts of Python's standard library: in NumPy on dequantised
    float32 weights, so that the weights are the only difference. That takes one model as float32 in memory.

    Parameters
    ----------
    a, b
        The original and the packed file, any shard of a split one. Any format that lutkern decodes.
    importance
        Weighs the squared errors of columns; a file of `Importance.read`, or what it gave.
    match
        A regular expression: compare the tensors in whose name it is found. The model always runs as a whole.
    model
        Whether to run the model.
    windows, tokens
        How many windows of how many tokens it runs on; a window is no longer than the context of the model.
    report
        Is told, in one line each, what takes time.

    Raises
    ------
    ValueError
        If a file is not well formed, the importance does not fit, no tensor can be compared, or an option is wrong.
    OSError
        If a file cannot be read.
    """
    pattern = _checked(match, windows, tokens)
    if importance is not None and not isinstance(importance, Importance):
        importance = Importance.read(importance)
    skipped: list[Skipped] = []
    with open_gguf(a) as file_a, open_gguf(b) as file_b:
        names = [name for name in _shared(file_a, file_b, skipped) if pattern.search(name)]
        skipped = [entry for entry in skipped if pattern.search(entry.name)]
        if not names:
            raise ValueError(_nothing(match, skipped))
        report(f"comparing {len(names)} tensors")
        measured = [_measure(file_a, file_b, name, importance) for name in names]
    by_format, total = _totals(measured)
    result, reason = compare_models(a, b, windows, tokens, report) if model else (None, "it was not asked for")
    return Comparison(
        a=os.fspath(a),
        b=os.fspath(b),
        tensors=tuple(sorted((t for t, _ in measured), key=lambda t: t.errors.badness, reverse=True)),
        formats=by_format,
        total=total,
        skipped=tuple(skipped),
        model=result,
        model_skipped=reason,
    )


def _checked(match: str | None, windows: int, tokens: int) -> re.Pattern[str]:
    if windows < 1:
        raise ValueError(f"compare_files: windows is {windows}, expected at least 1")
    if tokens < 2:
        raise ValueError(f"compare_files: tokens is {tokens}, expected at least 2")
    try:
        return re.compile(match or "")
    except re.error as error:
        raise ValueError(f"compare_files: match is {match!r} ({error}), expected a regular expression") from None


def _shared(a: GgufFile, b: GgufFile, skipped: list[Skipped]) -> Iterator[str]:
    """Yield the names of the tensors that can be compared; the others go into `skipped`."""
    for name, info in a.tensors.items():
        other = b.tensors.get(name)
        reason = "only in A" if other is None else _mismatch(info, other)
        if reason is None:
            yield name
        else:
            skipped.append(Skipped(name, reason))
    skipped += [Skipped(name, "only in B") for name in b.tensors if name not in a.tensors]


def _mismatch(a: TensorInfo, b: TensorInfo) -> str | None:
    if _shape(a) != _shape(b):
        return f"shape {a.shape} in A, {b.shape} in B"
    for letter, info in (("A", a), ("B", b)):
        if info.format is None:
            return f"{info.type_name} in {letter}, no format of lutkern"
    if len(_shape(a)) > 3:
        return f"shape {a.shape}, more than 3 dimensions"
    return None


def _shape(info: TensorInfo) -> tuple[int, ...]:
    """Return the shape without leading ones, which files leave out or not."""
    first = next((axis for axis, size in enumerate(info.shape) if size > 1), len(info.shape) - 1)
    return info.shape[first:]


def _measure(a: GgufFile, b: GgufFile, name: str, importance: Importance | None) -> tuple[TensorErrors, Sums]:
    x, y = a[name], b[name]
    columns = importance.for_weight(name, x.shape) if importance is not None and name in importance else None
    sums = measure(x, y, columns)
    return TensorErrors(name, a.tensors[name].shape, x.format.name, y.format.name, sums.errors()), sums


def _totals(measured: list[tuple[TensorErrors, Sums]]) -> tuple[dict[str, Errors], Errors]:
    """Sum up for each format of B, fewest bits per weight first, and over all."""
    groups = {fmt.name: Sums() for fmt in sorted(formats(), key=lambda fmt: fmt.bits_per_weight)}
    total = Sums()
    for tensor, sums in measured:
        groups[tensor.format_b].add(sums)
        total.add(sums)
    return {name: group.errors() for name, group in groups.items() if group.tensors}, total.errors()


def _nothing(match: str | None, skipped: list[Skipped]) -> str:
    """Say why there is nothing to compare."""
    where = "" if match is None else f" whose name matches {match!r}"
    first = f"; {quoted(skipped[0].name)}: {skipped[0].reason}" if skipped else ""
    return f"compare_files: no tensor{where} can be compared, expected at least one{first}"
