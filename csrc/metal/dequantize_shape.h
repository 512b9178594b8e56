// Sizes of dequantize, read by the kernel and by its plan.
#pragma once
#include "arguments.h"

namespace lutkern {
namespace metal_args {

enum : int {
  kDequantizeSimdgroups = 4,
  kDequantizeTiles = 32,  // of a threadgroup: filling a table costs as much as two of them
  kSquareRow = 17,        // floats from row to row of a square
  kSquareNumbers = 32 * kSquareRow
};

#if defined(__METAL_VERSION__)
#define LK_WEIGHT_ARGS constant WeightArgs
#else
#define LK_WEIGHT_ARGS const WeightArgs
#endif
LK_FN int64_t dequantize_tiles(LK_WEIGHT_ARGS& w) {
  return static_cast<int64_t>(w.experts) * ((w.rows + kTileRows - 1) / kTileRows) * (w.stored_cols / kTileCols);
}
#undef LK_WEIGHT_ARGS

}  // namespace metal_args
}  // namespace lutkern
