"""The demonstration from end to end: fetch, pack, compare, generate, tell."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._core import version
from ..formats import find_format, formats
from ..gguf import GgufFile, open_gguf
from ..runtime import info
from .convert import EXPERT_NEURONS, Formats, PackedFfn, expert_count, pack_model
from .evaluate import Sampling, compare, generate, read_text
from .fetch import cache_folder, fetch_model, sha256_of
from .llama import DenseFfn, Ffn, Llama
from .store import load, save, store_key, store_path
from .tokenizer import TextStream, Tokenizer

CALIBRATION_WINDOWS = 10
EVALUATION_WINDOWS = 2
WINDOW_TOKENS = 512
PROMPT = "What is a list in Python?"


@dataclass(frozen=True)
class Options:
    """What to run. `model` None: SmolLM2-135M-Instruct, fetched. `quiet`: nothing but the result, for `--json`."""

    model: Path | None = None
    formats: Formats = field(default_factory=lambda: Formats("iq2_xxs", "iq2_xxs", "iq3_xxs"))
    prompt: str = PROMPT
    tokens: int = 64
    seed: int | None = None
    cache: bool = True
    quiet: bool = False


class Clock:
    """Seconds spent in each named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the body to `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run(options: Options) -> dict[str, Any]:
    """Run the demonstration; what came out, as a dictionary that JSON can hold.

    Unless `quiet`, progress goes to stderr and the generated text to stdout as it is made.

    Raises
    ------
    ValueError
        If a format cannot be packed, or the model is not one that the demonstration can run.
    OSError
        If the model cannot be fetched or read.
    ImportError
        If a package of the extra `demo` is missing.
    """
    clock = Clock()
    _check(options)
    with clock.part("fetch"):
        path = options.model or fetch_model(cache_folder(), lambda line: _say(options, line))
    with open_gguf(path) as file:
        with clock.part("load"):
            _say(options, f"loading {path}")
            model = Llama(file)
            experts = expert_count(model.config.inter)
            tokenizer = Tokenizer(file.metadata)
            dense = DenseFfn(file, model.config)
            sizes = _file_sizes(file, model)
            shards = [Path(shard) for shard in file.shard_paths]
        window = min(WINDOW_TOKENS, model.config.context)
        text = read_text(tokenizer, calibration=CALIBRATION_WINDOWS, evaluation=EVALUATION_WINDOWS, tokens=window)
        with clock.part("pack"):
            packed, reused = _packed(options, shards, model, dense, text.calibration)
        with clock.part("evaluate"):
            _say(options, f"comparing with the float model on {EVALUATION_WINDOWS} x {window} tokens")
            quality = compare(model, dense, packed, text.evaluation)
        with clock.part("generate"):
            answers = _answers(options, model, tokenizer, dense, packed)
    machine = info()
    return {
        "model": {"name": model.config.name, "file": str(path), "layers": model.config.layers},
        "experts": {"per_layer": experts, "neurons": EXPERT_NEURONS},
        "formats": asdict(options.formats),
        "calibration_tokens": sum(map(len, text.calibration)),
        "ffn": {**sizes, "packed_bytes": packed.nbytes, "bits_per_weight": 8 * packed.nbytes / sizes["weights"]},
        "quality": asdict(quality),
        **answers,
        "machine": {"isa": machine["isa"], "threads": machine["threads"]},
        "packed_from_cache": reused,
        "seconds": {name: round(seconds, 3) for name, seconds in clock.seconds.items()},
    }


def _check(options: Options) -> None:
    """Find out what is wrong with the options, or missing, before anything takes time."""
    for name in (options.formats.gate, options.formats.up, options.formats.down):
        if not find_format(name).can_pack:
            packable = " ".join(fmt.name for fmt in formats() if fmt.can_pack)
            raise ValueError(f"demo: format '{name}' cannot be packed; formats: {packable}")
    if options.tokens < 1:
        raise ValueError(f"demo: {options.tokens} tokens, expected at least 1")
    if options.seed is not None and options.seed < 0:
        raise ValueError(f"demo: the seed is {options.seed}, expected 0 or more")
    if not options.prompt:
        raise ValueError("demo: the prompt is empty, expected text")
    try:
        import tokenizers  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError as error:
        raise ImportError(f"demo: the package '{error.name}' is missing: pip install 'lutkern[demo]'") from error


def _say(options: Options, line: str) -> None:
    if not options.quiet:
        print(line, file=sys.stderr, flush=True)


def _file_sizes(file: GgufFile, model: Llama) -> dict[str, int]:
    """Weights and bytes of the feed-forward matrices as they are in the file, and as 16-bit floats."""
    parts = [f"blk.{i}.ffn_{part}.weight" for i in range(model.config.layers) for part in ("gate", "up", "down")]
    weights = 3 * model.config.layers * model.config.inter * model.config.hidden
    stored = sum(file.tensors[name].nbytes for name in parts)
    return {"weights": weights, "file_bytes": stored, "f16_bytes": 2 * weights}


def _packed(
    options: Options, shards: list[Path], model: Llama, dense: DenseFfn, calibration: list[list[int]]
) -> tuple[PackedFfn, bool]:
    """Return the packed experts, and whether they came from the cache."""
    from tqdm import tqdm

    digest = "+".join(sha256_of(shard) for shard in shards)
    key = store_key(digest, options.formats, calibration, version)
    path = store_path(cache_folder(), key)
    if options.cache:
        kept = load(path, key, options.formats, model.config)
        if kept is not None:
            _say(options, f"packed weights from {path}")
            return kept, True
    with tqdm(total=model.config.layers, desc="packing", unit="layer", disable=options.quiet) as bar:
        packed = pack_model(model, dense, calibration, options.formats, lambda: bar.update() and None)
    if options.cache:
        try:
            save(path, key, packed)
        except OSError as error:
            _say(options, f"the packed weights could not be kept: {error}")
    return packed, False


def _answers(
    options: Options, model: Llama, tokenizer: Tokenizer, dense: DenseFfn, packed: PackedFfn
) -> dict[str, Any]:
    """Let both models answer the prompt; texts and tokens per second."""
    prompt = tokenizer.encode(tokenizer.chat(options.prompt))
    answers: dict[str, Any] = {"prompt": options.prompt}
    if not options.quiet:
        print(f"\n> {options.prompt}\n")
    networks: tuple[tuple[str, Ffn], ...] = (("base", dense), ("packed", packed))
    for name, ffn in networks:
        if not options.quiet:
            print(f"[{name}] ", end="", flush=True)
        answers[name] = _answer(options, model, tokenizer, ffn, prompt)
        if not options.quiet:
            print("\n")
    return answers


def _answer(options: Options, model: Llama, tokenizer: Tokenizer, ffn: Ffn, prompt: list[int]) -> dict[str, Any]:
    stream, text, times = TextStream(tokenizer), "", list[float]()
    sampling = Sampling(seed=options.seed)
    start = time.perf_counter()
    for token in generate(model, ffn, prompt, tokens=options.tokens, stop=tokenizer.stop_tokens, sampling=sampling):
        times.append(time.perf_counter())
        piece = stream.push(token)
        text += piece
        if not options.quiet:
            print(piece, end="", flush=True)
    rest = stream.finish()
    if not options.quiet:
        print(rest, end="")
    # The first token also pays for the prompt; speed is that of the tokens after it.
    steps, seconds = len(times) - 1, (times[-1] - times[0] if times else 0.0)
    return {
        "text": text + rest,
        "tokens": len(times),
        "first_token_seconds": round(times[0] - start, 4) if times else None,
        "tokens_per_second": round(steps / seconds, 2) if steps > 0 and seconds > 0 else None,
    }


def table(result: dict[str, Any]) -> str:
    """Lay the result out as text: a line for each figure, float model beside packed model."""
    ffn, quality, chosen = result["ffn"], result["quality"], result["formats"]
    base, packed = result["base"], result["packed"]

    def megabytes(n_bytes: int) -> str:
        return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"

    def speed(answer: dict[str, Any]) -> str:
        value = answer["tokens_per_second"]
        return "-" if value is None else f"{value:.1f}"

    file_bits = 8 * ffn["file_bytes"] / ffn["weights"]
    rows = [
        ("", "file", "f16", "lutkern"),
        ("FFN bytes", *(megabytes(ffn[key]) for key in ("file_bytes", "f16_bytes", "packed_bytes"))),
        ("bits per weight", f"{file_bits:.3f}", "16.000", f"{ffn['bits_per_weight']:.3f}"),
        ("", "float model", "", "packed model"),
        ("perplexity", f"{quality['base_perplexity']:.2f}", "", f"{quality['packed_perplexity']:.2f}"),
        ("mean KL divergence, nats", "0", "", f"{quality['kl']:.3f}"),
        ("same most likely token", "100.0 %", "", f"{100 * quality['top1']:.1f} %"),
        ("tokens per second", speed(base), "", speed(packed)),
    ]
    lines = [f"{name:<26}{a:>12}{b:>12}{c:>14}".rstrip() for name, a, b, c in rows]
    model, machine, experts = result["model"], result["machine"], result["experts"]
    title = (
        f"{model['name']}: {model['layers']} layers x {experts['per_layer']} experts; "
        f"gate {chosen['gate']}, up {chosen['up']}, down {chosen['down']}; "
        f"kernels {machine['isa']}, {machine['threads']} threads"
    )
    note = "bits per weight count the padding of rows that are no multiple of a block; every FFN weight is packed"
    return "\n".join([title, *lines, note])
