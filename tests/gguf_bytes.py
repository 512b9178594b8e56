"""GGUF files for the tests: put together by hand, where every field can be wrong, and by the gguf package."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import lutkern

U8, U16, U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 2, 4, 5, 6, 7, 8, 9, 10, 12
TYPE_F32, TYPE_Q4_1, TYPE_I8 = 0, 3, 24


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def entry(key: str | bytes, value_type: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", value_type) + value


def array(item_type: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", item_type, count) + items


def nested_array(depth: int) -> bytes:
    """An entry "k": one u8 inside of `depth` arrays."""
    return entry("k", ARRAY, array(ARRAY, 1, b"") * (depth - 1) + array(U8, 1, b"\x01"))


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def tensor(name: str | bytes, dims: tuple[int, ...], ggml_type: int = TYPE_F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, ggml_type, offset)


def build(
    entries: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    data: int = 0,
    magic: bytes = b"GGUF",
    version: bytes = u32(3),
    counts: tuple[int | None, int | None] = (None, None),
    alignment: int = 32,
) -> bytes:
    """A file of these entries and tensor infos followed by `data` bytes; `counts`: tensors, entries."""
    entries, tensors = entries or [], tensors or []
    n_tensors = len(tensors) if counts[0] is None else counts[0]
    n_entries = len(entries) if counts[1] is None else counts[1]
    head = magic + version + struct.pack("<QQ", n_tensors, n_entries) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(i % 64 for i in range(data))


def shard(no: int, count: int, total: int, names: tuple[str, ...], *extra: bytes) -> bytes:
    entries = [
        entry("split.no", U16, struct.pack("<H", no)),
        entry("split.count", U16, struct.pack("<H", count)),
        entry("split.tensors.count", I32, struct.pack("<i", total)),
        *extra,
    ]
    return build(entries, [tensor(name, (8,), offset=32 * i) for i, name in enumerate(names)], data=32 * len(names))


def finite_blocks(rng: np.random.Generator, fmt: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Random GGUF bytes of a weight whose scales are finite: no byte has one of its two high bits set."""
    row_bytes = shape[-1] // fmt.block_size * fmt.block_bytes
    return rng.integers(0, 64, (*shape[:-1], row_bytes), dtype=np.uint8)


def write_every_format(path: Path) -> dict[str, np.ndarray]:
    """A file by the gguf package: every format in 2-D and 3-D, norms, a type without a format; its arrays by name."""
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 30)
    writer.add_float32("llama.eps", 1e-5)
    writer.add_float64("wide", 1e300)
    writer.add_uint64("large", 2**64 - 1)
    writer.add_int8("small", -7)
    writer.add_bool("yes", True)
    writer.add_string("greeting", "grüß dich, 世界")
    writer.add_array("words", ["a", "", "ü", "\x00"])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("floats", [0.5, -1.0])
    writer.add_array("bools", [True, False])
    writer.add_array("nested", [[1, 2], ["x"], [[3]]])
    tensors = {}
    for fmt in lutkern.formats():
        for name, shape in ((f"{fmt.name}.2d", (3, 512)), (f"{fmt.name}.3d", (2, 3, 256))):
            tensors[name] = finite_blocks(rng, fmt, shape)
            writer.add_tensor(name, tensors[name], raw_dtype=gguf.GGMLQuantizationType(fmt.ggml_type))
    tensors["norm"] = rng.standard_normal(7).astype(np.float32)
    tensors["ids"] = np.arange(12, dtype=np.int32).reshape(3, 4)
    tensors["conv"] = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    tensors["conv1"] = rng.standard_normal((1, 3, 5, 4)).astype(np.float16)
    for name in ("norm", "ids", "conv", "conv1"):
        writer.add_tensor(name, tensors[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def write_split(path: Path) -> tuple[list[Path], dict[str, np.ndarray]]:
    """Three shards by the gguf package, two tensors in each of them; their paths, their arrays by name."""
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=2)
    writer.add_name("Big")
    tensors = {f"blk.{i}.w": rng.standard_normal((2 + i, 32)).astype(np.float32) for i in range(6)}
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [path.with_name(f"{path.stem}-{no:05}-of-00003.gguf") for no in (1, 2, 3)], tensors
