"""`DeviceArray`: numbers on a GPU, for whoever reads DLPack."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .arrays import as_array, bfloat16_view, float_input
from .places import CUDA, DL_CPU, DL_CUDA, METAL, device_name, gpu_number, kind_of
from .streams import stream_handle

# name: DLPack's type code, bits, the NumPy type that holds the same bits
_TYPES: dict[str, tuple[int, int, Any]] = {
    "float32": (2, 32, np.float32),
    "float16": (2, 16, np.float16),
    "bfloat16": (4, 16, np.uint16),
    "int32": (0, 32, np.int32),
}
_NAMES = ("float32", "float16", "bfloat16")  # by lutkern_dtype


class DeviceArray:
    """Results on a GPU, C-contiguous: ``torch.from_dlpack(y)`` and ``cupy.from_dlpack(y)`` read them without a copy.

    Made by the operations, and by `lutkern.to_device`. The work that fills it is queued: `numpy` waits for it, and the
    stream of whoever takes it by DLPack does.

    On Metal the memory is that of the CPU too, and DLPack says so: ``np.from_dlpack(y)``, ``torch.from_dlpack(y)`` wait
    for the work and see the same memory, and operations on the CPU read it like any array. What is queued later with
    ``out=y`` changes it under their eyes: `lutkern.synchronize` waits for that.
    """

    __slots__ = ("__weakref__", "_dtype", "_kept", "_memory", "_shape")

    # The memory goes back to the driver in the order of the stream that fills it, behind all work that was queued by
    # then: so a result need not outlive that work, and neither need the arrays of this class that went in. Foreign
    # arrays whose library is not known to wait for that stream are in _kept.
    _shape: tuple[int, ...]
    _dtype: str
    _memory: _core.DeviceMemory
    _kept: list[Any]

    def __init__(self) -> None:
        raise TypeError("DeviceArray is made by the operations and by lutkern.to_device")

    @classmethod
    def _empty(cls, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> DeviceArray:
        self = object.__new__(cls)
        self._shape, self._dtype, self._kept = shape, dtype, []
        n_bytes = math.prod(shape) * _TYPES[dtype][1] // 8
        self._memory = _core.DeviceMemory(device, max(n_bytes, 4), stream)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return self._shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._shape)

    @property
    def dtype(self) -> str:
        """Name of the element type: ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"int32"``."""
        return self._dtype

    @property
    def device(self) -> str:
        """Where it is: ``"cuda:0"``, ``"metal:0"``."""
        return device_name(self._memory.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self._shape) * _TYPES[self._dtype][1] // 8

    @property
    def _lutkern_device(self) -> int:
        return self._memory.device

    @property
    def _lutkern_stream(self) -> int:
        return self._memory.stream

    def numpy(self) -> npt.NDArray[Any]:
        """Wait for the work and return a copy on the CPU; bfloat16 of ml_dtypes, or without it as its bits, uint16.

        It is a copy on Metal too: later work may write there again. ``np.from_dlpack(y)`` is a view there.
        """
        out = np.empty(self._shape, _TYPES[self._dtype][2])
        if out.size:
            _core.copy_out(out, self._memory.address, self._memory.device, self._memory.stream)
        return bfloat16_view(out) if self._dtype == "bfloat16" else out

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Lend the array to another library; work on its `stream` waits for the work that fills the array.

        An array on Metal is lent as one of the CPU, when the work is done: no library takes the addresses of another
        one on Metal, and all read the memory of the CPU.

        Raises
        ------
        ValueError
            If `stream` is 0, which does not say which stream is meant, or is given for the memory of the CPU.
        BufferError
            If it is wanted on another device, without a copy.
        """
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            return self._lend_elsewhere(dl_device, max_version, copy)
        memory = self._for_the_cpu(stream, bool(copy)) if self._on_metal else self._for_stream(stream, bool(copy))
        code, bits, _ = _TYPES[self._dtype]
        return _core.lend(memory, list(self._shape), code, bits, max_version is not None and max_version[0] >= 1)

    @property
    def _on_metal(self) -> bool:
        return kind_of(self._memory.device) == METAL

    def _for_the_cpu(self, stream: int | None, copy: bool) -> _core.DeviceMemory:
        if stream is not None:
            raise ValueError(f"__dlpack__: stream is {stream}, expected None for memory that the CPU reads")
        memory = self._copied() if copy else self._memory
        _core.synchronize(memory.device, memory.stream)
        return memory

    def _for_stream(self, stream: int | None, copy: bool) -> _core.DeviceMemory:
        if stream == 0:
            raise ValueError("__dlpack__: stream is 0, expected 1 for the default stream, 2 for that of the thread")
        consumer = stream_handle("__dlpack__", 1 if stream is None else max(stream, 1), self._memory.device)
        memory = self._copied() if copy else self._memory
        if stream != -1:  # the consumer orders the work itself
            _wait(memory, consumer)
        memory.use_on(consumer if stream != -1 else _UNKNOWN_STREAM)
        return memory

    def _copied(self) -> _core.DeviceMemory:
        own = self._memory
        memory = _core.DeviceMemory(own.device, own.nbytes, own.stream)
        _core.copy_there(memory.address, memory.device, own.address, own.device, self.nbytes, own.stream)
        return memory

    def _lend_elsewhere(
        self, dl_device: tuple[int, int], max_version: tuple[int, int] | None, copy: bool | None
    ) -> Any:
        if tuple(dl_device) != (DL_CPU, 0) or copy is False:
            wanted = ", ".join(str(int(part)) for part in dl_device)
            raise BufferError(
                f"__dlpack__: the array is on {self.device}, wanted on DLPack device ({wanted}) without a copy"
            )
        here = np.asarray(self.numpy())
        return here.__dlpack__() if max_version is None else here.__dlpack__(max_version=max_version)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's number of the device: on Metal that of the CPU."""
        return (DL_CPU, 0) if self._on_metal else (DL_CUDA, self._memory.device - CUDA)

    def __len__(self) -> int:
        if not self._shape:
            raise TypeError("len: the array has no dimensions")
        return self._shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({' x '.join(map(str, self._shape)) or 'scalar'}, {self._dtype}, {self.device})"


