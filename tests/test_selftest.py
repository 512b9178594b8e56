"""The golden vectors and what holds against them."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import lutkern
from lutkern import selftest


def test_every_kernel_of_this_machine_passes():
    report = selftest.run()
    assert [r for r in report["results"] if not r["ok"]] == []
    assert report["ok"]
    assert {r["isa"] for r in report["results"]} == set(lutkern.isas())
    assert {r["format"] for r in report["results"] if r["op"] == "matvec"} == {f.name for f in lutkern.formats()}
    assert len(report["results"]) == len(lutkern.isas()) * (3 * len(lutkern.formats()) + 1)


@pytest.mark.parametrize("op", ["dequantize", "matvec", "moe"])
def test_a_wrong_result_is_found(op, monkeypatch):
    monkeypatch.setattr(selftest, op, lambda *arguments: 1.001 * getattr(lutkern, op)(*arguments))
    report = selftest.run()
    assert not report["ok"]
    wrong = {(r["op"], r["ok"]) for r in report["results"]}
    assert (op, False) in wrong
    assert ("matmul", True) in wrong


def test_the_vectors_are_what_the_judges_say():
    script = Path(__file__).parent / "generate_golden.py"
    target = Path(__file__).parents[1] / "python" / "lutkern" / "golden.json"
    shipped = resources.files("lutkern").joinpath("golden.json").read_text()
    assert shipped == target.read_text()
    subprocess.run([sys.executable, str(script), "--check"], check=True)


def test_the_vectors_hold_no_trivial_bytes():
    golden = json.loads(resources.files("lutkern").joinpath("golden.json").read_text())
    for entry in golden["formats"].values():
        assert len(set(base64.b64decode(entry["blocks"]))) > 50
        assert max(abs(v) for v in entry["matmul"]) > 0
