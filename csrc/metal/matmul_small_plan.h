// How the kernel of matmul_small.metal is launched.
#pragma once
#include "batch_shape.h"
#include "plan.h"

namespace lutkern {
namespace metal {

static inline Plan plan_matmul_small(const metal_args::ProductArgs& args) {
  using namespace metal_args;
  const int tiles = tiles_for(args.row_end, kTileRows) - args.row_begin / kTileRows;
  return {static_cast<uint32_t>(tiles), 1, 1, 32 * kSmallSimdgroups};
}

}  // namespace metal
}  // namespace lutkern
