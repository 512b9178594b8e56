"""The NumPy reference: moe against a plain loop, and the bounds that other tests state."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lutkern import reference
from reference_samples import INTEGER, Q8_ROWS, ULP, Tensor, X, experts, gaussian, tensor


def plain_activation(z: npt.NDArray[np.float64], name: str | None) -> npt.NDArray[np.float64]:
    if name == "silu":
        return z * (0.5 + 0.5 * np.tanh(z / 2))
    if name == "gelu":
        inner = np.sqrt(2 / np.pi) * (z + 0.044715 * z * z * z)
        return 0.5 * z * (1 + np.tanh(inner))
    if name == "relu2":
        return np.where(z > 0, z * z, 0)
    return z


MOE = {"count": 4, "inter": 64, "hidden": 96}


def moe_operands(down: str = "iq3_xxs") -> dict[str, Any]:
    count, inter, hidden = MOE["count"], MOE["inter"], MOE["hidden"]
    return {
        "x": gaussian(3, hidden) / 100,
        "expert_ids": np.array([[0, 2], [3, 2], [1, 1]], dtype=np.int32),
        "expert_weights": np.array([[0.75, 0.25], [0.5, -0.5], [1.0, 0.0]], dtype=np.float32),
        "gate": experts("iq1_m", count, inter, hidden, seed=3),
        "up": experts("iq2_xxs", count, inter, hidden, seed=4),
        "down": experts(down, count, hidden, inter, seed=5),
    }


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu2", None])
@pytest.mark.parametrize("gated", [True, False])
def test_exact_moe_is_a_plain_loop_in_float64(activation: str | None, gated: bool) -> None:
    a = moe_operands()
    gate, up, down = (reference.dequantize(a[name]).astype(np.float64) for name in ("gate", "up", "down"))
    expected = np.zeros((3, MOE["hidden"]))
    for token in range(3):
        x = a["x"][token].astype(np.float64)
        for expert, share in zip(a["expert_ids"][token], a["expert_weights"][token], strict=True):
            h = up[expert] @ x
            h = plain_activation(gate[expert] @ x, activation) * h if gated else plain_activation(h, activation)
            expected[token] += share * (down[expert] @ h)
    if not gated:
        a["gate"] = None
    got = reference.moe(**a, activation=activation, exact=True)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11 * np.abs(expected).max())


def test_moe_quantises_h_like_x_where_down_is_an_integer_format() -> None:
    for name in ("iq3_xxs", "f16"):
        a = moe_operands(name)
        expected = np.zeros((3, MOE["hidden"]))
        for token in range(3):
            for expert, share in zip(a["expert_ids"][token], a["expert_weights"][token], strict=True):
                gate, up, down = ((a[n].blocks()[expert], a[n].format, a[n].shape[1:]) for n in ("gate", "up", "down"))
                x = a["x"][token]
                h = plain_activation(reference.matvec(gate, x), "silu") * reference.matvec(up, x)
                if name == "f16":
                    expected[token] += share * (reference.dequantize(*down).astype(np.float64) @ h)
                else:
                    expected[token] += share * reference.matvec(down, h.astype(np.float32))
        got = reference.moe(**a)
        # A float64 h next to the middle of two float32 numbers may round either way: one part in 2^24.
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def float32_matvec(t: Tensor, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the product as a kernel has it: integers inside 16 columns, everything else float32."""
    q, scale, offset = reference.unpack(t.blocks(), t.format)
    xq, x_scale = reference.quantize_activations(x)
    groups = np.zeros((scale.shape[1], 16), dtype=np.int64)
    groups.reshape(-1)[: xq.size] = xq
    d = np.zeros(scale.shape[1], dtype=np.float32)
    d[: 2 * x_scale.size] = np.repeat(x_scale, 2)
    dots = (q.reshape(len(q), -1, 16).astype(np.int64) * groups).sum(axis=2).astype(np.float32)
    sums = groups.sum(axis=1).astype(np.float32)
    return np.sum(d * (scale * dots + offset * sums), axis=1, dtype=np.float32)


