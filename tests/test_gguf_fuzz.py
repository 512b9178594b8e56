"""Damaged GGUF files: reading all of one works or raises ValueError or OSError, soon, and stays inside of it.

Two ways to damage: bytes of valid files (bits, cuts, splices, integers at their extremes), and files put together
field by field where each field may be wrong, which reaches the checks that lie behind other fields.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import lutkern

MAX_SECONDS = 5.0  # for files of a few kilobytes, on a busy machine
EXTREMES = (
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**61,
    2**63 - 1,
    2**63,
    2**64 - 32,
    2**64 - 1,
)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < MAX_SECONDS


def read_all(paths: list[Path]) -> bool:
    """Open the first path and read everything, if it opens. Only ValueError and OSError may come out."""
    try:
        file = lutkern.open_gguf(paths[0])
    except (ValueError, OSError):
        return False
    with file:
        sizes = [Path(path).stat().st_size for path in file.shard_paths]
        ends: list[list[tuple[int, int]]] = [[] for _ in sizes]
        for name, info in file.tensors.items():
            assert 24 <= info.offset <= info.offset + info.nbytes <= sizes[info.shard]
            assert info.nbytes > 0
            ends[info.shard].append((info.offset, info.offset + info.nbytes))
            with contextlib.suppress(ValueError):
                packed = file[name]
                assert packed.blocks().nbytes == info.nbytes
                packed.blocks().sum()
            with contextlib.suppress(ValueError):
                assert file.array(name).shape == info.shape
        for ranges in ends:
            ranges.sort()
            assert all(left[1] <= right[0] for left, right in itertools.pairwise(ranges))
        for key in file.metadata:
            with contextlib.suppress(ValueError):
                assert file.metadata[key] is not None
    return True


def write(path: Path, split: bool) -> list[Path]:
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=2 if split else 0)
    writer.add_name("fuzz")
    writer.add_custom_alignment(32)
    writer.add_uint32("llama.block_count", 2)
    writer.add_float64("scale", 0.5)
    writer.add_array("words", ["a", "bc", "", "ü"])
    writer.add_array("ids", [1, 2, 3])
    writer.add_array("nested", [[1, 2], ["x", "y"], [[True]]])
    rng = np.random.default_rng(4)
    writer.add_tensor("norm", rng.standard_normal(5).astype(np.float32))
    for name, fmt, shape in (("gate", "IQ1_S", (2, 2, 50)), ("q4", "Q4_0", (2, 18)), ("half", "F16", (3, 8))):
        writer.add_tensor(name, rng.integers(0, 64, shape, dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType[fmt])
    writer.add_tensor("ids", np.arange(4, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def valid() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder) / "m.gguf", split=False)
        assert read_all(paths)
        return [path.read_bytes() for path in paths]


@pytest.fixture(scope="module")
def valid_split() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder) / "m.gguf", split=True)
        assert len(paths) == 3
        assert read_all(paths)
        return [path.read_bytes() for path in paths]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """One to four damages, most of them in the first half, where header, metadata and tensor infos are."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        end = len(data) if draw(st.booleans()) else max(1, min(len(data), 700))
        at = draw(st.integers(0, max(0, end - 1)))
        kind = draw(st.sampled_from(("bit", "byte", "integer", "cut", "splice", "remove", "grow")))
        if kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "integer":
            value, size = draw(st.sampled_from(EXTREMES)), draw(st.sampled_from((4, 8)))
            data[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == "cut":
            del data[at:]
        elif kind == "splice":
            start, length = draw(st.integers(0, len(data))), draw(st.integers(0, 100))
            data[at:at] = data[start : start + length]
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 40))]
        else:
            data += bytes(draw(st.integers(1, 64)))
    return bytes(data)


@settings(deadline=None)
@given(data=st.data())
def test_damaged_file(data: st.DataObject, valid: list[bytes], folder: Path) -> None:
    path = folder / "damaged.gguf"
    path.write_bytes(data.draw(damaged(valid[0])))
    with limited():
        event("opened" if read_all([path]) else "refused")


