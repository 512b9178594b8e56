// What a block of matvec.cuh and moe_one.cuh has in shared memory, and how many warps it has.
//
//   table | staged activations | segments | sums of the warps
#pragma once
#include "plan.h"

namespace lutkern {
namespace cuda {

enum : int {
  kStagedGroup = 48,               // bytes of 32 activations (activations.cuh)
  kStagedTile = 8 * kStagedGroup,  // of 256
  kStagedTiles = 64,               // at once: with the largest table and 256 segments that is 64 KB
  kLargestTable = 32768,
  kSegmentBytes = 16,
  kFewestWarps = 4,
  kMostBlocks = 65535  // in the second dimension of a grid
};

struct BlockShape {
  uint32_t staged;  // where the parts begin
  uint32_t segments;
  uint32_t sums;
  uint32_t bytes;
};

LK_FN constexpr int table_bytes(int format) {
  return format == static_cast<int>(FormatId::iq1_s) || format == static_cast<int>(FormatId::iq1_m)
             ? 16384
             : int{kLargestTable};
}

// x_tiles: of 256 columns, for all segments. warp_sums: numbers that a warp keeps for each row
LK_FN BlockShape block_shape(int table, int64_t x_tiles, int segments, uint32_t warps, int warp_sums) {
  const uint32_t tiles = static_cast<uint32_t>(x_tiles < kStagedTiles ? x_tiles : int64_t{kStagedTiles});
  BlockShape shape;
  shape.staged = static_cast<uint32_t>(table);
  shape.segments = shape.staged + tiles * kStagedTile;
  shape.sums = shape.segments + static_cast<uint32_t>(segments) * kSegmentBytes;
  shape.bytes = shape.sums + warps * kTileRows * 4 * static_cast<uint32_t>(warp_sums);
  return shape;
}

// Two blocks of the most warps leave a thread 72 registers, or 80 where its words need them.
LK_FN constexpr int most_warps(int format) {
  switch (format) {
    case static_cast<int>(FormatId::iq1_s):
    case static_cast<int>(FormatId::iq1_m):
    case static_cast<int>(FormatId::iq2_xxs):
      return 14;
    default:
      return 12;
  }
}

// Warps that share `items` tiles: the fewest that need no more rounds than `most` do
LK_FN uint32_t warps_for(int64_t items, int most) {
  const int64_t rounds = (items + most - 1) / most;
  const int64_t warps = rounds > 0 ? (items + rounds - 1) / rounds : 0;
  return static_cast<uint32_t>(warps < kFewestWarps ? int64_t{kFewestWarps} : warps);
}

}  // namespace cuda
}  // namespace lutkern
