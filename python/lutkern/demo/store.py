"""Packed experts on disk: one `.npz` file for each (model, formats, calibration, version).

The file holds the GGUF blocks of every tensor as uint8 arrays named `gate.0`, `up.0`, `down.0`, `gate.1` ... and a text
`key` that says what they were made from. The zip container checks every array with a CRC-32.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..tensor import PackedTensor
from .convert import EXPERT_NEURONS, Experts, Formats, PackedFfn, expert_count
from .llama import Config

# Raised whenever the arithmetic of the conversion changes, so that old files are not taken up.
_VERSION = 1

_PARTS = ("gate", "up", "down")


def store_key(model_sha256: str, formats: Formats, windows: list[list[int]], version: str) -> str:
    """Name everything the packed weights depend on; `version` is that of the package."""
    calibration = hashlib.sha256(json.dumps(windows).encode()).hexdigest()
    parts: Mapping[str, Any] = {
        "model": model_sha256,
        "formats": [formats.gate, formats.up, formats.down],
        "calibration": calibration,
        "lutkern": version,
        "store": _VERSION,
    }
    return json.dumps(parts, sort_keys=True)


def store_path(folder: Path, key: str) -> Path:
    """Return where the packed weights of a key are kept."""
    return folder / f"packed-{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"


def save(path: Path, key: str, ffn: PackedFfn) -> None:
    """Write packed experts; the file appears complete or not at all. OSError if it cannot be written."""
    arrays: dict[str, Any] = {
        f"{name}.{i}": part.blocks()
        for i, layer in enumerate(ffn.layers)
        for name, part in zip(_PARTS, layer.parts, strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part_name = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays, key=np.array(key))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part_name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part_name)
        raise


def load(path: Path, key: str, formats: Formats, config: Config) -> PackedFfn | None:
    """Read packed experts; None if there is no such file, or it is damaged or was made from something else."""
    experts = expert_count(config.inter)
    wide, tall = (experts, EXPERT_NEURONS, config.hidden), (experts, config.hidden, EXPERT_NEURONS)
    try:
        # NumPy leaves a file open when its end is damaged; this one is closed here in any case.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            return PackedFfn(
                Experts(
                    gate=PackedTensor.from_blocks(arrays[f"gate.{i}"], formats.gate, wide),
                    up=PackedTensor.from_blocks(arrays[f"up.{i}"], formats.up, wide),
                    down=PackedTensor.from_blocks(arrays[f"down.{i}"], formats.down, tall),
                )
                for i in range(config.layers)
            )
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return None
