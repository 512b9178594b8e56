"""`lutkern selftest`: every kernel of this machine, or of a GPU, against the golden vectors in the package.

The vectors come from the gguf package and from float64 arithmetic, not from the kernels; NumPy alone is needed to hold
against them.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core, reference
from .formats import Format, formats
from .moe import moe
from .ops import dequantize, matmul, matvec
from .places import device_name, device_number
from .runtime import devices, expect_environment, info, isas, use_isa
from .tensor import PackedTensor

_Check = tuple[str, str, str | None]  # format, operation, error
_TOKENS = (1, 4, 16)  # of a GPU, whose kernels differ by them
_MANY_TOKENS = 20  # of a weight with several rows of tiles, for kernels that work on parts of both
_EXPERTS, _HIDDEN, _INTER = 3, 256, 40  # of a layer
_COPY_BYTES = (1 << 20, 16 << 20, 256 << 20)


def _tensor(text: str, fmt: str, shape: list[int]) -> PackedTensor:
    return PackedTensor.from_blocks(base64.b64decode(text), fmt, shape)


def _outside(result: npt.NDArray[np.float32], expected: npt.ArrayLike, bound: npt.ArrayLike) -> str | None:
    """Return what is wrong with a result, or None."""
    found, wanted, limit = (np.asarray(a, np.float64).reshape(-1) for a in (result, expected, bound))
    error = np.abs(found - wanted)
    if np.all(error <= limit):
        return None
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error - limit)))
    return f"output {worst} is {found[worst]:.9g}, expected {wanted[worst]:.9g} within {limit[worst]:.2g}"


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


def _repeated(values: list[float], width: int, tokens: int) -> list[float]:
    """Return the golden rows again and again, for as many tokens as wanted."""
    rows = np.array(values).reshape(-1, width)
    found: list[float] = rows[np.arange(tokens) % len(rows)].reshape(-1).tolist()
    return found


def _one_hot(t: PackedTensor, weights: npt.NDArray[np.float32], tokens: int) -> str | None:
    """One activation of 127 is exact as an integer: its product is 127 times a weight, rounded twice at most."""
    columns = np.linspace(0, t.shape[1] - 1, tokens).astype(int)
    x = np.zeros((tokens, t.shape[1]), np.float32)
    x[np.arange(tokens), columns] = 127.0
    y = matmul(t, x) if tokens > 1 else matvec(t, x[0])[None]
    expected = 127.0 * weights[:, columns].T.astype(np.float64)
    if np.all(np.abs(y - expected) <= 2.0**-21 * np.abs(weights).max() * 127):
        return None
    return "a product with one activation is not 127 times the weight"


def _gpu_checks(golden: dict[str, Any], device: str) -> Iterator[_Check]:
    x = (np.array(golden["x_64ths"]) / 64).astype(np.float32)
    rows = golden["shape"][0]
    for fmt in formats():
        entry = golden["formats"].get(fmt.name)
        if entry is None:
            yield fmt.name, "all", "no golden vector for this format"
            continue
        here = _tensor(entry["blocks"], fmt.name, golden["shape"])
        for layout in ("blocks", "tiles"):
            if layout == "tiles" and not _core.device_has_tiles(device_number("selftest", device), fmt.ggml_type):
                continue
            t = here.to(device=device, layout=layout)
            same = np.array_equal(t.blocks(), here.blocks())
            yield fmt.name, f"blocks of {layout}", None if same else "the bytes differ after the way there and back"
            weights = dequantize(t).numpy()
            found = hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest()
            differ = found != entry["dequantized_sha256"]
            yield fmt.name, f"dequantize {layout}", "the weights differ from the definition" if differ else None
            for tokens in _TOKENS:
                many = x[np.arange(tokens) % len(x)]
                y = matmul(t, many) if tokens > 1 else matvec(t, many[0])
                expected, bound = (_repeated(entry[key], rows, tokens) for key in ("matmul", "bound"))
                yield fmt.name, f"{layout}, {tokens} tokens", _outside(y, expected, bound)
                yield fmt.name, f"{layout}, {tokens} tokens, integers", _one_hot(t, weights, tokens)
        yield from _gpu_larger(fmt, here, x, device)
    yield from _gpu_layer(golden["moe"], x / np.float32(256), device)


def _larger(fmt: Format, here: PackedTensor, shape: tuple[int, ...], seed: int) -> PackedTensor:
    """Return a weight of the first columns of golden rows, in random order."""
    known = here.blocks()[:, : fmt.row_bytes(shape[-1])]
    picked = np.random.default_rng(seed).integers(0, len(known), shape[:-1])
    return PackedTensor.from_blocks(known[picked], fmt, shape)


def _gpu_larger(fmt: Format, here: PackedTensor, x: npt.NDArray[np.float32], device: str) -> Iterator[_Check]:
    """Work that needs several groups of threads, and a layer of one format, held against the reference."""
    x = x[np.arange(_MANY_TOKENS) % len(x), :_HIDDEN]
    w = _larger(fmt, here, (70, _HIDDEN), 0)
    for exact, many in ((False, x), (True, x[:2])):
        expected, bound = reference.matmul(w, many, exact=exact), reference.fp32_bound(w, many, n_ulp=8, exact=exact)
        wrong = _outside(matmul(w.to(device=device), many, exact=exact), expected, bound)
        yield fmt.name, f"{len(many)} tokens, {len(w)} rows{', exact' if exact else ''}", wrong
    up, down = (_EXPERTS, _INTER, _HIDDEN), (_EXPERTS, _HIDDEN, _INTER)
    layer = [_larger(fmt, here, shape, seed) for seed, shape in enumerate((up, up, down))]
    for tokens in (1, 8):
        ids = np.arange(2 * tokens).reshape(tokens, 2) % _EXPERTS
        arguments = (x[:tokens] / np.float32(256), ids, np.full(ids.shape, 0.5, np.float32))
        expected, bound = reference.moe(*arguments, *layer), reference.moe_bound(*arguments, *layer, n_ulp=8)
        wrong = _outside(moe(*arguments, *(t.to(device=device) for t in layer)), expected, bound)
        yield fmt.name, f"moe, {tokens} tokens", wrong


def _gpu_layer(layer: dict[str, Any], x: npt.NDArray[np.float32], device: str) -> Iterator[_Check]:
    tensors = [_tensor(v["blocks"], v["format"], v["shape"]).to(device=device) for v in layer["tensors"].values()]
    mixed = "+".join(v["format"] for v in layer["tensors"].values())
    for tokens in _TOKENS:
        pick = np.arange(tokens) % len(x)
        ids, weights = np.array(layer["ids"])[pick], np.array(layer["weights"], np.float32)[pick]
        y = moe(x[pick], ids, weights, *tensors)
        expected, bound = (_repeated(layer[key], x.shape[1], tokens) for key in ("y", "bound"))
        yield mixed, f"moe, {tokens} tokens", _outside(y, expected, bound)


def run_gpu(device: str, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Check every format, layout and operation on a GPU, and measure how fast it copies its own memory.

    Returns
    -------
    dict
        As that of `run`; the ``isa`` of a result is the device. ``device``, and what `info` says of its kind under
        the name of the kind. ``copy``: bytes and GB/s, read and written. ``system``, ``date``.

    Raises
    ------
    RuntimeError
        If the device is not there.
    """
    from .bench.gpu import copy_rate

    name = device_name(device_number("selftest", device))
    golden = json.loads(resources.files(__package__).joinpath("golden.json").read_text())
    results = []
    for fmt, op, error in _gpu_checks(golden, name):
        if progress is not None:
            progress(f"{fmt} {op}")
        results.append({"format": fmt, "isa": name, "op": op, "ok": error is None, "error": error})
    machine = info()
    there = next(d for d in devices() if d.name == name)
    sizes = [n for n in _COPY_BYTES if 4 * n <= (there.free_bytes or 0)]
    kind = name.partition(":")[0]
    return {
        "ok": all(r["ok"] for r in results),
        "version": machine["version"],
        "machine": machine["machine"],
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": there.detail,
        kind: machine[kind],
        "copy": [{"bytes": n, "gbytes_per_s": copy_rate(name, n, 0.1) / 1e9} for n in sizes],
        "results": results,
    }


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
