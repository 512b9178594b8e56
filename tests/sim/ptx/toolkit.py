"""The PTX of csrc/cuda/kernels.cu: from the folder that LUTKERN_PTX_DIR names, or by nvcc, kept for the next time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CSRC = Path(__file__).parents[3] / "csrc"
OPTIONS = ("-ptx", "-std=c++17", "-O3", "-fmad=false")  # as in cmake/cuda.cmake


def find_nvcc() -> str | None:
    """Path of nvcc: CUDA_HOME, the pip packages, PATH, the usual place."""
    folders = [Path(os.environ[v], "bin") for v in ("CUDA_HOME", "CUDA_PATH") if v in os.environ]
    folders += [f for p in sys.path if p for f in Path(p).glob("nvidia/cu1*/bin")]
    folders += [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p] + [Path("/usr/local/cuda/bin")]
    return next((found for f in folders if (found := shutil.which("nvcc", path=str(f)))), None)


def compile_ptx(source: Path, arch: str, out: Path) -> str:
    """PTX of a file for a virtual architecture, 75 and the like."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("ptx: no nvcc in CUDA_HOME, in the pip packages, on PATH")
    command = [nvcc, *OPTIONS, f"-arch=compute_{arch}", str(source), "-o", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"ptx: nvcc refuses {source.name} for compute_{arch}\n{result.stdout}{result.stderr}")
    return out.read_text(encoding="utf-8")


def kernels_ptx(arch: str) -> str:
    """PTX of all kernels for a virtual architecture."""
    given = os.environ.get("LUTKERN_PTX_DIR")
    if given:
        return Path(given, f"compute_{arch}.ptx").read_text(encoding="utf-8")
    digest = hashlib.sha256(f"{find_nvcc()} {OPTIONS}".encode())
    for path in sorted([*CSRC.joinpath("cuda").iterdir(), *CSRC.joinpath("formats").iterdir(), CSRC / "tensor.h"]):
        if path.suffix in (".h", ".cuh", ".cu", ".inc"):
            digest.update(path.name.encode() + path.read_bytes())
    folder = Path(tempfile.gettempdir(), f"lutkern-ptx-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = folder / f"{digest.hexdigest()[:16]}-{arch}.ptx"
    if not kept.exists():
        part = folder / f"{kept.name}.{os.getpid()}"
        compile_ptx(CSRC / "cuda" / "kernels.cu", arch, part)
        part.replace(kept)
    return kept.read_text(encoding="utf-8")
