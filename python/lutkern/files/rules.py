"""Which format a tensor gets: rules of the user, then the preset, then the default.

Some tensors stay floats whatever is asked for: norms, biases, routers, everything of one dimension, small ones. They
are a vanishing share of the bytes, and runtimes expect them so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..formats import Format, find_format, formats
from ..gguf_metadata import quoted
from .source import SourceTensor

SMALL_WEIGHTS = 1 << 14  # a tensor with fewer weights stays as it is

_PINNED = re.compile(
    r"norm|\.bias$|ffn_gate_inp|exp_probs_b|rope_freqs|rope_factors|ssm_(a|d|conv1d|dt)|shortconv\.conv|time_mix_"
    r"|position_embd|token_types|attn_rel_b|attn_sinks|altup|laurel"
)
_LAYER = re.compile(r"blk\.(\d+)\.")

# What a tensor is, by its name; the first match counts. Experts are `gate_up` and `down`; so are the feed-forward
# matrices of a model without experts. Beside experts, a dense layer runs for every token, as shared experts do.
KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("embedding", re.compile(r"^(token_embd|per_layer_token_embd)\.")),
    ("output", re.compile(r"^output\.")),
    ("shared_down", re.compile(r"ffn_down_shexp")),
    ("shared", re.compile(r"_shexp")),
    ("down", re.compile(r"ffn_down(_exps)?\.weight")),
    ("gate_up", re.compile(r"ffn_(gate|up|gate_up)(_exps)?\.weight")),
    ("values", re.compile(r"attn_(v|v_b|qkv|kv_b)\.")),
    ("attention", re.compile(r"attn_")),
)
ROUTED_KINDS = ("gate_up", "down")
FEED_FORWARD_KINDS = (*ROUTED_KINDS, "shared", "shared_down")

# Kind -> format, and the format in the first and the last layer that has the kind: they matter most.
PRESETS: dict[str, dict[str, tuple[str, str]]] = {
    "1bit": {
        "embedding": ("q4_k", "q4_k"),
        "output": ("q6_k", "q6_k"),
        "shared_down": ("q6_k", "q6_k"),
        "shared": ("q4_k", "q4_k"),
        "values": ("q6_k", "q6_k"),
        "attention": ("q4_k", "q4_k"),
        "gate_up": ("iq1_m", "iq2_xxs"),
        "down": ("iq2_xxs", "iq2_xs"),
        "other": ("q4_k", "q4_k"),
    },
    "2bit": {
        "embedding": ("q4_k", "q4_k"),
        "output": ("q6_k", "q6_k"),
        "shared_down": ("q6_k", "q6_k"),
        "shared": ("q6_k", "q6_k"),
        "values": ("q6_k", "q6_k"),
        "attention": ("q4_k", "q4_k"),
        "gate_up": ("iq2_xxs", "iq2_xs"),
        "down": ("iq3_xxs", "iq3_s"),
        "other": ("q4_k", "q4_k"),
    },
}

# Columns that are no multiple of 256: the first of these with at least as many bits.
FALLBACKS = ("iq4_nl", "q8_0")


@dataclass
class Rule:
    """`pattern` is searched in the tensor's name; `used` once it gave a tensor its format."""

    text: str
    pattern: re.Pattern[str]
    format: Format
    used: bool = False


@dataclass(frozen=True)
class Choice:
    """The format that a tensor gets and why. None: it stays as it is; `free`: the mix decides."""

    format: Format | None
    why: str
    free: bool = False


def parse_rule(text: str) -> Rule:
    """Read `REGEX=FORMAT`. ValueError if it is no such thing or the format cannot be packed."""
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise ValueError(f"pack_file: rule {quoted(text)} has no '=', expected 'REGEX=FORMAT'")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pack_file: rule {quoted(text)} has no valid regex ({error}), expected one") from None
    return Rule(text, compiled, packable(name))


def packable(name: str) -> Format:
    """Look up a format that can be packed. ValueError that lists all of them if it is another."""
    names = ", ".join(fmt.name for fmt in formats() if fmt.can_pack)
    try:
        fmt = find_format(name)
    except ValueError:
        raise ValueError(f"pack_file: unknown format {quoted(str(name))}, expected one of: {names}") from None
    if not fmt.can_pack:
        raise ValueError(f"pack_file: format {fmt.name!r} cannot be packed, expected one of: {names}")
    return fmt


