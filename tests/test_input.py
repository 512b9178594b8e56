"""How arrays enter and leave: element types, strides, DLPack, out, and every refusal with its text."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest

import lutkern
from weights import by_name, random_tensor

T = random_tensor(by_name("iq2_xxs"), (6, 512))
E = random_tensor(by_name("iq2_xxs"), (2, 6, 512))
X = np.random.default_rng(5).standard_normal((4, 512)).astype(np.float32)


class Dlpack:
    """An array that is known only by DLPack, as those of other libraries are."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


class _DlTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _DlManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _DlTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class DlpackBfloat16:
    """A bfloat16 array with a DLPack capsule made by hand; counts how often it is given back."""

    def __init__(self, array, device):
        self.array, self.device, self.deleted = array, device, 0
        sizes = ctypes.c_int64 * array.ndim
        self.shape, self.strides = sizes(*array.shape), sizes(*(s // 2 for s in array.strides))
        tensor = _DlTensor(array.ctypes.data, device, 0, array.ndim, 4, 16, 1, self.shape, self.strides, 0)
        self.managed = _DlManagedTensor(tensor, None, _Deleter(self.delete))

    def delete(self, _):
        self.deleted += 1

    def __dlpack__(self, **_):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.managed), b"dltensor", None)

    def __dlpack_device__(self):
        return (self.device, 0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_short_floats_are_their_float32(dtype):
    short = X.astype(dtype)
    assert np.array_equal(lutkern.matmul(T, short), lutkern.matmul(T, short.astype(np.float32)))
    assert np.array_equal(lutkern.matvec(T, short[0]), lutkern.matvec(T, short[0].astype(np.float32)))


def test_every_float16_is_converted_to_the_bit():
    bits = np.arange(2**16, dtype=np.uint16)
    every = bits.view(np.float16)
    every = every[np.isfinite(every)]
    one = np.zeros((1, 32), np.float32)
    one[0, 0] = 1.0
    t = lutkern.PackedTensor.from_blocks(one.tobytes(), "f32", (1, 32))
    x = np.zeros((len(every), 32), np.float16)
    x[:, 0] = every
    assert np.array_equal(lutkern.matmul(t, x)[:, 0], every.astype(np.float32))


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2],
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a[::-1],
        lambda a: np.concatenate([a, a], axis=1)[:, :512],
        lambda a: np.broadcast_to(a[0], a.shape),
        lambda a: a.astype(">f4"),
        lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(np.float32).reshape(a.shape),
    ],
    ids=["rows", "fortran", "columns", "reversed", "inside a wider array", "broadcast", "big-endian", "misaligned"],
)
def test_any_strides(view):
    array = view(X)
    assert np.array_equal(lutkern.matmul(T, array), lutkern.matmul(T, np.array(array, np.float32, order="C")))
    assert np.array_equal(lutkern.matvec(T, array[1]), lutkern.matvec(T, np.array(array[1], np.float32)))


def test_dlpack_and_buffers():
    expected = lutkern.matmul(T, X)
    assert np.array_equal(lutkern.matmul(T, Dlpack(X)), expected)
    assert np.array_equal(lutkern.matmul(T, memoryview(X)), expected)
    assert np.array_equal(
        lutkern.matvec(T, Dlpack(X[2].astype(np.float16))), lutkern.matvec(T, X[2].astype(np.float16))
    )


def test_pack_of_any_strides():
    w = np.random.default_rng(6).standard_normal((2, 3, 64)).astype(np.float32)
    importance = np.random.default_rng(7).random((2, 64), np.float32) + 0.5
    expected = lutkern.pack(w, "iq4_nl", importance=importance).blocks()
    assert not np.array_equal(expected, lutkern.pack(w, "iq4_nl").blocks())
    for strided in (np.asfortranarray(w), np.repeat(w, 2, axis=1)[:, ::2], np.repeat(w, 2, axis=2)[:, :, ::2]):
        weighted = lutkern.pack(strided, "iq4_nl", importance=np.asfortranarray(importance))
        assert np.array_equal(weighted.blocks(), expected)


def test_bfloat16_enters_by_dlpack():
    """The bits of bfloat16 as torch hands them out, NumPy itself has no DLPack of that type."""
    brief = X.astype(ml_dtypes.bfloat16)
    for device in (1, 3):  # of the CPU, pinned
        for array in (brief, np.asfortranarray(brief), brief[::-1]):
            given = DlpackBfloat16(array, device)
            assert np.array_equal(lutkern.matmul(T, given), lutkern.matmul(T, array))
            assert given.deleted == 1
    assert np.array_equal(lutkern.matvec(T, DlpackBfloat16(brief[2], 1)), lutkern.matvec(T, brief[2]))


def test_dlpack_that_is_not_handed_out():
    array = X.copy()
    array.flags.writeable = False
    with pytest.raises(TypeError, match=r"^matmul: x cannot be read through DLPack: Cannot export readonly array"):
        lutkern.matmul(T, Dlpack(array))


