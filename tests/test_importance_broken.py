"""Damaged importance files: reading one works or raises ValueError, soon, with a message that names the field."""

from __future__ import annotations

import re
import struct
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from gguf_bytes import ARRAY, F32, STRING, TYPE_I8, U32, array, build, entry, tensor, text, u32
from importance_bytes import COUNTS, SUMS, TYPE, collected, dat, dat_entry, i32, imatrix, read
from lutkern import Importance

ENTRY = dat_entry("w", 1, [1, 2])
BROKEN = {
    "empty": (b"", "not a GGUF file, and the number of entries of a legacy file needs 4 bytes, the file has 0 left"),
    "no entries": (dat(), "not a GGUF file, and the number of entries of a legacy file is 0, expected 1 to 1"),
    "negative entries": (
        i32(-1) + ENTRY,
        "not a GGUF file, and the number of entries of a legacy file is -1, expected 1 to 1",
    ),
    "many entries": (
        i32(2**31 - 1) + 3 * ENTRY,
        f"not a GGUF file, and the number of entries of a legacy file is {2**31 - 1}, expected 1 to 3",
    ),
    "text": (
        b"# not one",
        "not a GGUF file, and the number of entries of a legacy file is 1869488163, expected 1 to 1",
    ),
    "missing entry": (i32(2) + ENTRY + bytes(13), "entry 2 of 2: length of the name is 0, expected 1 to 65535"),
    "name length": (i32(1, -5) + ENTRY, "entry 1 of 1: length of the name is -5, expected 1 to 65535"),
    "long name": (i32(1, 30) + ENTRY, "entry 1 of 1: name needs 30 bytes, the file has 21 left"),
    "name bytes": (dat(dat_entry(b"a\xff", 1, [1])), "entry 1 of 1: name has an invalid byte at 1, expected UTF-8"),
    "twice": (dat(ENTRY, ENTRY), "entry 2 of 2: 'w' occurs twice, expected once"),
    "calls": (dat(dat_entry("w", -1, [1])), f"entry 1 of 1: 'w': calls is -1, expected 0 to {2**31 - 1}"),
    "no values": (
        dat(dat_entry("w", 1, []), ENTRY),
        f"entry 1 of 2: 'w': number of values is 0, expected 1 to {2**31 - 1}",
    ),
    "negative values": (
        i32(1, 1) + b"w" + i32(1, -2, 0),
        f"entry 1 of 1: 'w': number of values is -2, expected 1 to {2**31 - 1}",
    ),
    "many values": (
        i32(1, 1) + b"w" + i32(1, 2**31 - 1, 0, 0),
        f"entry 1 of 1: 'w': values needs {4 * (2**31 - 1)} bytes, the file has 8 left",
    ),
    "cut values": (dat(ENTRY)[:-7], "entry 1 of 1: 'w': values needs 8 bytes, the file has 1 left"),
    "chunks": (dat(ENTRY, trailer=i32(-3, 0)), f"number of chunks is -3, expected 0 to {2**31 - 1}"),
    "cut trailer": (dat(ENTRY, trailer=b"ab"), "number of chunks needs 4 bytes, the file has 2 left"),
    "dataset": (dat(ENTRY, trailer=i32(3, 4) + b"a"), "length of the dataset's name is 4, expected 0 to 1"),
    "more": (dat(ENTRY, trailer=i32(3, 1) + b"abc"), "2 bytes follow the name of the dataset, expected none"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_legacy_files(case, tmp_path):
    content, message = BROKEN[case]
    with pytest.raises(ValueError, match=f"^Importance.read: imatrix.dat: {re.escape(message)}$"):
        read(tmp_path, content)


def test_a_length_takes_no_memory_before_it_is_checked(tmp_path):
    content, message = BROKEN["many values"]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(message)):
            read(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


BROKEN_GGUF = {
    "no type": (imatrix(SUMS, COUNTS, entries=()), "general.type is NoneType, expected 'imatrix'"),
    "other type": (
        imatrix(SUMS, COUNTS, entries=(entry("general.type", STRING, text("model")),)),
        "general.type is 'model', expected 'imatrix'",
    ),
    "chunk size": (
        imatrix(SUMS, COUNTS, entries=(TYPE, entry("imatrix.chunk_size", U32, u32(0)))),
        f"imatrix.chunk_size is 0, expected an integer from 1 to {2**31 - 1}",
    ),
    "chunk count": (
        imatrix(SUMS, COUNTS, entries=(TYPE, entry("imatrix.chunk_count", U32, u32(2**32 - 1)))),
        f"imatrix.chunk_count is {2**32 - 1}, expected an integer from 0 to {2**31 - 1}",
    ),
    "chunk count type": (
        imatrix(SUMS, COUNTS, entries=(TYPE, entry("imatrix.chunk_count", STRING, text("2")))),
        f"imatrix.chunk_count is str, expected an integer from 0 to {2**31 - 1}",
    ),
    "datasets": (
        imatrix(SUMS, COUNTS, entries=(TYPE, entry("imatrix.datasets", ARRAY, array(F32, 1, bytes(4))))),
        "imatrix.datasets is not an array of text, expected one",
    ),
    "no sums": (imatrix(COUNTS), "tensor 'w.in_sum2' is missing, expected f32"),
    "no counts": (imatrix(SUMS), "tensor 'w.counts' is missing, expected f32"),
    "tensor type": (
        build([TYPE], [tensor("w.in_sum2", (8,)), tensor("w.counts", (1,), TYPE_I8, 32)], data=64),
        "tensor 'w.counts' is i8, expected f32",
    ),
    "no name": (
        imatrix((".in_sum2", (1,), [1]), (".counts", (1,), [1])),
        "tensor '.in_sum2' names no weight, expected text before .in_sum2",
    ),
    "nothing": (imatrix(("bias", (1,), [1])), "the file has no tensor that ends in .in_sum2, expected at least one"),
    "number of counts": (
        imatrix(SUMS, ("w.counts", (1, 2), [1, 2])),
        "'w' has 2 counts, expected 3 as .in_sum2 has rows",
    ),
    "negative count": (imatrix(SUMS, ("w.counts", (3,), [1, -2, 1])), "'w' has a count of -2, expected 0 to 2^53"),
    "count is NaN": (imatrix(SUMS, ("w.counts", (3,), [1, 1, np.nan])), "'w' has a count of nan, expected 0 to 2^53"),
    "huge count": (imatrix(SUMS, ("w.counts", (1,), [1e30])), "'w' has a count of 1e+30, expected 0 to 2^53"),
}


@pytest.mark.parametrize("case", BROKEN_GGUF)
def test_broken_gguf_files(case, tmp_path):
    content, message = BROKEN_GGUF[case]
    path = tmp_path / "i.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^Importance.read: i.gguf: {re.escape(message)}$"):
        Importance.read(path)


EXTREMES = (0, 1, 2**15, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("bit", "integer", "cut", "splice", "remove")))
        if kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "integer":
            data[at : at + 4] = struct.pack("<I", draw(st.sampled_from(EXTREMES)))
        elif kind == "cut":
            del data[at:]
        elif kind == "splice":
            start = draw(st.integers(0, len(data)))
            data[at:at] = data[start : start + draw(st.integers(0, 60))]
        else:
            del data[at : at + draw(st.integers(1, 20))]
    return bytes(data)


@pytest.fixture(scope="module", params=["dat", "gguf"])
def valid(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / f"i.{request.param}"
    collected().write(path)
    return path, path.read_bytes()


@given(data=st.data())
def test_damaged_files(data, valid):
    """Reading works or raises ValueError, soon; what was read can be used."""
    path, content = valid
    path.write_bytes(data.draw(damaged(content)))
    start = time.perf_counter()
    try:
        importance = Importance.read(path)
    except ValueError:
        event("refused")
    else:
        event("read")
        for name in importance:
            mean = importance.mean(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = importance.for_weight(name, (*mean.shape[:-1], 1, mean.shape[-1]))
            assert values.shape == mean.shape
            assert np.isfinite(values).all()
            assert (values > 0).all()
            assert mean.nbytes <= 2 * len(content) + 4096
    assert time.perf_counter() - start < 5
