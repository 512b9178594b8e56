"""Broken GGUF files: each kind of damage with its message, in single and split files; odd but valid files."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lutkern
from gguf_bytes import (
    ARRAY,
    BOOL,
    F64,
    STRING,
    TYPE_I8,
    TYPE_Q4_1,
    U8,
    U16,
    U32,
    U64,
    array,
    build,
    entry,
    nested_array,
    shard,
    tensor,
    text,
    u32,
    write_split,
)


@pytest.fixture
def split(tmp_path: Path) -> tuple[list[Path], dict[str, np.ndarray]]:
    return write_split(tmp_path / "big.gguf")


@pytest.fixture
def broken(tmp_path: Path) -> Any:
    """Write the bytes as m.gguf, open them, return the message of the ValueError (or of decoding the key)."""

    def message(content: bytes, key: str | None = None) -> str:
        path = tmp_path / "m.gguf"
        path.write_bytes(content)
        if key is None:
            with pytest.raises(ValueError, match="open_gguf") as caught:
                lutkern.open_gguf(path)
        else:
            with lutkern.open_gguf(path) as file, pytest.raises(ValueError, match="open_gguf") as caught:
                file.metadata[key]
        found = str(caught.value)
        assert found.startswith("open_gguf: m.gguf: ")
        return found.removeprefix("open_gguf: m.gguf: ")

    return message


# ---- broken files: one case per field, with its message

HUGE = 2**64 - 1
KEY = entry("k", U32, u32(1))

BROKEN = {
    "empty": (b"", "the file has 0 bytes, expected at least 24"),
    "short": (b"GGUF", "the file has 4 bytes, expected at least 24"),
    "magic": (build(magic=b"PK\x03\x04"), r"magic is b'PK\x03\x04', expected b'GGUF'"),
    "version 0": (build(version=u32(0)), "version is 0, expected 2 or 3"),
    "version 1": (build(version=u32(1)), "version is 1, expected 2 or 3"),
    "version 4": (build(version=u32(4)), "version is 4, expected 2 or 3"),
    "big endian": (build(version=b"\0\0\0\3"), "the file is big endian, expected little endian"),
    "tensor count": (build(counts=(HUGE, None)), f"tensor count is {HUGE}, expected at most 0"),
    "key count": (build([KEY], counts=(None, HUGE)), f"metadata count is {HUGE}, expected at most 3"),
    "too few keys": (
        build([entry("k", STRING, text("a" * 30))], counts=(None, 2), alignment=1),
        "metadata key 1 length needs 8 bytes at byte 75, the file has 75",
    ),
    "key length": (build([text("k", HUGE) + bytes(20)]), f"metadata key 0 has {HUGE} bytes, expected at most 32"),
    "key length limit": (
        build([text("k" * 65536) + u32(U8) + b"\0"]),
        "metadata key 0 has 65536 bytes, expected at most 65535",
    ),
    "key utf-8": (build([entry(b"ke\xffy", U8, b"\0")]), "metadata key 0 has byte 0xff at 2, expected UTF-8"),
    "key twice": (build([KEY, KEY]), "metadata 'k' occurs twice, expected once"),
    "key control characters": (
        build([entry("a\x1b[2J\n", 77, b"")]),
        r"metadata 'a\x1b[2J\n' has value type 77, expected 0 to 12",
    ),
    "long key": (
        build([entry("k" * 200, 13, bytes(8))]),
        f"metadata '{'k' * 77}...' has value type 13, expected 0 to 12",
    ),
    "value type": (build([entry("k", 13, bytes(8))]), "metadata 'k' has value type 13, expected 0 to 12"),
    "value type cut": (
        build([text("k" * 20)], counts=(None, 1), alignment=1),
        f"metadata '{'k' * 20}' value type needs 4 bytes at byte 52, the file has 52",
    ),
    "value cut": (
        build([entry("k" * 20, U64, bytes(7))], alignment=1),
        f"metadata '{'k' * 20}' needs 8 bytes at byte 56, the file has 63",
    ),
    "string length": (
        build([entry("k", STRING, text("abc", HUGE))], alignment=1),
        f"metadata 'k' needs {HUGE} bytes at byte 45, the file has 48",
    ),
    "array item type": (
        build([entry("k", ARRAY, array(13, 1, b"\0"))]),
        "metadata 'k' has item type 13, expected 0 to 12",
    ),
    "array count of numbers": (
        build([entry("k", ARRAY, array(U64, HUGE, bytes(8)))], alignment=1),
        f"metadata 'k' needs {8 * HUGE} bytes at byte 49, the file has 57",
    ),
    "array count of strings": (
        build([entry("k", ARRAY, array(STRING, HUGE, bytes(8)))], alignment=1),
        f"metadata 'k' needs {8 * HUGE} bytes at byte 49, the file has 57",
    ),
    "array count of arrays": (
        build([entry("k", ARRAY, array(ARRAY, HUGE, bytes(12)))], alignment=1),
        f"metadata 'k' needs {12 * HUGE} bytes at byte 49, the file has 61",
    ),
    "array string length": (
        build([entry("k", ARRAY, array(STRING, 3, text("a") + text("b", 2**63) + text("c")))]),
        "metadata 'k' runs past the end of the file, at string 2 of 3",
    ),
    "array string sum": (
        build([entry("k", ARRAY, array(STRING, 3, text("a", HUGE) + text("b") + text("c")))]),
        "metadata 'k' runs past the end of the file, at string 1 of 3",
    ),
    "array last string": (
        build([entry("k", ARRAY, array(STRING, 2, text("a") + text("b", 99)))]),
        "metadata 'k' runs past the end of the file, at string 1 of 2",
    ),
    "array nesting": (build([nested_array(5)]), "metadata 'k' has arrays nested 5 deep, expected at most 4"),
    "alignment type": (
        build([entry("general.alignment", U64, struct.pack("<Q", 32))]),
        "general.alignment has value type 10, expected 4 (uint32)",
    ),
    **{
        f"alignment {value}": (
            build([entry("general.alignment", U32, u32(value))]),
            f"general.alignment is {value}, expected a power of two from 8 to 16777216",
        )
        for value in (0, 1, 4, 24, 2**25, 2**32 - 1)
    },
    "tensor name length": (
        build([], [text("a", HUGE) + bytes(40)], alignment=1),
        f"tensor 0 of 1: name has {HUGE} bytes, expected at most 41",
    ),
    "tensor name utf-8": (
        build([], [tensor(b"\xc3(", (4,))], data=16),
        "tensor 0 of 1: name has byte 0xc3 at 0, expected UTF-8",
    ),
    "tensor twice": (
        build([], [tensor("a", (4,)), tensor("a", (4,), offset=32)], data=64),
        "tensor 'a': occurs twice, expected once",
    ),
    "no dimensions": (build([], [tensor("a", ())], data=64), "tensor 'a': number of dimensions is 0, expected 1 to 4"),
    "five dimensions": (
        build([], [tensor("a", (1, 1, 1, 1, 1))], data=64),
        "tensor 'a': number of dimensions is 5, expected 1 to 4",
    ),
    "dimension 0": (
        build([], [tensor("a", (4, 0))], data=64),
        "tensor 'a': shape is (0, 4), expected no dimension of 0",
    ),
    "info cut": (
        build([], [tensor("a" * 20, (4,))[:-1]], alignment=1),
        f"tensor '{'a' * 20}': info needs 20 bytes at byte 56, the file has 75",
    ),
    "type": (build([], [tensor("a", (256,), 5)], data=512), "tensor 'a': ggml type is 5, expected a known type"),
    "huge type": (
        build([], [tensor("a", (256,), 2**32 - 1)], data=512),
        "tensor 'a': ggml type is 4294967295, expected a known type",
    ),
    "columns": (
        build([], [tensor("a", (48, 2), TYPE_Q4_1)], data=512),
        "tensor 'a': has 48 columns, q4_1 expects a multiple of 32",
    ),
    "offset alignment": (
        build([], [tensor("a", (4,), offset=8)], data=64),
        "tensor 'a': offset is 8, expected a multiple of 32",
    ),
    "offset": (
        build([], [tensor("a", (4,), offset=2**64 - 32)], data=64),
        f"tensor 'a': offset {2**64 - 32} + 16 bytes (shape (4,)) ends past the 64 bytes of data",
    ),
    "data cut": (
        build([], [tensor("a", (4,))], data=15),
        "tensor 'a': offset 0 + 16 bytes (shape (4,)) ends past the 15 bytes of data",
    ),
    "no data": (
        build([], [tensor("a", (4,))], alignment=1),
        "tensor 'a': offset 0 + 16 bytes (shape (4,)) ends past the 0 bytes of data",
    ),
    "dimension product": (
        build([], [tensor("a", (2**32, 2**32))], data=64),
        f"tensor 'a': offset 0 + {2**66} bytes (shape (4294967296, 4294967296)) ends past the 64 bytes of data",
    ),
    "overlap": (
        build([], [tensor("a", (16,), offset=32), tensor("b", (9,))], data=128),
        "tensor 'a': offset lies inside tensor 'b', expected no overlap",
    ),
    "same offset": (
        build([], [tensor("a", (1,)), tensor("b", (1,))], data=32),
        "tensor 'b': offset lies inside tensor 'a', expected no overlap",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(case: str, broken: Any) -> None:
    content, message = BROKEN[case]
    assert broken(content) == message


def test_broken_text_of_a_value(broken: Any) -> None:
    good = entry("good", STRING, text("yes"))
    single = build([good, entry("k", STRING, text(b"ab\xe2\x82"))])
    assert broken(single, "k") == "metadata 'k' has byte 0xe2 at 2, expected UTF-8"
    several = build([good, entry("k", ARRAY, array(STRING, 2, text("a") + text(b"\x80")))])
    assert broken(several, "k") == "metadata 'k' string 1 has byte 0x80 at 0, expected UTF-8"


def test_too_many_items(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allowance of items that are walked one by one is for the whole file, strings and nested arrays together."""
    monkeypatch.setattr("lutkern.gguf_metadata.MAX_ITEMS", 5)
    words = entry("words", ARRAY, array(STRING, 3, text("a") * 3))
    nested = entry("nested", ARRAY, array(ARRAY, 3, array(U8, 0, b"") * 3))
    assert broken(build([words, nested])) == "metadata 'nested' has 3 items, expected at most 2"
    assert broken(build([nested, words])) == "metadata 'words' has 3 items, expected at most 2"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        lutkern.open_gguf(tmp_path / "none.gguf")
    assert caught.value.filename == str(tmp_path / "none.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, code in ((tmp_path, errno.EISDIR), (tmp_path / "pipe", errno.EINVAL)):
        with pytest.raises(OSError, match="open_gguf: not a regular file, expected a GGUF file") as caught:
            lutkern.open_gguf(path)
        assert caught.value.errno == code


# ---- odd, but valid


def test_odd_but_valid(tmp_path: Path) -> None:
    """Empty arrays, deep nesting, any byte as a bool, unaligned numbers, types and sizes of other tools, no tensors."""
    path = tmp_path / "m.gguf"
    entries = [
        nested_array(4),
        entry("", U8, b"\x01"),
        entry("e1", ARRAY, array(U32, 0, b"")),
        entry("e2", ARRAY, array(STRING, 0, b"")),
        entry("e3", ARRAY, array(ARRAY, 0, b"")),
        entry("bool", BOOL, b"\x07"),
        entry("bools", ARRAY, array(BOOL, 3, b"\x00\x02\x01")),
        entry("doubles", ARRAY, array(F64, 2, struct.pack("<2d", 0.1, -0.0))),
    ]
    path.write_bytes(build(entries, alignment=1))
    with lutkern.open_gguf(path) as file:
        metadata = dict(file.metadata)
        assert len(file) == 0
    assert metadata["k"][0][0][0].tolist() == [1]
    assert metadata[""] == 1
    assert metadata["e1"].dtype == np.uint32
    assert metadata["e1"].shape == (0,)
    assert metadata["e2"] == metadata["e3"] == []
    assert metadata["bool"] is True
    assert metadata["bools"].tolist() == [False, True, True]
    assert metadata["doubles"].tolist() == [0.1, -0.0]
    assert metadata["doubles"].flags.aligned


def test_tensor_order_is_free(tmp_path: Path) -> None:
    """Tensors may lie in another order than they are listed, with gaps, and the last needs no padding."""
    path = tmp_path / "m.gguf"
    infos = [tensor("b", (4,), offset=64), tensor("a", (3,), TYPE_I8, offset=0)]
    path.write_bytes(build([], infos, data=80))
    with lutkern.open_gguf(path) as file:
        assert list(file) == ["b", "a"]
        assert file.array("b").tobytes() == bytes(i % 64 for i in range(64, 80))


# ---- shards


NAME_A, NAME_B = (entry("general.name", STRING, text(name)) for name in ("A", "B"))
LLAMA = entry("general.architecture", STRING, text("llama"))
SPLIT_BROKEN = {
    "number": (
        [shard(0, 2, 2, ("a",)), shard(0, 2, 2, ("b",))],
        "m-00002-of-00002.gguf: split.no is 0, expected 1 as the name says",
    ),
    "swapped": (
        [shard(1, 2, 2, ("a",)), shard(0, 2, 2, ("b",))],
        "m-00001-of-00002.gguf: split.no is 1, expected 0 as the name says",
    ),
    "count": (
        [shard(0, 2, 2, ("a",)), shard(1, 3, 2, ("b",))],
        "m-00002-of-00002.gguf: split.count is 3, expected 2 as the name says",
    ),
    "count of the opened": (
        [shard(0, 3, 2, ("a",)), shard(1, 2, 2, ("b",))],
        "m-00001-of-00002.gguf: split.count is 3, expected 2 as the name says",
    ),
    "no split keys": (
        [build([], [tensor("a", (8,))], data=32), shard(1, 2, 2, ("b",))],
        "m-00001-of-00002.gguf: split.count is 1, expected 2 as the name says",
    ),
    "no number": (
        [shard(0, 2, 2, ("a",)), build([entry("split.count", U16, b"\2\0")], [tensor("b", (8,))], data=32)],
        "m-00002-of-00002.gguf: split.no is -1, expected 1 as the name says",
    ),
    "number is text": (
        [shard(0, 2, 2, ("a",)), build([entry("split.count", STRING, text("2"))], [tensor("b", (8,))], data=32)],
        "m-00002-of-00002.gguf: split.count is not an integer, expected one",
    ),
    "total": (
        [shard(0, 2, 3, ("a",)), shard(1, 2, 3, ("b",))],
        "m-00001-of-00002.gguf: split.tensors.count is 3, the shards have 2 tensors",
    ),
    "total of the second": (
        [shard(0, 2, 2, ("a",)), shard(1, 2, 7, ("b",))],
        "m-00002-of-00002.gguf: split.tensors.count is 7, the shards have 2 tensors",
    ),
    "same tensor": (
        [shard(0, 2, 2, ("a",)), shard(1, 2, 2, ("a",))],
        "m-00002-of-00002.gguf: tensor 'a' is also in m-00001-of-00002.gguf, expected it once",
    ),
    "name of the model": (
        [shard(0, 2, 2, ("a",), NAME_A), shard(1, 2, 2, ("b",), NAME_B)],
        "m-00002-of-00002.gguf: general.name is 'B', expected 'A' as in m-00001-of-00002.gguf",
    ),
    "architecture": (
        [shard(0, 2, 2, ("a",)), shard(1, 2, 2, ("b",), LLAMA)],
        "m-00002-of-00002.gguf: general.architecture is 'llama', expected nothing as in m-00001-of-00002.gguf",
    ),
    "broken shard": (
        [shard(0, 2, 2, ("a",)), shard(1, 2, 2, ("b",))[:-1]],
        "m-00002-of-00002.gguf: tensor 'b': offset 0 + 32 bytes (shape (8,)) ends past the 31 bytes of data",
    ),
}


@pytest.mark.parametrize("case", SPLIT_BROKEN)
def test_shards_that_do_not_fit(case: str, tmp_path: Path) -> None:
    contents, message = SPLIT_BROKEN[case]
    paths = [tmp_path / f"m-{no:05}-of-{len(contents):05}.gguf" for no in range(1, len(contents) + 1)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^open_gguf: {re.escape(message)}$"):
        lutkern.open_gguf(paths[0])


def test_shard_with_another_name(tmp_path: Path) -> None:
    path = tmp_path / "renamed.gguf"
    path.write_bytes(shard(1, 3, 3, ("a",)))
    message = "open_gguf: renamed.gguf: is shard 2 of 3, expected a name like NAME-00002-of-00003.gguf"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lutkern.open_gguf(path)
