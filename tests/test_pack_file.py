"""Packing whole GGUF files: formats, bytes, metadata, shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import lutkern
from lutkern.files.rules import PRESETS
from model_files import EXPERTS, HIDDEN, LAYERS, Columns, moe_arrays, write_blocks, write_moe
from tiny_llama import write_tiny_llama


@pytest.fixture
def moe(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "moe.gguf"
    return path, write_moe(path)


def formats_of(plan: lutkern.files.Plan) -> dict[str, str]:
    return {tensor.name: tensor.type_name for tensor in plan.tensors}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_preset_of_a_model_with_experts(moe: tuple[Path, dict[str, Any]], tmp_path: Path, preset: str) -> None:
    path, arrays = moe
    plan = lutkern.pack_file(path, tmp_path / "out.gguf", preset=preset)
    table = PRESETS[preset]
    with lutkern.open_gguf(tmp_path / "out.gguf") as file:
        found = {name: info.type_name for name, info in file.tensors.items()}
        assert {name: info.shape for name, info in file.tensors.items()} == {n: a.shape for n, a in arrays.items()}
    assert found == formats_of(plan)
    assert list(found) == list(arrays)
    for i in range(LAYERS):
        edge = i in (0, LAYERS - 1)
        expected = {
            "attn_norm.weight": "f32",
            "attn_v.bias": "f32",
            "ffn_gate_inp.weight": "f32",
            "attn_q.weight": table["attention"][edge],
            "attn_v.weight": table["values"][edge],
            "ffn_gate_exps.weight": table["gate_up"][edge],
            "ffn_up_exps.weight": table["gate_up"][edge],
            "ffn_down_exps.weight": table["down"][edge],
            "ffn_up_shexp.weight": table["shared"][edge],
            "ffn_down_shexp.weight": table["shared_down"][edge],
        }
        assert {name.removeprefix(f"blk.{i}."): fmt for name, fmt in found.items() if f"blk.{i}." in name} == expected
    assert table["gate_up"][0] != table["gate_up"][1]
    assert found["token_embd.weight"] == table["embedding"][0]
    assert found["output.weight"] == table["output"][0]
    assert found["output_norm.weight"] == "f32"


def test_presets_hold_formats_that_can_be_packed() -> None:
    packable = {fmt.name: fmt.bits_per_weight for fmt in lutkern.formats() if fmt.can_pack}
    for table in PRESETS.values():
        for middle, edge in table.values():
            assert packable[middle] <= packable[edge]


def test_dense_layers_beside_experts_count_as_shared(tmp_path: Path) -> None:
    arrays = moe_arrays()
    for part in ("gate", "up", "down"):
        arrays[f"blk.0.ffn_{part}.weight"] = arrays.pop(f"blk.0.ffn_{part}_exps.weight")[0]
    write_moe(tmp_path / "moe.gguf", arrays)
    found = formats_of(lutkern.pack_file(tmp_path / "moe.gguf", tmp_path / "out.gguf", preset="1bit"))
    table = PRESETS["1bit"]
    assert found["blk.0.ffn_gate.weight"] == table["shared"][0]
    assert found["blk.0.ffn_down.weight"] == table["shared_down"][0]
    assert found["blk.1.ffn_gate_exps.weight"] == table["gate_up"][1]  # the first layer with experts


def test_a_dense_model_gets_the_formats_of_experts(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    found = formats_of(lutkern.pack_file(path, tmp_path / "out.gguf", preset="2bit"))
    assert found["blk.0.ffn_down.weight"] == PRESETS["2bit"]["down"][1]


def test_a_tied_embedding_gets_the_format_of_the_output(tmp_path: Path) -> None:
    arrays = moe_arrays()
    del arrays["output.weight"]
    write_moe(tmp_path / "tied.gguf", arrays)
    found = formats_of(lutkern.pack_file(tmp_path / "tied.gguf", tmp_path / "out.gguf", preset="1bit"))
    assert found["token_embd.weight"] == PRESETS["1bit"]["output"][0] != PRESETS["1bit"]["embedding"][0]


@pytest.mark.parametrize("with_importance", [False, True])
def test_bytes_are_those_of_pack(moe: tuple[Path, dict[str, Any]], tmp_path: Path, with_importance: bool) -> None:
    path, arrays = moe
    experts, matrix = "blk.1.ffn_up_exps.weight", "blk.1.attn_q.weight"
    rng = np.random.default_rng(0)
    vectors = {
        experts: rng.uniform(0.1, 9, (EXPERTS, HIDDEN)).astype(np.float32),
        matrix: rng.uniform(0.1, 9, HIDDEN).astype(np.float32),
    }
    importance = Columns(vectors) if with_importance else None
    types = ["_exps=iq2_xxs", "attn_q=q4_k", "token_embd=q8_0"]
    plan = lutkern.pack_file(path, tmp_path / "out.gguf", types=types, importance=importance, effort="fast")
    with lutkern.open_gguf(tmp_path / "out.gguf") as file:
        for name, fmt in ((experts, "iq2_xxs"), (matrix, "q4_k"), ("token_embd.weight", "q8_0")):
            columns = vectors.get(name) if with_importance else None
            expected = lutkern.pack(arrays[name], fmt, importance=columns, effort="fast")
            np.testing.assert_array_equal(file[name].blocks(), expected.blocks())
        for name in ("output.weight", "blk.0.attn_norm.weight", "blk.2.attn_v.weight"):
            np.testing.assert_array_equal(file.array(name), arrays[name].astype(np.float32))
        np.testing.assert_array_equal(file.array("blk.0.attn_v.bias"), arrays["blk.0.attn_v.bias"].astype(np.float32))
    packed = [tensor.name for tensor in plan.tensors if tensor.format is not None and not tensor.format.is_float]
    lacking = [name for name in packed if name not in vectors]
    note = f"no importance for {', '.join(lacking[:3])} and {len(lacking) - 3} more: packed without"
    assert plan.notes == ((note,) if with_importance else ())


def test_an_importance_file(moe: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, arrays = moe
    name, other = "blk.0.ffn_up_exps.weight", "blk.0.attn_q.weight"
    rng = np.random.default_rng(0)
    importance = lutkern.Importance()
    x = rng.standard_normal((40, 1, HIDDEN)).astype(np.float32)
    importance.update(name, x, rng.integers(0, 2, (40, 1)), experts=EXPERTS)  # nothing for the last expert
    importance.update(other, x[:, 0])
    importance.write(tmp_path / "importance.gguf")
    types = [f"^{name}=iq1_s", f"^{other}=iq2_xxs"]
    plan = lutkern.pack_file(path, tmp_path / "out.gguf", types=types, importance=tmp_path / "importance.gguf")
    assert plan.notes == (
        f"importance of {name}: 1 of {EXPERTS} experts without importance, replaced by that of neighbours",
    )
    with pytest.warns(RuntimeWarning, match="1 of 3 experts"):
        columns = importance.for_weight(name, arrays[name].shape)
    with lutkern.open_gguf(tmp_path / "out.gguf") as file:
        assert file.metadata["quantize.imatrix.file"] == "importance.gguf"
        expected = lutkern.pack(arrays[name], "iq1_s", importance=columns)
        np.testing.assert_array_equal(file[name].blocks(), expected.blocks())
        one = importance.for_weight(other, arrays[other].shape)
        expected = lutkern.pack(arrays[other], "iq2_xxs", importance=one)
        np.testing.assert_array_equal(file[other].blocks(), expected.blocks())


@pytest.mark.parametrize("source", ["f32", "f16", "bf16", "q8_0"])
def test_sources(tmp_path: Path, source: str) -> None:
    write_blocks(tmp_path / "in.gguf", {"a.weight": (source, (64, 512)), "b.weight": (source, (2, 40, 512))})
    lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", default="iq3_s")
    with lutkern.open_gguf(tmp_path / "in.gguf") as before, lutkern.open_gguf(tmp_path / "out.gguf") as after:
        for name in ("a.weight", "b.weight"):
            expected = lutkern.pack(lutkern.dequantize(before[name]), "iq3_s")
            np.testing.assert_array_equal(after[name].blocks(), expected.blocks())


def test_metadata_and_the_gguf_package(moe: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, _ = moe
    lutkern.pack_file(path, tmp_path / "out.gguf", preset="1bit")
    with lutkern.open_gguf(path) as before, lutkern.open_gguf(tmp_path / "out.gguf") as after:
        assert after.metadata["general.file_type"] == gguf.LlamaFileType.MOSTLY_IQ2_XXS
        assert after.metadata["general.quantization_version"] == gguf.GGML_QUANT_VERSION
        for key in before.metadata:
            if key != "general.file_type":
                np.testing.assert_array_equal(after.metadata[key], before.metadata[key])
                assert after.metadata.value_type(key) == before.metadata.value_type(key)
        assert set(after.metadata) == {*before.metadata, "general.quantization_version"}
        reader = gguf.GGUFReader(tmp_path / "out.gguf")
        assert [tensor.name for tensor in reader.tensors] == list(after)
        for tensor in reader.tensors:
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(theirs, after.array(tensor.name))


def test_rules_come_first_and_in_order(moe: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    types = [r"blk\.1\.ffn_up_exps=q2_k", "ffn_up_exps=iq2_s", "attn=q8_0", "nothing=q8_0", "ffn_gate_inp=iq1_s"]
    plan = lutkern.pack_file(moe[0], tmp_path / "out.gguf", types=types, preset="1bit")
    found = formats_of(plan)
    assert [found[f"blk.{i}.ffn_up_exps.weight"] for i in range(LAYERS)] == ["iq2_s", "q2_k", "iq2_s"]
    assert found["blk.1.ffn_gate_exps.weight"] == PRESETS["1bit"]["gate_up"][0]
    assert found["blk.0.attn_q.weight"] == "q8_0"
    assert found["blk.0.attn_norm.weight"] == found["blk.0.attn_v.bias"] == found["blk.0.ffn_gate_inp.weight"] == "f32"
    assert plan.notes == (
        "rule nothing=q8_0 gave no tensor its format",
        "rule ffn_gate_inp=iq1_s gave no tensor its format",
    )


def test_a_rule_with_a_float_format_reaches_norms(moe: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    found = formats_of(lutkern.pack_file(moe[0], tmp_path / "out.gguf", types=["ffn_gate_inp=f16", ".=q8_0"]))
    assert found["blk.0.ffn_gate_inp.weight"] == "f16"
    assert found["blk.0.attn_norm.weight"] == "f32"
    assert {fmt for name, fmt in found.items() if "exps" in name} == {"q8_0"}


def test_default_and_what_stays(moe: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    found = formats_of(lutkern.pack_file(moe[0], tmp_path / "a.gguf", types=["_exps=q2_k"]))
    assert found["blk.0.attn_q.weight"] == "f16"
    found = formats_of(lutkern.pack_file(moe[0], tmp_path / "b.gguf", types=["_exps=q2_k"], default="q8_0"))
    assert found["blk.0.attn_q.weight"] == "q8_0"
    assert found["blk.0.attn_norm.weight"] == "f32"


@pytest.mark.parametrize(
    ("cols", "wanted", "got"),
    [
        (288, "iq1_s", "iq4_nl"),
        (288, "iq2_xxs", "iq4_nl"),
        (288, "q2_k", "iq4_nl"),
        (288, "q4_k", "iq4_nl"),
        (288, "q6_k", "q8_0"),
        (288, "q8_0", "q8_0"),
        (250, "q8_0", "f16"),
        (250, "iq1_m", "f16"),
        (512, "iq1_m", "iq1_m"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, cols: int, wanted: str, got: str) -> None:
    values = np.random.default_rng(0).standard_normal((128, cols), np.float32)
    lutkern.write_gguf(tmp_path / "in.gguf", {"a.weight": values}, {"general.architecture": "llama"})
    plan = lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", default=wanted)
    assert formats_of(plan) == {"a.weight": got}
    note = f"{cols} columns do not fit {wanted}, packed as {got}: a.weight"
    assert plan.notes == (() if got == wanted else (note,))
    with lutkern.open_gguf(tmp_path / "out.gguf") as file:
        np.testing.assert_array_equal(file["a.weight"].blocks(), lutkern.pack(values, got).blocks())


def test_columns_that_do_not_fit_are_told_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((128, 288), np.float32)
    names = [f"blk.{i}.ffn_up.weight" for i in range(5)]
    lutkern.write_gguf(tmp_path / "in.gguf", dict.fromkeys(names, values), {"general.architecture": "llama"})
    plan = lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", types=["blk.[01]=iq1_s"], default="q6_k")
    assert plan.notes == (
        f"288 columns do not fit iq1_s, packed as iq4_nl: {names[0]}, {names[1]}",
        f"288 columns do not fit q6_k, packed as q8_0: {names[2]}, {names[3]}, {names[4]}",
    )
    assert [tensor.wanted for tensor in plan.tensors] == ["iq1_s"] * 2 + ["q6_k"] * 3


def test_bfloat16_stays_where_nothing_fits(tmp_path: Path) -> None:
    write_blocks(tmp_path / "in.gguf", {"a.weight": ("bf16", (128, 250))})
    plan = lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", default="q8_0")
    assert formats_of(plan) == {"a.weight": "bf16"}


def test_packed_tensors_need_leave_to_be_packed_again(tmp_path: Path) -> None:
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "kept.weight": ("iq1_s", (128, 256)),
        "a.weight": ("q5_k", (128, 256)),
        "b.weight": ("q4_1", (128, 256)),
    }
    write_blocks(tmp_path / "in.gguf", shapes)
    message = (
        "^pack_file: tensor 'a.weight' is q5_k, expected one of: f32, f16, bf16, q8_0; "
        "packing it again loses more, --allow-requantize does it all the same$"
    )
    with pytest.raises(ValueError, match=message):
        lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", default="q2_k")
    assert not (tmp_path / "out.gguf").exists()
    plan = lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", default="q2_k", allow_requantize=True)
    assert formats_of(plan) == {"kept.weight": "iq1_s", "a.weight": "q2_k", "b.weight": "q2_k"}
    with lutkern.open_gguf(tmp_path / "in.gguf") as before, lutkern.open_gguf(tmp_path / "out.gguf") as after:
        np.testing.assert_array_equal(before["kept.weight"].blocks(), after["kept.weight"].blocks())


def test_other_types_are_copied(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    rng = np.random.default_rng(3)
    arrays = {
        "ids": rng.integers(-9, 9, (200, 300), np.int32),
        "conv": rng.standard_normal((2, 3, 5, 4000), np.float32),
        "a.weight": rng.standard_normal((128, 256), np.float32),
    }
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", default="q8_0")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    np.testing.assert_array_equal(tensors["ids"].data, arrays["ids"])
    np.testing.assert_array_equal(tensors["conv"].data, arrays["conv"])
    message = r"^pack_file: tensor 'ids' is i32, expected a format of lutkern to pack it \(rule ids=q8_0\)$"
    with pytest.raises(ValueError, match=message):
        lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "o.gguf", types=["ids=q8_0"])


def test_shards_in_and_out(tmp_path: Path) -> None:
    arrays = write_moe(tmp_path / "in.gguf", split_max_tensors=9)
    first = sorted(tmp_path.glob("in-*.gguf"))[0]
    plan = lutkern.pack_file(first, tmp_path / "whole.gguf", preset="2bit")
    split = lutkern.pack_file(
        first.with_name(first.name.replace("00001-of", "00002-of")),
        tmp_path / "out.gguf",
        preset="2bit",
        split_size=200_000,
    )
    assert len(split.files) > 3
    names = [tmp_path / f"out-{no + 1:05}-of-{len(split.files):05}.gguf" for no in range(len(split.files))]
    assert list(map(str, names)) == list(split.files)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out")) == [p.name for p in names]
    for shard in split.shards:
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard) <= 200_000
    with lutkern.open_gguf(names[1]) as parts, lutkern.open_gguf(plan.files[0]) as whole:
        assert list(parts) == list(whole) == list(arrays)
        for name in whole:
            assert parts[name].blocks().tobytes() == whole[name].blocks().tobytes()
        assert set(parts.metadata) == {*whole.metadata, "split.no", "split.count", "split.tensors.count"}
        assert parts.metadata.value_type("split.no")[0] == 2
        assert parts.metadata.value_type("split.tensors.count")[0] == 5


@pytest.mark.parametrize(("split_size", "files"), [(None, 1), (1, 3)])
def test_alignment_is_kept(tmp_path: Path, split_size: int | None, files: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((129, 288), np.float32) for name in ("a.weight", "b.weight", "c.weight")}
    lutkern.write_gguf(tmp_path / "in.gguf", arrays, {"general.architecture": "llama", "general.alignment": 256})
    plan = lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", default="iq4_nl", split_size=split_size)
    assert plan.tensors[0].nbytes % 256 != 0
    assert len(plan.files) == files
    for path in plan.files:
        assert all(tensor.data_offset % 256 == 0 for tensor in gguf.GGUFReader(path).tensors)
    with lutkern.open_gguf(plan.files[0]) as file:
        assert file.alignment == 256
        for name, values in arrays.items():
            np.testing.assert_array_equal(file[name].blocks(), lutkern.pack(values, "iq4_nl").blocks())


def test_threads_do_not_change_the_file(moe: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    lutkern.pack_file(moe[0], tmp_path / "a.gguf", preset="1bit", threads=1)
    lutkern.pack_file(moe[0], tmp_path / "b.gguf", preset="1bit", threads=2)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_progress_and_the_plan(moe: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, arrays = moe
    pieces: list[tuple[str, int, int]] = []
    plans: list[lutkern.files.Plan] = []
    plan = lutkern.pack_file(
        path,
        tmp_path / "out.gguf",
        preset="1bit",
        progress=lambda *piece: pieces.append(piece),
        planned=plans.append,
    )
    assert plans[0].tensors == plan.tensors
    assert plans[0].files == ()
    assert sum(n for _, n, _ in pieces) == sum(a.nbytes for a in arrays.values())
    assert sum(n for *_, n in pieces) == sum(a.size for a in arrays.values())
    assert list(dict.fromkeys(name for name, *_ in pieces)) == list(arrays)
    found = plan.as_dict()
    assert found["source"]["bytes"] == sum(a.nbytes for a in arrays.values())
    assert found["result"]["bytes"] == sum(f["bytes"] for f in found["formats"].values())
    with lutkern.open_gguf(tmp_path / "out.gguf") as file:
        assert {t["name"]: t["bytes"] for t in found["tensors"]} == {n: i.nbytes for n, i in file.tensors.items()}
    assert found["files"] == [str(tmp_path / "out.gguf")]
    assert found["seconds"] > 0


def test_dry_run_writes_nothing(moe: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    plan = lutkern.pack_file(moe[0], tmp_path / "out.gguf", preset="1bit", dry_run=True)
    assert [p.name for p in tmp_path.iterdir()] == ["moe.gguf"]
    assert plan.seconds is None
    assert plan.tensors == lutkern.pack_file(moe[0], tmp_path / "out.gguf", preset="1bit").tensors
