"""Text for calibration and evaluation, how far a packed model is from its float model, and generation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .llama import Ffn, Floats, Llama
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Text:
    """Windows of tokens: calibration from the first half of the text, evaluation from the second."""

    calibration: list[list[int]]
    evaluation: list[list[int]]


@dataclass(frozen=True)
class Quality:
    """Perplexities, mean KL divergence in nats, share of equal most likely tokens, number of predictions."""

    base_perplexity: float
    packed_perplexity: float
    kl: float
    top1: float
    predictions: int


def read_text(tokenizer: Tokenizer, *, calibration: int, evaluation: int, tokens: int) -> Text:
    """Cut windows of `tokens` tokens out of the standard library's help topics, spread evenly over each half.

    Every second calibration window is the answer of a chat, because a chat's control tokens give inputs that plain
    text never gives.

    Raises
    ------
    ValueError
        If the text is too short for so many windows.
    ImportError
        If this Python comes without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError("demo: this Python has no pydoc_data.topics, the text for calibration") from error
    stream = tokenizer.encode("\n".join(topics.values()))
    half = len(stream) // 2
    plain = _spread(stream[:half], calibration, tokens)
    names = list(topics)
    for i in range(1, len(plain), 2):
        opening = tokenizer.encode(tokenizer.chat(f"Explain {names[i % len(names)]} in Python."))
        plain[i] = (opening + plain[i])[:tokens] if tokenizer.chat_tokens else plain[i]
    return Text(plain, _spread(stream[half:], evaluation, tokens))


def _spread(stream: list[int], count: int, tokens: int) -> list[list[int]]:
    if len(stream) < count * tokens:
        raise ValueError(f"demo: the text has {len(stream)} tokens in a half, expected at least {count * tokens}")
    stride = (len(stream) - tokens) // max(count - 1, 1)
    return [stream[i * stride : i * stride + tokens] for i in range(count)]


def log_softmax(logits: Floats) -> NDArray[np.float32]:
    """Log probabilities over the last axis: float32, same shape."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total), dtype=np.float32)


def compare(model: Llama, base: Ffn, packed: Ffn, windows: list[list[int]]) -> Quality:
    """Run both models over `windows` of at least two tokens; each token but a window's first is predicted once.

    ValueError if there is no window, or one of less than two tokens.
    """
    if not windows or min(map(len, windows)) < 2:
        raise ValueError("demo: no evaluation text, expected windows of at least two tokens")
    base_loss = packed_loss = kl = 0.0
    same = count = 0
    for window in windows:
        p = log_softmax(model.logits(window, base)[:-1])
        q = log_softmax(model.logits(window, packed)[:-1])
        rows, truth = np.arange(len(p)), np.asarray(window[1:])
        base_loss -= float(p[rows, truth].sum(dtype=np.float64))
        packed_loss -= float(q[rows, truth].sum(dtype=np.float64))
        kl += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
        same += int((p.argmax(axis=-1) == q.argmax(axis=-1)).sum())
        count += len(p)
    return Quality(
        base_perplexity=float(np.exp(base_loss / count)),
        packed_perplexity=float(np.exp(packed_loss / count)),
        kl=kl / count,
        top1=same / count,
        predictions=count,
    )


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    seed None: the most likely token. Otherwise a draw at `temperature` among the tokens that make up `top_p` of the
    probability. In both, tokens among the last `memory` have their score lowered by `penalty` (in nats).
    """

    seed: int | None = None
    temperature: float = 0.7
    top_p: float = 0.9
    penalty: float = 0.5
    memory: int = 64


def generate(
    model: Llama, ffn: Ffn, prompt: list[int], *, tokens: int, stop: frozenset[int], sampling: Sampling
) -> Iterator[int]:
    """Yield up to `tokens` tokens that follow `prompt`, ending before a token of `stop`.

    ValueError if the prompt is empty or does not fit the model's context.
    """
    room = model.config.context - len(prompt)
    if room < 1:
        raise ValueError(f"demo: the prompt has {len(prompt)} tokens, the context holds {model.config.context}")
    tokens = min(tokens, room)
    cache = model.cache(len(prompt) + tokens)
    random = np.random.default_rng(sampling.seed)
    fresh, made = prompt, list[int]()
    for _ in range(tokens):
        token = _choose(model.last_logits(fresh, ffn, cache), made, sampling, random)
        if token in stop:
            return
        yield token
        made.append(token)
        fresh = [token]


def _choose(logits: Floats, made: list[int], sampling: Sampling, random: np.random.Generator) -> int:
    scores = logits.astype(np.float64)
    recent, times = np.unique(np.asarray(made[-sampling.memory :], dtype=np.int64), return_counts=True)
    scores[recent] -= sampling.penalty * times
    if sampling.seed is None:
        return int(scores.argmax())
    scores = np.exp((scores - scores.max()) / sampling.temperature)
    order = np.argsort(-scores)
    share = np.cumsum(scores[order]) / scores.sum()
    kept = order[: int(np.searchsorted(share, sampling.top_p)) + 1]
    return int(random.choice(kept, p=scores[kept] / scores[kept].sum()))
