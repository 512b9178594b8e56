"""The bytes of one GGUF file, and its metadata: located once at opening, decoded key by key at first access.

A GGUF file is untrusted. `Source` is the only place that reads integers and strings out of it, and every read is
checked against the size of the file first. Counts are checked against the bytes that are left before anything loops
over them.

A metadata entry is: u64 key length, key, u32 value type, value. A string is u64 length, bytes (UTF-8). An array is
u32 item type, u64 count, items. All integers are little endian.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator, Mapping
from operator import length_hint
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

MetadataValue: TypeAlias = "str | bool | int | float | list[Any] | npt.NDArray[Any]"

BOOL, STRING, ARRAY = 7, 8, 9
SCALAR_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
UINT32 = 4
MAX_ALIGNMENT = 1 << 24  # bytes; of "general.alignment"

MAX_NAME_BYTES = 65535  # of a key or a tensor name; the GGUF definition allows no longer key
MAX_ENTRIES = 1 << 20  # keys, or tensors, of one file; the largest models have about 10^5
MAX_ITEMS = 1 << 24  # strings and nested arrays of one file: what has to be walked one by one to find the next key
MAX_DEPTH = 4  # arrays inside arrays
MIN_ENTRY_BYTES = 13  # empty key, value type, one byte

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def quoted(name: str) -> str:
    """`name` for a message: control characters escaped, shortened to 80 characters."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


