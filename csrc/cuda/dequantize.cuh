// out[expert, row, column] = scale * code, as float32, float16 or bfloat16: equal to formats/ to the bit; the halves
// are that float32 rounded to nearest, halves to even.
//
// Reads tiles (gpu/tile.h): lane = row. A warp takes tile after tile; table in shared memory (lane.cuh).
//
//   for each 32 columns: four codewords to signed bytes, bytes to float, times scale16, to a square in shared memory
//                        for each row: 32 lanes store 32 columns
//
// PRMT or the nibble table make the bytes; the square turns rows of lanes into rows of memory, so that stores are
// coalesced. It writes 16 times the bytes that it reads: stores are the cost.
// The caller guarantees tiles and a plan of dequantize_plan.h.
#pragma once
#include "dequantize_plan.h"
#include "lane.cuh"
#include "numbers.cuh"

namespace lutkern {
namespace cuda {

// 32 columns of a lane's row into its row of the square
template <class Block>
LK_DEVICE void put_numbers(const Lane<Block>& words, const Table<Block>& table, int group, uint8_t* row) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t codes[2];
    words.codes(4 * group + k, table, codes[0], codes[1]);
    const float scale = words.scale16(2 * group + k / 2);
    for (int j = 0; j < 8; ++j) {
      const int code = static_cast<int8_t>((codes[j / 4] >> (8 * (j % 4))) & 0xffu);
      store4(row + 4 * (8 * k + j), bits_of_float(scale * static_cast<float>(code)));
    }
  }
}

template <class Block>
LK_DEVICE void dequantize_tile(const DequantizeArgs& args, const Table<Block>& table, int64_t item, uint8_t* square) {
  const WeightArgs& w = args.w;
  const int tiles = w.stored_cols / kTileCols;
  const int tile_rows = (w.rows + kTileRows - 1) / kTileRows;
  const int64_t tile_row = item / tiles;
  const int64_t expert = tile_row / tile_rows;
  const int first_row = static_cast<int>(tile_row % tile_rows) * kTileRows;
  const int rows = w.rows - first_row < kTileRows ? w.rows - first_row : int{kTileRows};
  const int tile = static_cast<int>(item % tiles);
  Lane<Block> words;
  words.load(w.data + expert * w.expert_bytes + first_row / kTileRows * w.row_bytes +
                 static_cast<int64_t>(tile) * Tile<Block>::kBytes,
             static_cast<int>(lane()));
#pragma unroll
  for (int g = 0; g < 8; ++g) {
    put_numbers(words, table, g, square + 4 * kSquareRow * lane());
    warp_barrier();
    const int column = kTileCols * tile + kGroup * g + static_cast<int>(lane());
    const int64_t first = (expert * w.rows + first_row) * w.cols + column;
#pragma unroll 1
    for (int r = 0; r < rows && column < w.cols; ++r) {
      store_number(args.out, args.dtype, first + static_cast<int64_t>(r) * w.cols,
                   float_of_bits(load4(square + 4 * (kSquareRow * r + lane()))));
    }
    warp_barrier();
  }
}

template <class Block>
LK_DEVICE void dequantize(const DequantizeArgs& args, uint8_t* shared) {
  Table<Block>::fill(shared, thread(), threads());
  const Table<Block> table(shared, lane());
  uint8_t* square = shared + Table<Block>::kBytes + kSquareBytes * warp();
  barrier();
  const int64_t tiles = dequantize_tiles(args.w);
  for (int64_t item = block_x() * kDequantizeWarps + warp(); item < tiles; item += blocks_x() * kDequantizeWarps) {
    dequantize_tile<Block>(args, table, item, square);
  }
}

#define LUTKERN_DEQUANTIZE(name, Block)          \
  LK_KERNEL(dequantize_##name, DequantizeArgs) { \
    LK_DYNAMIC_SHARED(shared);                   \
    dequantize<Block>(args, shared);             \
  }
LUTKERN_CUDA_TILE_FORMATS(LUTKERN_DEQUANTIZE)
#undef LUTKERN_DEQUANTIZE

}  // namespace cuda
}  // namespace lutkern