@pytest.mark.parametrize("name", INTEGER)
def test_fp32_bound_lets_float32_pass_and_stops_a_wrong_weight(name: str) -> None:
    t = tensor(name, rows=32)
    x = gaussian(512)
    expected = reference.matvec(t, x)
    bound = reference.fp32_bound(t, x, n_ulp=8)
    assert np.all(np.abs(float32_matvec(t, x) - expected) <= bound)
    wrong = x.copy()
    wrong[100] = x[100] * 1.1
    assert np.any(np.abs(float32_matvec(t, wrong) - expected) > bound)
    np.testing.assert_array_equal(reference.fp32_bound(t, x[None], n_ulp=8), bound[None])
    np.testing.assert_array_equal(reference.fp32_bound(t, x, n_ulp=16), 2 * bound)


def test_fp32_bound_of_a_float_format_is_the_sum_of_the_products() -> None:
    t = tensor("f16")
    x = gaussian(512)
    terms = np.abs(reference.dequantize(t).astype(np.float64)) @ np.abs(x.astype(np.float64))
    np.testing.assert_allclose(reference.fp32_bound(t, x, n_ulp=3), 3 * ULP * terms, rtol=1e-12)


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu2", None])
@pytest.mark.parametrize("gated", [True, False])
def test_moe_bound_lets_float32_pass_and_stops_a_wrong_weight(activation: str | None, gated: bool) -> None:
    a = moe_operands()
    if not gated:
        a["gate"] = None
    got = np.zeros((3, MOE["hidden"]), dtype=np.float32)
    for token in range(3):
        for expert, share in zip(a["expert_ids"][token], a["expert_weights"][token], strict=True):
            part = {
                n: Tensor(a[n].blocks()[expert], a[n].format, a[n].shape[1:]) for n in ("gate", "up", "down") if a[n]
            }
            h = float32_matvec(part["up"], a["x"][token])
            z = float32_matvec(part["gate"], a["x"][token]) if gated else h
            active = plain_activation(z.astype(np.float64), activation).astype(np.float32)
            got[token] += share * float32_matvec(part["down"], active * h if gated else active)
    expected = reference.moe(**a, activation=activation)
    bound = reference.moe_bound(**a, n_ulp=8, activation=activation)
    assert np.all(np.abs(got - expected) <= bound)
    assert np.median(bound) < 1e-3 * np.median(np.abs(expected))
    a["x"] = a["x"] * np.float32(1.01)
    assert np.any(np.abs(reference.moe(**a, activation=activation) - expected) > bound)


def test_fp32_bound_says_what_came_and_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"^fp32_bound: x has 3 columns, the weight has 512$"):
        reference.fp32_bound(Q8_ROWS, X[:3], n_ulp=1)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"activation": "tanh"}, ValueError,
         "moe: unknown activation 'tanh', expected one of 'silu', 'gelu', 'relu2', None"),
        ({"up": Q8_ROWS}, ValueError, "moe: up has shape (6, 512), expected three axes"),
        ({"down": (np.zeros(4 * 64 * 102, np.uint8), "q8_0", (4, 64, 96))}, ValueError,
         "moe: down has shape (4, 64, 96), expected (4, 96, 64)"),
        ({"x": X[None]}, ValueError, "moe: x has shape (1, 512), expected (tokens, 96)"),
        ({"expert_ids": np.zeros((3, 2))}, TypeError, "moe: expert_ids is float64, expected integers"),
        ({"expert_ids": np.zeros((2, 2), int)}, ValueError, "moe: expert_ids has shape (2, 2), expected (3, k)"),
        ({"expert_weights": np.zeros((3, 1), np.float32)}, ValueError,
         "moe: expert_weights has shape (3, 1), expected (3, 2)"),
        ({"expert_ids": np.array([[0, 1], [2, 4], [0, 0]])}, ValueError, "moe: expert id 4, expected 0 to 3"),
        ({"expert_ids": np.array([[0, 1], [2, -1], [0, 0]])}, ValueError, "moe: expert id -1, expected 0 to 3"),
    ],
)  # fmt: skip
def test_moe_errors_say_what_came_and_what_was_expected(
    changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        reference.moe(**{**moe_operands(), **changes})
    assert str(caught.value) == text
