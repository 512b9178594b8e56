"""What packing costs a real model, lutkern beside ggml: python bench/pack_quality.py [--out FILE.csv]

SmolLM2-135M, the model of `lutkern demo`. The `ffn_down` matrices of all layers, the only ones whose 1536 columns fill
blocks of 256, are packed by `lutkern.pack` and by ggml with the same importance, measured on two windows of calibration
text. The rest of the model stays as it is. Both run on evaluation text in NumPy on dequantised float32 weights.

A row of the table: importance-weighted relative error, perplexity, mean KL divergence from the unpacked model, share of
equal most likely tokens, each for lutkern and for ggml; then by how much the log likelihood of lutkern's model is
higher, in nats per token, with the standard error of this paired difference. Tokens of one window hang together, so the
standard error is that of the means of the windows; the CSV file also has the one over tokens.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lutkern
from lutkern.demo.evaluate import Predictions, States, predict, read_text, run_windows
from lutkern.demo.fetch import cache_folder, fetch_model
from lutkern.demo.llama import DenseFfn, Llama
from lutkern.demo.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import ggml_rival

Array = npt.NDArray[np.float32]
Pack = Callable[[Array, Array], lutkern.PackedTensor]

MOST_BITS = 6.6
CALIBRATION_WINDOWS = 2
COLUMNS = ("format", "bits", "error", "", "perplexity", "", "KL", "", "top-1", "", "lutkern over ggml, nats per token")


class Model:
    """The model, its text, its importance, and what it makes of the text unpacked."""

    def __init__(self, path: Path, windows: int, tokens: int) -> None:
        with lutkern.open_gguf(path) as file:
            self.llama = Llama(file)
            self.dense = DenseFfn(file, self.llama.config)
            text = read_text(
                Tokenizer(file.metadata), calibration=CALIBRATION_WINDOWS, evaluation=windows, tokens=tokens
            )
        self.windows = text.evaluation
        self.downs = [down for _, _, down in self.dense.layers]
        self.importance = self._importance(text.calibration)
        self.base = run_windows(self.llama, self.dense, self.windows)
        self.base_loss = predict(self.base, self.base, self.windows).base_loss

    def _importance(self, windows: list[list[int]]) -> list[Array]:
        collected = lutkern.Importance()

        def watched(layer: int, x: Array) -> Array:
            inner = self.dense.inner(layer, x)
            collected.update(str(layer), inner)
            return np.asarray(inner @ self.downs[layer].T)

        for window in windows:
            self.llama.hidden(window, watched)
        return [collected.for_weight(str(i), down.shape) for i, down in enumerate(self.downs)]

    def run(self, downs: list[Array]) -> States:
        """Run the model with other matrices in place of `ffn_down`."""
        return run_windows(
            self.llama, lambda layer, x: np.asarray(self.dense.inner(layer, x) @ downs[layer].T), self.windows
        )

    def error(self, downs: list[Array]) -> float:
        """Relative importance-weighted root mean square error; layers count alike, however large their inputs."""
        squares = []
        for w, q, importance in zip(self.downs, downs, self.importance, strict=True):
            exact, columns = w.astype(np.float64), importance.astype(np.float64)
            squares.append((np.square(q - exact) @ columns).sum() / (np.square(exact) @ columns).sum())
        return float(np.sqrt(np.mean(squares)))


def measure(model: Model, pack: Pack, workers: int) -> tuple[dict[str, float], Predictions]:
    """Pack all layers, run the model; figures and predictions."""
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        packed = list(pool.map(pack, model.downs, model.importance))
    seconds = time.perf_counter() - start
    downs = [lutkern.dequantize(t) for t in packed]
    found = predict(model.base, model.run(downs), model.windows)
    quality = found.quality()
    figures = {
        "error": model.error(downs),
        "perplexity": quality.packed_perplexity,
        "kl": quality.kl,
        "kl_p95": quality.kl_p95,
        "top1": quality.top1,
        "pack_seconds": seconds,
    }
    return figures, found


def compare(model: Model, fmt: lutkern.Format, options: dict[str, Any], threads: int) -> dict[str, Any]:
    """One row: both packers, and the paired difference of what their models say about the text."""
    ours, our_predictions = measure(model, lambda w, i: lutkern.pack(w, fmt, importance=i, **options), 1)
    theirs, their_predictions = measure(model, lambda w, i: ggml_rival.pack(w, fmt, i), threads)
    gain = their_predictions.packed_loss - our_predictions.packed_loss
    by_window = gain.reshape(len(model.windows), -1).mean(axis=1)
    return {
        "format": fmt.name,
        "bits": fmt.bits_per_weight,
        "effort": options.get("effort", "default"),
        **{
            f"{key}_{who}": value
            for who, figures in (("lutkern", ours), ("ggml", theirs))
            for key, value in figures.items()
        },
        "gain": float(gain.mean()),
        "gain_se_windows": standard_error(by_window),
        "gain_se_tokens": standard_error(gain),
        "predictions": len(gain),
        "base_perplexity": float(np.exp(model.base_loss.mean())),
        "lutkern": lutkern.__version__,
        "isa": lutkern.info()["isa"],
        "python": platform.python_version(),
    }


def standard_error(values: npt.NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def table_row(row: dict[str, Any]) -> str:
    cells: list[str] = [f"`{row['format']}`", f"{row['bits']:.4g}"]
    for key, form in (("error", ".4f"), ("perplexity", ".2f"), ("kl", ".4f"), ("top1", ".3f")):
        cells += [f"{row[f'{key}_{who}']:{form}}" for who in ("lutkern", "ggml")]
    return "| " + " | ".join([*cells, f"{row['gain']:+.4f} +- {row['gain_se_windows']:.4f}"]) + " |"


def rows(
    model: Model, formats: Sequence[lutkern.Format], options: dict[str, Any], threads: int
) -> Iterator[dict[str, Any]]:
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    print("| | | " + "lutkern | ggml | " * 4 + "|", flush=True)
    for fmt in formats:
        row = compare(model, fmt, options, threads)
        print(table_row(row), flush=True)
        yield row


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    found = [fmt.name for fmt in lutkern.formats() if fmt.can_pack and fmt.bits_per_weight < MOST_BITS]
    parser = argparse.ArgumentParser(description="Packing SmolLM2-135M's ffn_down: lutkern beside ggml.")
    parser.add_argument("--model", type=Path, metavar="FILE", help="the model (default: fetch SmolLM2-135M)")
    parser.add_argument("--formats", nargs="+", default=found, choices=found, metavar="FORMAT", help="default: all")
    parser.add_argument("--windows", type=int, default=17, metavar="N", help="of evaluation text (default: 17)")
    parser.add_argument("--tokens", type=int, default=512, metavar="N", help="in a window (default: 512)")
    parser.add_argument("--threads", type=int, default=lutkern.num_threads(), metavar="N", help="of both packers")
    parser.add_argument("--effort", choices=("fast", "default", "best"), help="of lutkern.pack")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures as CSV")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    path = options.model or fetch_model(cache_folder(), lambda line: print(line, file=sys.stderr))
    model = Model(path, options.windows, options.tokens)
    given = {"threads": options.threads} | ({"effort": options.effort} if options.effort else {})
    n = len(model.base_loss)
    print(f"{n} predictions, {options.windows} windows; perplexity unpacked {np.exp(model.base_loss.mean()):.2f}\n")
    formats = [fmt for fmt in lutkern.formats() if fmt.name in options.formats]
    done = []
    for row in rows(model, formats, given, options.threads):
        done.append(row)
        if options.out:  # after each format: a run is long
            with open(options.out, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
                writer.writerows(done)


if __name__ == "__main__":
    main()
