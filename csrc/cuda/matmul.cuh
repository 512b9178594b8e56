// Products of 2 and more tokens: out[token, row] = sum over columns of weight[row, column] * x[token, column]
//
// Weights lie in tiles (gpu/tile.h); the arithmetic, its layouts and the instructions that matter are in fragments.cuh.
//
// matmul_small, 2 to 8 tokens: a block has one or two rows of tiles, its eight warps split the columns:
//
//   for each tile of the warp: x of its 256 columns -> int8 -> panel of the warp;  for each row of tiles: acc += tile x
//   sums of the warps meet in shared memory, in the order of the warps
//
// No barrier of the block stands in the loop, and a tile's words are loaded while the one before is multiplied. A warp
// quantises 8 tokens in about 560 instructions and multiplies a tile of iq1_m in about 990: hence two rows of tiles
// where there are enough of them.
//
// matmul_large: a block has 64 tokens and 4 rows of tiles, each of one warp; x was quantised before. x of 128 columns
// comes by copies that run beside (LDGSTS), one stage ahead:
//
//   for each 128 columns: wait; barrier; copy the next 128; for each 64 of them: unpack, 8 x 2 x 2 IMMA, 12 (20) each
//
// One unpacking of 32 rows serves 64 tokens: of 64 columns about 100 instructions beside 32 IMMA.16832 (64 IMMA.16816)
// with 16 (12) instructions for each, all counted in code for sm_90a.
//
// The caller guarantees: row_begin < row_end; small: at most 8 tokens, and xq is not read; large: xq is x, codes and
// scales at multiples of 16.
#pragma once
#include "fragments.cuh"
#include "matmul_plan.h"

