// How the kernel of matmul_large.metal is launched.
#pragma once
#include "batch_shape.h"
#include "plan.h"

namespace lutkern {
namespace metal {

// Tokens first: threadgroups that run together read the same weights.
static inline Plan plan_matmul_large(const metal_args::ProductArgs& args) {
  using namespace metal_args;
  const int tiles = tiles_for(args.row_end, kTileRows) - args.row_begin / kTileRows;
  return {static_cast<uint32_t>(tiles_for(args.x.rows, kLargeTokens)),
          static_cast<uint32_t>(tiles_for(tiles, kLargeTiles)), 1, 32 * kLargeTiles};
}

}  // namespace metal
}  // namespace lutkern
