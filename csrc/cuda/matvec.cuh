// out[token, row] = sum over columns of weight[row, column] * x[token, column], x as int8 with a scale for 32 columns.
//
// Reads tiles (gpu/tile.h): lane = row, the warps of a block share the 256-column tiles of 32 rows.
//
//   for each row of tiles of this block: the sums of sums.cuh over its tiles; warp 0 adds the warps and stores 32 rows
//   before the first sum, while its weights are on their way: fill the table, stage x as integers (activations.cuh)
//
// LDG.128 of the next tile flies while this one is multiplied (dot.cuh: LDS of entries and of x, IDP4A). Filling the
// table and staging x is paid once for a block, that is for all its rows of tiles.
// The caller guarantees tiles, a plan of matvec_plan.h, stored_cols > 0, and that nothing writes x or the weight
// meanwhile.
#pragma once
#include "matvec_plan.h"
#include "sums.cuh"

namespace lutkern {
namespace cuda {

template <class Block>
LK_DEVICE void matvec(const ProductArgs& args, uint8_t* shared) {
  const int tiles = args.w.stored_cols / kTileCols;
  const BlockShape shape = block_shape(Table<Block>::kBytes, tiles, 1, threads() / 32, SumOfAll::kSums);
  uint8_t* staged = shared + shape.staged;
  uint8_t* segments = shared + shape.segments;
  const Dot<Block> dot(shared, lane());
  const int first = args.row_begin / kTileRows;
  const int tile_rows = (args.row_end + kTileRows - 1) / kTileRows - first;
  bool is_filled = false;
  for (int64_t token = block_y(); token < args.x.rows; token += blocks_y()) {
    bool is_staged = false;
    for (int64_t r = block_x(); r < tile_rows; r += blocks_x()) {
      SumOfAll sums = {{0.0f}};
      if (thread() == 0) store_segment(segments, 0, {args.w.data + (first + r) * args.w.row_bytes, 1.0f});
      barrier();
      for (int begin = 0; begin < tiles; begin += kStagedTiles) {
        const int end = begin + kStagedTiles < tiles ? begin + kStagedTiles : tiles;
        Walk<Block> walk;
        walk.begin({end - begin, 0, begin, begin, end, 1}, segments, lane());
        if (!is_filled) Table<Block>::fill(shared, thread(), threads());
        is_filled = true;
        if (!is_staged) {
          if (begin > 0) barrier();
          stage_floats(staged, args.x, token, begin, end - begin);
          barrier();
          is_staged = tiles <= kStagedTiles;
        }
        walk.run(dot, staged, sums);
      }
      add_warps(sums, shared + shape.sums);
      const int64_t row = (first + r) * kTileRows + lane();
      if (warp() == 0 && row >= args.row_begin && row < args.row_end) {
        args.out[token * args.out_stride + row] = sums.sum[0] * dot_unit<Block>();
      }
      barrier();
    }
  }
}

#define LUTKERN_MATVEC(name, Block)                                                                    \
  LK_KERNEL_BOUNDS(matvec_##name, ProductArgs, 32 * most_warps(static_cast<int>(FormatId::name)), 2) { \
    LK_DYNAMIC_SHARED(shared);                                                                         \
    matvec<Block>(args, shared);                                                                       \
  }
LUTKERN_CUDA_TILE_FORMATS(LUTKERN_MATVEC)
#undef LUTKERN_MATVEC

}  // namespace cuda
}  // namespace lutkern
