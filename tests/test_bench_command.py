"""`lutkern bench` as a command: its options, its errors, its table, its JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import lutkern
from lutkern import bench, cli
from lutkern.bench import command, ggml, measure, rounds
from lutkern.tensor import LAYOUTS

TINY = ["bench", "--shape", "32x256", "--megabytes", "1", "--seconds", "0.001", "--threads", "1"]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_SETTLE_SECONDS", 0)


def test_without_a_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = bench.Options(formats=("iq1_s",), ops=("matvec",), shape=(32, 256), seconds=0.001, megabytes=1)
    alone = bench.run(replace(asked, rival=False, threads=(1,), clock="cpu", layout="blocks"))
    assert (alone.environment["rival"], alone.environment["clock"], alone.notes) == (None, "cpu", ())
    assert [(row.ratio, row.rival_error, row.rival_seconds_best) for row in alone.rows] == [(None, None, None)]
    monkeypatch.setattr(ggml, "load", lambda: None)
    assert bench.run(asked).notes == ("no rival: neither llama-cpp-python nor libggml-python was found",)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shape": (0, 256)}, ValueError, "bench: rows is 0, expected 1 to 65536"),
        ({"shape": (32, 1 << 40)}, ValueError, "bench: cols is 1099511627776, expected 1 to 65536"),
        ({"shape": (32.5, 256)}, TypeError, "bench: rows is float, expected a whole number"),
        ({"shape": (65536, 8192)}, ValueError, "bench: shape is 65536x8192, expected at most 268435456 weights"),
        ({"tokens": (1, 0)}, ValueError, "bench: tokens is 0, expected 1 to 65536"),
        ({"threads": (2000,)}, ValueError, "bench: threads is 2000, expected 1 to 1024"),
        ({"megabytes": 0}, ValueError, "bench: megabytes is 0, expected 1 to 65536"),
        ({"seconds": 0}, ValueError, "bench: seconds is 0, expected more than 0 and at most 3600"),
        ({"seconds": float("nan")}, ValueError, "bench: seconds is nan, expected more than 0 and at most 3600"),
        (
            {"ops": ("pack",)},
            ValueError,
            "bench: unknown operation 'pack', expected one of: matvec, matmul, moe, dequantize",
        ),
        ({"layout": "rows"}, ValueError, "bench: unknown layout 'rows', expected one of: all, blocks, tiles"),
        ({"clock": "sun"}, ValueError, "bench: unknown clock 'sun', expected one of: wall, cpu"),
        ({"clock": "cpu", "threads": (1, 2)}, ValueError, "bench: clock is cpu with 1, 2 threads, expected 1 thread"),
    ],
)
def test_wrong_options(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        bench.run(replace(bench.Options(megabytes=1), **change))
    assert str(caught.value) == message


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, "--format", "iq1_m", "--layout", "blocks", "--op", "matvec", "moe", "--no-rival"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert f" cores, kernels {lutkern.info()['isa']}, wall time, no rival" in lines[0]
    assert lines[2].split() == [
        "format", "layout", "op", "shape", "tokens", "threads", "G/s", "GB/s", "roofline", "spread", "ratio", "error"
    ]  # fmt: skip
    rows = [line.split() for line in lines[3:]]
    assert [row[:6] for row in rows] == [["iq1_m", "blocks", op, "32x256", "1", "1"] for op in ("matvec", "moe")]
    assert [(row[9], row[11], row[12]) for row in rows] == [("%", "%", "-")] * 2
    assert err.splitlines() == ["iq1_m blocks matvec, tokens 1, threads 1", "iq1_m blocks moe, tokens 1, threads 1"]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, "--format", "iq3_s", "--op", "matmul", "--tokens", "2", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert set(found) == {"environment", "rows", "notes"}
    assert [row["tokens"] for row in found["rows"]] == [2, 3] * len(LAYOUTS)
    assert found["environment"]["packages"]["lutkern"] == lutkern.__version__
    assert {"cpu", "cores", "isa", "rival", "clock", "megabytes", "date"} <= set(found["environment"])


def test_what_the_command_asks_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[bench.Options] = []

    def run(given: bench.Options, report: Any) -> bench.Result:
        asked.append(given)
        where = {"cpu": "x", "cores": 2, "isa": "avx2", "clock": "wall", "rival": "libggml-python 0"}
        return bench.Result(where, (), ("no rival here",))

    monkeypatch.setattr(measure, "run", run)
    assert cli.main(["bench"]) == 0
    assert cli.main(["bench", "--model", "qwen3-30b", "--op", "moe", "moe", "--threads", "1", "2"]) == 0
    assert cli.main(["bench", "--shape", "1408x4096", "--layout", "tiles", "--clock", "cpu", "--no-rival"]) == 0
    default = bench.Options()
    assert asked[0] == default
    assert asked[1] == replace(default, shape=(768, 2048), ops=("moe",), threads=(1, 2))
    assert asked[2] == replace(default, shape=(1408, 4096), layout="tiles", clock="cpu", rival=False)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "x, 2 cores, kernels avx2, wall time, ratio to libggml-python 0"
    assert out[-1] == "note: no rival here"


def test_cells_with_a_rival() -> None:
    row = bench.Row(
        "iq1_m", "tiles", "avx512", "gemv", "matvec", 1536, 5120, 160, 1, 2, 1.95,
        40, 1e-4, 1.1e-4, 0.034, 71.49, 17.43, 31.2, 0.5586, 3e-4, 3.3e-4, 3.004, 0.00549, 0.0065,
    )  # fmt: skip
    expected = ("iq1_m", "tiles", "matvec", "1536x5120", 1, 2, "71.5", "17.43", "56 %", "3 %", "3.00x", "0.0055")
    assert command._cells(row) == expected


@pytest.mark.parametrize("text", ["1536", "1536x", "x5120", "-1x5", "1x2x3", "1536 x 5120", "1e3x5", "9999999999x1"])
def test_a_wrong_shape(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", f"--shape={text}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"lutkern: bench: --shape is {text!r}, expected ROWSxCOLS, as in 1536x5120"


def test_an_unknown_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, "--format", "iq9_z"]) == 2
    assert capsys.readouterr().err.startswith("lutkern: unknown format 'iq9_z', expected one of: iq1_s, ")


@pytest.mark.parametrize(
    "arguments", [["--model", "gpt-2"], ["--op", "pack"], ["--shape", "1x1", "--model", "glm-4.7"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *arguments])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: lutkern bench")
