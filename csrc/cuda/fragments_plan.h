// Sizes of what the kernels of fragments.cuh keep in shared memory, for the kernels and for their plans.
#pragma once
#include "arguments.h"
#include "block_plan.h"

namespace lutkern {
namespace cuda {

enum : int {
  kPanelCodes = kTileRows * 64,
  kPanelBytes = kPanelCodes + 4 * kTileRows * 4,  // of A: 64 columns of a tile and their scales
  kHalfTile = 128,                                // columns of a panel of B
  kPanelsBytesPerToken = kTileCols + kTileCols / kGroup * 4,
  kSumStride = kTileRows + 4  // floats from token to token: lanes that store together meet all banks
};

}  // namespace cuda
}  // namespace lutkern