namespace lutkern {
namespace cuda {

// ---- few tokens ----

template <class Block>
LK_DEVICE const uint8_t* tile_of(const WeightArgs& w, int64_t row_of_tiles, int tile) {
  return w.data + row_of_tiles * w.row_bytes + int64_t{tile} * Tile<Block>::kBytes;
}

LK_DEVICE int tiles_of_row(const WeightArgs& w) { return (w.cols + kTileCols - 1) / kTileCols; }

// out of kTiles rows of tiles from `first` on: all threads of the block, after the sums of all warps are stored.
template <int kTiles>
LK_DEVICE void add_warps(const ProductArgs& args, int first, const uint8_t* shared) {
  const int tokens = args.x.rows;
  for (int unit = static_cast<int>(warp()); unit < kTiles * tokens; unit += kSmallWarps) {
    const int r = unit / tokens, token = unit % tokens;
    const int row = (first + r) * kTileRows + static_cast<int>(lane());
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kSmallWarps; ++w) {
      const float* sums = reinterpret_cast<const float*>(shared + w * kSmallWarpBytes);
      sum += load_float(sums + (r * kSmallTokens + token) * kSumStride + static_cast<int>(lane()));
    }
    if (row >= args.row_begin && row < args.row_end) {
      store4(args.out + token * args.out_stride + row, bits_of_float(sum));
    }
  }
}

template <class Block, int kTiles>
LK_DEVICE void matmul_small(const ProductArgs& args, const Table<Block>& table, uint8_t* shared) {
  const int first = first_tile(args) + static_cast<int>(block_x()) * kTiles;
  const int n = end_tile(args) - first < kTiles ? end_tile(args) - first : kTiles;
  const int tiles = tiles_of_row(args.w);
  const bool whole_words = has_whole_words(args.x);
  uint8_t* panel = shared + warp() * kSmallWarpBytes;
  const PanelsB x = panels_at(panel + kPanelBytes, kSmallTokens);
  clear_shared(panel + kPanelBytes, kSmallTokens * kPanelsBytesPerToken, lane(), 32);
  float acc[kTiles][2][1][4];
  for (int r = 0; r < kTiles; ++r) clear(acc[r]);
  warp_barrier();

  int tile = static_cast<int>(warp());
  LaneWords<Block> words;
  if (tile < tiles) load_words(words, tile_of<Block>(args.w, first, tile), lane());
  for (; tile < tiles; tile += kSmallWarps) {
    for (int token = 0; token < args.x.rows; ++token) {
      stage_row(args.x, whole_words, token, tile * kTileCols, x, static_cast<uint32_t>(token));
    }
    warp_barrier();
#pragma unroll 1
    for (int r = 0; r < kTiles; ++r) {
      if (r < n) {
        const bool down = r + 1 < n;  // then comes the next row of tiles, else the next tile of the first
        const int after = down ? tile : tile + kSmallWarps;
        const uint8_t* next = after < tiles ? tile_of<Block>(args.w, first + (down ? r + 1 : 0), after) : nullptr;
        multiply_tile(words, next, table, panel, StagedHalves{x, 1}, acc[0]);
      }
      if constexpr (kTiles == 2) {  // the accumulators take turns, so that the loop is not unrolled
        for (int i = 0; i < 8; ++i) {
          const float turn = acc[0][i / 4][0][i % 4];
          acc[0][i / 4][0][i % 4] = acc[1][i / 4][0][i % 4];
          acc[1][i / 4][0][i % 4] = turn;
        }
      }
    }
  }
  float* sums = reinterpret_cast<float*>(panel);
  for (int r = 0; r < kTiles; ++r) store_sums(acc[r], 1, sums + r * kSmallTokens * kSumStride);
  barrier();
  add_warps<kTiles>(args, first, shared);
}

template <class Block>
LK_DEVICE void matmul_small(const ProductArgs& args, uint8_t* shared) {
  static_assert(2 * kSmallTokens * kSumStride * 4 <= kSmallWarpBytes, "sums take the place of the panels");
  fill_codes<Block>(shared);
  barrier();
  const Table<Block> table(shared, lane());
  if (small_tiles(args) == 1) {
    matmul_small<Block, 1>(args, table, shared + Table<Block>::kBytes);
  } else {
    matmul_small<Block, 2>(args, table, shared + Table<Block>::kBytes);
  }
}

// ---- many tokens ----

// The tokens of a block and where 128 columns of them go: two stages, used in turn.
struct LargeStages {
  const ProductArgs& args;
  uint8_t* shared;
  int64_t first;  // token
  int tokens;

  LK_MEMBER uint8_t* codes(int half) const { return shared + half % 2 * kLargeStageBytes; }
  LK_MEMBER float* scales(int half) const { return reinterpret_cast<float*>(codes(half) + kLargeTokens * kHalfTile); }

  LK_MEMBER void copy(int half) const {
    for (int i = static_cast<int>(thread()); i < 8 * tokens; i += 32 * kLargeWarps) {
      const int8_t* from = args.xq.q + (first + i / 8) * args.xq.stride + int64_t{half} * kHalfTile + 16 * (i % 8);
      copy16_async(codes(half) + place_in_b(static_cast<uint32_t>(i / 8), static_cast<uint32_t>(i % 8)), from);
    }
    copy_commit();
  }

  // Scales wait in registers until their place is free: one token for each of the first threads.
  LK_MEMBER Words4 load_scales(int half) const {
    if (static_cast<int>(thread()) >= tokens) return {0, 0, 0, 0};
    return constant_load16(args.xq.scale + (first + thread()) * (args.xq.stride / kGroup) + 4 * half);
  }
  LK_MEMBER void store_scales(int half, const Words4& v) const {
    if (thread() >= kLargeTokens) return;
    float* to = scales(half) + thread();
    store4(to, v.x);
    store4(to + kLargeTokens, v.y);
    store4(to + 2 * kLargeTokens, v.z);
    store4(to + 3 * kLargeTokens, v.w);
  }
};

// The half tiles one after another, for multiply_tile: all threads of the block come.
struct LargeHalves {
  const LargeStages& x;
  int tile;
  int tiles;
  Words4& scales;  // of the half after the one that was given last

