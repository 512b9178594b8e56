"""The demonstration, on a tiny random llama: conversion, evaluation, the store, the whole path."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lutkern
from lutkern.demo import Formats, Options, pipeline, run, table
from lutkern.demo.convert import (
    Experts,
    PackedFfn,
    expert_count,
    join_experts,
    join_rows,
    pack_columns,
    pack_model,
    run_experts,
    second_moments,
)
from lutkern.demo.evaluate import Sampling, Text, compare, generate, log_softmax, read_text
from lutkern.demo.llama import DenseFfn
from lutkern.demo.store import load, save, store_key, store_path
from lutkern.formats import find_format
from tiny_llama import CONTEXT, HIDDEN, INTER, LAYERS, TOKENS, Tiny, open_model, write_tiny_llama

F32 = Formats("f32", "f32", "f32")
TWO_BIT = Formats("iq2_xxs", "iq2_xs", "iq3_xxs")


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Tiny:
    return open_model(tiny_path)


@pytest.fixture(scope="module")
def text(tiny: Tiny) -> Text:
    return read_text(tiny[2], calibration=4, evaluation=2, tokens=64)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lutkern"


# ---- conversion


def split_exactly(dense: DenseFfn, layer: int) -> Experts:
    gate, up, down = dense.layers[layer]
    parts = gate.reshape(-1, 256, HIDDEN), up.reshape(-1, 256, HIDDEN), np.stack(np.split(down, INTER // 256, axis=1))
    return Experts(*(lutkern.PackedTensor.from_blocks(part, "f32", part.shape) for part in parts))


@pytest.mark.parametrize("tokens", [1, 7])
def test_split_network_equals_the_dense_one(tiny: Tiny, tokens: int) -> None:
    dense = tiny[1]
    x = np.random.default_rng(1).standard_normal((tokens, HIDDEN)).astype(np.float32)
    expected = dense(1, x)
    assert np.abs(run_experts(split_exactly(dense, 1), x) - expected).max() < 1e-5 * np.abs(expected).max()


def test_expert_count() -> None:
    assert expert_count(1536) == 6
    for inter in (0, 100, 1408):
        with pytest.raises(ValueError, match=f"^demo: the feed-forward length is {inter}, expected a multiple of 256$"):
            expert_count(inter)


def test_join_keeps_every_weight_in_its_place() -> None:
    w = np.random.default_rng(2).standard_normal((512, 576)).astype(np.float32)
    pieces = [lutkern.pack(w[:, start : start + 256], "f16") for start in (0, 256, 512)]
    expected = w.astype(np.float16).astype(np.float32)
    rows = join_rows(pieces)
    assert rows.shape == (2, 256, 576)
    assert np.array_equal(lutkern.dequantize(rows).reshape(512, 576), expected)
    columns = join_experts(pieces[:2])
    assert columns.shape == (2, 512, 256)
    assert np.array_equal(np.concatenate(list(lutkern.dequantize(columns)), axis=1), expected[:, :512])


def test_feedback_brings_the_product_closer() -> None:
    random = np.random.default_rng(3)
    w = random.standard_normal((64, 768)).astype(np.float32)
    # Inputs in a third as many directions as columns: what one column gets wrong others can take back.
    x = (random.standard_normal((2000, 256)) @ random.standard_normal((256, 768)) / 16).astype(np.float32)
    moments = second_moments(x)
    plain = lutkern.dequantize(lutkern.pack(w, "iq2_xxs", importance=np.diag(moments)))
    pieces = pack_columns(w, "iq2_xxs", moments)
    assert [piece.shape for piece in pieces] == [(64, 256)] * 3
    fed = np.concatenate([lutkern.dequantize(piece) for piece in pieces], axis=1)
    miss = [float(np.square(x @ (q - w).T).mean()) for q in (plain, fed)]
    assert miss[1] < 0.7 * miss[0]


def test_second_moments() -> None:
    x = np.array([[1, 2], [3, 4]], np.float32)
    assert np.array_equal(second_moments(x), [[5, 7], [7, 10]])


def test_packing_to_floats_changes_nothing(tiny: Tiny, text: Text) -> None:
    model, dense, _ = tiny
    packed = pack_model(model, dense, text.calibration, F32)
    quality = compare(model, dense, packed, text.evaluation)
    assert quality.top1 == 1.0
    assert abs(quality.kl) < 1e-8  # rounding of float32 log probabilities
    assert packed.nbytes == 4 * 3 * LAYERS * INTER * HIDDEN


def test_packing_beats_packing_without_calibration(tiny: Tiny) -> None:
    model, dense, tokenizer = tiny
    text = read_text(tokenizer, calibration=8, evaluation=8, tokens=64)  # every Python has other help texts
    steps: list[int] = []
    packed = pack_model(model, dense, text.calibration, TWO_BIT, lambda: steps.append(1))
    assert len(steps) == LAYERS
    assert {str(t.format) for layer in packed.layers for t in layer.parts} == {"iq2_xxs", "iq2_xs", "iq3_xxs"}
    plain = PackedFfn(
        Experts(
            gate=lutkern.pack(gate.reshape(-1, 256, HIDDEN), TWO_BIT.gate),
            up=lutkern.pack(up.reshape(-1, 256, HIDDEN), TWO_BIT.up),
            down=lutkern.pack(np.stack(np.split(down, INTER // 256, axis=1)), TWO_BIT.down),
        )
        for gate, up, down in dense.layers
    )
    quality, without = (compare(model, dense, ffn, text.evaluation) for ffn in (packed, plain))
    assert 0 < quality.kl < 0.8 * without.kl


def test_packing_needs_text(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"^demo: no calibration text, expected at least one window of tokens$"):
        pack_model(tiny[0], tiny[1], [], F32)


# ---- evaluation and generation


def test_text_windows(tiny: Tiny, text: Text) -> None:
    assert [len(w) for w in text.calibration + text.evaluation] == [64] * 6
    assert [w[0] == 1 for w in text.calibration] == [False, True, False, True]
    with pytest.raises(ValueError, match=r"^demo: the text has \d+ tokens in a half, expected at least 100000000$"):
        read_text(tiny[2], calibration=10**6, evaluation=1, tokens=100)


def test_compare_with_itself_and_with_chance(tiny: Tiny, text: Text) -> None:
    model, dense, _ = tiny
    same = compare(model, dense, dense, text.evaluation)
    assert (same.kl, same.top1, same.predictions) == (0.0, 1.0, 2 * 63)
    assert same.base_perplexity == same.packed_perplexity
    log_p = np.concatenate([log_softmax(model.logits(w, dense)[:-1].astype(np.float64)) for w in text.evaluation])
    truth = np.concatenate([w[1:] for w in text.evaluation])
    assert same.base_perplexity == pytest.approx(np.exp(-log_p[np.arange(126), truth].mean()), rel=1e-5)
    other = compare(model, dense, lambda layer, x: dense(layer, -x), text.evaluation)
    assert other.kl > 0.01
    assert other.top1 < 1
    with pytest.raises(ValueError, match=r"^demo: no evaluation text, expected windows of at least two tokens$"):
        compare(model, dense, dense, [[1]])


def test_generation_without_a_seed_takes_the_most_likely_token(tiny: Tiny) -> None:
    model, dense, _ = tiny
    nothing: frozenset[int] = frozenset()
    made = list(generate(model, dense, [5, 6], tokens=6, stop=nothing, sampling=Sampling(penalty=0)))
    expected = [5, 6]
    for _ in range(6):
        expected.append(int(model.logits(expected, dense)[-1].argmax()))
    assert made == expected[2:]
    strict = Sampling(penalty=1e9)
    distinct = list(generate(model, dense, [5, 6], tokens=40, stop=nothing, sampling=strict))
    assert len(set(distinct)) == 40
    stop = frozenset(distinct[2:3])
    assert list(generate(model, dense, [5, 6], tokens=40, stop=stop, sampling=strict)) == distinct[:2]


def test_generation_with_a_seed_repeats_itself(tiny: Tiny) -> None:
    model, dense, _ = tiny

    def draw(seed: int) -> list[int]:
        return list(generate(model, dense, [5], tokens=12, stop=frozenset(), sampling=Sampling(seed=seed)))

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(4)}) > 1


def test_generation_stays_within_the_context(tiny: Tiny) -> None:
    model, dense, _ = tiny
    prompt = [5] * (CONTEXT - 3)
    assert len(list(generate(model, dense, prompt, tokens=50, stop=frozenset(), sampling=Sampling()))) == 3
    message = f"^demo: the prompt has {CONTEXT} tokens, the context holds {CONTEXT}$"
    with pytest.raises(ValueError, match=message):
        next(generate(model, dense, [5] * CONTEXT, tokens=1, stop=frozenset(), sampling=Sampling()))


# ---- packed weights on disk


def test_store_gives_the_same_bytes_back(tiny: Tiny, tmp_path: Path) -> None:
    model, dense, _ = tiny
    packed = pack_model(model, dense, [TOKENS], TWO_BIT)
    key = store_key("00", TWO_BIT, [TOKENS], "1")
    path = store_path(tmp_path / "new", key)
    save(path, key, packed)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    loaded = load(path, key, TWO_BIT, model.config)
    assert loaded is not None
    for kept, made in zip(loaded.layers, packed.layers, strict=True):
        for a, b in zip(kept.parts, made.parts, strict=True):
            assert (a.format, a.shape) == (b.format, b.shape)
            assert np.array_equal(a.blocks(), b.blocks())


def test_store_refuses_what_is_damaged_or_of_something_else(tiny: Tiny, tmp_path: Path) -> None:
    model, dense, _ = tiny
    key = store_key("00", F32, [TOKENS], "1")
    path = store_path(tmp_path, key)
    assert load(path, key, F32, model.config) is None
    save(path, key, PackedFfn(split_exactly(dense, i) for i in range(LAYERS)))
    assert load(path, key, F32, model.config) is not None
    assert load(path, key + " ", F32, model.config) is None
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert load(path, key, F32, model.config) is None
    for place in range(200, len(whole), len(whole) // 9):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert load(path, key, F32, model.config) is None


def test_store_keys_differ_in_every_part() -> None:
    keys = {
        store_key("00", F32, [[1]], "1"),
        store_key("01", F32, [[1]], "1"),
        store_key("00", TWO_BIT, [[1]], "1"),
        store_key("00", F32, [[2]], "1"),
        store_key("00", F32, [[1]], "2"),
    }
    assert len({store_path(Path("c"), key) for key in keys}) == 5


# ---- the whole path


def test_run_packs_once_and_reuses(tiny_path: Path, cache: Path) -> None:
    options = Options(model=tiny_path, formats=TWO_BIT, tokens=5, prompt="Hi", quiet=True)
    first, second = run(options), run(options)
    (stored,) = cache.iterdir()
    assert (first["packed_from_cache"], second["packed_from_cache"]) == (False, True)
    for part in ("model", "experts", "formats", "ffn", "quality", "prompt"):
        assert first[part] == second[part]
    assert first["packed"]["text"] == second["packed"]["text"]
    stored.write_bytes(stored.read_bytes()[:5000])
    third = run(options)
    assert third["packed_from_cache"] is False
    assert third["quality"] == first["quality"]
    assert run(options)["packed_from_cache"] is True


def test_run_tells_the_truth(tiny_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(Options(model=tiny_path, tokens=5, prompt="Hi", seed=3, cache=False, quiet=True))
    assert not cache.exists()
    weights = 3 * LAYERS * INTER * HIDDEN
    # Rows of 64 columns are padded to a block of 256 (66 bytes in iq2_xxs), rows of down are one (98 bytes in iq3_xxs);
    # 16 rows of tiles are padded to a multiple of 64 bytes.
    packed = LAYERS * (2 * INTER // 16 * (16 * 66 + 32) + 2 * HIDDEN // 16 * (16 * 98 + 32))
    assert result["ffn"] == {
        "weights": weights,
        "file_bytes": 4 * weights,
        "f16_bytes": 2 * weights,
        "packed_bytes": packed,
        "bits_per_weight": 8 * packed / weights,
    }
    assert result["experts"] == {"per_layer": 2, "neurons": 256}
    assert result["quality"]["predictions"] == 2 * (CONTEXT - 1)
    assert 0 < result["packed"]["tokens"] <= 5
    assert json.loads(json.dumps(result)) == result
    assert capsys.readouterr() == ("", "")
    lines = table(result).splitlines()
    assert lines[0].startswith("tiny: 2 layers x 2 experts; gate iq2_xxs, up iq2_xxs, down iq3_xxs; kernels ")
    assert lines[2].split() == ["FFN", "bytes", "786.4", "kB", "393.2", "kB", "164.9", "kB"]
    assert lines[3].split() == ["bits", "per", "weight", "32.000", "16.000", "6.708"]


def test_run_streams_text_and_progress(tiny_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(Options(model=tiny_path, formats=F32, tokens=5, prompt="Hi"))
    out, err = capsys.readouterr()
    expected = f"\n> Hi\n\n[base] {result['base']['text']}\n\n[packed] {result['packed']['text']}\n\n"
    assert out == expected
    assert result["base"]["text"] == result["packed"]["text"]
    assert f"loading {tiny_path}" in err
    assert "packing: 100%" in err
    assert "comparing with the float model on 2 x 96 tokens" in err


def test_run_goes_on_when_packed_weights_cannot_be_kept(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run(Options(model=tiny_path, formats=F32, tokens=2, prompt="Hi"))["packed_from_cache"] is False
    assert "the packed weights could not be kept: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "demo: 0 tokens, expected at least 1"),
        ({"seed": -1}, "demo: the seed is -1, expected 0 or more"),
        ({"prompt": ""}, "demo: the prompt is empty, expected text"),
    ],
)
def test_run_checks_its_options_first(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        run(Options(model=Path("nowhere.gguf"), **values))
    assert str(error.value).startswith(message)


def test_run_names_a_format_that_cannot_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    read_only = replace(find_format("q3_k"), can_pack=False)
    monkeypatch.setattr(pipeline, "find_format", lambda name: read_only)
    with pytest.raises(ValueError, match=r"^demo: format 'q3_k' cannot be packed; formats: iq1_s "):
        run(Options(model=Path("nowhere.gguf"), formats=Formats("q3_k", "f32", "f32")))


def test_run_names_an_unsuitable_feed_forward_length(tmp_path: Path, cache: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", inter=300)
    with pytest.raises(ValueError, match=r"^demo: the feed-forward length is 300, expected a multiple of 256$"):
        run(Options(model=path, quiet=True))
