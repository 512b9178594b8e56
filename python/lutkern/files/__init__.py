"""Packing whole models: what is read, which format each tensor gets, what is written.

`source` and `safetensors` read, `rules` and `mix` choose formats, `plan` puts the choices together, `write` streams the
result to the disk, `pack` is the function around all of it, `command` is its command line.
"""

from __future__ import annotations

from .pack import pack_file
from .plan import Plan, PlannedTensor

__all__ = ["Plan", "PlannedTensor", "pack_file"]
