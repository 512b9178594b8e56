"""Importance files of both kinds. Judges: bytes put together with struct from the layout, and the gguf package."""

from __future__ import annotations

import os
import re
import sys
import warnings

import gguf
import numpy as np
import pytest

import lutkern
from gguf_bytes import U32, entry, u32
from importance_bytes import COUNTS, DENSE, EXPERTS, SUMS, TYPE, collected, dat, dat_entry, i32, imatrix, read
from lutkern import Importance

# ---- legacy ----


def test_read_legacy(tmp_path):
    content = dat(dat_entry(DENSE, 4, [4, 8, 2]), dat_entry("ü", 1, [0.5]), trailer=i32(10, 5) + b"a.txt")
    importance = read(tmp_path, content, chunk_size=100)
    assert importance.names() == (DENSE, "ü")
    assert importance.mean(DENSE).tolist() == [1, 2, 0.5]
    assert importance.counts(DENSE).tolist() == [400]
    assert importance.mean("ü").tolist() == [0.5]
    assert (importance.datasets, importance.chunk_count, importance.chunk_size) == (["a.txt"], 10, 100)
    assert importance.for_weight(DENSE, (7, 3)).tolist() == [1, 2, 0.5]


@pytest.mark.parametrize(
    ("trailer", "datasets"),
    [(b"", []), (i32(3), []), (i32(3, 0), []), (i32(3, 2) + b"\xfcx", ["\ufffdx"])],
    ids=["none", "chunks", "no dataset", "dataset not in UTF-8"],
)
def test_legacy_trailers(trailer, datasets, tmp_path):
    importance = read(tmp_path, dat(dat_entry("w", 2, [2]), trailer=trailer))
    assert importance.datasets == datasets
    assert importance.chunk_count == (3 if trailer else 2)


def test_legacy_values_without_calls_are_means(tmp_path):
    assert read(tmp_path, dat(dat_entry("w", 0, [2, 3]))).mean("w").tolist() == [2, 3]


def test_legacy_experts_are_taken_apart(tmp_path):
    """Experts 1 and 2 are marked as missing: by ones times calls, by zeros."""
    content = dat(dat_entry("w", 7, [7, 14, 7, 7, 0, 0, 21, 28]))
    with pytest.warns(RuntimeWarning, match="'w': 2 of 4 experts without importance, replaced by that of neighbours"):
        values = read(tmp_path, content).for_weight("w", (4, 9, 2))
    np.testing.assert_allclose(values, [[1, 2], [2, 3], [2, 3], [3, 4]], rtol=1e-6)


def test_legacy_experts_meet_new_inputs(tmp_path):
    content = dat(dat_entry("w", 2, [2, 4, 2, 2, 0, 6, 0, 0]))
    importance = read(tmp_path, content, chunk_size=8)
    for expert in (1, 2, 3):
        importance.update("w", np.full((16, 2), 2, np.float32), np.full(16, expert))
    assert importance.counts("w").tolist() == [16, 16, 32, 16]
    np.testing.assert_allclose(importance.mean("w"), [[1, 2], [4, 4], [2, 3.5], [4, 4]])
    other = read(tmp_path, content, chunk_size=8)
    other.merge(importance)
    assert other.counts("w").tolist() == [32, 16, 48, 16]
    np.testing.assert_allclose(other.mean("w"), [[1, 2], [4, 4], [4 / 3, 10 / 3], [4, 4]])
    with pytest.raises(ValueError, match="expert_ids reach from 4 to 4, expected 0 to 3"):
        read(tmp_path, content).update("w", np.ones((1, 2), np.float32), [4])


