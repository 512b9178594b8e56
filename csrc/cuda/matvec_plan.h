// The launch of matvec_*: a block for one or more rows of tiles and a token.
#pragma once
#include "block_plan.h"

namespace lutkern {
namespace cuda {

// More blocks than run at once would fill their tables and stage x again and again; the blocks share the rows evenly.
enum : int { kMatvecBlocks = 512 };

static inline Plan plan_matvec(const ProductArgs& args, int format) {
  const int first = args.row_begin / kTileRows;
  const int tile_rows = (args.row_end + kTileRows - 1) / kTileRows - first;
  const int each = (tile_rows + kMatvecBlocks - 1) / kMatvecBlocks;
  const int tiles = args.w.stored_cols / kTileCols;
  const uint32_t warps = warps_for(tiles, most_warps(format));
  Plan plan{};
  plan.grid_x = static_cast<uint32_t>(each > 0 ? (tile_rows + each - 1) / each : 0);
  plan.grid_y = static_cast<uint32_t>(args.x.rows < kMostBlocks ? args.x.rows : int{kMostBlocks});
  plan.grid_z = 1;
  plan.threads = 32 * warps;
  plan.shared_bytes = block_shape(table_bytes(format), tiles, 1, warps, 1).bytes;
  return plan;
}

}  // namespace cuda
}  // namespace lutkern
