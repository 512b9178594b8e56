"""The demonstration's tokenizer and NumPy forward, on a tiny random llama and, where it is there, on SmolLM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lutkern
from lutkern.demo.evaluate import Sampling, generate, log_softmax
from lutkern.demo.fetch import SMOLLM2, cache_folder
from lutkern.demo.llama import read_config
from lutkern.demo.tokenizer import TextStream, Tokenizer
from tiny_llama import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    TOKENS,
    Tiny,
    metadata_of,
    open_model,
    vocabulary,
    write_tiny_llama,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return open_model(write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"))


# ---- tokenizer


@given(words=st.text())
def test_tokenizer_gives_text_back(tiny: Tiny, words: str) -> None:
    plain = words.replace("<|", "<")
    assert tiny[2].decode(tiny[2].encode(plain)) == plain


@given(words=st.text(max_size=20))
def test_text_stream_gives_text_back(tiny: Tiny, words: str) -> None:
    plain = words.replace("<|", "<").replace("\ufffd", "")
    stream = TextStream(tiny[2])
    assert "".join([stream.push(token) for token in tiny[2].encode(plain)]) + stream.finish() == plain


def test_text_stream_holds_back_half_a_character(tiny: Tiny) -> None:
    stream, tokens = TextStream(tiny[2]), tiny[2].encode("é!")
    assert [stream.push(token) for token in tokens] == ["", "é", "!"]
    assert stream.push(tokens[0]) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_tokenizer_merges_and_splits_as_the_file_says(tiny: Tiny) -> None:
    tokenizer, ids = tiny[2], {name: i for i, name in enumerate(vocabulary()[0])}
    assert tokenizer.encode("the there 42") == [ids[name] for name in ("t", "he", "Ġthere", "Ġ", "4", "2")]
    assert tokenizer.encode("<|im_start|>a<|im_end|>") == [1, ids["a"], 2]
    assert tokenizer.decode([1, ids["a"], 2]) == "a"
    assert tokenizer.stop_tokens == {0, 2}
    assert tokenizer.size == len(ids)


def test_chat_form(tiny: Tiny, tmp_path: Path) -> None:
    assert tiny[2].chat("Why") == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhy<|im_end|>\n<|im_start|>assistant\n"
    )
    names = ["<a>", "<b>", "<c>", *vocabulary()[0][3:]]
    assert Tokenizer(metadata_of(tmp_path, tokenizer__ggml__tokens=names)).chat("Why") == "Why"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "llama", "demo: the tokenizer's model is 'llama', expected 'gpt2' (byte-level BPE)"),
        (
            "pre",
            "qwen2",
            "demo: the pre-tokenizer is 'qwen2', expected one of smollm, starcoder, refact, command-r, codeshell",
        ),
        ("merges", None, "demo: the model has no metadata key 'tokenizer.ggml.merges'"),
        ("token_type", [1, 1], "demo: 2 token types, expected one for each of the 269 tokens"),
        ("merges", ["x yy"], "demo: merge 'x yy' names a token outside the vocabulary"),
    ],
)
def test_tokenizer_errors(tmp_path: Path, key: str, value: Any, message: str) -> None:
    metadata = metadata_of(tmp_path, **{f"tokenizer__ggml__{key}": value})
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Tokenizer(metadata)
    assert str(error.value) == message


# ---- forward


def plain_forward(file: lutkern.gguf.GgufFile, tokens: list[int]) -> Any:
    """Logits by float64 loops over tokens, heads and pairs: slow, and written apart from the model."""

    def get(name: str) -> Any:
        return file.array(name).astype(np.float64)

    def norm(v: Any, weight: Any) -> Any:
        return v / np.sqrt(np.mean(v * v) + 1e-5) * weight

    def rotate(v: Any, position: int) -> Any:
        turned = v.copy()
        for j in range(len(v) // 2):
            angle = position * 10000.0 ** (-2 * j / len(v))
            turned[2 * j] = v[2 * j] * np.cos(angle) - v[2 * j + 1] * np.sin(angle)
            turned[2 * j + 1] = v[2 * j] * np.sin(angle) + v[2 * j + 1] * np.cos(angle)
        return turned

    size = HIDDEN // HEADS
    xs = [get("token_embd.weight")[token] for token in tokens]
    for i in range(LAYERS):
        normed = [norm(x, get(f"blk.{i}.attn_norm.weight")) for x in xs]
        q, k, v = ([get(f"blk.{i}.attn_{part}.weight") @ n for n in normed] for part in "qkv")
        for t in range(len(tokens)):
            heads = []
            for head in range(HEADS):
                own = slice(head * size, (head + 1) * size)
                shared = head // (HEADS // KV_HEADS)
                other = slice(shared * size, (shared + 1) * size)
                scores = np.array([rotate(q[t][own], t) @ rotate(k[s][other], s) for s in range(t + 1)])
                share = np.exp(scores / np.sqrt(size) - np.max(scores / np.sqrt(size)))
                share /= share.sum()
                heads.append(sum(share[s] * v[s][other] for s in range(t + 1)))
            xs[t] = xs[t] + get(f"blk.{i}.attn_output.weight") @ np.concatenate(heads)
        for t in range(len(tokens)):
            n = norm(xs[t], get(f"blk.{i}.ffn_norm.weight"))
            gate = get(f"blk.{i}.ffn_gate.weight") @ n
            inner = gate / (1 + np.exp(-gate)) * (get(f"blk.{i}.ffn_up.weight") @ n)
            xs[t] = xs[t] + get(f"blk.{i}.ffn_down.weight") @ inner
    head = get("output.weight" if "output.weight" in file else "token_embd.weight")
    return np.array([head @ norm(x, get("output_norm.weight")) for x in xs])


@pytest.mark.parametrize("tied", [True, False])
def test_forward_equals_plain_loops(tmp_path: Path, tied: bool) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", tied=tied)
    model, dense, _ = open_model(path)
    with lutkern.open_gguf(path) as file:
        expected = plain_forward(file, TOKENS)
    found = model.logits(TOKENS, dense)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 1, 5], [11, 1]])
def test_decoding_with_a_cache_equals_the_batch(tiny: Tiny, cuts: list[int]) -> None:
    model, dense, _ = tiny
    batch = model.logits(TOKENS, dense)
    cache, pieces, start = model.cache(len(TOKENS)), [], 0
    for cut in cuts:
        pieces.append(model.logits(TOKENS[start : start + cut], dense, cache))
        start += cut
    assert np.abs(np.concatenate(pieces) - batch).max() < 2e-6 * np.abs(batch).max()
    assert cache.length == len(TOKENS)


def test_last_logits_are_the_last_row(tiny: Tiny) -> None:
    model, dense, _ = tiny
    batch = model.logits(TOKENS, dense)
    found = model.last_logits(TOKENS, dense, model.cache(12))
    assert np.abs(found - batch[-1]).max() < 2e-6 * np.abs(batch).max()


def test_forward_errors(tiny: Tiny) -> None:
    model, dense, _ = tiny
    cases = [
        ([], 4, "demo: no tokens, expected at least one"),
        ([1, 269], 4, "demo: token 269, the vocabulary has 269"),
        ([-1, 1], 4, "demo: token -1, the vocabulary has 269"),
        ([1, 2, 3], 2, "demo: 3 tokens, the cache holds 2"),
    ]
    for tokens, capacity, message in cases:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            model.hidden(tokens, dense, model.cache(capacity))
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"general__architecture": "qwen2"}, "demo: the model's architecture is 'qwen2', expected 'llama'"),
        ({"llama__block_count": None}, "demo: the model has no metadata key 'llama.block_count'"),
        (
            {"llama__expert_count": 8},
            "demo: the model has routed experts, expected a dense feed-forward network to split",
        ),
        (
            {"llama__rope__scaling__type": "yarn"},
            "demo: the model scales rotary positions ('yarn'), expected none",
        ),
        (
            {"llama__attention__head_count": 0},
            "demo: llama.attention.head_count is 0, expected a whole number of at least 1",
        ),
        (
            {"llama__attention__head_count_kv": [2, 2]},
            "demo: llama.attention.head_count_kv is array([2, 2], dtype=int32), expected a whole number of at least 1",
        ),
        (
            {"llama__rope__freq_base": 10000},
            "demo: llama.rope.freq_base is 10000, expected a positive float",
        ),
        (
            {"llama__attention__head_count_kv": 3},
            "demo: 4 attention heads, expected a multiple of the 3 key heads",
        ),
        (
            {"llama__rope__dimension_count": 18},
            "demo: 18 rotary dimensions, expected an even number up to 16",
        ),
        (
            {"llama__embedding_length": 128, "llama__rope__dimension_count": 32},
            "demo: 'token_embd.weight' has shape (269, 64), expected (any, 128)",
        ),
        ({"llama__block_count": 3}, "demo: the model has no tensor 'blk.2.attn_norm.weight'"),
        (
            {"llama__feed_forward_length": 1024},
            "demo: 'blk.0.ffn_gate.weight' has shape (512, 64), expected (1024, 64)",
        ),
    ],
)
def test_model_errors(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", **values)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        open_model(path)
    assert str(error.value) == message


def test_config_defaults_follow_the_head_count(tmp_path: Path) -> None:
    config = read_config(metadata_of(tmp_path, llama__attention__head_count_kv=None, llama__rope__freq_base=None))
    assert (config.kv_heads, config.head_dim, config.rope_base) == (HEADS, HIDDEN // HEADS, 10000.0)


# ---- the real model


needs_smollm2 = pytest.mark.skipif(
    not (cache_folder() / SMOLLM2.file_name).is_file(),
    reason=f"{SMOLLM2.file_name} is not in {cache_folder()}: run `lutkern demo` once",
)


@needs_smollm2
def test_smollm2_knows_what_it_should() -> None:
    model, dense, tokenizer = open_model(cache_folder() / SMOLLM2.file_name)
    passage = (
        "The sun rises in the east and sets in the west. Water freezes at zero degrees Celsius and boils at one "
        "hundred degrees Celsius. There are seven days in a week and twelve months in a year."
    )
    tokens = tokenizer.encode(passage)
    log_p = log_softmax(model.logits(tokens, dense)[:-1])
    assert np.exp(-log_p[np.arange(len(tokens) - 1), tokens[1:]].mean()) < 8
    prompt = tokenizer.encode(tokenizer.chat("What is the capital of France?"))
    made = list(generate(model, dense, prompt, tokens=16, stop=tokenizer.stop_tokens, sampling=Sampling(penalty=0)))
    assert tokenizer.decode(made) == "The capital of France is Paris."


@needs_smollm2
def test_int8_activations_cost_less_than_a_percent_on_smollm2() -> None:
    model, dense, tokenizer = open_model(cache_folder() / SMOLLM2.file_name)
    tokens = tokenizer.encode(
        "A list in Python is a sequence of values. It can hold numbers, strings and other lists. " * 4
    )
    wrong = right = 0.0

    def watched(layer: int, x: Any) -> Any:
        nonlocal wrong, right
        inputs = {0: x, 1: x, 2: dense.inner(layer, x)}
        for number, weight in enumerate(dense.layers[layer]):
            t = lutkern.pack(weight, "q8_0")
            exact = lutkern.matmul(t, inputs[number], exact=True).astype(np.float64)
            error = lutkern.matmul(t, inputs[number]) - exact
            wrong += (error**2).sum() / (exact**2).sum()
            right += 1
        return dense(layer, x)

    model.hidden(tokens, watched)
    assert right == 3 * model.config.layers
    assert 0.001 < np.sqrt(wrong / right) < 0.01
