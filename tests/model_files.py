"""Small models on the disk for the tests of packing: experts in a GGUF file, random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import lutkern
from gguf_bytes import finite_blocks

EXPERTS, HIDDEN, INTER, LAYERS = 3, 256, 256, 3
Arrays = dict[str, np.ndarray[Any, Any]]


def moe_arrays(dtype: Any = np.float16) -> Arrays:
    """The tensors of a small model with experts; norms and routers are float32."""
    rng = np.random.default_rng(11)

    def weight(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape, np.float32) / 16).astype(dtype)

    arrays = {
        "token_embd.weight": weight(96, HIDDEN),
        "output_norm.weight": rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32),
        "output.weight": weight(96, HIDDEN),
    }
    for i in range(LAYERS):
        arrays |= {
            f"blk.{i}.attn_norm.weight": rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32),
            f"blk.{i}.attn_q.weight": weight(HIDDEN, HIDDEN),
            f"blk.{i}.attn_v.weight": weight(64, HIDDEN),
            f"blk.{i}.attn_v.bias": weight(64),
            f"blk.{i}.ffn_gate_inp.weight": weight(EXPERTS, HIDDEN).astype(np.float32),
            f"blk.{i}.ffn_gate_exps.weight": weight(EXPERTS, INTER, HIDDEN),
            f"blk.{i}.ffn_up_exps.weight": weight(EXPERTS, INTER, HIDDEN),
            f"blk.{i}.ffn_down_exps.weight": weight(EXPERTS, HIDDEN, INTER),
            f"blk.{i}.ffn_up_shexp.weight": weight(INTER, HIDDEN),
            f"blk.{i}.ffn_down_shexp.weight": weight(HIDDEN, INTER),
        }
    return arrays


def write_moe(path: Path, arrays: Arrays | None = None, **options: Any) -> Arrays:
    """Write such a model with the gguf package; its arrays."""
    arrays = moe_arrays() if arrays is None else arrays
    writer = gguf.GGUFWriter(path, "qwen3moe", **options)
    writer.add_name("tiny experts")
    writer.add_uint32("qwen3moe.block_count", LAYERS)
    writer.add_uint8("odd.type", 7)
    writer.add_float64("odd.wide", 1e300)
    writer.add_file_type(1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "", "ü"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 0.0])
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


def write_blocks(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Write random weights: name -> format, shape. Formats by their name."""
    rng = np.random.default_rng(5)
    packed: dict[str, Any] = {}
    for name, (fmt, shape) in tensors.items():
        found = next(f for f in lutkern.formats() if f.name == fmt)
        packed[name] = lutkern.PackedTensor.from_blocks(finite_blocks(rng, found, shape), found, shape)
    lutkern.write_gguf(path, packed, {"general.architecture": "llama"})


class Columns:
    """An importance as `lutkern.Importance` offers it: vectors by tensor name."""

    def __init__(self, vectors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self.vectors = vectors

    def __contains__(self, name: object) -> bool:
        return name in self.vectors

    def for_weight(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        return self.vectors[name]
