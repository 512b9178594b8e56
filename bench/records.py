"""Records: figures as CSV under bench/record/MACHINE/, the environment beside them as JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "record"


def write(path: Path, rows: Sequence[dict[str, Any]], environment: dict[str, Any]) -> None:
    """Write rows, of which there is at least one, and the environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix(".json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def environment(path: Path) -> dict[str, Any]:
    """Read the environment of a record; nothing if it lies alone."""
    beside = path.with_suffix(".json")
    found: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    return found
