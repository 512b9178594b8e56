"""Arrays of a GPU: they enter and leave by DLPack without a copy, on the right stream; every refusal with its text."""

from __future__ import annotations

import sys
import types

import ml_dtypes
import numpy as np
import pytest

import lutkern
from gpu import Foreign, read
from lutkern import reference
from lutkern.device_array import DeviceArray
from weights import by_name, random_tensor

pytestmark = pytest.mark.usefixtures("cuda")
N_ULP = 8
X = np.random.default_rng(5).standard_normal((5, 576)).astype(np.float32)


@pytest.fixture(scope="module")
def weight():
    return random_tensor(by_name("iq2_xxs"), (33, 576))


@pytest.fixture(scope="module")
def t(weight):
    return weight.to(device="cuda")


def test_products_are_the_reference(fmt):
    here = random_tensor(fmt, (33, 576))
    there = here.to(device="cuda")
    for exact in (False, True):
        y = lutkern.matmul(there, Foreign(X[:3]), exact=exact)
        assert isinstance(y, DeviceArray)
        bound = reference.fp32_bound(here, X[:3], n_ulp=N_ULP, exact=exact)
        assert np.all(np.abs(y.numpy() - reference.matmul(here, X[:3], exact=exact)) <= bound)
        one = lutkern.matvec(there, Foreign(X[3]), exact=exact).numpy()
        assert np.all(np.abs(one - reference.matvec(here, X[3], exact=exact)) <= bound.max() * 4)
        assert np.all(
            np.abs(one - reference.matvec(here, X[3], exact=exact))
            <= reference.fp32_bound(here, X[3], n_ulp=N_ULP, exact=exact)
        )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["iq1_s", "q4_k"])
def test_dequantize(name, dtype):
    here = random_tensor(by_name(name), (2, 9, 300))
    there = here.to(device="cuda")
    exact = lutkern.dequantize(here)
    expected = exact.astype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))
    y = lutkern.dequantize(there, dtype=dtype)
    assert (y.dtype, y.shape, y.device, y.nbytes) == (dtype, (2, 9, 300), "cuda:0", expected.nbytes)
    assert y.numpy().tobytes() == expected.tobytes()
    assert lutkern.dequantize(here, dtype=dtype).tobytes() == expected.tobytes()
    room = np.zeros_like(expected)
    assert lutkern.dequantize(there, dtype=dtype, out=room) is room
    assert room.tobytes() == expected.tobytes()


def test_arrays_of_the_cpu_give_arrays_of_the_cpu(weight, t):
    y = lutkern.matmul(t, X)
    assert isinstance(y, np.ndarray)
    assert np.all(np.abs(y - reference.matmul(weight, X)) <= reference.fp32_bound(weight, X, n_ulp=N_ULP))
    out = np.zeros(33, np.float32)
    assert lutkern.matvec(t, X[0], out=out, stream=lutkern.Stream()) is out
    assert np.array_equal(out, lutkern.matvec(t, X[0]))


def test_element_types_and_strides(t):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        short = X.astype(dtype)
        assert np.array_equal(read(lutkern.matmul(t, Foreign(short))), lutkern.matmul(t, short))
    wide = lutkern.to_device(np.concatenate([X, X], axis=1))
    inner = Strided(wide, (5, 576), (1152, 1))
    assert np.array_equal(read(lutkern.matmul(t, inner)), lutkern.matmul(t, X))
    across = Strided(wide, (576, 5), (1, 1152))
    with pytest.raises(
        ValueError, match=r"^matmul: x has strides \(1, 1152\) on cuda:0, expected rows whose numbers lie"
    ):
        lutkern.matmul(random_tensor(by_name("iq2_xxs"), (2, 5)).to(device="cuda"), across)


class Strided:
    """A view of an array with strides of its own, in elements."""

    def __init__(self, base, shape, strides):
        self.base, self.shape, self.strides = base, shape, strides

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, *, stream=None, max_version=None):
        import ctypes

        from test_input import _Deleter, _DlManagedTensor, _DlTensor

        sizes = ctypes.c_int64 * len(self.shape)
        self.sizes, self.steps = sizes(*self.shape), sizes(*self.strides)
        tensor = _DlTensor(self.base._memory.address, 2, 0, 2, 2, 32, 1, self.sizes, self.steps, 0)
        self.managed = _DlManagedTensor(tensor, None, _Deleter(lambda _: None))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.managed), b"dltensor", None)


