"""The two kinds of importance files ("imatrix"), as llama.cpp writes them. Both are checked before they are used.

GGUF: the metadata "general.type" is "imatrix", "imatrix.datasets" are texts, "imatrix.chunk_count" and
"imatrix.chunk_size" are integers. A weight has two f32 tensors: `<name>.in_sum2` (experts, cols), the sums of squares,
and `<name>.counts` (experts, 1), the tokens.

Legacy (`.dat`), little endian: i32 number of entries; per entry i32 name length, name, i32 calls, i32 number of
values, f32 values: mean squares times calls, all experts in a row. Then, or not: i32 chunks, i32 length, name of the
dataset. A call is a chunk of tokens, and how long that is the file does not say.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .gguf import GgufFile, open_gguf
from .gguf_metadata import MAX_NAME_BYTES, quoted
from .gguf_write import target_and_part, write_gguf
from .importance_entry import Entry

KINDS = ("gguf", "dat")
MAX_INT32 = 2**31 - 1
MIN_ENTRY_BYTES = 17  # of a legacy file: three integers, a name of one byte, one value

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass
class Content:
    """What a file holds; `chunk_size` is the number of tokens in a chunk."""

    chunk_size: int
    entries: dict[str, Entry] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    chunk_count: int = 0


def read_file(path: str, chunk_size: int) -> Content:
    """Read a file of either kind; `chunk_size` is for files that do not tell it. Raises OSError and ValueError."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe could wait forever
        code = errno.EISDIR if os.path.isdir(path) else errno.EINVAL
        raise OSError(code, "Importance.read: not a regular file, expected an importance file", path)
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            file.seek(0)
            return _DatReader(file, os.path.basename(path)).content(chunk_size)
    with open_gguf(path) as gguf_file:
        return _read_gguf(gguf_file, os.path.basename(path), chunk_size)


def write_file(path: str, content: Content, kind: str) -> None:
    """Write a file of one of KINDS; an existing one is replaced when the new one is complete."""
    if kind == "gguf":
        _write_gguf(path, content)
    else:
        _write_dat(path, content)


def _read_gguf(file: GgufFile, file_name: str, chunk_size: int) -> Content:
    def error(text: str) -> ValueError:
        return ValueError(f"Importance.read: {file_name}: {text}")

    def integer(key: str, default: int, low: int) -> int:
        value = file.metadata.get(key, default)
        if type(value) is not int or not low <= value <= MAX_INT32:
            came = value if isinstance(value, (int, float)) else type(value).__name__
            raise error(f"{key} is {came}, expected an integer from {low} to {MAX_INT32}")
        return value

    general_type = file.metadata.get("general.type")
    if general_type != "imatrix":
        came = quoted(general_type) if isinstance(general_type, str) else type(general_type).__name__
        raise error(f"general.type is {came}, expected 'imatrix'")
    datasets = file.metadata.get(_DATASETS, [])
    if not isinstance(datasets, list) or not all(isinstance(text, str) for text in datasets):
        raise error(f"{_DATASETS} is not an array of text, expected one")
    content = Content(integer(_CHUNK_SIZE, chunk_size, 1), chunk_count=integer(_CHUNK_COUNT, 0, 0))
    content.datasets = [text for text in datasets if text]
    for tensor in file.tensors:
        ending = next((end for end in (_SUMS, _COUNTS) if tensor.endswith(end)), None)
        if ending is None or tensor.removesuffix(ending) in content.entries:
            continue
        name = tensor.removesuffix(ending)
        if not name:
            raise error(f"tensor {quoted(tensor)} names no weight, expected text before {ending}")
        sums, counts = (_gguf_numbers(file, file_name, name + suffix) for suffix in (_SUMS, _COUNTS))
        content.entries[name] = _gguf_entry(sums, counts, f"Importance.read: {file_name}: {quoted(name)}")
    if not content.entries:
        raise error(f"the file has no tensor that ends in {_SUMS}, expected at least one")
    return content


def _gguf_numbers(file: GgufFile, file_name: str, tensor: str) -> npt.NDArray[np.float32]:
    info = file.tensors.get(tensor)
    if info is None or info.type_name != "f32":
        came = "missing" if info is None else info.type_name
        raise ValueError(f"Importance.read: {file_name}: tensor {quoted(tensor)} is {came}, expected f32")
    return file.array(tensor)


def _gguf_entry(sums: npt.NDArray[np.float32], counts: npt.NDArray[np.float32], where: str) -> Entry:
    rows = sums.reshape(-1, sums.shape[-1]).copy()  # a copy: the file may change
    if counts.size not in (1, len(rows)):
        raise ValueError(f"{where} has {counts.size} counts, expected {len(rows)} as {_SUMS} has rows")
    wrong = counts[~((counts >= 0) & (counts <= 2**53))]
    if wrong.size:
        raise ValueError(f"{where} has a count of {wrong[0]:g}, expected 0 to 2^53")
    whole = np.broadcast_to(np.rint(counts.reshape(-1)).astype(np.int64), (len(rows),)).copy()
    return Entry(rows, whole, routed=len(rows) > 1, settled=True)


