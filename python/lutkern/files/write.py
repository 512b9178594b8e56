"""Streaming a plan to the disk: some rows at a time, under temporary names, renamed when everything is complete.

An error or an interruption removes what was written; an existing file stays. What a killed process can leave are hidden
`.NAME.*.part` files beside the target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..gguf import SHARD_NAME
from ..gguf_metadata import SCALAR_DTYPES, Metadata, quoted
from ..gguf_write import ALIGNMENT, ARCHITECTURE, SPLIT_KEYS, add_metadata, target_and_part
from ..ops import pack
from .plan import Plan, PlannedTensor
from .source import Source
from .weighting import Weighting

if TYPE_CHECKING:
    import gguf

# Called after each piece: name of the tensor, bytes read, weights done.
Progress = Callable[[str, int, int], None]

COPY_WEIGHTS = 1 << 22  # of a tensor that is copied, read at once


def target_paths(target: str | os.PathLike[str], n_shards: int) -> list[str]:
    """Name the files of `n_shards` shards as llama.cpp does; of a single one, `target` itself."""
    path = os.path.abspath(os.fspath(target))
    if n_shards == 1:
        return [path]
    stem = path[:-5] if path.endswith(".gguf") else path
    return [f"{stem}-{no + 1:05}-of-{n_shards:05}.gguf" for no in range(n_shards)]


def check_target(target: str | os.PathLike[str], source: Source) -> None:
    """Check that the target is a file name in an existing folder, and none of the source. OSError or ValueError."""
    path, _ = target_and_part("pack_file", os.fspath(target))
    name = os.path.basename(path)
    if SHARD_NAME.fullmatch(name):
        raise ValueError(f"pack_file: the output is named {quoted(name)}, expected one without a shard number")
    _refuse_source(path, source)


def check_free(paths: Sequence[str], source: Source, force: bool) -> None:
    """Check that no file to write is one of the source or, without `force`, exists."""
    for path in paths:
        _refuse_source(path, source)
        if os.path.lexists(path) and not force:
            raise FileExistsError(errno.EEXIST, "pack_file: the file exists, expected a new name or --force", path)


def _refuse_source(path: str, source: Source) -> None:
    for used in source.paths:
        if os.path.exists(path) and os.path.samefile(path, used):
            raise ValueError(f"pack_file: {quoted(path)} is the input, expected another file for the output")


def check_space(paths: Sequence[str], plan: Plan) -> None:
    """Check that the disk has room for the tensors. OSError (ENOSPC) if it has not."""
    folder = os.path.dirname(paths[0])
    needed, free = sum(tensor.nbytes for tensor in plan.tensors), shutil.disk_usage(folder).free
    if needed > free:
        text = f"pack_file: the disk has {free} bytes left, the tensors need {needed}"
        raise OSError(errno.ENOSPC, text, folder)


def write_plan(
    source: Source,
    plan: Plan,
    paths: Sequence[str],
    weighting: Weighting,
    *,
    effort: str,
    threads: int | None,
    progress: Progress,
) -> list[str]:
    """Write the files of a plan, one for each shard; notes for the user.

    Raises
    ------
    ValueError
        A weight is not finite or too large for its format; the text names the tensor.
    OSError
        A file cannot be read or written.
    """
    metadata, notes = result_metadata(source, plan, weighting)
    with _parts(paths) as parts:
        for no, (shard, part) in enumerate(zip(plan.shards, parts, strict=True)):
            split = (no, len(parts), len(plan.tensors)) if len(parts) > 1 else None
            with ExitStack() as stack:
                with _writing(paths[no]):
                    file, alignment = _started(stack, part, shard, metadata, split)
                for tensor in shard:
                    for data, read, weights in _pieces(source, tensor, weighting, effort, threads):
                        with _writing(paths[no]):
                            file.write(np.ascontiguousarray(data).data)
                        progress(tensor.name, read, weights)
                    with _writing(paths[no]):
                        file.write(bytes(-tensor.nbytes % alignment))
                with _writing(paths[no]):
                    file.flush()
                    os.fsync(file.fileno())
    return notes


@contextmanager
def _parts(paths: Sequence[str]) -> Iterator[list[str]]:
    """Give temporary names beside `paths`; rename them at the end, or remove them and what was renamed already."""
    parts = [target_and_part("pack_file", path)[1] for path in paths]
    left = list(parts)
    try:
        yield parts
        # The first shard last: it is the one that a program opens.
        for part, path in reversed(list(zip(parts, paths, strict=True))):
            os.replace(part, path)
            left[left.index(part)] = path
    except BaseException:
        for path in left:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        raise


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """Give an error of writing the name of the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"pack_file: cannot write: {error.strerror}", path) from error


