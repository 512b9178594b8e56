"""One GGUF file: mapped, its header, metadata locations and tensor infos checked against its size.

A file is: magic, u32 version, u64 tensor count, u64 metadata count, metadata, tensor infos, padding, tensor data. A
tensor info is: name, u32 number of dimensions, u64 per dimension (columns first), u32 ggml type, u64 offset from the
start of the data.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import stat
from dataclasses import dataclass
from typing import NamedTuple

from .formats import Format, format_of_ggml_type
from .gguf_metadata import MAX_ALIGNMENT, UINT32, Metadata, Source, quoted, read_entries
from .gguf_metadata import MIN_ENTRY_BYTES as MIN_KEY_BYTES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_BYTES = 24
MAX_DIMS = 4
MIN_TENSOR_BYTES = 32  # of a tensor info: empty name, one dimension
DEFAULT_ALIGNMENT = 32

# Types that occur in files and have no lutkern format: name, weights per block, bytes per block. Their tensors are
# listed.
OTHER_TYPES: dict[int, tuple[str, int, int]] = {
    9: ("q8_1", 32, 36),
    15: ("q8_k", 256, 292),
    24: ("i8", 1, 1),
    25: ("i16", 1, 2),
    26: ("i32", 1, 4),
    27: ("i64", 1, 8),
    28: ("f64", 1, 8),
    40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18),
    42: ("q2_0", 64, 18),
    64: ("iq1_xs", 256, 46),
    65: ("iq1_xxs", 256, 42),
    66: ("iq1_xxxs", 256, 38),
}


@dataclass(frozen=True)
class TensorInfo:
    """What a file says about a tensor: `shape` in NumPy order, `offset` and `nbytes` in the file number `shard`.

    `format` is None for a ggml type that lutkern has no format for; `type_name` is the name of the type in any case.
    """

    name: str
    format: Format | None
    ggml_type: int
    type_name: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    shard: int

    @property
    def n_weights(self) -> int:
        """Number of weights: the product of the shape."""
        return math.prod(self.shape)


class Shard(NamedTuple):
    """One mapped and checked file; a split model has several."""

    source: Source
    version: int
    alignment: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]

    def close(self) -> None:
        """Let go of the mapping. It ends now, or with the last tensor that looks into it."""
        self.metadata._close()
        with contextlib.suppress(BufferError):
            self.source.buffer.close()


def _map(path: str) -> Source:
    """Map a file read-only. Only a regular file: opening a pipe could wait forever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, "open_gguf: not a regular file, expected a GGUF file", path)
    with open(path, "rb") as file:
        name = os.path.basename(path)
        size = os.fstat(file.fileno()).st_size
        if size < HEADER_BYTES:
            raise ValueError(f"open_gguf: {name}: the file has {size} bytes, expected at least {HEADER_BYTES}")
        return Source(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), name)


def open_shard(path: str, shard_no: int, shards: list[Shard]) -> Shard:
    """Open one file and append it to `shards`, which the caller closes when something is wrong."""
    source = _map(path)
    try:
        shard = _parse(source, shard_no)
    except BaseException:
        source.buffer.close()
        raise
    shards.append(shard)
    return shard


def _parse(source: Source, shard_no: int) -> Shard:
    magic = source.buffer[:4]
    if magic != MAGIC:
        raise source.error(f"magic is {magic!r}, expected {MAGIC!r}")
    version = source.u32(4, "version")
    if version and version & 0xFFFF == 0:
        raise source.error("the file is big endian, expected little endian")
    if version not in VERSIONS:
        raise source.error(f"version is {version}, expected 2 or 3")
    n_tensors = source.count(8, "tensor count", MIN_TENSOR_BYTES)
    n_entries = source.count(16, "metadata count", MIN_KEY_BYTES)
    entries, pos = read_entries(source, HEADER_BYTES, n_entries)
    metadata = Metadata(source, entries)
    alignment = _alignment(source, metadata)
    tensors = _read_tensors(source, pos, n_tensors, alignment, shard_no)
    return Shard(source, version, alignment, metadata, tensors)


def _alignment(source: Source, metadata: Metadata) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    value_type, value = metadata.value_type(key)[0], metadata[key]
    if value_type != UINT32:
        raise source.error(f"{key} has value type {value_type}, expected {UINT32} (uint32)")
    if not isinstance(value, int) or value & (value - 1) or not 8 <= value <= MAX_ALIGNMENT:
        raise source.error(f"{key} is {value}, expected a power of two from 8 to {MAX_ALIGNMENT}")
    return value


def _read_tensors(source: Source, pos: int, count: int, alignment: int, shard_no: int) -> dict[str, TensorInfo]:
    raw: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for index in range(count):
        name, pos = source.short_string(pos, f"tensor {index} of {count}: name")
        field = f"tensor {quoted(name)}:"
        if name in raw:
            raise source.error(f"{field} occurs twice, expected once")
        n_dims = source.u32(pos, f"{field} number of dimensions")
        if not 1 <= n_dims <= MAX_DIMS:
            raise source.error(f"{field} number of dimensions is {n_dims}, expected 1 to {MAX_DIMS}")
        pos += 4
        source.need(pos, 8 * n_dims + 12, f"{field} info")
        dims = tuple(source.u64(pos + 8 * axis, field) for axis in range(n_dims))
        pos += 8 * n_dims
        raw[name] = (dims[::-1], source.u32(pos, field), source.u64(pos + 4, field))
        pos += 12
    data_start = -(-pos // alignment) * alignment
    tensors = {
        name: _check_tensor(source, name, fields, data_start, alignment, shard_no) for name, fields in raw.items()
    }
    _check_overlap(source, tensors)
    return tensors


def _check_tensor(
    source: Source, name: str, raw: tuple[tuple[int, ...], int, int], data_start: int, alignment: int, shard_no: int
) -> TensorInfo:
    shape, ggml_type, offset = raw
    field = f"tensor {quoted(name)}:"
    if 0 in shape:
        raise source.error(f"{field} shape is {shape}, expected no dimension of 0")
    fmt = format_of_ggml_type(ggml_type)
    if fmt is not None:
        type_name, block_size, block_bytes = fmt.name, fmt.block_size, fmt.block_bytes
    elif ggml_type in OTHER_TYPES:
        type_name, block_size, block_bytes = OTHER_TYPES[ggml_type]
    else:
        raise source.error(f"{field} ggml type is {ggml_type}, expected a known type")
    if shape[-1] % block_size:
        raise source.error(f"{field} has {shape[-1]} columns, {type_name} expects a multiple of {block_size}")
    if offset % alignment:
        raise source.error(f"{field} offset is {offset}, expected a multiple of {alignment}")
    n_bytes = math.prod(shape) // block_size * block_bytes
    left = source.size - data_start
    if n_bytes > left - offset:
        text = f"offset {offset} + {n_bytes} bytes (shape {shape}) ends past the {max(left, 0)} bytes of data"
        raise source.error(f"{field} {text}")
    return TensorInfo(name, fmt, ggml_type, type_name, shape, data_start + offset, n_bytes, shard_no)


def _check_overlap(source: Source, tensors: dict[str, TensorInfo]) -> None:
    previous: TensorInfo | None = None
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if previous is not None and info.offset < previous.offset + previous.nbytes:
            before = quoted(previous.name)
            raise source.error(f"tensor {quoted(info.name)}: offset lies inside tensor {before}, expected no overlap")
        previous = info
