// The launches of moe_up_*, moe_up_mixed and moe_down_*: a block for 32 rows of one pair, or of one token.
#pragma once
#include "block_plan.h"

namespace lutkern {
namespace cuda {

static inline Plan plan_moe_one(int64_t rows, int64_t jobs, int table, int most, int64_t items, int64_t x_tiles,
                                int segments, int warp_sums) {
  const uint32_t warps = warps_for(items, most);
  Plan plan{};
  plan.grid_x = static_cast<uint32_t>((rows + kTileRows - 1) / kTileRows);
  plan.grid_y = static_cast<uint32_t>(jobs < kMostBlocks ? jobs : int64_t{kMostBlocks});
  plan.grid_z = 1;
  plan.threads = 32 * warps;
  plan.shared_bytes = block_shape(table, x_tiles, segments, warps, warp_sums).bytes;
  return plan;
}

static inline Plan plan_moe_up(const MoeArgs& args, int format) {
  const int64_t tiles = args.up.stored_cols / kTileCols;
  return plan_moe_one(args.up.rows, static_cast<int64_t>(args.x.rows) * args.k, table_bytes(format), most_warps(format),
                      args.gate.data ? 2 * tiles : tiles, tiles, 2, 2);
}

enum : int { kMixedWarps = 16 };

// One matrix after the other, each with the table of its format
static inline Plan plan_moe_up_mixed(const MoeArgs& args, int) {
  const int64_t tiles = args.up.stored_cols / kTileCols;
  return plan_moe_one(args.up.rows, static_cast<int64_t>(args.x.rows) * args.k, kLargestTable, kMixedWarps, tiles,
                      tiles, 2, 2);
}

// All slots of a token: k is up to kMostSlots.
enum : int { kMostSlots = 1024 };

static inline Plan plan_moe_down(const MoeArgs& args, int format) {
  const int64_t tiles = static_cast<int64_t>(args.k) * (args.down.stored_cols / kTileCols);
  return plan_moe_one(args.down.rows, args.x.rows, table_bytes(format), most_warps(format), tiles, tiles, args.k, 1);
}

}  // namespace cuda
}  // namespace lutkern
