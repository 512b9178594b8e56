"""Every Metal kernel once at small, odd shapes against the reference: test_metal_asan.py runs it under sanitizers.

python tests/metal_small.py        prints the names of the kernels that were run
"""

from __future__ import annotations

import numpy as np

from lutkern import reference
from metal_launch import Shape, dequantize, experts, product
from sim.layers import expert_layer, numbers, random_weight

FORMAT = "iq2_s"
PRODUCTS = {"matvec": 1, "matmul_small": 3, "matmul_large": 9, "product_any": 2}
PAIRS = [("moe_up", "moe_down"), ("moe_up_batch", "moe_down_batch"), ("moe_up_any", "moe_down_any")]


def run_all() -> list[str]:
    """Run every kernel, two formats for gate and up; AssertionError where a result is wrong."""
    done = []
    for kernel in ("dequantize", "dequantize_any"):
        w = random_weight(FORMAT, 33, 300, experts=2)
        tiles = kernel == "dequantize"
        assert np.array_equal(dequantize(kernel, w, tiles, shape=Shape(seed=1)), reference.dequantize(w))
        done.append(kernel)
    for kernel, tokens in PRODUCTS.items():
        w, x = random_weight(FORMAT, 33, 300), numbers(tokens, 300)
        error = np.abs(product(kernel, w, x, gap=1, tiles="any" not in kernel) - reference.matmul(w.matrix, x))
        assert np.all(error <= reference.fp32_bound(w.matrix, x, n_ulp=8))
        done.append(kernel)
    for pair in PAIRS:
        layer = expert_layer("iq1_m", "iq3_s", FORMAT, tokens=2, inter=40, hidden=100)
        assert np.all(np.abs(experts(pair, layer, gap=1).y - layer.expected()) <= layer.bound(8))
        done.extend(pair)
    return done


if __name__ == "__main__":
    print(*run_all())
