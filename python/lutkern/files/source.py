"""Where the weights of a model come from: tensors of a GGUF file or of a safetensors folder, read some rows at a time.

Files are read, not mapped: pages of a mapping count as memory of the process, and a file that is cut short while it is
read gives an error instead of a signal.
"""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ..formats import Format
from ..gguf import open_gguf
from ..gguf_metadata import quoted
from ..gguf_write import ARCHITECTURE
from ..ops import dequantize
from ..tensor import PackedTensor

CHUNK_WEIGHTS = 1 << 20  # of a tensor that are read at once; a row is never cut


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of the model under its GGUF name.

    `parts` holds (path, offset) of equal pieces that lie one after another in the tensor: one, or one for each expert.
    `format` is None for a type that lutkern has no format for. `paired_heads` is not 0 for query and key matrices whose
    heads hold the two halves of the rotary pairs one after the other; reading puts the pairs side by side.
    """

    name: str
    type_name: str
    format: Format | None
    ggml_type: int
    shape: tuple[int, ...]
    nbytes: int
    parts: tuple[tuple[str, int], ...]
    paired_heads: int = 0

    @property
    def n_weights(self) -> int:
        """Number of weights: the product of the shape."""
        return math.prod(self.shape)

    @property
    def cols(self) -> int:
        """Weights of a row."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows of all experts."""
        return self.n_weights // self.cols

    @property
    def expert_rows(self) -> int:
        """Rows of one expert; of a tensor without experts all rows."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.nbytes // self.n_rows

    def chunks(self, weights: int = CHUNK_WEIGHTS) -> Iterator[tuple[int, int, int]]:
        """Cut the rows into pieces of about `weights` weights: (expert, first row, end), counted over all experts."""
        step = max(1, weights // self.cols)
        for expert in range(self.n_rows // self.expert_rows):
            end = (expert + 1) * self.expert_rows
            for start in range(expert * self.expert_rows, end, step):
                yield expert, start, min(start + step, end)


class Source:
    """An open model: `tensors` by name, GGUF `metadata`, the `paths` that are read, `notes` for the user.

    A context manager; nothing can be read after its end.
    """

    def __init__(
        self,
        tensors: Mapping[str, SourceTensor],
        metadata: Mapping[str, object],
        paths: tuple[str, ...],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.tensors = tensors
        self.metadata = metadata
        self.paths = paths
        self.notes = notes
        self.kept = ExitStack()
        self._files: dict[str, io.FileIO] = {}

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.kept.close()

    def read(self, tensor: SourceTensor, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Read rows of one expert as they are stored: uint8 (stop - start, row_bytes). OSError if the file is cut."""
        if not tensor.paired_heads:
            return self._read(tensor, start, stop)
        rows = tensor.expert_rows // tensor.paired_heads
        first, end = start // rows * rows, -(-stop // rows) * rows
        heads = self._read(tensor, first, end).reshape(-1, 2, rows // 2, tensor.row_bytes)
        return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(end - first, -1)[start - first : stop - first])

    def floats(self, tensor: SourceTensor, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Read rows of one expert as numbers: float32 (stop - start, cols). The tensor has a format."""
        data = self.read(tensor, start, stop)
        if tensor.format is None:
            raise ValueError(
                f"pack_file: tensor {quoted(tensor.name)} is {tensor.type_name}, expected a format of lutkern"
            )
        if tensor.format.name == "f32":
            return data.view("<f4")
        weights: npt.NDArray[np.float32] = dequantize(
            PackedTensor.from_blocks(data, tensor.format, (stop - start, tensor.cols))
        )
        return weights

    def _read(self, tensor: SourceTensor, start: int, stop: int) -> npt.NDArray[np.uint8]:
        part, row = divmod(start, tensor.n_rows // len(tensor.parts))
        path, offset = tensor.parts[part]
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = self.kept.enter_context(open(path, "rb", buffering=0))  # noqa: SIM115
        data = np.empty((stop - start, tensor.row_bytes), np.uint8)
        file.seek(offset + row * tensor.row_bytes)
        flat, filled = data.reshape(-1).data, 0
        while filled < data.nbytes:
            count = file.readinto(flat[filled:])
            if not count:
                text = f"pack_file: the file ends inside tensor {quoted(tensor.name)}, expected it not to change"
                raise OSError(errno.EIO, text, path)
            filled += count
        return data


def open_gguf_source(path: str | os.PathLike[str]) -> Source:
    """Open a GGUF file, or all shards of a split one. Raises as `lutkern.open_gguf` does."""
    with ExitStack() as stack:
        file = stack.enter_context(open_gguf(path))
        architecture = file.metadata.get(ARCHITECTURE)
        if not isinstance(architecture, str) or not architecture:
            name = os.path.basename(file.path)
            raise ValueError(f"pack_file: {name}: {ARCHITECTURE} is {architecture!r}, expected a non-empty text")
        tensors = {
            info.name: SourceTensor(
                name=info.name,
                type_name=info.type_name,
                format=info.format,
                ggml_type=info.ggml_type,
                shape=info.shape,
                nbytes=info.nbytes,
                parts=((file.shard_paths[info.shard], info.offset),),
            )
            for info in file.tensors.values()
        }
        source = Source(tensors, file.metadata, file.shard_paths)
        source.kept.enter_context(stack.pop_all())
        return source
