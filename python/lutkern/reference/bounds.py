"""How far a correct float32 kernel may be from the reference: bounds per output, for tests to state.

A float32 sum of n terms is off by at most about n * 2^-24 times the sum of the magnitudes of its terms, whatever
the order of the sum. Against the magnitudes, not against the result: where terms cancel, a small result has a large
relative error, and nothing is wrong with it. Good summation orders (many lanes, a tree) need far less
than n.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .activations import COLUMNS, activations_of, quantize_activations
from .dequantize import WeightLike, dequantize_weight
from .formats import Doubles
from .moe import Layer
from .ops import Product, two_dimensional

ULP = 2.0**-24
"""Half the distance of 1 to the next float32: the largest relative error of one rounding."""

STEEPEST = {"silu": 1.1, "gelu": 1.13, None: 1.0}
"""The largest slope of each activation function; relu2 has none."""


def fp32_bound(t: WeightLike, x: npt.ArrayLike, *, n_ulp: float, exact: bool = False) -> Doubles:
    """Return n_ulp * 2^-24 * (sum of the magnitudes of the terms), for matvec and matmul.

    x is float (cols,) or (tokens, cols), the result float64 (rows,) or (tokens, rows). A kernel passes where
    ``abs(kernel - reference) <= fp32_bound(...)``. The terms are the products of a weight with an activation or, where
    activations are quantised, the integer sums over 4 columns times their scales: what one lane of a byte dot
    product holds, in which nothing is rounded. ValueError for a shape, TypeError for a dtype.
    """
    product = Product(two_dimensional("fp32_bound", t), exact=exact)
    tokens = activations_of("fp32_bound", x).astype(np.float64)
    if tokens.shape[-1] != product.cols:
        raise ValueError(f"fp32_bound: x has {tokens.shape[-1]} columns, the weight has {product.cols}")
    if tokens.ndim == 1:
        return n_ulp * ULP * product.magnitude(tokens)
    return n_ulp * ULP * np.array([product.magnitude(token) for token in tokens])


def moe_bound(
    x: npt.ArrayLike,
    expert_ids: npt.ArrayLike,
    expert_weights: npt.ArrayLike,
    gate: WeightLike | None,
    up: WeightLike,
    down: WeightLike,
    *,
    n_ulp: float,
    activation: str | None = "silu",
    exact: bool = False,
) -> Doubles:
    """Return how far a float32 ``moe`` with these operands may be from the reference: float64 (tokens, hidden).

    Every float32 sum may be off by ``fp32_bound`` with ``n_ulp``, and so may h. Where h is quantised, an h this
    close to the middle of two int8 steps may land on either: that, and only there, allows one whole step.
    """
    layer = Layer(x, expert_ids, expert_weights, gate, up, down, activation=activation, exact=exact)
    bound = np.zeros_like(layer.x)
    for token, expert, share in layer.routes():
        h = layer.hidden(expert, layer.x[token])
        h_error = _hidden_error(layer, expert, layer.x[token], n_ulp)
        down_product = layer.product("down", expert)
        if down_product.quantizes:
            h_error = _quantised_error(h, h_error)
        values = np.abs(dequantize_weight(layer.weights["down"].expert(expert)).astype(np.float64))
        bound[token] += abs(share) * (values @ h_error + n_ulp * ULP * down_product.magnitude(h))
    return bound


def _hidden_error(layer: Layer, expert: int, token: Doubles, n_ulp: float) -> Doubles:
    """Return how far h of one expert may be off: float64 (inter,)."""
    names = [name for name in ("gate", "up") if name in layer.weights]
    value = {name: layer.product(name, expert)(token) for name in names}
    error = {name: n_ulp * ULP * layer.product(name, expert).magnitude(token) for name in names}
    z, z_error = value[names[0]], error[names[0]]
    # exp of a float32 argument is off by a part of it: hence the 1 + abs(z).
    rounding = n_ulp * ULP * (1 + np.abs(z))
    slope = 2 * (np.abs(z) + z_error) if layer.activation == "relu2" else STEEPEST[layer.activation]
    h = layer.hidden(expert, token)
    if names == ["up"]:
        return z_error * slope + rounding * np.abs(h)
    up, up_error = np.abs(value["up"]), error["up"]
    activated = layer.activate(z)
    return z_error * slope * (up + up_error) + np.abs(activated) * up_error + rounding * np.abs(h)


def _quantised_error(h: Doubles, h_error: Doubles) -> Doubles:
    """Return how far scale * q of h may be off when h itself is off by ``h_error``: float64 (inter,)."""
    scale = quantize_activations(h.astype(np.float32)).scale.astype(np.float64)
    step = np.repeat(scale, COLUMNS)[: h.size]
    padded = np.pad(h_error, (0, -h.size % COLUMNS)).reshape(-1, COLUMNS)
    with np.errstate(invalid="ignore", divide="ignore"):
        # The scale follows the largest h of its 32, so it is off by the same part of itself.
        stretch = np.repeat(padded.max(axis=1) / (127 * scale), COLUMNS)[: h.size] + 4 * ULP
        position = np.abs(h) / step
        reach = h_error / step + position * stretch
        # Distance of the position to the middle between two steps.
        to_middle = np.abs(position - np.floor(position) - 0.5)
        flips = np.where(to_middle <= reach, np.ceil(reach), 0.0)
        error = step * (flips + position * stretch)
    return np.where(step > 0, error, h_error)
