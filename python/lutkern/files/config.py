"""GGUF metadata from the `config.json` of a checkpoint: sizes, heads, rotary positions, experts; no tokenizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..gguf_metadata import quoted
from .json_file import read_json

# model_type -> architecture of the GGUF file, for the models whose tensor names the built-in map knows.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}

# GGUF key below the architecture -> keys of config.json, the first that is there, and whether it is an integer.
KEYS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("block_count", ("num_hidden_layers",), True),
    ("context_length", ("max_position_embeddings",), True),
    ("embedding_length", ("hidden_size",), True),
    ("feed_forward_length", ("intermediate_size",), True),
    ("vocab_size", ("vocab_size",), True),
    ("attention.head_count", ("num_attention_heads",), True),
    ("attention.head_count_kv", ("num_key_value_heads",), True),
    ("attention.key_length", ("head_dim",), True),
    ("attention.value_length", ("head_dim",), True),
    ("attention.layer_norm_rms_epsilon", ("rms_norm_eps",), False),
    ("rope.freq_base", ("rope_theta",), False),
    ("expert_count", ("num_experts", "num_local_experts"), True),
    ("expert_used_count", ("num_experts_per_tok",), True),
    ("expert_feed_forward_length", ("moe_intermediate_size",), True),
    ("expert_shared_feed_forward_length", ("shared_expert_intermediate_size",), True),
)
REQUIRED = ("block_count", "embedding_length", "attention.head_count")
PLAIN_ROPE = ("default", "none")
NO_TOKENIZER = "the tokenizer of the folder is not converted: the file holds weights and sizes only"


def read_config(path: Path) -> dict[str, Any]:
    """Read `config.json`. OSError if it cannot be read, ValueError if it is no JSON object."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"pack_file: {os.path.basename(path)}: is {type(config).__name__}, expected a JSON object")
    return config


def model_metadata(config: Mapping[str, Any], name: str, *, known_only: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Turn a configuration into GGUF metadata, and notes about what is not in it.

    Raises
    ------
    ValueError
        A size is missing or of another type, or (`known_only`) the model is none that the built-in name map knows.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(f"pack_file: config.json: model_type is {model_type!r}, expected text")
    if known_only and model_type not in ARCHITECTURES:
        expected = f"expected one of: {', '.join(ARCHITECTURES)}; or a name map"
        raise ValueError(f"pack_file: config.json: model_type is {quoted(model_type)}, {expected}")
    architecture = ARCHITECTURES.get(model_type, model_type)
    metadata: dict[str, Any] = {"general.architecture": architecture, "general.name": name or model_type}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    values = {**rope, **config} if isinstance(rope, dict) else dict(config)
    for key, sources, is_integer in KEYS:
        source = next((source for source in sources if values.get(source)), None)
        if source is None:
            if key in REQUIRED:
                raise ValueError(f"pack_file: config.json: {sources[0]} is missing, expected a whole number")
            continue
        metadata[f"{architecture}.{key}"] = _number(values[source], source, is_integer)
    heads, hidden = (metadata[f"{architecture}.{key}"] for key in ("attention.head_count", "embedding_length"))
    head_dim = metadata.get(f"{architecture}.attention.key_length", hidden // heads)
    metadata[f"{architecture}.rope.dimension_count"] = head_dim
    return metadata, tuple(_notes(values))


def _number(value: Any, key: str, is_integer: bool) -> Any:
    if is_integer:
        if type(value) is not int or not 0 < value < 1 << 32:
            raise ValueError(f"pack_file: config.json: {key} is {quoted(repr(value))}, expected a whole number above 0")
        return np.uint32(value)
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise ValueError(f"pack_file: config.json: {key} is {quoted(repr(value))}, expected a number above 0")
    return np.float32(value)


def _notes(values: Mapping[str, Any]) -> list[str]:
    notes = [NO_TOKENIZER]
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in PLAIN_ROPE:
        notes.append(f"rotary scaling {quoted(str(kind))} of config.json is not written")
    return notes
