"""A llama-architecture language model in NumPy, float32, with the feed-forward part left open.

Attention, norms and embeddings are plain NumPy. The feed-forward network of a layer is a callable
`ffn(layer, x) -> y` with x and y float32 (tokens, hidden), so that the same model runs on dense floats or
on packed experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..gguf import GgufFile

Floats = NDArray[np.float32]
Ffn = Callable[[int, Floats], Floats]


@dataclass(frozen=True)
class Config:
    """Sizes of a llama model. `hidden` is the residual width, `inter` the feed-forward width."""

    name: str
    layers: int
    hidden: int
    inter: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_dim: int
    rope_base: float
    eps: float
    context: int


@dataclass(frozen=True)
class Layer:
    """Attention weights and norms of one layer: q (heads * head_dim, hidden), k and v (kv_heads * head_dim, hidden)."""

    attn_norm: Floats
    q: Floats
    k: Floats
    v: Floats
    output: Floats
    ffn_norm: Floats


def read_config(metadata: Mapping[str, Any]) -> Config:
    """Read the sizes from GGUF metadata.

    Raises
    ------
    ValueError
        If the file is not a dense llama model with plain rotary positions, or a required key is missing or odd.
    """
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"demo: the model's architecture is {architecture!r}, expected 'llama'")

    def need(key: str, default: Any = None) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if value is None:
            raise ValueError(f"demo: the model has no metadata key 'llama.{key}'")
        return value

    def size(key: str, default: int | None = None) -> int:
        value = need(key, default)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"demo: llama.{key} is {value!r:.40}, expected a whole number of at least 1")
        return value

    def number(key: str, default: float | None = None) -> float:
        value = need(key, default)
        if not isinstance(value, float) or not 0 < value < math.inf:
            raise ValueError(f"demo: llama.{key} is {value!r:.40}, expected a positive float")
        return value

    if metadata.get("llama.expert_count", 0):
        raise ValueError("demo: the model has routed experts, expected a dense feed-forward network to split")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"demo: the model scales rotary positions ({scaling!r}), expected none")
    hidden, heads = size("embedding_length"), size("attention.head_count")
    head_dim = size("attention.key_length", hidden // heads)
    return Config(
        name=str(metadata.get("general.name", "llama")),
        layers=size("block_count"),
        hidden=hidden,
        inter=size("feed_forward_length"),
        heads=heads,
        kv_heads=size("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_dim=size("rope.dimension_count", head_dim),
        rope_base=number("rope.freq_base", 10000.0),
        eps=number("attention.layer_norm_rms_epsilon"),
        context=size("context_length"),
    )


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Root-mean-square norm of each row: x (tokens, hidden), weight (hidden,) -> float32 (tokens, hidden)."""
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean_square + np.float32(eps)) * weight, dtype=np.float32)


def silu(x: Floats) -> Floats:
    """Compute x * sigmoid(x), float32, any shape."""
    # Below -80 the result is under 1e-33 whatever the exponent, so the clip only keeps exp from overflowing.
    out: Floats = np.minimum(-x, np.float32(80.0))
    np.exp(out, out=out)
    out += 1.0
    np.divide(x, out, out=out)
    return out


