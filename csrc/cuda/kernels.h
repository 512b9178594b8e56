// The kernels, names only: X(name, type of its parameter). The device text defines them, the host looks them up.
#pragma once
#include "arguments.h"

// The formats that have tiles on the device; a test that builds a part of the text names fewer
#if !defined(LUTKERN_CUDA_TILE_FORMATS)
#define LUTKERN_CUDA_TILE_FORMATS LUTKERN_GPU_TILE_FORMATS
#endif

// Of one tile format. to_tiles, to_blocks: repack. matvec: one token. small: 2 to 8 tokens. large: more, of quantised x.
// moe_up: gate and up of one format (or no gate), pair by pair; moe_down. batch: the pairs of an expert at once.
#define LUTKERN_CUDA_KERNELS_OF(X, name) \
  X(to_tiles_##name, RepackArgs)         \
  X(to_blocks_##name, RepackArgs)        \
  X(dequantize_##name, DequantizeArgs)   \
  X(matvec_##name, ProductArgs)          \
  X(matmul_small_##name, ProductArgs)    \
  X(matmul_large_##name, ProductArgs)    \
  X(moe_up_##name, MoeArgs)              \
  X(moe_down_##name, MoeArgs)            \
  X(moe_up_batch_##name, MoeArgs)        \
  X(moe_down_batch_##name, MoeArgs)

// Of several formats. mixed: gate and up of two tile formats. any: every format and layout, int8 or exact.
#define LUTKERN_CUDA_KERNELS_OF_ALL(X) \
  X(quantize, QuantizeArgs)            \
  X(moe_up_mixed, MoeArgs)             \
  X(moe_up_batch_mixed, MoeArgs)       \
  X(dequantize_any, DequantizeArgs)    \
  X(product_any, ProductArgs)          \
  X(moe_up_any, MoeArgs)               \
  X(moe_down_any, MoeArgs)

#define LUTKERN_CUDA_KERNELS(X)       \
  LUTKERN_CUDA_KERNELS_OF(X, iq1_s)   \
  LUTKERN_CUDA_KERNELS_OF(X, iq1_m)   \
  LUTKERN_CUDA_KERNELS_OF(X, iq2_xxs) \
  LUTKERN_CUDA_KERNELS_OF(X, iq2_xs)  \
  LUTKERN_CUDA_KERNELS_OF(X, iq2_s)   \
  LUTKERN_CUDA_KERNELS_OF(X, iq3_xxs) \
  LUTKERN_CUDA_KERNELS_OF(X, iq3_s)   \
  LUTKERN_CUDA_KERNELS_OF_ALL(X)
