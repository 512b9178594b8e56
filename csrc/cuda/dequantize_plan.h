// The launch of dequantize_*: each warp takes tile after tile.
#pragma once
#include "block_plan.h"

namespace lutkern {
namespace cuda {

// Numbers of 32 rows and 32 columns lie in shared memory with a gap after each row, so that columns meet no bank twice.
enum : int { kDequantizeWarps = 4, kDequantizeMostBlocks = 2048, kSquareRow = 33, kSquareBytes = 4 * 32 * kSquareRow };

LK_FN int64_t dequantize_tiles(const WeightArgs& w) {
  return static_cast<int64_t>(w.experts) * ((w.rows + kTileRows - 1) / kTileRows) * (w.stored_cols / kTileCols);
}

static inline Plan plan_dequantize(const DequantizeArgs& args, int format) {
  const int64_t blocks = (dequantize_tiles(args.w) + kDequantizeWarps - 1) / kDequantizeWarps;
  Plan plan{};
  plan.grid_x = static_cast<uint32_t>(blocks < kDequantizeMostBlocks ? blocks : int64_t{kDequantizeMostBlocks});
  plan.grid_y = 1;
  plan.grid_z = 1;
  plan.threads = 32 * kDequantizeWarps;
  plan.shared_bytes = static_cast<uint32_t>(table_bytes(format) + kDequantizeWarps * kSquareBytes);
  return plan;
}

}  // namespace cuda
}  // namespace lutkern
