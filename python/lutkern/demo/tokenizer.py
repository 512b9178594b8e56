"""The tokenizer inside a GGUF file: byte-level BPE built from its vocabulary and merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Token types of the GGUF vocabulary whose text is never produced by merging: control and user-defined tokens.
_SPECIAL_TYPES = (3, 4)

# Pre-tokenizers that are exactly "single digits, then byte-level words".
_KNOWN_PRE = ("smollm", "starcoder", "refact", "command-r", "codeshell")

_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Tokenizer:
    """Byte-level BPE of a GGUF file.

    Raises
    ------
    ValueError
        If the vocabulary is not byte-level BPE, its pre-tokenizer is unknown, or a part of it is missing or malformed.
    ImportError
        If the `tokenizers` package is not installed.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        try:
            from tokenizers import AddedToken, decoders, models, pre_tokenizers
            from tokenizers import Tokenizer as Bpe
        except ImportError as error:
            raise ImportError("demo: the package 'tokenizers' is missing: pip install 'lutkern[demo]'") from error
        model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
        if model != "gpt2":
            raise ValueError(f"demo: the tokenizer's model is {model!r}, expected 'gpt2' (byte-level BPE)")
        if pre not in _KNOWN_PRE:
            raise ValueError(f"demo: the pre-tokenizer is {pre!r}, expected one of {', '.join(_KNOWN_PRE)}")
        for key in ("tokens", "merges", "token_type"):
            if f"tokenizer.ggml.{key}" not in metadata:
                raise ValueError(f"demo: the model has no metadata key 'tokenizer.ggml.{key}'")
        tokens = [str(token) for token in metadata["tokenizer.ggml.tokens"]]
        types = metadata["tokenizer.ggml.token_type"]
        if len(types) != len(tokens):
            raise ValueError(f"demo: {len(types)} token types, expected one for each of the {len(tokens)} tokens")
        vocabulary = {token: i for i, token in enumerate(tokens)}
        merges: list[tuple[str, str]] = []
        for merge in metadata["tokenizer.ggml.merges"]:
            left, _, right = str(merge).partition(" ")
            if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
                raise ValueError(f"demo: merge {merge!r} names a token outside the vocabulary")
            merges.append((left, right))
        bpe = Bpe(models.BPE(vocab=vocabulary, merges=merges))
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        special = [token for token, kind in zip(tokens, types, strict=True) if int(kind) in _SPECIAL_TYPES]
        bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        self._bpe = bpe
        self.size = len(tokens)
        self.chat_tokens = "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary
        stop = metadata.get("tokenizer.ggml.eos_token_id")
        self.stop_tokens = frozenset(() if stop is None else (int(stop),)) | frozenset(
            vocabulary[token] for token in ("<|im_end|>", "<|endoftext|>") if token in vocabulary
        )

    def encode(self, text: str) -> list[int]:
        """Turn a text into token ids; the names of control tokens in it become those tokens."""
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn token ids into text, without control tokens; incomplete UTF-8 becomes U+FFFD."""
        return str(self._bpe.decode(list(tokens), skip_special_tokens=True))

    def chat(self, question: str) -> str:
        """Put a question into the model's chat form, up to where the answer starts; unchanged where there is none."""
        if not self.chat_tokens:
            return question
        return (
            f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )


class TextStream:
    """Turns tokens that arrive one by one into text, holding back bytes that are not yet a whole character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Add a token; return the new text, empty while a character is incomplete."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        # Four bytes are the longest UTF-8 character, so more held tokens than that is really broken text.
        if text.endswith("\ufffd") and len(self._pending) < 4:
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        """Return what is still held back."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        return text