def softmax(scores: Floats) -> Floats:
    """Softmax over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


class KvCache:
    """Keys and values of the tokens seen so far: two float32 (layers, kv_heads, capacity, head_dim)."""

    def __init__(self, config: Config, capacity: int) -> None:
        shape = (config.layers, config.kv_heads, capacity, config.head_dim)
        self.keys = np.zeros(shape, np.float32)
        self.values = np.zeros(shape, np.float32)
        self.length = 0

    @property
    def capacity(self) -> int:
        """The most tokens the cache can hold."""
        return int(self.keys.shape[2])


class Llama:
    """The float part of a llama model.

    Raises
    ------
    ValueError
        From the constructor, if the metadata is not a dense llama model or a tensor's shape contradicts it.
    """

    def __init__(self, weights: GgufFile) -> None:
        self.config = read_config(weights.metadata)
        names = set(weights.keys())
        biased = next((n for n in sorted(names) if n.startswith("blk.") and n.endswith(".bias")), None)
        if biased is not None:
            raise ValueError(f"demo: the model has a bias '{biased}', expected a llama model without biases")
        c = self.config
        q_rows, kv_rows = c.heads * c.head_dim, c.kv_heads * c.head_dim
        if c.heads % c.kv_heads:
            raise ValueError(f"demo: {c.heads} attention heads, expected a multiple of the {c.kv_heads} key heads")
        if c.rope_dim % 2 or c.rope_dim > c.head_dim:
            raise ValueError(f"demo: {c.rope_dim} rotary dimensions, expected an even number up to {c.head_dim}")

        def take(name: str, *shape: int) -> Floats:
            if name not in names:
                raise ValueError(f"demo: the model has no tensor '{name}'")
            value = np.ascontiguousarray(weights.array(name), dtype=np.float32)
            if value.ndim != len(shape) or any(n not in (m, -1) for m, n in zip(value.shape, shape, strict=True)):
                expected = ", ".join("any" if n == -1 else str(n) for n in shape)
                raise ValueError(f"demo: '{name}' has shape {value.shape}, expected ({expected})")
            return value

        self.embedding = take("token_embd.weight", -1, c.hidden)
        vocabulary = len(self.embedding)
        tied = "output.weight" not in names
        self.head = self.embedding if tied else take("output.weight", vocabulary, c.hidden)
        self.output_norm = take("output_norm.weight", c.hidden)
        self.layers = tuple(
            Layer(
                attn_norm=take(f"blk.{i}.attn_norm.weight", c.hidden),
                q=take(f"blk.{i}.attn_q.weight", q_rows, c.hidden),
                k=take(f"blk.{i}.attn_k.weight", kv_rows, c.hidden),
                v=take(f"blk.{i}.attn_v.weight", kv_rows, c.hidden),
                output=take(f"blk.{i}.attn_output.weight", c.hidden, q_rows),
                ffn_norm=take(f"blk.{i}.ffn_norm.weight", c.hidden),
            )
            for i in range(c.layers)
        )
        pairs = np.arange(0, c.rope_dim, 2, dtype=np.float64)
        self._frequencies = c.rope_base ** (-pairs / c.rope_dim)
        if "rope_freqs.weight" in names:
            self._frequencies = self._frequencies / take("rope_freqs.weight", c.rope_dim // 2)

    def cache(self, capacity: int) -> KvCache:
        """Make an empty cache for `capacity` tokens."""
        return KvCache(self.config, capacity)

    def hidden(self, tokens: list[int], ffn: Ffn, cache: KvCache | None = None) -> Floats:
        """Compute the normed last hidden states of `tokens`: float32 (tokens, hidden).

        With a cache the tokens continue what the cache holds, and are added to it.

        Raises
        ------
        ValueError
            If there is no token, an id is out of range, or the cache is too small.
        """
        x = self.embed(tokens)
        cache = self.cache(len(tokens)) if cache is None else cache
        if cache.length + len(tokens) > cache.capacity:
            raise ValueError(f"demo: {cache.length + len(tokens)} tokens, the cache holds {cache.capacity}")
        for i in range(self.config.layers):
            x = self.attend(i, x, cache)
            x = x + ffn(i, self.ffn_input(i, x))
        cache.length += len(tokens)
        return rms_norm(x, self.output_norm, self.config.eps)

    def logits(self, tokens: list[int], ffn: Ffn, cache: KvCache | None = None) -> Floats:
        """Score the next token after every token: float32 (tokens, vocabulary). Raises like `hidden`."""
        return np.asarray(self.hidden(tokens, ffn, cache) @ self.head.T)

    def last_logits(self, tokens: list[int], ffn: Ffn, cache: KvCache) -> Floats:
        """Score the next token after the last token only: float32 (vocabulary,). Raises like `hidden`."""
        return np.asarray(self.head @ self.hidden(tokens, ffn, cache)[-1])

    def embed(self, tokens: list[int]) -> Floats:
        """Look up rows of the embedding: float32 (tokens, hidden). ValueError if a token id is out of range."""
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.size == 0:
            raise ValueError("demo: no tokens, expected at least one")
        if ids.min() < 0 or ids.max() >= len(self.embedding):
            bad = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise ValueError(f"demo: token {bad}, the vocabulary has {len(self.embedding)}")
        return np.asarray(self.embedding[ids], dtype=np.float32)

    def ffn_input(self, layer: int, x: Floats) -> Floats:
        """Norm the residual as the feed-forward network of a layer reads it: float32 (tokens, hidden)."""
        return rms_norm(x, self.layers[layer].ffn_norm, self.config.eps)

    def attend(self, layer: int, x: Floats, cache: KvCache) -> Floats:
        """Add the layer's attention to x, float32 (tokens, hidden); writes keys and values at cache.length."""
        c, w = self.config, self.layers[layer]
        n, start = len(x), cache.length
        stop = start + n
        positions = np.arange(start, stop, dtype=np.float64)
        normed = rms_norm(x, w.attn_norm, c.eps)
        q = self._rotate((normed @ w.q.T).reshape(n, c.heads, c.head_dim), positions)
        k = self._rotate((normed @ w.k.T).reshape(n, c.kv_heads, c.head_dim), positions)
        v = (normed @ w.v.T).reshape(n, c.kv_heads, c.head_dim)
        cache.keys[layer, :, start:stop] = k.transpose(1, 0, 2)
        cache.values[layer, :, start:stop] = v.transpose(1, 0, 2)
        keys, values = cache.keys[layer, :, :stop], cache.values[layer, :, :stop]
        group = c.heads // c.kv_heads
        # Heads of one group share a key head: they are stacked as rows, so that one product serves the group.
        rows = q.transpose(1, 0, 2).reshape(c.kv_heads, group * n, c.head_dim)
        scores = rows @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(c.head_dim))
        if n > 1:
            future = np.arange(stop)[None, :] > np.arange(start, stop)[:, None]
            scores.reshape(c.heads, n, stop)[...] += np.where(future, np.float32(-np.inf), np.float32(0))
        mixed = (softmax(scores) @ values).reshape(c.heads, n, c.head_dim).transpose(1, 0, 2)
        return np.asarray(x + mixed.reshape(n, c.heads * c.head_dim) @ w.output.T)

    def _rotate(self, x: Floats, positions: NDArray[np.float64]) -> Floats:
        """Apply rotary positions to neighbouring pairs of the first rope_dim columns: x (tokens, heads, head_dim)."""
        angle = positions[:, None, None] * self._frequencies
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        out: Floats = x.copy()
        evens, odds = slice(0, self.config.rope_dim, 2), slice(1, self.config.rope_dim, 2)
        out[..., evens] = x[..., evens] * cos - x[..., odds] * sin
        out[..., odds] = x[..., evens] * sin + x[..., odds] * cos
        return out


