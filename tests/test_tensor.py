"""PackedTensor: zero-copy views, lifetime, decoding to the bit, bad input."""

from __future__ import annotations

import array
import gc
import mmap
import pickle
import weakref

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import lutkern
from lutkern import PackedTensor
from reference_samples import finite_rows, gguf_dequantize
from weights import by_name, random_tensor


def test_dequantize_is_the_gguf_package(fmt, layout, isa, shape):
    t = random_tensor(fmt, shape, layout=layout)
    expected = gguf_dequantize(t.blocks(), fmt.name)[:, : shape[1]]
    assert np.array_equal(lutkern.dequantize(t).view(np.uint32), expected.view(np.uint32))


def test_dequantize_of_extreme_scales(fmt, layout, isa):
    """Any bytes decode as the gguf package says, wherever that is a number: subnormal, negative and huge scales too."""
    rng = np.random.default_rng(11)
    blocks = rng.integers(0, 256, (64, fmt.row_bytes(1024)), dtype=np.uint8)
    ours = lutkern.dequantize(PackedTensor.from_blocks(blocks, fmt, (64, 1024)).to(layout=layout))
    theirs = gguf_dequantize(blocks, fmt.name)
    finite = np.isfinite(theirs)
    assert finite.mean() > 0.9
    assert np.array_equal(ours.view(np.uint32)[finite], theirs.view(np.uint32)[finite])
    assert not np.isfinite(ours[~finite]).any()


def test_experts_decode_like_their_own_matrices(fmt, layout):
    t = random_tensor(fmt, (3, 5, 300), layout=layout)
    whole = lutkern.dequantize(t)
    assert whole.shape == (3, 5, 300)
    for e in range(3):
        assert np.array_equal(whole[e], lutkern.dequantize(t[e]))
    assert np.array_equal(whole[-1], lutkern.dequantize(t[-1]))


@pytest.mark.parametrize("cols", [69888, 70004], ids=["whole-blocks", "end-of-a-group"])
def test_results_that_no_cache_holds(fmt, layout, cols):
    """Beyond 16 MiB results are written in another way: not the three experts together, but each of them is below."""
    blocks = np.random.default_rng(cols).integers(0, 256, (3, 21, fmt.row_bytes(cols)), np.uint8)
    t = PackedTensor.from_blocks(blocks, fmt, (3, 21, cols)).to(layout=layout)
    whole = np.full((3, 21, cols), 7, np.float32)
    assert whole.nbytes > 2**24 > whole[0].nbytes
    lutkern.dequantize(t, out=whole)
    for e in range(3):
        assert np.array_equal(whole[e].view(np.uint32), lutkern.dequantize(t[e]).view(np.uint32))


def test_large_results_at_any_address(fmt, layout):
    """Fewer bytes than 16 between the rows, or before the first, allow no other way of writing."""
    for cols, first in ((70003, 0), (70004, 1), (70004, 4)):
        t = random_tensor(fmt, (1, cols), layout=layout)
        rows = PackedTensor.from_blocks(np.repeat(t.blocks(), 63, axis=0), fmt, (63, cols)).to(layout=layout)
        room = np.full(63 * cols + 8, 7, np.float32)
        out = room[first : first + 63 * cols].reshape(63, cols)
        lutkern.dequantize(rows, out=out)
        assert np.array_equal(out.view(np.uint32), np.repeat(lutkern.dequantize(t).view(np.uint32), 63, axis=0))
        assert (room[:first] == 7).all()
        assert (room[first + 63 * cols :] == 7).all()


