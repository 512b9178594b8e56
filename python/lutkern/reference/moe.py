"""The mixture of experts in float64: one expert after the other, one token after the other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .activations import activate, activations_of, check_activation
from .dequantize import WeightLike, weight_of
from .formats import Doubles
from .ops import Product


def moe(
    x: npt.ArrayLike,
    expert_ids: npt.ArrayLike,
    expert_weights: npt.ArrayLike,
    gate: WeightLike | None,
    up: WeightLike,
    down: WeightLike,
    *,
    activation: str | None = "silu",
    exact: bool = False,
) -> Doubles:
    """Run the experts that each token was routed to: float64 (tokens, hidden).

        h = activation(gate_e x) * (up_e x)        without a gate: h = activation(up_e x)
        y = sum over the token's experts e of weight_e * (down_e h)

    x : float (tokens, hidden)
    expert_ids, expert_weights : integers and floats (tokens, k)
    gate, up : (experts, inter, hidden); gate may be None
    down : (experts, hidden, inter)

    Without ``exact``, h is rounded to float32 and quantised like x where ``down`` is an integer format.
    ValueError for a shape, an expert id or an activation, TypeError for a dtype.
    """
    layer = Layer(x, expert_ids, expert_weights, gate, up, down, activation=activation, exact=exact)
    out = np.zeros_like(layer.x)
    for token, expert, share in layer.routes():
        h = layer.hidden(expert, layer.x[token])
        out[token] += share * layer.product("down", expert)(h)
    return out


class Layer:
    """The checked operands of ``moe``; an expert's weights are unpacked at their first use."""

    def __init__(
        self,
        x: npt.ArrayLike,
        expert_ids: npt.ArrayLike,
        expert_weights: npt.ArrayLike,
        gate: WeightLike | None,
        up: WeightLike,
        down: WeightLike,
        *,
        activation: str | None,
        exact: bool,
    ) -> None:
        check_activation("moe", activation)
        self.activation = activation
        self.exact = exact
        self.weights = {"up": weight_of("moe", up), "down": weight_of("moe", down)}
        if gate is not None:
            self.weights["gate"] = weight_of("moe", gate)
        self.x = activations_of("moe", x).astype(np.float64)
        self.ids = np.asarray(expert_ids)
        self.shares = activations_of("moe", expert_weights, "expert_weights").astype(np.float64)
        self._products: dict[tuple[str, int], Product] = {}
        self._check()

    def _check(self) -> None:
        for name, weight in self.weights.items():
            if len(weight.shape) != 3:
                raise ValueError(f"moe: {name} has shape {weight.shape}, expected three axes")
        experts, inter, hidden = self.weights["up"].shape
        for name, expected in (("gate", (experts, inter, hidden)), ("down", (experts, hidden, inter))):
            if name in self.weights and self.weights[name].shape != expected:
                raise ValueError(f"moe: {name} has shape {self.weights[name].shape}, expected {expected}")
        if self.x.ndim != 2 or self.x.shape[1] != hidden:
            raise ValueError(f"moe: x has shape {self.x.shape}, expected (tokens, {hidden})")
        if not np.issubdtype(self.ids.dtype, np.integer):
            raise TypeError(f"moe: expert_ids is {self.ids.dtype.name}, expected integers")
        if self.ids.ndim != 2 or len(self.ids) != len(self.x):
            raise ValueError(f"moe: expert_ids has shape {self.ids.shape}, expected ({len(self.x)}, k)")
        if self.shares.shape != self.ids.shape:
            raise ValueError(f"moe: expert_weights has shape {self.shares.shape}, expected {self.ids.shape}")
        outside = self.ids[(self.ids < 0) | (self.ids >= experts)]
        if outside.size:
            raise ValueError(f"moe: expert id {outside[0]}, expected 0 to {experts - 1}")

    def routes(self) -> list[tuple[int, int, float]]:
        """Return (token, expert, weight) for every routed pair, token after token."""
        tokens, k = self.ids.shape
        return [(t, int(self.ids[t, i]), float(self.shares[t, i])) for t in range(tokens) for i in range(k)]

    def product(self, name: str, expert: int) -> Product:
        """Return one projection of one expert."""
        if (name, expert) not in self._products:
            self._products[name, expert] = Product(self.weights[name].expert(expert), exact=self.exact)
        return self._products[name, expert]

    def activate(self, z: Doubles) -> Doubles:
        """Apply the layer's activation function."""
        return activate(z, self.activation)

    def hidden(self, expert: int, token: Doubles) -> Doubles:
        """Return h (inter,) of one expert for one token."""
        up = self.product("up", expert)(token)
        if "gate" not in self.weights:
            return self.activate(up)
        return self.activate(self.product("gate", expert)(token)) * up
