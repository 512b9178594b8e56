"""PackedTensor on Metal: there and back to the bit, memory that the CPU and the GPU share, views, sizes, lifetime."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest

import lutkern
from weights import by_name, random_tensor

pytestmark = pytest.mark.usefixtures("metal")
X = np.random.default_rng(1).standard_normal(512).astype(np.float32)


def has_tiles(fmt) -> bool:
    return fmt.name in {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"}


def test_blocks_come_back_to_the_bit(fmt, layout):
    for shape in [(33, 576), (3, 5, 300)]:
        t = random_tensor(fmt, shape, layout=layout)
        there = t.to(device="metal")
        assert (there.device, there.shape, there.format) == ("metal:0", shape, fmt)
        assert there.layout == ("tiles" if has_tiles(fmt) else "blocks")
        assert np.array_equal(there.blocks(), t.blocks())
        for back in ("blocks", "tiles"):
            assert np.array_equal(there.to(device="cpu", layout=back).tiles(), t.tiles())


@pytest.mark.parametrize("name", ["iq1_m", "q4_k"])
def test_layouts_on_the_device(name, layout):
    t = random_tensor(by_name(name), (40, 512), layout=layout)
    blocks = t.blocks()
    plain = t.to(device="metal", layout="blocks")
    assert (plain.layout, plain.nbytes) == ("blocks", blocks.nbytes)
    assert np.array_equal(plain.blocks(), blocks)
    assert plain.to(device="metal", layout="blocks") is plain
    if name == "q4_k":
        with pytest.raises(ValueError, match=r"^to: q4_k has no tiles on metal:0, expected blocks$"):
            plain.to(layout="tiles")
        return
    tiles = plain.to(layout="tiles")
    assert (tiles.layout, tiles.device) == ("tiles", "metal:0")
    assert np.array_equal(tiles.to(layout="blocks").blocks(), blocks)
    assert tiles.to(device="metal", layout="tiles") is tiles
    assert tiles.to(device="metal:0") is tiles


def test_blocks_of_the_cpu_are_not_copied():
    t = random_tensor(by_name("q4_k"), (3, 40, 512))
    before = used_bytes()
    there = t.to(device="metal")
    assert used_bytes() == before
    assert (there.layout, there.nbytes) == ("blocks", t.nbytes)
    assert np.shares_memory(there.blocks(), t.blocks())
    assert np.shares_memory(there[1].to(device="cpu").blocks(), t.blocks())
    assert there[1]._handle.address == t[1]._handle.address


def test_a_change_of_shared_bytes_is_a_change_of_the_weight():
    source = bytearray(random_tensor(by_name("q8_0"), (8, 512)).blocks().tobytes())
    there = lutkern.PackedTensor.from_blocks(source, "q8_0", (8, 512)).to(device="metal")
    first = lutkern.matvec(there, X)
    source[:] = random_tensor(by_name("q8_0"), (8, 512), seed=9).blocks().tobytes()
    second = lutkern.matvec(there, X)
    assert not np.array_equal(first, second)
    assert np.array_equal(
        second, lutkern.matvec(lutkern.PackedTensor.from_blocks(source, "q8_0", (8, 512)).to(device="metal"), X)
    )


class Owner(bytearray):
    """Bytes whose end can be watched."""


def test_shared_bytes_live_as_long_as_a_view_of_the_weight():
    source = Owner(random_tensor(by_name("q8_0"), (2, 8, 512)).blocks().tobytes())
    gone = weakref.ref(source)
    there = lutkern.PackedTensor.from_blocks(source, "q8_0", (2, 8, 512)).to(device="metal")
    expected = lutkern.matvec(there[1], X)
    expert = there[1]
    del source, there
    gc.collect()
    assert gone() is not None
    y = lutkern.matvec(expert, lutkern.to_device(X, "metal"), stream=lutkern.Stream("metal"))
    del expert  # while the work may be queued
    gc.collect()
    assert gone() is None
    assert np.array_equal(y.numpy(), expected)


def test_weights_of_a_file_are_not_copied(tmp_path):
    t = random_tensor(by_name("iq2_s"), (3, 40, 512))
    lutkern.write_gguf(tmp_path / "m.gguf", {"w": t}, {"general.architecture": "test"})
    before = used_bytes()
    with lutkern.open_gguf(tmp_path / "m.gguf") as file:
        there = file["w"].to(device="metal", layout="blocks")
    assert used_bytes() == before
    expected = lutkern.matvec(t[1].to(device="metal", layout="blocks"), X)
    assert np.array_equal(lutkern.matvec(there[1], X), expected)  # the mapping lives as long as the weight


@pytest.mark.parametrize("first", [36, 4097])
def test_mapped_bytes_at_any_address(tmp_path, first):
    t = random_tensor(by_name("iq2_s"), (40, 512))
    path = tmp_path / "weights"
    path.write_bytes(b"x" * first + t.blocks().tobytes())
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(mapped)[first:]
    before = used_bytes()
    there = lutkern.PackedTensor.from_blocks(view, "iq2_s", (40, 512)).to(device="metal", layout="blocks")
    assert used_bytes() == before
    assert np.array_equal(lutkern.matvec(there, X), lutkern.matvec(t.to(device="metal", layout="blocks"), X))
    view.release()
    with pytest.raises(BufferError):
        mapped.close()
    del there
    gc.collect()
    mapped.close()


def test_the_same_bytes_twice():
    t = random_tensor(by_name("q4_k"), (40, 512))
    first, second = t.to(device="metal"), t.to(device="metal")
    expected = lutkern.matvec(first, X)
    del first
    gc.collect()
    assert np.array_equal(lutkern.matvec(second, X), expected)


def test_sizes_tell_the_truth():
    t = random_tensor(by_name("iq1_m"), (3, 33, 300))
    there = t.to(device="metal")
    assert there.nbytes == 3 * 64 * 2 * 56  # two tiles of 32 rows down, two blocks across
    assert there.bits_per_weight == pytest.approx(8 * there.nbytes / (3 * 33 * 300))
    assert repr(there) == "PackedTensor(iq1_m, 3 x 33 x 300, 5.792 bits per weight, tiles, metal:0)"
    assert len(there) == 3


@pytest.mark.parametrize("name", ["iq2_xxs", "q6_k"])
def test_an_expert_is_a_view(name):
    t = random_tensor(by_name(name), (3, 33, 300))
    there = t.to(device="metal")
    expected = [t[e].blocks() for e in range(3)]
    last = there[-1]
    assert (last.device, last.shape, last.nbytes) == ("metal:0", (33, 300), there.nbytes // 3)
    del there
    gc.collect()
    assert np.array_equal(last.blocks(), expected[2])
    with pytest.raises(IndexError, match="index: expert 3, the weight has 3 experts"):
        t.to(device="metal")[3]


def test_pickle_goes_back_to_the_device(layout):
    t = random_tensor(by_name("iq3_s"), (3, 300)).to(device="metal", layout=layout)
    again = pickle.loads(pickle.dumps(t))
    assert (again.device, again.layout) == ("metal:0", layout)
    assert np.array_equal(again.blocks(), t.blocks())


def test_tiles_of_the_cpu_from_a_file():
    t = random_tensor(by_name("iq1_s"), (33, 512), layout="tiles")
    again = lutkern.PackedTensor.from_tiles(
        t.to(device="metal").tiles().tobytes(), "iq1_s", (33, 512), version=lutkern.TILE_VERSION
    )
    assert np.array_equal(again.to(device="metal").blocks(), t.blocks())


def test_two_devices():
    if sum(d.name.startswith("metal:") for d in lutkern.devices()) < 2:
        pytest.skip("one device")
    t = random_tensor(by_name("iq2_s"), (33, 512))
    first = t.to(device="metal:0")
    second = first.to(device="metal:1")
    assert second.device == "metal:1"
    assert np.array_equal(second.blocks(), t.blocks())
    assert np.array_equal(first.to(device="metal:1", layout="blocks").blocks(), t.blocks())
    with pytest.raises(RuntimeError, match=r"^matvec: x is on metal:0, the weight is on metal:1$"):
        lutkern.matvec(second, lutkern.to_device(X, "metal:0"))


def used_bytes() -> int:
    """Bytes of the buffers of the device."""
    gc.collect()
    lutkern.synchronize("metal")
    found = next(d for d in lutkern.devices() if d.name == "metal:0")
    assert found.memory_bytes is not None
    assert found.free_bytes is not None
    return found.memory_bytes - found.free_bytes


def test_memory_comes_back_when_the_last_view_dies():
    t = random_tensor(by_name("iq2_xxs"), (4, 256, 512))
    lutkern.matvec(t[0].to(device="metal"), X)  # what the first call of all allocates stays
    before = used_bytes()
    there = t.to(device="metal")
    expert = there[2]
    del there
    assert used_bytes() >= before + t.nbytes
    y = lutkern.matvec(expert, lutkern.to_device(X, "metal"), stream=lutkern.Stream("metal"))
    del expert, y
    assert used_bytes() == before


ENDS = {
    "at exit": "keep = t.to(device='metal'); y = lutkern.matvec(keep, lutkern.to_device(x, 'metal'))",
    "shared bytes at exit": "keep = t.to(device='metal', layout='blocks'); "
    "y = lutkern.matvec(keep, lutkern.to_device(x, 'metal'))",
    "in a cycle": "keep = [t.to(device='metal')]; keep.append(keep)",
    "after fork": """
keep = [t.to(device='metal', layout=layout) for layout in ('tiles', 'blocks')]
s = lutkern.Stream('metal')
child = os.fork()
if child == 0:
    del keep, s
    try:
        t.to(device='metal')
    except RuntimeError as error:
        assert 'fork' in str(error), error
        os._exit(7)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
for there in keep:
    assert np.array_equal(there.blocks(), t.blocks())
""",
}


@pytest.mark.parametrize("case", list(ENDS))
def test_the_end_of_a_process(case):
    program = (
        "import os\nimport lutkern\nimport numpy as np\nx = np.ones(256, np.float32)\n"
        "t = lutkern.PackedTensor.from_blocks(bytes(2 * 56), 'iq1_m', (2, 256))\n" + ENDS[case]
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, timeout=120)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_device_that_is_not_there():
    with pytest.raises(RuntimeError, match=r"^to: no device 'metal:77', the last one is metal:\d+$"):
        random_tensor(by_name("q8_0"), (1, 32)).to(device="metal:77")