def every_half() -> npt.NDArray[np.float32]:
    """Return float32 numbers around all that have 16 bits, halfway between two of them too."""
    low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (np.arange(2**16, dtype=np.uint32)[:, None] << 16 | low).ravel()
    return bits.view(np.float32).reshape(1024, 704)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dequantize_to_16_bits(dtype, layout, isa):
    w = every_half()
    t = PackedTensor.from_blocks(w.view(np.uint8), "f32", w.shape).to(layout=layout)
    made = lutkern.dequantize(t, dtype=dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = w.astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    number = ~np.isnan(w)
    assert np.array_equal(made.view(np.uint16)[number], expected.view(np.uint16)[number])
    bits = w.view(np.uint32)
    payload = bits >> 13 & 0x3FF | 0x7E00 if dtype == "float16" else bits >> 16 & 0x7FFF | 0x40
    quiet = bits >> 16 & 0x8000 | payload
    assert np.array_equal(made.view(np.uint16)[~number], quiet[~number].astype(np.uint16))


def test_dequantize_of_part_of_a_tile_to_16_bits(fmt, layout, isa):
    for rows, cols in ((11, 300), (33, 64), (16, 257)):
        t = random_tensor(fmt, (rows, cols), layout=layout)
        halves = lutkern.dequantize(t, dtype="float16")
        with np.errstate(over="ignore", invalid="ignore"):
            assert np.array_equal(halves.view(np.uint16), lutkern.dequantize(t).astype(np.float16).view(np.uint16))


def test_blocks_come_back_and_are_not_copied(fmt):
    data = finite_rows(fmt.name, 4, 300)
    t = PackedTensor.from_blocks(data, fmt, (4, 300))
    assert t.nbytes == data.nbytes
    assert np.array_equal(t.blocks(), data)
    assert np.shares_memory(t.blocks(), data)
    experts = PackedTensor.from_blocks(data, fmt, (2, 2, 300))
    assert np.shares_memory(experts[1].blocks(), data)
    with pytest.raises(ValueError, match="read-only"):
        t.blocks()[0, 0] = 1


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "mmap", "misaligned"])
def test_any_buffer(kind, tmp_path):
    fmt = by_name("iq2_xs")
    data = finite_rows(fmt.name, 3, 512)
    raw = data.tobytes()
    if kind == "mmap":
        path = tmp_path / "weights"
        path.write_bytes(raw)
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    elif kind == "misaligned":
        buffer = memoryview(b"x" + raw)[1:]
    else:
        buffer = {"bytes": bytes, "bytearray": bytearray, "memoryview": memoryview}[kind](raw)
    t = PackedTensor.from_blocks(buffer, fmt, (3, 512))
    assert np.array_equal(lutkern.dequantize(t), lutkern.dequantize(PackedTensor.from_blocks(data, fmt, (3, 512))))


def test_the_buffer_lives_as_long_as_a_view_of_it():
    data = array.array("B", finite_rows("iq1_s", 4, 256).tobytes())
    gone = weakref.ref(data)
    t = PackedTensor.from_blocks(data, "iq1_s", (2, 2, 256))
    expert = t[1]
    expected = lutkern.dequantize(expert)
    del data, t
    gc.collect()
    assert gone() is not None
    assert np.array_equal(lutkern.dequantize(expert), expected)
    del expert
    gc.collect()
    assert gone() is None


def test_bits_per_weight_tells_the_truth():
    assert random_tensor(by_name("iq1_m"), (4, 512)).bits_per_weight == 1.75
    assert random_tensor(by_name("iq1_m"), (4, 256 + 128)).bits_per_weight == pytest.approx(1.75 * 512 / 384)


def test_what_a_tensor_says_of_itself():
    t = random_tensor(by_name("iq2_xxs"), (3, 4, 512))
    assert repr(t) == "PackedTensor(iq2_xxs, 3 x 4 x 512, 2.062 bits per weight, blocks, cpu)"
    assert (t.layout, t.device, len(t), str(t.format)) == ("blocks", "cpu", 3, "iq2_xxs")
    assert t.to(layout="blocks", device="cpu") is t


@pytest.mark.parametrize("name", ["format", "shape", "nbytes"])
def test_what_results_are_sized_by_cannot_be_set(name):
    t = random_tensor(by_name("iq2_xxs"), (4, 512))
    with pytest.raises(AttributeError):
        setattr(t, name, (1, 1))
    assert lutkern.dequantize(t).shape == (4, 512)


def test_pickle(layout):
    t = random_tensor(by_name("iq3_s"), (3, 300), layout=layout)
    again = pickle.loads(pickle.dumps(t))
    assert (again.shape, again.format, again.layout) == (t.shape, t.format, layout)
    assert np.array_equal(again.blocks(), t.blocks())


