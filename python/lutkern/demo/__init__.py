"""`lutkern demo`: a real language model whose feed-forward networks run on packed weights.

SmolLM2-135M-Instruct (or another dense llama GGUF) is split into experts, packed with `lutkern.pack`, run with
`lutkern.moe`, compared with its float self, and asked a question.
"""

from __future__ import annotations

from .convert import Formats
from .pipeline import Options, run, table

__all__ = ["Formats", "Options", "run", "table"]