@pytest.mark.parametrize("versions", [True, False])
def test_out_on_the_device(t, versions):
    out = Foreign(np.zeros((5, 33), np.float32), versions=versions)
    assert lutkern.matmul(t, Foreign(X, versions=versions), out=out) is out
    assert np.array_equal(out.numpy(), lutkern.matmul(t, X))
    again = lutkern.to_device(np.zeros((5, 33), np.float32))
    assert lutkern.matmul(t, lutkern.to_device(X), out=again) is again
    assert np.array_equal(again.numpy(), out.numpy())


def test_no_tokens(t):
    y = lutkern.matmul(t, Foreign(np.zeros((0, 576), np.float32)))
    assert (y.shape, y.numpy().shape, len(y)) == ((0, 33), (0, 33), 0)


def test_results_are_lent(t):
    x = lutkern.to_device(X)
    y = lutkern.matmul(t, x)
    expected = y.numpy()
    taken = lutkern._core.Borrowed(y.__dlpack__(stream=1))
    assert (taken.device, taken.dtype, taken.shape, taken.strides) == ((2, 0), (2, 32, 1), (5, 33), (33, 1))
    assert taken.address == y._memory.address
    versioned = lutkern._core.Borrowed(y.__dlpack__(stream=-1, max_version=(1, 0), copy=False))
    assert versioned.address == y._memory.address
    assert not versioned.read_only
    copied = lutkern._core.Borrowed(y.__dlpack__(copy=True, max_version=(1, 1)))
    assert copied.address != y._memory.address
    address, memory = y._memory.address, free_bytes()
    del y
    assert free_bytes() == memory  # it is lent out
    out = np.empty((5, 33), np.float32)
    lutkern._core.copy_out(out, address, 0x100, 0)
    assert np.array_equal(out, expected)
    del taken, versioned, copied
    assert free_bytes() > memory


def free_bytes() -> int:
    lutkern.synchronize()
    found = next(d for d in lutkern.devices() if d.name == "cuda:0").free_bytes
    assert found is not None
    return found


def test_results_come_to_the_cpu_by_dlpack(t):
    y = lutkern.matmul(t, Foreign(X))
    if "device" in (np.from_dlpack.__text_signature__ or "") or np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        assert np.array_equal(np.from_dlpack(y, device="cpu"), y.numpy())
    here = np.from_dlpack(Capsule(y.__dlpack__(dl_device=(1, 0))))
    assert np.array_equal(here, y.numpy())


class Capsule:
    """Something that hands out a capsule of the CPU."""

    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **options):
        return self.capsule

    def __dlpack_device__(self):
        return (1, 0)


def test_what_an_array_says_of_itself(t):
    y = lutkern.matmul(t, Foreign(X))
    assert repr(y) == "DeviceArray(5 x 33, float32, cuda:0)"
    assert (y.shape, y.ndim, y.dtype, y.device, y.nbytes, len(y)) == ((5, 33), 2, "float32", "cuda:0", 660, 5)
    assert y.__dlpack_device__() == (2, 0)
    assert repr(lutkern.to_device(np.float32(1))) == "DeviceArray(scalar, float32, cuda:0)"


def test_to_device_and_back():
    for array in (X, X.astype(np.float16), X.astype(ml_dtypes.bfloat16), np.arange(7), X[:, ::2], [[1, 2], [3, 4]]):
        there = lutkern.to_device(array)
        assert np.array_equal(there.numpy(), np.asarray(array))