def _float32(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = np.asarray(values, np.float32)
    if np.count_nonzero(np.isinf(narrow)) > np.count_nonzero(np.isinf(values)):
        largest = np.max(values[np.isfinite(values)])
        raise ValueError(f"Importance.write: {quoted(name)} reaches {largest:.3g}, expected values that fit float32")
    return narrow


def _write_gguf(path: str, content: Content) -> None:
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, entry in content.entries.items():
        # One row is written with one dimension, as ggml does.
        one = len(entry.counts) == 1
        tensors[name + _SUMS] = _float32(entry.sums[0] if one else entry.sums, name)
        tensors[name + _COUNTS] = entry.counts.astype(np.float32).reshape((1,) if one else (-1, 1))
    metadata = {
        "general.architecture": "imatrix",  # the gguf package's writer demands one
        "general.type": "imatrix",
        _DATASETS: content.datasets or [""],  # llama.cpp refuses a file without the key, the writer an empty array
        _CHUNK_COUNT: min(content.chunk_count, MAX_INT32),
        _CHUNK_SIZE: content.chunk_size,
    }
    write_gguf(path, tensors, metadata)


class _DatReader:
    """A legacy file with checked reads; errors (ValueError) name the file and the field."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file = file
        self.name = name
        self.left = os.fstat(file.fileno()).st_size

    def error(self, text: str) -> ValueError:
        return ValueError(f"Importance.read: {self.name}: {text}")

    def take(self, n_bytes: int, field: str) -> bytes:
        data = self.file.read(n_bytes) if n_bytes <= self.left else b""
        if len(data) != n_bytes:
            raise self.error(f"{field} needs {n_bytes} bytes, the file has {self.left} left")
        self.left -= n_bytes
        return data

    def integer(self, field: str, low: int, high: int) -> int:
        value = int(struct.unpack("<i", self.take(4, field))[0])
        if not low <= value <= high:
            raise self.error(f"{field} is {value}, expected {low} to {high}")
        return value

    def content(self, chunk_size: int) -> Content:
        content = Content(chunk_size)
        most = max(1, (self.left - 4) // MIN_ENTRY_BYTES)
        count = self.integer("not a GGUF file, and the number of entries of a legacy file", 1, most)
        for index in range(count):
            name, entry = self.entry(f"entry {index + 1} of {count}:", chunk_size)
            if name in content.entries:
                raise self.error(f"entry {index + 1} of {count}: {quoted(name)} occurs twice, expected once")
            content.entries[name] = entry
        if self.left:
            content.chunk_count = self.integer("number of chunks", 0, MAX_INT32)
        if self.left:
            length = self.integer("length of the dataset's name", 0, max(0, self.left - 4))
            # A path in the encoding of whoever wrote it.
            dataset = self.take(length, "name of the dataset").decode("utf-8", "replace")
            content.datasets = [dataset] if dataset else []
        if self.left:
            raise self.error(f"{self.left} bytes follow the name of the dataset, expected none")
        return content

    def entry(self, field: str, chunk_size: int) -> tuple[str, Entry]:
        length = self.integer(f"{field} length of the name", 1, MAX_NAME_BYTES)
        try:
            name = self.take(length, f"{field} name").decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{field} name has an invalid byte at {error.start}, expected UTF-8") from None
        field = f"{field} {quoted(name)}:"
        # Readers of this kind take the values of an entry with no calls as they are.
        calls = self.integer(f"{field} calls", 0, MAX_INT32) or 1
        n_values = self.integer(f"{field} number of values", 1, MAX_INT32)
        values = np.frombuffer(self.take(4 * n_values, f"{field} values"), "<f4")
        with np.errstate(over="ignore", invalid="ignore"):
            sums = values.reshape(1, -1) * np.float32(chunk_size)
        return name, Entry(sums, np.array([calls * chunk_size]), routed=False, settled=True)


def _dat_bytes(content: Content) -> list[bytes]:
    chunks = []
    for name, entry in content.entries.items():
        n_tokens = int(entry.counts.max())
        if not n_tokens:
            continue
        calls = min(-(-n_tokens // content.chunk_size), MAX_INT32)
        # Experts without data are ones, which other readers take for no preference; zeros would stop them.
        mean = np.where(entry.counts[:, None] > 0, entry.mean(), 1)
        values = _float32(mean * calls, name).astype("<f4")
        encoded = name.encode("utf-8")
        chunks.append(struct.pack("<i", len(encoded)) + encoded + struct.pack("<ii", calls, values.size))
        chunks.append(values.tobytes())
    if not chunks:
        raise ValueError("Importance.write: no weight has seen a token, expected at least one")
    dataset = content.datasets[-1].encode("utf-8") if content.datasets else b""
    trailer = struct.pack("<ii", min(content.chunk_count, MAX_INT32), len(dataset)) + dataset
    return [struct.pack("<i", len(chunks) // 2), *chunks, trailer]


def _write_dat(path: str, content: Content) -> None:
    chunks = _dat_bytes(content)
    target, part = target_and_part("Importance.write", path)
    try:
        with open(part, "xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        if os.path.exists(part):
            os.unlink(part)
        raise
