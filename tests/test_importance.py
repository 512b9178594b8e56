"""Collecting and merging importance. The judge is the definition: a mean of squares in float64."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lutkern import Importance

Floats = npt.NDArray[np.float32]
NAME = "blk.0.ffn_down.weight"


def inputs(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def collected(x: npt.ArrayLike, expert_ids: npt.ArrayLike | None = None, **options: int) -> Importance:
    importance = Importance()
    importance.update("w", x, expert_ids, **options)
    return importance


def per_expert(x: Floats, ids: npt.NDArray[np.integer], experts: int) -> tuple[npt.NDArray[np.float64], list[int]]:
    """Sums and counts by a loop over every (token, expert) pair."""
    sums, counts = np.zeros((experts, x.shape[1])), [0] * experts
    for row, row_ids in zip(x.astype(np.float64), ids, strict=True):
        for expert in row_ids:
            sums[expert] += row**2
            counts[expert] += 1
    return sums, counts


# ---- collecting ----


def test_mean_of_squares():
    x = inputs(100, 7)
    importance = Importance()
    for start in range(0, 100, 30):
        importance.update(NAME, x[start : start + 30])
    np.testing.assert_allclose(importance.mean(NAME), np.mean(x.astype(np.float64) ** 2, axis=0), rtol=1e-14)
    assert importance.mean(NAME).dtype == np.float64
    assert importance.counts(NAME).tolist() == [100]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.dtype(">f4")], ids=str)
def test_element_types(dtype):
    x = inputs(20, 5).astype(dtype)
    np.testing.assert_allclose(collected(x).mean("w"), np.mean(x.astype(np.float64) ** 2, axis=0), rtol=1e-14)


def test_dlpack_and_strides():
    class Foreign:
        def __init__(self, array: Floats) -> None:
            self.array = array

        def __dlpack__(self, **options: object) -> object:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    x = inputs(20, 10)
    expected = collected(np.ascontiguousarray(x[::2, ::3])).mean("w")
    np.testing.assert_array_equal(collected(Foreign(x)).mean("w"), collected(x).mean("w"))
    np.testing.assert_array_equal(collected(x[::2, ::3]).mean("w"), expected)


def test_large_and_tiny_inputs_keep_their_squares():
    x = np.array([[3e38, 1e-45]], np.float32)
    np.testing.assert_array_equal(collected(x).mean("w"), x[0].astype(np.float64) ** 2)


def test_leading_dimensions_are_tokens():
    x = inputs(2, 3, 4)
    assert collected(x).counts("w").tolist() == [6]
    np.testing.assert_array_equal(collected(x).mean("w"), collected(x.reshape(6, 4)).mean("w"))
    assert collected(x[0, 0]).counts("w").tolist() == [1]


def test_more_numbers_than_are_squared_at_a_time(monkeypatch):
    x, ids = inputs(50, 6), np.random.default_rng(1).integers(0, 4, (50, 2))
    x[[3, 30]] = np.nan
    whole, routed = collected(x), collected(x, ids)
    monkeypatch.setattr("lutkern.importance_entry.CHUNK", 40)
    monkeypatch.setattr("lutkern.importance_entry.ROUTED_CHUNK", 40)
    for parts, expected in ((collected(x), whole), (collected(x, ids), routed)):
        np.testing.assert_allclose(parts.mean("w"), expected.mean("w"), rtol=1e-14)
        assert parts.counts("w").tolist() == expected.counts("w").tolist()
        assert parts.skipped("w") == expected.skipped("w") == 2


@given(
    x=hnp.arrays(np.float32, st.tuples(st.integers(0, 12), st.integers(1, 5)), elements=st.floats(-9, 9, width=32)),
    k=st.integers(0, 3),
    data=st.data(),
)
def test_per_expert_sums(x, k, data):
    ids = data.draw(hnp.arrays(np.int32, (len(x), k), elements=st.integers(0, 5)))
    importance = collected(x, ids, experts=6)
    sums, counts = per_expert(x, ids, 6)
    assert importance.counts("w").tolist() == counts
    expected = np.full(sums.shape, np.nan)
    np.divide(sums, np.array(counts)[:, None], out=expected, where=np.array(counts)[:, None] > 0)
    np.testing.assert_allclose(importance.mean("w"), expected, rtol=1e-13)


def test_one_expert_for_each_row():
    x, ids = inputs(12, 4), np.random.default_rng(2).integers(0, 3, 12)
    expected = collected(x, ids[:, None], experts=3)
    by_token = collected(x.reshape(6, 2, 4), ids.reshape(6, 2), experts=3)  # the inputs of `down`
    for importance in (collected(x, ids, experts=3), by_token):
        np.testing.assert_array_equal(importance.mean("w"), expected.mean("w"))
        assert importance.counts("w").tolist() == expected.counts("w").tolist()


def test_the_number_of_experts_grows_until_it_is_given():
    importance = collected(inputs(2, 4), [[0], [1]])
    before = importance.mean("w")
    importance.update("w", inputs(1, 4), [[4]])
    assert importance.counts("w").tolist() == [1, 1, 0, 0, 1]
    np.testing.assert_array_equal(importance.mean("w")[:2], before)
    importance.update("w", inputs(0, 4), np.empty((0, 2), np.int64), experts=8)
    assert importance.counts("w").tolist() == [1, 1, 0, 0, 1, 0, 0, 0]
    text = "Importance.update: 'w': expert_ids reach from 8 to 8, expected 0 to 7"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        importance.update("w", inputs(1, 4), [[8]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_tokens_that_are_not_finite_are_left_out(bad):
    x, ids = inputs(10, 4), np.arange(20).reshape(10, 2) % 5
    x[3, 1] = x[7, 0] = bad
    rest = np.delete(np.arange(10), [3, 7])
    importance, routed = collected(x), collected(x, ids)
    np.testing.assert_array_equal(importance.mean("w"), collected(x[rest]).mean("w"))
    np.testing.assert_array_equal(routed.mean("w"), collected(x[rest], ids[rest], experts=5).mean("w"))
    assert importance.skipped("w") == routed.skipped("w") == 2
    assert importance.counts("w").tolist() == [8]


def test_names_and_text():
    importance = Importance(chunk_size=4)
    importance.update("b", inputs(9, 2))
    importance.update("a", inputs(3, 2), [[0], [1], [1]])
    assert importance.names() == tuple(importance) == ("b", "a")
    assert (len(importance), "a" in importance, "c" in importance) == (2, True, False)
    assert repr(importance) == "<Importance: 2 weights, 1 with experts, 3 chunks>"
    assert (Importance().chunk_count, len(Importance())) == (0, 0)
    importance.counts("b")[0] = 77
    importance.mean("b")[0] = 77
    assert importance.counts("b").tolist() == [9]
    assert importance.mean("b")[0] != 77


# ---- refusals ----

X = inputs(2, 4)
REFUSED = {
    "x type": (("w", np.ones((2, 4))), {}, TypeError, "'w': x is float64, expected float32, float16 or bfloat16"),
    "x int": (("w", [[1, 2]]), {}, TypeError, "'w': x is int64, expected float32, float16 or bfloat16"),
    "x columns": (
        ("w", np.ones((2, 0), np.float32)),
        {},
        ValueError,
        "'w': x has shape (2, 0), expected (..., cols) with at least 1 column",
    ),
    "x scalar": (
        ("w", np.float32(1)),
        {},
        ValueError,
        "'w': x has shape (), expected (..., cols) with at least 1 column",
    ),
    "name type": ((1, X), {}, TypeError, "name has int, expected str"),
    "name empty": (("", X), {}, ValueError, "name has 0 bytes, expected 1 to 65535"),
    "name surrogate": (("a\ud800", X), {}, ValueError, "name has a lone surrogate at 1, expected valid UTF-8"),
    "ids type": (("w", X, [[0.5], [1]]), {}, TypeError, "'w': expert_ids is float64, expected integers"),
    "ids bool": (("w", X, [[True], [False]]), {}, TypeError, "'w': expert_ids is bool, expected integers"),
    "ids shape": (
        ("w", X, [0, 1, 2]),
        {},
        ValueError,
        "'w': expert_ids has shape (3,), expected (2,) or (2, k), as x has rows",
    ),
    "ids negative": (
        ("w", X, [[0, -1], [3, 1]]),
        {},
        ValueError,
        "'w': expert_ids reach from -1 to 3, expected 0 to 65535",
    ),
    "ids huge": (
        ("w", X, np.array([0, 2**63], np.uint64)),
        {},
        ValueError,
        f"'w': expert_ids reach from 0 to {2**63}, expected 0 to 65535",
    ),
    "ids range": (("w", X, [0, 3]), {"experts": 3}, ValueError, "'w': expert_ids reach from 0 to 3, expected 0 to 2"),
    "experts alone": (
        ("w", X),
        {"experts": 3},
        ValueError,
        "'w': experts came without expert_ids, expected both",
    ),
    "experts type": (("w", X, [0, 1]), {"experts": 2.0}, TypeError, "'w': experts is float, expected a whole number"),
    "experts zero": (("w", X, [0, 1]), {"experts": 0}, ValueError, "'w': experts is 0, expected 1 to 65536"),
    "other columns": (("dense", inputs(2, 5)), {}, ValueError, "'dense': x has 5 columns, the weight has 4"),
    "no ids": (("moe", X), {}, ValueError, "'moe': x came without expert_ids, the weight has 3 experts"),
    "ids for dense": (
        ("dense", inputs(2, 2), [0, 1]),
        {},
        ValueError,
        "'dense': x came with expert_ids, the weight has no experts",
    ),
    "other experts": (
        ("moe", X, [0, 1]),
        {"experts": 4},
        ValueError,
        "'moe': x and experts make 4 x 4, the weight has 3 x 4 (experts x columns)",
    ),
    "routed columns": (
        ("moe", inputs(2, 5), [0, 1]),
        {},
        ValueError,
        "'moe': x and experts make 3 x 5, the weight has 3 x 4 (experts x columns)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_updates_change_nothing(case):
    arguments, options, error, message = REFUSED[case]
    importance = Importance()
    importance.update("dense", X)
    importance.update("moe", X, [0, 1], experts=3)
    with pytest.raises(error) as caught:
        importance.update(*arguments, **options)
    assert str(caught.value) == f"Importance.update: {message}"
    assert importance.names() == ("dense", "moe")
    assert importance.counts("dense").tolist() == [2]
    assert importance.counts("moe").tolist() == [1, 1, 0]


def test_refused_questions():
    with pytest.raises(ValueError, match=r"^Importance: chunk_size is 0, expected 1 to 2147483647$"):
        Importance(chunk_size=0)
    for method in ("counts", "mean", "skipped"):
        with pytest.raises(KeyError, match=f"Importance.{method}: no weight 'x', expected one of 1 names"):
            getattr(collected(X), method)("x")


# ---- merging ----


def test_merge_is_collecting_in_one_go():
    x, ids = inputs(60, 4), np.random.default_rng(4).integers(0, 5, (60, 2))
    x[[7, 50]] = np.nan
    whole, parts = Importance(), [Importance() for _ in range(3)]
    whole.update("dense", x)
    whole.update("moe", x, ids)
    for part, rows in zip(parts, np.split(np.arange(60), 3), strict=True):
        part.update("dense", x[rows])
        part.update("moe", x[rows], ids[rows])
        part.datasets = ["text", f"part {rows[0]}"]
    parts[2].update("only here", x)
    second = parts[1].mean("moe")
    parts[0].merge(parts[1], parts[2])
    assert parts[0].names() == ("dense", "moe", "only here")
    assert parts[0].datasets == ["text", "part 0", "part 20", "part 40"]
    for name in whole:
        np.testing.assert_allclose(parts[0].mean(name), whole.mean(name), rtol=1e-14)
        assert parts[0].counts(name).tolist() == whole.counts(name).tolist()
        assert parts[0].skipped(name) == whole.skipped(name) == 2
    parts[0].update("only here", x)  # not an alias of the other's
    assert parts[2].counts("only here").tolist() == [58]
    np.testing.assert_array_equal(parts[1].mean("moe"), second)


def test_merge_with_itself_and_with_fewer_experts():
    importance = collected(inputs(3, 4), [0, 1, 1])
    mean = importance.mean("w")
    importance.merge(importance)
    np.testing.assert_array_equal(importance.mean("w"), mean)
    importance.merge(collected(inputs(1, 4), [4], experts=6))
    assert importance.counts("w").tolist() == [2, 4, 0, 0, 1, 0]


def test_refused_merges_change_nothing():
    importance = collected(X)
    fine, wide, more = Importance(), Importance(), Importance()
    fine.update("v", X)
    wide.update("w", inputs(2, 8))
    more.update("w", X, [0, 1])
    text = "Importance.merge: 'w' is {} x {} (experts x columns), expected 1 x 4 (experts x columns)"
    for other, size in ((wide, (1, 8)), (more, (2, 4))):
        with pytest.raises(ValueError, match=f"^{re.escape(text.format(*size))}$"):
            importance.merge(fine, other)
    with pytest.raises(TypeError, match=r"^Importance.merge: other is dict, expected an Importance$"):
        importance.merge(fine, {})
    assert importance.names() == ("w",)
    assert importance.counts("w").tolist() == [2]
