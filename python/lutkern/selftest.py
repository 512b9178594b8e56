"""`lutkern selftest`: every kernel of this machine against the golden vectors in the package.

The vectors come from the gguf package and from float64 arithmetic, not from the kernels; NumPy alone is needed to hold
against them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .formats import formats
from .moe import moe
from .ops import dequantize, matmul, matvec
from .runtime import expect_environment, info, isas, use_isa
from .tensor import PackedTensor

_Check = tuple[str, str, str | None]  # format, operation, error


def _tensor(text: str, fmt: str, shape: list[int]) -> PackedTensor:
    return PackedTensor.from_blocks(base64.b64decode(text), fmt, shape)


def _outside(result: npt.NDArray[np.float32], expected: list[float], bound: list[float]) -> str | None:
    """Return what is wrong with a result, or None."""
    error = np.abs(result.reshape(-1).astype(np.float64) - np.array(expected))
    limit = np.array(bound)
    if np.all(error <= limit):
        return None
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error - limit)))
    return (
        f"output {worst} is {result.reshape(-1)[worst]:.9g}, expected {expected[worst]:.9g} within {bound[worst]:.2g}"
    )


def _check_dequantize(t: PackedTensor, digest: str) -> str | None:
    found = hashlib.sha256(dequantize(t).astype("<f4").tobytes()).hexdigest()
    return None if found == digest else "the weights differ from the definition of the format"


def _checks(golden: dict[str, Any]) -> Iterator[_Check]:
    x = (np.array(golden["x_64ths"]) / 64).astype(np.float32)
    rows = golden["shape"][0]
    for fmt in formats():
        entry = golden["formats"].get(fmt.name)
        if entry is None:
            yield fmt.name, "all", "no golden vector for this format"
            continue
        t = _tensor(entry["blocks"], fmt.name, golden["shape"])
        yield fmt.name, "dequantize", _check_dequantize(t, entry["dequantized_sha256"])
        yield fmt.name, "matvec", _outside(matvec(t, x[0]), entry["matmul"][:rows], entry["bound"][:rows])
        yield fmt.name, "matmul", _outside(matmul(t, x), entry["matmul"], entry["bound"])
    layer = golden["moe"]
    gate, up, down = (_tensor(v["blocks"], v["format"], v["shape"]) for v in layer["tensors"].values())
    weights = np.array(layer["weights"], np.float32)
    mixed = "+".join(v["format"] for v in layer["tensors"].values())
    yield mixed, "moe", _outside(moe(x / 256, layer["ids"], weights, gate, up, down), layer["y"], layer["bound"])


def run(progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Check every format and operation on every instruction set of this machine.

    Returns
    -------
    dict
        ``ok``: whether all passed; ``results``: one dict with ``format``, ``isa``, ``op``, ``ok`` and ``error`` for
        each check; ``machine``, ``version``. JSON can hold it.

    Raises
    ------
    ValueError
        If ``LUTKERN_ISA`` or ``LUTKERN_NUM_THREADS`` is wrong.
    """
    expect_environment()
    golden = json.loads(resources.files(__package__).joinpath("golden.json").read_text())
    before = _core.current_isa()
    results = []
    try:
        for isa in isas():
            use_isa(isa)
            if progress is not None:
                progress(isa)
            for fmt, op, error in _checks(golden):
                results.append({"format": fmt, "isa": isa, "op": op, "ok": error is None, "error": error})
    finally:
        use_isa(before)
    machine = info()
    return {
        "ok": all(r["ok"] for r in results),
        "version": machine["version"],
        "machine": machine["machine"],
        "isas": machine["isas"],
        "results": results,
    }
