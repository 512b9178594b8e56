"""Packing whole files: what is refused with which text, and what an interruption leaves behind."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lutkern
from gguf_bytes import STRING, build, entry, text
from model_files import write_moe

PACKABLE = ", ".join(fmt.name for fmt in lutkern.formats() if fmt.can_pack)


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    write_moe(tmp_path / "moe.gguf")
    return tmp_path / "moe.gguf"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing asked": ({}, "no format is asked for, expected types, a preset, a default or target_bpw"),
    "rule without =": ({"types": ["iq1_m"]}, "rule 'iq1_m' has no '=', expected 'REGEX=FORMAT'"),
    "empty rule": ({"types": ["=iq1_m"]}, "rule '=iq1_m' has no '=', expected 'REGEX=FORMAT'"),
    "regex": (
        {"types": ["(=iq1_m"]},
        "rule '(=iq1_m' has no valid regex (missing ), unterminated subpattern at position 0), expected one",
    ),
    "unknown format": ({"types": ["a=q9"]}, f"unknown format 'q9', expected one of: {PACKABLE}"),
    "unknown default": ({"default": "q9"}, f"unknown format 'q9', expected one of: {PACKABLE}"),
    "unknown preset": ({"preset": "3bit"}, "unknown preset '3bit', expected one of: 1bit, 2bit"),
    "unknown effort": (
        {"preset": "1bit", "effort": "some"},
        "unknown effort 'some', expected one of: fast, default, best",
    ),
    "threads": ({"preset": "1bit", "threads": 0}, "threads is 0, expected 1 to 1024"),
    "split_size": ({"preset": "1bit", "split_size": 0}, "split_size is 0, expected at least 1 byte"),
    "sample_rows": ({"target_bpw": 3.0, "sample_rows": 0}, "sample_rows is 0, expected at least 1"),
    "target_bpw": (
        {"target_bpw": -1.0},
        "target_bpw is -1, expected a number of bits above 0 and below 64",
    ),
    "nan": ({"target_bpw": float("nan")}, "target_bpw is nan, expected a number of bits above 0 and below 64"),
    "default and target": (
        {"target_bpw": 3.0, "default": "q8_0"},
        "default and target_bpw are both given, expected one of them",
    ),
    "candidates": (
        {"preset": "1bit", "candidates": ["q2_k"]},
        "candidates are given without target_bpw, expected both",
    ),
    "no candidates": ({"target_bpw": 3.0, "candidates": []}, "candidates are empty, expected at least one format"),
    "wrong candidate": (
        {"target_bpw": 3.0, "candidates": ["q9"]},
        f"unknown format 'q9', expected one of: {PACKABLE}",
    ),
    "name map": (
        {"preset": "1bit", "name_map": "map.json"},
        "a name map is given for a GGUF file, expected a folder of safetensors files",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_wrong_arguments(moe: Path, tmp_path: Path, case: str) -> None:
    arguments, problem = REFUSED[case]
    with pytest.raises(ValueError, match=f"^{re.escape('pack_file: ' + problem)}$"):
        lutkern.pack_file(moe, tmp_path / "out.gguf", **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["moe.gguf"]


def test_formats_that_are_only_read(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every format of today can be packed; a new one may be read first."""
    only_read = replace(lutkern.formats()[0], name="iq9", can_pack=False)
    monkeypatch.setattr("lutkern.files.rules.find_format", lambda _: only_read)
    message = f"^pack_file: format 'iq9' cannot be packed, expected one of: {PACKABLE}$"
    with pytest.raises(ValueError, match=message):
        lutkern.pack_file(moe, tmp_path / "out.gguf", types=["a=iq9"])


def test_targets(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pack_file: the folder does not exist") as missing:
        lutkern.pack_file(moe, tmp_path / "none" / "out.gguf", preset="1bit")
    assert missing.value.filename == str(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match="pack_file: is a folder, expected a file name"):
        lutkern.pack_file(moe, tmp_path, preset="1bit")
    message = "^pack_file: the output is named 'a-00001-of-00002.gguf', expected one without a shard number$"
    with pytest.raises(ValueError, match=message):
        lutkern.pack_file(moe, tmp_path / "a-00001-of-00002.gguf", preset="1bit")
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="pack_file: the file exists, expected a new name or --force") as exists:
        lutkern.pack_file(moe, out, preset="1bit")
    assert exists.value.filename == str(out)
    assert out.read_bytes() == b"mine"
    lutkern.pack_file(moe, out, preset="1bit", dry_run=True)
    assert out.read_bytes() == b"mine"
    lutkern.pack_file(moe, out, preset="1bit", force=True)
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_the_output_is_the_input(moe: Path, tmp_path: Path, link: str) -> None:
    target = moe if link == "same" else tmp_path / "link.gguf"
    if link == "symbolic":
        target.symlink_to(moe)
    elif link == "hard":
        target.hardlink_to(moe)
    before = moe.read_bytes()
    with pytest.raises(ValueError, match=r"^pack_file: '.*' is the input, expected another file for the output$"):
        lutkern.pack_file(moe, target, preset="1bit", force=True)
    assert moe.read_bytes() == before


def test_shards_of_the_output_are_the_input(tmp_path: Path) -> None:
    write_moe(tmp_path / "in.gguf", split_max_tensors=20)
    first = min(tmp_path.glob("in-*.gguf"))
    plan = lutkern.pack_file(first, tmp_path / "in.gguf", preset="1bit", split_size=10**7, dry_run=True)
    size = sum(tensor.nbytes for tensor in plan.tensors) // 2 + 100_000
    with pytest.raises(ValueError, match="is the input, expected another file for the output"):
        lutkern.pack_file(first, tmp_path / "in.gguf", preset="1bit", split_size=size, force=True)


