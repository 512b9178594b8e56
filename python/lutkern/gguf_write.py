"""Writing GGUF files through the `gguf` package's writer (extra `[gguf]`), by a temporary file beside the target.

Everything is checked before the first byte is written, the file is renamed to its name when it is complete and on the
disk. An interruption leaves the old file, or none; what a killed process can leave is a hidden `.NAME.*.part` beside
it.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .gguf_metadata import ARRAY, BOOL, MAX_ALIGNMENT, MAX_NAME_BYTES, SCALAR_DTYPES, STRING, Metadata, quoted
from .tensor import PackedTensor

if TYPE_CHECKING:
    import gguf

ARCHITECTURE, ALIGNMENT = "general.architecture", "general.alignment"
SPLIT_KEYS = frozenset(("split.no", "split.count", "split.tensors.count"))
MAX_TENSOR_NAME_BYTES = 63  # other readers keep a name and its end in 64 bytes
INT32, UINT32, FLOAT32, UINT64, INT64 = 5, 4, 6, 10, 11

# A value, its GGUF type, the type of its items (arrays of numbers only), as the writer takes them.
_Typed: TypeAlias = "tuple[Any, int, int | None]"


def write_gguf(
    path: str | os.PathLike[str],
    tensors: Mapping[str, PackedTensor | npt.NDArray[Any]],
    metadata: Mapping[str, Any],
) -> None:
    """Write one GGUF file (version 3, little endian); an existing file is replaced.

    Parameters
    ----------
    path
        The file; its folder exists.
    tensors
        Name -> PackedTensor of any layout and device (written as its GGUF bytes), or float32 or float16 ndarray of 1
        to 4 dimensions. A PackedTensor of one row is written with one dimension.
    metadata
        Key -> str, bool, int, float, NumPy scalar, or a non-empty list or 1-D array of one kind of them;
        "general.architecture" is required. A NumPy value keeps its type, and so does all of a file's `metadata` when
        it is given as it is. Otherwise an int is uint32 (int32 when negative, 64 bits when it needs them), ints of a
        list are int32, a float is float32. The keys of a split file ("split.no", "split.count",
        "split.tensors.count") are left out.

    Raises
    ------
    ImportError
        The gguf package is not installed.
    TypeError
        A dtype or a metadata value that a GGUF file cannot hold.
    ValueError
        A shape, a name, or a value that a GGUF file cannot hold.
    OSError
        The file cannot be written.
    """
    try:
        import gguf
    except ImportError:
        text = "write_gguf: the gguf package is not installed, expected it (pip install 'lutkern[gguf]')"
        raise ImportError(text) from None
    architecture = metadata.get(ARCHITECTURE)
    field = f"write_gguf: metadata {ARCHITECTURE!r}"
    if not isinstance(architecture, str) or not architecture:
        raise ValueError(f"{field} is {architecture!r}, expected a non-empty str")
    target, part = target_and_part("write_gguf", os.fspath(path))
    writer = gguf.GGUFWriter(part, _utf8(architecture, field))
    try:
        _write(writer, tensors, metadata)
        os.replace(part, target)
    except BaseException:
        writer.close()
        if os.path.exists(part):
            os.unlink(part)
        raise


def target_and_part(operation: str, path: str) -> tuple[str, str]:
    """Name the file and the temporary file beside it; OSError if there can be none."""
    target = os.path.abspath(path)
    folder, name = os.path.split(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"{operation}: the folder does not exist", folder)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, f"{operation}: is a folder, expected a file name", target)
    return target, os.path.join(folder, f".{name[:100]}.{secrets.token_hex(4)}.part")


def _write(
    writer: gguf.GGUFWriter, tensors: Mapping[str, PackedTensor | npt.NDArray[Any]], metadata: Mapping[str, Any]
) -> None:
    """Check everything, then write, to the disk."""
    for key in metadata:
        if key != ARCHITECTURE and key not in SPLIT_KEYS:
            _add_metadata(writer, key, metadata)
    for name, tensor in tensors.items():
        _add_tensor_info(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors.values():
        writer.write_tensor_data(_data(tensor))
    for file in writer.fout or ():
        file.flush()
        os.fsync(file.fileno())
    writer.close()


def _add_metadata(writer: gguf.GGUFWriter, key: str, metadata: Mapping[str, Any]) -> None:
    import gguf

    if not isinstance(key, str):
        raise TypeError(f"write_gguf: metadata key {key!r} is {type(key).__name__}, expected str")
    field = f"write_gguf: metadata {quoted(key)}"
    n_bytes = len(_utf8(key, field).encode("utf-8"))
    if not 1 <= n_bytes <= MAX_NAME_BYTES:
        raise ValueError(f"{field} has a key of {n_bytes} bytes, expected 1 to {MAX_NAME_BYTES}")
    value = metadata[key]
    if key == ALIGNMENT:
        if not isinstance(value, (int, np.integer)) or value & (value - 1) or not 8 <= value <= MAX_ALIGNMENT:
            raise ValueError(f"{field} is {value!r}, expected a power of two from 8 to {MAX_ALIGNMENT}")
        writer.add_custom_alignment(int(value))
        return
    if isinstance(metadata, Metadata):
        dtype = SCALAR_DTYPES.get(metadata.value_type(key)[0])
        value = value if dtype is None else dtype.type(value)
    value, value_type, item_type = _typed(value, field)
    types = gguf.GGUFValueType
    writer.add_key_value(key, value, types(value_type), None if item_type is None else types(item_type))


def _typed(value: Any, field: str) -> _Typed:
    """Turn a value into plain Python objects with its GGUF types."""
    if isinstance(value, str):
        return _utf8(value, field), STRING, None
    if isinstance(value, (np.ndarray, np.generic)):
        dtype = value.dtype.newbyteorder("<")
        value_type = next((t for t, known in SCALAR_DTYPES.items() if known == dtype), None)
        if value_type is None or value.ndim > 1:
            text = f"{field} is {value.dtype} of {value.ndim} dimensions, expected bool, int or float of at most one"
            raise TypeError(text)
        if value.ndim == 0:
            return value.item(), value_type, None
        return _not_empty(value.tolist(), field), ARRAY, value_type
    if isinstance(value, bool):
        return value, BOOL, None
    if isinstance(value, int):
        return value, _int_type([value], (UINT32, INT32, INT64, UINT64), field), None
    if isinstance(value, float):
        return _float32(value, field), FLOAT32, None
    if isinstance(value, (list, tuple)):
        return _typed_list(_not_empty(list(value), field), field)
    raise TypeError(f"{field} is {type(value).__name__}, expected str, bool, int, float, a list or NumPy values")


def _typed_list(items: list[Any], field: str) -> _Typed:
    """Type a list of one kind: text, bool, int, float (with ints among them), NumPy scalars of one dtype, or lists."""
    if all(isinstance(item, str) for item in items):
        return [_utf8(item, field) for item in items], ARRAY, None
    if all(isinstance(item, np.generic) for item in items) and len({item.dtype for item in items}) == 1:
        return _typed(np.array(items), field)
    if all(isinstance(item, bool) for item in items):
        return items, ARRAY, BOOL
    numbers = all(isinstance(item, (int, float)) and not isinstance(item, (bool, np.generic)) for item in items)
    if numbers and all(isinstance(item, int) for item in items):
        return items, ARRAY, _int_type(items, (INT32, UINT32, INT64, UINT64), field)
    if numbers:
        return [_float32(item, field) for item in items], ARRAY, FLOAT32
    if all(isinstance(item, (list, tuple, np.ndarray)) for item in items):
        return [_nested(item, field) for item in items], ARRAY, None
    kinds = " and ".join(sorted({type(item).__name__ for item in items}))
    raise TypeError(f"{field} is a list of {kinds}, expected items of one kind")


def _nested(value: Any, field: str) -> list[Any]:
    """Check a list inside a list; the writer gives its numbers the types int32 and float32."""
    items, _, item_type = _typed(value.tolist() if isinstance(value, np.ndarray) else value, field)
    if item_type not in (None, INT32, FLOAT32, BOOL):
        raise ValueError(f"{field} has an int beyond 32 bits in a nested list, expected int32")
    return list(items)


def _not_empty(items: list[Any], field: str) -> list[Any]:
    if not items:
        raise ValueError(f"{field} is an empty list, expected at least one item")
    return items


def _utf8(text: str, field: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} has a lone surrogate at {error.start}, expected text that is valid UTF-8") from None
    return text


def _int_type(values: list[int], types: tuple[int, ...], field: str) -> int:
    """Choose the first of `types` that holds all values."""
    low, high = min(values), max(values)
    for value_type in types:
        limits = np.iinfo(SCALAR_DTYPES[value_type])
        if limits.min <= low and high <= limits.max:
            return value_type
    raise ValueError(f"{field} has integers from {low} to {high}, expected them to fit 64 bits")


def _float32(value: float, field: str) -> float:
    with np.errstate(over="ignore"):
        fits = np.isfinite(np.float32(value)) or not np.isfinite(value)
    if not fits:
        raise ValueError(f"{field} is {value!r}, expected a value that fits float32 (numpy.float64 keeps 64 bits)")
    return float(value)


def _add_tensor_info(writer: gguf.GGUFWriter, name: str, tensor: PackedTensor | npt.NDArray[Any]) -> None:
    import gguf

    field = f"write_gguf: tensor {quoted(name)}"
    n_bytes = len(_utf8(name, field).encode("utf-8"))
    if not 1 <= n_bytes <= MAX_TENSOR_NAME_BYTES:
        raise ValueError(f"{field} has a name of {n_bytes} bytes, expected 1 to {MAX_TENSOR_NAME_BYTES}")
    if not isinstance(tensor, (PackedTensor, np.ndarray)):
        raise TypeError(f"{field} is {type(tensor).__name__}, expected a PackedTensor or a float32 or float16 array")
    shape = tuple(tensor.shape)
    if not 1 <= len(shape) <= 4 or 0 in shape:
        raise ValueError(f"{field} has shape {shape}, expected 1 to 4 dimensions, none of them 0")
    if isinstance(tensor, np.ndarray):
        if tensor.dtype.kind != "f" or tensor.dtype.itemsize > 4:
            raise TypeError(f"{field} is {tensor.dtype}, expected float32, float16 or a PackedTensor")
        writer.add_tensor_info(name, shape, tensor.dtype.newbyteorder("="), tensor.nbytes)
        return
    fmt = tensor.format
    if shape[-1] % fmt.block_size:
        expected = f"expected a multiple of {fmt.block_size} ({fmt.name} in a file)"
        raise ValueError(f"{field} has {shape[-1]} columns, {expected}")
    try:
        ggml_type = gguf.GGMLQuantizationType(fmt.ggml_type)
    except ValueError:
        raise ValueError(f"{field} is {fmt.name}, expected a type that the installed gguf package knows") from None
    n_bytes = math.prod(shape) // fmt.block_size * fmt.block_bytes
    file_shape = shape[1:] if shape[:-1] == (1,) else shape
    writer.add_tensor_info(name, file_shape, np.dtype(np.float32), n_bytes, raw_dtype=ggml_type)


def _data(tensor: PackedTensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Get the array to write; one tensor at a time, so that a repacked model needs no second copy in memory."""
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("="))
    return tensor.blocks()