class Source:
    """The bytes of one GGUF file with checked reads; errors (ValueError) name the file and the field."""

    def __init__(self, buffer: mmap.mmap, name: str) -> None:
        self.buffer = buffer
        self.name = name
        self.size = len(buffer)
        self.items_left = MAX_ITEMS

    def error(self, text: str) -> ValueError:
        """Make the error for this file."""
        return ValueError(f"open_gguf: {self.name}: {text}")

    def need(self, pos: int, n_bytes: int, field: str) -> None:
        """Check that the file holds `n_bytes` bytes at `pos`."""
        if n_bytes > self.size - pos:
            raise self.error(f"{field} needs {n_bytes} bytes at byte {pos}, the file has {self.size}")

    def u32(self, pos: int, field: str) -> int:
        """Read the unsigned 32-bit integer at `pos`."""
        self.need(pos, 4, field)
        return int(_U32.unpack_from(self.buffer, pos)[0])

    def u64(self, pos: int, field: str) -> int:
        """Read the unsigned 64-bit integer at `pos`."""
        self.need(pos, 8, field)
        return int(_U64.unpack_from(self.buffer, pos)[0])

    def text(self, pos: int, n_bytes: int, field: str) -> str:
        """Decode the `n_bytes` bytes at `pos`; the caller has checked that they lie in the file."""
        try:
            return self.buffer[pos : pos + n_bytes].decode("utf-8")
        except UnicodeDecodeError as error:
            byte = self.buffer[pos + error.start]
            raise self.error(f"{field} has byte 0x{byte:02x} at {error.start}, expected UTF-8") from None

    def short_string(self, pos: int, field: str) -> tuple[str, int]:
        """Read a key or tensor name at `pos`; also the position after it."""
        length = self.u64(pos, f"{field} length")
        limit = min(MAX_NAME_BYTES, self.size - pos - 8)
        if length > limit:
            raise self.error(f"{field} has {length} bytes, expected at most {limit}")
        return self.text(pos + 8, length, field), pos + 8 + length

    def count(self, pos: int, field: str, min_bytes: int) -> int:
        """Read a number of entries that take at least `min_bytes` each."""
        count = self.u64(pos, field)
        limit = min(MAX_ENTRIES, (self.size - pos - 8) // min_bytes)
        if count > limit:
            raise self.error(f"{field} is {count}, expected at most {limit}")
        return count

    def walk(self, count: int, field: str) -> None:
        """Take `count` items from the file's allowance of items that are walked one by one."""
        if count > self.items_left:
            raise self.error(f"{field} has {count} items, expected at most {self.items_left}")
        self.items_left -= count


class Entry(NamedTuple):
    """Where a value lies: its type, its first byte; for an array also the type and the number of its items."""

    value_type: int
    item_type: int
    start: int
    n_items: int


def _locate(source: Source, pos: int, value_type: int, field: str, depth: int) -> tuple[Entry, int]:
    """Find the end of the value at `pos` and check that it lies in the file; its entry, and the position after it."""
    dtype = SCALAR_DTYPES.get(value_type)
    if dtype is not None:
        source.need(pos, dtype.itemsize, field)
        return Entry(value_type, value_type, pos, 1), pos + dtype.itemsize
    if value_type == STRING:
        length = source.u64(pos, f"{field} length")
        source.need(pos + 8, length, field)
        return Entry(STRING, STRING, pos, 1), pos + 8 + length
    if value_type != ARRAY:
        raise source.error(f"{field} has value type {value_type}, expected 0 to 12")
    if depth == MAX_DEPTH:
        raise source.error(f"{field} has arrays nested {depth + 1} deep, expected at most {MAX_DEPTH}")
    item_type = source.u32(pos, f"{field} item type")
    count = source.u64(pos + 4, f"{field} count")
    entry = Entry(ARRAY, item_type, pos + 12, count)
    dtype = SCALAR_DTYPES.get(item_type)
    if dtype is not None:
        source.need(pos + 12, count * dtype.itemsize, field)
        return entry, pos + 12 + count * dtype.itemsize
    if item_type == STRING:
        return entry, _skip_strings(source, pos + 12, count, field)
    if item_type != ARRAY:
        raise source.error(f"{field} has item type {item_type}, expected 0 to 12")
    source.need(pos + 12, count * 12, field)
    source.walk(count, field)
    pos += 12
    for _ in range(count):
        _, pos = _locate(source, pos, ARRAY, field, depth + 1)
    return entry, pos


def _skip_strings(source: Source, pos: int, count: int, field: str) -> int:
    """Find the position after `count` strings.

    A vocabulary has 10^5 of them and this loop is most of the time that opening a file takes, so it does nothing but
    add up lengths: `unpack_from` refuses a length outside of the buffer, the end is checked once.
    """
    source.need(pos, count * 8, field)
    source.walk(count, field)
    unpack, buffer, indices = _U64.unpack_from, source.buffer, iter(range(count))
    with contextlib.suppress(struct.error, OverflowError):
        for _ in indices:
            pos += unpack(buffer, pos)[0] + 8
        if pos <= source.size:
            return pos
    index = count - 1 - length_hint(indices)
    raise source.error(f"{field} runs past the end of the file, at string {index} of {count}")


def read_entries(source: Source, pos: int, count: int) -> tuple[dict[str, Entry], int]:
    """Locate `count` metadata entries from `pos` on; the position after them. ValueError if not well formed."""
    entries: dict[str, Entry] = {}
    for index in range(count):
        key, pos = source.short_string(pos, f"metadata key {index}")
        field = f"metadata {quoted(key)}"
        if key in entries:
            raise source.error(f"{field} occurs twice, expected once")
        value_type = source.u32(pos, f"{field} value type")
        entries[key], pos = _locate(source, pos + 4, value_type, field, 0)
    return entries, pos


class Metadata(Mapping[str, MetadataValue]):
    """The metadata of a GGUF file: keys known at once, values decoded at first access and kept.

    Scalars are str, bool, int and float; arrays of numbers are NumPy arrays of the file's dtype, arrays of strings
    and nested arrays are lists. ValueError for text that is not UTF-8, and after the file was closed (copy with
    `dict(...)` before).
    """

    def __init__(self, source: Source, entries: dict[str, Entry]) -> None:
        self._source: Source | None = source
        self._entries = entries
        self._values: dict[str, MetadataValue] = {}

    def __getitem__(self, key: str) -> MetadataValue:
        source = self._open()
        if key not in self._values:
            self._values[key] = _decode(source, self._entries[key], f"metadata {quoted(key)}")[0]
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        self._open()
        return iter(self._entries)

    def __len__(self) -> int:
        self._open()
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        self._open()
        return key in self._entries

    def __repr__(self) -> str:
        return f"<Metadata: {'closed' if self._source is None else f'{len(self._entries)} keys'}>"

    def value_type(self, key: str) -> tuple[int, int | None]:
        """Look up the GGUF value type of `key`, and for an array the type of its items."""
        entry = self._entries[key]
        return entry.value_type, entry.item_type if entry.value_type == ARRAY else None

    def _open(self) -> Source:
        if self._source is None:
            raise ValueError("metadata: the file is closed, expected an open one")
        return self._source

    def _close(self) -> None:
        self._source = None
        self._values.clear()


def _decode(source: Source, entry: Entry, field: str) -> tuple[MetadataValue, int]:
    """Decode an entry that `_locate` has checked; its value, and the position after it."""
    value_type, item_type, start, count = entry
    if value_type == STRING:
        strings, end = _decode_strings(source, start, 1, field)
        return strings[0], end
    if value_type != ARRAY:
        dtype = SCALAR_DTYPES[value_type]
        scalar: bool | int | float = _numbers(source, start, 1, dtype)[0].item()
        return scalar, start + dtype.itemsize
    if item_type == STRING:
        return _decode_strings(source, start, count, field)
    if item_type != ARRAY:
        dtype = SCALAR_DTYPES[item_type]
        return _numbers(source, start, count, dtype), start + count * dtype.itemsize
    items: list[MetadataValue] = []
    pos = start
    for _ in range(count):
        inner = Entry(ARRAY, source.u32(pos, field), pos + 12, source.u64(pos + 4, field))
        value, pos = _decode(source, inner, field)
        items.append(value)
    return items, pos


def _numbers(source: Source, start: int, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Copy `count` numbers into an array: aligned, writable, independent of the file. A bool is any byte but 0."""
    if count == 0:
        return np.empty(0, dtype)
    if dtype.kind == "b":
        bools: npt.NDArray[np.bool_] = np.frombuffer(source.buffer, np.uint8, count, start) != 0
        return bools
    numbers: npt.NDArray[Any] = np.frombuffer(source.buffer, dtype, count, start).copy()
    return numbers


def _decode_strings(source: Source, pos: int, count: int, field: str) -> tuple[list[str], int]:
    unpack, buffer, strings = _U64.unpack_from, source.buffer, []
    for index in range(count):
        start = pos + 8
        pos = start + unpack(buffer, pos)[0]
        try:
            strings.append(buffer[start:pos].decode("utf-8"))
        except UnicodeDecodeError:
            source.text(start, pos - start, field if count == 1 else f"{field} string {index}")
    return strings, pos
