// The launch of matvec: a threadgroup for two rows of tiles and a token.
#pragma once
#include "one_shape.h"
#include "plan.h"

namespace lutkern {
namespace metal {

// As many SIMD groups as there are pieces of work, at most `most`
static inline uint32_t threads_for(int64_t pieces, int most) {
  const int64_t groups = pieces < most ? (pieces < 1 ? 1 : pieces) : int64_t{most};
  return static_cast<uint32_t>(32 * groups);
}

static inline Plan plan_matvec(const metal_args::ProductArgs& args) {
  const int first = args.row_begin / metal_args::kTileRows;
  const int tile_rows = (args.row_end + metal_args::kTileRows - 1) / metal_args::kTileRows - first;
  const int groups = (tile_rows + metal_args::kRowsTogether - 1) / metal_args::kRowsTogether;
  return {static_cast<uint32_t>(groups > 0 ? groups : 0), static_cast<uint32_t>(args.x.rows), 1,
          threads_for(args.w.stored_cols / metal_args::kTileCols, metal_args::kOneSimdgroups)};
}

}  // namespace metal
}  // namespace lutkern
