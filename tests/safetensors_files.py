"""Checkpoints as safetensors, for the tests of packing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTER, EXPERTS = 256, 4, 2, 64, 256, 3
QWEN3_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 1,
    "hidden_size": HIDDEN,
    "intermediate_size": 768,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 4096,
    "vocab_size": 80,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": INTER,
    "rope_scaling": None,
}
Arrays = dict[str, tuple[str, np.ndarray[Any, Any]]]


def bfloat16_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cut float32 to bfloat16."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path: Path, arrays: Mapping[str, tuple[str, np.ndarray[Any, Any]]]) -> None:
    """Write name -> (dtype of the file, array)."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, values) in arrays.items():
        raw = values.tobytes()
        entries[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def weight(rng: np.random.Generator, *shape: int) -> tuple[str, np.ndarray[Any, Any]]:
    return "BF16", bfloat16_bits(rng.standard_normal(shape, np.float32))


def as_floats(stored: tuple[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return (stored[1].astype(np.uint32) << 16).view(np.float32) if stored[0] == "BF16" else stored[1]


def attention(rng: np.random.Generator) -> Arrays:
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": weight(rng, 80, HIDDEN),
        "model.norm.weight": weight(rng, HIDDEN),
        "lm_head.weight": weight(rng, 80, HIDDEN),
        layer + "input_layernorm.weight": weight(rng, HIDDEN),
        layer + "post_attention_layernorm.weight": weight(rng, HIDDEN),
        layer + "self_attn.q_proj.weight": weight(rng, HEADS * HEAD_DIM, HIDDEN),
        layer + "self_attn.k_proj.weight": weight(rng, KV_HEADS * HEAD_DIM, HIDDEN),
        layer + "self_attn.v_proj.weight": weight(rng, KV_HEADS * HEAD_DIM, HIDDEN),
        layer + "self_attn.o_proj.weight": weight(rng, HIDDEN, HEADS * HEAD_DIM),
        layer + "self_attn.rotary_emb.inv_freq": ("F32", np.ones(4, np.float32)),
    }


def write_one(folder: Path, arrays: Arrays, config: dict[str, Any]) -> Path:
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