def fake_library(monkeypatch, name, stream):
    """A module that stands for torch or CuPy, and the class of its arrays."""
    module = types.ModuleType(name)
    if name == "torch":
        current = types.SimpleNamespace(cuda_stream=stream)
        module.cuda = types.SimpleNamespace(current_stream=lambda index: current)
    else:
        current = types.SimpleNamespace(ptr=stream)

        class Device:
            def __init__(self, index):
                self.index = index

            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

        module.cuda = types.SimpleNamespace(Device=Device, get_current_stream=lambda: current)
    monkeypatch.setitem(sys.modules, name, module)
    return type("Array", (Foreign,), {"__module__": f"{name}.core"})


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_the_current_stream_of_a_library_is_used(t, monkeypatch, library):
    stream = lutkern.Stream()
    array = fake_library(monkeypatch, library, stream.handle)
    x = array(X)
    y = lutkern.matmul(t, x)
    assert x.streams == [stream.handle]
    assert y._memory.stream == stream.handle
    assert y._kept == []  # what comes next in the memory of x is queued behind the work
    explicit = lutkern.Stream()
    y = lutkern.matmul(t, x, stream=explicit)
    assert x.streams == [stream.handle, explicit.handle]
    assert len(y._kept) == 1


def test_the_default_stream_has_the_name_one(t, monkeypatch):
    array = fake_library(monkeypatch, "torch", 0)
    x, out = array(X), array(np.zeros((5, 33), np.float32))
    lutkern.matmul(t, x, out=out)
    assert (x.streams, out.streams) == ([1], [1])
    foreign = Foreign(X)
    y = lutkern.matmul(t, foreign)
    assert foreign.streams == [1]
    assert len(y._kept) == 1  # nobody knows on which stream its library works


def test_streams_by_any_name(t):
    stream = lutkern.Stream()
    expected = lutkern.matmul(t, X)
    named = [
        stream,
        stream.handle,
        types.SimpleNamespace(cuda_stream=stream.handle),
        types.SimpleNamespace(ptr=stream.handle),
    ]
    for given in named:
        x = Foreign(X)
        y = lutkern.matmul(t, x, stream=given)
        assert x.streams == [stream.handle]
        assert np.array_equal(y.numpy(), expected)
    for default in (0, 1, 2):
        x = Foreign(X)
        lutkern.matmul(t, x, stream=default)
        assert x.streams == [max(default, 1)]


def test_a_chain_stays_on_its_stream(t):
    back = random_tensor(by_name("iq1_m"), (576, 33)).to(device="cuda")
    y = lutkern.matmul(t, Foreign(X), stream=lutkern.Stream())
    z = lutkern.matmul(back, y)
    assert z._memory.stream == y._memory.stream
    assert np.array_equal(z.numpy(), lutkern.matmul(back, y.numpy()))
    other = lutkern.matmul(back, y, stream=lutkern.Stream())
    assert np.array_equal(other.numpy(), z.numpy())


def read_only():
    array = Foreign(np.zeros(33, np.float32))
    real = array.__dlpack__

    class ReadOnly(Foreign):
        def __dlpack__(self, **options):
            import ctypes

            capsule = real(**options)
            name = ctypes.c_char_p(b"dltensor_versioned")
            get = ctypes.pythonapi.PyCapsule_GetPointer
            get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
            ctypes.c_uint64.from_address(get(capsule, name) + 24).value = 1
            return capsule

    array.__class__ = ReadOnly
    return array


class Ungiving(Foreign):
    def __dlpack__(self, **options):
        raise BufferError("it requires gradients")


class WithStream:
    cuda_stream = "seven"


