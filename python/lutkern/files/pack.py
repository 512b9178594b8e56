"""`pack_file`: a model of floats becomes a GGUF file of packed weights."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..formats import Format
from ..runtime import thread_count
from .mix import DEFAULT_SAMPLE_ROWS, Option, candidate_formats, measure, mixed, sensitivity
from .plan import (
    DIRECT_FORMATS,
    Plan,
    PlannedTensor,
    check_tensor,
    fallback_notes,
    finished,
    in_shards,
    planned,
    some_of,
)
from .rules import Choice, Chooser, Rule, parse_rule
from .safetensors import open_safetensors
from .source import Source, SourceTensor, open_gguf_source
from .weighting import Weighting
from .write import Progress, check_free, check_space, check_target, target_paths, write_plan

EFFORTS = ("fast", "default", "best")


@dataclass(frozen=True)
class Mix:
    """Settings of the mix: the target in bits per weight, candidate formats, rows that are measured of a tensor."""

    target_bpw: float
    candidates: Sequence[Format]
    sample_rows: int


def pack_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    types: Sequence[str] = (),
    preset: str | None = None,
    default: str | None = None,
    importance: Any = None,
    target_bpw: float | None = None,
    candidates: Sequence[str] | None = None,
    sample_rows: int = DEFAULT_SAMPLE_ROWS,
    name_map: str | os.PathLike[str] | None = None,
    allow_requantize: bool = False,
    split_size: int | None = None,
    effort: str = "default",
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    measured: Callable[[str, int, int], None] | None = None,
    planned: Callable[[Plan], None] | None = None,
) -> Plan:
    """Pack a whole model, tensor by tensor, into a GGUF file or into shards of one.

    A piece of about a million weights is in memory at a time, whatever the size of the tensors. The files appear under
    their names when all of them are complete; an error or an interruption leaves nothing new.

    Parameters
    ----------
    source
        A GGUF file, or any shard of a split one, of f32, f16, bf16 and q8_0 tensors; or a folder of safetensors files
        with `config.json`, of which the tokenizer is not converted.
    target
        The GGUF file to write; its folder exists.
    types
        Rules `"REGEX=FORMAT"`: the first whose regex is found in a tensor's name gives the format. Norms, biases,
        routers and tensors of one dimension take only float formats.
    preset
        ``"1bit"`` or ``"2bit"``: formats for what no rule matches, see `lutkern.files.rules.PRESETS`.
    default
        Format of what neither a rule nor the preset decides. Without it such tensors stay as they are.
    importance
        A `lutkern.Importance`, or the path of an importance file.
    target_bpw
        Choose the formats of all tensors that no rule matches (with a preset: of the experts, or of a model without
        experts of the feed-forward matrices) so that all packed tensors together have at most so many bits per weight
        and their error is small, see `lutkern.files.mix`.
    candidates
        Formats to choose from for `target_bpw`; by default all that can be packed in less than 7 bits.
    sample_rows
        Rows of a tensor on which `target_bpw` measures the formats.
    name_map
        A JSON file of [regex, GGUF name] pairs for the names of a safetensors folder; see `lutkern.files.names`.
    allow_requantize
        Pack tensors again that are in another format than f32, f16, bf16 and q8_0.
    split_size
        Write shards NAME-00001-of-0000N.gguf with at most so many bytes of tensors each.
    effort
        ``"fast"``, ``"default"`` or ``"best"``: how long `lutkern.pack` searches.
    threads
        How many threads to use; by default all of the pool.
    force
        Replace existing files.
    dry_run
        Return the plan; nothing is written.
    progress, measured
        Called with (tensor name, bytes read, weights) after each piece that is packed, and after each tensor that is
        measured for `target_bpw`.
    planned
        Called with the plan before anything is written.

    Returns
    -------
    Plan
        What was written: formats, sizes, files, notes.

    Raises
    ------
    ValueError
        An argument or the content of a file is wrong, a tensor cannot be packed, or the target is the source.
    OSError
        A file is missing, exists already, or cannot be read or written.
    ImportError
        The gguf package is not installed.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        text = "pack_file: the gguf package is not installed, expected it (pip install 'lutkern[pack]')"
        raise ImportError(text) from None
    thread_count("pack_file", threads)
    _check_options(split_size, effort)
    mix = _checked_mix(target_bpw, candidates, sample_rows)
    rules = [parse_rule(text) for text in types]
    weighting = Weighting.read(importance)
    with _open(source, name_map) as opened:
        check_target(target, opened)
        if split_size is None:
            check_free(target_paths(target, 1), opened, force or dry_run)  # before the measurements
        chooser = Chooser(opened.tensors.values(), rules, preset, default, mix is not None)
        packer = _Packer(opened, weighting, effort, threads, allow_requantize)
        plan = packer.plan(chooser, rules, mix, split_size, measured or _nothing)
        paths = target_paths(target, len(plan.shards))
        check_free(paths, opened, force or dry_run)
        if planned is not None:
            planned(plan)
        if dry_run:
            return replace(plan, files=tuple(paths), notes=(*plan.notes, *weighting.notes()))
        check_space(paths, plan)
        start = time.perf_counter()
        notes = write_plan(
            opened, plan, paths, weighting, effort=effort, threads=threads, progress=progress or _nothing
        )
        return finished(plan, paths, time.perf_counter() - start, [*notes, *weighting.notes()])


