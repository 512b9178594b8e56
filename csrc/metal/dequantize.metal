// out[expert, row, column] = scale * code, as float32, float16 or bfloat16: equal to formats/ to the bit; the halves
// are that float32 rounded to nearest, halves to even.
//
// Reads tiles (gpu/tile.h): lane = row. A SIMD group takes tile after tile of those of its threadgroup; table in
// threadgroup memory (lane.metal).
//
//   for each 16 columns: two codewords to integers, times scale16, to a square in threadgroup memory
//                        for each two rows: 32 lanes store 16 columns of each
//
// The square turns rows of lanes into rows of memory, so that stores are coalesced; its odd stride lets columns meet no
// bank twice. It writes up to 16 times the bytes that it reads: stores are the cost. About 40 operations for a
// codeword: 15 to 30 of lane.metal, 8 products, and for each 4 bytes that are stored 2. The caller guarantees tiles and
// a plan of dequantize_plan.h.
#pragma once
#include "dequantize_shape.h"
#include "lane.metal"

#if defined(LK_WEIGHT)
namespace lutkern {
namespace metal_kernels {

// 16 columns of a lane's row into its row of the square
template <class Block>
static inline void put_numbers(const thread Lane<Block>& row, int g, threadgroup const uint* table,
                               threadgroup float* to) {
  const float scale = row.scale16(g);
  LK_UNROLL
  for (int k = 0; k < 2; ++k) {
    half2 code[4];
    row.codes(2 * g + k, table, code);
    LK_UNROLL
    for (int j = 0; j < 4; ++j) {
      to[8 * k + 2 * j] = scale * static_cast<float>(code[j].x);
      to[8 * k + 2 * j + 1] = scale * static_cast<float>(code[j].y);
    }
  }
}

// Tile `item` of those of all experts
template <class Block>
static inline void dequantize_tile(constant DequantizeArgs& args, device const uchar* weight, device void* out,
                                   int64_t item, threadgroup const uint* table, threadgroup float* square, uint lane) {
  const int tiles = args.w.stored_cols / kTileCols;
  const int tile_rows = (args.w.rows + kTileRows - 1) / kTileRows;
  const int64_t tile_row = item / tiles;
  const int64_t expert = tile_row / tile_rows;
  const int first_row = static_cast<int>(tile_row % tile_rows) * kTileRows;
  const int rows = args.w.rows - first_row < kTileRows ? args.w.rows - first_row : static_cast<int>(kTileRows);
  const int tile = static_cast<int>(item % tiles);
  Lane<Block> row;
  row.load(weight + expert * args.w.expert_bytes + first_row / kTileRows * args.w.row_bytes +
               static_cast<int64_t>(tile) * Tile<Block>::kBytes,
           lane);
  const int half_of_lanes = static_cast<int>(lane / 16);
  const int column_of_lane = static_cast<int>(lane % 16);
  LK_UNROLL
  for (int g = 0; g < 16; ++g) {
    put_numbers(row, g, table, square + kSquareRow * lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    const int column = kTileCols * tile + 16 * g + column_of_lane;
    const int64_t first = (expert * args.w.rows + first_row) * args.w.cols + column;
    for (int r = half_of_lanes; r < rows && column < args.w.cols; r += 2) {
      store_number(out, args.dtype, first + static_cast<int64_t>(r) * args.w.cols,
                   square[kSquareRow * r + column_of_lane]);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
}

}  // namespace metal_kernels
}  // namespace lutkern

kernel void dequantize(constant DequantizeArgs& args [[buffer(0)]], device const uchar* weight [[buffer(1)]],
                       device uchar* out [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                       uint thread_index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint4 entries[Table<LK_WEIGHT>::kWords / 4];
  threadgroup float squares[kDequantizeSimdgroups * kSquareNumbers];
  threadgroup uint* table = reinterpret_cast<threadgroup uint*>(entries);
  Table<LK_WEIGHT>::fill(table, thread_index, threads.x);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int64_t first = static_cast<int64_t>(group.x) * kDequantizeTiles;
  const int64_t tiles = dequantize_tiles(args.w);
  const int64_t end = tiles - first < kDequantizeTiles ? tiles : first + kDequantizeTiles;
  for (int64_t item = first + simdgroup; item < end; item += simdgroups) {
    dequantize_tile<LK_WEIGHT>(args, weight, out, item, table, squares + kSquareNumbers * simdgroup, lane);
  }
}
#endif
