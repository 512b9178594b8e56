"""What `lutkern bench` measures on, the turns, and the rows that they come to."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import lutkern
from lutkern import bench
from lutkern.bench import measure, rounds, weights
from lutkern.bench.bandwidth import Reader
from lutkern.bench.rounds import take_turns
from lutkern.bench.work import Ours, Work, relative_error
from lutkern.formats import find_format
from lutkern.tensor import LAYOUTS


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_SETTLE_SECONDS", 0)


# ---- what is measured on


@pytest.mark.parametrize("packs", [True, False])
def test_weights_are_finite_and_differ(fmt: lutkern.Format, packs: bool) -> None:
    blocks = weights.random_blocks(replace(fmt, can_pack=fmt.can_pack and packs), (2, 40, 512))
    assert blocks.shape == (2, 40, fmt.row_bytes(512))
    w = lutkern.dequantize(lutkern.PackedTensor.from_blocks(blocks, fmt, (2, 40, 512)))
    assert np.isfinite(w).all()
    assert not np.array_equal(w[0], w[1])
    if packs:
        assert w.std() == pytest.approx(1 / 16, rel=0.4)


def test_enough_experts_and_no_more() -> None:
    fmt = find_format("iq1_m")  # 56 bytes for 256 weights
    assert weights.experts_to_rotate(fmt, [(10, 256)], 5600, 1) == 10
    assert weights.experts_to_rotate(fmt, [(10, 256)], 5601, 1) == 11
    assert weights.experts_to_rotate(fmt, [(10, 256), (5, 512)], 11 * 1120, 8) == 16


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_every_expert_has_its_turn(tokens: int) -> None:
    routes = weights.routes(24, tokens)
    assert routes.shape[1:] == (tokens, 8)
    assert all(len(set(token)) == 8 for call in routes for token in call)
    counts = np.bincount(routes.ravel(), minlength=24)
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1


def test_relative_error() -> None:
    exact = np.array([3.0, 4.0])
    assert relative_error(exact, exact) == 0
    assert relative_error(np.array([3, 4.5], np.float32), exact) == pytest.approx(0.1)


# ---- turns


class Clockwork:
    """A contestant whose steps take as long as it is told, on a clock of its own."""

    now = 0.0

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def step(self) -> None:
        Clockwork.now += self.seconds
        self.log.append(self.name)

    def rest(self) -> None:
        self.log.append(self.name.upper())

    def close(self) -> None: ...


def test_contestants_take_turns_forwards_and_backwards() -> None:
    log: list[str] = []
    a, b = Clockwork("a", 0.004, log), Clockwork("b", 0.5, log)
    found = take_turns([a, b], 0, lambda: Clockwork.now)
    assert np.allclose(found, [[0.004] * 3, [0.5] * 3])
    # Twice to see how long a step is. Then a turn of a has one step to wake up and two that count; one of b, whose
    # steps are long, has one.
    assert "".join(log) == "aaAbbB" + "aaaAbB" + "bBaaaA" + "aaaAbB"


class Memory(Clockwork):
    bytes_per_step = 4_000_000


def test_a_row_says_what_the_turns_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "clock_of", lambda name: lambda: Clockwork.now)
    ours, theirs, memory = Clockwork("a", 0.002, []), Clockwork("b", 0.006, []), Memory("m", 0.001, [])
    work = Work(ours, theirs, 7, 10_000_000, 2_000_000, 1.6, 0.01, 0.02)
    case = measure._Case("iq1_s", "blocks", "avx2", "gemv_iq1_s_avx2", "matvec", 2000, 5000, 1, 1)
    row = measure._row(case, work, memory, bench.Options(seconds=0))  # type: ignore[arg-type]
    assert (row.experts, row.rounds, row.rival_error) == (7, 3, 0.02)
    found = [
        row.seconds_best,
        row.seconds_median,
        row.spread,
        row.rival_seconds_best,
        row.rival_seconds_median,
        row.ratio,
    ]
    assert np.allclose(np.array(found, float), [0.002, 0.002, 0, 0.006, 0.006, 3])
    assert np.allclose([row.gweights_per_s, row.gbytes_per_s, row.roofline_gbytes_per_s, row.roofline], [5, 1, 4, 0.25])


def test_lutkern_goes_through_its_calls() -> None:
    log: list[str] = []
    ours = Ours([lambda: log.append("a"), lambda: log.append("b")])
    for _ in range(3):
        ours.step()
    assert log == ["a", "b", "a"]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_reader_goes_through_its_memory(threads: int) -> None:
    class Array:
        def __init__(self) -> None:
            self.read: list[int] = []

        def __getitem__(self, part: int) -> Any:
            self.read.append(part)
            return np.ones(4, np.uint8)

    reader = Reader(threads, 4096)
    assert reader.bytes_per_step == 1024 * threads
    arrays = [Array() for _ in range(threads)]
    reader._arrays = arrays  # type: ignore[assignment]
    for _ in range(5):
        reader.step()
    reader.rest()
    reader.close()
    assert [array.read for array in arrays] == [[0, 1, 2, 3, 0]] * threads


# ---- rows


def test_rows(all_threads: None) -> None:
    lutkern.set_num_threads(2)
    asked = bench.Options(
        formats=("iq2_xxs",), ops=bench.OPERATIONS, shape=(256, 256), tokens=(1, 3), threads=(1, 2),
        seconds=0.001, megabytes=1,
    )  # fmt: skip
    lines: list[str] = []
    found = bench.run(asked, lines.append)
    assert lutkern.num_threads() == 2
    assert len(found.rows) == len(lines) == len(LAYOUTS) * 2 * (1 + 2 + 2 + 1)
    assert lines[0] == "iq2_xxs blocks matvec, tokens 1, threads 1"
    assert len({(r.format, r.layout, r.op, r.tokens, r.threads) for r in found.rows}) == len(found.rows)
    for row in found.rows:
        picks = {"moe": 8 * 3 * row.tokens, "matmul": row.tokens}.get(row.op, 1)
        assert row.gweights_per_s == pytest.approx(picks * 256 * 256 / row.seconds_median / 1e9)
        assert row.roofline == pytest.approx(row.gbytes_per_s / row.roofline_gbytes_per_s)
        assert 0 < row.seconds_best <= row.seconds_median
        assert row.rounds >= 3
        assert row.isa == lutkern.info()["isa"]
        assert row.kernel == lutkern.supports(row.format, row.op, layout=row.layout)
        assert row.error < 0.03
        if row.op != "moe":
            one_token = row.gweights_per_s / row.tokens
            assert row.gbytes_per_s == pytest.approx(one_token * row.bits_per_weight / 8)
    if found.environment["rival"] is not None:
        for row in found.rows:
            assert row.ratio is not None
            assert row.rival_seconds_median is not None
            assert row.rival_error is not None
            assert row.rival_seconds_best is not None
            assert 0 < row.rival_seconds_best <= row.rival_seconds_median
            assert row.ratio > 0
            assert row.rival_error < 0.06


def test_import_of_lutkern_leaves_the_bench_out() -> None:
    program = "import sys, lutkern; print([name for name in sys.modules if name.startswith('lutkern.bench')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
