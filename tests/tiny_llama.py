"""A tiny random llama GGUF with a byte-level vocabulary, for tests of the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

import lutkern
from lutkern.demo.llama import DenseFfn, Llama
from lutkern.demo.tokenizer import Tokenizer

LAYERS, HIDDEN, HEADS, KV_HEADS, INTER, CONTEXT = 2, 64, 4, 2, 512, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "o n", "r e", "e r", "a t", "Ġthe re"]
TOKENS = [5, 9, 200, 7, 7, 31, 100, 64, 2, 1, 260, 77]

Tiny = tuple[Llama, DenseFfn, Tokenizer]


def byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary, by byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def vocabulary() -> tuple[list[str], list[int]]:
    """Tokens and their GGUF types."""
    words = byte_characters() + [merge.replace(" ", "") for merge in MERGES]
    return SPECIAL + words, [3] * len(SPECIAL) + [1] * len(words)


def write_tiny_llama(path: Path, *, inter: int = INTER, tied: bool = True, **metadata: Any) -> Path:
    """Write the model; `metadata` replaces values by key with dots as double underscores, None leaves a key out."""
    tokens, types = vocabulary()
    values: dict[str, Any] = {
        "general.name": "tiny",
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": inter,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HIDDEN // HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": 2,
    }
    values |= {key.replace("__", "."): value for key, value in metadata.items()}
    writer = gguf.GGUFWriter(path, values.pop("general.architecture", "llama"))
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, array in _tensors(len(tokens), inter, tied).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(n_tokens: int, inter: int, tied: bool) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    random = np.random.default_rng(7)
    kv = HIDDEN // HEADS * KV_HEADS

    def weight(rows: int, cols: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        value: np.ndarray[Any, np.dtype[np.float32]] = random.standard_normal((rows, cols), np.float32)
        value /= np.sqrt(cols)
        return value

    def norm() -> np.ndarray[Any, np.dtype[np.float32]]:
        return random.uniform(0.5, 1.5, HIDDEN).astype(np.float32)

    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
    tensors = {"token_embd.weight": weight(n_tokens, HIDDEN), "output_norm.weight": norm()}
    if not tied:
        tensors["output.weight"] = weight(n_tokens, HIDDEN)
    for i in range(LAYERS):
        tensors |= {
            f"blk.{i}.attn_norm.weight": norm(),
            f"blk.{i}.attn_q.weight": weight(HIDDEN, HIDDEN),
            f"blk.{i}.attn_k.weight": weight(kv, HIDDEN),
            f"blk.{i}.attn_v.weight": weight(kv, HIDDEN),
            f"blk.{i}.attn_output.weight": weight(HIDDEN, HIDDEN),
            f"blk.{i}.ffn_norm.weight": norm(),
            f"blk.{i}.ffn_gate.weight": weight(inter, HIDDEN),
            f"blk.{i}.ffn_up.weight": weight(inter, HIDDEN),
            f"blk.{i}.ffn_down.weight": weight(HIDDEN, inter),
        }
    return tensors


def open_model(path: Path) -> Tiny:
    """Open a model file: the float part, the feed-forward part, the tokenizer."""
    with lutkern.open_gguf(path) as file:
        model = Llama(file)
        return model, DenseFfn(file, model.config), Tokenizer(file.metadata)


def metadata_of(folder: Path, **values: Any) -> dict[str, Any]:
    """Write the model with other metadata, and read that back."""
    with lutkern.open_gguf(write_tiny_llama(folder / "m.gguf", **values)) as file:
        return dict(file.metadata.items())
