"""bench/pack_quality.py, on a tiny model: its figures belong together, its table and its CSV file agree."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import lutkern
from tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "pack_quality.py"
    spec = importlib.util.spec_from_file_location("pack_quality", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return script.Model(write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"), windows=3, tokens=40)


def test_importance_is_the_mean_square_of_what_down_reads(model: Any) -> None:
    assert [importance.shape for importance in model.importance] == [(512,), (512,)]
    assert not np.allclose(model.importance[0], model.importance[1])


def test_the_error_counts_layers_alike(model: Any) -> None:
    assert model.error(model.downs) == 0
    assert model.error([1.1 * down for down in model.downs]) == pytest.approx(0.1, rel=1e-4)
    assert model.error([model.downs[0], 1.1 * model.downs[1]]) == pytest.approx(0.1 / 2**0.5, rel=1e-4)


def test_equal_packers_differ_by_nothing(script: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.ggml_rival, "pack", lambda w, fmt, i: lutkern.pack(w, fmt, importance=i))
    (q6,) = (fmt for fmt in lutkern.formats() if fmt.name == "q6_k")
    row = script.compare(model, q6, {}, 1)
    assert (row["gain"], row["gain_se_windows"], row["gain_se_tokens"]) == (0, 0, 0)
    for name in ("error", "perplexity", "kl", "kl_p95", "top1"):
        assert row[f"{name}_lutkern"] == row[f"{name}_ggml"]


def test_table_and_file(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    out = tmp_path / "out.csv"
    script.main([
        "--model", str(path), "--windows", "3", "--tokens", "40", "--formats", "iq2_xxs", "q6_k", "--effort", "fast",
        "--out", str(out),
    ])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("117 predictions, 3 windows; perplexity unpacked ")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert {len(row) for row in cells} == {11}
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["format"] for row in rows] == ["iq2_xxs", "q6_k"]
    assert [row[0] for row in cells[3:]] == ["`iq2_xxs`", "`q6_k`"]
    for row, shown in zip(rows, cells[3:], strict=True):
        assert row["effort"] == "fast"
        assert shown[4] == f"{float(row['perplexity_lutkern']):.2f}"
        ratio = float(row["perplexity_ggml"]) / float(row["perplexity_lutkern"])
        assert float(row["gain"]) == pytest.approx(np.log(ratio), rel=1e-6)
        assert shown[10] == f"{float(row['gain']):+.4f} +- {float(row['gain_se_windows']):.4f}"
    assert float(rows[1]["error_lutkern"]) < 0.05 < float(rows[0]["error_lutkern"])
