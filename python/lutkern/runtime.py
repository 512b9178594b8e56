"""What was built, what was found, what runs."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import _core
from .arrays import whole_number
from .formats import Format, find_format, formats
from .places import CUDA, GPUS, METAL, device_name, device_number, kind_of
from .tensor import LAYOUTS

_OPERATIONS = {"dequantize": 0, "matvec": 1, "matmul": 2, "moe": 3, "pack": 4}  # lutkern_operation
_MAX_TOKENS = 2**31 - 1
_MAX_THREADS = 1024  # of lutkern_set_num_threads
_VERBS = {"dequantize": "dequantize", "matvec": "gemv", "matmul": "gemm", "moe": "gemm", "pack": "pack"}


@dataclass(frozen=True)
class Device:
    """A place to run: its name, whether it is there, and what it is or why it is not.

    Attributes
    ----------
    name
        ``"cpu"``, ``"cuda:0"``, ``"metal:0"``; of a kind that is not there, ``"cuda"`` or ``"metal"``.
    memory_bytes, free_bytes
        Of a GPU: its memory; on Metal what it may use of the memory that it shares with the CPU.
    cache_bytes, processors, capability
        Of a CUDA device: its last-level cache, streaming multiprocessors, (major, minor).
    """

    name: str
    available: bool
    detail: str
    memory_bytes: int | None = None
    free_bytes: int | None = None
    cache_bytes: int | None = None
    processors: int | None = None
    capability: tuple[int, int] | None = None


def isas() -> tuple[str, ...]:
    """Return the instruction set rows that this build has and this processor can run, best first."""
    return tuple(name for name, supported in _core.isas() if supported)


def use_isa(name: str | None) -> None:
    """Start the search for kernels at this instruction set; None: at the best, or at ``LUTKERN_ISA``.

    A format without a kernel there takes the next row down. The choice holds for the whole process.

    Raises
    ------
    ValueError
        If the name is unknown; the text lists the valid ones.
    TypeError
        If it is no text.
    RuntimeError
        If the processor does not have it.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"use_isa: name is {type(name).__name__}, expected a str or None")
    _core.use_isa(name)


def devices() -> tuple[Device, ...]:
    """Return where operations can run, and why the others cannot."""
    cpu = Device("cpu", True, f"{platform.machine()}, kernels {_core.current_isa()}, {num_threads()} threads")
    return (cpu, *(gpu for name in GPUS for gpu in _gpus(name)))


def _gpus(name: str) -> tuple[Device, ...]:
    kind = GPUS[name]
    absent = _core.device_absent(kind)
    if absent is not None:
        return (Device(name, False, absent),)
    return tuple(_gpu(kind + i) for i in range(_core.device_count(kind)))


def _gpu(number: int) -> Device:
    try:
        title, memory, free, cache, processors, capability = _core.device_info(number)
    except RuntimeError as error:  # this one of several cannot be opened
        return Device(device_name(number), False, str(error))
    if kind_of(number) == METAL:
        detail = f"{title}, GPU family Apple{capability}, {memory / 2**30:.1f} GiB"
        return Device(device_name(number), True, detail, memory, free)
    major, minor = divmod(capability, 10)
    detail = f"{title}, capability {major}.{minor}, {memory / 2**30:.1f} GiB, {processors} processors"
    return Device(device_name(number), True, detail, memory, free, cache, processors, (major, minor))


def set_num_threads(n: int | None) -> None:
    """Set the threads of the next operations, the calling one included; None: as many as the process may use.

    Raises
    ------
    ValueError
        If `n` is not from 1 to 1024.
    TypeError
        If `n` is no whole number.
    """
    _core.set_num_threads(thread_count("set_num_threads", n))


def thread_count(operation: str, n: int | None) -> int:
    """Return `n` as the native side takes it, 0 for None; ValueError or TypeError if it is no number of threads."""
    return 0 if n is None else whole_number(operation, "threads", n, _MAX_THREADS)


def num_threads() -> int:
    """Return how many threads the next operation uses."""
    return _core.num_threads()


