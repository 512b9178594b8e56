"""What `lutkern inspect` tells about a GGUF file, as plain values that JSON can hold."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from .gguf import GgufFile, TensorInfo, open_gguf
from .runtime import supports

MAX_ITEMS = 8  # of an array that are shown


def inspect_gguf(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata, tensors and sums of a GGUF file (all shards) as dicts, lists, str, int, float and None.

    Keys: "files", "version", "alignment", "metadata" (an array of more than 8 items is {"length", "first"}), "tensors"
    (name, format, shape, bytes, bits_per_weight, kernel: of matvec on this CPU, None when there is none), "formats"
    (per format: tensors, weights, bytes, bits_per_weight), "weights", "bytes", "bits_per_weight". Raises OSError and
    ValueError as `open_gguf` does.
    """
    with open_gguf(path) as file:
        infos = list(file.tensors.values())
        formats: dict[str, list[TensorInfo]] = {}
        for info in infos:
            formats.setdefault(info.type_name, []).append(info)
        return {
            "files": list(file.shard_paths),
            "version": file.version,
            "alignment": file.alignment,
            "metadata": _metadata(file),
            "tensors": [_tensor(info) for info in infos],
            "formats": {name: {"tensors": len(group), **_sums(group)} for name, group in formats.items()},
            **_sums(infos),
        }


def _tensor(info: TensorInfo) -> dict[str, Any]:
    sums = _sums([info])
    return {
        "name": info.name,
        "format": info.type_name,
        "shape": list(info.shape),
        "bytes": sums["bytes"],
        "bits_per_weight": sums["bits_per_weight"],
        "kernel": None if info.format is None else supports(info.format, "matvec", "cpu"),
    }


def _sums(infos: list[TensorInfo]) -> dict[str, Any]:
    n_weights, n_bytes = sum(info.n_weights for info in infos), sum(info.nbytes for info in infos)
    bits = 8 * n_bytes / n_weights if n_weights else None
    return {"weights": n_weights, "bytes": n_bytes, "bits_per_weight": bits}


def _metadata(file: GgufFile) -> dict[str, Any]:
    return {key: _plain(value) for key, value in file.metadata.items()}


def _plain(value: Any) -> Any:
    """Make a metadata value fit for JSON: arrays shortened, a number that is not finite as text."""
    if isinstance(value, (list, np.ndarray)):
        first = [_plain(item.item() if isinstance(item, np.generic) else item) for item in value[:MAX_ITEMS]]
        return first if len(value) <= MAX_ITEMS else {"length": len(value), "first": first}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
