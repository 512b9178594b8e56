"""`lutkern bench`: what it measures is right, takes turns, and is told as asked."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import lutkern
from lutkern import bench, cli
from lutkern.bench import command, ggml, measure, options, rounds, weights
from lutkern.bench.bandwidth import Reader
from lutkern.bench.rounds import take_turns
from lutkern.bench.work import Layer, Matrices, Ours, Work, relative_error

TINY = ["bench", "--shape", "32x256", "--megabytes", "1", "--seconds", "0.001", "--threads", "1"]


def named(name: str) -> lutkern.Format:
    (found,) = (fmt for fmt in lutkern.formats() if fmt.name == name)
    return found


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_SETTLE_SECONDS", 0)


@pytest.fixture
def rival() -> ggml.Ggml:
    found = ggml.load()
    if found is None:
        pytest.skip("no package with ggml is installed")
    return found


# ---- what is measured on


def test_layouts_are_those_that_a_weight_can_have(fmt: lutkern.Format) -> None:
    found = bench.layouts_of(fmt)
    assert found[0] == "blocks"
    t = lutkern.PackedTensor.from_blocks(np.zeros((2, fmt.row_bytes(512)), np.uint8), fmt, (2, 512))
    assert [t.to(layout=layout).layout for layout in found] == list(found)


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
    fmt = named("iq1_m")  # 56 bytes for 256 weights
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


@pytest.mark.parametrize("op", ["matvec", "matmul", "dequantize"])
def test_work_on_matrices(op: str, integer: lutkern.Format, rival: ggml.Ggml) -> None:
    matrices = Matrices(integer, 24, 512, 1, rival)
    tokens = 5 if op == "matmul" else 1
    for layout in bench.layouts_of(integer):
        work = matrices.work(op, layout, tokens, threads=2)
        assert (work.weights, work.experts) == (24 * 512 * tokens, 2)
        assert work.n_bytes == pytest.approx(24 * 512 * work.bits_per_weight / 8)
        assert work.theirs is not None
        assert work.rival_error is not None
        if op == "dequantize":
            assert (work.error, work.rival_error) == (0, 0)
        else:
            assert 0 < work.error < 0.015
            assert 0 < work.rival_error < 0.03
        for _ in range(3):
            work.ours.step()
            work.theirs.step()
        work.theirs.rest()
        work.close()


def test_work_on_a_layer(integer: lutkern.Format, rival: ggml.Ggml) -> None:
    layer = Layer(integer, 256, 512, 1, rival)
    for layout in bench.layouts_of(integer):
        work = layer.work("moe", layout, 3, threads=2)
        assert (work.weights, work.experts) == (3 * 8 * 3 * 256 * 512, 16)
        assert work.rival_error is not None
        assert 0 < work.error < 0.03
        assert 0 < work.rival_error < 0.06
        used = np.mean([len(set(call.ravel())) for call in weights.routes(16, 3)])
        assert work.n_bytes == pytest.approx(used * 3 * 256 * 512 * work.bits_per_weight / 8)
        work.close()


def test_a_format_that_the_rival_lacks_runs_alone(rival: ggml.Ggml) -> None:
    padded = Matrices(named("iq2_xs"), 24, 288, 1, rival).work("matvec", "blocks", 1, 1)
    assert padded.theirs is None
    assert padded.rival_error is None
    assert padded.error < 0.015
    assert Matrices(named("f32"), 24, 256, 1, rival).work("dequantize", "blocks", 1, 1).theirs is None
    assert Layer(named("iq2_xs"), 32, 256, 1, rival).work("moe", "blocks", 1, 1).theirs is None


# ---- ggml


def test_ggml_multiplies_with_the_matrix_that_it_is_told(rival: ggml.Ggml) -> None:
    fmt = named("iq3_s")
    blocks = ggml.aligned(weights.random_blocks(fmt, (3, 16, 256)))
    exact = lutkern.dequantize(lutkern.PackedTensor.from_blocks(blocks, fmt, (3, 16, 256)))
    x = np.random.default_rng(5).standard_normal((4, 256), np.float32)
    products = ggml.GgmlProducts(rival, fmt, blocks, x, 2)
    for e in (2, 0, 1):
        assert relative_error(products.compute(e), x @ exact[e].T) < 0.03
    for _ in range(2):
        products.step()
    assert relative_error(products.out, x @ exact[1].T) < 0.03
    products.close()
    decoded = ggml.GgmlDequantize(rival, fmt, blocks, 256, 3)
    assert np.array_equal(decoded.compute(1), exact[1])
    decoded.close()


def test_ggml_runs_the_experts_of_each_call(rival: ggml.Ggml) -> None:
    fmt, (tokens, k, hidden, inter) = named("q8_0"), (2, 8, 64, 96)
    sizes = [(8, inter, hidden), (8, inter, hidden), (8, hidden, inter)]
    blocks = [weights.random_blocks(fmt, size, seed) for seed, size in enumerate(sizes)]
    gate, up, down = (lutkern.PackedTensor.from_blocks(b, fmt, size) for b, size in zip(blocks, sizes, strict=True))
    routes = weights.routes(8, tokens)
    x = np.random.default_rng(5).standard_normal((tokens, hidden), np.float32)
    layer = ggml.GgmlMoe(rival, fmt, [ggml.aligned(b) for b in blocks], x, routes, 2)
    for call in (1, 0):
        exact = lutkern.moe(x, routes[call], np.ones((tokens, k), np.float32), gate, up, down, exact=True)
        assert relative_error(layer.compute(call).sum(1), exact) < 0.03
    layer.close()


def test_ggml_says_what_it_knows(rival: ggml.Ggml) -> None:
    fmt = named("iq1_s")
    assert rival.supports(fmt, 512)
    assert not rival.supports(fmt, 288)
    assert not rival.supports(replace(fmt, name="iq9_z"), 512)
    assert rival.decodes(fmt)
    assert not rival.decodes(named("f32"))
    assert rival.name.split()[0] in {"llama-cpp-python", "libggml-python"}


def test_ggml_without_a_package_or_too_old_is_no_rival(rival: ggml.Ggml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ggml._BASE, "ggml_of_another_time", (None,))
    assert ggml.load.__wrapped__() is None
    monkeypatch.undo()
    assert ggml.load.__wrapped__() is not None
    monkeypatch.setattr(ggml, "_PACKAGES", (("none", "no_such_module", "lib"),))
    assert ggml.load.__wrapped__() is None


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
    case = measure._Case("iq1_s", "blocks", "avx2", "matvec", 2000, 5000, 1, 1)
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
    layouts = sum(len(bench.layouts_of(fmt)) for fmt in asked.formats)
    assert len(found.rows) == len(lines) == layouts * 2 * (1 + 2 + 2 + 1)
    assert lines[0] == "iq2_xxs blocks matvec, tokens 1, threads 1"
    assert len({(r.format, r.layout, r.op, r.tokens, r.threads) for r in found.rows}) == len(found.rows)
    for row in found.rows:
        picks = {"moe": 8 * 3 * row.tokens, "matmul": row.tokens}.get(row.op, 1)
        assert row.gweights_per_s == pytest.approx(picks * 256 * 256 / row.seconds_median / 1e9)
        assert row.roofline == pytest.approx(row.gbytes_per_s / row.roofline_gbytes_per_s)
        assert 0 < row.seconds_best <= row.seconds_median
        assert row.rounds >= 3
        assert row.isa == lutkern.info()["isa"]
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


def test_without_a_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = bench.Options(formats=("iq1_s",), ops=("matvec",), shape=(32, 256), seconds=0.001, megabytes=1)
    alone = bench.run(replace(asked, rival=False, threads=(1,), clock="cpu", layout="blocks"))
    assert (alone.environment["rival"], alone.environment["clock"], alone.notes) == (None, "cpu", ())
    assert [(row.ratio, row.rival_error, row.rival_seconds_best) for row in alone.rows] == [(None, None, None)]
    monkeypatch.setattr(ggml, "load", lambda: None)
    assert bench.run(asked).notes == ("no rival: neither llama-cpp-python nor libggml-python was found",)


def test_layouts_that_a_format_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"iq1_s": ("blocks", "tiles"), "f32": ("blocks",)}
    monkeypatch.setattr(options, "layouts_of", lambda fmt: has[fmt.name])
    asked = bench.Options(formats=("f32", "iq1_s"), layout="tiles")
    plan, notes = options.layouts_to_measure(asked)
    assert [(fmt.name, layouts) for fmt, layouts in plan] == [("iq1_s", ("tiles",))]
    assert notes == ["f32 has no layout tiles"]
    plan, notes = options.layouts_to_measure(replace(asked, layout="all"))
    assert [(fmt.name, layouts) for fmt, layouts in plan] == [("f32", ("blocks",)), ("iq1_s", ("blocks", "tiles"))]
    assert notes == []
    with pytest.raises(ValueError, match=r"^bench: layout is tiles, expected one that f32 has: blocks$"):
        options.layouts_to_measure(replace(asked, formats=("f32",)))


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


def test_ggml_that_fails_is_an_error(rival: ggml.Ggml, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = named("q8_0")
    blocks = ggml.aligned(weights.random_blocks(fmt, (1, 4, 32)))
    products = ggml.GgmlProducts(rival, fmt, blocks, np.ones((1, 32), np.float32), 1)
    monkeypatch.setattr(rival.cpu, "ggml_graph_compute", lambda graph, plan: -1)
    with pytest.raises(RuntimeError, match=r"^bench: ggml failed to compute a graph$"):
        products.step()
    products.close()


# ---- the command


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
    assert [row["tokens"] for row in found["rows"]] == [2, 3] * len(bench.layouts_of("iq3_s"))
    assert found["environment"]["packages"]["lutkern"] == lutkern.__version__
    assert {"cpu", "cores", "isa", "rival", "clock", "megabytes", "date"} <= set(found["environment"])


def test_what_the_command_asks_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[bench.Options] = []

    def run(given: bench.Options, report: Any) -> bench.Result:
        asked.append(given)
        where = {"cpu": "x", "cores": 2, "isa": "avx2", "clock": "wall", "rival": "libggml-python 0"}
        return bench.Result(where, (), ("f32 has no layout tiles",))

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
    assert out[-1] == "note: f32 has no layout tiles"


def test_cells_with_a_rival() -> None:
    row = bench.Row(
        "iq1_m", "tiles", "avx512", "matvec", 1536, 5120, 160, 1, 2, 1.95, 40, 1e-4, 1.1e-4, 0.034, 71.49, 17.43, 31.2,
        0.5586, 3e-4, 3.3e-4, 3.004, 0.00549, 0.0065,
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


def test_import_of_lutkern_leaves_the_bench_out() -> None:
    program = "import sys, lutkern; print([name for name in sys.modules if name.startswith('lutkern.bench')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