def test_dequantize_into_out(layout):
    t = random_tensor(by_name("iq2_s"), (3, 300), layout=layout)
    out = np.full((3, 300), np.nan, np.float32)
    assert lutkern.dequantize(t, out=out) is out
    assert np.array_equal(out, lutkern.dequantize(t))


Q80 = np.zeros((4, 34), np.uint8)
BAD = {
    "format": (
        lambda: PackedTensor.from_blocks(Q80, "iq9", (4, 32)),
        ValueError,
        "unknown format 'iq9', expected one of: iq1_s, iq1_m, ",
    ),
    "length": (
        lambda: PackedTensor.from_blocks(Q80, "q8_0", (5, 32)),
        ValueError,
        "from_blocks: blocks have 136 bytes, q8_0 of 5 x 32 needs 170",
    ),
    "shape of one": (
        lambda: PackedTensor.from_blocks(Q80, "q8_0", (128,)),
        ValueError,
        "from_blocks: shape is (128,), expected (rows, cols) or (experts, rows, cols), each at least 1",
    ),
    "zero": (
        lambda: PackedTensor.from_blocks(b"", "q8_0", (0, 32)),
        ValueError,
        "from_blocks: shape is (0, 32), expected (rows, cols) or (experts, rows, cols), each at least 1",
    ),
    "overflow": (
        lambda: PackedTensor.from_blocks(Q80, "q8_0", (2**62, 2**62)),
        ValueError,
        "from_blocks: blocks have 136 bytes, q8_0 of 4611686018427387904 x 4611686018427387904 needs ",
    ),
    "float shape": (
        lambda: PackedTensor.from_blocks(Q80, "q8_0", (4.0, 32)),
        TypeError,
        "from_blocks: shape is (4.0, 32), expected whole numbers",
    ),
    "no buffer": (
        lambda: PackedTensor.from_blocks([1, 2], "q8_0", (4, 32)),
        TypeError,
        "from_blocks: blocks are list, expected a C-contiguous buffer",
    ),
    "not contiguous": (
        lambda: PackedTensor.from_blocks(np.zeros((4, 68), np.uint8)[:, ::2], "q8_0", (4, 32)),
        TypeError,
        "from_blocks: blocks are ndarray, expected a C-contiguous buffer",
    ),
    "constructor": (
        PackedTensor,
        TypeError,
        "PackedTensor is made by PackedTensor.from_blocks, from_tiles, pack or open_gguf",
    ),
    "index of a matrix": (
        lambda: PackedTensor.from_blocks(Q80, "q8_0", (4, 32))[0],
        ValueError,
        "index: the weight has shape (4, 32), expected (experts, rows, cols)",
    ),
    "index": (
        lambda: PackedTensor.from_blocks(Q80, "q8_0", (2, 2, 32))[2],
        IndexError,
        "index: expert 2, the weight has 2 experts",
    ),
    "index by a slice": (
        lambda: PackedTensor.from_blocks(Q80, "q8_0", (2, 2, 32))[0:1],
        TypeError,
        "index: expert is slice, expected a whole number",
    ),
    "layout": (
        lambda: PackedTensor.from_blocks(Q80, "q8_0", (4, 32)).to(layout="rows"),
        ValueError,
        "to: unknown layout 'rows', expected one of: blocks, tiles",
    ),
    "device": (
        lambda: PackedTensor.from_blocks(Q80, "q8_0", (4, 32)).to(device="tpu"),
        RuntimeError,
        "to: no device 'tpu', expected cpu, cuda, cuda:N, metal or metal:N",
    ),
    "out": (
        lambda: lutkern.dequantize(PackedTensor.from_blocks(Q80, "q8_0", (4, 32)), out=np.zeros((4, 33), np.float32)),
        ValueError,
        "dequantize: out has shape (4, 33), expected (4, 32)",
    ),
    "not a tensor": (
        lambda: lutkern.dequantize(Q80),
        TypeError,
        "dequantize: the weight is ndarray, expected a PackedTensor",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    call, error, text = BAD[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(text)
