// The kernels by name, and the libraries that have them. The Metal text is one source; macros in front of it say which
// formats it is compiled for, so that any two formats of gate and up get a kernel of their own, when they are first used:
//
//   library   macros                                       kernels
//   weight    LK_TILES 1, LK_WEIGHT Iq1S                   dequantize matvec matmul_small matmul_large moe_down moe_down_batch
//             LK_TILES 0, LK_WEIGHT Q4K                    dequantize_any product_any moe_down_any
//   pair      LK_TILES 1, LK_GATE Iq2Xxs, LK_UP Iq2S       moe_up moe_up_batch
//             LK_TILES 0, LK_GATE Q4K, LK_UP Iq1M          moe_up_any
//
// LK_TILES 1: tiles of the formats below; 0: every format, blocks and tiles (WeightArgs.tiles says which), int8 and exact.
// LK_GATE is NoGate where there is none. The type of a format is its struct of formats/.
#pragma once
#include "arguments.h"

// X(name of the function, kind of its library, type of its arguments)
#define LUTKERN_METAL_KERNELS(X)                \
  X(dequantize, weight, DequantizeArgs)         \
  X(matvec, weight, ProductArgs)                \
  X(matmul_small, weight, ProductArgs)          \
  X(matmul_large, weight, ProductArgs)          \
  X(moe_down, weight, MoeArgs)                  \
  X(moe_down_batch, weight, MoeArgs)            \
  X(moe_up, pair, MoeArgs)                      \
  X(moe_up_batch, pair, MoeArgs)                \
  X(dequantize_any, weight_any, DequantizeArgs) \
  X(product_any, weight_any, ProductArgs)       \
  X(moe_down_any, weight_any, MoeArgs)          \
  X(moe_up_any, pair_any, MoeArgs)
