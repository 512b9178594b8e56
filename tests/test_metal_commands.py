"""`lutkern selftest --device metal` and `lutkern bench --device metal`, over the fake Objective-C runtime."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import lutkern
from lutkern import selftest
from lutkern.bench import gpu as bench_gpu
from lutkern.cli import main

pytestmark = pytest.mark.usefixtures("metal")


@pytest.fixture
def few(monkeypatch):
    """Formats with and without tiles, and little to copy: what a kernel computes other tests find."""
    chosen = tuple(f for f in lutkern.formats() if f.name in ("iq1_m", "iq2_xxs", "q8_0"))
    monkeypatch.setattr(selftest, "formats", lambda: chosen)
    monkeypatch.setattr(selftest, "_COPY_BYTES", (1 << 12, 1 << 60))


def test_selftest_passes(capsys, few):
    assert main(["selftest", "--device", "metal", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r for r in found["results"] if not r["ok"]] == []
    operations = {f: {r["op"] for r in found["results"] if r["format"] == f} for f in ("iq1_m", "q8_0")}
    each = 2 + 2 * len(selftest._TOKENS)
    assert len(operations["iq1_m"]) == 2 * each + 4
    assert len(operations["q8_0"]) == each + 4
    assert {r["isa"] for r in found["results"]} == {"metal:0"}
    assert found["device"] == next(d.detail for d in lutkern.devices() if d.name == "metal:0")
    assert found["metal"] == json.loads(json.dumps(lutkern.info()["metal"]))
    assert [c["bytes"] for c in found["copy"]] == [1 << 12]
    assert found["copy"][0]["gbytes_per_s"] > 0


def test_selftest_finds_a_wrong_product(capsys, few, monkeypatch):
    real = selftest.matmul
    monkeypatch.setattr(selftest, "matmul", lambda t, x, exact=False: real(t, x, exact=exact) * np.float32(1.001))
    assert main(["selftest", "--device", "metal"]) == 1
    assert "a product with one activation is not 127 times the weight" in capsys.readouterr().out


def test_selftest_without_the_device(capsys):
    assert main(["selftest", "--device", "metal:50"]) == 2
    assert "lutkern: selftest: no device 'metal:50', the last one is metal:" in capsys.readouterr().err


def measured(monkeypatch, lines, **options):
    monkeypatch.setattr(bench_gpu, "_LEAST_ROUNDS", 1)
    small = bench_gpu.Options("metal", shapes={"tiny": (32, 256)}, seconds=1e-9, n_bytes=1 << 12, **options)
    return json.loads(json.dumps(bench_gpu.run(small, lines.append)))


def test_bench(tmp_path, monkeypatch):
    lines: list[str] = []
    found = measured(monkeypatch, lines, formats=("iq1_m", "q8_0"), ops=("matvec", "matmul"), tokens=(1, 3))
    assert found["device"]["name"] == "metal:0"
    assert found["copy_gbytes_per_s"] > 0
    keys = [(r["format"], r["op"], r["tokens"]) for r in found["rows"]]
    assert keys == [(f, *k) for f in ("iq1_m", "q8_0") for k in (("matvec", 1), ("matmul", 3))]
    kernels = [r["kernel"] for r in found["rows"]]
    assert kernels == ["matvec_iq1_m", "matmul_small_iq1_m", "product_any_q8_0", "product_any_q8_0"]
    for row in found["rows"]:
        assert 0 < row["error"] < 0.05
        assert row["copy_part"] == pytest.approx(row["gbytes_per_s"] / found["copy_gbytes_per_s"])
    assert "iq1_m matvec tiny 1: " in "\n".join(lines)
    bench_gpu.write_record(found, tmp_path / "record.csv")
    with (tmp_path / "record.csv").open() as file:
        assert [(r["format"], r["op"], int(r["tokens"])) for r in csv.DictReader(file)] == keys
    record = json.loads((tmp_path / "record.json").read_text())
    assert record == found
    assert {"date", "system", "machine", "version", "driver"} <= set(record)


def test_bench_of_a_layer(monkeypatch):
    one, more = measured(monkeypatch, [], formats=("iq1_m",), ops=("moe",), tokens=(1, 5))["rows"]
    assert (one["op"], one["tokens"], one["kernel"]) == ("moe", 1, "moe_up_iq1_m")
    assert (more["tokens"], more["kernel"]) == (5, "moe_up_batch_iq1_m")  # 40 pairs of a token and an expert
    assert 0 < one["error"] < 0.05


def test_options_of_the_cpu_are_refused(capsys):
    assert main(["bench", "--device", "metal", "--threads", "2"]) == 2
    text = "lutkern: bench: --threads, --layout or --clock with metal, expected them for the CPU only\n"
    assert capsys.readouterr().err == text
