"""What `lutkern bench` is asked for, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..arrays import whole_number
from ..formats import Format, find_format
from ..runtime import num_threads, thread_count
from ..tensor import LAYOUTS
from .weights import MODELS, OPERATIONS, codebook_formats

CLOCKS = ("wall", "cpu")
LAYOUT_CHOICES = ("all", *LAYOUTS)
_LARGEST = 1 << 16  # rows, cols, tokens, megabytes
_MOST_WEIGHTS = 1 << 28  # of a matrix, which is also decoded to float64
_LONGEST = 3600  # seconds


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes
    ----------
    formats
        Names; empty: those with a codebook.
    layout
        ``"blocks"``, ``"tiles"``, or ``"all"``.
    ops
        Of ``"matvec"``, ``"matmul"``, ``"moe"`` and ``"dequantize"``.
    shape
        Rows and cols of gate and up.
    tokens
        For matmul and moe; empty: 16 for matmul, 1 for moe.
    threads
        Numbers of threads; empty: as many as operations use.
    seconds
        How long each row of the table is measured.
    megabytes
        Packed weights to go through, and what each thread reads for the roofline.
    clock
        ``"wall"``, or ``"cpu"``: CPU time of the calling thread, for one thread on a busy machine.
    rival
        Whether to measure ggml, too.
    """

    formats: tuple[str, ...] = ()
    layout: str = "all"
    ops: tuple[str, ...] = ("matvec", "matmul", "moe")
    shape: tuple[int, int] = MODELS["glm-4.7"]
    tokens: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    seconds: float = 1.0
    megabytes: int = 256
    clock: str = "wall"
    rival: bool = True

    def chosen_formats(self) -> list[Format]:
        """Return the formats. ValueError if one is unknown."""
        return [find_format(name) for name in self.formats] or list(codebook_formats())

    def chosen_layouts(self) -> tuple[str, ...]:
        """Return the layouts."""
        return tuple(LAYOUTS) if self.layout == "all" else (self.layout,)

    def tokens_of(self, op: str) -> tuple[int, ...]:
        """Return the numbers of tokens that an operation runs with."""
        if op in ("matvec", "dequantize"):
            return (1,)
        return self.tokens or ((16,) if op == "matmul" else (1,))


def checked(options: Options) -> Options:
    """Return the options with their number of threads. ValueError or TypeError if one is wrong."""
    for name, size in zip(("rows", "cols"), options.shape, strict=True):
        whole_number("bench", name, size, _LARGEST)
    rows, cols = options.shape
    if rows * cols > _MOST_WEIGHTS:
        raise ValueError(f"bench: shape is {rows}x{cols}, expected at most {_MOST_WEIGHTS} weights")
    for tokens in options.tokens:
        whole_number("bench", "tokens", tokens, _LARGEST)
    for threads in options.threads:
        thread_count("bench", threads)
    whole_number("bench", "megabytes", options.megabytes, _LARGEST)
    if not 0 < options.seconds <= _LONGEST:
        raise ValueError(f"bench: seconds is {options.seconds:g}, expected more than 0 and at most {_LONGEST}")
    for op in options.ops:
        _expect_known("operation", op, OPERATIONS)
    _expect_known("layout", options.layout, LAYOUT_CHOICES)
    _expect_known("clock", options.clock, CLOCKS)
    options = replace(options, threads=options.threads or (num_threads(),))
    if options.clock == "cpu" and set(options.threads) != {1}:
        came = ", ".join(map(str, options.threads))
        raise ValueError(f"bench: clock is cpu with {came} threads, expected 1 thread")
    return options


def _expect_known(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"bench: unknown {name} {value!r}, expected one of: {', '.join(known)}")
