"""Packing a folder of safetensors: names, experts, rotary pairs, sizes, and headers that are wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import lutkern
from lutkern.files.config import NO_TOKENIZER
from model_files import bfloat16_bits, write_safetensors

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


def write_one(folder: Path, arrays: Arrays, config: dict[str, Any], **header: Any) -> Path:
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", arrays, **header)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


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


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"model_type": None}, "config.json: model_type is None, expected text"),
    "unknown": (
        {"model_type": "gpt2"},
        "config.json: model_type is 'gpt2', expected one of: llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, "
        "qwen3_moe; or a name map",
    ),
    "missing": ({"hidden_size": None}, "config.json: hidden_size is missing, expected a whole number"),
    "text": ({"hidden_size": "9"}, "config.json: hidden_size is \"'9'\", expected a whole number above 0"),
    "bool": ({"hidden_size": True}, "config.json: hidden_size is 'True', expected a whole number above 0"),
    "huge": ({"vocab_size": 2**32}, "config.json: vocab_size is '4294967296', expected a whole number above 0"),
    "eps": ({"rms_norm_eps": "x"}, "config.json: rms_norm_eps is \"'x'\", expected a number above 0"),
    "infinite": ({"rope_theta": float("inf")}, "config.json: rope_theta is 'inf', expected a number above 0"),
}


@pytest.mark.parametrize("case", list(CONFIGS))
def test_wrong_configurations(tmp_path: Path, case: str) -> None:
    change, text = CONFIGS[case]
    folder = write_one(tmp_path / "m", attention(np.random.default_rng(1)), {**QWEN3_MOE, **change})
    with pytest.raises(ValueError, match=f"^{re.escape('pack_file: ' + text)}$"):
        lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit")


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "no object": ({"a": [1]}, "tensor 'a': has no dtype, shape and data_offsets, expected all three"),
    "no shape": ({"a": {"dtype": "F32"}}, "tensor 'a': has no dtype, shape and data_offsets, expected all three"),
    "dtype": ({"a": entry("F8_E4M3")}, "tensor 'a': dtype is 'F8_E4M3', expected F32, F16 or BF16"),
    "dtype kind": ({"a": entry([1])}, "tensor 'a': dtype is '[1]', expected F32, F16 or BF16"),
    "shape": ({"a": entry(shape=[2, -2])}, "tensor 'a': shape is '[2, -2]', expected at most 4 sizes of at least 1"),
    "zero": (
        {"a": entry(shape=[0], offsets=[0, 0])},
        "tensor 'a': shape is '[0]', expected at most 4 sizes of at least 1",
    ),
    "dims": (
        {"a": entry(shape=[1] * 5)},
        "tensor 'a': shape is '[1, 1, 1, 1, 1]', expected at most 4 sizes of at least 1",
    ),
    "float": ({"a": entry(shape=[2.0, 2])}, "tensor 'a': shape is '[2.0, 2]', expected at most 4 sizes of at least 1"),
    "offsets": ({"a": entry(offsets=[0])}, "tensor 'a': data_offsets are '[0]', expected two whole numbers"),
    "order": ({"a": entry(offsets=[16, 0])}, "tensor 'a': data_offsets span -16 bytes, F32 of shape [2, 2] needs 16"),
    "size": ({"a": entry(offsets=[0, 12])}, "tensor 'a': data_offsets span 12 bytes, F32 of shape [2, 2] needs 16"),
    "end": ({"a": entry(offsets=[8, 24])}, "tensor 'a': ends at byte 24 of the data, the file has 16"),
    "huge": (
        {"a": entry(shape=[2**62, 2**62], offsets=[0, 16])},
        f"tensor 'a': data_offsets span 16 bytes, F32 of shape [{2**62}, {2**62}] needs {4 * 2**124}",
    ),
    "overlap": (
        {"a": entry(shape=[3], offsets=[0, 12]), "b": entry(shape=[2], offsets=[8, 16])},
        "tensor 'b': data lies inside tensor 'a', expected no overlap",
    ),
}


@pytest.mark.parametrize("case", list(HEADERS))
def test_wrong_headers(tmp_path: Path, case: str) -> None:
    header, text = HEADERS[case]
    (tmp_path / "m").mkdir()
    raw = json.dumps(header).encode()
    (tmp_path / "m" / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(16))
    (tmp_path / "m" / "config.json").write_text(json.dumps(QWEN3_MOE))
    with pytest.raises(ValueError, match=f"^{re.escape('pack_file: model.safetensors: ' + text)}$"):
        lutkern.pack_file(tmp_path / "m", tmp_path / "out.gguf", preset="1bit")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file has no header, expected at most 0"),
        (b"1234567", "the file has no header, expected at most 0"),
        ((100).to_bytes(8, "little") + b"{}", "the header has 100 bytes, expected at most 2"),
        ((2**63).to_bytes(8, "little") + b"{}", f"the header has {2**63} bytes, expected at most 2"),
        ((2).to_bytes(8, "little") + b"[]", "the header is list, expected an object"),
        (
            (20).to_bytes(8, "little") + b'{"a": 1, "a": 2}    ',
            "is not valid JSON (key 'a' occurs twice), expected it",
        ),
        (
            (2).to_bytes(8, "little") + b"{\xff",
            "is not valid JSON ('utf-8' codec can't decode byte 0xff in position 1: invalid start byte), expected it",
        ),
    ],
)
def test_wrong_files(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(content)
    (tmp_path / "m" / "config.json").write_text(json.dumps(QWEN3_MOE))
    with pytest.raises(ValueError, match=f"^{re.escape('pack_file: model.safetensors: ' + text)}$"):
        lutkern.pack_file(tmp_path / "m", tmp_path / "out.gguf", preset="1bit")


def test_deeply_nested_json(tmp_path: Path) -> None:
    folder = write_one(tmp_path / "m", {}, QWEN3_MOE)
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"^pack_file: config\.json: is not valid JSON \("):
        lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"^pack_file: config\.json: is list, expected a JSON object$"):
        lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit")


def test_missing_files(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit")
    (folder / "config.json").write_text(json.dumps(QWEN3_MOE))
    with pytest.raises(FileNotFoundError, match=r"pack_file: no \*\.safetensors file, expected at least one"):
        lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit")
    index = folder / "model.safetensors.index.json"
    for weight_map in ({"a": "gone.safetensors"}, {"a": "../m/gone.safetensors"}, {"a": 3}, {}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        if weight_map == {"a": "gone.safetensors"}:
            with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
                lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit")
            continue
        message = (
            "pack_file: model.safetensors.index.json: weight_map does not hold file names, "
            "expected tensor name -> file of the same folder"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit")
    index.unlink()
    (folder / "pipe.safetensors").mkdir()
    with pytest.raises(OSError, match="pack_file: not a regular file, expected a safetensors file"):
        lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit")


def test_names_that_do_not_come_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    up = "model.layers.0.mlp.experts.{}.up_proj.weight"
    cases: list[tuple[Arrays, str]] = [
        (
            {"model.odd.weight": weight(rng, 2, 2)},
            "tensor 'model.odd.weight' matches no pattern of the name map, expected one",
        ),
        (
            {up.format(0): weight(rng, 2, 2), up.format(2): weight(rng, 2, 2)},
            "tensor 'blk.0.ffn_up_exps.weight': expert 1 is missing, expected 0 to 2",
        ),
        (
            {up.format(0): weight(rng, 2, 2), up.format(1): weight(rng, 2, 3)},
            f"tensor '{up.format(1)}' is BF16 (2, 3), expected BF16 (2, 2) as '{up.format(0)}'",
        ),
        (
            {up.format(0): weight(rng, 2, 2), up.format("00"): weight(rng, 2, 2)},
            f"tensors '{up.format(0)}' and '{up.format('00')}' both become 'blk.0.ffn_up_exps.weight', "
            "expected one source for each name",
        ),
        (
            {up.format("1234567"): weight(rng, 2, 2)},
            f"tensor '{up.format('1234567')}': expert is '1234567', expected a number of at most 6 digits",
        ),
        (
            {"model.layers.0.self_attn.q_proj.weight": weight(rng, 12, 4)},
            "tensor 'model.layers.0.self_attn.q_proj.weight' has 12 rows, expected a multiple of 8",
        ),
    ]
    for i, (arrays, text) in enumerate(cases):
        folder = write_one(tmp_path / f"m{i}", arrays, {**QWEN3_MOE, "model_type": "llama"})
        with pytest.raises(ValueError, match=f"^{re.escape('pack_file: ' + text)}$"):
            lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit")


def test_wrong_name_maps(tmp_path: Path) -> None:
    folder = write_one(tmp_path / "m", attention(np.random.default_rng(1)), QWEN3_MOE)
    pairs = "holds no pairs of text, expected a list of [regex, GGUF name]"
    cases = {
        "[]": f"map.json: {pairs}",
        "3": f"map.json: {pairs}",
        '[["a"]]': f"map.json: {pairs}",
        '{"a": 1}': f"map.json: {pairs}",
        '[["(", "b"]]': "name map: '(' -> 'b' is no regex with replacement (missing ), unterminated subpattern at "
        "position 0), expected one",
        r'[["a", "\\1"]]': r"name map: 'a' -> '\\1' is no regex with replacement (invalid group reference 1 at "
        "position 1), expected one",
    }
    for content, text in cases.items():
        (tmp_path / "map.json").write_text(content)
        with pytest.raises(ValueError, match=f"^{re.escape('pack_file: ' + text)}$"):
            lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit", name_map=tmp_path / "map.json")


def test_a_name_in_two_files(tmp_path: Path) -> None:
    folder = write_one(tmp_path / "m", attention(np.random.default_rng(1)), QWEN3_MOE)
    write_safetensors(folder / "more.safetensors", {"model.norm.weight": ("F32", np.ones(2, np.float32))})
    message = "^pack_file: more.safetensors: tensor 'model.norm.weight' is also in model.safetensors$"
    with pytest.raises(ValueError, match=message):
        lutkern.pack_file(folder, tmp_path / "out.gguf", preset="1bit")