  LK_MEMBER PanelB operator()(int i) const {
    const int half = 2 * tile + i;
    if (half > 0) x.store_scales(half, scales);
    copy_wait<0>();
    barrier();
    if (half + 1 < 2 * tiles) {
      x.copy(half + 1);
      scales = x.load_scales(half + 1);
    }
    return {x.codes(half), x.scales(half), kLargeTokens, (x.tokens + 7) / 8};
  }
};

template <class Block>
LK_DEVICE void matmul_large(const ProductArgs& args, uint8_t* shared) {
  const int64_t blocks = (args.x.rows + kLargeTokens - 1) / kLargeTokens;
  const int64_t first_token = block_x() % blocks * kLargeTokens;
  const int row = first_tile(args) + static_cast<int>(block_x() / blocks) * kLargeWarps + static_cast<int>(warp());
  const int last = end_tile(args) - 1;
  uint8_t* panel = shared + Table<Block>::kBytes + warp() * kPanelBytes;
  uint8_t* stages = shared + Table<Block>::kBytes + kLargeWarps * kPanelBytes;
  const int64_t left = args.x.rows - first_token;
  const LargeStages x = {args, stages, first_token,
                         static_cast<int>(left < kLargeTokens ? left : int64_t{kLargeTokens})};
  fill_codes<Block>(shared);
  clear_shared(stages, 2 * kLargeStageBytes, thread(), threads());
  barrier();
  const Table<Block> table(shared, lane());
  const int tiles = tiles_of_row(args.w);
  const int row_here = row < last ? row : last;  // a warp without rows follows the last one and writes nothing
  float acc[2][kLargeTokens / 8][4];
  clear(acc);
  x.copy(0);
  x.store_scales(0, x.load_scales(0));
  Words4 scales = {0, 0, 0, 0};
  LaneWords<Block> words;
  load_words(words, tile_of<Block>(args.w, row_here, 0), lane());
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    const uint8_t* next = tile + 1 < tiles ? tile_of<Block>(args.w, row_here, tile + 1) : nullptr;
    multiply_tile(words, next, table, panel, LargeHalves{x, tile, tiles, scales}, acc);
  }
  if (row != row_here) return;
#pragma unroll
  for (int n = 0; n < kLargeTokens / 8; ++n) {
    for (int m = 0; m < 2; ++m) {
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * n + 2 * static_cast<int>(lane() % 4) + i % 2;
        const int r = row * kTileRows + 16 * m + 8 * (i / 2) + static_cast<int>(lane() / 4);
        if (token < x.tokens && r >= args.row_begin && r < args.row_end) {
          store4(args.out + (first_token + token) * args.out_stride + r, bits_of_float(acc[m][n][i]));
        }
      }
    }
  }
}

// Two scales for 32 columns beside the words of iq2 need more registers than a third block leaves.
template <class Block>
constexpr int large_blocks() {
  return TwoScales<Block>::kCount == 2 && Tile<Block>::kFamily == 2 ? 2 : kLargeBlocksOfSm;
}

#define LUTKERN_MATMUL(name, Block)                                                             \
  LK_KERNEL_BOUNDS(matmul_small_##name, ProductArgs, 32 * kSmallWarps, kBlocksOfSm) {           \
    LK_DYNAMIC_SHARED(shared);                                                                  \
    matmul_small<Block>(args, shared);                                                          \
  }                                                                                             \
  LK_KERNEL_BOUNDS(matmul_large_##name, ProductArgs, 32 * kLargeWarps, large_blocks<Block>()) { \
    LK_DYNAMIC_SHARED(shared);                                                                  \
    matmul_large<Block>(args, shared);                                                          \
  }
LUTKERN_CUDA_TILE_FORMATS(LUTKERN_MATMUL)
#undef LUTKERN_MATMUL

}  // namespace cuda
}  // namespace lutkern