class DenseFfn:
    """The model's own feed-forward networks as float32 matrices: down(silu(gate x) * (up x)).

    gate, up: (inter, hidden) and down: (hidden, inter) per layer. Raises ValueError if a tensor is missing.
    """

    def __init__(self, weights: GgufFile, config: Config) -> None:
        names = set(weights.keys())
        self.layers: list[tuple[Floats, Floats, Floats]] = []
        wide, tall = (config.inter, config.hidden), (config.hidden, config.inter)
        for i in range(config.layers):
            matrices = []
            for part, shape in (("gate", wide), ("up", wide), ("down", tall)):
                name = f"blk.{i}.ffn_{part}.weight"
                if name not in names:
                    raise ValueError(f"demo: the model has no tensor '{name}'")
                matrices.append(np.ascontiguousarray(weights.array(name), dtype=np.float32))
                if matrices[-1].shape != shape:
                    raise ValueError(f"demo: '{name}' has shape {matrices[-1].shape}, expected {shape}")
            self.layers.append((matrices[0], matrices[1], matrices[2]))

    def inner(self, layer: int, x: Floats) -> Floats:
        """Compute what `down` reads: silu(gate x) * (up x), float32 (tokens, inter)."""
        gate, up, _ = self.layers[layer]
        return np.asarray(silu(x @ gate.T) * (x @ up.T))

    def __call__(self, layer: int, x: Floats) -> Floats:
        """Run one layer: float32 (tokens, hidden)."""
        return np.asarray(self.inner(layer, x) @ self.layers[layer][2].T)
