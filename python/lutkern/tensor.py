"""`PackedTensor`: a packed weight and what its bytes mean."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .formats import Format, find_format
from .memory import aligned_bytes
from .places import CPU, METAL, device_name, device_number, kind_of

LAYOUTS = {"blocks": 0, "tiles": 1}  # lutkern_layout
_MAX_WEIGHTS = 1 << 46  # of a tensor of the library


class PackedTensor:
    """A weight of shape (rows, cols) or (experts, rows, cols) in a GGUF format, on the CPU or on a GPU.

    Made by `PackedTensor.from_blocks`, `PackedTensor.from_tiles`, `lutkern.pack`, or `lutkern.open_gguf(...)[name]`.
    The bytes are not copied and stay alive with the tensor. Rows are outputs, cols are inputs.
    """

    __slots__ = ("_data", "_format", "_handle", "_layout", "_shape")

    # Read-only from outside: results are made in this shape, and kernels write as many rows as the handle has.
    _format: Format
    _shape: tuple[int, ...]
    _layout: str
    # blocks: (..., rows, row_bytes); tiles: (..., bytes of a matrix); None on a device that does not share them
    _data: npt.NDArray[np.uint8] | None
    _handle: _core.Tensor

    def __init__(self) -> None:
        raise TypeError("PackedTensor is made by PackedTensor.from_blocks, from_tiles, pack or open_gguf")

    @classmethod
    def from_blocks(cls, blocks: Any, fmt: str | Format, shape: Sequence[int]) -> PackedTensor:
        """View GGUF bytes as a weight, without a copy.

        Parameters
        ----------
        blocks
            Any C-contiguous buffer (bytes, mmap, memoryview, NumPy array) of
            ``experts * rows * ceil(cols / block_size) * block_bytes`` bytes.
        fmt
            A format, or its name.
        shape
            (rows, cols) or (experts, rows, cols), each at least 1.

        Raises
        ------
        ValueError
            If the format is unknown, or the shape or the number of bytes is wrong.
        TypeError
            If `blocks` is no contiguous buffer.
        """
        fmt = find_format(fmt)
        shape = _checked_shape("from_blocks", shape)
        stored = (*shape[:-1], fmt.row_bytes(shape[-1]))
        flat = _flat_bytes("from_blocks", "blocks", blocks, fmt, shape, math.prod(stored))
        return cls._make(flat.reshape(stored), fmt, shape, "blocks")

    @classmethod
    def from_tiles(cls, tiles: Any, fmt: str | Format, shape: Sequence[int], *, version: int) -> PackedTensor:
        """View the bytes of `tiles` as a weight, without a copy: tiles may be kept in a file and mapped later.

        Parameters
        ----------
        tiles
            Any C-contiguous buffer with the bytes of ``t.tiles()``, best at a multiple of 64 bytes.
        fmt
            A format, or its name.
        shape
            (rows, cols) or (experts, rows, cols), each at least 1.
        version
            ``lutkern.TILE_VERSION`` when the bytes were made.

        Raises
        ------
        ValueError
            If the format is unknown, the shape or the number of bytes is wrong, or the version is another one.
        TypeError
            If `tiles` is no contiguous buffer.
        """
        fmt = find_format(fmt)
        shape = _checked_shape("from_tiles", shape)
        if version != _core.tile_version:
            raise ValueError(f"from_tiles: the tiles have version {version!r}, expected {_core.tile_version}")
        if math.prod(shape) > _MAX_WEIGHTS:
            size = " x ".join(map(str, shape))
            raise ValueError(f"from_tiles: shape is {size}, expected at most 2^46 weights")
        flat = _flat_bytes("from_tiles", "tiles", tiles, fmt, shape, _nbytes("tiles", fmt, shape))
        return cls._make(flat.reshape((*shape[:-2], -1)), fmt, shape, "tiles")

    @classmethod
    def _make(
        cls,
        data: npt.NDArray[np.uint8] | None,
        fmt: Format,
        shape: tuple[int, ...],
        layout: str,
        handle: _core.Tensor | None = None,
    ) -> PackedTensor:
        self = object.__new__(cls)
        self._data = data
        self._format = fmt
        self._shape = shape
        self._layout = layout
        experts = shape[0] if len(shape) == 3 else 1
        self._handle = handle or _core.Tensor(fmt.ggml_type, LAYOUTS[layout], experts, shape[-2], shape[-1], data)
        return self

    @property
    def format(self) -> Format:
        """The format; ``str(t.format)`` is its name."""
        return self._format

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols) or (experts, rows, cols), without padding."""
        return self._shape

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, as it lies in the memory of its device."""
        return self._handle.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits spent on each of the rows x cols weights, padding included."""
        return 8 * self.nbytes / math.prod(self.shape)

    @property
    def layout(self) -> str:
        """Order of the bytes: ``"blocks"``, as in a GGUF file, or ``"tiles"``, as kernels of the device read them."""
        return self._layout

    @property
    def device(self) -> str:
        """Where the bytes are: ``"cpu"``, ``"cuda:0"`` or ``"metal:0"``."""
        return device_name(self._handle.device)

    def blocks(self) -> npt.NDArray[np.uint8]:
        """Return the GGUF bytes: uint8, shape (..., rows, row_bytes), read-only; a view of blocks of the CPU."""
        if self._data is not None and self._layout == "blocks":
            return _read_only(self._data)
        out = np.empty((*self.shape[:-1], self.format.row_bytes(self.shape[-1])), np.uint8)
        self._write("blocks", out)
        return _read_only(out)

    def _write(self, layout: str, out: npt.NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes of a layout of the CPU."""
        if self._handle.device == CPU:
            _core.repack(self._handle, LAYOUTS[layout], out)
        else:
            _core.download(self._handle, LAYOUTS[layout], out, 0)

    def tiles(self) -> npt.NDArray[np.uint8]:
        """Return the bytes of the CPU's tiles: uint8, shape (..., bytes of a matrix), read-only; a view if they are."""
        data = self.to(layout="tiles", device="cpu")._data
        assert data is not None
        return _read_only(data)

    def to(self, *, layout: str | None = None, device: str | None = None) -> PackedTensor:
        """Return the weight in another layout or on another device; itself if nothing changes.

        Tiles hold the same weights in the order in which the kernels of the device read them. On the CPU, formats iq1_s
        and iq1_m take 16 and 14 percent more bytes in them, every other format the same (rows are padded to a multiple
        of 16). On a GPU the formats iq1_s to iq3_s have tiles, of the bytes of blocks (rows are padded to a multiple of
        32); the others stay in blocks. Nothing is lost on the way: `blocks` gives the GGUF bytes of every layout.

        Blocks of the CPU become blocks on Metal, ``t.to(device="metal", layout="blocks")``, without a copy: the GPU
        reads the same memory, of a mapped file too, and the tensor keeps it alive. These bytes must not change
        meanwhile. Tiles are memory of their own: once they are made, a mapped file need not stay in memory.

        Parameters
        ----------
        layout
            ``"blocks"`` or ``"tiles"``; by default it stays, and on another GPU it becomes tiles where there are any.
        device
            ``"cpu"``, ``"cuda"`` (the first GPU), ``"cuda:N"``, ``"metal"`` or ``"metal:N"``.

        Raises
        ------
        ValueError
            If the layout is unknown, or the format has no tiles on the device.
        RuntimeError
            If the device is not there.
        MemoryError
            If it has no room.
        """
        if layout is not None and (not isinstance(layout, str) or layout not in LAYOUTS):
            raise ValueError(f"to: unknown layout {layout!r}, expected one of: {', '.join(LAYOUTS)}")
        here = self._handle.device
        there = here if device is None else device_number("to", device)
        has_tiles = there == CPU or _core.device_has_tiles(there, self.format.ggml_type)
        if layout is None:
            layout = self._layout if there in (here, CPU) else ("tiles" if has_tiles else "blocks")
        elif layout == "tiles" and not has_tiles:
            raise ValueError(f"to: {self.format} has no tiles on {device_name(there)}, expected blocks")
        if (there, layout) == (here, self._layout):
            return self
        return self._on_cpu(layout) if there == CPU else self._on_gpu(there, layout)

    def _on_cpu(self, layout: str) -> PackedTensor:
        if layout == "blocks":
            return PackedTensor._make(self.blocks(), self.format, self.shape, "blocks")
        out = aligned_bytes(_nbytes("tiles", self.format, self.shape)).reshape((*self.shape[:-2], -1))
        self._write("tiles", out)
        return PackedTensor._make(out, self.format, self.shape, "tiles")

    def _on_gpu(self, device: int, layout: str) -> PackedTensor:
        source, here = self, self._handle.device
        if here not in (CPU, device) and layout != self._layout:
            source = self._on_gpu(here, layout)
        shared = here == CPU and kind_of(device) == METAL and self._layout == layout == "blocks"
        try:
            if shared:
                handle = self._handle.wrapped(device)
            else:
                handle = _core.repack_to(source._handle, device, LAYOUTS[layout], 0)
        except (MemoryError, RuntimeError) as error:
            what = f"{self.format} of {' x '.join(map(str, self.shape))} on {device_name(device)}"
            raise type(error)(f"to: {what}: {error}") from None
        return PackedTensor._make(self._data if shared else None, self.format, self.shape, layout, handle)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, expert: int) -> PackedTensor:
        """Return one expert of an (experts, rows, cols) weight, without a copy.

        Raises
        ------
        IndexError
            If there is no such expert.
        TypeError
            If `expert` is no whole number.
        ValueError
            If the weight has no experts.
        """
        if len(self.shape) != 3:
            raise ValueError(f"index: the weight has shape {self.shape}, expected (experts, rows, cols)")
        try:
            index = operator.index(expert)
        except TypeError:
            raise TypeError(f"index: expert is {type(expert).__name__}, expected a whole number") from None
        if not -self.shape[0] <= index < self.shape[0]:
            raise IndexError(f"index: expert {index}, the weight has {self.shape[0]} experts")
        index %= self.shape[0]
        data = None if self._data is None else self._data[index]
        return PackedTensor._make(data, self.format, self.shape[1:], self._layout, self._handle.expert(index))

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        bits = f"{self.bits_per_weight:.4g} bits per weight"
        return f"PackedTensor({self.format}, {size}, {bits}, {self.layout}, {self.device})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Tiles depend on the version of the library that made them; blocks do not.
        return (_restored, (self.blocks(), self.format.name, self.shape, self._layout, self.device))


