"""Text for calibration and evaluation, how far a packed model is from its float model, and generation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .llama import Ffn, Floats, Llama
from .tokenizer import Tokenizer

_ROWS = 128  # whose scores of the whole vocabulary are in memory at once


@dataclass(frozen=True)
class Text:
    """Windows of tokens: calibration from the first half of the text, evaluation from the second."""

    calibration: list[list[int]]
    evaluation: list[list[int]]


@dataclass(frozen=True)
class States:
    """What a model made of windows of tokens: all it takes to score the tokens that follow.

    hidden: for each window float32 (tokens - 1, hidden), after every token but the last. head: float32 (vocabulary,
    hidden), whose products with them are the logits.
    """

    hidden: tuple[Floats, ...]
    head: Floats


@dataclass(frozen=True)
class Predictions:
    """Two models on the same text, one entry for each predicted token, all (predictions,).

    base_loss and packed_loss: float64, minus the log probability of the token that follows, in nats. kl: float64, KL
    divergence of the packed model's distribution from the base model's, in nats. same: bool, whether the most likely
    token is the same.
    """

    base_loss: NDArray[np.float64]
    packed_loss: NDArray[np.float64]
    kl: NDArray[np.float64]
    same: NDArray[np.bool_]

    def quality(self) -> Quality:
        """Sum up."""
        return Quality(
            base_perplexity=float(np.exp(self.base_loss.mean())),
            packed_perplexity=float(np.exp(self.packed_loss.mean())),
            kl=float(self.kl.mean()),
            kl_p95=float(np.percentile(self.kl, 95)),
            top1=float(self.same.mean()),
            predictions=len(self.kl),
        )


@dataclass(frozen=True)
class Quality:
    """Perplexities, KL divergence in nats (mean, 95th percentile), share of equal most likely tokens, predictions."""

    base_perplexity: float
    packed_perplexity: float
    kl: float
    kl_p95: float
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


def run_windows(model: Llama, ffn: Ffn, windows: list[list[int]]) -> States:
    """Run a model over `windows` of at least two tokens. ValueError if there is no window, or a shorter one."""
    if not windows or min(map(len, windows)) < 2:
        raise ValueError("demo: no evaluation text, expected windows of at least two tokens")
    return States(tuple(model.hidden(window[:-1], ffn) for window in windows), model.head)


def predict(base: States, packed: States, windows: list[list[int]]) -> Predictions:
    """Compare what two models made of the same `windows`; each token but a window's first is predicted once.

    ValueError if the vocabularies differ.
    """
    if len(base.head) != len(packed.head):
        sizes = f"{len(base.head)} and {len(packed.head)}"
        raise ValueError(f"demo: the vocabularies have {sizes} tokens, expected the same")
    count = sum(map(len, base.hidden))
    found = Predictions(np.empty(count), np.empty(count), np.empty(count), np.empty(count, np.bool_))
    done = 0
    for window, x, y in zip(windows, base.hidden, packed.hidden, strict=True):
        for start in range(0, len(x), _ROWS):
            rows = slice(start, min(start + _ROWS, len(x)))
            truth = np.asarray(window[rows.start + 1 : rows.stop + 1])
            parts = _predict_rows(x[rows] @ base.head.T, y[rows] @ packed.head.T, truth)
            here = slice(done, done + len(truth))
            found.base_loss[here], found.packed_loss[here], found.kl[here], found.same[here] = parts
            done += len(truth)
    return found


def _predict_rows(
    base: Floats, packed: Floats, truth: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Losses, KL divergence and agreement from the logits of both models, (rows, vocabulary), which are overwritten."""
    each = np.arange(len(truth))
    tops = [logits.argmax(axis=-1) for logits in (base, packed)]
    for logits, top in zip((base, packed), tops, strict=True):
        logits -= logits[each, top][:, None]
    weights = np.exp(packed)
    packed_log_total = np.log(weights.sum(axis=-1, dtype=np.float64))
    np.exp(base, out=weights)
    base_total = weights.sum(axis=-1, dtype=np.float64)
    base_log_total = np.log(base_total)
    base_loss, packed_loss = base_log_total - base[each, truth], packed_log_total - packed[each, truth]
    # sum(p (log p - log q)), p = weights / total, in place: the arrays are as wide as the vocabulary.
    base -= packed
    base *= weights
    kl = base.sum(axis=-1, dtype=np.float64) / base_total + packed_log_total - base_log_total
    return base_loss, packed_loss, kl, tops[0] == tops[1]


def compare(model: Llama, base: Ffn, packed: Ffn, windows: list[list[int]]) -> Quality:
    """Run one model with two feed-forward parts over `windows`. Raises as `run_windows` does."""
    return predict(run_windows(model, base, windows), run_windows(model, packed, windows), windows).quality()


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
