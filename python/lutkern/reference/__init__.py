"""lutkern.reference: every operation a second time, in NumPy alone, written to be read.

It is the judge of the kernels: decoding is exact to the bit, sums run in float64. Weights are PackedTensors, or plain
``(blocks, format, shape)`` tuples.

    dequantize(t)  dequantize(blocks, fmt, shape)       float32 weights
    unpack(blocks, fmt)                                 int8 integers, scales and offsets per 16 columns
    quantize_activations(x)                             int8 activations, one scale per 32 columns
    matvec(t, x)  matmul(t, x)  moe(x, ids, weights, gate, up, down)      float64; exact=True leaves activations alone
    fp32_bound(t, x, n_ulp=)  moe_bound(...)            how far a float32 kernel may be from these results
    pack(w, fmt, importance=)                           float -> blocks, the naive way
    FORMATS                                             every format by name, with its sizes

A format is defined by one function, in codebook_formats.py or plain_formats.py.
"""

from __future__ import annotations

from .activations import QuantizedActivations, quantize_activations
from .bounds import fp32_bound, moe_bound
from .dequantize import Unpacked, Weight, WeightLike, dequantize, unpack, weight_of
from .formats import FORMATS, ReferenceFormat
from .moe import moe
from .ops import matmul, matvec
from .pack import pack

__all__ = [
    "FORMATS",
    "QuantizedActivations",
    "ReferenceFormat",
    "Unpacked",
    "Weight",
    "WeightLike",
    "dequantize",
    "fp32_bound",
    "matmul",
    "matvec",
    "moe",
    "moe_bound",
    "pack",
    "quantize_activations",
    "unpack",
    "weight_of",
]
