"""PackedTensor on a GPU: there and back to the bit, views, sizes, lifetime."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import lutkern
from gpu import Foreign
from weights import by_name, random_tensor

pytestmark = pytest.mark.usefixtures("cuda")


def has_tiles(fmt) -> bool:
    return fmt.name in {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"}


def test_blocks_come_back_to_the_bit(fmt, layout):
    for shape in [(33, 576), (3, 5, 300)]:
        t = random_tensor(fmt, shape, layout=layout)
        there = t.to(device="cuda")
        assert (there.device, there.shape, there.format) == ("cuda:0", shape, fmt)
        assert there.layout == ("tiles" if has_tiles(fmt) else "blocks")
        assert np.array_equal(there.blocks(), t.blocks())
        for back in ("blocks", "tiles"):
            assert np.array_equal(there.to(device="cpu", layout=back).tiles(), t.tiles())


@pytest.mark.parametrize("name", ["iq1_m", "q4_k"])
def test_layouts_on_the_device(name):
    t = random_tensor(by_name(name), (40, 512))
    plain = t.to(device="cuda", layout="blocks")
    assert (plain.layout, plain.nbytes) == ("blocks", t.nbytes)
    assert np.array_equal(plain.blocks(), t.blocks())
    if name == "q4_k":
        with pytest.raises(ValueError, match=r"^to: q4_k has no tiles on cuda:0, expected blocks$"):
            plain.to(layout="tiles")
        return
    tiles = plain.to(layout="tiles")
    assert (tiles.layout, tiles.device) == ("tiles", "cuda:0")
    assert np.array_equal(tiles.to(layout="blocks").blocks(), t.blocks())
    assert tiles.to(device="cuda", layout="tiles") is tiles
    assert tiles.to(device="cuda:0") is tiles


def test_sizes_tell_the_truth():
    t = random_tensor(by_name("iq1_m"), (3, 33, 300))
    there = t.to(device="cuda")
    assert there.nbytes == 3 * 64 * 2 * 56  # two tiles of 32 rows down, two blocks across
    assert there.bits_per_weight == pytest.approx(8 * there.nbytes / (3 * 33 * 300))
    assert repr(there) == "PackedTensor(iq1_m, 3 x 33 x 300, 5.792 bits per weight, tiles, cuda:0)"
    assert len(there) == 3


@pytest.mark.parametrize("name", ["iq2_xxs", "q6_k"])
def test_an_expert_is_a_view(name):
    t = random_tensor(by_name(name), (3, 33, 300))
    there = t.to(device="cuda")
    expected = [t[e].blocks() for e in range(3)]
    last = there[-1]
    assert (last.device, last.shape, last.nbytes) == ("cuda:0", (33, 300), there.nbytes // 3)
    del there
    gc.collect()
    assert np.array_equal(last.blocks(), expected[2])
    with pytest.raises(IndexError, match="index: expert 3, the weight has 3 experts"):
        t.to(device="cuda")[3]


def test_pickle_goes_back_to_the_device():
    t = random_tensor(by_name("iq3_s"), (3, 300)).to(device="cuda")
    again = pickle.loads(pickle.dumps(t))
    assert (again.device, again.layout) == ("cuda:0", "tiles")
    assert np.array_equal(again.blocks(), t.blocks())


def test_two_devices():
    if sum(d.name.startswith("cuda:") for d in lutkern.devices()) < 2:
        pytest.skip("one device")
    t = random_tensor(by_name("iq2_s"), (33, 512))
    first = t.to(device="cuda:0")
    second = first.to(device="cuda:1")
    assert second.device == "cuda:1"
    assert np.array_equal(second.blocks(), t.blocks())
    assert np.array_equal(first.to(device="cuda:1", layout="blocks").blocks(), t.blocks())
    with pytest.raises(RuntimeError, match=r"^matvec: x is on cuda:0, the weight is on cuda:1$"):
        lutkern.matvec(second, Foreign(np.ones(512, np.float32)))


def free_bytes() -> int:
    found = next(d for d in lutkern.devices() if d.name == "cuda:0").free_bytes
    assert found is not None
    return found


def test_memory_comes_back_when_the_last_view_dies():
    t = random_tensor(by_name("iq2_xxs"), (4, 256, 1024))
    gc.collect()
    lutkern.synchronize()
    before = free_bytes()
    there = t.to(device="cuda")
    expert = there[2]
    del there
    gc.collect()
    assert free_bytes() <= before - t.nbytes
    y = lutkern.matvec(expert, Foreign(np.ones(1024, np.float32)), stream=lutkern.Stream())
    del expert, y
    gc.collect()
    lutkern.synchronize()
    assert free_bytes() == before


ENDS = {
    "at exit": "keep = t.to(device='cuda'); y = lutkern.matvec(keep, lutkern.to_device(x))",
    "in a cycle": "keep = [t.to(device='cuda')]; keep.append(keep)",
    "after fork": """
keep = t.to(device='cuda')
s = lutkern.Stream()
child = os.fork()
if child == 0:
    del keep, s
    try:
        t.to(device='cuda')
    except RuntimeError as error:
        assert 'fork' in str(error), error
        os._exit(7)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert np.array_equal(keep.blocks(), t.blocks())
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


BAD = {
    "index": ("cuda:77", r"^to: no device 'cuda:77', the last one is cuda:\d+$"),
    "kind": ("tpu", "^to: no device 'tpu', expected cpu, cuda, cuda:N, metal or metal:N$"),
    "type": (0, "^to: no device 0, expected cpu, cuda, cuda:N, metal or metal:N$"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_devices_that_are_not_there(case):
    device, text = BAD[case]
    with pytest.raises(RuntimeError, match=text):
        random_tensor(by_name("q8_0"), (1, 32)).to(device=device)
