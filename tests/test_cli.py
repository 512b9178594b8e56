"""The command line: text and JSON of each command, errors in one line, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lutkern
from lutkern import cli, gguf_inspect, selftest
from lutkern.text_table import table
from tiny_llama import write_tiny_llama


@pytest.fixture
def tiny_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_tiny_llama(tmp_path / "tiny.gguf")


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == lutkern.info()
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"lutkern {lutkern.__version__} on ")
    assert [line.split()[0] for line in lines[-len(lutkern.formats()) :]] == [f.name for f in lutkern.formats()]
    row = next(line for line in lines if line.startswith("iq2_xxs "))
    assert row.split()[:3] == ["iq2_xxs", "2.0625", lutkern.supports("iq2_xxs", "dequantize").rsplit("_")[-1]]


def test_inspect(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tiny_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == gguf_inspect.inspect_gguf(tiny_path)
    assert cli.main(["inspect", str(tiny_path)]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == [str(tiny_path)]
    assert ["general.architecture", "llama"] in rows
    assert ["blk.0.ffn_down.weight", "f32", "64", "x", "512", "131072", "32.0000"] in [row[:7] for row in rows]
    assert rows[-1][:2] == ["all", "20"]
    assert max(map(len, out.splitlines())) < 200


def test_inspect_shows_long_and_odd_metadata_on_one_line() -> None:
    assert cli._brief({"length": 3, "first": ["a", 1]}) == '3 items: ["a", 1]'
    assert cli._brief("two\nlines\x1b[31m") == "two lines [31m"
    assert cli._brief("x" * 81) == "x" * 77 + "..."
    assert cli._brief(True) == "true"
    assert table(("a", "b"), [("x\x1b[2J", 10), ("y", 9)], " r") == "a       b\nx [2J  10\ny       9"


def test_demo_json(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--model", str(tiny_path), "--gate", "q8_0", "--down", "iq4_nl", "--tokens", "3", "--json"]
    assert cli.main([*arguments, "--prompt", "Hi"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert err == ""
    assert result["formats"] == {"gate": "q8_0", "up": "iq2_xxs", "down": "iq4_nl"}
    assert result["prompt"] == "Hi"
    assert result["packed"]["tokens"] <= 3


def test_demo_text(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--model", str(tiny_path), "--tokens", "3", "--no-cache", "--prompt", "Hi"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("\n> Hi\n\n[base] ")
    for name in ("FFN bytes", "bits per weight", "perplexity", "mean KL", "same most likely", "tokens per second"):
        assert f"\n{name}" in out
    assert not (tiny_path.parent / "cache").exists()


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_selftest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ok: bool, code: int) -> None:
    row = {"format": "iq1_m", "isa": "scalar", "op": "matvec", "ok": ok, "error": None if ok else "output 3 is off"}
    found: dict[str, Any] = {"ok": ok, "results": [row]}
    monkeypatch.setattr(selftest, "run", lambda: found)
    assert cli.main(["selftest", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == found
    assert cli.main(["selftest"]) == code
    lines = capsys.readouterr().out.splitlines()
    expected = (
        ["iq1_m", "scalar", "matvec", "ok"]
        if ok
        else ["iq1_m", "scalar", "matvec", "FAILED", "output", "3", "is", "off"]
    )
    assert lines[1].split() == expected
    assert lines[-1] == f"1 checks, {0 if ok else 1} failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{folder}/none.gguf"], "lutkern: {folder}/none.gguf: No such file or directory"),
        (["demo", "--model", "{folder}/none.gguf"], "lutkern: {folder}/none.gguf: No such file or directory"),
        (["demo", "--tokens", "0"], "lutkern: demo: 0 tokens, expected at least 1"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main([part.format(folder=tmp_path) for part in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == message.format(folder=tmp_path)


def test_an_unknown_format_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--gate", "q9_z"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lutkern: ")
    assert "'q9_z'" in line
    assert "iq2_xxs" in line


def test_a_file_that_is_no_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"nothing of the kind" * 10)
    for command in (["inspect"], ["demo", "--model"]):
        assert cli.main([*command, str(path)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_line_breaks_of_an_error_are_joined() -> None:
    assert cli._one_line(ValueError("a\n  b")) == "a b"
    assert cli._one_line(MemoryError()) == "MemoryError"
    assert cli._one_line(PermissionError(13, "Permission denied", "f")) == "f: Permission denied"


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "info", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "lutkern: interrupted\n"


def test_the_reader_may_go_away() -> None:
    program = [sys.executable, "-m", "lutkern", "info", "--json"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_closed_streams() -> None:
    for close, arguments, code in (("1>&-", "info", 0), ("2>&-", "inspect none.gguf", 2), ("1>&- 2>&-", "info", 0)):
        command = f'"{sys.executable}" -m lutkern {arguments} {close}'
        result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stderr) == (code, "")


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_json({"text": "\u00e9\ud83d\ude00 \udce9"})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"text": "\u00e9\U0001f600 \udce9"}


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["inspect"], ["demo", "--tokens", "many"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: lutkern")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lutkern {lutkern.__version__}\n"
