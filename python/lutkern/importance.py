"""`Importance`: how much each input column of each weight matters, for `lutkern.pack`. Others call it the imatrix."""

from __future__ import annotations

import math
import operator
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from .arrays import as_array, whole_number
from .gguf_metadata import MAX_NAME_BYTES, quoted
from .importance_entry import Cleaned, Entry, Float64s, Int64s, clean
from .importance_files import KINDS, MAX_INT32, Content, read_file, write_file

MAX_EXPERTS = 1 << 16  # of one weight; the largest models have a few hundred
DEFAULT_CHUNK_SIZE = 512  # tokens; llama.cpp's


@final
class Importance:
    """The mean of the squared inputs of each column, per weight name; for weights with experts, per expert.

    Collect it with `update` while calibration text runs through a model, or `read` a file of llama.cpp's imatrix tool;
    `for_weight` makes what `lutkern.pack` takes. The names are those of the weights, and ``in``, ``len`` and iteration
    are about them.

    Parameters
    ----------
    chunk_size
        Tokens in a chunk, the unit in which files count. Only files and `chunk_count` use it.

    Attributes
    ----------
    datasets : list of str
        What the inputs were, one text for each source; kept in files.

    Raises
    ------
    TypeError, ValueError
        If `chunk_size` is no whole number, or less than 1 or more than 2^31 - 1.
    """

    def __init__(self, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> None:
        self._chunk_size = whole_number("Importance", "chunk_size", chunk_size, MAX_INT32)
        self._chunk_count = 0
        self._entries: dict[str, Entry] = {}
        self.datasets: list[str] = []

    @property
    def chunk_size(self) -> int:
        """Tokens in a chunk."""
        return self._chunk_size

    @property
    def chunk_count(self) -> int:
        """Chunks that went in: what the files that were read say, or what the largest count makes, if that is more."""
        most = max((int(entry.counts.max()) for entry in self._entries.values()), default=0)
        return max(self._chunk_count, -(-most // self._chunk_size))

    def names(self) -> tuple[str, ...]:
        """Return the names of the weights, in the order in which they came."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        routed = sum(entry.routed for entry in self._entries.values())
        return f"<Importance: {len(self)} weights, {routed} with experts, {self.chunk_count} chunks>"

    def counts(self, name: str) -> Int64s:
        """Return how many tokens were counted: int64 (1,), or (experts,). KeyError if there is no such name."""
        return np.array(self._entry("counts", name).counts)

    def mean(self, name: str) -> Float64s:
        """Return the mean squares as they are: float64 (cols,), or (experts, cols). KeyError for an unknown name.

        NaN for an expert without a token, and whatever a file holds: `for_weight` makes it fit for `pack`.
        """
        entry = self._entry("mean", name)
        mean = entry.mean()
        return mean if entry.routed else np.asarray(mean[0])

    def skipped(self, name: str) -> int:
        """Return how many tokens were left out because they were not finite. KeyError for an unknown name."""
        return self._entry("skipped", name).skipped

    def _entry(self, method: str, name: str) -> Entry:
        if name not in self._entries:
            expected = f"expected one of {len(self)} names"
            raise KeyError(f"Importance.{method}: no weight {quoted(str(name))}, {expected}")
        return self._entries[name]

    def update(self, name: str, x: Any, expert_ids: Any = None, *, experts: int | None = None) -> None:
        """Add the inputs of a weight. A token with a number that is not finite is left out, see `skipped`.

        Parameters
        ----------
        name
            The name of the weight.
        x
            (..., cols) float32, float16 or bfloat16; any array with DLPack or the buffer protocol. Every row is a
            token; zero tokens are fine.
        expert_ids
            For a weight with experts, integers: (..., k), the experts that each row of x goes to, or (...), the one
            expert of each row, for inputs that are already per expert: the `down` projection's are (tokens, k, inter)
            with ids (tokens, k). A token adds to each of its experts, to one that is named twice two times.
        experts
            How many experts the weight has. Without it the number grows with the ids.

        Raises
        ------
        ValueError
            If a shape does not fit what came before, or an expert id is out of range; nothing is added.
        TypeError
            If an element type does not fit.
        """
        where = f"Importance.update: {_checked_name(name)}"
        rows, lead = _rows_input(where, x)
        if experts is not None:
            if expert_ids is None:
                raise ValueError(f"{where}: experts came without expert_ids, expected both")
            experts = whole_number(where, "experts", experts, MAX_EXPERTS)
        if expert_ids is None:
            self._dense_entry(where, name, rows.shape[1]).add(rows, None)
            return
        ids = _ids_input(where, expert_ids, lead)
        self._routed_entry(where, name, rows.shape[1], ids, experts).add(rows, ids)

    def _dense_entry(self, where: str, name: str, cols: int) -> Entry:
        entry = self._entries.setdefault(name, Entry.empty(None, cols, settled=False))
        if entry.routed:
            raise ValueError(f"{where}: x came without expert_ids, the weight has {len(entry.counts)} experts")
        if entry.sums.shape[1] != cols:
            raise ValueError(f"{where}: x has {cols} columns, the weight has {entry.sums.shape[1]}")
        return entry

    def _routed_entry(
        self, where: str, name: str, cols: int, ids: npt.NDArray[np.integer[Any]], experts: int | None
    ) -> Entry:
        """Find or make the entry with room for the ids, after all checks."""
        entry = self._entries.get(name)
        # Experts in a row, as a legacy file has them, are taken apart when the columns say how many they are.
        joined = entry is not None and entry.joined(cols)
        if entry is not None and not entry.routed and not joined:
            raise ValueError(f"{where}: x came with expert_ids, the weight has no experts")
        have = 0 if entry is None else entry.sums.shape[1] // cols if joined else len(entry.counts)
        settled = entry is not None and entry.settled
        limit = experts or (have if settled else MAX_EXPERTS)
        if ids.size and not (ids.min() >= 0 and ids.max() < limit):
            raise ValueError(f"{where}: expert_ids reach from {ids.min()} to {ids.max()}, expected 0 to {limit - 1}")
        need = experts or max(have, 1, 1 + int(ids.max(initial=0)))
        if entry is None:
            entry = Entry.empty(need, cols, settled=experts is not None)
        else:
            fitting = entry.fit(need, cols)
            if fitting is None:
                raise ValueError(f"{where}: x and experts make {need} x {cols}, the weight has {entry.size}")
            entry = fitting
            entry.settled = settled or experts is not None
        self._entries[name] = entry
        return entry

    def merge(self, *others: Importance) -> None:
        """Add the sums and counts of others, as if their tokens had come here; the names of any of them.

        Raises
        ------
        ValueError
            If the sizes of a weight do not agree; nothing is added.
        TypeError
            If an argument is no Importance.
        """
        merged = dict(self._entries)
        datasets, chunk_count = list(self.datasets), self._chunk_count
        for other in others:
            if not isinstance(other, Importance):
                raise TypeError(f"Importance.merge: other is {type(other).__name__}, expected an Importance")
            for name, entry in other._entries.items():
                merged[name] = entry.copy() if name not in merged else _sum(name, merged[name], entry)
            datasets += [text for text in other.datasets if text not in datasets]
            chunk_count += other._chunk_count
        self._entries, self.datasets, self._chunk_count = merged, datasets, chunk_count

    def for_weight(self, name: str, shape: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the importance that `pack` takes for a weight: finite and positive, whatever was collected.

        Numbers that are zero, negative or not finite become the mean of the others of their vector. An expert that no
        token was routed to, or without any good number, gets the mean of the nearest experts that have some, one on
        each side (at the ends: the nearest). A weight without anything gets ones. One warning tells how much was
        replaced. A weight that was collected with one vector gives it to all experts; experts that a legacy file holds
        in a row are taken apart.

        Parameters
        ----------
        name
            The name of the weight.
        shape
            (rows, cols) or (experts, rows, cols).

        Returns
        -------
        ndarray
            float32 (cols,) or (experts, cols).

        Raises
        ------
        ValueError
            If the weight was collected with other sizes.
        TypeError
            If the shape does not hold whole numbers.
        """
        sizes = _checked_shape(shape)
        experts, cols = math.prod(sizes[:-2]), sizes[-1]
        entry, cleaned = self._entries.get(name), None
        if entry is not None:
            one = not entry.routed and entry.sums.shape[1] == cols
            fitting = entry.fit(1 if one else experts, cols)
            if fitting is None:
                where = f"Importance.for_weight: {quoted(name)}"
                raise ValueError(f"{where} is {entry.size}, the weight is {' x '.join(map(str, sizes))}")
            cleaned = clean(fitting.mean())
        _warn_replaced(name, cleaned)
        values = np.ones((1, cols), np.float32) if cleaned is None else cleaned.values
        return np.array(values[0] if len(sizes) == 2 else np.broadcast_to(values, (experts, cols)))

    @classmethod
    def read(cls, path: str | bytes | os.PathLike[str], *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Importance:
        """Read an importance file of llama.cpp, of the GGUF kind or the legacy one (`.dat`), told apart by content.

        A legacy file has one count for a weight: all experts get it, and `merge` weighs them alike. Experts without
        data are marked there by zeros or by ones, and taken for missing. Where a GGUF file also holds the sums of the
        inputs (`.in_sum`), they are left out.

        Parameters
        ----------
        path
            The file.
        chunk_size
            Tokens in a chunk, if the file does not say it: legacy files count chunks, and never do.

        Raises
        ------
        OSError
            The file is missing or cannot be read.
        ValueError
            The content is not well formed.
        """
        importance = cls(chunk_size=chunk_size)
        content = read_file(os.fsdecode(path), importance.chunk_size)
        importance._chunk_size, importance._chunk_count = content.chunk_size, content.chunk_count
        importance._entries, importance.datasets = content.entries, content.datasets
        return importance

    def write(self, path: str | bytes | os.PathLike[str], *, kind: str | None = None) -> None:
        """Write a file that llama.cpp reads, too; an existing one is replaced when the new one is complete.

        The GGUF kind keeps everything, as float32, and needs the gguf package (extra `[gguf]`). The legacy kind loses
        the counts of experts, the weights without a token, and all but the last of `datasets`.

        Parameters
        ----------
        path
            The file; its folder exists.
        kind
            ``"gguf"`` or ``"dat"``; by default what the name ends in.

        Raises
        ------
        ImportError
            The gguf package is not installed.
        ValueError
            The kind is unknown, there is nothing to write, or something does not fit the file.
        OSError
            The file cannot be written.
        """
        target = os.fsdecode(path)
        kind = os.path.splitext(target)[1].removeprefix(".").lower() if kind is None else kind
        if kind not in KINDS:
            raise ValueError(f"Importance.write: unknown kind {kind!r}, expected one of: {', '.join(KINDS)}")
        if not self._entries:
            raise ValueError("Importance.write: there are no weights, expected at least one")
        for text in self.datasets:
            _expect_text("Importance.write: datasets", text)
        write_file(target, Content(self._chunk_size, self._entries, list(self.datasets), self.chunk_count), kind)


def _sum(name: str, entry: Entry, other: Entry) -> Entry:
    total = entry.plus(other)
    if total is None:
        raise ValueError(f"Importance.merge: {quoted(name)} is {other.size}, expected {entry.size}")
    return total


def _expect_text(what: str, text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{what} has {type(text).__name__}, expected str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} has a lone surrogate at {error.start}, expected valid UTF-8") from None
    return text


def _checked_name(name: Any) -> str:
    """Check the name of a weight; for messages."""
    n_bytes = len(_expect_text("Importance.update: name", name).encode("utf-8"))
    if not 1 <= n_bytes <= MAX_NAME_BYTES:
        raise ValueError(f"Importance.update: name has {n_bytes} bytes, expected 1 to {MAX_NAME_BYTES}")
    return quoted(name)


def _rows_input(where: str, x: Any) -> tuple[npt.NDArray[Any], tuple[int, ...]]:
    """Return x as (tokens, cols), and its leading dimensions."""
    array = as_array(where, "x", x)
    if array.dtype.newbyteorder("=") not in (np.float32, np.float16):
        raise TypeError(f"{where}: x is {array.dtype}, expected float32, float16 or bfloat16")
    if array.ndim < 1 or not array.shape[-1]:
        raise ValueError(f"{where}: x has shape {array.shape}, expected (..., cols) with at least 1 column")
    lead = array.shape[:-1]
    return array.reshape(math.prod(lead), array.shape[-1]), lead


def _ids_input(where: str, expert_ids: Any, lead: tuple[int, ...]) -> npt.NDArray[np.integer[Any]]:
    """Return expert_ids as (tokens, k)."""
    ids = as_array(where, "expert_ids", expert_ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{where}: expert_ids is {ids.dtype}, expected integers")
    if ids.shape != lead and ids.shape[:-1] != lead:
        expected = f"expected {lead} or {(*lead, 'k')}, as x has rows".replace("'", "")
        raise ValueError(f"{where}: expert_ids has shape {ids.shape}, {expected}")
    k = 1 if ids.shape == lead else ids.shape[-1]
    # A copy: nobody may change an id between its check and its use.
    return np.array(ids.reshape(math.prod(lead), k))


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"Importance.for_weight: shape is {shape!r}, expected whole numbers") from None
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        expected = "expected (rows, cols) or (experts, rows, cols), each at least 1"
        raise ValueError(f"Importance.for_weight: shape is {sizes}, {expected}")
    return sizes


def _warn_replaced(name: str, cleaned: Cleaned | None) -> None:
    """Warn once, in the name of for_weight's caller."""
    if cleaned is None:
        texts = ["no importance, replaced by ones"]
    else:
        experts, cols = cleaned.values.shape
        texts = []
        if cleaned.experts:
            texts.append(f"{cleaned.experts} of {experts} experts without importance, replaced by that of neighbours")
        if cleaned.entries:
            n = (experts - cleaned.experts) * cols
            texts.append(f"{cleaned.entries} of {n} numbers not finite and positive, replaced by the mean of others")
    if texts:
        warnings.warn(f"Importance.for_weight: {quoted(name)}: {'; '.join(texts)}", RuntimeWarning, stacklevel=3)
