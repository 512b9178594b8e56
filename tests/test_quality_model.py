"""`lutkern quality`: the language model of both files, the command, the picture."""

from __future__ import annotations

import json
import pydoc_data.topics
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lutkern
from lutkern import cli
from lutkern.compare import ModelErrors, models
from lutkern.compare.plot import _lanes, check_plot, draw, plot
from lutkern.demo.evaluate import read_text
from tiny_llama import CONTEXT, open_model, write_tiny_llama

Pair = tuple[Path, Path]


def packed_copy(source: Path, target: Path, fmt: str, **metadata: Any) -> Path:
    """Every matrix in another format."""
    with lutkern.open_gguf(source) as file:
        arrays = {name: file.array(name) for name in file}
        tensors = {name: lutkern.pack(w, fmt) if w.ndim == 2 else w for name, w in arrays.items()}
        values = dict(file.metadata.items()) | {key.replace("__", "."): value for key, value in metadata.items()}
        lutkern.write_gguf(target, tensors, values)
    return target


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("model")
    a = write_tiny_llama(folder / "a.gguf", tied=False)
    return a, packed_copy(a, folder / "b.gguf", "iq4_nl")


@pytest.fixture(autouse=True)
def short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the text is enough here, and tokenizing all of it is most of the time."""
    monkeypatch.setattr("pydoc_data.topics.topics", dict(list(pydoc_data.topics.topics.items())[:12]))


# ---- the model


def log_probabilities(path: Path, windows: list[list[int]]) -> Any:
    model, dense, _ = open_model(path)
    logits = np.concatenate([model.logits(window, dense)[:-1] for window in windows]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_figures_of_the_model(pair: Pair) -> None:
    found = lutkern.compare_files(*pair, windows=3, tokens=40).model
    assert found is not None
    windows = read_text(open_model(pair[0])[2], calibration=0, evaluation=3, tokens=40).evaluation
    p, q = (log_probabilities(path, windows) for path in pair)
    truth = np.concatenate([window[1:] for window in windows])
    loss_a, loss_b = (-log[np.arange(3 * 39), truth] for log in (p, q))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    assert (found.name, found.windows, found.tokens, found.predictions) == ("tiny", 3, 40, 3 * 39)
    close = {"rel": 1e-5, "abs": 1e-6}
    assert found.perplexity_a == pytest.approx(np.exp(loss_a.mean()), **close)
    assert found.perplexity_b == pytest.approx(np.exp(loss_b.mean()), **close)
    assert found.loss_increase == pytest.approx((loss_b - loss_a).mean(), **close)
    assert found.loss_increase_error == pytest.approx((loss_b - loss_a).std(ddof=1) / np.sqrt(3 * 39), **close)
    assert found.kl == pytest.approx(kl.mean(), **close)
    assert found.kl_p95 == pytest.approx(np.percentile(kl, 95), **close)
    assert found.kl_p95 > found.kl > 1e-4
    assert found.top1 == (p.argmax(axis=1) == q.argmax(axis=1)).mean()


def test_the_same_model(pair: Pair) -> None:
    found = lutkern.compare_files(pair[0], pair[0], windows=2, tokens=32)
    assert found.model is not None
    assert (found.model.kl, found.model.kl_p95, found.model.top1) == (0.0, 0.0, 1.0)
    assert (found.model.loss_increase, found.model.loss_increase_error) == (0.0, 0.0)
    assert found.model.perplexity_a == found.model.perplexity_b > 1
    assert (found.total.rmse, found.total.max_error, found.total.cosine) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "name", ["token_embd", "output", "output_norm", "blk.1.attn_k", "blk.0.ffn_up", "blk.1.ffn_norm"]
)
def test_every_tensor_of_b_counts(pair: Pair, tmp_path: Path, name: str) -> None:
    with lutkern.open_gguf(pair[0]) as file:
        tensors = {key: np.array(file.array(key)) for key in file}
        # Opposite: unlike a factor, no norm takes it back.
        tensors[f"{name}.weight"] *= np.where(np.arange(tensors[f"{name}.weight"].shape[-1]) % 2, -1, 1).astype(
            np.float32
        )
        lutkern.write_gguf(tmp_path / "b.gguf", tensors, file.metadata)
    found = lutkern.compare_files(pair[0], tmp_path / "b.gguf", windows=1, tokens=32).model
    assert found is not None
    assert found.kl > 1e-4


def test_a_window_is_no_longer_than_either_context(pair: Pair, tmp_path: Path) -> None:
    found = lutkern.compare_files(*pair, windows=1).model
    assert found is not None
    assert (found.tokens, found.predictions) == (CONTEXT, CONTEXT - 1)
    short = packed_copy(pair[0], tmp_path / "b.gguf", "q8_0", llama__context_length=20)
    found = lutkern.compare_files(pair[0], short, windows=1).model
    assert found is not None
    assert found.tokens == 20


def test_broken_weights_show_as_numbers_that_are_not_finite(pair: Pair, tmp_path: Path) -> None:
    with lutkern.open_gguf(pair[0]) as file:
        tensors = {name: np.array(file.array(name)) for name in file}
        tensors["output_norm.weight"][3] = np.nan
        lutkern.write_gguf(tmp_path / "b.gguf", tensors, file.metadata)
    found = lutkern.compare_files(pair[0], tmp_path / "b.gguf", windows=1, tokens=16)
    assert found.model is not None
    assert np.isnan(found.model.perplexity_b)
    assert np.isfinite(found.model.perplexity_a)
    assert found.to_dict()["model"]["perplexity_b"] is None


def skipped(a: Path, b: Path, **options: Any) -> str | None:
    found = lutkern.compare_files(a, b, **{"windows": 1, "tokens": 16, **options})
    assert found.model is None
    assert found.total.tensors > 0
    return found.model_skipped


def test_why_a_model_is_not_run(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = pair
    other = write_tiny_llama(tmp_path / "c.gguf", general__architecture="qwen3")
    for files in ((a, other), (other, a)):
        assert skipped(*files) == "the model's architecture is 'qwen3', expected 'llama'"
    dumb = write_tiny_llama(tmp_path / "d.gguf", tokenizer__ggml__model="llama")
    assert skipped(dumb, a) == "the tokenizer's model is 'llama', expected 'gpt2' (byte-level BPE)"
    half = (len(open_model(a)[2].encode("\n".join(pydoc_data.topics.topics.values()))) + 1) // 2
    assert skipped(a, a, windows=10**5) == f"the text has {half} tokens in a half, expected at least {16 * 10**5}"
    assert skipped(a, a, model=False) == "it was not asked for"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        assert skipped(a, a) == "the package 'tokenizers' is missing: pip install 'lutkern[demo]'"
    with monkeypatch.context() as patch:
        patch.setattr(models, "memory_bytes", lambda: 100_000)
        assert skipped(a, a) == "a.gguf needs 0.0 GB as float32, this machine has 0.0 GB"


def test_a_model_that_does_not_fit_into_memory(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("lutkern.demo.evaluate.run_windows", too_much)
    assert skipped(pair[0], pair[0]) == "MemoryError"


def test_import_brings_no_optional_package() -> None:
    program = "import lutkern.cli, sys; print({'matplotlib', 'tokenizers', 'tqdm', 'gguf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_vocabularies_of_different_sizes(pair: Pair, tmp_path: Path) -> None:
    with lutkern.open_gguf(pair[0]) as file:
        tensors = {name: file.array(name) for name in file}
        for name in ("token_embd.weight", "output.weight"):
            tensors[name] = np.concatenate([tensors[name], tensors[name][:1]])
        lutkern.write_gguf(tmp_path / "b.gguf", tensors, file.metadata)
    assert skipped(pair[0], tmp_path / "b.gguf") == "the vocabularies have 269 and 270 tokens, expected the same"


def test_memory_of_this_machine() -> None:
    assert 1 << 28 < models.memory_bytes() < 1 << 50


# ---- the command


def test_text(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = map(str, pair)
    assert cli.main(["quality", a, b, "--windows", "2", "--tokens", "32", "--top", "3"]) == 0
    out, err = capsys.readouterr()
    found = lutkern.compare_files(a, b, windows=2, tokens=32)
    assert err == "comparing 21 tensors\nrunning A on 2 x 32 tokens\nrunning B on 2 x 32 tokens\n"
    parts = out.split("\n\n")
    assert parts[0] == f"A  {a}\nB  {b}"
    assert parts[1].splitlines()[0] == "The worst 3 of 21 tensors:"
    worst = found.tensors[0]
    assert parts[1].splitlines()[2].split()[:1] == [worst.name]
    assert f"{worst.errors.rmse:.4g}" in parts[1].splitlines()[2].split()
    assert len(parts[1].splitlines()) == 5
    rows = [line.split() for line in parts[2].splitlines()]
    assert rows[1][:4] == ["format", "tensors", "weights", "bits"]
    assert [row[0] for row in rows[2:]] == ["iq4_nl", "f32", "all"]
    assert rows[4][5] == f"{found.total.rmse:.4g}"
    assert found.model is not None
    model = parts[3].splitlines()
    assert model[0] == ("tiny: 62 predictions, 2 windows of 32 tokens, dequantised weights and activations in float32")
    assert model[1].split() == ["perplexity", "of", "A", f"{found.model.perplexity_a:.3f}"]
    assert model[-1].split()[-2:] == [f"{100 * found.model.top1:.1f}", "%"]
    assert max(map(len, out.splitlines())) < 160


def test_text_of_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = np.ones((2, 32), np.float32)
    broken = w.copy()
    broken[0, 0] = np.inf
    more = {f"more.{i}": w for i in range(4)}
    metadata = {"general.architecture": "example"}
    lutkern.write_gguf(tmp_path / "a.gguf", {"w": w, **more}, metadata)
    lutkern.write_gguf(tmp_path / "b.gguf", {"w": broken}, metadata)
    assert cli.main(["quality", str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"), "--top", "2"]) == 0
    parts = capsys.readouterr().out.split("\n\n")
    assert parts[3] == "1 weights are not finite in A or B; the errors are those of the others."
    assert parts[4].splitlines() == [
        "4 tensors not compared:", "  more.0: only in A", "  more.1: only in A", "  and 2 more"
    ]  # fmt: skip
    assert parts[5] == "Model not run: the model's architecture is 'example', expected 'llama'\n"


def test_json(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quality", *map(str, pair), "--json", "--windows", "2", "--tokens", "16", "--match", "ffn_up"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    expected = lutkern.compare_files(*pair, windows=2, tokens=16, match="ffn_up")
    assert err == ""
    assert json.loads(out) == expected.to_dict()
    assert len(expected.tensors) == 2
    assert isinstance(expected.model, ModelErrors)
    assert json.loads(out)["model"] == asdict(expected.model)
    assert cli.main(["quality", *map(str, pair), "--json", "--no-model"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] is None


def test_importance_and_its_warning(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    importance = lutkern.Importance()
    importance.update("blk.0.ffn_up.weight", np.eye(64, dtype=np.float32)[:9])
    importance.write(tmp_path / "i.gguf")
    arguments = [
        "quality",
        *map(str, pair),
        "--no-model",
        "--importance",
        str(tmp_path / "i.gguf"),
        "--match",
        "ffn_up",
    ]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[1].startswith("lutkern: warning: Importance.for_weight: 'blk.0.ffn_up.weight': 55 of 64 ")
    assert len(err.splitlines()) == 2
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("blk.")}
    assert rows["blk.1.ffn_up.weight"][-3] == "-"
    assert 0 < float(rows["blk.0.ffn_up.weight"][-3]) < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "-1"], "lutkern: quality: --top is -1, expected 0 or more"),
        (["--windows", "0"], "lutkern: compare_files: windows is 0, expected at least 1"),
        (["--plot", "x.gif"], "lutkern: plot: the file is 'x.gif', expected a name that ends in .png, .pdf, .svg"),
    ],
)
def test_wrong_options(pair: Pair, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.main(["quality", *map(str, pair), *arguments]) == 2
    assert capsys.readouterr() == ("", message + "\n")


# ---- the picture


def test_plot(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "p.png"
    assert cli.main(["quality", *map(str, pair), "--no-model", "--top", "0", "--plot", str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert target.stat().st_size > 10_000
    assert "The worst" not in capsys.readouterr().out


def test_picture(pair: Pair) -> None:
    pytest.importorskip("matplotlib")
    found = lutkern.compare_files(*pair, model=False)
    figure = draw(found)
    (axes,) = figure.axes
    (points,) = axes.collections
    places, errors = np.asarray(points.get_offsets()).T
    assert sorted(errors) == sorted(t.errors.rmse for t in found.tensors if t.errors.rmse)
    assert len(errors) == 16
    assert len(set(places)) == 16
    assert np.all(np.abs(np.log2(places / 4.5)) < 0.1)
    diamond, star = axes.lines[-2:]
    assert diamond.get_xydata()[0] == pytest.approx([4.5, found.formats["iq4_nl"].rmse])
    assert star.get_xydata()[0] == pytest.approx([found.total.bits_b, found.total.rmse])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_title() == "b.gguf (B) against a.gguf (A)"
    assert axes.get_ylabel() == "relative RMS error of B against A"
    assert axes.get_xlabel().splitlines()[1] == "not shown: 5 tensors whose error is 0 or not finite"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == f"iq4_nl: 16, {found.formats['iq4_nl'].rmse:.3g}"
    assert labels[1] == "all of a format"
    assert labels[2].startswith("all 21, ")


def test_picture_of_weighted_errors(pair: Pair) -> None:
    pytest.importorskip("matplotlib")
    importance = lutkern.Importance()
    importance.update("blk.0.ffn_up.weight", np.ones((1, 64), np.float32))
    (axes,) = draw(lutkern.compare_files(*pair, importance=importance, model=False)).axes
    faces = axes.collections[0].get_facecolors()
    assert np.sum(np.all(faces[:, :3] == 1, axis=1)) == 15
    assert axes.get_ylabel() == "relative importance-weighted RMS error of B against A"
    assert axes.get_xlabel().splitlines()[1] == "hollow points: no importance, plain RMS error"


def test_lanes_keep_apart() -> None:
    """Formats with the same bits share the room that those with others leave."""
    bits = {fmt.name: fmt.bits_per_weight for fmt in lutkern.formats()}
    lanes = sorted(_lanes(bits).values())
    assert len(lanes) == len(bits)
    assert all(left < right for left, right in lanes)
    assert all(before[1] < after[0] for before, after in pairwise(lanes))
    assert _lanes({"f16": 16.0}).keys() == {"f16"}


def test_plot_of_many_formats_with_odd_names(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    w = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    packable = [fmt.name for fmt in lutkern.formats() if fmt.can_pack and fmt.name != "f32"]
    assert len(packable) > 10
    a, b = tmp_path / "a_$x.gguf", tmp_path / "b.gguf"
    names = {f"w.{i}.$\\frac{fmt}": lutkern.pack(w, fmt) for i, fmt in enumerate(packable)}
    lutkern.write_gguf(a, dict.fromkeys(names, w), {"general.architecture": "example"})
    lutkern.write_gguf(b, names, {"general.architecture": "example"})
    importance = lutkern.Importance()
    importance.update(next(iter(names)), w)
    plot(lutkern.compare_files(a, b, importance=importance, model=False), tmp_path / "p.pdf")
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")


def test_plot_errors(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        check_plot(tmp_path / "no" / "p.png")
    assert missing.value.filename == str(tmp_path / "no")
    same = lutkern.compare_files(pair[0], pair[0], model=False)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        message = r"^plot: the package 'matplotlib' is missing: pip install 'lutkern\[plot\]'$"
        with pytest.raises(ImportError, match=message):
            check_plot(tmp_path / "p.png")
    pytest.importorskip("matplotlib")
    message = "^plot: no tensor of B differs from A by a finite error, expected at least one$"
    with pytest.raises(ValueError, match=message):
        plot(same, tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()
