// How the kernels of moe_batch.metal are launched.
#pragma once
#include "batch_shape.h"
#include "plan.h"

namespace lutkern {
namespace metal {

// In y an expert or, where pairs are fewer, a pair: the first pair of its expert works.
static inline Plan plan_moe_up_batch(const metal_args::MoeArgs& args) {
  using namespace metal_args;
  const int64_t pairs = int64_t{args.x.rows} * args.k;
  const int64_t y = pairs < args.up.experts ? pairs : args.up.experts;
  const int tiles = tiles_for(args.up.rows, kTileRows);
  return {static_cast<uint32_t>(tiles_for(tiles, kUpTiles)), static_cast<uint32_t>(y), 1, 32 * kUpTiles};
}

static inline Plan plan_moe_down_batch(const metal_args::MoeArgs& args) {
  using namespace metal_args;
  const int tokens = down_tokens(args.x.rows, args.down.rows);
  return {static_cast<uint32_t>(tiles_for(args.down.rows, kTileRows)),
          static_cast<uint32_t>(tiles_for(args.x.rows, tokens)), 1, 32 * kDownSplits};
}

}  // namespace metal
}  // namespace lutkern