BAD = {
    "columns": (
        lambda t: lutkern.matvec(t, Foreign(X[0, :575])),
        ValueError,
        "matvec: x has 575 columns, the weight has 576",
    ),
    "dimensions": (lambda t: lutkern.matvec(t, Foreign(X)), ValueError, "matvec: x has 2 dimensions, expected 1"),
    "float64": (
        lambda t: lutkern.matvec(t, Foreign(X[0].astype(float))),
        TypeError,
        "matvec: x is float64, expected float32, float16 or bfloat16",
    ),
    "complex": (
        lambda t: lutkern.matvec(t, Foreign(X[0], code=5)),
        TypeError,
        "matvec: x is complex32, expected float32, float16 or bfloat16",
    ),
    "not handed out": (
        lambda t: lutkern.matvec(t, Ungiving(X[0])),
        TypeError,
        "matvec: x cannot be read through DLPack: it requires gradients",
    ),
    "weight on the CPU": (
        lambda t: lutkern.matvec(t.to(device="cpu"), Foreign(X[0])),
        RuntimeError,
        "matvec: x is on DLPack device 2, expected the CPU",
    ),
    "out on the CPU": (
        lambda t: lutkern.matvec(t, Foreign(X[0]), out=np.zeros(33, np.float32)),
        RuntimeError,
        "matvec: out is ndarray on cpu, expected cuda:0",
    ),
    "out on the device": (
        lambda t: lutkern.matvec(t, X[0], out=Foreign(np.zeros(33, np.float32))),
        TypeError,
        "matvec: out is Foreign, expected a float32 NumPy array",
    ),
    "out shape": (
        lambda t: lutkern.matvec(t, Foreign(X[0]), out=Foreign(np.zeros(32, np.float32))),
        ValueError,
        "matvec: out has shape (32,), expected (33,)",
    ),
    "out dtype": (
        lambda t: lutkern.matvec(t, Foreign(X[0]), out=Foreign(np.zeros(33, np.float16))),
        TypeError,
        "matvec: out is float16, expected float32",
    ),
    "out read-only": (
        lambda t: lutkern.matvec(t, Foreign(X[0]), out=read_only()),
        ValueError,
        "matvec: out is read-only or not C-contiguous, expected a writable C-contiguous array",
    ),
    "stream": (
        lambda t: lutkern.matvec(t, Foreign(X[0]), stream=WithStream()),
        TypeError,
        "matvec: stream is WithStream, expected a number, or a stream of lutkern, torch or CuPy",
    ),
    "negative stream": (
        lambda t: lutkern.matvec(t, Foreign(X[0]), stream=-1),
        ValueError,
        "matvec: stream is -1, expected the handle of a stream",
    ),
    "stream on the CPU": (
        lambda t: lutkern.matvec(t.to(device="cpu"), X[0], stream=5),
        ValueError,
        "matvec: stream is 5, the weight is on the CPU",
    ),
    "dtype": (
        lambda t: lutkern.dequantize(t, dtype="float64"),
        ValueError,
        "dequantize: unknown dtype 'float64', expected one of: float32, float16, bfloat16",
    ),
    "dequantize into another type": (
        lambda t: lutkern.dequantize(t, dtype="float16", out=np.zeros((33, 576), np.float32)),
        TypeError,
        "dequantize: out is float32, expected a float16 NumPy array",
    ),
    "stream zero": (
        lambda t: lutkern.dequantize(t).__dlpack__(stream=0),
        ValueError,
        "__dlpack__: stream is 0, expected 1 for the default stream, 2 for that of the thread",
    ),
    "another device without a copy": (
        lambda t: lutkern.dequantize(t).__dlpack__(dl_device=(1, 0), copy=False),
        BufferError,
        "__dlpack__: the array is on cuda:0, wanted on DLPack device (1, 0) without a copy",
    ),
    "a used capsule": (
        lambda t: [lutkern._core.Borrowed(c) for c in [lutkern.dequantize(t).__dlpack__()] * 2],
        TypeError,
        "DLPack: no capsule of an array that is still to be taken",
    ),
    "constructor": (
        lambda t: DeviceArray(),
        TypeError,
        "DeviceArray is made by the operations and by lutkern.to_device",
    ),
    "length": (lambda t: len(lutkern.to_device(np.float32(1))), TypeError, "len: the array has no dimensions"),
    "to_device of float64": (
        lambda t: lutkern.to_device(np.zeros(3)),
        TypeError,
        "to_device: x is float64, expected float32, float16 or bfloat16",
    ),
    "to_device of large integers": (
        lambda t: lutkern.to_device(np.array([0, 2**40])),
        ValueError,
        "to_device: x reaches from 0 to 1099511627776, expected 32-bit numbers",
    ),
    "to_device on the CPU": (
        lambda t: lutkern.to_device(X, "cpu"),
        ValueError,
        "to_device: device is 'cpu', expected cuda, cuda:N, metal or metal:N",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(t, case):
    call, error, text = BAD[case]
    with pytest.raises(error) as caught:
        call(t)
    assert str(caught.value).startswith(text)


def test_out_must_not_overlap_x():
    square = random_tensor(by_name("iq2_xxs"), (256, 256)).to(device="cuda")
    x = lutkern.to_device(X[:, :256])
    with pytest.raises(ValueError, match=r"^matmul: out overlaps x, expected memory of its own on cuda:0$"):
        lutkern.matmul(square, x, out=x)
