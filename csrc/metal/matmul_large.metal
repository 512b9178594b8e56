// Products of 9 and more tokens: out[token, row] = sum over columns of weight[row, column] * x[token, column]
//
// Weights lie in tiles (gpu/tile.h); the arithmetic, its layouts and the operations that matter are in panels.metal. A
// threadgroup has 32 tokens and 4 rows of tiles, each of one simdgroup:
//
//   fill the table
//   for each tile of the columns: load the words of the lane's row
//     for each 32 columns of it:
//       barrier; x of these columns -> integers; barrier; acc += tile x
//
// One unpacking of 32 rows serves 32 tokens, one staging of x 128 rows. For 32 columns a lane has 1024 multiply-adds in
// the matrices; beside them about 250 operations (panels.metal) and 75 to stage x. So the matrices take three quarters
// of the time, whatever the format.
//
// Threadgroup memory: the table (iq1_m 16 KB), 2.6 KB of x, 6 KB of panels.
// The caller guarantees row_begin < row_end. With fewer simdgroups the rows of tiles are done in turns, to the same
// bits.
#pragma once
#include "panels.metal"

#if defined(LK_WEIGHT)

namespace lutkern {
namespace metal_kernels {

// 32 columns of n tokens from `first` on, by all threads of the threadgroup
static inline void stage_tokens(constant MatrixArgs& x, device const uchar* data, int first, int n, int column,
                                threadgroup uint4* to, Here here) {
  const uint units = 32 * tiles_for(n, 8);
  for (uint unit = here.thread_index; unit < units; unit += here.threads) {
    const int i = unit / 4;
    const int part = unit % 4;
    Numbers8 numbers = load_eight(x, data, i < n ? first + i : -1, column + 8 * part);
    const float scale = quantize8(numbers);
    put_staged<kLargeTokens>(numbers, scale, i, part, to);
  }
}

}  // namespace metal_kernels
}  // namespace lutkern

kernel void matmul_large(constant ProductArgs& args [[buffer(0)]], device const uchar* weight [[buffer(1)]],
                         device const uchar* x [[buffer(2)]], device float* out [[buffer(3)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint4 entries[Table<LK_WEIGHT>::kWords / 4];
  threadgroup uint4 staged[Staged<kLargeTokens>::kQuads];
  threadgroup uint4 panels[kLargeTiles * kPanelQuads];
  threadgroup uint* table = reinterpret_cast<threadgroup uint*>(entries);
  const Here here = {thread_index, threads.x, simdgroup, simdgroups, lane};
  const int first_token = group.x * kLargeTokens;
  const int n = min(args.x.rows - first_token, static_cast<int>(kLargeTokens));
  const int first_row = args.row_begin / kTileRows + group.y * kLargeTiles;
  const int end_row = tiles_for(args.row_end, kTileRows);
  Table<LK_WEIGHT>::fill(table, thread_index, threads.x);

  for (uint first = 0; first < kLargeTiles; first += simdgroups) {
    const int here_of_tiles = first + simdgroup;
    const int tile_row = first_row + here_of_tiles;
    const bool has_rows = here_of_tiles < kLargeTiles && tile_row < end_row;
    threadgroup uint4* panel = panels + (has_rows ? here_of_tiles : 0) * kPanelQuads;
    device const uchar* from = tiles_at(args.w, weight, 0, has_rows ? tile_row : first_row);
    float acc[kLargeTokens];
    LK_UNROLL
    for (int t = 0; t < kLargeTokens; ++t) acc[t] = 0.0f;
    for (int column = 0; column < args.w.cols; column += kTileCols) {
      Lane<LK_WEIGHT> row;
      if (has_rows) row.load(from, lane);
      from += Tile<LK_WEIGHT>::kBytes;
      for (int g = 0; g < 8 && column + 32 * g < args.w.cols; ++g) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        stage_tokens(args.x, x, first_token, n, column + 32 * g, staged, here);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (!has_rows) continue;
        Group w;
        unpack_group(row, g, table, w);
        multiply_group<kLargeTokens>(w, unit_of(row), staged, n, panel, lane, acc);
      }
    }
    const int r = tile_row * kTileRows + lane;
    if (!has_rows || r < args.row_begin || r >= args.row_end) continue;
    LK_UNROLL
    for (int t = 0; t < kLargeTokens; ++t) {
      if (t < n) out[(first_token + t) * args.out_stride + r] = acc[t];
    }
  }
}

#endif