def _nothing(name: str, n_bytes: int, weights: int) -> None:
    pass


def _check_options(split_size: int | None, effort: str) -> None:
    if split_size is not None and split_size < 1:
        raise ValueError(f"pack_file: split_size is {split_size}, expected at least 1 byte")
    if effort not in EFFORTS:
        raise ValueError(f"pack_file: unknown effort {effort!r}, expected one of: {', '.join(EFFORTS)}")


def _checked_mix(target_bpw: float | None, candidates: Sequence[str] | None, sample_rows: int) -> Mix | None:
    if sample_rows < 1:
        raise ValueError(f"pack_file: sample_rows is {sample_rows}, expected at least 1")
    if target_bpw is None:
        if candidates is not None:
            raise ValueError("pack_file: candidates are given without target_bpw, expected both")
        return None
    if not 0 < target_bpw < 64:
        raise ValueError(f"pack_file: target_bpw is {target_bpw:g}, expected a number of bits above 0 and below 64")
    return Mix(target_bpw, candidate_formats(candidates), sample_rows)


def _open(source: str | os.PathLike[str], name_map: str | os.PathLike[str] | None) -> Source:
    if Path(source).is_dir():
        return open_safetensors(source, name_map)
    if name_map is not None:
        raise ValueError("pack_file: a name map is given for a GGUF file, expected a folder of safetensors files")
    return open_gguf_source(source)


class _Packer:
    """Planning for one open source."""

    def __init__(
        self, source: Source, weighting: Weighting, effort: str, threads: int | None, allow_requantize: bool
    ) -> None:
        self._source = source
        self._weighting = weighting
        self._effort = effort
        self._threads = threads
        self._allow_requantize = allow_requantize

    def plan(
        self, chooser: Chooser, rules: Sequence[Rule], mix: Mix | None, split_size: int | None, measured: Progress
    ) -> Plan:
        """Choose a format for every tensor; check that all can be read and written."""
        tensors = list(self._source.tensors.values())
        choices = {tensor.name: chooser.choose(tensor) for tensor in tensors}
        settled = {t.name: planned(t, choices[t.name]) for t in tensors if not choices[t.name].free}
        for tensor in settled.values():
            check_tensor(tensor, self._allow_requantize)
        if mix is not None:
            free = [tensor for tensor in tensors if choices[tensor.name].free]
            settled |= self._mix(free, list(settled.values()), chooser, mix, measured)
        result = [settled[tensor.name] for tensor in tensors]
        notes = [*self._source.notes, *fallback_notes(result)]
        notes += [f"rule {rule.text} gave no tensor its format" for rule in rules if not rule.used]
        weighted = [tensor.name for tensor in result if tensor.format is not None and not tensor.format.is_float]
        lacking = [name for name in weighted if self._weighting.lacks(name)]
        notes += [f"no importance for {some_of(lacking)}: packed without"] if lacking else []
        return Plan(tuple(result), in_shards(result, split_size), tuple(notes))

    def _mix(
        self,
        free: Sequence[SourceTensor],
        settled: Sequence[PlannedTensor],
        chooser: Chooser,
        mix: Mix,
        measured: Progress,
    ) -> dict[str, PlannedTensor]:
        """Measure and choose. What a rule or the preset decided counts for the target, what stays as it is does not."""
        factors = [sensitivity(chooser, tensor) for tensor in free]
        options = []
        for tensor, factor in zip(free, factors, strict=True):
            self._check_readable(tensor)
            found = self._measure(tensor, mix)
            options.append((tensor, [option._replace(error=option.error * factor) for option in found]))
            measured(tensor.name, tensor.nbytes, tensor.n_weights)
        pinned = [t for t in settled if t.why.startswith(("rule", "preset"))]
        chosen = mixed(
            options, sum(8 * t.nbytes for t in pinned), sum(t.source.n_weights for t in pinned), mix.target_bpw
        )
        result = {}
        for tensor, factor, option in zip(free, factors, chosen, strict=True):
            result[tensor.name] = planned(tensor, Choice(option.format, "mix"), error=option.error / factor)
            check_tensor(result[tensor.name], self._allow_requantize)
        return result

    def _measure(self, tensor: SourceTensor, mix: Mix) -> list[Option]:
        return measure(
            self._source,
            tensor,
            mix.candidates,
            self._weighting,
            sample_rows=mix.sample_rows,
            effort=self._effort,
            threads=self._threads,
        )

    def _check_readable(self, tensor: SourceTensor) -> None:
        """Refuse before the measurement what would be refused after it."""
        assumed = PlannedTensor(tensor, tensor.format, "mix")
        if tensor.format is not None and tensor.format.name not in DIRECT_FORMATS:
            check_tensor(assumed, self._allow_requantize)
