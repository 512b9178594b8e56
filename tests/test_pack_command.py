"""`lutkern pack`: options, output, signals, memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

import lutkern
from lutkern import cli
from model_files import LAYERS, write_moe
from tiny_llama import write_tiny_llama


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    write_moe(tmp_path / "moe.gguf")
    return tmp_path / "moe.gguf"


def test_text(moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    arguments = ["pack", str(moe), str(out), "--preset", "1bit", "--type", "blk.1.ffn_up=q2_k", "--type", "none=q2_k"]
    assert cli.main([*arguments, "--effort", "fast", "--threads", "1"]) == 0
    text, bar = capsys.readouterr()
    rows = [line.split() for line in text.splitlines() if line]
    assert rows[0] == ["format", "tensors", "weights", "bytes", "bits"]
    with lutkern.open_gguf(out) as file:
        infos = list(file.tensors.values())
        assert file.tensors["blk.1.ffn_up_exps.weight"].type_name == "q2_k"
    for name in {info.type_name for info in infos}:
        group = [info for info in infos if info.type_name == name]
        weights, n_bytes = sum(i.n_weights for i in group), sum(i.nbytes for i in group)
        assert [name, str(len(group)), str(weights), str(n_bytes), f"{8 * n_bytes / weights:.4f}"] in rows
    weights, n_bytes = sum(i.n_weights for i in infos), sum(i.nbytes for i in infos)
    assert ["all", str(len(infos)), str(weights), str(n_bytes), f"{8 * n_bytes / weights:.4f}"] in rows
    assert next(row for row in rows if row[0] == "before")[2] == str(weights)
    assert "note: rule none=q2_k gave no tensor its format" in text
    assert [str(out)] in rows
    assert "M weights/s" in bar
    assert "100%" in bar


def test_json(moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pack", str(moe), str(tmp_path / "out.gguf"), "--preset", "2bit", "--split-size", "0.3M", "--json"]
    assert cli.main([*arguments, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [p.name for p in tmp_path.iterdir()] == ["moe.gguf"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(out)
    assert planned["seconds"] is None
    assert {**planned, "seconds": 0} == {**result, "seconds": 0}
    assert len(result["files"]) > 1
    assert all(Path(path).is_file() for path in result["files"])
    assert sum(f["tensors"] for f in result["formats"].values()) == result["result"]["tensors"] == 3 + 10 * LAYERS


def test_dry_run_shows_every_tensor(moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pack", str(moe), str(tmp_path / "out.gguf"), "--default", "q6_k", "--dry-run"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["blk.0.attn_q.weight", "256", "x", "256", "f16", "q6_k", "53760", "6.5625", "default"] in rows
    assert out.splitlines()[-1] == "nothing was written"


def test_dry_run_shows_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    assert cli.main(["pack", str(path), str(tmp_path / "out.gguf"), "--default", "q6_k", "--dry-run"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("blk.0.ffn_up.weight"))
    assert row.endswith("default (q6_k does not fit)")


def test_outside_of_the_main_thread(moe: Path, tmp_path: Path) -> None:
    codes: list[int] = []
    arguments = ["pack", str(moe), str(tmp_path / "out.gguf"), "--default", "q8_0", "--json"]
    thread = threading.Thread(target=lambda: codes.append(cli.main(arguments)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_target_bpw(moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pack", str(moe), str(tmp_path / "out.gguf"), "--target-bpw", "2.4", "--candidates", "iq1_s,q2_k,q4_k"]
    assert cli.main([*arguments, "--sample-rows", "4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("blk.1.ffn_up_exps")]
    assert rows[0][7] in ("iq1_s", "q2_k", "q4_k")
    assert 0 < float(rows[0][10]) < 1
    assert rows[0][-1] == "mix"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "1bit"], "lutkern: {out}: pack_file: the file exists, expected a new name or --force"),
        (["--type", "a"], "lutkern: pack_file: rule 'a' has no '=', expected 'REGEX=FORMAT'"),
        (
            ["--candidates", ",", "--target-bpw", "2"],
            "lutkern: pack_file: candidates are empty, expected at least one format",
        ),
    ],
)
def test_errors_are_one_line(
    moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"")
    assert cli.main(["pack", str(moe), str(out), *arguments]) == 2
    assert capsys.readouterr().err.splitlines() == [message.format(out=out)]


@pytest.mark.parametrize(("text", "size"), [("4G", 4 * 10**9), ("1.5m", 1500000), ("2KB", 2000), ("7", 7)])
def test_sizes(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    asked = {}

    def pack_file(*paths: Path, **options: object) -> None:
        asked.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("lutkern.files.command.pack_file", pack_file)
    assert cli.main(["pack", str(moe), str(tmp_path / "o.gguf"), "--split-size", text]) == 2
    assert asked["split_size"] == size


def test_a_wrong_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["pack", "a", "b", "--split-size", "four"])
    assert "argument --split-size: size is 'four', expected a number with K, M, G or T" in capsys.readouterr().err


def test_without_tqdm(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main(["pack", str(moe), str(tmp_path / "out.gguf"), "--preset", "1bit"]) == 2
    message = "lutkern: pack: the tqdm package is not installed, expected it (pip install 'lutkern[pack]')"
    assert capsys.readouterr().err.splitlines() == [message]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_leave_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    source = tmp_path / "in" / "big.gguf"
    source.parent.mkdir()
    rows = np.random.default_rng(0).standard_normal((8192, 1024), np.float32)
    lutkern.write_gguf(source, {f"blk.{i}.w": rows for i in range(4)}, {"general.architecture": "llama"})
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "lutkern", "pack", str(source), str(out / "big.gguf"), "--default", "iq1_m"]
    with subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 10**5 for path in out.iterdir()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == code
    assert list(out.iterdir()) == []


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    """Packing a tensor of 64 MB adds far less than the tensor: neither it nor its float copy is ever in memory."""
    megabytes = 64
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    experts = np.random.default_rng(0).standard_normal((megabytes // 4, 1024, 2048), np.float32).astype(np.float16)
    writer.add_tensor("blk.0.ffn_up_exps.weight", experts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert experts.nbytes == megabytes << 20
    program = f"""
        import resource, gguf, lutkern
        lutkern.pack(__import__("numpy").ones((4, 256), "f4"), "q8_0")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        lutkern.pack_file({str(tmp_path / "in.gguf")!r}, {str(tmp_path / "out.gguf")!r}, default="q8_0")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40 << 10  # in KiB
    with lutkern.open_gguf(tmp_path / "out.gguf") as file:
        expected = lutkern.pack(experts[-1], "q8_0")
        np.testing.assert_array_equal(file["blk.0.ffn_up_exps.weight"][-1].blocks(), expected.blocks())
