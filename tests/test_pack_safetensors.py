"""Packing a folder of safetensors: names, experts, rotary pairs, sizes, and headers that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import lutkern
from lutkern.files.config import NO_TOKENIZER
from safetensors_files import (
    EXPERTS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INTER,
    KV_HEADS,
    QWEN3_MOE,
    Arrays,
    as_floats,
    attention,
    weight,
    write_one,
    write_safetensors,
)


def write_qwen3_moe(folder: Path) -> Arrays:
    """A checkpoint of two files with an index."""
    rng = np.random.default_rng(4)
    folder.mkdir()
    first = attention(rng)
    second: Arrays = {"model.layers.0.mlp.gate.weight": weight(rng, EXPERTS, HIDDEN)}
    second["model.layers.0.self_attn.q_norm.weight"] = weight(rng, HEAD_DIM)
    for expert in reversed(range(EXPERTS)):
        for part, shape in (("gate", (INTER, HIDDEN)), ("up", (INTER, HIDDEN)), ("down", (HIDDEN, INTER))):
            second[f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight"] = weight(rng, *shape)
    write_safetensors(folder / "model-00001-of-00002.safetensors", first)
    write_safetensors(folder / "model-00002-of-00002.safetensors", second)
    weight_map = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(QWEN3_MOE))
    (folder / "left-over.safetensors").write_bytes(b"not named by the index")
    return first | second


def test_experts(tmp_path: Path) -> None:
    arrays = write_qwen3_moe(tmp_path / "qwen")
    plan = lutkern.pack_file(tmp_path / "qwen", tmp_path / "out.gguf", preset="1bit", types=["attn=f32"])
    assert plan.notes == (NO_TOKENIZER,)
    with lutkern.open_gguf(tmp_path / "out.gguf") as file:
        for part, fmt in (("gate", "iq2_xxs"), ("up", "iq2_xxs"), ("down", "iq2_xs")):
            names = [f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight" for expert in range(EXPERTS)]
            expected = lutkern.pack(np.stack([as_floats(arrays[name]) for name in names]), fmt)
            np.testing.assert_array_equal(file[f"blk.0.ffn_{part}_exps.weight"].blocks(), expected.blocks())
        same = {
            "blk.0.ffn_gate_inp.weight": "model.layers.0.mlp.gate.weight",
            "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
            "blk.0.attn_q_norm.weight": "model.layers.0.self_attn.q_norm.weight",
            "blk.0.attn_output.weight": "model.layers.0.self_attn.o_proj.weight",
            "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
            "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
            "output_norm.weight": "model.norm.weight",
        }
        for name, theirs in same.items():
            np.testing.assert_array_equal(file.array(name), as_floats(arrays[theirs]))
        assert len(file) == len(same) + 2 + 2 + 3  # embedding and output, k and v, experts
        metadata = dict(file.metadata)
    eps = metadata.pop("qwen3moe.attention.layer_norm_rms_epsilon")
    assert np.float32(eps) == np.float32(1e-6)
    assert metadata == {
        "general.architecture": "qwen3moe",
        "general.name": "qwen",
        "general.file_type": gguf.LlamaFileType.MOSTLY_IQ2_XXS,
        "general.quantization_version": 2,
        "qwen3moe.block_count": 1,
        "qwen3moe.context_length": 4096,
        "qwen3moe.embedding_length": HIDDEN,
        "qwen3moe.feed_forward_length": 768,
        "qwen3moe.vocab_size": 80,
        "qwen3moe.attention.head_count": HEADS,
        "qwen3moe.attention.head_count_kv": KV_HEADS,
        "qwen3moe.attention.key_length": HEAD_DIM,
        "qwen3moe.attention.value_length": HEAD_DIM,
        "qwen3moe.rope.freq_base": 1000000.0,
        "qwen3moe.rope.dimension_count": HEAD_DIM,
        "qwen3moe.expert_count": EXPERTS,
        "qwen3moe.expert_used_count": 2,
        "qwen3moe.expert_feed_forward_length": INTER,
    }


def rotated_halves(x: np.ndarray[Any, Any], angles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rotary positions of one head as checkpoints have them: pair j is column j and column j + half."""
    low, high = np.split(x, 2)
    return np.concatenate([low * np.cos(angles) - high * np.sin(angles), high * np.cos(angles) + low * np.sin(angles)])


