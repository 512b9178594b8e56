"""What choosing a format for each tensor gains over one format for all: python bench/pack_mix.py [--out FILE.csv]

SmolLM2-135M as f16, importance measured on calibration text. A file with one format wherever its blocks fit (`lutkern
pack --default FORMAT`), and one of the same size whose formats `--target-bpw` chose; both are run beside the f16 file.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lutkern
from lutkern.demo.evaluate import read_text
from lutkern.demo.fetch import cache_folder, fetch_model
from lutkern.demo.llama import DenseFfn, Llama, rms_norm
from lutkern.demo.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]

FORMATS = ("iq1_m", "iq2_xxs", "iq2_s", "iq3_xxs")
CANDIDATES = ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "q4_k", "q6_k", "iq4_nl", "q8_0"]


def measure_importance(path: Path) -> lutkern.Importance:
    """Mean squares of what multiplies the weights of a dense llama; `attn_output` is left out."""
    importance = lutkern.Importance()
    with lutkern.open_gguf(path) as file:
        model = Llama(file)
        dense = DenseFfn(file, model.config)
        text = read_text(Tokenizer(file.metadata), calibration=4, evaluation=1, tokens=512)
    for window in text.calibration:
        cache, x = model.cache(len(window)), model.embed(window)
        for layer, weights in enumerate(model.layers):
            for part in "qkv":
                importance.update(f"blk.{layer}.attn_{part}.weight", rms_norm(x, weights.attn_norm, model.config.eps))
            attended = model.attend(layer, x, cache)
            inputs = model.ffn_input(layer, attended)
            for part in ("gate", "up"):
                importance.update(f"blk.{layer}.ffn_{part}.weight", inputs)
            importance.update(f"blk.{layer}.ffn_down.weight", dense.inner(layer, inputs))
            x = attended + dense(layer, inputs)
        importance.update("token_embd.weight", rms_norm(x, model.output_norm, model.config.eps))
    return importance


def packed_bits(plan: lutkern.files.Plan) -> float:
    """Bits per weight of the tensors that are not floats."""
    packed = [tensor for tensor in plan.tensors if tensor.type_name != "f32"]
    return 8 * sum(tensor.nbytes for tensor in packed) / sum(tensor.source.n_weights for tensor in packed)


def row(name: str, floats: Path, packed: Path, plan: lutkern.files.Plan, windows: int) -> dict[str, Any]:
    """One line of the record."""
    found = lutkern.compare_files(floats, packed, match="ffn_down", windows=windows).model
    assert found is not None
    formats = Counter(t.type_name for t in plan.tensors if "ffn_down" in t.name)
    return {
        "file": name,
        "bits_per_weight": packed_bits(plan),
        "bytes": packed.stat().st_size,
        "perplexity": found.perplexity_b,
        "kl": found.kl,
        "top1": found.top1,
        "perplexity_f16": found.perplexity_a,
        "predictions": found.predictions,
        "ffn_down": " ".join(f"{count}x{fmt}" for fmt, count in sorted(formats.items())),
    }


def main() -> None:
    """Pack, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the rows as CSV")
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        floats, packed = Path(folder, "f16.gguf"), Path(folder, "packed.gguf")
        lutkern.pack_file(fetch_model(cache_folder(), print), floats, types=[".=f16"], allow_requantize=True)
        importance = measure_importance(floats)
        for fmt in FORMATS:
            plan = lutkern.pack_file(floats, packed, default=fmt, importance=importance, force=True)
            rows.append(row(f"uniform {fmt}", floats, packed, plan, options.windows))
            bits = packed_bits(plan)
            plan = lutkern.pack_file(
                floats, packed, target_bpw=bits, candidates=CANDIDATES, importance=importance, force=True
            )
            rows.append(row(f"mix at {bits:.3f}", floats, packed, plan, options.windows))
            for line in rows[-2:]:
                print(" ".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in line.values()))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with open(options.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
