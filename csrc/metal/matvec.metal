// out[token, row] = sum over columns of weight[row, column] * x[token, column], x as int8 with a scale for 32 columns.
//
// Reads tiles (gpu/tile.h): lane = row. A threadgroup has two rows of tiles, which meet the same x; its SIMD groups
// share the 256-column tiles.
//
//   load the first tiles; fill the table
//   for each tile of this SIMD group: 256 columns of x to integers (activations.metal), sums of both rows (dot.metal)
//   add the SIMD groups in their order, store 64 rows
//
// What matters: loads of 16 bytes of each lane, a whole tile at once (1.6 to 3.5 KB), two of them on their way before
// the ones before are left: the SIMD groups of a core hide them for each other, so that nothing is kept ahead in
// registers. Beside the 640 to 1100 operations for a tile of a row: about 90 make x, for two rows; the table takes 60
// to 100 of each thread at 512 threads, while the first tiles are on their way.
//
// Operations for a codeword: dot.metal. The caller guarantees tiles, a plan of matvec_plan.h, stored_cols > 0, and that
// nothing writes x or the weight meanwhile.
#pragma once
#include "dot.metal"
#include "one_shape.h"

namespace lutkern {
namespace metal_kernels {

// Adds what the SIMD groups have of two rows of each lane, in their order. sums: 32 of each SIMD group, which may lie
// where x was staged.
static inline float2 add_simdgroups(float2 sum, threadgroup float2* sums, uint simdgroup, uint simdgroups, uint lane) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  sums[32 * simdgroup + lane] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float2 total = sums[lane];
  for (uint s = 1; s < simdgroups; ++s) total += sums[32 * s + lane];
  return total;
}

// Of `row` and, where there is another row of tiles, the row below it in that
static inline void store_rows(device float* out, float2 sum, int row, int begin, int end, bool has_other) {
  const int other = row + kTileRows;
  if (row >= begin && row < end) out[row] = sum.x;
  if (other >= begin && other < end && has_other) out[other] = sum.y;
}

}  // namespace metal_kernels
}  // namespace lutkern

#if defined(LK_WEIGHT)
kernel void matvec(constant ProductArgs& args [[buffer(0)]], device const uchar* weight [[buffer(1)]],
                   device const uchar* x [[buffer(2)]], device float* out [[buffer(3)]],
                   uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                   uint3 threads [[threads_per_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]], uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint4 entries[Table<LK_WEIGHT>::kWords / 4];
  threadgroup uint4 staged[kOneSimdgroups * kStagedWords];
  threadgroup uint4* own = staged + kStagedWords * simdgroup;
  threadgroup uint* table = reinterpret_cast<threadgroup uint*>(entries);

  const int tiles = args.w.stored_cols / kTileCols;
  const int tile_rows = (args.row_end + kTileRows - 1) / kTileRows;
  const int first_row = args.row_begin / kTileRows + kRowsTogether * static_cast<int>(group.x);
  const int other_row = first_row + 1 < tile_rows ? first_row + 1 : first_row;  // the same again, where there is none
  device const uchar* first = weight + first_row * args.w.row_bytes;
  device const uchar* other = weight + other_row * args.w.row_bytes;
  const int64_t x_row = static_cast<int64_t>(group.y) * args.x.row_stride;

  Dot<LK_WEIGHT> a;
  Dot<LK_WEIGHT> b;
  Numbers8 numbers;
  int tile = static_cast<int>(simdgroup);
  if (tile < tiles) {
    a.load_tile(first, tile, lane);
    b.load_tile(other, tile, lane);
    numbers = load_numbers8(args.x, x, x_row, tile, lane);
  }
  Table<LK_WEIGHT>::fill(table, thread_index, threads.x);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  float2 sum = float2(0.0f);
  while (tile < tiles) {
    const float scale = quantize8(numbers);
    stage8(own, numbers, scale, Dot<LK_WEIGHT>::kHasSums, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    dot_tile(a, b, table, table, own);
    sum.x = fma(a.scale(), a.sum, sum.x);
    sum.y = fma(b.scale(), b.sum, sum.y);
    tile += static_cast<int>(simdgroups);
    if (tile < tiles) {
      a.load_tile(first, tile, lane);
      b.load_tile(other, tile, lane);
      numbers = load_numbers8(args.x, x, x_row, tile, lane);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }

  sum = add_simdgroups(sum, reinterpret_cast<threadgroup float2*>(staged), simdgroup, simdgroups, lane);
  if (simdgroup > 0) return;
  store_rows(out + static_cast<int64_t>(group.y) * args.out_stride, sum, kTileRows * first_row + static_cast<int>(lane),
             args.row_begin, args.row_end, other_row > first_row);
}
#endif
