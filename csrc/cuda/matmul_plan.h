// How the kernels of matmul.cuh are launched.
#pragma once
#include "../formats/formats.h"
#include "arguments.h"
#include "fragments_plan.h"
#include "plan.h"

namespace lutkern {
namespace cuda {

enum : int {
  kSmallTokens = 8,
  kSmallWarps = 8,           // of a block: they split the columns
  kSmallTwoTilesFrom = 512,  // rows of tiles, from which on a block has two: half the work on x
  kLargeTokens = 64,
  kLargeWarps = 4,  // of a block, each with a row of tiles

  kSmallWarpBytes = kPanelBytes + kSmallTokens * kPanelsBytesPerToken,
  kLargeStageBytes = kLargeTokens * (kHalfTile + 4 * 4),  // 128 columns of x and their scales
};

LK_FN int first_tile(const ProductArgs& args) { return args.row_begin / kTileRows; }
LK_FN int end_tile(const ProductArgs& args) { return (args.row_end + kTileRows - 1) / kTileRows; }

// Rows of tiles of a block
LK_FN int small_tiles(const ProductArgs& args) {
  return end_tile(args) - first_tile(args) < kSmallTwoTilesFrom ? 1 : 2;
}

static inline Plan plan_matmul_small(const ProductArgs& args, int format) {
  const int tiles = small_tiles(args);
  const int blocks = (end_tile(args) - first_tile(args) + tiles - 1) / tiles;
  return {static_cast<uint32_t>(blocks), 1, 1, 32 * kSmallWarps,
          static_cast<uint32_t>(table_bytes(format) + kSmallWarps * kSmallWarpBytes)};
}

static inline Plan plan_matmul_large(const ProductArgs& args, int format) {
  const uint32_t rows = static_cast<uint32_t>((end_tile(args) - first_tile(args) + kLargeWarps - 1) / kLargeWarps);
  const uint32_t tokens = static_cast<uint32_t>((args.x.rows + kLargeTokens - 1) / kLargeTokens);
  return {rows * tokens, 1, 1, 32 * kLargeWarps,
          static_cast<uint32_t>(table_bytes(format) + kLargeWarps * kPanelBytes + 2 * kLargeStageBytes)};
}

}  // namespace cuda
}  // namespace lutkern
