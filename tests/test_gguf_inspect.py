"""What `inspect` tells of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lutkern
from gguf_bytes import write_every_format
from lutkern.gguf_inspect import inspect_gguf


def test_inspect(tmp_path: Path) -> None:
    path = tmp_path / "every.gguf"
    written = write_every_format(path)
    seen = json.loads(json.dumps(inspect_gguf(path), allow_nan=False))
    assert seen["files"] == [str(path)]
    assert (seen["version"], seen["alignment"]) == (3, 32)
    assert seen["metadata"]["greeting"] == "grüß dich, 世界"
    assert seen["metadata"]["nested"] == [[1, 2], ["x"], [[3]]]
    by_name = {tensor["name"]: tensor for tensor in seen["tensors"]}
    assert list(by_name) == list(written)
    assert by_name["q4_k.3d"] == {
        "name": "q4_k.3d",
        "format": "q4_k",
        "shape": [2, 3, 256],
        "bytes": 6 * 144,
        "bits_per_weight": 4.5,
        "kernel": lutkern.supports("q4_k", "matvec", "cpu"),
    }
    assert by_name["q4_k.3d"]["kernel"] is not None
    assert by_name["ids"]["kernel"] is None
    assert by_name["ids"]["format"] == "i32"
    assert seen["formats"]["q4_k"] == {"tensors": 2, "weights": 3072, "bytes": 1728, "bits_per_weight": 4.5}
    assert seen["bytes"] == sum(array.nbytes for array in written.values())
    assert seen["weights"] == len(lutkern.formats()) * 3072 + 7 + 12 + 120 + 60
    assert seen["bits_per_weight"] == pytest.approx(8 * seen["bytes"] / seen["weights"], rel=1e-12)


def test_inspect_shortens_arrays(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    metadata = {
        "general.architecture": "test",
        "long": list(range(9)),
        "short": list(range(8)),
        "nan": float("nan"),
        "infs": [float("inf")],
    }
    lutkern.write_gguf(path, {}, metadata)
    seen = json.loads(json.dumps(inspect_gguf(path), allow_nan=False))
    assert seen["metadata"]["long"] == {"length": 9, "first": [0, 1, 2, 3, 4, 5, 6, 7]}
    assert seen["metadata"]["short"] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert (seen["metadata"]["nan"], seen["metadata"]["infs"]) == ("nan", ["inf"])
    assert (seen["bytes"], seen["weights"], seen["bits_per_weight"]) == (0, 0, None)
