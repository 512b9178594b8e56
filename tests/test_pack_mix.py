"""The choice of formats for a target size: the solver's promises, the measured errors, the whole way."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lutkern
from lutkern.files.mix import Option, candidate_formats, choose, lost_share, measure
from lutkern.files.source import open_gguf_source
from lutkern.files.weighting import Weighting
from model_files import HIDDEN, LAYERS, Columns, moe_arrays, write_blocks, write_moe

FORMATS = {fmt.name: fmt for fmt in lutkern.formats()}
NAMES = ("iq1_s", "iq2_xxs", "iq3_s", "q4_k", "q6_k")

Options = list[list[Option]]


@st.composite
def problems(draw: st.DrawFn, most_tensors: int = 8) -> tuple[Options, int]:
    """Tensors with the same formats, errors of any order, and a budget between the extremes."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=most_tensors))
    error = st.floats(0, 100, allow_subnormal=False)
    options = [[Option(None, size * draw(st.integers(1, 30)), draw(error), name) for name in names] for size in sizes]
    low = sum(min(o.bits for o in tensor) for tensor in options)
    high = sum(max(o.bits for o in tensor) for tensor in options)
    return options, draw(st.integers(low, high + 5))


def total(options: Options, chosen: list[int]) -> tuple[int, float]:
    picked = [tensor[i] for tensor, i in zip(options, chosen, strict=True)]
    return sum(o.bits for o in picked), sum(o.error for o in picked)


@given(problem=problems())
def test_never_worse_than_a_uniform_choice(problem: tuple[Options, int]) -> None:
    options, budget = problem
    bits, error = total(options, choose(options, budget))
    assert bits <= budget
    for i in range(len(options[0])):
        uniform_bits, uniform_error = total(options, [i] * len(options))
        if uniform_bits <= budget:
            assert error <= uniform_error * (1 + 1e-12)


@given(problem=problems(most_tensors=4))
def test_nothing_of_the_budget_is_wasted(problem: tuple[Options, int]) -> None:
    """No single change that fits the budget makes the error smaller, and the best choice is not far."""
    options, budget = problem
    chosen = choose(options, budget)
    bits, error = total(options, chosen)
    for t, tensor in enumerate(options):
        for option in tensor:
            if bits - tensor[chosen[t]].bits + option.bits <= budget:
                assert option.error >= tensor[chosen[t]].error
    best = min(
        total(options, list(every))[1]
        for every in itertools.product(*(range(len(tensor)) for tensor in options))
        if total(options, list(every))[0] <= budget
    )
    largest = max(max(o.error for o in tensor) for tensor in options)
    assert best - 1e-9 <= error <= best + largest + 1e-9


def test_where_the_hulls_alone_are_worse_than_a_uniform_choice() -> None:
    """The steepest step is the second tensor's, from 1 to 3 bits; it leaves nothing for the first one's."""
    first = [Option(None, 1, 7.0, "iq1_s"), Option(None, 3, 0.0, "iq2_xxs")]
    second = [Option(None, 3, 0.0, "iq1_s"), Option(None, 2, 5.0, "iq2_xxs"), Option(None, 1, 8.0, "q4_k")]
    assert choose([first, second], 5) == [1, 1]


def test_convex_curves_are_solved_exactly() -> None:
    """Where each tensor's errors are convex in its bits and all steps are alike, the choice is the best there is."""
    rng = np.random.default_rng(0)
    options = [
        [Option(None, 4 * (i + 1), scale * 4.0**-i, name) for i, name in enumerate(NAMES)]
        for scale in rng.uniform(1, 50, 4)
    ]
    for budget in range(16, 81, 4):
        every = itertools.product(range(len(NAMES)), repeat=4)
        best = min(total(options, list(c))[1] for c in every if total(options, list(c))[0] <= budget)
        assert total(options, choose(options, budget))[1] == pytest.approx(best, rel=1e-12)


