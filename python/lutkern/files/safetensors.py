"""A folder of safetensors files as a source: headers checked, names mapped, experts stacked.

A safetensors file is: u64 length of the header, the header (JSON: name -> dtype, shape, data_offsets from the end of
the header), the data. It is untrusted: every offset, size and overlap is checked against the file before use. The
reader is our own because the `safetensors` package cannot give rows of bfloat16 without torch.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..formats import Format, find_format
from ..gguf_metadata import MAX_ENTRIES, quoted
from .config import model_metadata, read_config
from .json_file import MAX_JSON_BYTES, parse_json, read_json
from .names import NameMap, Target, built_in_map
from .source import Source, SourceTensor

DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
INDEX_NAME = "model.safetensors.index.json"
MAX_DIMS = 4


class Stored(NamedTuple):
    """A tensor of one file: `offset` from the start of the file."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def open_safetensors(folder: str | os.PathLike[str], name_map: str | os.PathLike[str] | None = None) -> Source:
    """Open a folder of safetensors files with its `config.json`.

    Parameters
    ----------
    folder
        Holds `*.safetensors` (those that `model.safetensors.index.json` names, if it is there) and `config.json`.
    name_map
        A JSON file of [regex, GGUF name] pairs, see `NameMap`; by default the built-in one for llama, mixtral, qwen2
        and qwen3 models.

    Raises
    ------
    OSError
        A file is missing or cannot be read.
    ValueError
        A file is not well formed, a tensor has another type than F32, F16 or BF16, a name has no GGUF name, or the
        model is none that the built-in map knows.
    """
    base = Path(folder)
    config = read_config(base / "config.json")
    metadata, notes = model_metadata(config, base.resolve().name, known_only=name_map is None)
    names = NameMap.read(name_map) if name_map is not None else built_in_map(metadata)
    paths = _model_files(base)
    stored: dict[str, Stored] = {}
    for path in paths:
        for name, tensor in read_header(path).items():
            if name in stored:
                raise _error(path, f"tensor {quoted(name)} is also in {os.path.basename(stored[name].path)}")
            stored[name] = tensor
    tensors = _mapped(stored, names)
    return Source(tensors, metadata, tuple(map(str, paths)), notes)


def _error(path: str | Path, text: str) -> ValueError:
    return ValueError(f"pack_file: {os.path.basename(path)}: {text}")


def _model_files(folder: Path) -> list[Path]:
    index = folder / INDEX_NAME
    if index.is_file():
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        names = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not names or not all(isinstance(name, str) and name == os.path.basename(name) for name in names):
            raise _error(index, "weight_map does not hold file names, expected tensor name -> file of the same folder")
        paths = [folder / name for name in sorted(set(names))]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(errno.ENOENT, "pack_file: no *.safetensors file, expected at least one", str(folder))
    return paths


def read_header(path: Path) -> dict[str, Stored]:
    """Read and check the header of a safetensors file: its tensors by name. Raises as `open_safetensors` does."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "pack_file: not a regular file, expected a safetensors file", str(path))
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
        limit = min(MAX_JSON_BYTES, size - 8)
        if not 0 <= length <= limit:
            found = "the file has no header" if length < 0 else f"the header has {length} bytes"
            raise _error(path, f"{found}, expected at most {max(limit, 0)}")
        header = parse_json(path, file.read(length))
    if not isinstance(header, dict):
        raise _error(path, f"the header is {type(header).__name__}, expected an object")
    if len(header) > MAX_ENTRIES:
        raise _error(path, f"the header has {len(header)} tensors, expected at most {MAX_ENTRIES}")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = {name: _check_entry(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    _check_overlap(path, tensors)
    return tensors


def _check_entry(path: Path, name: str, entry: Any, data_start: int, size: int) -> Stored:
    field = f"tensor {quoted(name)}:"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _error(path, f"{field} has no dtype, shape and data_offsets, expected all three")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _error(path, f"{field} dtype is {quoted(str(dtype))}, expected F32, F16 or BF16")
    if not _whole_numbers(shape) or not len(shape) <= MAX_DIMS or 0 in shape:
        raise _error(path, f"{field} shape is {quoted(str(shape))}, expected at most {MAX_DIMS} sizes of at least 1")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise _error(path, f"{field} data_offsets are {quoted(str(offsets))}, expected two whole numbers")
    begin, end = offsets
    n_bytes = math.prod(shape) * find_format(DTYPES[dtype]).block_bytes
    if end - begin != n_bytes:
        raise _error(path, f"{field} data_offsets span {end - begin} bytes, {dtype} of shape {shape} needs {n_bytes}")
    if end > size - data_start:
        raise _error(path, f"{field} ends at byte {end} of the data, the file has {size - data_start}")
    return Stored(str(path), dtype, tuple(shape) or (1,), data_start + begin, n_bytes)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_overlap(path: Path, tensors: Mapping[str, Stored]) -> None:
    before, end = "", 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end:
            raise _error(path, f"tensor {quoted(name)}: data lies inside tensor {quoted(before)}, expected no overlap")
        before, end = name, tensor.offset + tensor.nbytes


def _mapped(stored: Mapping[str, Stored], names: NameMap) -> dict[str, SourceTensor]:
    """Give the tensors their GGUF names; experts of one name become one tensor."""
    groups: dict[str, dict[int | None, tuple[str, Target]]] = {}
    for name in stored:
        target = names.target(name)
        if target is None:
            continue
        group = groups.setdefault(target.name, {})
        if target.expert in group or (group and (target.expert is None or None in group)):
            other = next(iter(group.values()))[0] if target.expert not in group else group[target.expert][0]
            text = f"tensors {quoted(other)} and {quoted(name)} both become {quoted(target.name)}"
            raise ValueError(f"pack_file: {text}, expected one source for each name")
        group[target.expert] = (name, target)
    return {name: _joined(name, group, stored) for name, group in groups.items()}


def _joined(name: str, group: Mapping[int | None, tuple[str, Target]], stored: Mapping[str, Stored]) -> SourceTensor:
    stacked = None not in group
    experts = sorted(group.items(), key=lambda item: item[0] or 0)
    if stacked and [expert for expert, _ in experts] != list(range(len(experts))):
        missing = next(i for i, (expert, _) in enumerate(experts) if expert != i)
        raise ValueError(
            f"pack_file: tensor {quoted(name)}: expert {missing} is missing, expected 0 to {experts[-1][0]}"
        )
    parts = [(source, stored[source]) for _, (source, _) in experts]
    first_name, first = parts[0]
    for source, part in parts:
        if (part.dtype, part.shape) != (first.dtype, first.shape):
            text = f"tensor {quoted(source)} is {part.dtype} {part.shape}, expected {first.dtype} {first.shape}"
            raise ValueError(f"pack_file: {text} as {quoted(first_name)}")
    heads = experts[0][1][1].paired_heads
    rows = first.shape[0]
    if heads and rows % (2 * heads):
        raise ValueError(f"pack_file: tensor {quoted(first_name)} has {rows} rows, expected a multiple of {2 * heads}")
    fmt: Format = find_format(DTYPES[first.dtype])
    return SourceTensor(
        name=name,
        type_name=fmt.name,
        format=fmt,
        ggml_type=fmt.ggml_type,
        shape=(len(parts), *first.shape) if stacked else first.shape,
        nbytes=sum(part.nbytes for _, part in parts),
        parts=tuple((part.path, part.offset) for _, part in parts),
        paired_heads=heads,
    )
