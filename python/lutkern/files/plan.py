"""What a packed file will hold: each tensor with its format, in shards, with sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..formats import Format
from ..gguf_metadata import quoted
from ..gguf_write import MAX_TENSOR_NAME_BYTES
from .rules import Choice, fitting
from .source import SourceTensor

DIRECT_FORMATS = ("f32", "f16", "bf16", "q8_0")  # packed without `allow_requantize`


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file to write.

    `format` is None if the bytes are copied. `wanted` names the format that was asked for if the columns do not fit
    it. `error` is the relative weighted error that the mix measured.
    """

    source: SourceTensor
    format: Format | None
    why: str
    wanted: str | None = None
    error: float | None = None

    @property
    def name(self) -> str:
        """Name in the source and in the file to write."""
        return self.source.name

    @property
    def type_name(self) -> str:
        """Name of the format in the file to write."""
        return self.source.type_name if self.format is None else self.format.name

    @property
    def nbytes(self) -> int:
        """Bytes in the file to write."""
        if self.format is None:
            return self.source.nbytes
        return self.source.n_rows * self.format.row_bytes(self.source.cols)

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file to write over the number of weights."""
        return 8 * self.nbytes / self.source.n_weights

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "shape": list(self.source.shape),
            "source": self.source.type_name,
            "format": self.type_name,
            "weights": self.source.n_weights,
            "source_bytes": self.source.nbytes,
            "bytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "why": self.why,
            "wanted": self.wanted,
            "error": self.error,
        }


@dataclass(frozen=True)
class Plan:
    """All tensors to write in the order of the file; `notes` for the user; what was written, when it was.

    `shards` groups the tensors by file; `files` and `seconds` are empty and None until they are written.
    """

    tensors: tuple[PlannedTensor, ...]
    shards: tuple[tuple[PlannedTensor, ...], ...]
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    seconds: float | None = None

    def formats(self) -> dict[str, dict[str, Any]]:
        """Sum up per format: tensors, weights, bytes, bits per weight; the format of most weights first."""
        groups: dict[str, list[PlannedTensor]] = {}
        for tensor in self.tensors:
            groups.setdefault(tensor.type_name, []).append(tensor)
        sums = {name: {"tensors": len(group), **_sums(group)} for name, group in groups.items()}
        return dict(sorted(sums.items(), key=lambda item: -item[1]["weights"]))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: tensors, sums per format, sums before and after, notes, files, seconds."""
        weights = sum(tensor.source.n_weights for tensor in self.tensors)
        source_bytes = sum(tensor.source.nbytes for tensor in self.tensors)
        return {
            "tensors": [tensor.as_dict() for tensor in self.tensors],
            "formats": self.formats(),
            "source": {"weights": weights, "bytes": source_bytes, "bits_per_weight": _bits(source_bytes, weights)},
            "result": {"tensors": len(self.tensors), **_sums(self.tensors)},
            "notes": list(self.notes),
            "files": list(self.files),
            "seconds": self.seconds,
        }


def _bits(n_bytes: int, weights: int) -> float | None:
    return 8 * n_bytes / weights if weights else None


def _sums(tensors: Iterable[PlannedTensor]) -> dict[str, Any]:
    tensors = list(tensors)
    weights, n_bytes = sum(t.source.n_weights for t in tensors), sum(t.nbytes for t in tensors)
    return {"weights": weights, "bytes": n_bytes, "bits_per_weight": _bits(n_bytes, weights)}


def planned(tensor: SourceTensor, choice: Choice, *, error: float | None = None) -> PlannedTensor:
    """Settle a choice for a tensor: a format that fits its columns, or a copy of its bytes."""
    if choice.format is None:
        return PlannedTensor(tensor, None, choice.why, error=error)
    fmt = fitting(choice.format, tensor)
    wanted = None if fmt is choice.format else choice.format.name
    return PlannedTensor(tensor, None if fmt is tensor.format else fmt, choice.why, wanted, error)


def check_tensor(tensor: PlannedTensor, allow_requantize: bool) -> None:
    """Check that a planned tensor can be read, packed and written. ValueError that names it."""
    source = tensor.source
    field = f"pack_file: tensor {quoted(source.name)}"
    n_bytes = len(source.name.encode("utf-8"))
    if not 1 <= n_bytes <= MAX_TENSOR_NAME_BYTES:
        raise ValueError(f"{field} has a name of {n_bytes} bytes, expected 1 to {MAX_TENSOR_NAME_BYTES}")
    if tensor.format is None:
        return
    if source.format is None:
        raise ValueError(f"{field} is {source.type_name}, expected a format of lutkern to pack it ({tensor.why})")
    if source.format.name not in DIRECT_FORMATS and not allow_requantize:
        text = f"is {source.type_name}, expected one of: {', '.join(DIRECT_FORMATS)}"
        raise ValueError(f"{field} {text}; packing it again loses more, --allow-requantize does it all the same")


def in_shards(tensors: Sequence[PlannedTensor], split_size: int | None) -> tuple[tuple[PlannedTensor, ...], ...]:
    """Group tensors so that a group has at most `split_size` bytes of them, or a single larger one."""
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if split_size is not None and shards[-1] and filled + tensor.nbytes > split_size:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return tuple(map(tuple, shards))


def fallback_notes(tensors: Iterable[PlannedTensor]) -> list[str]:
    """Say which tensors got another format than the one asked for, in one note for all of the same kind."""
    groups: dict[str, list[str]] = {}
    for t in tensors:
        if t.wanted is not None:
            text = f"{t.source.cols} columns do not fit {t.wanted}, packed as {t.type_name}"
            groups.setdefault(text, []).append(t.name)
    return [f"{text}: {some_of(names)}" for text, names in groups.items()]


def some_of(names: Sequence[str]) -> str:
    """List the first three names and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def finished(plan: Plan, files: Sequence[str], seconds: float, notes: Sequence[str]) -> Plan:
    """Return the plan with what was written."""
    return replace(plan, files=tuple(files), seconds=seconds, notes=(*plan.notes, *notes))
