"""JSON files that come with a model: small, no key twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..gguf_metadata import quoted

MAX_JSON_BYTES = 100_000_000  # the safetensors definition allows no longer header


def read_json(path: Path) -> Any:
    """Read a JSON file. OSError if it cannot be read, ValueError if it is too long or no JSON."""
    with open(path, "rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        name = os.path.basename(path)
        raise ValueError(f"pack_file: {name}: has more than {MAX_JSON_BYTES} bytes, expected a smaller JSON file")
    return parse_json(path, data)


def parse_json(path: Path, data: bytes) -> Any:
    """Parse JSON of the file `path`. ValueError that names the file."""
    try:
        return json.loads(data, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"pack_file: {os.path.basename(path)}: is not valid JSON ({error}), expected it") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {quoted(key)} occurs twice")
        result[key] = value
    return result
