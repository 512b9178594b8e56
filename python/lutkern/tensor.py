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

_LAYOUTS = ("blocks",)
_DEVICES = ("cpu",)


class PackedTensor:
    """A weight of shape (rows, cols) or (experts, rows, cols) in a GGUF format.

    Made by `PackedTensor.from_blocks`, `lutkern.pack`, or `lutkern.open_gguf(...)[name]`. The bytes are not copied and
    stay alive with the tensor. Rows are outputs, cols are inputs.
    """

    __slots__ = ("_blocks", "_format", "_handle", "_shape")

    # Read-only from outside: results are made in this shape, and kernels write as many rows as the handle has.
    _format: Format
    _shape: tuple[int, ...]
    _blocks: npt.NDArray[np.uint8]
    _handle: _core.Tensor

    def __init__(self) -> None:
        raise TypeError("PackedTensor is made by PackedTensor.from_blocks, pack or open_gguf")

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
        shape = _checked_shape(shape)
        try:
            flat = np.frombuffer(blocks, np.uint8)
        except (TypeError, ValueError, BufferError) as error:
            raise TypeError(
                f"from_blocks: blocks are {type(blocks).__name__}, expected a C-contiguous buffer"
            ) from error
        stored = (*shape[:-1], fmt.row_bytes(shape[-1]))
        if flat.size != math.prod(stored):
            size = " x ".join(map(str, shape))
            raise ValueError(f"from_blocks: blocks have {flat.size} bytes, {fmt} of {size} needs {math.prod(stored)}")
        return cls._make(flat.reshape(stored), fmt, shape)

    @classmethod
    def _make(
        cls, blocks: npt.NDArray[np.uint8], fmt: Format, shape: tuple[int, ...], handle: _core.Tensor | None = None
    ) -> PackedTensor:
        self = object.__new__(cls)
        self._blocks = blocks
        self._format = fmt
        self._shape = shape
        experts = shape[0] if len(shape) == 3 else 1
        self._handle = handle or _core.Tensor(fmt.ggml_type, experts, shape[-2], shape[-1], blocks)
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
        """Bytes of the packed weight."""
        return self._blocks.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits spent on each of the rows x cols weights, padding included."""
        return 8 * self.nbytes / math.prod(self.shape)

    @property
    def layout(self) -> str:
        """Order of the bytes: ``"blocks"``, as in the GGUF file."""
        return "blocks"

    @property
    def device(self) -> str:
        """Where the bytes are: ``"cpu"``."""
        return "cpu"

    def blocks(self) -> npt.NDArray[np.uint8]:
        """Return the GGUF bytes: uint8, shape (..., rows, row_bytes), read-only, without a copy in layout blocks."""
        view: npt.NDArray[np.uint8] = self._blocks[...]
        view.flags.writeable = False
        return view

    def to(self, *, layout: str | None = None, device: str | None = None) -> PackedTensor:
        """Return the weight in another layout or on another device; itself if nothing changes.

        Raises
        ------
        ValueError
            If the layout is unknown.
        RuntimeError
            If the device is not there.
        """
        if layout is not None and layout not in _LAYOUTS:
            raise ValueError(f"to: unknown layout {layout!r}, expected one of: {', '.join(_LAYOUTS)}")
        if device is not None and device not in _DEVICES:
            raise RuntimeError(f"to: no device {device!r}, expected one of: {', '.join(_DEVICES)}")
        return self

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
        return PackedTensor._make(self._blocks[index], self.format, self.shape[1:], self._handle.expert(index))

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        bits = f"{self.bits_per_weight:.4g} bits per weight"
        return f"PackedTensor({self.format}, {size}, {bits}, {self.layout}, {self.device})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (PackedTensor.from_blocks, (self._blocks, self.format.name, self.shape))


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"from_blocks: shape is {shape!r}, expected whole numbers") from None
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(
            f"from_blocks: shape is {sizes}, expected (rows, cols) or (experts, rows, cols), each at least 1"
        )
    return sizes
