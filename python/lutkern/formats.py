"""The formats, as the native library names them."""

from __future__ import annotations

from dataclasses import dataclass

from . import _core


@dataclass(frozen=True)
class Format:
    """A GGUF quantisation type.

    Attributes
    ----------
    name
        The GGUF name in lower case, ``"iq1_m"``.
    ggml_type
        Its number in GGUF files.
    block_size
        Weights in a block, along one row.
    block_bytes
        Bytes of a block.
    is_float
        True for bf16, f16 and f32: their products take float activations.
    can_pack
        Whether `lutkern.pack` writes it; every format is read.
    """

    name: str
    ggml_type: int
    block_size: int
    block_bytes: int
    is_float: bool
    can_pack: bool

    @property
    def bits_per_weight(self) -> float:
        """Bits of a block over its weights; a padded tensor has more, see `PackedTensor.bits_per_weight`."""
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, cols: int) -> int:
        """Bytes of one row of `cols` weights, the last block filled up."""
        return -(-cols // self.block_size) * self.block_bytes

    def __str__(self) -> str:
        return self.name


_FORMATS = tuple(Format(*row) for row in _core.formats())
_BY_NAME = {fmt.name: fmt for fmt in _FORMATS}
_BY_TYPE = {fmt.ggml_type: fmt for fmt in _FORMATS}


def formats() -> tuple[Format, ...]:
    """Return every format, those of 1-bit and 2-bit files first."""
    return _FORMATS


def find_format(name: str | Format) -> Format:
    """Return the format of that name.

    Raises
    ------
    ValueError
        If there is none; the text lists all.
    """
    if isinstance(name, Format):
        return name
    try:
        return _BY_NAME[name]
    except (KeyError, TypeError):
        raise ValueError(f"unknown format {name!r}, expected one of: {', '.join(_BY_NAME)}") from None


def format_of_ggml_type(ggml_type: int) -> Format | None:
    """Return the format with that number in GGUF files, or None."""
    return _BY_TYPE.get(ggml_type)
