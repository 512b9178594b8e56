"""Two GGUF files as language models: perplexity, KL divergence, the most likely tokens."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..gguf import GgufFile, open_gguf

# The room of the demonstration is entered when a model runs, not by `import lutkern`.
if TYPE_CHECKING:
    from ..demo.evaluate import Predictions, States

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class ModelErrors:
    """How far the model of B is from that of A on the same text; losses and divergences are in nats.

    Attributes
    ----------
    name
        Of the model in A.
    windows, tokens
        How many windows, and how many tokens each has.
    predictions
        How many tokens were predicted: all but the first of each window.
    perplexity_a, perplexity_b
        ``exp`` of the mean of minus the log probability of the token that follows.
    loss_increase, loss_increase_error
        Mean of that loss of B minus that of A, and the standard error of this mean, taking predictions as independent.
    kl, kl_p95
        KL divergence of B's distribution from A's, ``sum(p_a * log(p_a / p_b))``: mean and 95th percentile.
    top1
        Share of the predictions whose most likely token is the same.
    """

    name: str
    windows: int
    tokens: int
    predictions: int
    perplexity_a: float
    perplexity_b: float
    loss_increase: float
    loss_increase_error: float
    kl: float
    kl_p95: float
    top1: float


def compare_models(
    a: _Path, b: _Path, windows: int, tokens: int, report: Callable[[str], None]
) -> tuple[ModelErrors | None, str | None]:
    """Run the models of both files on the same text; what came out, or why they cannot run.

    One model is in memory at a time, its weights as float32. Raises OSError if a file cannot be read.
    """
    from ..demo.evaluate import predict, read_text
    from ..demo.llama import read_config
    from ..demo.tokenizer import Tokenizer

    try:
        with open_gguf(a) as file:
            config = read_config(file.metadata)
            tokenizer = Tokenizer(file.metadata)
            _expect_memory(file)
        with open_gguf(b) as file:
            tokens = min(tokens, config.context, read_config(file.metadata).context)
            _expect_memory(file)
        text = read_text(tokenizer, calibration=0, evaluation=windows, tokens=tokens).evaluation
        with np.errstate(all="ignore"):  # broken weights show as numbers that are not finite
            report(f"running A on {windows} x {tokens} tokens")
            states_a = _run(a, text)
            report(f"running B on {windows} x {tokens} tokens")
            found = predict(states_a, _run(b, text), text)
            return _errors(config.name, windows, tokens, found), None
    except (ValueError, TypeError, ImportError, MemoryError) as error:
        # The room of the demonstration says its name first; here it is the model that does not fit.
        return None, " ".join(str(error).removeprefix("demo: ").split()) or type(error).__name__


def _run(path: _Path, windows: list[list[int]]) -> States:
    from ..demo.evaluate import run_windows
    from ..demo.llama import DenseFfn, Llama

    with open_gguf(path) as file:
        model = Llama(file)
        return run_windows(model, DenseFfn(file, model.config), windows)


def _expect_memory(file: GgufFile) -> None:
    """Find out whether the model is too large, before anything takes time."""
    need, have = 4 * sum(info.n_weights for info in file.tensors.values()), memory_bytes()
    if need > have:
        name = Path(file.path).name
        raise ValueError(f"{name} needs {need / 1e9:.1f} GB as float32, this machine has {have / 1e9:.1f} GB")


def memory_bytes() -> int:
    """Return how much memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _errors(name: str, windows: int, tokens: int, found: Predictions) -> ModelErrors:
    quality, increase = found.quality(), found.packed_loss - found.base_loss
    return ModelErrors(
        name=name,
        windows=windows,
        tokens=tokens,
        predictions=quality.predictions,
        perplexity_a=quality.base_perplexity,
        perplexity_b=quality.packed_perplexity,
        loss_increase=float(increase.mean()),
        loss_increase_error=float(increase.std(ddof=1) / np.sqrt(len(increase))) if len(increase) > 1 else float("nan"),
        kl=quality.kl,
        kl_p95=quality.kl_p95,
        top1=quality.top1,
    )
