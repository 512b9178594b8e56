// The plans and the tiles of csrc/metal for tests in Python: liblutkern_metal_plans. 0 is fine; -1: there is no such kernel
// or format.
#include "metal/plans.h"

#include <string.h>

#include "gpu/tile_blocks.h"

namespace {

using lutkern::FormatId;
using lutkern::gpu::kTileRows;
using lutkern::gpu::Tile;

template <class Block>
void encode_rows(const uint8_t* blocks, int64_t rows, int64_t row_blocks, uint8_t* tiles) {
  const Block nothing = {};
  for (int64_t row = 0; row < (rows + kTileRows - 1) / kTileRows * kTileRows; ++row) {
    for (int64_t i = 0; i < row_blocks; ++i) {
      Block block = nothing;
      if (row < rows) memcpy(&block, blocks + (row * row_blocks + i) * int64_t{sizeof(Block)}, sizeof(Block));
      uint8_t* tile = tiles + (row / kTileRows * row_blocks + i) * Tile<Block>::kBytes;
      lutkern::gpu::encode(block, tile, static_cast<int>(row % kTileRows));
    }
  }
}

}  // namespace

#define LK_EXPORT extern "C" __attribute__((visibility("default")))

// plan: threadgroups in x, y and z, threads of one
LK_EXPORT int lk_metal_plan(const char* kernel, const void* args, size_t args_bytes, uint32_t plan[4]) {
  for (int i = 0; i < static_cast<int>(lutkern::metal::KernelId::count); ++i) {
    if (strcmp(kernel, lutkern::metal::kKernelName[i]) != 0) continue;
    if (args_bytes != static_cast<size_t>(lutkern::metal::kKernelArgsBytes[i])) return -1;
    const lutkern::metal::Plan found = lutkern::metal::plan_of(static_cast<lutkern::metal::KernelId>(i), args);
    const uint32_t numbers[4] = {found.groups_x, found.groups_y, found.groups_z, found.threads};
    memcpy(plan, numbers, sizeof(numbers));
    return 0;
  }
  return -1;
}

// Of a tile; 0: the format has none
LK_EXPORT int lk_metal_tile_bytes(int format) { return lutkern::gpu::tile_bytes(static_cast<FormatId>(format)); }

// Rows of blocks of 256 to rows of tiles
LK_EXPORT int lk_metal_tiles(int format, const uint8_t* blocks, int64_t rows, int64_t row_blocks, uint8_t* tiles) {
  switch (static_cast<FormatId>(format)) {
#define LUTKERN_ENCODE(name, Block)                               \
  case FormatId::name:                                            \
    encode_rows<lutkern::Block>(blocks, rows, row_blocks, tiles); \
    return 0;
    LUTKERN_GPU_TILE_FORMATS(LUTKERN_ENCODE)
#undef LUTKERN_ENCODE
    default:
      return -1;
  }
}