@settings(deadline=None)
@given(data=st.data())
def test_damaged_shards(data: st.DataObject, valid_split: list[bytes], folder: Path) -> None:
    paths = [folder / f"s-{no:05}-of-00003.gguf" for no in (1, 2, 3)]
    hit = data.draw(st.integers(0, 2))
    order = data.draw(st.sampled_from(((0, 1, 2), (0, 1, 2), (0, 2, 1), (0, 1, 1))))
    for no, path in enumerate(paths):
        content = valid_split[order[no]]
        path.write_bytes(data.draw(damaged(content)) if no == hit else content)
    with limited():
        event("opened" if read_all(data.draw(st.permutations(paths))) else "refused")


def number(size: int, usual: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """An integer of `size` bytes: mostly a usual one, sometimes an extreme."""
    values = st.integers(0, 23).flatmap(lambda odds: usual if odds else st.sampled_from(EXTREMES))
    return values.map(lambda value: (value % 2 ** (8 * size)).to_bytes(size, "little"))


@st.composite
def string(draw: st.DrawFn, content: st.SearchStrategy[bytes]) -> bytes:
    data = draw(content)
    return draw(number(8, st.just(len(data)))) + data


WORDS = string(st.sampled_from((b"", b"a", b"abc", "ü".encode(), b"b", b"cd", b"long" * 9, b"\xff")))
KEYS = string(
    st.sampled_from(
        (b"k", b"general.alignment", b"split.no", b"split.count", b"general.name", b"l", b"m", b"n", b"o", b"\x80")
    )
)
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@st.composite
def value(draw: st.DrawFn, value_type: int, depth: int = 0) -> bytes:
    if value_type == 8:
        return draw(WORDS)
    if value_type == 9:
        item_type = draw(st.sampled_from((*SCALARS, 8, 8, 9, 9) if depth < 5 else (0, 8)))
        count = draw(st.integers(0, 3))
        items = b"".join(draw(value(item_type, depth + 1)) for _ in range(count))
        return draw(number(4, st.just(item_type))) + draw(number(8, st.just(count))) + items
    return draw(number(SCALARS.get(value_type, 1), st.sampled_from((0, 1, 8, 32, 64))))


@st.composite
def metadata_entry(draw: st.DrawFn) -> bytes:
    value_type = draw(st.sampled_from((*SCALARS, 8, 9, 9)))
    return draw(KEYS) + draw(number(4, st.just(value_type))) + draw(value(value_type))


@st.composite
def tensor_info(draw: st.DrawFn) -> bytes:
    cols = draw(number(8, st.sampled_from((256, 256, 512, 32, 5))))
    dims = [cols, *draw(st.lists(number(8, st.sampled_from((1, 2, 3))), max_size=3))]
    ggml_type = number(4, st.sampled_from((0, 1, 2, 8, 12, 19, 24, 30)))
    fields = [draw(WORDS), draw(number(4, st.just(len(dims)))), *dims, draw(ggml_type)]
    return b"".join(fields) + draw(number(8, st.integers(0, 40).map(lambda step: 1024 * step)))


@st.composite
def whole_file(draw: st.DrawFn) -> bytes:
    entries, tensors = draw(st.lists(metadata_entry(), max_size=4)), draw(st.lists(tensor_info(), max_size=4))
    counts = draw(number(8, st.just(len(tensors)))) + draw(number(8, st.just(len(entries))))
    head = b"GGUF" + struct.pack("<I", draw(st.sampled_from((2, 3)))) + counts + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(draw(st.sampled_from((0, 5000, 50000, 50000))))


@settings(deadline=None)
@given(content=whole_file())
def test_file_of_odd_fields(content: bytes, folder: Path) -> None:
    path = folder / "odd.gguf"
    path.write_bytes(content)
    with limited():
        event("opened" if read_all([path]) else "refused")


@settings(deadline=None)
@given(content=st.binary(max_size=200), magic=st.booleans())
def test_noise(content: bytes, magic: bool, folder: Path) -> None:
    path = folder / "noise.gguf"
    path.write_bytes((b"GGUF\3\0\0\0" if magic else b"") + content)
    with limited():
        read_all([path])