def _started(
    stack: ExitStack,
    part: str,
    shard: Sequence[PlannedTensor],
    metadata: Mapping[str, Any],
    split: tuple[int, int, int] | None,
) -> tuple[IO[bytes], int]:
    """Write everything before the tensor data; the file, which `stack` closes, and its alignment."""
    import gguf

    own = metadata if split is None or split[0] == 0 else {k: metadata[k] for k in (ALIGNMENT,) if k in metadata}
    writer = gguf.GGUFWriter(part, metadata[ARCHITECTURE])
    stack.callback(_close, writer)
    for key in own:
        if key != ARCHITECTURE:
            add_metadata(writer, key, own)
    if split is not None:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        writer.add_int32("split.tensors.count", split[2])
    for tensor in shard:
        _add_info(writer, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    return file, writer.data_alignment


def _close(writer: gguf.GGUFWriter) -> None:
    # What could not be written before cannot be written now either; the first error is the one to show.
    with contextlib.suppress(OSError):
        writer.close()


def _add_info(writer: gguf.GGUFWriter, tensor: PlannedTensor) -> None:
    import gguf

    ggml_type = tensor.source.ggml_type if tensor.format is None else tensor.format.ggml_type
    try:
        raw = gguf.GGMLQuantizationType(ggml_type)
    except ValueError:
        field = f"pack_file: tensor {quoted(tensor.name)}"
        raise ValueError(
            f"{field} is {tensor.type_name}, expected a type that the installed gguf package knows"
        ) from None
    writer.add_tensor_info(tensor.name, tensor.source.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=raw)


def _pieces(
    source: Source, tensor: PlannedTensor, weighting: Weighting, effort: str, threads: int | None
) -> Iterator[tuple[npt.NDArray[np.uint8], int, int]]:
    """Make the bytes of a tensor piece by piece: the bytes, how many were read for them, how many weights they hold."""
    stored = tensor.source
    if tensor.format is None:
        for _, start, stop in stored.chunks(COPY_WEIGHTS):
            yield source.read(stored, start, stop), (stop - start) * stored.row_bytes, (stop - start) * stored.cols
        return
    importance = None if tensor.format.is_float else weighting.of(stored)
    for expert, start, stop in stored.chunks():
        columns = None if importance is None else importance[expert]
        w = source.floats(stored, start, stop)
        try:
            packed = pack(w, tensor.format, importance=columns, effort=effort, layout="blocks", threads=threads)
        except ValueError as error:
            raise ValueError(f"pack_file: tensor {quoted(tensor.name)}: {error}") from error
        yield packed.blocks(), (stop - start) * stored.row_bytes, w.size


def result_metadata(source: Source, plan: Plan, weighting: Weighting) -> tuple[dict[str, Any], list[str]]:
    """Take over the metadata of the source, with the type of the new file; notes about what cannot be written."""
    import gguf

    metadata: dict[str, Any] = {}
    left_out = []
    for key in source.metadata:
        if key in SPLIT_KEYS:
            continue
        value = typed_value(source.metadata, key)
        if isinstance(value, (list, np.ndarray)) and len(value) == 0:
            left_out.append(key)
        else:
            metadata[key] = value
    file_type = _file_type(plan)
    if file_type is not None:
        metadata["general.file_type"] = np.uint32(file_type)
    metadata["general.quantization_version"] = np.uint32(gguf.GGML_QUANT_VERSION)
    if weighting.name is not None:
        metadata["quantize.imatrix.file"] = weighting.name
    return metadata, [f"metadata {key}: the empty list is left out" for key in left_out]


def typed_value(metadata: Mapping[str, Any], key: str) -> Any:
    """Return a value that `write_gguf` writes in the type it has in its file."""
    value = metadata[key]
    if isinstance(metadata, Metadata):
        dtype = SCALAR_DTYPES.get(metadata.value_type(key)[0])
        return value if dtype is None else dtype.type(value)
    return value


def _file_type(plan: Plan) -> int | None:
    """Find GGUF's number for a file of which most weights have the plan's most frequent format; None if it has none."""
    import gguf

    name = next(iter(plan.formats()), "f32").upper()
    types = gguf.LlamaFileType.__members__
    names = (f"ALL_{name}", f"MOSTLY_{name}", f"MOSTLY_{name}_M", f"MOSTLY_{name}_S", f"MOSTLY_{name}_MOE")
    return next((int(types[candidate]) for candidate in names if candidate in types), None)
