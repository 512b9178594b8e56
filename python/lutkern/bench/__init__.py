"""How fast the operations run on this machine, beside its memory and beside ggml: `lutkern bench`."""

from __future__ import annotations

from .measure import Result, Row, run
from .options import Options
from .weights import MODELS, OPERATIONS

__all__ = ["MODELS", "OPERATIONS", "Options", "Result", "Row", "run"]
