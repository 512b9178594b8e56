"""Kernels of Metal text executed on the CPU, from NumPy arrays: liblutkern_metal_sim of tests/sim/metal/run.h."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
ERROR_BYTES = 16384
MAX_BUFFERS = 31


class MetalError(RuntimeError):
    """What the compiler or the simulator says."""


class _Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


def simulator_path() -> Path:
    """Return where liblutkern_metal_sim is: below LUTKERN_SIM_DIR, or the newest one of the checkout's build folders.

    Raises
    ------
    FileNotFoundError
        There is none: target `sim` of the build with LUTKERN_TESTS makes it.
    """
    folder = os.environ.get("LUTKERN_SIM_DIR")
    found = [Path(folder)] if folder else [p.parents[1] for p in ROOT.glob("build/**/liblutkern_metal_sim.so")]
    if not found:
        raise FileNotFoundError(
            "liblutkern_metal_sim.so: set LUTKERN_SIM_DIR to the folder where the target sim was built"
        )
    return max((f / "metal" / "liblutkern_metal_sim.so" for f in found), key=lambda p: p.stat().st_mtime)


@lru_cache(maxsize=1)
def simulator() -> ctypes.CDLL:
    """Load the simulator."""
    lib = ctypes.CDLL(str(simulator_path()))
    text, pointer, u32 = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint32
    error = (ctypes.c_char_p, ctypes.c_size_t)
    lib.lk_metal_compile.argtypes = [text, ctypes.POINTER(pointer), *error]
    lib.lk_metal_check.argtypes = [text, *error]
    lib.lk_metal_bound.argtypes = [text, *error]
    lib.lk_metal_bound.restype = ctypes.c_size_t
    lib.lk_metal_kernel.argtypes = [pointer, text, ctypes.POINTER(u32), ctypes.POINTER(u32), *error]
    lib.lk_metal_kernel_at.argtypes = [pointer, u32]
    lib.lk_metal_kernel_at.restype = text
    lib.lk_metal_launch.argtypes = [
        *(pointer, text, ctypes.POINTER(_Buffer), u32, ctypes.POINTER(u32), u32, ctypes.c_uint64),
        *error,
    ]
    lib.lk_metal_release.argtypes = [pointer]
    lib.lk_metal_release.restype = None
    return lib


def check(text: str) -> None:
    """Hold a text against the rules of Metal that clang and checks.cpp know; MetalError has all that they find."""
    error = ctypes.create_string_buffer(ERROR_BYTES)
    if simulator().lk_metal_check(text.encode(), error, ERROR_BYTES):
        raise MetalError(error.value.decode(errors="replace"))


def bound(text: str) -> str:
    """Return a text as the C++ that is compiled with include/metal_glue."""
    room = simulator().lk_metal_bound(text.encode(), None, 0)
    out = ctypes.create_string_buffer(room)
    simulator().lk_metal_bound(text.encode(), out, room)
    return out.value.decode()


class Library:
    """One compiled text.

    Parameters
    ----------
    text
        Metal text without own includes; macros stand in front of it.

    Raises
    ------
    MetalError
        The compiler or the binder refuses it; messages name the text's lines as program_source:LINE.
    """

    def __init__(self, text: str) -> None:
        self._handle = ctypes.c_void_p()
        error = ctypes.create_string_buffer(ERROR_BYTES)
        if simulator().lk_metal_compile(text.encode(), ctypes.byref(self._handle), error, ERROR_BYTES):
            raise MetalError(error.value.decode(errors="replace"))
        weakref.finalize(self, simulator().lk_metal_release, self._handle)

    def kernels(self) -> list[str]:
        """Names in the order of the text."""
        names: list[str] = []
        while (name := simulator().lk_metal_kernel_at(self._handle, len(names))) is not None:
            names.append(name.decode())
        return names

    def threadgroup_bytes(self, kernel: str) -> int:
        """Bytes of the threadgroup arrays of a kernel; MetalError where they are too many."""
        return self._numbers(kernel)[0]

    def n_buffers(self, kernel: str) -> int:
        """How many buffers a kernel takes."""
        return self._numbers(kernel)[1]

    def _numbers(self, kernel: str) -> tuple[int, int]:
        n_bytes, n_buffers = ctypes.c_uint32(), ctypes.c_uint32()
        error = ctypes.create_string_buffer(ERROR_BYTES)
        out = (ctypes.byref(n_bytes), ctypes.byref(n_buffers))
        if simulator().lk_metal_kernel(self._handle, kernel.encode(), *out, error, ERROR_BYTES):
            raise MetalError(error.value.decode(errors="replace"))
        return n_bytes.value, n_buffers.value

    def launch(
        self,
        kernel: str,
        args_bytes: bytes | ctypes.Structure,
        arrays: Sequence[np.ndarray[Any, Any] | None] | Mapping[int, np.ndarray[Any, Any] | None],
        groups: Sequence[int],
        threads: int,
        seed: int = 0,
    ) -> None:
        """Run a kernel: args_bytes are its buffer 0, arrays its buffers from 1 on, or by number.

        Arrays are C-contiguous; None is not bound. A kernel may touch no byte outside of them.
        """
        named = dict(arrays) if isinstance(arrays, Mapping) else dict(enumerate(arrays, start=1))
        args = np.frombuffer(bytes(args_bytes), dtype=np.uint8)
        aligned = np.zeros(len(args) // 8 + 1, dtype=np.uint64).view(np.uint8)[: len(args)]
        aligned[:] = args
        if len(args):
            named[0] = aligned
        buffers = (_Buffer * MAX_BUFFERS)()
        for number, array in named.items():
            if array is None:
                continue
            if not array.flags.c_contiguous:
                raise ValueError(f"launch {kernel}: buffer {number} is not C-contiguous")
            buffers[number] = _Buffer(array.ctypes.data, array.nbytes)
        grid = (ctypes.c_uint32 * 3)(*groups, *(1,) * (3 - len(groups)))
        error = ctypes.create_string_buffer(ERROR_BYTES)
        if simulator().lk_metal_launch(
            self._handle, kernel.encode(), buffers, MAX_BUFFERS, grid, threads, seed, error, ERROR_BYTES
        ):
            raise MetalError(error.value.decode(errors="replace"))
