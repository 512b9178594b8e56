"""Streams of a GPU: work that is queued, kept in graphs, timed.

The handle of a stream is a number; 0 and 1 are the default stream. Of CUDA it is the ``CUstream`` of the driver. On
Metal a stream is a command queue of our own, and graphs do not exist.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from . import _core
from .places import CUDA, current_stream, device_name, gpu_number, kind_of, library_of


class Stream:
    """A queue of work on a GPU, beside other queues: ``lutkern.matvec(t, x, stream=lutkern.Stream())``.

    Parameters
    ----------
    device
        ``"cuda"``, ``"cuda:N"``, ``"metal"`` or ``"metal:N"``.

    Raises
    ------
    RuntimeError
        If the device is not there.
    """

    __slots__ = ("_native",)

    def __init__(self, device: str = "cuda") -> None:
        self._native = _core.Stream(gpu_number("Stream", device))

    @property
    def device(self) -> str:
        """The device: ``"cuda:0"``."""
        return device_name(self._native.device)

    @property
    def handle(self) -> int:
        """Of CUDA the ``CUstream``, for other libraries: ``torch.cuda.ExternalStream(stream.handle)``."""
        return self._native.address

    def synchronize(self) -> None:
        """Wait until the work that is queued is done."""
        _core.synchronize(self._native.device, self.handle)

    def __repr__(self) -> str:
        return f"Stream({self.device}, {self.handle:#x})"


class Event:
    """A moment in the work of a stream, for timing.

    Raises
    ------
    RuntimeError
        If the device is not there.
    """

    __slots__ = ("_native",)

    def __init__(self, device: str = "cuda") -> None:
        self._native = _core.Event(gpu_number("Event", device))

    def record(self, stream: Any = None) -> None:
        """Mark the moment when the work that is queued on `stream` so far is done."""
        self._native.record(stream_handle("record", stream, self._native.device))

    def elapsed(self, later: Event) -> float:
        """Return the milliseconds from this moment to a later one of the same device, and wait for that one."""
        here, there = self._native.device, later._native.device
        if here != there:
            raise ValueError(f"elapsed: the later event is on {device_name(there)}, this one is on {device_name(here)}")
        return _core.elapsed(self._native, later._native)


class Graph:
    """Work that was kept by `capture`: `launch` queues all of it at the price of one call.

    It reads and writes the arrays that were given while it was captured, and keeps them alive.
    """

    __slots__ = ("_kept", "_native", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._native: _core.Graph | None = None
        self._kept: list[Any] = []

    def launch(self, stream: Any = None) -> None:
        """Queue the work on `stream`, by default on the one that was captured.

        Raises
        ------
        RuntimeError
            If the capture has not ended well.
        """
        if self._native is None:
            raise RuntimeError("launch: the graph is empty, expected one whose capture has ended")
        handle = self._stream.handle if stream is None else stream_handle("launch", stream, self._native.device)
        self._native.launch(handle)


_capturing: dict[int, Graph] = {}  # handle of a stream -> the graph that keeps its work


@contextmanager
def capture(stream: Stream) -> Iterator[Graph]:
    """Keep the work that the block queues on `stream`, of CUDA, in a graph, instead of running it.

    Operations in the block take ``stream=stream``, arrays on the device and ``out=``: every launch reads and writes the
    same places.

    >>> with lutkern.capture(stream) as graph:  # doctest: +SKIP
    ...     lutkern.moe(x, ids, weights, gate, up, down, out=y, stream=stream)
    >>> graph.launch()  # doctest: +SKIP

    Raises
    ------
    TypeError
        If `stream` is no `Stream`.
    RuntimeError
        If the device has no graphs, or its driver cannot keep the work.
    """
    if not isinstance(stream, Stream):
        raise TypeError(f"capture: stream is {type(stream).__name__}, expected a lutkern.Stream")
    if kind_of(stream._native.device) != CUDA:
        raise RuntimeError(f"capture: stream is on {stream.device}, expected one on cuda: graphs exist there only")
    device, handle = stream._native.device, stream.handle
    graph = Graph(stream)
    _core.graph_begin(device, handle)
    _capturing[handle] = graph
    try:
        yield graph
    except BaseException:
        _end_quietly(device, handle)
        raise
    finally:
        del _capturing[handle]
    graph._native = _core.graph_end(device, handle)


def _end_quietly(device: int, handle: int) -> None:
    with suppress(RuntimeError):  # the failure in the block is the one to tell
        _core.graph_end(device, handle)


def synchronize(device: str = "cuda") -> None:
    """Wait until all work on a GPU is done.

    Raises
    ------
    RuntimeError
        If the device is not there, or work on it failed.
    """
    _core.synchronize(gpu_number("synchronize", device), _core.all_streams)


def stream_handle(operation: str, stream: Any, device: int) -> int:
    """Return the handle of a stream that a caller gave: a number, or a stream of lutkern, torch or CuPy; 0 for None.

    Streams of torch and CuPy are those of CUDA.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If it belongs to another device.
    """
    if stream is None:
        return 0
    if isinstance(stream, Stream):
        if stream._native.device != device:
            raise ValueError(f"{operation}: stream is on {stream.device}, the weight is on {device_name(device)}")
        return stream.handle
    cuda = kind_of(device) == CUDA
    handle = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream)) if cuda else stream
    try:
        number = operator.index(handle)
    except TypeError:
        kind, of = type(stream).__name__, "lutkern, torch or CuPy" if cuda else "lutkern"
        raise TypeError(f"{operation}: stream is {kind}, expected a number, or a stream of {of}") from None
    if number < 0:
        raise ValueError(f"{operation}: stream is {number}, expected the handle of a stream")
    return number


class Queue(NamedTuple):
    """Where an operation is queued: a device, the handle of one of its streams, whether a graph keeps the work."""

    device: int
    handle: int
    captured: bool


def chosen_queue(operation: str, stream: Any, device: int, arrays: Sequence[Any]) -> Queue:
    """Return the stream of an operation: the caller's, or the one on which the first array that has one is made."""
    if stream is not None:
        handle = stream_handle(operation, stream, device)
    else:
        found = (stream_of(array, device) for array in arrays)
        handle = next((known for known in found if known is not None), 0)
    return Queue(device, handle, _core.capturing(device, handle))


def stream_of(array: Any, device: int) -> int | None:
    """Return the stream that orders the work on an array's memory, or None if nobody says."""
    own = getattr(array, "_lutkern_stream", None)
    if own is not None:
        return int(own)
    library = library_of(array) if kind_of(device) == CUDA else ""
    return current_stream(library, device) if library else None


def keep(queue: Queue, things: Sequence[Any]) -> None:
    """Let the graph that keeps the work of a stream keep its operands too; a foreign graph is left to its user."""
    graph = _capturing.get(queue.handle)
    if graph is not None:
        graph._kept.extend(things)