def _restored(
    blocks: npt.NDArray[np.uint8], fmt: str, shape: tuple[int, ...], layout: str, device: str = "cpu"
) -> PackedTensor:
    return PackedTensor.from_blocks(blocks, fmt, shape).to(layout=layout, device=device)


def _read_only(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    view: npt.NDArray[np.uint8] = data[...]
    view.flags.writeable = False
    return view


def _nbytes(layout: str, fmt: Format, shape: tuple[int, ...]) -> int:
    experts = shape[0] if len(shape) == 3 else 1
    return _core.tensor_bytes(fmt.ggml_type, LAYOUTS[layout], experts, shape[-2], shape[-1])


def _flat_bytes(
    operation: str, what: str, data: Any, fmt: Format, shape: tuple[int, ...], expected: int
) -> npt.NDArray[np.uint8]:
    try:
        flat: npt.NDArray[np.uint8] = np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise TypeError(f"{operation}: {what} are {type(data).__name__}, expected a C-contiguous buffer") from error
    if flat.size != expected:
        size = " x ".join(map(str, shape))
        raise ValueError(f"{operation}: {what} have {flat.size} bytes, {fmt} of {size} needs {expected}")
    return flat


def _checked_shape(operation: str, shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"{operation}: shape is {shape!r}, expected whole numbers") from None
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(
            f"{operation}: shape is {sizes}, expected (rows, cols) or (experts, rows, cols), each at least 1"
        )
    return sizes
