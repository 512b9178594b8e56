// to_tiles: blocks to tiles; to_blocks: tiles to blocks. The same information: gpu/tile_blocks.h tells how.
//
// Blocks are the rows of the GGUF file, 2-byte aligned; tiles are drawn in gpu/tile.h. A block of threads has 32 rows and
// kRepackWarps blocks of each, one warp for a column of blocks, one lane for a row.
//
//   to_tiles    rows of blocks -> shared memory, 2 bytes a lane, lanes side by side; barrier
//               block of this lane = shared memory; words_of(block) -> tile, 16 bytes a lane
//   to_blocks   the same backwards
//
// Loads and stores of global memory are coalesced on both sides: this, not the bits, is what a copy costs. Rows that
// the weight does not have become zeros and are left out on the way back.
// The caller guarantees that blocks are at a multiple of 2 and tiles at a multiple of 16 bytes, and that they do not
// overlap.
#pragma once
#include "lane.cuh"
#include "repack_plan.h"

namespace lutkern {
namespace cuda {

// What a block of threads works on
struct RepackPart {
  int64_t first_row;  // of 32, counted over all experts
  int rows;           // of them the weight has
  int64_t tile;       // the first, of all
  int block;          // the first of the row
  int blocks;
};

LK_DEVICE RepackPart repack_part(const RepackArgs& args, int64_t item) {
  const int parts = (args.row_blocks + kRepackWarps - 1) / kRepackWarps;
  const int64_t tile_rows = (static_cast<int64_t>(args.rows) + kTileRows - 1) / kTileRows;
  const int64_t tile_row = item / parts;  // of all experts
  const int64_t in_expert = tile_row % tile_rows * kTileRows;
  RepackPart part;
  part.first_row = tile_row / tile_rows * args.rows + in_expert;
  part.rows = static_cast<int>(args.rows - in_expert < kTileRows ? args.rows - in_expert : int64_t{kTileRows});
  part.block = static_cast<int>(item % parts) * kRepackWarps;
  part.blocks = args.row_blocks - part.block < kRepackWarps ? args.row_blocks - part.block : int{kRepackWarps};
  part.tile = tile_row * args.row_blocks + part.block;
  return part;
}

template <class Block>
LK_DEVICE int64_t part_offset(const RepackArgs& args, const RepackPart& part, int row) {
  return ((part.first_row + row) * args.row_blocks + part.block) * Block::kBlockBytes;
}

template <class Block>
LK_DEVICE void store_words(uint8_t* tile, const LaneWords<Block>& words) {
  using T = Tile<Block>;
  constexpr int kTail = 4 * T::kChunks;
  const int l = static_cast<int>(lane());
  const uint32_t* w = words.word;
#pragma unroll
  for (int i = 0; i < kTail; i += 4) {
    store16(tile + word_offset<T>(l, i), Words4{w[i], w[i + 1], w[i + 2], w[i + 3]});
  }
#pragma unroll
  for (int i = kTail; i < kTail + T::kFours; ++i) store4(tile + word_offset<T>(l, i), w[i]);
#pragma unroll
  for (int i = kTail + T::kFours; i < T::kWords; i += 2) store8(tile + word_offset<T>(l, i), Words2{w[i], w[i + 1]});
  if (T::kHasHalf) store2(tile + T::kHalfAt + 2 * l, words.half);
}

template <class Block>
LK_DEVICE void to_tiles(const RepackArgs& args, uint8_t* shared) {
  constexpr uint32_t kStride = repack_stride(Block::kBlockBytes);
  const int64_t items = repack_items(args);
  for (int64_t item = block_x(); item < items; item += blocks_x()) {
    const RepackPart part = repack_part(args, item);
    for (int row = static_cast<int>(warp()); row < part.rows; row += kRepackWarps) {
      const uint8_t* from = args.from + part_offset<Block>(args, part, row);
      for (int i = static_cast<int>(2 * lane()); i < part.blocks * Block::kBlockBytes; i += 64) {
        store2(shared + kStride * row + i, constant_load2(from + i));
      }
    }
    barrier();
    const int column = static_cast<int>(warp());
    if (column < part.blocks) {
      Block block{};
      if (static_cast<int>(lane()) < part.rows) {
        const uint8_t* from = shared + kStride * lane() + Block::kBlockBytes * column;
        uint8_t* bytes = reinterpret_cast<uint8_t*>(&block);
#pragma unroll
        for (int i = 0; i < Block::kBlockBytes; i += 2) put_u16(bytes + i, load2(from + i));
      }
      store_words(args.to + (part.tile + column) * Tile<Block>::kBytes, words_of(block));
    }
    barrier();
  }
}

template <class Block>
LK_DEVICE void to_blocks(const RepackArgs& args, uint8_t* shared) {
  constexpr uint32_t kStride = repack_stride(Block::kBlockBytes);
  const int64_t items = repack_items(args);
  for (int64_t item = block_x(); item < items; item += blocks_x()) {
    const RepackPart part = repack_part(args, item);
    const int column = static_cast<int>(warp());
    if (column < part.blocks) {
      LaneWords<Block> words;
      load_words(words, args.from + (part.tile + column) * Tile<Block>::kBytes, lane());
      const Block block = block_of(words);
      const uint8_t* bytes = reinterpret_cast<const uint8_t*>(&block);
      uint8_t* to = shared + kStride * lane() + Block::kBlockBytes * column;
#pragma unroll
      for (int i = 0; i < Block::kBlockBytes; i += 2) store2(to + i, load_u16(bytes + i));
    }
    barrier();
    for (int row = static_cast<int>(warp()); row < part.rows; row += kRepackWarps) {
      uint8_t* to = args.to + part_offset<Block>(args, part, row);
      for (int i = static_cast<int>(2 * lane()); i < part.blocks * Block::kBlockBytes; i += 64) {
        store2(to + i, load2(shared + kStride * row + i));
      }
    }
    barrier();
  }
}

#define LUTKERN_REPACK(name, Block)         \
  LK_KERNEL(to_tiles_##name, RepackArgs) {  \
    LK_DYNAMIC_SHARED(shared);              \
    to_tiles<Block>(args, shared);          \
  }                                         \
  LK_KERNEL(to_blocks_##name, RepackArgs) { \
    LK_DYNAMIC_SHARED(shared);              \
    to_blocks<Block>(args, shared);         \
  }
LUTKERN_CUDA_TILE_FORMATS(LUTKERN_REPACK)
#undef LUTKERN_REPACK

}  // namespace cuda
}  // namespace lutkern
