"""bench/: its suites run, the record of product_speed.py holds what was measured, and the pictures show it."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lutkern
from lutkern.bench import Row
from lutkern.tensor import LAYOUTS

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        names = ("records", "product_speed", "plot")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name in names:
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def record(scripts: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("record") / "machine" / "today-product_speed.csv"
    isa = lutkern.isas()[-1]
    scripts.product_speed.main([
        "--quick", "--formats", "iq2_xxs", "--isas", isa, "--shapes", "256x512", "--megabytes", "1", "--threads", "1",
        "--tokens", "1", "2", "--ops", "matvec", "matmul", "moe", "--seconds", "0.001", "--out", str(out),
    ])  # fmt: skip
    return out


def test_the_record(scripts: SimpleNamespace, record: Path) -> None:
    with open(record, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [field.name for field in fields(Row)]
    layouts = LAYOUTS
    found = [(row["layout"], row["op"], row["tokens"]) for row in rows]
    products = [("matvec", "1"), ("matmul", "1"), ("matmul", "2")]
    expected = [(layout, *rest) for layout in layouts for rest in products]
    assert found == [*expected, *((layout, "moe", "1") for layout in layouts)]
    for row in rows:
        assert (row["format"], row["isa"], row["threads"]) == ("iq2_xxs", lutkern.isas()[-1], "1")
        assert (row["rows"], row["cols"]) == ("256", "512")
        assert float(row["gweights_per_s"]) > 0
    environment = json.loads(record.with_suffix(".json").read_text())
    assert environment == scripts.records.environment(record)
    assert environment["isas"] == [lutkern.isas()[-1]]
    assert "isa" not in environment
    assert environment["command"].startswith("python bench/product_speed.py --quick --formats iq2_xxs ")
    assert environment["seconds"] == 0.001


def test_a_machine_has_a_name_for_a_folder(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts.product_speed, "cpu_name", lambda: "Intel(R) Xeon(R) @ 2.00GHz")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert scripts.product_speed.machine_name() == "intel-r-xeon-r-2-00ghz-8-cores"
    out = scripts.product_speed.parse(["--machine", "box"]).out
    assert out.parent == scripts.records.FOLDER / "box"
    assert out.name.endswith("-product_speed.csv")


def test_jobs(scripts: SimpleNamespace) -> None:
    arguments = ["--formats", "iq1_s", "q8_0", "--isas", "scalar", "--models", "glm-4.7", "qwen3-30b"]
    options = scripts.product_speed.parse([*arguments, "--down", "--ops", "matvec", "moe"])
    found = [job[2:] for job in scripts.product_speed.jobs(options) if job[:2] == ("q8_0", "scalar")]
    shapes = ["1536x5120", "768x2048", "5120x1536", "2048x768"]
    assert found == [*((["matvec"], shape) for shape in shapes), *((["moe"], shape) for shape in shapes[:2])]
    assert len(scripts.product_speed.jobs(options)) == 2 * len(found)
    assert options.threads == sorted({1, lutkern.num_threads()})


def test_a_run_that_fails_says_why(scripts: SimpleNamespace, tmp_path: Path) -> None:
    arguments = ["--formats", "iq9_z", "--isas", "scalar", "--out", str(tmp_path / "x.csv"), "--megabytes", "1"]
    with pytest.raises(SystemExit, match=r"^iq9_z on scalar: lutkern: unknown format 'iq9_z', expected one of: iq1_s"):
        scripts.product_speed.main(arguments)
    assert not (tmp_path / "x.csv").exists()


def line(**change: Any) -> dict[str, str]:
    row: dict[str, Any] = {"format": "iq1_m", "layout": "blocks", "isa": "avx2", "op": "matvec", "rows": 1536}
    row |= {"cols": 5120, "tokens": 1, "threads": 1, "bits_per_weight": 1.75, "gweights_per_s": 20.0}
    row |= {"gbytes_per_s": 4.0, "roofline_gbytes_per_s": 25.0, "seconds_median": 1.0, "rival_seconds_median": 2.0}
    return {name: str(value) for name, value in (row | change).items()}


TILES = {"layout": "tiles", "bits_per_weight": 3.5, "gbytes_per_s": 24.0, "gweights_per_s": 60.0, "seconds_median": 0.5}


def test_speeds_of_ggml_are_those_of_blocks(scripts: SimpleNamespace) -> None:
    speeds = scripts.plot.speeds
    assert speeds([line(), line(**TILES)], "gbytes_per_s") == {"ggml": 2.0, "blocks": 4.0, "tiles": 24.0}
    assert speeds([line(**TILES)], "gbytes_per_s") == {"ggml": 3.0, "tiles": 24.0}
    assert speeds([line(**TILES)], "gweights_per_s") == {"ggml": 15.0, "tiles": 60.0}
    assert speeds([line(rival_seconds_median="")], "gbytes_per_s") == {"blocks": 4.0}


def test_one_isa_and_shape_are_shown(scripts: SimpleNamespace) -> None:
    rows = [line(), line(isa="scalar"), line(rows=5120, cols=1536), line(op="matmul")]
    assert scripts.plot.chosen(rows, "matvec", None, None) == rows[:1]
    assert scripts.plot.chosen(rows, "matvec", "scalar", None) == rows[1:2]
    assert scripts.plot.chosen(rows, "matvec", None, "5120x1536") == rows[2:3]
    with pytest.raises(SystemExit, match=r"^plot: no rows of moe for isa None and shape None$"):
        scripts.plot.chosen(rows, "moe", None, None)
    with pytest.raises(SystemExit, match=r"^plot: no rows of matvec for isa avx512 and shape None$"):
        scripts.plot.chosen(rows, "matvec", "avx512", None)


def test_the_roofline_picture(scripts: SimpleNamespace) -> None:
    rows = [
        line(),
        line(**TILES),
        line(threads=2, roofline_gbytes_per_s=32.0),
        line(format="iq3_s", bits_per_weight=3.4375),
    ]
    figure = scripts.plot.roofline(rows, "title")
    one, two = figure.axes
    assert [axes.get_title() for axes in (one, two)] == ["1 thread", "2 threads"]
    assert [label.get_text() for label in one.get_yticklabels()] == ["iq1_m", "iq3_s"]
    assert sorted(bar.get_width() for bars in one.containers for bar in bars) == [2, 2, 4, 4, 24]
    texts = {text.get_text() for text in one.texts}
    assert {"2.0  (8 %)", "4.0  (16 %)", "24.0  (96 %)", " 25.0"} == texts
    (inside,) = (text for text in one.texts if text.get_text().startswith("24.0"))
    assert (inside.get_ha(), inside.get_color()) == ("right", "white")
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["roofline: a plain read of memory", "ggml", "lutkern, blocks", "lutkern, tiles"]


def test_the_picture_of_batches(scripts: SimpleNamespace) -> None:
    rows = [
        line(op="matmul", tokens=n, gweights_per_s=10.0 * n, format=fmt)
        for n in (1, 4, 31, 32)
        for fmt in ("iq1_m", "iq2_s")
    ]
    figure = scripts.plot.batches([*rows, line(op="matmul", tokens=4, **TILES)], "title")
    first, second = (axes for axes in figure.axes if axes.get_visible())
    assert (first.get_title(), second.get_title()) == ("iq1_m", "iq2_s")
    drawn = {curve.get_label(): (list(curve.get_xdata()), list(curve.get_ydata())) for curve in first.lines}
    assert drawn["lutkern, blocks"] == ([1, 4, 31, 32], [10, 40, 310, 320])
    assert drawn["ggml"] == ([1, 4, 31, 32], [5, 20, 155, 160])
    assert drawn["lutkern, tiles"] == ([4], [60])
    assert list(first.get_xticks()) == [1, 4, 32]
    assert scripts.plot._ticks([3, 5]) == [3, 5]


def test_both_pictures_of_a_record(
    scripts: SimpleNamespace, record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts.plot.main([str(record), "--out", str(tmp_path)])
    names = [f"today-product_speed-{name}.png" for name in ("roofline", "batches")]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in names]
    for name in names:
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_the_suites_run() -> None:
    pytest.importorskip("pytest_benchmark")
    pytest.importorskip("threadpoolctl")
    contestants = [*LAYOUTS, "ggml", "numpy"]
    tests = [f"test_matvec.py::test_matvec[qwen3-30b-gate-iq2_xxs-{who}]" for who in contestants]
    tests += [f"test_matmul.py::test_matmul[qwen3-30b-down-iq2_xxs-{who}-3]" for who in contestants]
    tests += [f"test_moe.py::test_moe[qwen3-30b-gate-iq2_xxs-{who}-1]" for who in contestants]
    tests += [f"test_dequantize.py::test_dequantize[qwen3-30b-gate-iq2_xxs-{who}]" for who in contestants[:-1]]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(BENCH.parent / "pyproject.toml"),
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--benchmark-disable", "--megabytes", "1", "--model", "qwen3-30b", "--format", "iq2_xxs"]
    command += [f"{BENCH}/{test}" for test in tests]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert f"{len(tests)} passed" in done.stdout
