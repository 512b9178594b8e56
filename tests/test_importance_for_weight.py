"""`Importance.for_weight`: what `pack` gets is finite and positive, and one warning tells what was replaced."""

from __future__ import annotations

import re
import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lutkern
from lutkern import Importance


def inputs(*sizes: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(sizes).astype(np.float32)


def collected(x: npt.ArrayLike, expert_ids: npt.ArrayLike | None = None, **options: int) -> Importance:
    importance = Importance()
    importance.update("w", x, expert_ids, **options)
    return importance


def test_what_is_whole_comes_as_it_is():
    x, ids = inputs(40, 6), np.random.default_rng(3).integers(0, 2, (40, 1))
    dense, routed = collected(x), collected(x, ids)
    np.testing.assert_array_equal(dense.for_weight("w", (3, 6)), dense.mean("w").astype(np.float32))
    np.testing.assert_array_equal(routed.for_weight("w", (2, 3, 6)), routed.mean("w").astype(np.float32))
    broadcast = dense.for_weight("w", (5, 3, 6))
    np.testing.assert_array_equal(broadcast, np.tile(dense.mean("w").astype(np.float32), (5, 1)))
    broadcast[0] = 0  # an array of its own
    assert broadcast[1].all()


def test_large_and_tiny_means_stay_finite_and_positive():
    values = collected(np.array([[3e38, 1e-30, 1]], np.float32)).for_weight("w", (2, 3))
    limits = np.finfo(np.float32)
    assert values.tolist() == [limits.max, limits.tiny, 1]


def test_numbers_without_use_become_the_mean_of_the_others():
    x = inputs(9, 6)
    x[:, [1, 4]] = 0
    text = "Importance.for_weight: 'w': 2 of 6 numbers not finite and positive, replaced by the mean of others"
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(text)}$") as caught:
        values = collected(x).for_weight("w", (3, 6))
    assert [warning.filename for warning in caught] == [__file__]
    mean = np.mean(x.astype(np.float64) ** 2, axis=0)
    np.testing.assert_allclose(values, np.where(mean > 0, mean, mean[mean > 0].mean()), rtol=1e-6)


def test_experts_without_tokens_get_the_mean_of_their_neighbours():
    """Experts 2 and 6 of 9 have nothing but zeros, 3 one column; 0, 1, 5, 8 no token."""
    rows = {2: [0, 0], 3: [1, 0], 4: [2, 3], 6: [0, 0], 7: [4, 6]}
    x = np.array(list(rows.values()), np.float32)
    importance = collected(x, list(rows), experts=9)
    text = (
        "Importance.for_weight: 'w': 6 of 9 experts without importance, replaced by that of neighbours; "
        "1 of 6 numbers not finite and positive, replaced by the mean of others"
    )
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(text)}$") as caught:
        values = importance.for_weight("w", (9, 5, 2))
    assert len(caught) == 1
    between = [10, 22.5]
    assert values.tolist() == [[1, 1]] * 4 + [[4, 9], between, between, [16, 36], [16, 36]]


@pytest.mark.parametrize(("size", "expected"), [((3, 4), (4,)), ((2, 3, 4), (2, 4))])
def test_a_weight_without_anything_gets_ones(size, expected):
    text = "Importance.for_weight: 'w': no importance, replaced by ones"
    for importance in (Importance(), collected(np.zeros((5, 4), np.float32)), collected(np.empty((0, 4), np.float32))):
        with pytest.warns(RuntimeWarning, match=f"^{re.escape(text)}$"):
            values = importance.for_weight("w", size)
        np.testing.assert_array_equal(values, np.ones(expected, np.float32))


def test_experts_beyond_the_last_id_are_missing_ones():
    importance = collected(inputs(1, 4), [[1]])
    with pytest.warns(RuntimeWarning, match="'w': 3 of 4 experts without importance"):
        values = importance.for_weight("w", (4, 2, 4))
    np.testing.assert_array_equal(values, np.tile(importance.mean("w")[1].astype(np.float32), (4, 1)))


WRONG_SHAPES = {
    (3, 5): (ValueError, "'dense' is 1 x 4 (experts x columns), the weight is 3 x 5"),
    (2, 3, 2): (ValueError, "'dense' is 1 x 4 (experts x columns), the weight is 2 x 3 x 2"),
    (4,): (ValueError, "shape is (4,), expected (rows, cols) or (experts, rows, cols), each at least 1"),
    (0, 4): (ValueError, "shape is (0, 4), expected (rows, cols) or (experts, rows, cols), each at least 1"),
    (3, 4.0): (TypeError, "shape is (3, 4.0), expected whole numbers"),
}


@pytest.mark.parametrize("size", WRONG_SHAPES, ids=str)
def test_wrong_shapes(size):
    importance = Importance()
    importance.update("dense", inputs(2, 4))
    error, message = WRONG_SHAPES[size]
    with pytest.raises(error, match=f"^Importance.for_weight: {re.escape(message)}$"):
        importance.for_weight("dense", size)


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4), (4, 3, 4), (3, 3, 5)], ids=str)
def test_wrong_shapes_of_a_weight_with_experts(size):
    text = f"Importance.for_weight: 'w' is 3 x 4 (experts x columns), the weight is {' x '.join(map(str, size))}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        collected(inputs(2, 4), [0, 1], experts=3).for_weight("w", size)


@given(
    x=hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(3)), elements=st.floats(width=32)),
    ids=st.data(),
)
def test_pack_takes_it_without_a_warning(x, ids):
    """Whatever came in, what comes out is finite and positive."""
    expert_ids = ids.draw(hnp.arrays(np.int64, (len(x), 1), elements=st.integers(0, 3)))
    w = np.ones((4, 2, 3), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = collected(x, expert_ids, experts=4).for_weight("w", w.shape)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert (values > 0).all()
    lutkern.pack(w, "q8_0", importance=values)