def test_torch_tensors_enter_by_dlpack():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    expected = lutkern.matmul(T, X)
    assert np.array_equal(lutkern.matmul(T, torch.from_numpy(X.copy())), expected)
    brief = torch.from_numpy(X.copy()).to(torch.bfloat16)
    assert np.array_equal(lutkern.matmul(T, brief), lutkern.matmul(T, brief.float()))
    assert np.array_equal(lutkern.matmul(T, brief[:, :]), lutkern.matmul(T, brief.float().numpy()))


def test_an_array_on_another_device_is_refused():
    with pytest.raises(RuntimeError) as caught:
        lutkern.matmul(T, Dlpack(X, device=(2, 0)))
    assert str(caught.value) == "matmul: x is on DLPack device 2, expected the CPU"


class Subclass(np.ndarray):
    """An array that may mean something else by its numbers."""


def unaligned(array):
    return np.frombuffer(b"?" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)


# matmul has a short way for arrays that need nothing; every other one takes the long way to the same result.
SHORT = {"float32": X, "float16": X.astype(np.float16), "one row": X[:1], "rows": X[1:3], "no rows": X[:0]}
LONG = {
    "columns": np.asfortranarray(X),
    "part of the columns": np.hstack([X, X])[:, :512],
    "bytes swapped": X.astype(">f4"),
    "unaligned": unaligned(X),
    "subclass": X.view(Subclass),
    "bfloat16": X.astype(ml_dtypes.bfloat16),
    "DLPack": Dlpack(X),
    "lists": [[np.float32(v) for v in row] for row in X],
}


@pytest.mark.parametrize("name", SHORT)
def test_arrays_that_need_nothing_take_the_short_way(name):
    x = SHORT[name]
    expected = lutkern.matmul(T, x.view(Subclass))
    room = np.full((len(x), 6), np.nan, np.float32)
    for out in (None, room):
        got = lutkern._core.plain_matmul(T._handle, x, out, False)
        assert type(got) is np.ndarray
        assert np.array_equal(got, expected)
        assert out is None or got is out
    for row in x:
        got = lutkern._core.plain_matvec(T._handle, row, None, False)
        assert np.array_equal(got, lutkern.matvec(T, row.view(Subclass)))
        assert lutkern._core.plain_matmul(T._handle, row, None, False) is None
    assert lutkern._core.plain_matvec(T._handle, x, None, False) is None


@pytest.mark.parametrize("name", LONG)
def test_other_arrays_take_the_long_way(name):
    assert lutkern._core.plain_matmul(T._handle, LONG[name], None, False) is None
    x = LONG[name].astype(np.float32) if name == "bfloat16" else X
    assert np.array_equal(lutkern.matmul(T, LONG[name]), lutkern.matmul(T, x))


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((4, 6)),
        np.zeros((4, 6), np.float16),
        np.zeros((4, 5), np.float32),
        np.zeros((3, 6), np.float32),
        np.zeros((6, 4), np.float32).T,
        np.zeros((4, 6), ">f4"),
        unaligned(np.zeros((4, 6), np.float32)),
        np.zeros((4, 6), np.float32).view(Subclass),
        np.frombuffer(bytes(96), np.float32).reshape(4, 6),
        [[0.0] * 6] * 4,
    ],
)
def test_the_short_way_leaves_an_odd_out_alone(out):
    assert lutkern._core.plain_matmul(T._handle, X, out, False) is None
    assert not np.asarray(out).any()


def test_out_is_written_and_returned():
    out = np.full(6, np.nan, np.float32)
    assert lutkern.matvec(T, X[0], out=out) is out
    assert np.array_equal(out, lutkern.matvec(T, X[0]))
    out = np.full((4, 6), np.nan, np.float32)
    assert lutkern.matmul(T, X, out=out) is out
    assert np.array_equal(out, lutkern.matmul(T, X))


def test_out_may_be_x():
    t = random_tensor(by_name("q8_0"), (512, 512))
    expected, one = lutkern.matmul(t, X), lutkern.matvec(t, X[0])
    x = X.copy()
    assert np.array_equal(lutkern.matmul(t, x, out=x), expected)
    x = X[0].copy()
    assert np.array_equal(lutkern.matvec(t, x, out=x), one)


def test_no_tokens():
    assert lutkern.matmul(T, np.zeros((0, 512), np.float32)).shape == (0, 6)


def frozen():
    out = np.zeros(6, np.float32)
    out.flags.writeable = False
    return out


