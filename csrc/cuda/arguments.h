// What a kernel is told: plain numbers in one struct, its only parameter. Read by the host, by nvcc and by the tests.
//
// Sizes are checked by the host: rows and cols of a weight, tokens and tokens * k are below 2^31.
#pragma once
#include <stdint.h>

#include "../gpu/tile.h"

namespace lutkern {
namespace cuda {

using namespace gpu;

struct WeightArgs {
  const uint8_t* data;   // null: there is none
  int64_t expert_bytes;  // from expert to expert
  int64_t row_bytes;     // from row of blocks, or row of tiles, to the next
  int32_t format;        // FormatId
  int32_t tiles;         // 1: tiles, 0: blocks
  int32_t experts;
  int32_t rows;
  int32_t cols;
  int32_t stored_cols;  // rounded up to whole blocks
};

struct MatrixArgs {
  const void* data;
  int64_t row_stride;  // elements
  int32_t dtype;       // Dtype
  int32_t rows;
  int32_t cols;
  int32_t padding;
};

// blocks <-> tiles of `experts * rows` rows, expert by expert
struct RepackArgs {
  const uint8_t* from;
  uint8_t* to;
  int32_t experts;
  int32_t rows;
  int32_t row_blocks;  // blocks of 256 in a row
  int32_t padding;
};

// out[expert, row, col], C-contiguous
struct DequantizeArgs {
  WeightArgs w;
  void* out;
  int32_t dtype;
  int32_t padding;
};

// Activations as integers: q is tokens x stride codes, scale tokens x stride / kGroup; stride is cols rounded up to 256, and
// codes past cols are zero.
struct Quantized {
  int8_t* q;
  float* scale;
  int64_t stride;
};

struct QuantizeArgs {
  MatrixArgs x;
  Quantized to;
};

// out[token * out_stride + row] for row_begin <= row < row_end
struct ProductArgs {
  WeightArgs w;
  MatrixArgs x;
  Quantized xq;  // matmul_large: x, already quantised; the others: null
  float* out;
  int64_t out_stride;
  int32_t row_begin;
  int32_t row_end;
  int32_t exact;
  int32_t padding;
};

// y[t] = sum over slots of weights[t, slot] * down[e] h[t, slot],  h = activation(gate[e] x[t]) * (up[e] x[t]),
// e = ids[t, slot]. Pair t * k + slot. An id of -1 is left out where partial is set; any other id outside of the experts
// makes y[t] NaN.
struct MoeArgs {
  WeightArgs gate;  // data null: no gate
  WeightArgs up;
  WeightArgs down;
  MatrixArgs x;
  const int32_t* ids;
  const float* weights;
  Quantized h;     // one row for each pair, written by the first launch; null where only floats are wanted
  float* h_float;  // pairs x h_stride, padded with zeros likewise; null where only integers are wanted
  int64_t h_stride;
  float* out;  // tokens x down.rows, C-contiguous
  int32_t k;
  int32_t activation;  // Activation
  int32_t exact;
  int32_t partial;
};

}  // namespace cuda
}  // namespace lutkern
