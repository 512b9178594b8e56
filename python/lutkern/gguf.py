"""Reading GGUF files: memory-mapped, checked against their size, split files joined. Writing is in `gguf_write`.

Errors: OSError when a file or a shard is missing or cannot be read, ValueError when its content is not a well-formed
GGUF file (the message names the tensor or the key, and the field). Shapes here are in NumPy order, the reverse of the
file's order.

The operating system keeps the promise of a mapping only while the file keeps its length: a file that is truncated or
rewritten in place while it is open can stop the process (SIGBUS). Replacing it by renaming another file over it is
safe.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, final

import numpy as np
import numpy.typing as npt

from .formats import Format
from .gguf_metadata import Metadata, Source, quoted
from .gguf_tensors import Shard, TensorInfo, open_shard
from .gguf_write import write_gguf
from .ops import dequantize
from .tensor import PackedTensor

__all__ = ["GgufFile", "Metadata", "TensorInfo", "open_gguf", "write_gguf"]

SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<no>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


def open_gguf(path: str | bytes | os.PathLike[str]) -> GgufFile:
    """Open a GGUF file, or all shards of a split one given any of them, for reading.

    The files are mapped into memory: while they or tensors from them are in use, replace them only by renaming. A
    program that reads a mapped file which another one cut short is ended by the system (SIGBUS).

    Parameters
    ----------
    path
        A file of version 2 or 3, little endian. The other shards are found by their names beside it.

    Returns
    -------
    GgufFile
        A mapping name -> PackedTensor and a context manager.

    Raises
    ------
    OSError
        The file or a shard is missing or cannot be read.
    ValueError
        The content is not well formed; nothing of the file stays open.
    """
    return GgufFile(path)


@final
class GgufFile(Mapping[str, PackedTensor]):
    """An open GGUF file: name -> PackedTensor, without a copy. Use `open_gguf` to make one.

    `f[name]` is a PackedTensor of shape (rows, cols) or (experts, rows, cols) over the mapped bytes, layout `blocks`.
    A tensor of one dimension is one row: (1, n). Leading dimensions of size one beyond three are dropped. ValueError
    for more than three dimensions and for a type without a format; KeyError for an unknown name. `f.array(name)`
    gives float32 in the shape of the file. `f.tensors` lists every tensor, `f.metadata` is the metadata of the first
    shard. After `close()` tensors that were taken out stay valid, the file object itself raises ValueError.
    """

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        shards: list[Shard] = []
        try:
            self.shard_paths = _open_all(self.path, shards)
            self._tensors = _join(shards)
        except BaseException:
            for shard in shards:
                shard.close()
            raise
        self._shards: list[Shard] | None = shards

    @property
    def metadata(self) -> Metadata:
        """The metadata of the (first) file; values are decoded at first access."""
        return self._opened()[0].metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What the file says about each tensor, by name, in the order of the file."""
        self._opened()
        return MappingProxyType(self._tensors)

    @property
    def version(self) -> int:
        """Version of the (first) file, 2 or 3."""
        return self._opened()[0].version

    @property
    def alignment(self) -> int:
        """Alignment in bytes of the tensor data in the (first) file."""
        return self._opened()[0].alignment

    def __getitem__(self, name: str) -> PackedTensor:
        info, fmt, blocks = self._blocks(name)
        shape = info.shape if len(info.shape) > 1 else (1, *info.shape)
        while len(shape) > 3 and shape[0] == 1:
            shape = shape[1:]
        if len(shape) > 3:
            text = f"tensor {quoted(name)} has shape {info.shape}, expected at most 3 dimensions"
            raise self._source(info).error(text)
        return PackedTensor.from_blocks(blocks, fmt, shape)

    def array(self, name: str) -> npt.NDArray[np.float32]:
        """float32 array of the tensor in its natural NumPy shape; ValueError for a type without a format.

        An f32 tensor is a read-only view of the file, every other format is dequantised into a new array.
        """
        info, fmt, blocks = self._blocks(name)
        if fmt.name == "f32":
            return blocks.view("<f4").reshape(info.shape)
        cols = info.shape[-1]
        packed = PackedTensor.from_blocks(blocks, fmt, (info.n_weights // cols, cols))
        weights: npt.NDArray[np.float32] = dequantize(packed)
        return weights.reshape(info.shape)

    def close(self) -> None:
        """Release the file. Tensors and arrays taken out of it keep what they need of the mapping."""
        if self._shards is not None:
            for shard in self._shards:
                shard.close()
        self._shards = None

    def __enter__(self) -> GgufFile:
        self._opened()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        self._opened()
        return iter(self._tensors)

    def __len__(self) -> int:
        self._opened()
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        self._opened()
        return name in self._tensors

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        if self._shards is None:
            return f"<GgufFile {self.path!r}: closed>"
        n_bytes = sum(info.nbytes for info in self._tensors.values())
        shards = f", {len(self._shards)} shards" if len(self._shards) > 1 else ""
        return f"<GgufFile {self.path!r}: {len(self._tensors)} tensors, {n_bytes} bytes{shards}>"

    def _opened(self) -> list[Shard]:
        if self._shards is None:
            raise ValueError(f"open_gguf: {os.path.basename(self.path)}: the file is closed, expected an open one")
        return self._shards

    def _source(self, info: TensorInfo) -> Source:
        return self._opened()[info.shard].source

    def _blocks(self, name: str) -> tuple[TensorInfo, Format, npt.NDArray[np.uint8]]:
        """Look up a tensor: its info, its format, its bytes as a read-only view of the mapping."""
        self._opened()
        info = self._tensors[name]
        source = self._source(info)
        if info.format is None:
            type_name = f"{info.type_name} (ggml type {info.ggml_type})"
            raise source.error(f"tensor {quoted(name)} is {type_name}, expected a format of lutkern")
        return info, info.format, np.frombuffer(source.buffer, np.uint8, info.nbytes, info.offset)


def _split_value(shard: Shard, key: str, default: int) -> int:
    value: Any = shard.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise shard.source.error(f"{key} is not an integer, expected one")
    return value


def _text_value(shard: Shard, key: str) -> str | None:
    value: Any = shard.metadata.get(key)
    return value if isinstance(value, str) else None


def _open_all(path: str, shards: list[Shard]) -> tuple[str, ...]:
    """Open the file, and the other shards if it is split, into `shards` (in order); their paths."""
    opened = open_shard(path, 0, shards)
    directory, name = os.path.split(path)
    match = SHARD_NAME.fullmatch(name)
    count = _split_value(opened, "split.count", 1) or 1
    if match and int(match["count"]) != count:
        raise opened.source.error(f"split.count is {count}, expected {int(match['count'])} as the name says")
    if count == 1:
        return (path,)
    own_no = _split_value(opened, "split.no", 0)
    if not match:
        expected = f"NAME-{own_no + 1:05}-of-{count:05}.gguf"
        raise opened.source.error(f"is shard {own_no + 1} of {count}, expected a name like {expected}")
    paths = [os.path.join(directory, f"{match['stem']}-{no + 1:05}-of-{count:05}.gguf") for no in range(count)]
    shards.pop().close()
    for no, shard_path in enumerate(paths):
        try:
            shard = open_shard(shard_path, no, shards)
        except FileNotFoundError:
            text = f"open_gguf: shard {no + 1} of {count} is missing"
            raise FileNotFoundError(errno.ENOENT, text, shard_path) from None
        for key, value in (("split.count", count), ("split.no", no)):
            if _split_value(shard, key, -1) != value:
                raise shard.source.error(f"{key} is {_split_value(shard, key, -1)}, expected {value} as the name says")
    return tuple(paths)


def _join(shards: list[Shard]) -> dict[str, TensorInfo]:
    """All tensors of the shards; checks that the shards belong together."""
    first = shards[0]
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for key in ("general.architecture", "general.name"):
            ours, theirs = (_text_value(s, key) for s in (first, shard))
            if theirs is not None and theirs != ours:
                other = "nothing" if ours is None else quoted(ours)
                raise shard.source.error(f"{key} is {quoted(theirs)}, expected {other} as in {first.source.name}")
        for name, info in shard.tensors.items():
            if name in tensors:
                other = shards[tensors[name].shard].source.name
                raise shard.source.error(f"tensor {quoted(name)} is also in {other}, expected it once")
            tensors[name] = info
    for shard in shards if len(shards) > 1 else []:
        total = _split_value(shard, "split.tensors.count", -1)
        if total != len(tensors):
            raise shard.source.error(f"split.tensors.count is {total}, the shards have {len(tensors)} tensors")
    return tensors