def test_a_weight_that_is_not_finite(tmp_path: Path) -> None:
    arrays = write_moe(tmp_path / "in.gguf")
    arrays["blk.1.ffn_up_exps.weight"][2, 5, 7] = np.nan
    write_moe(tmp_path / "in.gguf", arrays)
    for arguments in ({"preset": "1bit"}, {"target_bpw": 3.0, "sample_rows": 10**6}):  # packed, and measured
        with pytest.raises(
            ValueError, match=r"^pack_file: tensor 'blk\.1\.ffn_up_exps\.weight': pack: w\[.*\] is not finite"
        ):
            lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", **arguments)
        assert [p.name for p in tmp_path.iterdir()] == ["in.gguf"]


def test_a_long_name(tmp_path: Path) -> None:
    values = np.ones((2, 32), np.float32)
    name = "n" * 64
    write_moe(tmp_path / "in.gguf", {name: values})
    with pytest.raises(ValueError, match=f"^pack_file: tensor '{name}' has a name of 64 bytes, expected 1 to 63$"):
        lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", preset="1bit")


def test_a_file_without_an_architecture(tmp_path: Path) -> None:
    (tmp_path / "in.gguf").write_bytes(build([entry("k", STRING, text("v"))]))
    message = "^pack_file: in.gguf: general.architecture is None, expected a non-empty text$"
    with pytest.raises(ValueError, match=message):
        lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", preset="1bit")


def test_the_target_is_looked_at_before_the_measurement(moe: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").touch()

    def measured(name: str, n_bytes: int, weights: int) -> None:
        raise AssertionError("measured for nothing")

    with pytest.raises(FileExistsError, match="pack_file: the file exists"):
        lutkern.pack_file(moe, tmp_path / "out.gguf", target_bpw=3.0, measured=measured)


class StopError(Exception):
    """Raised by the tests in the middle of the packing."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, StopError, SystemExit])
@pytest.mark.parametrize("split_size", [None, 300_000])
def test_an_interruption_leaves_nothing(
    moe: Path, tmp_path: Path, kind: type[BaseException], split_size: int | None
) -> None:
    seen: list[list[str]] = []

    def stop(name: str, n_bytes: int, weights: int) -> None:
        if name == "blk.2.ffn_up_exps.weight":
            seen.append(sorted(p.name for p in tmp_path.iterdir() if p != moe))
            raise kind

    out = tmp_path / "out.gguf"
    if split_size is None:
        out.write_bytes(b"old")
    with pytest.raises(kind):
        lutkern.pack_file(moe, out, preset="1bit", force=True, progress=stop, split_size=split_size)
    assert all(name.startswith(".out") and name.endswith(".part") for name in seen[0] if name != "out.gguf")
    assert len(seen[0]) >= 2
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["moe.gguf", "out.gguf"] if split_size is None else ["moe.gguf"]
    )
    if split_size is None:
        assert out.read_bytes() == b"old"


def test_an_interruption_of_the_renaming(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, count = os.replace, 0

    def second_fails(source: str, target: str) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(KeyboardInterrupt):
        lutkern.pack_file(moe, tmp_path / "out.gguf", preset="1bit", split_size=300_000)
    assert [p.name for p in tmp_path.iterdir()] == ["moe.gguf"]


def test_a_full_disk(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(t.nbytes for t in lutkern.pack_file(moe, tmp_path / "o.gguf", preset="1bit", dry_run=True).tensors)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=size - 1))
    with pytest.raises(
        OSError, match=f"pack_file: the disk has {size - 1} bytes left, the tensors need {size}"
    ) as full:
        lutkern.pack_file(moe, tmp_path / "out.gguf", preset="1bit")
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["moe.gguf"]


def test_a_write_that_fails(moe: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        with pytest.raises(OSError, match="pack_file: cannot write: File too large") as error:
            lutkern.pack_file(moe, tmp_path / "out.gguf", preset="1bit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / "out.gguf"))
    assert [p.name for p in tmp_path.iterdir()] == ["moe.gguf"]


def test_a_source_that_is_cut_short(moe: Path, tmp_path: Path) -> None:
    def cut(plan: lutkern.files.Plan) -> None:
        os.truncate(moe, os.path.getsize(moe) - 1)

    message = r"pack_file: the file ends inside tensor 'blk\.2\.ffn_down_shexp\.weight', expected it not to change"
    with pytest.raises(OSError, match=message) as error:
        lutkern.pack_file(moe, tmp_path / "out.gguf", preset="1bit", planned=cut)
    assert error.value.filename == str(moe)
    assert [p.name for p in tmp_path.iterdir()] == ["moe.gguf"]


def test_missing_packages(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    message = "pack_file: the gguf package is not installed, expected it (pip install 'lutkern[pack]')"
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        lutkern.pack_file(moe, tmp_path / "out.gguf", preset="1bit")


def test_an_importance_file_that_is_missing(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.dat"):
        lutkern.pack_file(moe, tmp_path / "out.gguf", preset="1bit", importance=tmp_path / "none.dat")


def test_importance_of_other_sizes(moe: Path, tmp_path: Path) -> None:
    importance = lutkern.Importance()
    importance.update("blk.0.attn_q.weight", np.ones((2, 5), np.float32))
    with pytest.raises(
        ValueError, match=r"^Importance\.for_weight: 'blk\.0\.attn_q\.weight' is .*, the weight is 256 x 256"
    ):
        lutkern.pack_file(moe, tmp_path / "out.gguf", preset="1bit", importance=importance)
    assert [p.name for p in tmp_path.iterdir()] == ["moe.gguf"]
