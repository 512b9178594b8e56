// The launch of dequantize: each SIMD group takes tile after tile of its threadgroup.
#pragma once
#include "dequantize_shape.h"
#include "plan.h"

namespace lutkern {
namespace metal {

static inline Plan plan_dequantize(const metal_args::DequantizeArgs& args) {
  const int64_t tiles = metal_args::dequantize_tiles(args.w);
  const int64_t groups = (tiles + metal_args::kDequantizeTiles - 1) / metal_args::kDequantizeTiles;
  return {static_cast<uint32_t>(groups), 1, 1, 32 * metal_args::kDequantizeSimdgroups};
}

}  // namespace metal
}  // namespace lutkern
