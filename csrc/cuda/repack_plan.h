// The launch of to_tiles_* and to_blocks_*: a block of threads for some tiles side by side, a warp for each.
#pragma once
#include "plan.h"

namespace lutkern {
namespace cuda {

enum : int { kRepackWarps = 4, kRepackMostBlocks = 1 << 20 };

// Bytes between rows of blocks in shared memory: rows that follow each other begin in different banks.
LK_FN constexpr uint32_t repack_stride(int block_bytes) {
  const uint32_t words = (static_cast<uint32_t>(kRepackWarps * block_bytes) + 3) / 4;
  return 4 * (words | 1);
}

LK_FN constexpr int repack_block_bytes(int format) {
  switch (format) {
#define LUTKERN_BLOCK_BYTES(name, Block) \
  case static_cast<int>(FormatId::name): \
    return Block::kBlockBytes;
    LUTKERN_FORMATS(LUTKERN_BLOCK_BYTES)
#undef LUTKERN_BLOCK_BYTES
    default:
      return 0;
  }
}

LK_FN int64_t repack_items(const RepackArgs& args) {
  const int64_t tile_rows = (static_cast<int64_t>(args.rows) + kTileRows - 1) / kTileRows;
  return args.experts * tile_rows * ((args.row_blocks + kRepackWarps - 1) / kRepackWarps);
}

static inline Plan plan_repack(const RepackArgs& args, int format) {
  const int64_t items = repack_items(args);
  Plan plan{};
  plan.grid_x = static_cast<uint32_t>(items < kRepackMostBlocks ? items : int64_t{kRepackMostBlocks});
  plan.grid_y = 1;
  plan.grid_z = 1;
  plan.threads = 32 * kRepackWarps;
  plan.shared_bytes = kTileRows * repack_stride(repack_block_bytes(format));
  return plan;
}

static inline Plan plan_to_tiles(const RepackArgs& args, int format) { return plan_repack(args, format); }
static inline Plan plan_to_blocks(const RepackArgs& args, int format) { return plan_repack(args, format); }

}  // namespace cuda
}  // namespace lutkern