def fitting(fmt: Format, tensor: SourceTensor) -> Format:
    """Return `fmt` if the tensor's columns are a multiple of its block, else a format of about as many bits or more."""
    if tensor.cols % fmt.block_size == 0:
        return fmt
    for name in FALLBACKS:
        other = find_format(name)
        if other.bits_per_weight >= fmt.bits_per_weight and tensor.cols % other.block_size == 0:
            return other
    stays = tensor.format is not None and tensor.format.name == "bf16"
    return find_format("bf16" if stays else "f16")


def is_pinned(tensor: SourceTensor) -> bool:
    """Tell whether a tensor stays a float: its name or its number of dimensions says so."""
    return len(tensor.shape) not in (2, 3) or _PINNED.search(tensor.name) is not None


def kind_of(name: str, has_experts: bool) -> str:
    """Tell what a tensor is, a key of a preset."""
    kind = next((kind for kind, pattern in KINDS if pattern.search(name)), "other")
    if has_experts and kind in ROUTED_KINDS and "_exps" not in name:
        return "shared_down" if kind == "down" else "shared"
    return kind


class Chooser:
    """The rules, the preset, the default, and whether a mix decides about the rest, for the tensors of one model."""

    def __init__(
        self, tensors: Iterable[SourceTensor], rules: list[Rule], preset: str | None, default: str | None, mix: bool
    ) -> None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"pack_file: unknown preset {preset!r}, expected one of: {', '.join(PRESETS)}")
        if mix and default is not None:
            raise ValueError("pack_file: default and target_bpw are both given, expected one of them")
        if not (rules or preset or default or mix):
            raise ValueError("pack_file: no format is asked for, expected types, a preset, a default or target_bpw")
        self._rules = rules
        self._preset = PRESETS[preset] if preset is not None else {}
        self._preset_name = preset
        self._default = packable(default) if default is not None else None
        self._mix = mix
        names = [tensor.name for tensor in tensors]
        layers = [layer for layer in map(self._layer, names) if layer >= 0]
        self._ends = {min(layers), max(layers)} if layers else set()
        self._has_experts = any("_exps." in name for name in names)
        self._tied = "output.weight" not in names
        self._edges = self._edge_layers(names)

    def choose(self, tensor: SourceTensor) -> Choice:
        """Choose for one tensor; before `fitting`."""
        pinned = is_pinned(tensor)
        for rule in self._rules:
            if rule.pattern.search(tensor.name) and (rule.format.is_float or not pinned):
                rule.used = True
                return Choice(rule.format, f"rule {rule.text}")
        if pinned or tensor.n_weights < SMALL_WEIGHTS:
            is_float = tensor.format is not None and tensor.format.is_float
            return Choice(find_format("f32") if is_float else None, "stays float" if is_float else "kept")
        if tensor.format is None:
            return Choice(None, "kept")
        kind = self.kind(tensor)
        if self._mix and (kind in ROUTED_KINDS or not self._preset):
            return Choice(None, "mix", free=True)
        if kind in self._preset and not (kind == "other" and self._default is not None):
            name = self._preset[kind][self._layer(tensor.name) in self._edges.get(kind, ())]
            return self._unless_smaller(tensor, packable(name), f"preset {self._preset_name}: {kind}")
        if self._default is not None:
            return self._unless_smaller(tensor, self._default, "default")
        return Choice(None, "kept")

    def kind(self, tensor: SourceTensor) -> str:
        """Tell what a tensor is: a key of a preset. An embedding that also makes the logits is an output."""
        kind = kind_of(tensor.name, self._has_experts)
        return "output" if kind == "embedding" and self._tied else kind

    def at_an_end(self, tensor: SourceTensor) -> bool:
        """Tell whether a tensor is a feed-forward matrix of the first or the last layer."""
        return kind_of(tensor.name, False) in FEED_FORWARD_KINDS and self._layer(tensor.name) in self._ends

    def _unless_smaller(self, tensor: SourceTensor, fmt: Format, why: str) -> Choice:
        """Keep a tensor that is packed in no more bits already: packing it again could only lose."""
        own = tensor.format
        if own is not None and not own.is_float and own.bits_per_weight <= fitting(fmt, tensor).bits_per_weight:
            return Choice(None, "kept")
        return Choice(fmt, why)

    def _edge_layers(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        layers: dict[str, list[int]] = {}
        for name in names:
            layer = self._layer(name)
            if layer >= 0:
                layers.setdefault(kind_of(name, self._has_experts), []).append(layer)
        return {kind: (min(found), max(found)) for kind, found in layers.items()}

    @staticmethod
    def _layer(name: str) -> int:
        match = _LAYER.match(name)
        return int(match[1]) if match else -1
