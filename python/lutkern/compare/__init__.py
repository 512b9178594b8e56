"""How far a packed GGUF file is from its original: tensor by tensor, and as a language model."""

from __future__ import annotations

from .files import Comparison, Skipped, compare_files
from .models import ModelErrors
from .tensors import Errors, TensorErrors

__all__ = ["Comparison", "Errors", "ModelErrors", "Skipped", "TensorErrors", "compare_files"]
