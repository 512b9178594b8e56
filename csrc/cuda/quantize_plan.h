// How quantize is launched: a warp has 256 columns of one row.
#pragma once
#include "arguments.h"
#include "plan.h"

namespace lutkern {
namespace cuda {

enum : int { kQuantizeWarps = 8, kQuantizeMostBlocks = 65536 };  // what is left over is looped over

static inline Plan plan_quantize(const QuantizeArgs& args, int) {
  const int64_t units = int64_t{args.x.rows} * (args.to.stride / kTileCols);
  const int64_t blocks = (units + kQuantizeWarps - 1) / kQuantizeWarps;
  return {static_cast<uint32_t>(blocks < kQuantizeMostBlocks ? blocks : int64_t{kQuantizeMostBlocks}), 1, 1,
          32 * kQuantizeWarps, 0};
}

}  // namespace cuda
}  // namespace lutkern