def rotated_pairs(x: np.ndarray[Any, Any], angles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rotary positions of one head as llama GGUF files have them: pair j is columns 2 j and 2 j + 1."""
    even, odd = x[::2], x[1::2]
    pairs = even * np.cos(angles) - odd * np.sin(angles), odd * np.cos(angles) + even * np.sin(angles)
    return np.stack(pairs, axis=1).reshape(-1)


def test_rotary_pairs_of_llama(tmp_path: Path) -> None:
    """Attention scores of the written matrices are those of the checkpoint's, each with its own rotation."""
    rng = np.random.default_rng(1)
    arrays = attention(rng)
    config = {**QWEN3_MOE, "model_type": "llama", "num_experts": None, "head_dim": None}
    lutkern.pack_file(write_one(tmp_path / "llama", arrays, config), tmp_path / "out.gguf", types=["attn=f32"])
    x, position, other = rng.standard_normal((2, HIDDEN)), 5.0, 2.0
    frequencies = 10000.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    layer = "model.layers.0.self_attn."
    with lutkern.open_gguf(tmp_path / "out.gguf") as file:
        assert "llama.expert_count" not in file.metadata
        assert file.metadata["llama.rope.dimension_count"] == HEAD_DIM
        ours = [file.array(f"blk.0.attn_{part}.weight") for part in "qkv"]
    theirs = [as_floats(arrays[f"{layer}{part}_proj.weight"]) for part in "qkv"]
    np.testing.assert_array_equal(ours[2], theirs[2])
    scores = []
    for matrices, rotate in ((ours, rotated_pairs), (theirs, rotated_halves)):
        q = (matrices[0] @ x[0]).reshape(HEADS, HEAD_DIM)
        k = (matrices[1] @ x[1]).reshape(KV_HEADS, HEAD_DIM)
        rotated = [rotate(head, position * frequencies) for head in q], [rotate(h, other * frequencies) for h in k]
        scores.append(np.array(rotated[0]) @ np.array(rotated[1]).T)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-9, atol=1e-9)


def test_pieces_of_paired_rows(tmp_path: Path) -> None:
    """Reading rows in any pieces gives the same rows."""
    from lutkern.files.safetensors import open_safetensors

    config = {**QWEN3_MOE, "model_type": "llama", "head_dim": None}
    folder = write_one(tmp_path / "llama", attention(np.random.default_rng(1)), config)
    with open_safetensors(folder) as source:
        tensor = source.tensors["blk.0.attn_q.weight"]
        whole = source.floats(tensor, 0, tensor.n_rows)
        assert tensor.paired_heads == HEADS
        for step in (1, 7, 64, 100):
            starts = range(0, tensor.n_rows, step)
            pieces = [source.floats(tensor, start, min(start + step, tensor.n_rows)) for start in starts]
            np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_name_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    stored: Arrays = {f"h.0.part{i}": ("F16", rng.standard_normal((128, 256)).astype(np.float16)) for i in range(3)}
    stored |= {"h.0.skip": ("F32", np.ones(3, np.float32)), "scale": ("F32", np.array(2.0, np.float32))}
    folder = write_one(tmp_path / "other", stored, {**QWEN3_MOE, "model_type": "other"})
    pairs = [[r"h\.(\d+)\.part(?P<expert>\d)", r"blk.\1.ffn_up_exps.weight"], [r".*skip", ""], [r"(.*)", r"\1.x"]]
    (tmp_path / "map.json").write_text(json.dumps(pairs))
    lutkern.pack_file(folder, tmp_path / "out.gguf", default="q8_0", name_map=tmp_path / "map.json")
    (tmp_path / "map.json").write_text(json.dumps(dict(pairs)))
    lutkern.pack_file(folder, tmp_path / "again.gguf", default="q8_0", name_map=tmp_path / "map.json")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()
    with lutkern.open_gguf(tmp_path / "out.gguf") as file:
        assert file.metadata["general.architecture"] == "other"
        assert {name: info.shape for name, info in file.tensors.items()} == {
            "blk.0.ffn_up_exps.weight": (3, 128, 256),
            "scale.x": (1,),
        }
        expected = lutkern.pack(np.stack([stored[f"h.0.part{i}"][1] for i in range(3)]), "q8_0")
        np.testing.assert_array_equal(file["blk.0.ffn_up_exps.weight"].blocks(), expected.blocks())


def test_rotary_scaling_is_told(tmp_path: Path) -> None:
    config = {**QWEN3_MOE, "model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}
    folder = write_one(tmp_path / "llama", attention(np.random.default_rng(1)), config)
    plan = lutkern.pack_file(folder, tmp_path / "out.gguf", preset="2bit", dry_run=True)
    assert plan.notes[:2] == (NO_TOKENIZER, "rotary scaling 'llama3' of config.json is not written")


def test_rotary_parameters_of_newer_configurations(tmp_path: Path) -> None:
    config = {**QWEN3_MOE, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    del config["rope_theta"], config["rope_scaling"]
    folder = write_one(tmp_path / "m", attention(np.random.default_rng(1)), config)
    plan = lutkern.pack_file(folder, tmp_path / "out.gguf", preset="2bit")
    assert plan.notes[0] == NO_TOKENIZER
    with lutkern.open_gguf(tmp_path / "out.gguf") as file:
        assert file.metadata["qwen3moe.rope.freq_base"] == 5e5
