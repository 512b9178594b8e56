"""Writing GGUF files: round trips, types of metadata, refusals, interruptions."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import lutkern
from gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    STRING,
    U8,
    U16,
    U32,
    U64,
    write_every_format,
    write_split,
)


@pytest.fixture(scope="module")
def every_format(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / "every.gguf"
    return path, write_every_format(path)


@pytest.fixture
def split(tmp_path: Path) -> tuple[list[Path], dict[str, np.ndarray]]:
    return write_split(tmp_path / "big.gguf")


def same(left: Any, right: Any) -> bool:
    """Equal metadata values, NumPy dtypes included."""
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def test_round_trip_of_a_file(every_format: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """What is read is written again to the same bytes, and the gguf package reads it."""
    path, written = every_format
    copy = tmp_path / "copy.gguf"
    names = [name for name in written if name not in ("ids", "conv")]
    with lutkern.open_gguf(path) as file:
        tensors = {name: file[name] for name in names}
        lutkern.write_gguf(copy, {**tensors, "conv": file.array("conv")}, file.metadata)
        with lutkern.open_gguf(copy) as again:
            assert list(again) == [*names, "conv"]
            assert list(again.metadata) == list(file.metadata)
            for key in file.metadata:
                assert same(again.metadata[key], file.metadata[key])
                assert again.metadata.value_type(key) == file.metadata.value_type(key)
            for name in names:
                assert again[name].blocks().tobytes() == written[name].tobytes()
                assert again[name].shape == tensors[name].shape
            assert again.tensors["norm"].shape == (7,)
            np.testing.assert_array_equal(again.array("conv"), written["conv"])
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(copy).tensors}
    for name in names:
        assert theirs[name].data.tobytes() == written[name].tobytes()


def test_types_of_metadata(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    metadata: dict[str, tuple[Any, tuple[int, int | None]]] = {
        "text": ("ü", (STRING, None)),
        "no text": ("", (STRING, None)),
        "bool": (True, (BOOL, None)),
        "int": (2**32 - 1, (U32, None)),
        "negative": (-1, (I32, None)),
        "wide": (2**32, (11, None)),
        "wider": (2**63, (U64, None)),
        "float": (0.1, (F32, None)),
        "infinite": (float("-inf"), (F32, None)),
        "texts": (["a", "b"], (ARRAY, STRING)),
        "tuple": ((1, 2), (ARRAY, I32)),
        "ints": ([1, 2**31], (ARRAY, U32)),
        "mixed": ([-1, 2**31], (ARRAY, 11)),
        "floats": ([1, 0.5], (ARRAY, F32)),
        "bools": ([True, False], (ARRAY, BOOL)),
        "nested": ([[1], [2.0], ["a"]], (ARRAY, ARRAY)),
        "np.float64": (np.float64(1e300), (F64, None)),
        "np.uint8": (np.uint8(200), (U8, None)),
        "np.bool": (np.True_, (BOOL, None)),
        "np.array": (np.array([1, 2], np.uint16), (ARRAY, U16)),
        "np.big endian": (np.array([1, 2], ">i4"), (ARRAY, I32)),
        "np.list": ([np.float64(0.1), np.float64(0.2)], (ARRAY, F64)),
        "split.count": (3, (U16, None)),
        "general.alignment": (64, (U32, None)),
    }
    values = {"general.architecture": "test", **{key: value for key, (value, _) in metadata.items()}}
    lutkern.write_gguf(path, {}, values)
    with lutkern.open_gguf(path) as file:
        assert len(file) == 0
        assert file.alignment == 64
        assert set(file.metadata) == set(values) - {"split.count"}
        assert file.metadata["general.architecture"] == "test"
        for key, (value, types) in metadata.items():
            if key == "split.count":
                continue
            assert file.metadata.value_type(key) == types, key
            read = file.metadata[key]
            if key in ("float", "floats"):
                np.testing.assert_array_equal(np.float32(value), np.float32(read))
            elif key == "nested":
                assert [read[0].tolist(), read[1].tolist(), read[2]] == value
            elif isinstance(read, np.ndarray):
                assert read.tolist() == list(value)
            else:
                assert read == value
        lutkern.write_gguf(tmp_path / "again.gguf", {}, file.metadata)
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_arrays_are_written_in_their_shape(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    rng = np.random.default_rng(3)
    arrays = {
        "one": rng.standard_normal(3).astype(np.float32),
        "half": rng.standard_normal((2, 5)).astype(np.float16),
        "row": rng.standard_normal((1, 5)).astype(np.float32),
        "strided": rng.standard_normal((6, 8)).astype(np.float32)[::2, ::3],
        "big endian": rng.standard_normal((2, 3)).astype(">f4"),
        "four": rng.standard_normal((2, 3, 4, 5)).astype(np.float32),
    }
    lutkern.write_gguf(path, arrays, {"general.architecture": "test"})
    with lutkern.open_gguf(path) as file:
        for name, values in arrays.items():
            assert file.tensors[name].shape == values.shape
            np.testing.assert_array_equal(file.array(name), values.astype(np.float32))


ARCH = {"general.architecture": "test"}
ONES = np.ones(4, np.float32)
REFUSED: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "no architecture": ({}, {}, ValueError, "metadata 'general.architecture' is None, expected a non-empty str"),
    "empty architecture": (
        {},
        {"general.architecture": ""},
        ValueError,
        "metadata 'general.architecture' is '', expected a non-empty str",
    ),
    "architecture surrogate": (
        {},
        {"general.architecture": "\udcff"},
        ValueError,
        "metadata 'general.architecture' has a lone surrogate at 0, expected text that is valid UTF-8",
    ),
    "key type": ({}, {**ARCH, 5: 1}, TypeError, "metadata key 5 is int, expected str"),
    "key length": ({}, {**ARCH, "": 1}, ValueError, "metadata '' has a key of 0 bytes, expected 1 to 65535"),
    "value type": (
        {},
        {**ARCH, "k": None},
        TypeError,
        "metadata 'k' is NoneType, expected str, bool, int, float, a list or NumPy values",
    ),
    "bytes": (
        {},
        {**ARCH, "k": b"a"},
        TypeError,
        "metadata 'k' is bytes, expected str, bool, int, float, a list or NumPy values",
    ),
    "surrogate": (
        {},
        {**ARCH, "k": "a\ud800"},
        ValueError,
        "metadata 'k' has a lone surrogate at 1, expected text that is valid UTF-8",
    ),
    "empty list": ({}, {**ARCH, "k": []}, ValueError, "metadata 'k' is an empty list, expected at least one item"),
    "mixed list": (
        {},
        {**ARCH, "k": [1, "a"]},
        TypeError,
        "metadata 'k' is a list of int and str, expected items of one kind",
    ),
    "large int": (
        {},
        {**ARCH, "k": 2**64},
        ValueError,
        f"metadata 'k' has integers from {2**64} to {2**64}, expected them to fit 64 bits",
    ),
    "large float": (
        {},
        {**ARCH, "k": 1e300},
        ValueError,
        "metadata 'k' is 1e+300, expected a value that fits float32 (numpy.float64 keeps 64 bits)",
    ),
    "complex": (
        {},
        {**ARCH, "k": np.ones(2, complex)},
        TypeError,
        "metadata 'k' is complex128 of 1 dimensions, expected bool, int or float of at most one",
    ),
    "two dimensions": (
        {},
        {**ARCH, "k": np.ones((2, 2))},
        TypeError,
        "metadata 'k' is float64 of 2 dimensions, expected bool, int or float of at most one",
    ),
    "nested int": (
        {},
        {**ARCH, "k": [[2**31]]},
        ValueError,
        "metadata 'k' has an int beyond 32 bits in a nested list, expected int32",
    ),
    "alignment": (
        {},
        {**ARCH, "general.alignment": 12},
        ValueError,
        "metadata 'general.alignment' is 12, expected a power of two from 8 to 16777216",
    ),
    "tensor name": (
        {"n" * 64: ONES},
        ARCH,
        ValueError,
        f"tensor '{'n' * 64}' has a name of 64 bytes, expected 1 to 63",
    ),
    "no tensor": (
        {"a": [1.0]},
        ARCH,
        TypeError,
        "tensor 'a' is list, expected a PackedTensor or a float32 or float16 array",
    ),
    "tensor dtype": (
        {"a": np.ones(4)},
        ARCH,
        TypeError,
        "tensor 'a' is float64, expected float32, float16 or a PackedTensor",
    ),
    "no columns": (
        {"a": np.ones((2, 0), np.float32)},
        ARCH,
        ValueError,
        "tensor 'a' has shape (2, 0), expected 1 to 4 dimensions, none of them 0",
    ),
    "no dimensions": (
        {"a": np.ones((), np.float32)},
        ARCH,
        ValueError,
        "tensor 'a' has shape (), expected 1 to 4 dimensions, none of them 0",
    ),
    "padded columns": (
        {"a": lutkern.PackedTensor.from_blocks(np.zeros(36, np.uint8), "q4_0", (1, 40))},
        ARCH,
        ValueError,
        "tensor 'a' has 40 columns, expected a multiple of 32 (q4_0 in a file)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_writing_leaves_nothing(case: str, tmp_path: Path) -> None:
    tensors, metadata, error, message = REFUSED[case]
    with pytest.raises(error) as caught:
        lutkern.write_gguf(tmp_path / "m.gguf", tensors, metadata)
    assert str(caught.value) == f"write_gguf: {message}"
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    lutkern.write_gguf(path, {"a": ONES}, ARCH)
    before = path.read_bytes()
    original = gguf.GGUFWriter.write_tensor_data
    calls = []

    def interrupted(self: gguf.GGUFWriter, data: np.ndarray) -> None:
        calls.append(sorted(found.name for found in tmp_path.iterdir()))
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(self, data)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lutkern.write_gguf(path, {"a": 2 * ONES, "b": ONES}, ARCH)
    assert len(calls) == 2
    assert re.fullmatch(r"\.m\.gguf\.[0-9a-f]{8}\.part", calls[0][0])
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_writing_over_an_open_file(tmp_path: Path) -> None:
    """The new file takes the name, the open one keeps its bytes; so a file can be rewritten from its own tensors."""
    path = tmp_path / "m.gguf"
    lutkern.write_gguf(path, {"a": ONES}, ARCH)
    with lutkern.open_gguf(path) as file:
        lutkern.write_gguf(path, {"b": file["a"], "a": 2 * ONES}, file.metadata)
        np.testing.assert_array_equal(file.array("a"), ONES)
    with lutkern.open_gguf(path) as file:
        np.testing.assert_array_equal(file.array("a"), 2 * ONES)
        np.testing.assert_array_equal(file.array("b"), ONES)


def test_write_to_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="write_gguf: the folder does not exist") as caught:
        lutkern.write_gguf(tmp_path / "none" / "m.gguf", {}, ARCH)
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match="write_gguf: is a folder, expected a file name"):
        lutkern.write_gguf(tmp_path, {}, ARCH)


def test_write_without_the_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    message = "write_gguf: the gguf package is not installed, expected it (pip install 'lutkern[gguf]')"
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        lutkern.write_gguf(tmp_path / "m.gguf", {}, ARCH)


def test_merging_a_split_file(split: tuple[list[Path], dict[str, np.ndarray]], tmp_path: Path) -> None:
    paths, tensors = split
    merged = tmp_path / "merged.gguf"
    with lutkern.open_gguf(paths[0]) as file:
        lutkern.write_gguf(merged, file, file.metadata)
    with lutkern.open_gguf(merged) as file:
        assert list(file.metadata) == ["general.architecture", "general.name"]
        for name, values in tensors.items():
            np.testing.assert_array_equal(file.array(name), values)