BAD = {
    "columns": (lambda: lutkern.matvec(T, X[0, :511]), ValueError, "matvec: x has 511 columns, the weight has 512"),
    "columns of matmul": (
        lambda: lutkern.matmul(T, X[:, :500]),
        ValueError,
        "matmul: x has 500 columns, the weight has 512",
    ),
    "two dimensions": (lambda: lutkern.matvec(T, X), ValueError, "matvec: x has 2 dimensions, expected 1"),
    "one dimension": (lambda: lutkern.matmul(T, X[0]), ValueError, "matmul: x has 1 dimensions, expected 2"),
    "scalar": (lambda: lutkern.matvec(T, np.float32(1)), ValueError, "matvec: x has 0 dimensions, expected 1"),
    "float64": (
        lambda: lutkern.matvec(T, X[0].astype(float)),
        TypeError,
        "matvec: x is float64, expected float32, float16 or bfloat16",
    ),
    "list": (
        lambda: lutkern.matvec(T, [1.0] * 512),
        TypeError,
        "matvec: x is float64, expected float32, float16 or bfloat16",
    ),
    "int8": (
        lambda: lutkern.matvec(T, X[0].astype(np.int8)),
        TypeError,
        "matvec: x is int8, expected float32, float16 or bfloat16",
    ),
    "uint16": (
        lambda: lutkern.matvec(T, X[0].astype(np.uint16)),
        TypeError,
        "matvec: x is uint16, expected float32, float16 or bfloat16",
    ),
    "object": (
        lambda: lutkern.matvec(T, None),
        TypeError,
        "matvec: x is object, expected float32, float16 or bfloat16",
    ),
    "experts": (
        lambda: lutkern.matvec(E, X[0]),
        ValueError,
        "matvec: the weight has 2 experts, expected one matrix: index it",
    ),
    "weight": (lambda: lutkern.matvec(X, X[0]), TypeError, "matvec: the weight is ndarray, expected a PackedTensor"),
    "out shape": (
        lambda: lutkern.matvec(T, X[0], out=np.zeros(5, np.float32)),
        ValueError,
        "matvec: out has shape (5,), expected (6,)",
    ),
    "out dtype": (
        lambda: lutkern.matvec(T, X[0], out=np.zeros(6)),
        TypeError,
        "matvec: out is float64, expected a float32 NumPy array",
    ),
    "out type": (
        lambda: lutkern.matvec(T, X[0], out=[0.0] * 6),
        TypeError,
        "matvec: out is list, expected a float32 NumPy array",
    ),
    "out frozen": (
        lambda: lutkern.matvec(T, X[0], out=frozen()),
        ValueError,
        "matvec: out is read-only or not C-contiguous, expected a writable C-contiguous array",
    ),
    "out strided": (
        lambda: lutkern.matvec(T, X[0], out=np.zeros(12, np.float32)[::2]),
        ValueError,
        "matvec: out is read-only or not C-contiguous, expected a writable C-contiguous array",
    ),
    "pack float64": (
        lambda: lutkern.pack(np.zeros((2, 32)), "q8_0"),
        TypeError,
        "pack: w is float64, expected float32, float16 or bfloat16",
    ),
    "pack one dimension": (lambda: lutkern.pack(X[0], "q8_0"), ValueError, "pack: w has 1 dimensions, expected 2 or 3"),
    "pack empty": (
        lambda: lutkern.pack(X[:0], "q8_0"),
        ValueError,
        "pack: w has shape (0, 512), expected sizes of at least 1",
    ),
    "pack unknown": (lambda: lutkern.pack(X, "q9"), ValueError, "unknown format 'q9', expected one of: iq1_s"),
    "pack layout": (
        lambda: lutkern.pack(X, "q8_0", layout="x"),
        ValueError,
        "pack: unknown layout 'x', expected one of: blocks",
    ),
    "pack effort": (
        lambda: lutkern.pack(X, "q8_0", effort="most"),
        ValueError,
        "pack: unknown effort 'most', expected one of: fast, default, best",
    ),
    "pack effort type": (
        lambda: lutkern.pack(X, "q8_0", effort=[]),
        ValueError,
        "pack: unknown effort [], expected one of: fast, default, best",
    ),
    "pack threads": (
        lambda: lutkern.pack(X, "q8_0", threads=0),
        ValueError,
        "pack: threads is 0, expected 1 to 1024",
    ),
    "pack many threads": (
        lambda: lutkern.pack(X, "q8_0", threads=1025),
        ValueError,
        "pack: threads is 1025, expected 1 to 1024",
    ),
    "pack threads type": (
        lambda: lutkern.pack(X, "q8_0", threads="2"),
        TypeError,
        "pack: threads is str, expected a whole number",
    ),
    "pack nan": (
        lambda: lutkern.pack(np.where(np.arange(512) == 7, np.nan, X).astype(np.float32), "q8_0"),
        ValueError,
        "pack: w[0, 7] is not finite, expected finite weights",
    ),
    "pack inf": (
        lambda: lutkern.pack(np.full((2, 32), np.inf, np.float32), "q8_0"),
        ValueError,
        "pack: w[0, 0] is not finite, expected finite weights",
    ),
    "importance shape": (
        lambda: lutkern.pack(X, "q8_0", importance=np.ones(511)),
        ValueError,
        "pack: importance has shape (511,), expected (512,)",
    ),
    "importance device": (
        lambda: lutkern.pack(X, "q8_0", importance=Dlpack(X[0], device=(2, 0))),
        RuntimeError,
        "pack: importance is on DLPack device 2, expected the CPU",
    ),
    "importance dtype": (
        lambda: lutkern.pack(X, "q8_0", importance=np.array(["a"] * 512)),
        TypeError,
        "pack: importance is <U1, expected float32",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    call, error, text = BAD[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(text)
