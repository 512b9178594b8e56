"""From the names of a safetensors checkpoint to those of a GGUF file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..gguf_metadata import quoted
from .json_file import read_json

_LAYER = r"model\.layers\.(\d+)\."

# Source name (the whole of it) -> GGUF name. Matches of a group `expert` are stacked in its order. "" leaves a tensor
# out. The first match counts.
BUILT_IN: tuple[tuple[str, str], ...] = (
    (r"model\.embed_tokens\.weight", r"token_embd.weight"),
    (r"model\.norm\.weight", r"output_norm.weight"),
    (r"lm_head\.weight", r"output.weight"),
    (_LAYER + r"input_layernorm\.weight", r"blk.\1.attn_norm.weight"),
    (_LAYER + r"post_attention_layernorm\.weight", r"blk.\1.ffn_norm.weight"),
    (_LAYER + r"self_attn\.([qkv])_proj\.(weight|bias)", r"blk.\1.attn_\2.\3"),
    (_LAYER + r"self_attn\.o_proj\.(weight|bias)", r"blk.\1.attn_output.\2"),
    (_LAYER + r"self_attn\.([qk])_norm\.weight", r"blk.\1.attn_\2_norm.weight"),
    (_LAYER + r"mlp\.(gate|up|down)_proj\.(weight|bias)", r"blk.\1.ffn_\2.\3"),
    (_LAYER + r"mlp\.gate\.weight", r"blk.\1.ffn_gate_inp.weight"),
    (_LAYER + r"mlp\.experts\.(?P<expert>\d+)\.(gate|up|down)_proj\.weight", r"blk.\1.ffn_\3_exps.weight"),
    (_LAYER + r"mlp\.shared_expert\.(gate|up|down)_proj\.weight", r"blk.\1.ffn_\2_shexp.weight"),
    (_LAYER + r"mlp\.shared_expert_gate\.weight", r"blk.\1.ffn_gate_inp_shexp.weight"),
    (_LAYER + r"block_sparse_moe\.gate\.weight", r"blk.\1.ffn_gate_inp.weight"),
    (_LAYER + r"block_sparse_moe\.experts\.(?P<expert>\d+)\.w1\.weight", r"blk.\1.ffn_gate_exps.weight"),
    (_LAYER + r"block_sparse_moe\.experts\.(?P<expert>\d+)\.w2\.weight", r"blk.\1.ffn_down_exps.weight"),
    (_LAYER + r"block_sparse_moe\.experts\.(?P<expert>\d+)\.w3\.weight", r"blk.\1.ffn_up_exps.weight"),
    (r".*rotary_emb\.inv_freq", ""),
)

# Architectures whose rotary pairs are neighbours in GGUF files; checkpoints hold them as two halves of a head.
PAIRED_ARCHITECTURES = ("llama",)
_PAIRED = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")

MAX_EXPERT_DIGITS = 6


class Target(NamedTuple):
    """The GGUF name of a tensor, its place among the experts or None, the heads whose rows are paired or 0."""

    name: str
    expert: int | None
    paired_heads: int


class NameMap:
    """Pairs of regex and replacement. `heads`: those of the query and key matrices when their rows are to be paired."""

    def __init__(self, pairs: Sequence[tuple[str, str]], heads: Mapping[str, int] | None = None) -> None:
        self._pairs = []
        for pattern, replacement in pairs:
            try:
                compiled = re.compile(pattern)
                compiled.sub(replacement, "")  # reads the replacement: it may name a group that is not there
            except (re.error, IndexError) as error:
                text = f"pack_file: name map: {quoted(pattern)} -> {quoted(replacement)} is no regex with replacement"
                raise ValueError(f"{text} ({error}), expected one") from None
            self._pairs.append((compiled, replacement))
        self._heads = dict(heads or {})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> NameMap:
        """Read a JSON file: a list of [regex, replacement], or an object of them. OSError, or ValueError as above."""
        content: Any = read_json(Path(path))
        pairs = list(content.items()) if isinstance(content, dict) else content
        fits = isinstance(pairs, list) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
            for pair in pairs
        )
        if not fits or not pairs:
            name = os.path.basename(path)
            raise ValueError(f"pack_file: {name}: holds no pairs of text, expected a list of [regex, GGUF name]")
        return cls([(pattern, replacement) for pattern, replacement in pairs])

    def target(self, name: str) -> Target | None:
        """Map a source name; None if the tensor is left out. ValueError if nothing matches."""
        for pattern, replacement in self._pairs:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            if not replacement:
                return None
            target = match.expand(replacement)
            expert = match["expert"] if "expert" in pattern.groupindex else None
            if expert is not None and (not expert.isdecimal() or len(expert) > MAX_EXPERT_DIGITS):
                text = f"expert is {quoted(expert)}, expected a number of at most {MAX_EXPERT_DIGITS} digits"
                raise ValueError(f"pack_file: tensor {quoted(name)}: {text}")
            paired = _PAIRED.fullmatch(target)
            heads = self._heads.get(paired[1], 0) if paired else 0
            return Target(target, None if expert is None else int(expert), heads)
        raise ValueError(f"pack_file: tensor {quoted(name)} matches no pattern of the name map, expected one")


def built_in_map(metadata: Mapping[str, Any]) -> NameMap:
    """Make the built-in map for a model with that GGUF metadata."""
    architecture = metadata["general.architecture"]
    heads: dict[str, int] = {}
    if architecture in PAIRED_ARCHITECTURES:
        count = int(metadata[f"{architecture}.attention.head_count"])
        heads = {"q": count, "k": int(metadata.get(f"{architecture}.attention.head_count_kv", count))}
    return NameMap(BUILT_IN, heads)