_UNKNOWN_STREAM = 2**64 - 1  # no stream has this handle


def _wait(memory: _core.DeviceMemory, consumer: int) -> None:
    """Let the work of another stream wait for the work that fills the memory."""
    if max(memory.stream, 1) != max(consumer, 1):  # 0 and 1 are one stream
        _core.wait(memory.device, consumer, memory.stream)


def to_device(x: Any, device: str = "cuda", *, stream: Any = None) -> DeviceArray:
    """Copy an array of the CPU to a GPU.

    Parameters
    ----------
    x
        float32, float16, bfloat16, or integers that fit into int32; any array with DLPack or the buffer protocol.
    device
        ``"cuda"``, ``"cuda:N"``, ``"metal"`` or ``"metal:N"``.
    stream
        The stream that orders the work on the array, by default the default stream.

    Raises
    ------
    RuntimeError
        If the device is not there, or `x` is not on the CPU.
    TypeError
        If the element type does not fit.
    ValueError
        If a number does not fit into int32.
    """
    number = gpu_number("to_device", device)
    handle = stream_handle("to_device", stream, number)
    array = as_array("to_device", "x", x)
    if array.dtype.kind in "iu":
        narrow = array.astype(np.int32, order="C")
        if not np.array_equal(narrow, array):
            raise ValueError(f"to_device: x reaches from {array.min()} to {array.max()}, expected 32-bit numbers")
        return filled(narrow, "int32", number, handle)
    data, dtype = float_input("to_device", "x", x)
    return filled(np.ascontiguousarray(data).reshape(array.shape), _NAMES[dtype], number, handle)


def filled(array: npt.NDArray[Any], dtype: str, device: int, stream: int) -> DeviceArray:
    """Return a copy, on a device, of a contiguous array whose bits are those of `dtype`."""
    out = DeviceArray._empty(array.shape, dtype, device, stream)
    if array.size:
        _core.copy_in(out._memory.address, device, array, stream)
    return out


def dtype_number(name: str) -> int:
    """Return the lutkern_dtype of an element type."""
    return _NAMES.index(name)