def test_a_budget_below_everything() -> None:
    with pytest.raises(ValueError, match=r"^choose: the budget is 2 bits, expected at least 3$"):
        choose([[Option(None, 3, 1.0, "q4_k")]], 2)


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.1.ffn_up_exps.weight"])
@pytest.mark.parametrize("weighted", [False, True])
def test_measured_errors(tmp_path: Path, name: str, weighted: bool) -> None:
    """With as many sampled rows as there are, the error is that of the whole tensor."""
    arrays = write_moe(tmp_path / "in.gguf")
    w = arrays[name].astype(np.float32)
    vectors = np.random.default_rng(2).uniform(0.1, 30, (*w.shape[:-2], HIDDEN)).astype(np.float32)
    importance = vectors if weighted else None
    weighting = Weighting(Columns({name: vectors}) if weighted else None)
    candidates = [FORMATS[fmt] for fmt in ("iq1_s", "q4_k")]
    with open_gguf_source(tmp_path / "in.gguf") as source:
        tensor = source.tensors[name]
        found = measure(source, tensor, candidates, weighting, sample_rows=10**6)
        some = measure(source, tensor, candidates, weighting, sample_rows=32)
    columns = np.ones(1) if importance is None else vectors[..., None, :]
    for option, sampled in zip(found, some, strict=True):
        packed = lutkern.pack(w, option.wanted, importance=importance, layout="blocks")
        lost = (columns * (w - lutkern.dequantize(packed)).astype(np.float64) ** 2).sum(axis=-1)
        assert option.error == pytest.approx(
            (lost / (columns * w.astype(np.float64) ** 2).sum(axis=-1)).mean(), rel=1e-6
        )
        assert option.bits == 8 * packed.nbytes
        assert sampled.error == pytest.approx(option.error, rel=0.2)
        assert sampled.error != option.error


def test_rows_of_zeros_do_not_count() -> None:
    w, decoded = np.ones((3, 4), np.float32), np.full((3, 4), 0.5, np.float32)
    w[1] = decoded[1] = 0
    assert lost_share(w, decoded, None) == 0.25
    assert lost_share(w, decoded, np.array([[1, 2, 3, 4]], np.float32)) == 0.25
    assert lost_share(np.zeros_like(w), decoded, None) == 0


def test_a_huge_row_hides_no_other() -> None:
    w, decoded = np.ones((2, 4), np.float32), np.zeros((2, 4), np.float32)
    w[0] = decoded[0] = 1e6
    assert lost_share(w, decoded, None) == 0.5


def test_what_is_packed_can_stay(tmp_path: Path) -> None:
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "a": ("q4_1", (64, 256)),
        "b": ("q8_0", (64, 256)),
        "c": ("f16", (64, 250)),
    }
    write_blocks(tmp_path / "in.gguf", shapes)
    candidates = [FORMATS["q4_k"], FORMATS["iq1_s"]]
    with open_gguf_source(tmp_path / "in.gguf") as source:
        found = {n: measure(source, t, candidates, Weighting()) for n, t in source.tensors.items()}
        same = measure(source, source.tensors["a"], [FORMATS["q4_1"]], Weighting())
    assert [(o.format, o.wanted) for o in found["a"]][-1] == (None, "q4_1")
    assert found["a"][-1].error == 0
    assert [o.wanted for o in found["b"]] == ["q4_k", "iq1_s"]
    assert [(o.format, o.bits) for o in found["c"]] == [(None, 16 * 64 * 250)]
    assert [(o.format, o.error) for o in same] == [(None, 0.0)]


def test_candidates() -> None:
    every = candidate_formats(None)
    assert every == tuple(fmt for fmt in lutkern.formats() if fmt.can_pack and fmt.bits_per_weight < 7)
    assert [fmt.name for fmt in candidate_formats(["q4_k", "iq1_s", "q4_k"])] == ["q4_k", "iq1_s"]


def uneven_arrays() -> dict[str, np.ndarray[Any, Any]]:
    """Experts that are hard and easy to pack: one matrix has outliers, one is made of few values."""
    arrays = moe_arrays(np.float32)
    rng = np.random.default_rng(3)
    heavy = arrays["blk.1.ffn_up_exps.weight"]
    heavy *= rng.standard_t(2, heavy.shape).astype(np.float32)
    easy = arrays["blk.2.ffn_up_exps.weight"]
    easy[:] = np.sign(easy)
    return arrays


def test_the_whole_way(tmp_path: Path) -> None:
    arrays = uneven_arrays()
    write_moe(tmp_path / "in.gguf", arrays)
    candidates = ["iq1_s", "iq2_xxs", "iq3_s", "q4_k", "q6_k"]
    rules = ["token_embd=q8_0", "attn_v=q4_k"]
    measured: list[str] = []
    plan = lutkern.pack_file(
        tmp_path / "in.gguf",
        tmp_path / "out.gguf",
        types=rules,
        target_bpw=3.0,
        candidates=candidates,
        measured=lambda name, n_bytes, weights: measured.append(name),
    )
    packed = [t for t in plan.tensors if t.why != "stays float"]
    bits = sum(8 * t.nbytes for t in packed)
    weights = sum(t.source.n_weights for t in packed)
    assert 2.9 < bits / weights <= 3.0
    found = {t.name: t.type_name for t in plan.tensors}
    assert found["token_embd.weight"] == "q8_0"
    assert found["blk.0.attn_v.weight"] == "q4_k"
    assert found["blk.0.attn_norm.weight"] == found["blk.0.ffn_gate_inp.weight"] == "f32"
    mixed = [t for t in plan.tensors if t.why == "mix"]
    assert measured == [t.name for t in mixed]
    assert {t.type_name for t in mixed} <= set(candidates)
    assert len({t.type_name for t in mixed}) > 1
    bits_of = {t.name: t.bits_per_weight for t in mixed}
    assert bits_of["blk.1.ffn_up_exps.weight"] >= bits_of["blk.2.ffn_up_exps.weight"]
    assert sum(t.error or 0 for t in mixed) < whole_error(arrays, mixed, "iq2_xxs")
    again = lutkern.pack_file(
        tmp_path / "in.gguf", tmp_path / "o.gguf", types=rules, target_bpw=3.0, candidates=candidates, dry_run=True
    )
    assert again.tensors == plan.tensors


