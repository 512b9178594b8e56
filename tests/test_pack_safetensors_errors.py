"""Safetensors sources that are refused, with which text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lutkern
from lutkern.files.safetensors import read_header
from safetensors_files import QWEN3_MOE, Arrays, attention, weight, write_one, write_safetensors

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


@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 90),
)
def test_changed_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, changes: Any, cut: int) -> None:
    """A damaged file is refused, or every tensor lies inside it."""
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    arrays = {name: ("F32", np.ones((2, 3), np.float32)) for name in ("a", "b", "c")}
    write_safetensors(path, arrays)
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path.write_bytes(data[: len(data) - cut])
    tensors, problem = {}, "pack_file: changed.safetensors: "
    try:
        tensors = read_header(path)
    except ValueError as error:
        problem = str(error)
    assert problem.startswith("pack_file: changed.safetensors: ")
    for tensor in tensors.values():
        assert 8 <= tensor.offset <= tensor.offset + tensor.nbytes <= path.stat().st_size
