"""Importance for the tests, and its files put together by hand, where every field can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from gguf_bytes import STRING, build, entry, tensor, text
from lutkern import Importance

DENSE, EXPERTS = "blk.0.ffn_down.weight", "blk.1.ffn_gate_exps.weight"


def collected() -> Importance:
    """One weight without experts, one with five, of which 1 and 4 see no token."""
    rng = np.random.default_rng(0)
    importance = Importance(chunk_size=16)
    importance.update(DENSE, rng.standard_normal((40, 6)).astype(np.float32))
    importance.update(EXPERTS, rng.standard_normal((30, 3)).astype(np.float32), rng.choice([0, 2, 3], 30), experts=5)
    importance.datasets = ["first.txt", "zwölf.txt"]
    return importance


def i32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def dat_entry(name: str | bytes, calls: int, values: list[float]) -> bytes:
    data = name.encode() if isinstance(name, str) else name
    return i32(len(data)) + data + i32(calls, len(values)) + struct.pack(f"<{len(values)}f", *values)


def dat(*entries: bytes, trailer: bytes = b"") -> bytes:
    return i32(len(entries)) + b"".join(entries) + trailer


def read(folder: Path, content: bytes, **options: int) -> Importance:
    path = folder / "imatrix.dat"
    path.write_bytes(content)
    return Importance.read(path, **options)


TYPE = entry("general.type", STRING, text("imatrix"))


def imatrix(*tensors: tuple[str, tuple[int, ...], list[float]], entries: tuple[bytes, ...] = (TYPE,)) -> bytes:
    """A GGUF file of f32 tensors: name, dimensions in the file's order, values."""
    infos, data = [], b""
    for name, dims, values in tensors:
        infos.append(tensor(name, dims, offset=len(data)))
        data += struct.pack(f"<{len(values)}f", *values)
        data += bytes(-len(data) % 32)
    return build(list(entries), infos) + data


SUMS, COUNTS = ("w.in_sum2", (2, 3), [2, 4, 6, 8, 0, 0]), ("w.counts", (1, 3), [2, 4, 0])
