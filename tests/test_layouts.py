"""Layout tiles: the same weight in another order, in memory of its own, kept in files."""

from __future__ import annotations

import gc
import mmap
import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lutkern
from lutkern import PackedTensor
from lutkern.memory import aligned_bytes
from lutkern.tensor import LAYOUTS
from weights import by_name, random_tensor

MIB = 1 << 20


def tile_bytes(fmt: lutkern.Format, shape: tuple[int, ...]) -> int:
    """Bytes in tiles by arithmetic: whole blocks of 16 rows, two formats with digits in base 3, rows of 64 bytes."""
    tile_columns = max(fmt.block_size, 32)
    bytes_of_row = {"iq1_s": 58, "iq1_m": 64}.get(fmt.name, fmt.block_bytes * tile_columns // fmt.block_size)
    row_of_tiles = -(-shape[-1] // tile_columns) * 16 * bytes_of_row
    return -(-row_of_tiles // 64) * 64 * -(-shape[-2] // 16) * (shape[0] if len(shape) == 3 else 1)


def random_tiles(fmt: lutkern.Format, shape: tuple[int, ...], seed: int) -> PackedTensor:
    data = np.random.default_rng(seed).integers(0, 256, tile_bytes(fmt, shape), np.uint8)
    return PackedTensor.from_tiles(data, fmt, shape, version=lutkern.TILE_VERSION)


def test_the_layouts_are_those_of_the_library():
    assert list(LAYOUTS) == ["blocks", "tiles"]
    assert lutkern.TILE_VERSION == 2


def test_tiles_and_back_is_the_identity(fmt, shape):
    t = random_tensor(fmt, shape)
    tiles = t.to(layout="tiles")
    assert (tiles.layout, tiles.shape, tiles.format) == ("tiles", t.shape, t.format)
    assert tiles.nbytes == tile_bytes(fmt, shape)
    assert np.array_equal(tiles.blocks(), t.blocks())
    assert np.array_equal(tiles.to(layout="blocks").blocks(), t.blocks())
    assert np.array_equal(t.tiles(), tiles.tiles())


@given(st.data())
def test_any_bytes_of_blocks_come_back(data):
    fmt = data.draw(st.sampled_from(lutkern.formats()))
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 35)), data.draw(st.integers(1, 700)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    blocks = rng.integers(0, 256, (*shape[:-1], fmt.row_bytes(shape[-1])), np.uint8)
    tiles = PackedTensor.from_blocks(blocks, fmt, shape).to(layout="tiles")
    assert np.array_equal(tiles.blocks(), blocks)
    expert = data.draw(st.integers(0, shape[0] - 1))
    assert np.array_equal(tiles[expert].blocks(), blocks[expert])


@given(st.data())
def test_any_bytes_of_tiles_are_a_weight(data):
    """Bytes that no block gives are read as some block; digits that no row of the codebook has stay what they are."""
    fmt = data.draw(st.sampled_from(lutkern.formats()))
    shape = (data.draw(st.integers(1, 35)), data.draw(st.integers(1, 600)))
    t = random_tiles(fmt, shape, data.draw(st.integers(0, 2**16)))
    blocks = t.to(layout="blocks")
    if fmt.name.startswith("iq1"):
        lutkern.dequantize(t)
        t = blocks.to(layout="tiles")
    assert np.array_equal(lutkern.dequantize(t).view(np.uint32), lutkern.dequantize(blocks).view(np.uint32))
    x = np.ones((3, shape[1]), np.float32)
    assert lutkern.matmul(t, x).shape == lutkern.matmul(t, x, exact=True).shape == (3, shape[0])
    assert lutkern.matvec(t, x[0]).shape == (shape[0],)


def test_rows_that_do_not_exist_change_nothing(fmt, isa):
    """Tiles are filled up to 16 rows; what stands there must not reach a result."""
    shape = (5, 300)
    t = random_tensor(fmt, shape, layout="tiles")
    data = t.tiles().copy()
    whole = PackedTensor.from_tiles(data, fmt, (16, 300), version=lutkern.TILE_VERSION)
    row_bytes = fmt.row_bytes(300)
    filled = np.full((16, row_bytes), 0x7B, np.uint8)
    filled[:5] = t.blocks()
    dirty = PackedTensor.from_blocks(filled, fmt, (16, 300)).tiles()
    assert np.array_equal(whole.blocks()[:5], t.blocks())
    other = PackedTensor.from_tiles(dirty, fmt, shape, version=lutkern.TILE_VERSION)
    x = np.random.default_rng(0).standard_normal((4, 300), np.float32)
    assert np.array_equal(other.blocks(), t.blocks())
    assert np.array_equal(lutkern.matmul(other, x), lutkern.matmul(t, x))


def test_experts_are_views(fmt):
    t = random_tensor(fmt, (3, 17, 300))
    tiles = t.to(layout="tiles")
    for e in range(-3, 3):
        assert (tiles[e].layout, tiles[e].shape) == ("tiles", (17, 300))
        assert np.shares_memory(tiles[e].tiles(), tiles.tiles())
        assert np.array_equal(tiles[e].blocks(), t[e].blocks())


def test_tiles_are_a_view_in_that_layout_and_read_only():
    t = random_tensor(by_name("iq1_m"), (20, 512), layout="tiles")
    assert np.shares_memory(t.tiles(), t.tiles())
    for view in (t.tiles(), t.blocks(), t.to(layout="blocks").tiles()):
        assert not view.flags.writeable
    assert t.to(layout="tiles") is t
    assert t.to() is t


def test_from_tiles_copies_nothing_and_keeps_the_buffer():
    t = random_tensor(by_name("iq2_s"), (2, 20, 512), layout="tiles")
    raw = b"x" + t.tiles().tobytes()
    again = PackedTensor.from_tiles(memoryview(raw)[1:], "iq2_s", (2, 20, 512), version=lutkern.TILE_VERSION)
    assert np.shares_memory(again.tiles(), np.frombuffer(raw, np.uint8))
    del raw
    gc.collect()
    assert np.array_equal(again.blocks(), t.blocks())
    x = np.random.default_rng(1).standard_normal(512, np.float32)
    assert np.array_equal(lutkern.matvec(again[1], x), lutkern.matvec(t[1], x))


def test_tiles_in_a_file(tmp_path):
    t = random_tensor(by_name("iq1_s"), (40, 768), layout="tiles")
    path = tmp_path / "weight.tiles"
    path.write_bytes(t.tiles().tobytes())
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    again = PackedTensor.from_tiles(data, "iq1_s", (40, 768), version=lutkern.TILE_VERSION)
    assert np.array_equal(lutkern.dequantize(again), lutkern.dequantize(t))


def test_a_pickle_of_tiles_holds_blocks():
    """Another version of the library may order tiles in another way."""
    t = random_tensor(by_name("iq1_s"), (2, 20, 512), layout="tiles")
    pickled = pickle.dumps(t)
    assert t.blocks().tobytes() in pickled
    again = pickle.loads(pickled)
    assert again.layout == "tiles"
    assert np.array_equal(again.tiles(), t.tiles())


def test_a_gguf_file_of_tiles_holds_blocks(tmp_path):
    t = random_tensor(by_name("iq2_xs"), (20, 512))
    tensors = {"blk.0.ffn_up.weight": t.to(layout="tiles")}
    lutkern.write_gguf(tmp_path / "tiles.gguf", tensors, {"general.architecture": "test"})
    lutkern.write_gguf(tmp_path / "blocks.gguf", {"blk.0.ffn_up.weight": t}, {"general.architecture": "test"})
    assert (tmp_path / "tiles.gguf").read_bytes() == (tmp_path / "blocks.gguf").read_bytes()


def test_pack_makes_the_layout_that_is_asked_for(packable, layout):
    w = np.random.default_rng(0).standard_normal((20, 300), np.float32)
    t = lutkern.pack(w, packable, layout=layout)
    assert t.layout == layout
    assert np.array_equal(t.blocks(), lutkern.pack(w, packable, layout="blocks").blocks())


@pytest.mark.parametrize(("name", "bits"), [("iq1_s", 1.8125), ("iq1_m", 2.0), ("iq2_xxs", 2.0625), ("q8_0", 8.5)])
def test_bits_per_weight_of_tiles(name, bits):
    t = random_tensor(by_name(name), (32, 1024), layout="tiles")
    assert t.bits_per_weight == bits
    assert repr(t) == f"PackedTensor({name}, 32 x 1024, {bits:.4g} bits per weight, tiles, cpu)"


# ---- memory ----


@pytest.mark.parametrize(
    ("n", "align"), [(1, 64), (1000, 64), (2 * MIB - 1, 64), (2 * MIB, 2 * MIB), (5 * MIB + 3, 2 * MIB)]
)
def test_aligned_bytes(n, align):
    for _ in range(3):
        data = aligned_bytes(n)
        assert (data.shape, data.dtype, data.ctypes.data % align) == ((n,), np.uint8, 0)
        data[:] = 7  # all of it is there
        assert data[-1] == 7


def smaps(address: int) -> dict[str, int]:
    """Return the figures of the mapping that holds an address, sizes in kB."""
    inside = False
    found: dict[str, int] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and (match := re.match(r"(\w+): +(\d+)", line)):
            found[match[1]] = int(match[2])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system has no /proc")
def test_large_memory_is_private_on_large_pages_and_given_when_written():
    data = aligned_bytes(64 * MIB)
    address = data.ctypes.data + 8 * MIB
    assert smaps(address)["Rss"] < 64 * 1024 // 2
    data[:] = 1
    found = smaps(address)
    assert found["Rss"] >= 64 * 1024
    assert found["Shared_Clean"] + found["Shared_Dirty"] == 0
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this system gives no large pages")
    # A system short of contiguous memory may give none of them.
    assert found["AnonHugePages"] % 2048 == 0
    assert found.get("THPeligible", 1) == 1


PEAK = """
import resource, sys
import numpy as np
import lutkern

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # MiB

fmt = lutkern.formats()[{index}]
shape = (2048, 1 << 16)
blocks = np.zeros(shape[0] * fmt.row_bytes(shape[1]), np.uint8)
blocks[:] = 1
t = lutkern.PackedTensor.from_blocks(blocks, fmt, shape)
start = peak()
for _ in range(4):
    tiles = None
    tiles = t.to(layout="tiles")
print(tiles.nbytes >> 20, peak() - start)
del blocks, t
back = tiles.blocks()
print(back.nbytes >> 20, peak() - start)
"""


@pytest.mark.parametrize("name", ["iq1_s", "q8_0"])
def test_a_conversion_takes_input_and_output_and_leaks_nothing(name):
    index = next(i for i, f in enumerate(lutkern.formats()) if f.name == name)
    code = PEAK.format(index=index)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    (tiles, after_tiles), (_, after_blocks) = (map(int, line.split()) for line in result.stdout.splitlines())
    assert after_tiles <= tiles + 12  # the library's code, its threads, and pages of 2 MiB
    assert after_blocks <= tiles + 12  # the blocks that are gone make room for those that came back


def test_tiles_give_their_memory_back():
    t = PackedTensor.from_blocks(np.full(64 * 34 * 32 * 1024, 1, np.uint8), "q8_0", (1024, 64 * 1024))
    before = resident_mib()
    for _ in range(6):
        tiles = t.to(layout="tiles")
        assert resident_mib() >= before + 60
        view = tiles.tiles()
        del tiles
        assert resident_mib() >= before + 60
        del view
        assert resident_mib() < before + 16


def resident_mib() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("this system has no /proc")
    return int(status.read_text().split()[1]) * resource.getpagesize() // MIB


# ---- bad input ----

TILES = np.zeros(34 * 16, np.uint8)
BAD = {
    "version": (
        lambda: PackedTensor.from_tiles(TILES, "q8_0", (16, 32), version=1),
        ValueError,
        "from_tiles: the tiles have version 1, expected 2",
    ),
    "version of another type": (
        lambda: PackedTensor.from_tiles(TILES, "q8_0", (16, 32), version="1"),
        ValueError,
        "from_tiles: the tiles have version '1', expected 2",
    ),
    "length": (
        lambda: PackedTensor.from_tiles(TILES, "q8_0", (16, 33), version=lutkern.TILE_VERSION),
        ValueError,
        "from_tiles: tiles have 544 bytes, q8_0 of 16 x 33 needs 1088",
    ),
    "row padding": (
        lambda: PackedTensor.from_tiles(TILES, "q8_0", (17, 32), version=lutkern.TILE_VERSION),
        ValueError,
        "from_tiles: tiles have 544 bytes, q8_0 of 17 x 32 needs 1152",
    ),
    "format": (
        lambda: PackedTensor.from_tiles(TILES, "iq9", (16, 32), version=lutkern.TILE_VERSION),
        ValueError,
        "unknown format 'iq9', expected one of: iq1_s, iq1_m, ",
    ),
    "zero": (
        lambda: PackedTensor.from_tiles(b"", "q8_0", (0, 32), version=lutkern.TILE_VERSION),
        ValueError,
        "from_tiles: shape is (0, 32), expected (rows, cols) or (experts, rows, cols), each at least 1",
    ),
    "shape": (
        lambda: PackedTensor.from_tiles(TILES, "q8_0", (16, 32.0), version=lutkern.TILE_VERSION),
        TypeError,
        "from_tiles: shape is (16, 32.0), expected whole numbers",
    ),
    "no buffer": (
        lambda: PackedTensor.from_tiles([1, 2], "q8_0", (16, 32), version=lutkern.TILE_VERSION),
        TypeError,
        "from_tiles: tiles are list, expected a C-contiguous buffer",
    ),
    "layout": (
        lambda: random_tensor(by_name("q8_0"), (16, 32)).to(layout="rows"),
        ValueError,
        "to: unknown layout 'rows', expected one of: blocks, tiles",
    ),
    "layout of another type": (
        lambda: random_tensor(by_name("q8_0"), (16, 32)).to(layout=1),
        ValueError,
        "to: unknown layout 1, expected one of: blocks, tiles",
    ),
    "pack layout": (
        lambda: lutkern.pack(np.ones((4, 32), np.float32), "q8_0", layout="rows"),
        ValueError,
        "pack: unknown layout 'rows', expected one of: blocks, tiles",
    ),
    "device": (
        lambda: random_tensor(by_name("q8_0"), (16, 32), layout="tiles").to(device="tpu"),
        RuntimeError,
        "to: no device 'tpu', expected cpu, cuda, cuda:N, metal or metal:N",
    ),
    "index of a matrix": (
        lambda: random_tensor(by_name("q8_0"), (16, 32), layout="tiles")[0],
        ValueError,
        "index: the weight has shape (16, 32), expected (experts, rows, cols)",
    ),
    "index": (
        lambda: random_tensor(by_name("q8_0"), (2, 16, 32), layout="tiles")[2],
        IndexError,
        "index: expert 2, the weight has 2 experts",
    ),
    "overflow": (
        lambda: PackedTensor.from_tiles(TILES, "q8_0", (2**62, 2**62), version=lutkern.TILE_VERSION),
        ValueError,
        "from_tiles: shape is 4611686018427387904 x 4611686018427387904, expected at most 2^46 weights",
    ),
    "more than 64 bits": (
        lambda: PackedTensor.from_tiles(TILES, "q8_0", (2**70, 32), version=lutkern.TILE_VERSION),
        ValueError,
        "from_tiles: shape is 1180591620717411303424 x 32, expected at most 2^46 weights",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    call, error, text = BAD[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(text)
