"""`lutkern selftest --device cuda` and `lutkern bench --device cuda`."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import lutkern
from lutkern import selftest
from lutkern.bench import gpu as bench_gpu
from lutkern.cli import main

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.fixture
def small_copies(monkeypatch):
    monkeypatch.setattr(selftest, "_COPY_BYTES", (1 << 12, 1 << 60))


def test_selftest_passes(capsys, small_copies):
    assert main(["selftest", "--device", "cuda:0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert {r["format"] for r in found["results"]} >= {f.name for f in lutkern.formats()}
    operations = {r["op"] for r in found["results"] if r["format"] == "iq1_m"}
    assert len(operations) == 2 * (2 + 2 * len(selftest._TOKENS)) + 4
    assert found["device"] == found["cuda"]["devices"][0]["detail"]
    assert found["date"].startswith("20")
    assert {r["isa"] for r in found["results"]} == {"cuda:0"}
    assert [c["bytes"] for c in found["copy"]] == [1 << 12]
    assert found["copy"][0]["gbytes_per_s"] > 0


def test_selftest_finds_a_wrong_product(capsys, small_copies, monkeypatch):
    real = selftest.matmul
    monkeypatch.setattr(selftest, "matmul", lambda t, x, exact=False: real(t, x, exact=exact) * np.float32(1.001))
    assert main(["selftest", "--device", "cuda"]) == 1
    text = capsys.readouterr().out
    assert "a product with one activation is not 127 times the weight" in text
    assert "copy of 0 MiB: " in text


def test_selftest_without_the_device(capsys):
    assert main(["selftest", "--device", "cuda:50"]) == 2
    assert "lutkern: selftest: no device 'cuda:50', the last one is cuda:" in capsys.readouterr().err


def measured(monkeypatch, lines, **options):
    monkeypatch.setattr(bench_gpu, "_LEAST_ROUNDS", 1)
    small = bench_gpu.Options(shapes={"tiny": (32, 256)}, seconds=1e-9, n_bytes=1 << 12, **options)
    return json.loads(json.dumps(bench_gpu.run(small, lines.append)))


def test_bench(tmp_path, monkeypatch):
    lines: list[str] = []
    found = measured(monkeypatch, lines, formats=("iq1_m", "q4_k"), ops=("matvec", "matmul"), tokens=(1, 3))
    assert found["device"]["name"] == "cuda:0"
    assert found["date"].startswith("20")
    assert found["system"]
    assert found["copy_gbytes_per_s"] > 0
    keys = [(r["format"], r["op"], r["tokens"]) for r in found["rows"]]
    assert keys == [(f, *k) for f in ("iq1_m", "q4_k") for k in (("matvec", 1), ("matmul", 3))]
    kernels = [r["kernel"] for r in found["rows"]]
    assert kernels == ["matvec_iq1_m", "matmul_small_iq1_m", "product_any", "product_any"]
    for row in found["rows"]:
        assert 0 < row["error"] < 0.05
        assert row["gbytes_per_s"] > 0
        assert row["copy_part"] == pytest.approx(row["gbytes_per_s"] / found["copy_gbytes_per_s"])
    assert "iq1_m matvec tiny 1: " in "\n".join(lines)
    assert "matmul_small_iq1_m" in bench_gpu.text_of(found)
    bench_gpu.write_record(found, tmp_path / "record.csv")
    with (tmp_path / "record.csv").open() as file:
        assert [(r["format"], r["op"], int(r["tokens"])) for r in csv.DictReader(file)] == keys
    assert json.loads((tmp_path / "record.json").read_text()) == found


def test_bench_of_a_layer(monkeypatch):
    one, more = measured(monkeypatch, [], formats=("iq1_m",), ops=("moe",), tokens=(1, 5))["rows"]
    assert (one["op"], one["tokens"], one["kernel"]) == ("moe", 1, "moe_up_iq1_m")
    assert (more["tokens"], more["kernel"]) == (5, "moe_up_batch_iq1_m")  # 40 pairs of a token and an expert
    assert 0 < one["error"] < 0.05


def test_options_of_the_cpu_are_refused(capsys):
    for option in (("--threads", "2"), ("--layout", "tiles"), ("--clock", "cpu")):
        assert main(["bench", "--device", "cuda", *option]) == 2
        text = "lutkern: bench: --threads, --layout or --clock with cuda, expected them for the CPU only\n"
        assert capsys.readouterr().err == text


def test_the_bench_command(capsys, monkeypatch):
    asked: list[bench_gpu.Options] = []
    found = {"device": {"name": "cuda:0", "detail": "x"}, "copy_gbytes_per_s": 1.0, "rows": []}
    monkeypatch.setattr(bench_gpu, "run", lambda options, report: (asked.append(options), found)[1])
    assert (
        main(["bench", "--device", "cuda", "--quick", "--format", "iq1_s", "--shape", "64x512", "--megabytes", "3"])
        == 0
    )
    assert "copy 1.0 GB/s" in capsys.readouterr().out
    assert main(["bench", "--device", "cuda", "--op", "moe", "dequantize", "--json"]) == 0
    first, second = asked
    assert (first.formats, first.shapes, first.n_bytes, first.quick) == (("iq1_s",), {"": (64, 512)}, 3 << 20, True)
    assert (second.ops, list(second.shapes)) == (("moe",), ["glm-4.7", "glm-5.2"])
    assert second.chosen_tokens("moe") == bench_gpu.TOKENS
    assert first.chosen_tokens("matmul") == (16,)
    assert [f.name for f in bench_gpu.Options(quick=True).chosen_formats()] == list(bench_gpu.QUICK_FORMATS)