def test_write_legacy(tmp_path):
    path = tmp_path / "imatrix.dat"
    importance = collected()
    importance.update("nothing", np.empty((0, 4), np.float32))
    importance.write(path)
    dense = importance.mean(DENSE) * 3  # 40 tokens begin 3 chunks of 16
    n_calls = -(-int(importance.counts(EXPERTS).max()) // 16)
    experts = np.where(importance.counts(EXPERTS)[:, None] > 0, importance.mean(EXPERTS), 1) * n_calls
    entries = (dat_entry(DENSE, 3, dense.tolist()), dat_entry(EXPERTS, n_calls, experts.ravel().tolist()))
    name = "zwölf.txt".encode()
    assert path.read_bytes() == dat(*entries, trailer=i32(3, len(name)) + name)
    assert list(tmp_path.iterdir()) == [path]
    again = Importance.read(path, chunk_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for weight, shape in ((DENSE, (2, 6)), (EXPERTS, (5, 2, 3))):
            expected = importance.for_weight(weight, shape)
            np.testing.assert_allclose(again.for_weight(weight, shape), expected, rtol=1e-6)


# ---- GGUF ----


def test_write_gguf(tmp_path):
    """The gguf package finds what we wrote, in ggml's order of dimensions."""
    path = tmp_path / "imatrix.gguf"
    importance = collected()
    importance.write(path)
    reader = gguf.GGUFReader(path)
    fields = {key: reader.fields[key].contents() for key in reader.fields if not key.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "imatrix",
        "general.type": "imatrix",
        "imatrix.datasets": ["first.txt", "zwölf.txt"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 16,
    }
    assert gguf.Keys.IMatrix.CHUNK_COUNT in fields
    tensors = {t.name: t for t in reader.tensors}
    assert [t.tensor_type for t in reader.tensors] == [gguf.GGMLQuantizationType.F32] * 4
    sizes = {name: t.shape.tolist() for name, t in tensors.items()}
    assert sizes == {
        f"{DENSE}.in_sum2": [6],
        f"{DENSE}.counts": [1],
        f"{EXPERTS}.in_sum2": [3, 5],
        f"{EXPERTS}.counts": [1, 5],
    }
    for name in importance:
        counts, mean = importance.counts(name), importance.mean(name)
        np.testing.assert_array_equal(tensors[f"{name}.counts"].data.reshape(-1), counts)
        sums = np.nan_to_num(mean) * counts.reshape((-1, 1) if mean.ndim == 2 else 1)
        np.testing.assert_allclose(tensors[f"{name}.in_sum2"].data, sums, rtol=1e-6)


def test_gguf_round_trip(tmp_path):
    first, second = tmp_path / "1.gguf", tmp_path / "2.gguf"
    importance = collected()
    importance.write(first)
    again = Importance.read(first, chunk_size=7)
    assert again.names() == importance.names()
    assert (again.datasets, again.chunk_count, again.chunk_size) == (importance.datasets, 3, 16)
    for name in importance:
        np.testing.assert_allclose(again.mean(name), importance.mean(name), rtol=1e-6)
        assert again.counts(name).tolist() == importance.counts(name).tolist()
    again.write(second)
    assert second.read_bytes() == first.read_bytes()
    again.merge(importance)
    again.update(DENSE, np.zeros((20, 6), np.float32))
    np.testing.assert_allclose(again.mean(DENSE), importance.mean(DENSE) * 0.8, rtol=1e-6)
    np.testing.assert_allclose(again.mean(EXPERTS), importance.mean(EXPERTS), rtol=1e-6)
    assert again.datasets == importance.datasets


def test_the_kind_of_a_file_is_in_its_content(tmp_path):
    importance = collected()
    importance.datasets = []
    importance.write(tmp_path / "a.dat", kind="gguf")
    importance.write(os.fsencode(tmp_path / "b.GGUF"), kind="dat")
    importance.write(tmp_path / "c.GGUF")
    assert (tmp_path / "a.dat").read_bytes() == (tmp_path / "c.GGUF").read_bytes()
    assert (tmp_path / "b.GGUF").read_bytes()[:4] == i32(2)
    for name in ("a.dat", "b.GGUF"):
        importance = Importance.read(os.fsencode(tmp_path / name), chunk_size=16)
        assert importance.names() == (DENSE, EXPERTS)
        assert importance.datasets == []
        assert len(importance.counts(EXPERTS)) == (5 if name == "a.dat" else 1)


def test_the_importance_reaches_pack(tmp_path):
    rng = np.random.default_rng(5)
    w, x = rng.standard_normal((2, 8, 256)).astype(np.float32), rng.lognormal(size=(50, 256)).astype(np.float32)
    importance = Importance()
    importance.update("w", x, np.arange(50) % 2)
    expected = lutkern.pack(w, "iq2_xxs", importance=importance.for_weight("w", w.shape))
    assert expected.blocks().tobytes() != lutkern.pack(w, "iq2_xxs").blocks().tobytes()
    for name in ("w.gguf", "w.dat"):
        importance.write(tmp_path / name)
        read_again = Importance.read(tmp_path / name).for_weight("w", w.shape)
        np.testing.assert_allclose(read_again, importance.for_weight("w", w.shape), rtol=1e-6)


def test_other_writers(tmp_path):
    """The order of the tensors, tensors of other names, one count for all rows, keys that are not there."""
    path = tmp_path / "other.gguf"
    path.write_bytes(imatrix(COUNTS, ("w.in_sum", (2, 3), [0] * 6), ("bias", (1,), [1]), SUMS))
    importance = Importance.read(path, chunk_size=5)
    assert importance.names() == ("w",)
    assert importance.counts("w").tolist() == [2, 4, 0]
    assert importance.mean("w")[:2].tolist() == [[1, 2], [1.5, 2]]
    assert np.isnan(importance.mean("w")[2]).all()
    assert (importance.chunk_size, importance.chunk_count, importance.datasets) == (5, 1, [])
    path.write_bytes(imatrix(SUMS, ("w.counts", (1,), [2])))
    assert Importance.read(path).counts("w").tolist() == [2, 2, 2]
    # Experts in a row, as a legacy file that was rewritten as GGUF has them.
    path.write_bytes(imatrix(("w.in_sum2", (6,), [2, 4, 6, 8, 2, 2]), ("w.counts", (1,), [2])))
    with pytest.warns(RuntimeWarning, match="1 of 3 experts"):
        assert Importance.read(path).for_weight("w", (3, 9, 2)).tolist() == [[1, 2], [3, 4], [3, 4]]


def test_what_was_read_is_independent_of_the_file(tmp_path):
    """The file may change, sums go on in float64, and chunks add up."""
    path = tmp_path / "w.gguf"
    chunks = entry("imatrix.chunk_count", U32, u32(50))
    path.write_bytes(imatrix(("w.in_sum2", (1,), [2.0**24]), ("w.counts", (1,), [4]), entries=(TYPE, chunks)))
    importance, again = Importance.read(path), Importance.read(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    importance.update("w", np.ones((1, 1), np.float32))
    assert importance.mean("w").tolist() == [(2**24 + 1) / 5]
    importance.merge(again)
    assert importance.mean("w").tolist() == [(2**25 + 1) / 9]
    assert importance.chunk_count == 100


def test_values_that_are_no_numbers_are_kept_until_they_are_used(tmp_path):
    path = tmp_path / "w.gguf"
    path.write_bytes(imatrix(("w.in_sum2", (4,), [np.nan, np.inf, -2, 6]), ("w.counts", (1,), [2])))
    importance = Importance.read(path)
    np.testing.assert_array_equal(importance.mean("w"), [np.nan, np.inf, -1, 3])
    for name in ("again.gguf", "again.dat"):
        importance.write(tmp_path / name)
        again = Importance.read(tmp_path / name)
        np.testing.assert_array_equal(again.mean("w"), importance.mean("w"))
        with pytest.warns(RuntimeWarning, match="3 of 4 numbers not finite and positive"):
            assert again.for_weight("w", (2, 4)).tolist() == [3, 3, 3, 3]


# ---- files and folders ----


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Importance.read(tmp_path / "none.dat")
    text = "Importance.read: not a regular file, expected an importance file"
    with pytest.raises(IsADirectoryError, match=text):
        Importance.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=text):
        Importance.read(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match=r"Importance.write: the folder does not exist"):
        collected().write(tmp_path / "none" / "a.dat")
    with pytest.raises(IsADirectoryError, match=r"Importance.write: is a folder, expected a file name"):
        collected().write(tmp_path, kind="dat")


def unseen() -> Importance:
    importance = Importance()
    importance.update("w", np.empty((0, 4), np.float32))
    return importance


def too_large() -> Importance:
    importance = Importance()
    importance.update("w", np.full((1, 2), 1e30, np.float32))
    return importance


def with_datasets(*datasets: object) -> Importance:
    importance = collected()
    importance.datasets = list(datasets)
    return importance


UNWRITABLE = {
    "suffix": (collected, "a.imatrix", ValueError, "unknown kind 'imatrix', expected one of: gguf, dat"),
    "nothing": (Importance, "a.gguf", ValueError, "there are no weights, expected at least one"),
    "no token": (unseen, "a.dat", ValueError, "no weight has seen a token, expected at least one"),
    "too large": (too_large, "a.gguf", ValueError, "'w' reaches 1e+60, expected values that fit float32"),
    "too large, legacy": (too_large, "a.dat", ValueError, "'w' reaches 1e+60, expected values that fit float32"),
    "dataset": (lambda: with_datasets("a", 5), "a.dat", TypeError, "datasets has int, expected str"),
    "surrogate": (
        lambda: with_datasets("\udcff"),
        "a.gguf",
        ValueError,
        "datasets has a lone surrogate at 0, expected valid UTF-8",
    ),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_refused_writing_keeps_the_old_file(case, tmp_path):
    make, name, error, message = UNWRITABLE[case]
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(error, match=f"^Importance.write: {re.escape(message)}$"):
        make().write(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_interrupted_writing_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.dat"
    path.write_bytes(b"old")
    seen = []

    def interrupted(descriptor: int) -> None:
        seen.extend(sorted(found.name for found in tmp_path.iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collected().write(path)
    assert re.fullmatch(r"\.a\.dat\.[0-9a-f]{8}\.part", seen[0])
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_writing_without_the_gguf_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    text = "write_gguf: the gguf package is not installed, expected it (pip install 'lutkern[gguf]')"
    with pytest.raises(ImportError, match=f"^{re.escape(text)}$"):
        collected().write(tmp_path / "a.gguf")
    collected().write(tmp_path / "a.dat")
    assert Importance.read(tmp_path / "a.dat").names() == (DENSE, EXPERTS)