def test_the_first_and_the_last_layer_matter_more(tmp_path: Path) -> None:
    """Layers of the same numbers get more bits at the ends, in their feed-forward matrices."""
    arrays = moe_arrays()
    for i in range(1, LAYERS):
        for name in [name for name in arrays if name.startswith("blk.0.")]:
            arrays[name.replace("blk.0.", f"blk.{i}.")] = arrays[name]
    write_moe(tmp_path / "in.gguf", arrays)
    plan = lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", target_bpw=2.6, dry_run=True)
    found = {t.name: t for t in plan.tensors}
    for part in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_up_shexp"):
        bits = [found[f"blk.{i}.{part}.weight"].bits_per_weight for i in range(LAYERS)]
        assert bits[0] >= bits[1] <= bits[2]
    total = [sum(t.nbytes for t in plan.tensors if t.name.startswith(f"blk.{i}.ffn_")) for i in range(LAYERS)]
    assert min(total[0], total[2]) > total[1]
    assert found["output.weight"].bits_per_weight >= found["token_embd.weight"].bits_per_weight > 4


def whole_error(arrays: dict[str, np.ndarray[Any, Any]], mixed: list[Any], fmt: str) -> float:
    """The error of one format for all, on all rows."""
    error = 0.0
    for tensor in mixed:
        w = arrays[tensor.name]
        lost = np.square(w - lutkern.dequantize(lutkern.pack(w, fmt)), dtype=np.float64).sum(axis=-1)
        error += float((lost / np.square(w, dtype=np.float64).sum(axis=-1)).mean())
    return error


def test_a_preset_pins_all_but_the_experts(tmp_path: Path) -> None:
    write_moe(tmp_path / "in.gguf")
    arguments = {"preset": "1bit", "target_bpw": 3.0, "sample_rows": 8, "dry_run": True}
    plan = lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", **arguments)  # type: ignore[arg-type]
    assert {t.name for t in plan.tensors if t.why == "mix"} == {t.name for t in plan.tensors if "_exps" in t.name}
    assert all(t.why.startswith(("preset 1bit", "stays")) for t in plan.tensors if "_exps" not in t.name)
    packed = [t for t in plan.tensors if t.why != "stays float"]
    assert sum(8 * t.nbytes for t in packed) <= 3.0 * sum(t.source.n_weights for t in packed)


def test_targets_that_cannot_be_reached(tmp_path: Path) -> None:
    write_moe(tmp_path / "in.gguf")
    types = ["token_embd=q8_0"]
    with pytest.raises(ValueError, match=r"^pack_file: target_bpw is 1\.5, expected at least ") as error:
        lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", types=types, target_bpw=1.5, sample_rows=1)
    assert str(error.value).endswith(" bits per weight with these rules and candidates")
    smallest = float(re.findall(r"at least ([0-9.]+)", str(error.value))[0])
    plan = lutkern.pack_file(
        tmp_path / "in.gguf", tmp_path / "out.gguf", types=types, target_bpw=smallest, sample_rows=1, dry_run=True
    )
    assert {t.type_name for t in plan.tensors if t.why == "mix"} == {"iq1_s"}
    message = r"^pack_file: target_bpw is given, but no tensor is left to choose a format for$"
    with pytest.raises(ValueError, match=message):
        lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", types=[".=q8_0"], target_bpw=3.0)


def test_a_source_that_may_not_be_packed_again(tmp_path: Path) -> None:
    write_blocks(tmp_path / "in.gguf", {"a.weight": ("q4_1", (128, 256))})
    with pytest.raises(
        ValueError, match=r"^pack_file: tensor 'a\.weight' is q4_1, expected one of: f32, f16, bf16, q8_0;"
    ):
        lutkern.pack_file(tmp_path / "in.gguf", tmp_path / "out.gguf", target_bpw=3.0)
