"""The demonstration, on a tiny random llama: tokenizer, forward, conversion, evaluation, the whole path."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import CONTEXT, HIDDEN, INTER, LAYERS, write_tiny_llama

import lutkern
from lutkern.demo import Formats, Options, run, table
from lutkern.demo.convert import (
    PackedFfn,
    expert_count,
    join_experts,
    join_rows,
    pack_columns,
    pack_model,
    run_experts,
    second_moments,
)
from lutkern.demo.convert import Experts as ConvertExperts
from lutkern.demo.evaluate import Sampling, Text, compare, generate, log_softmax, read_text
from lutkern.demo.fetch import SMOLLM2, cache_folder
from lutkern.demo.llama import DenseFfn, Llama, read_config, rms_norm, silu
from lutkern.demo.store import load, save, store_key, store_path
from lutkern.demo.tokenizer import TextStream, Tokenizer

F32 = Formats("f32", "f32", "f32")
TWO_BIT = Formats("iq2_xxs", "iq2_xs", "iq3_xxs")


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> tuple[Llama, DenseFfn, Tokenizer]:
    with lutkern.open_gguf(tiny_path) as file:
        model = Llama(file)
        return model, DenseFfn(file, model.config), Tokenizer(file.metadata)


@pytest.fixture(scope="module")
def text(tiny: tuple[Llama, DenseFfn, Tokenizer]) -> Text:
    return read_text(tiny[2], calibration=4, evaluation=2, tokens=48)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lutkern"


def metadata_of(tmp_path: Path, **values: Any) -> Any:
    with lutkern.open_gguf(write_tiny_llama(tmp_path / "m.gguf", **values)) as file:
        return dict(file.metadata.items())


# Tokenizer


@given(st.text())
def test_tokenizer_gives_text_back(tiny: tuple[Llama, DenseFfn, Tokenizer], words: str) -> None:
    tokenizer = tiny[2]
    plain = words.replace("<|", "<")
    assert tokenizer.decode(tokenizer.encode(plain)) == plain.encode("utf-8", "replace").decode("utf-8")


@given(st.text(max_size=20))
def test_text_stream_gives_text_back(tiny: tuple[Llama, DenseFfn, Tokenizer], words: str) -> None:
    tokenizer = tiny[2]
    plain = words.replace("<|", "<").replace("\ufffd", "").encode("utf-8", "ignore").decode("utf-8")
    stream = TextStream(tokenizer)
    assert "".join([stream.push(token) for token in tokenizer.encode(plain)]) + stream.finish() == plain


def test_text_stream_holds_back_half_a_character(tiny: tuple[Llama, DenseFfn, Tokenizer]) -> None:
    tokenizer = tiny[2]
    stream = TextStream(tokenizer)
    tokens = tokenizer.encode("é!")
    assert len(tokens) == 3
    assert [stream.push(token) for token in tokens] == ["", "é", "!"]
    stream.push(tokens[0])
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_tokenizer_merges_and_splits_as_the_file_says(tiny: tuple[Llama, DenseFfn, Tokenizer]) -> None:
    tokenizer = tiny[2]
    names = {name: i for i, name in enumerate(Llama_tokens())}
    assert tokenizer.encode("the there 42") == [names[piece] for piece in ("t", "he", "Ġthere", "Ġ", "4", "2")]
    assert tokenizer.encode("<|im_start|>a<|im_end|>") == [1, names["a"], 2]
    assert tokenizer.decode([1, names["a"], 2]) == "a"
    assert tokenizer.stop_tokens == {0, 2}


def Llama_tokens() -> list[str]:
    from tiny_llama import vocabulary

    return vocabulary()[0]
