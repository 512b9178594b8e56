// The launches of moe_up and moe_down: a threadgroup for 32 rows of one pair, or 64 rows of one token. k is at most
// kMostSlots.
#pragma once
#include "matvec_plan.h"

namespace lutkern {
namespace metal {

static inline Plan plan_moe_up(const metal_args::MoeArgs& args) {
  const int64_t groups = (int64_t{args.up.rows} + metal_args::kTileRows - 1) / metal_args::kTileRows;
  return {static_cast<uint32_t>(groups), static_cast<uint32_t>(int64_t{args.x.rows} * args.k), 1,
          threads_for(args.up.stored_cols / metal_args::kTileCols, metal_args::kUpSimdgroups)};
}

static inline Plan plan_moe_down(const metal_args::MoeArgs& args) {
  const int64_t groups = (int64_t{args.down.rows} + metal_args::kRowsOfGroup - 1) / metal_args::kRowsOfGroup;
  return {static_cast<uint32_t>(groups), static_cast<uint32_t>(args.x.rows), 1,
          threads_for(int64_t{args.k} * (args.down.stored_cols / metal_args::kTileCols), metal_args::kOneSimdgroups)};
}

}  // namespace metal
}  // namespace lutkern
