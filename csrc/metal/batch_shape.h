// Sizes of the kernels for several tokens, read by the kernels and by their plans.
#pragma once
#include "arguments.h"

namespace lutkern {
namespace metal_args {

enum : int {
  kSmallTokens = 8,
  kSmallSimdgroups = 16,  // of a threadgroup: they split the columns
  kLargeTokens = 32,
  kLargeTiles = 4,  // rows of tiles of a threadgroup, one for each simdgroup
  kUpTiles = 4,
  kUpGroups = 4,      // of 32 columns, staged at once
  kDownSplits = 4,    // parts of the columns, one for each simdgroup
  kBatchTokens = 16,  // pairs of one expert that meet its weights together
  kBatchList = 512,   // pairs that a threadgroup lists at once
  kDownGroups = 160,  // threadgroups that moe_down_batch wants: two for each core of a large device
  kDownTokens = 64    // tokens that it leaves together all the same
};

LK_FN int tiles_for(int numbers, int size) { return numbers / size + (numbers % size != 0 ? 1 : 0); }

// Tokens of a threadgroup of moe_down_batch: all, unless the rows are too few to fill the device. Each part of the
// tokens unpacks the weights that it needs by itself.
LK_FN int down_tokens(int tokens, int rows) {
  const int wanted = tiles_for(kDownGroups, tiles_for(rows, kTileRows));
  const int most = tiles_for(tokens, kDownTokens);
  return tiles_for(tokens, wanted < most ? wanted : most);
}

}  // namespace metal_args
}  // namespace lutkern
