"""Write python/lutkern/golden.json, the vectors that `lutkern selftest` holds every kernel against.

    python tests/generate_golden.py [--check]

The judges are foreign to the kernels: the gguf package says what the weights are, the float64 reference what the
products are.
--check exits 1 if the file differs from what would be written.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from lutkern import reference
from reference_samples import finite_rows, gguf_dequantize

ROWS, COLS, TOKENS, EXPERTS = 6, 288, 3, 2
TARGET = Path(__file__).resolve().parents[1] / "python" / "lutkern" / "golden.json"


def text_of(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def rounded(values: np.ndarray) -> list[float]:
    """Return float64 numbers with the digits that a float32 result can be held against."""
    return [float(f"{v:.10g}") for v in np.asarray(values, np.float64).reshape(-1)]


def activations() -> np.ndarray:
    """Return (tokens, cols) multiples of 1/64, which float32 and float16 hold exactly."""
    return (np.random.default_rng(7).integers(-200, 201, (TOKENS, COLS)) / 64).astype(np.float32)


def vectors() -> dict[str, object]:
    x = activations()
    formats = {}
    for number, name in enumerate(reference.FORMATS):
        blocks = finite_rows(name, ROWS, COLS, seed=number)
        weight = (blocks, name, (ROWS, COLS))
        formats[name] = {
            "blocks": text_of(blocks),
            "dequantized_sha256": hashlib.sha256(
                gguf_dequantize(blocks, name)[:, :COLS].astype("<f4").tobytes()
            ).hexdigest(),
            "matmul": rounded(reference.matmul(weight, x)),
            "bound": rounded(reference.fp32_bound(weight, x, n_ulp=8)),
        }
    return {
        "shape": [ROWS, COLS],
        "x_64ths": (x * 64).astype(int).tolist(),
        "formats": formats,
        "moe": moe_vectors(x),
    }


def moe_vectors(x: np.ndarray) -> dict[str, object]:
    """Return a small layer of mixed formats; x is scaled down so that the activation function is not at its ends."""
    shapes = {
        "gate": ("iq1_m", (EXPERTS, 64, COLS)),
        "up": ("iq2_xxs", (EXPERTS, 64, COLS)),
        "down": ("iq3_xxs", (EXPERTS, COLS, 64)),
    }
    weights = {}
    for number, (projection, (name, shape)) in enumerate(shapes.items()):
        blocks = finite_rows(name, shape[0] * shape[1], shape[2], seed=100 + number)
        weights[projection] = (blocks.reshape(*shape[:2], -1), name, shape)
    ids = np.array([[0, 1], [1, 1], [1, 0]])
    shares = np.array([[0.75, 0.25], [0.5, 0.5], [1.0, 0.125]], np.float32)
    arguments = (x / 256, ids, shares, weights["gate"], weights["up"], weights["down"])
    return {
        "ids": ids.tolist(),
        "weights": shares.tolist(),
        "tensors": {p: {"format": n, "shape": s, "blocks": text_of(b)} for p, (b, n, s) in weights.items()},
        "y": rounded(reference.moe(*arguments)),
        "bound": rounded(reference.moe_bound(*arguments, n_ulp=8)),
    }


def main() -> int:
    text = json.dumps(vectors()) + "\n"
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text() != text:
            print(f"{TARGET.name} is not what the judges say: run tests/generate_golden.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
