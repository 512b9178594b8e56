"""The command line: `lutkern info | inspect FILE | pack IN OUT | quality A B | bench | demo | selftest`, with `--json`.

Exit codes: 0 done, 1 the self-test found a difference, 2 an error (one line on stderr), 130 interrupted, 141 the reader
of the output went away.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ._core import version
from .bench import command as bench
from .compare import command as quality
from .files import command as pack
from .runtime import info
from .text_table import printable, table

_FAILED, _ERROR, _INTERRUPTED, _BROKEN_PIPE = 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments` (default: those of the process); the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Generated text and metadata may hold characters that the terminal's encoding lacks.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit; it must not find the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (ValueError, TypeError, OSError, RuntimeError, ImportError, MemoryError) as error:
        _complain(_one_line(error))
        return _ERROR


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads stderr: the exit code still tells
        print(f"lutkern: {text}", file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lutkern", description="1-bit and 2-bit weights at memory speed.")
    parser.add_argument("--version", action="version", version=f"lutkern {version}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        sub.set_defaults(command=command)
        return sub

    add("info", _info, "what was built, what was found, which kernels run")
    inspect = add("inspect", _inspect, "metadata, tensors and formats of a GGUF file")
    inspect.add_argument("file", metavar="FILE", help="a GGUF file, or any shard of a split one")
    pack.add_options(
        add("pack", pack.run, "pack a whole model into a GGUF file, format by format and tensor by tensor")
    )
    demo = add("demo", _demo, "pack a small language model, compare it with its float self, let it answer")
    demo.add_argument("--model", type=Path, metavar="FILE", help="a dense llama GGUF (default: fetch SmolLM2-135M)")
    for part, fmt in (("gate", "iq2_xxs"), ("up", "iq2_xxs"), ("down", "iq3_xxs")):
        demo.add_argument(f"--{part}", default=fmt, metavar="FORMAT", help=f"format of {part} (default: {fmt})")
    demo.add_argument("--prompt", metavar="TEXT", help="what to ask")
    demo.add_argument("--tokens", type=int, default=64, metavar="N", help="longest answer (default: 64)")
    demo.add_argument("--seed", type=int, metavar="N", help="draw tokens with this seed (default: most likely token)")
    demo.add_argument("--no-cache", action="store_true", help="pack anew and do not keep the packed weights")
    quality.add_options(add("quality", quality.run, "how far a packed GGUF file is from its original"))
    bench.add_options(add("bench", bench.run, "how fast the operations run here, beside the memory and ggml"))
    selftest = add("selftest", _selftest, "compare every kernel of this build with the reference")
    kinds = "cpu, cuda, cuda:N, metal or metal:N (default: cpu)"
    selftest.add_argument("--device", default="cpu", metavar="D", help=kinds)
    return parser


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _info(options: argparse.Namespace) -> int:
    found = info()
    if options.json:
        _print_json(found)
        return 0
    isas = ", ".join(name if there else f"{name} (not on this processor)" for name, there in found["isas"].items())
    print(f"lutkern {found['version']} on {found['machine']}, {found['threads']} threads, kernels {found['isa']}")
    print(f"instruction sets: {isas}")
    for name, device in found["devices"].items():
        print(f"{name}: {device['detail']}")
    cuda = found["cuda"]
    image = f"for {cuda['built_for']}, {cuda['image_bytes']} bytes" if cuda["built_for"] else "not in this build"
    print(f"CUDA driver: {cuda['driver'] or 'none'}; CUDA kernels: {image}")
    metal = found["metal"]
    text = f"{metal['language']}, {metal['text_bytes']} bytes of text" if metal["language"] else "not in this build"
    print(f"Metal system: {metal['system'] or 'none'}; Metal kernels: {text}")
    print(f"library: {found['library']}\ninclude: {found['include']}\n")
    kernels = next(iter(found["formats"].values()))["kernels"]
    columns = [(layout, operation) for layout, operations in kernels.items() for operation in operations]
    rows = [
        (name, f"{fmt['bits_per_weight']:.4f}", *(_isa_of(fmt["kernels"][layout][op]) for layout, op in columns))
        for name, fmt in found["formats"].items()
    ]
    print("rows of kernels that would run, for each layout and operation:")
    print(table(("format", "bits", *(f"{layout} {operation}" for layout, operation in columns)), rows, " r"))
    for kind in (cuda, metal):
        if not kind["kernels"]:
            continue
        gpu_rows = [
            (name, *(kernels[layout][op] or "-" for layout, op in columns)) for name, kernels in kind["kernels"].items()
        ]
        print(f"\nkernels that would run on {kind['devices'][0]['name']}:")
        print(table(("format", *(f"{layout} {operation}" for layout, operation in columns)), gpu_rows))
    return 0


def _isa_of(kernel: str | None) -> str:
    return kernel.rsplit("_", 1)[-1] if kernel else "-"


def _inspect(options: argparse.Namespace) -> int:
    from .gguf_inspect import inspect_gguf

    found = inspect_gguf(options.file)
    if options.json:
        _print_json(found)
        return 0
    for path in found["files"]:
        print(path)
    print(f"GGUF version {found['version']}, alignment {found['alignment']}\n")
    print(table(("key", "value"), ((key, _brief(value)) for key, value in found["metadata"].items())))
    rows = (
        (t["name"], t["format"], " x ".join(map(str, t["shape"])), t["bytes"], _bits(t), t["kernel"] or "-")
        for t in found["tensors"]
    )
    print("\n" + table(("tensor", "format", "shape", "bytes", "bits", "kernel"), rows, "   rr"))
    sums = [(name, f["tensors"], f["weights"], f["bytes"], _bits(f)) for name, f in found["formats"].items()]
    sums.append(("all", len(found["tensors"]), found["weights"], found["bytes"], _bits(found)))
    print("\n" + table(("format", "tensors", "weights", "bytes", "bits"), sums, " rrrr"))
    return 0


def _bits(entry: dict[str, Any]) -> str:
    return "-" if entry["bits_per_weight"] is None else f"{entry['bits_per_weight']:.4f}"


def _brief(value: Any) -> str:
    """Put a metadata value on one line of at most 80 characters, without control characters."""
    if isinstance(value, dict):
        text = f"{value['length']} items: {json.dumps(value['first'], ensure_ascii=False)}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = printable(text)
    return text if len(text) <= 80 else text[:77] + "..."


def _demo(options: argparse.Namespace) -> int:
    from .demo import Formats, Options, run
    from .demo import table as demo_table
    from .demo.pipeline import PROMPT

    result = run(
        Options(
            model=options.model,
            formats=Formats(options.gate, options.up, options.down),
            prompt=PROMPT if options.prompt is None else options.prompt,
            tokens=options.tokens,
            seed=options.seed,
            cache=not options.no_cache,
            quiet=options.json,
        )
    )
    if options.json:
        _print_json(result)
    else:
        print(demo_table(result))
    return 0


def _selftest(options: argparse.Namespace) -> int:
    from .selftest import run, run_gpu

    found = run() if options.device == "cpu" else run_gpu(options.device)
    if options.json:
        _print_json(found)
    else:
        rows = [
            (r["format"], r["isa"], r["op"], "ok" if r["ok"] else "FAILED", _error(r["error"]))
            for r in found["results"]
        ]
        print(table(("format", "isa", "operation", "result", "error"), rows))
        for copy in found.get("copy", ()):
            print(f"copy of {copy['bytes'] >> 20} MiB: {copy['gbytes_per_s']:.1f} GB/s, read and written")
        failed = sum(not r["ok"] for r in found["results"])
        print(f"\n{len(rows)} checks, {failed} failed")
    return 0 if found["ok"] else _FAILED


def _error(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