def supports(
    fmt: str | Format, op: str, device: str = "cpu", *, layout: str | None = None, tokens: int | None = None
) -> str | None:
    """Return the name of the kernel that would run, or None.

    Parameters
    ----------
    fmt
        A format, or its name.
    op
        ``"dequantize"``, ``"matvec"``, ``"matmul"``, ``"moe"`` or ``"pack"``.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"metal"`` or ``"metal:N"``.
    layout
        ``"tiles"`` or ``"blocks"``. By default the one that `pack` and ``t.to(device=...)`` give: tiles, or blocks on a
        GPU that has no tiles of the format.
    tokens
        How many there are in a call, which a GPU has kernels for; in moe, pairs of a token and an expert. By default 16
        in matmul, else 1.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    fmt = find_format(fmt)
    if not isinstance(op, str) or op not in _OPERATIONS:
        raise ValueError(f"supports: unknown operation {op!r}, expected one of: {', '.join(_OPERATIONS)}")
    known = ["cpu", *GPUS]
    if device not in known:
        known += [device_name(kind + i) for kind in GPUS.values() for i in range(_core.device_count(kind))]
    if device not in known:
        raise ValueError(f"supports: unknown device {device!r}, expected one of: {', '.join(known)}")
    if layout is not None and (not isinstance(layout, str) or layout not in LAYOUTS):
        raise ValueError(f"supports: unknown layout {layout!r}, expected one of: {', '.join(LAYOUTS)}")
    count = (16 if op == "matmul" else 1) if tokens is None else whole_number("supports", "tokens", tokens, _MAX_TOKENS)
    if device != "cpu":
        if _core.device_absent(GPUS[device.partition(":")[0]]) is not None or op == "pack":
            return None
        number = device_number("supports", device)
        layout = layout or ("tiles" if _core.device_has_tiles(number, fmt.ggml_type) else "blocks")
        return _core.device_kernel(number, fmt.ggml_type, _OPERATIONS[op], LAYOUTS[layout], count)
    layout = layout or "tiles"
    isa = _core.kernel_isa(fmt.ggml_type, _OPERATIONS[op], LAYOUTS[layout])
    if isa is None:
        return None
    return f"{_VERBS[op]}_{fmt}_{isa}" if op in ("dequantize", "pack") else f"{_VERBS[op]}_{fmt}_{layout}_{isa}"


def info() -> dict[str, Any]:
    """Return what was built, what was found and what is chosen, as a dictionary that JSON can hold.

    Raises
    ------
    ValueError
        If ``LUTKERN_ISA`` or ``LUTKERN_NUM_THREADS`` is wrong, as every operation does.
    """
    expect_environment()
    return {
        "version": _core.version,
        "machine": platform.machine(),
        "isa": _core.current_isa(),
        "isas": {name: supported for name, supported in _core.isas()},
        "threads": num_threads(),
        "cuda": _cuda_info(),
        "metal": _metal_info(),
        "devices": {d.name: {"available": d.available, "detail": d.detail} for d in devices()},
        "library": get_library(),
        "include": get_include(),
        "formats": {
            fmt.name: {
                "bits_per_weight": fmt.bits_per_weight,
                "kernels": {layout: {op: supports(fmt, op, layout=layout) for op in _OPERATIONS} for layout in LAYOUTS},
            }
            for fmt in formats()
        },
    }


def _cuda_info() -> dict[str, Any]:
    """Return the driver, the kernels of this build and the devices."""
    made_for, image_bytes = _core.device_image(CUDA)
    version = _core.driver_version(CUDA)
    gpus = [d for d in _gpus("cuda") if d.available]
    return {
        "driver": f"{version // 1000}.{version % 1000 // 10}" if version else None,
        "absent": _core.device_absent(CUDA),
        "built_for": made_for,
        "image_bytes": image_bytes,
        # What JSON holds, and the same at each call
        "devices": [{**asdict(d), "capability": list(d.capability or ()), "free_bytes": None} for d in gpus],
        "kernels": _kernels(gpus),
    }


def _metal_info() -> dict[str, Any]:
    """Return the system, the kernels of this build, which are text, and the devices."""
    language, text_bytes = _core.device_image(METAL)
    version = _core.driver_version(METAL)
    gpus = [d for d in _gpus("metal") if d.available]
    return {
        "system": f"macOS {version // 1000}.{version % 1000 // 10}" if version else None,
        "absent": _core.device_absent(METAL),
        "language": language,
        "text_bytes": text_bytes,
        "devices": [
            {"name": d.name, "available": True, "detail": d.detail, "memory_bytes": d.memory_bytes} for d in gpus
        ],
        "kernels": _kernels(gpus),
    }


def _kernels(gpus: list[Device]) -> dict[str, Any]:
    """Return the kernels that would run on the first GPU, by format, layout and operation."""
    if not gpus:
        return {}
    name = gpus[0].name
    return {
        fmt.name: {layout: {op: supports(fmt, op, name, layout=layout) for op in _OPERATIONS} for layout in LAYOUTS}
        for fmt in formats()
    }


def expect_environment() -> None:
    """Raise ValueError if an environment variable is wrong and the program has not chosen otherwise."""
    _core.quantize_activations(np.zeros(1, np.float32), 0)  # the smallest operation: each one checks


def get_include() -> str:
    """Return the folder of ``lutkern.h``."""
    return os.path.join(_package_folder(), "include")


def get_cmake_dir() -> str:
    """Return the folder of the CMake package, for ``find_package(lutkern CONFIG)`` with ``-Dlutkern_DIR=``."""
    return os.path.join(_package_folder(), "lib", "cmake", "lutkern")


def get_library() -> str:
    """Return the path of the shared library that ``lutkern.h`` describes."""
    names = ("liblutkern.so", "liblutkern.dylib")
    folder = os.path.join(_package_folder(), "lib")
    return next(
        (path for name in names if os.path.exists(path := os.path.join(folder, name))), os.path.join(folder, names[0])
    )


def _package_folder() -> str:
    # The native parts lie beside the extension, which an editable install keeps apart from the Python files.
    return os.path.dirname(os.path.abspath(_core.__file__))
