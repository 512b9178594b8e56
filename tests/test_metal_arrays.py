"""Arrays of Metal: results there, arrays of the CPU and of other libraries in and out; every refusal with its text."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest

import lutkern
from lutkern import _core, reference
from lutkern.device_array import DeviceArray
from test_cuda_arrays import Capsule
from weights import by_name, random_tensor

pytestmark = pytest.mark.usefixtures("metal")
N_ULP = 8
X = np.random.default_rng(5).standard_normal((5, 576)).astype(np.float32)


def there(array):
    return lutkern.to_device(array, "metal")


@pytest.fixture(scope="module")
def weight():
    return random_tensor(by_name("iq2_xxs"), (33, 576))


@pytest.fixture(scope="module")
def t(weight):
    return weight.to(device="metal")


def test_products_are_the_reference(fmt):
    here = random_tensor(fmt, (33, 576))
    weight = here.to(device="metal")
    for exact in (False, True):
        y = lutkern.matmul(weight, there(X[:3]), exact=exact)
        assert isinstance(y, DeviceArray)
        bound = reference.fp32_bound(here, X[:3], n_ulp=N_ULP, exact=exact)
        assert np.all(np.abs(y.numpy() - reference.matmul(here, X[:3], exact=exact)) <= bound)
        one = lutkern.matvec(weight, there(X[3]), exact=exact).numpy()
        bound = reference.fp32_bound(here, X[3], n_ulp=N_ULP, exact=exact)
        assert np.all(np.abs(one - reference.matvec(here, X[3], exact=exact)) <= bound)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["iq2_xxs", "q4_k"])
def test_dequantize(name, dtype):
    here = random_tensor(by_name(name), (2, 9, 300))
    weight = here.to(device="metal")
    exact = lutkern.dequantize(here)
    expected = exact.astype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))
    y = lutkern.dequantize(weight, dtype=dtype)
    assert (y.dtype, y.shape, y.device, y.nbytes) == (dtype, (2, 9, 300), "metal:0", expected.nbytes)
    assert y.numpy().tobytes() == expected.tobytes()
    room = np.zeros_like(expected)
    assert lutkern.dequantize(weight, dtype=dtype, out=room) is room
    assert room.tobytes() == expected.tobytes()


def test_arrays_of_the_cpu_give_arrays_of_the_cpu(weight, t):
    y = lutkern.matmul(t, X)
    assert isinstance(y, np.ndarray)
    assert np.all(np.abs(y - reference.matmul(weight, X)) <= reference.fp32_bound(weight, X, n_ulp=N_ULP))
    out = np.zeros(33, np.float32)
    assert lutkern.matvec(t, X[0], out=out, stream=lutkern.Stream("metal")) is out
    assert np.array_equal(out, lutkern.matvec(t, X[0]))
    wide = np.concatenate([X, X], axis=1)
    assert np.array_equal(lutkern.matmul(t, wide[:, :576]), y)


@pytest.mark.parametrize("tokens", [1, 2, 8, 40])
def test_many_tokens(weight, t, tokens):
    x = np.resize(X, (tokens, 576))
    y = lutkern.matmul(t, there(x)).numpy()
    assert np.all(np.abs(y - reference.matmul(weight, x)) <= reference.fp32_bound(weight, x, n_ulp=N_ULP))


def test_element_types(t):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        short = X.astype(dtype)
        assert np.array_equal(lutkern.matmul(t, there(short)).numpy(), lutkern.matmul(t, short))


def test_out_on_the_device(t):
    out = there(np.zeros((5, 33), np.float32))
    assert lutkern.matmul(t, there(X), out=out) is out
    assert np.array_equal(out.numpy(), lutkern.matmul(t, X))


def test_no_tokens(t):
    y = lutkern.matmul(t, there(np.zeros((0, 576), np.float32)))
    assert (y.shape, y.numpy().shape, len(y)) == ((0, 33), (0, 33), 0)
    assert lutkern.matmul(t, np.zeros((0, 576), np.float32)).shape == (0, 33)


def test_results_are_memory_of_the_cpu(t):
    y = lutkern.matmul(t, there(X))
    seen = np.from_dlpack(y)
    assert seen.ctypes.data == y._memory.address
    expected = lutkern.matmul(t, X)
    assert np.array_equal(seen, expected)
    copied = y.numpy()
    lutkern.matmul(t, there(2 * X), out=y)
    lutkern.synchronize("metal")
    assert np.array_equal(seen, 2 * expected)  # a view
    assert np.array_equal(copied, expected)
    del y
    assert np.array_equal(seen, 2 * expected)  # which keeps the memory


def test_dlpack_says_cpu(t):
    y = lutkern.matmul(t, there(X))
    assert y.__dlpack_device__() == (1, 0)
    for options in ({}, {"stream": None}, {"max_version": (1, 0)}, {"dl_device": (1, 0), "copy": False}):
        taken = _core.Borrowed(y.__dlpack__(**options))
        assert (taken.device, taken.dtype, taken.shape) == ((1, 0), (2, 32, 1), (5, 33))
        assert (taken.strides, taken.address, taken.read_only) == ((33, 1), y._memory.address, False)
    copied = _core.Borrowed(y.__dlpack__(copy=True))
    assert copied.address != y._memory.address
    assert np.array_equal(np.from_dlpack(Capsule(y.__dlpack__(copy=True))), y.numpy())


def test_the_cpu_reads_arrays_of_metal(weight, t):
    x = there(X[0])
    y = lutkern.matvec(weight, x)
    assert isinstance(y, np.ndarray)
    assert np.array_equal(y, lutkern.matvec(weight, X[0]))
    short = X[0].astype(ml_dtypes.bfloat16)
    assert np.array_equal(lutkern.matvec(weight, there(short)), lutkern.matvec(weight, short))
    chained = lutkern.matvec(random_tensor(by_name("q8_0"), (7, 33)), lutkern.matvec(t, x))
    assert chained.shape == (7,)


def test_what_an_array_says_of_itself(t):
    y = lutkern.matmul(t, there(X))
    assert repr(y) == "DeviceArray(5 x 33, float32, metal:0)"
    assert (y.shape, y.ndim, y.dtype, y.device, y.nbytes, len(y)) == ((5, 33), 2, "float32", "metal:0", 660, 5)
    assert repr(there(np.float32(1))) == "DeviceArray(scalar, float32, metal:0)"


def test_to_device_and_back():
    for array in (X, X.astype(np.float16), X.astype(ml_dtypes.bfloat16), np.arange(7), X[:, ::2], [[1, 2], [3, 4]]):
        assert np.array_equal(there(array).numpy(), np.asarray(array))


def test_streams(t):
    stream = lutkern.Stream("metal")
    expected = lutkern.matmul(t, X)
    for given in (stream, stream.handle, 0, 1):
        assert np.array_equal(lutkern.matmul(t, there(X), stream=given).numpy(), expected)


def test_a_chain_stays_on_its_stream(t):
    back = random_tensor(by_name("iq2_xxs"), (576, 33)).to(device="metal")
    y = lutkern.matmul(t, there(X), stream=lutkern.Stream("metal"))
    z = lutkern.matmul(back, y)
    assert z._memory.stream == y._memory.stream
    assert np.array_equal(z.numpy(), lutkern.matmul(back, y.numpy()))
    other = lutkern.matmul(back, y, stream=lutkern.Stream("metal"))
    assert np.array_equal(other.numpy(), z.numpy())


class Mlx(ctypes.c_float * 576):
    """An array as those of MLX are: it says that it lies on Metal, and hands out its memory as a buffer."""

    __module__ = "mlx.core"

    def __dlpack_device__(self):
        return (8, 0)

    def __dlpack__(self, **options):
        raise AssertionError("DLPack would hand out an object of the driver")


class MlxBfloat16(ctypes.c_uint8 * 1152):
    """The same with bfloat16, for which buffers have no letter."""

    __module__ = "mlx.core"
    dtype = "mlx.core.bfloat16"
    shape = (576,)

    __dlpack_device__ = Mlx.__dlpack_device__
    __dlpack__ = Mlx.__dlpack__


def test_arrays_of_mlx_are_arrays_of_the_cpu(weight, t):
    expected = lutkern.matvec(t, X[0])
    y = lutkern.matvec(t, Mlx(*X[0]))
    assert isinstance(y, np.ndarray)
    assert np.array_equal(y, expected)
    assert np.array_equal(lutkern.matvec(weight, Mlx(*X[0])), lutkern.matvec(weight, X[0]))
    assert np.array_equal(there(Mlx(*X[0])).numpy(), X[0])
    short = X[0].astype(ml_dtypes.bfloat16)
    assert np.array_equal(lutkern.matvec(t, MlxBfloat16(*short.tobytes())), lutkern.matvec(t, short))


class Mps:
    """An array of torch on Metal: no buffer."""

    __module__ = "torch"
    __dlpack_device__ = Mlx.__dlpack_device__
    __dlpack__ = Mlx.__dlpack__


class WithStream:
    cuda_stream = 5


MPS = "is an array of torch on Metal, expected one on the CPU, as its cpu() gives it"
BAD = {
    "an array of torch on Metal": (lambda t: lutkern.matvec(t, Mps()), RuntimeError, f"matvec: x {MPS}"),
    "the same for a weight of the CPU": (
        lambda t: lutkern.matvec(t.to(device="cpu"), Mps()),
        RuntimeError,
        f"matvec: x {MPS}",
    ),
    "the same for to_device": (lambda t: there(Mps()), RuntimeError, f"to_device: x {MPS}"),
    "the same as out": (
        lambda t: lutkern.matvec(t, there(X[0]), out=Mps()),
        RuntimeError,
        "matvec: out is Mps on cpu, expected metal:0",
    ),
    "columns": (
        lambda t: lutkern.matvec(t, there(X[0, :575])),
        ValueError,
        "matvec: x has 575 columns, the weight has 576",
    ),
    "dimensions": (lambda t: lutkern.matvec(t, there(X)), ValueError, "matvec: x has 2 dimensions, expected 1"),
    "integers": (
        lambda t: lutkern.matvec(t, there(np.arange(576))),
        TypeError,
        "matvec: x is int32, expected float32, float16 or bfloat16",
    ),
    "out on the CPU": (
        lambda t: lutkern.matvec(t, there(X[0]), out=np.zeros(33, np.float32)),
        RuntimeError,
        "matvec: out is ndarray on cpu, expected metal:0",
    ),
    "out on the device": (
        lambda t: lutkern.matvec(t, X[0], out=there(np.zeros(33, np.float32))),
        TypeError,
        "matvec: out is DeviceArray, expected a float32 NumPy array",
    ),
    "out shape": (
        lambda t: lutkern.matvec(t, there(X[0]), out=there(np.zeros(32, np.float32))),
        ValueError,
        "matvec: out has shape (32,), expected (33,)",
    ),
    "a stream of torch": (
        lambda t: lutkern.matvec(t, there(X[0]), stream=WithStream()),
        TypeError,
        "matvec: stream is WithStream, expected a number, or a stream of lutkern",
    ),
    "a stream for the CPU's memory": (
        lambda t: lutkern.dequantize(t).__dlpack__(stream=1),
        ValueError,
        "__dlpack__: stream is 1, expected None for memory that the CPU reads",
    ),
    "another device": (
        lambda t: lutkern.dequantize(t).__dlpack__(dl_device=(2, 0)),
        BufferError,
        "__dlpack__: the array is on metal:0, wanted on DLPack device (2, 0) without a copy",
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
    square = random_tensor(by_name("iq2_xxs"), (256, 256)).to(device="metal")
    x = there(X[:, :256])
    with pytest.raises(ValueError, match=r"^matmul: out overlaps x, expected memory of its own on metal:0$"):
        lutkern.matmul(square, x, out=x)
