// What a Metal kernel is told: plain numbers in one struct, its buffer 0. Read by the host and by the Metal compiler, whose
// structs have the same layout. Pointers are buffers of their own:
//
//   dequantize  1 weight, 2 out
//   product     1 weight, 2 x, 3 out
//   moe_up      1 gate, 2 up, 3 x, 4 ids, 5 h, 6 h_scale
//   moe_down    1 down, 2 ids, 3 weights, 4 h, 5 h_scale, 6 out
//
// Sizes are checked by the host: rows and cols of a weight, tokens and tokens * k are below 2^31.
#pragma once
#include "../gpu/tile.h"

namespace lutkern {
namespace metal_args {

using gpu::kGroup;
using gpu::kTileCols;
using gpu::kTileRows;

// A weight whose first byte is that of its buffer: blocks lie anywhere, floats at a multiple of 4 bytes, tiles of 16.
struct WeightArgs {
  int64_t expert_bytes;  // from expert to expert
  int64_t row_bytes;     // from row of blocks, or row of tiles, to the next
  int32_t tiles;         // 1: tiles, 0: blocks
  int32_t experts;
  int32_t rows;
  int32_t cols;
  int32_t stored_cols;  // rounded up to whole blocks
  int32_t padding;
};

struct MatrixArgs {
  int64_t row_stride;  // elements
  int32_t dtype;       // Dtype: 0 float32, 1 float16, 2 bfloat16
  int32_t rows;
  int32_t cols;
  int32_t padding;
};

// out[expert, row, col], C-contiguous, numbers of dtype
struct DequantizeArgs {
  WeightArgs w;
  int32_t dtype;
  int32_t padding;
};

// out[token * out_stride + row] for row_begin <= row < row_end, float32
struct ProductArgs {
  WeightArgs w;
  MatrixArgs x;
  int64_t out_stride;
  int32_t row_begin;
  int32_t row_end;
  int32_t exact;  // 1: float activations
  int32_t padding;
};

// y[t] = sum over slots of weights[t, slot] * down[e] h[t, slot],  h = activation(gate[e] x[t]) * (up[e] x[t]),
// e = ids[t, slot]. Pair t * k + slot. An id of -1 is left out where partial is set; any other id outside of the experts
// makes y[t] NaN.
//
// h has one row of h_stride numbers for each pair, padded with zeros; h_stride is down.cols rounded up to 256. Where h_floats
// is 0 a number is the integer of an int8 activation, as a half, and h_scale has one float for each kGroup of them
// (h_stride / kGroup for each pair); where it is 1, which the kernels named any know, a number is a float, and h_scale is
// not used. It is 1 where exact is, and where down has a float format: such weights meet activations unquantised.
struct MoeArgs {
  WeightArgs gate;  // experts 0: no gate
  WeightArgs up;
  WeightArgs down;
  MatrixArgs x;
  int64_t h_stride;
  int32_t k;
  int32_t activation;  // Activation: 0 none, 1 silu, 2 gelu, 3 relu2
  int32_t exact;
  int32_t partial;
  int32_t h_floats;
  int32_t padding;
};

}  // namespace metal_args
}  // namespace lutkern
