// Products of 2 to 8 tokens: out[token, row] = sum over columns of weight[row, column] * x[token, column]
//
//   acc[token] += (sum over 32 columns of q_w * odd * q_x) * scale_x * d        odd = 2 s + 1, of 16 columns each
//
// Weights lie in tiles (gpu/tile.h): lane = row. A threadgroup has one row of tiles, its simdgroups split the columns:
//
//   for each tile of the simdgroup: load the words of the lane's row
//     for each 32 columns (64 of 4 tokens, 128 of 2): x -> integers as halfs -> the simdgroup's own place
//       unpack 4 codewords into registers
//       for each token: 4 loads of 8 x for all lanes, 32 fma, 5 operations for the scales
//   sums of the simdgroups meet in threadgroup memory, in their order
//
// What matters: a codeword is unpacked once for all tokens; fma takes halfs as they are, and the sums of 32 columns are
// exact integers, below 62 * 31 * 127 * 32 < 2^23; all lanes read the same x, 16 bytes at once; no barrier of the
// threadgroup stands in the loop, and no step of it knows how many tokens there are beyond a branch for 32 columns of
// one.
//
// Operations of a lane for 32 columns: unpack 63 to 99 (panels.metal); by hand, 43 for each token, and about 75 to
// stage x of all tokens. For a codeword of iq1_m that is 48 with 2 tokens (four groups are staged at once then), 127
// with 8. Beyond 8 tokens the matrices of matmul_large need fewer.
//
// Threadgroup memory: the table (iq1_m 16 KB) and 8.5 KB of x; the sums take their place. Where there are fewer
// simdgroups, sums are made in another order.
// The caller guarantees row_begin < row_end and at most 8 tokens.
#pragma once
#include "panels.metal"

#if defined(LK_WEIGHT)

namespace lutkern {
namespace metal_kernels {

// 32 columns of 8 tokens, or of 4 tokens twice, or of 2 tokens four times: 8 slots of 4 x 16 bytes, then their scales
enum : int { kSlots = 8, kSlotWords = 16, kSlotsWords = kSlots * kSlotWords + kSlots };

// Groups of 32 columns that are staged at once
static inline int groups_at_once(int tokens) { return tokens <= 2 ? 4 : (tokens <= 4 ? 2 : 1); }

// By a simdgroup: `groups` times 32 columns of n tokens. Slot token * groups + group.
static inline void stage_slots(constant MatrixArgs& x, device const uchar* data, int n, int groups, int column,
                               threadgroup uint4* to, uint lane) {
  const int slot = lane / 4, part = lane % 4;
  const int token = slot / groups;
  Numbers8 q = load_eight(x, data, token < n ? token : -1, column + 32 * (slot % groups) + 8 * part);
  const float scale = quantize8(q);
  to[lane] =
      uint4(half_bits(q.v[0], q.v[1]), half_bits(q.v[2], q.v[3]), half_bits(q.v[4], q.v[5]), half_bits(q.v[6], q.v[7]));
  if (part == 0) reinterpret_cast<threadgroup float*>(to + kSlots * kSlotWords / 4)[slot] = scale;
}

// sum plus eight products
static inline float add_eight(thread const half2* codes, uint4 x, float sum) {
  LK_UNROLL
  for (int j = 0; j < 4; ++j) {
    const half2 two = as_type<half2>(x[j]);
    sum = fma(static_cast<float>(codes[j].x), static_cast<float>(two.x), sum);
    sum = fma(static_cast<float>(codes[j].y), static_cast<float>(two.y), sum);
  }
  return sum;
}

// 32 columns: group number g of those that are staged
static inline void add_products(const thread Group& w, float unit, threadgroup const uint4* x, int n, int groups, int g,
                                thread float* acc) {
  LK_UNROLL
  for (int token = 0; token < kSmallTokens; ++token) {
    if (token < n) {
      const int slot = token * groups + g;
      threadgroup const uint4* from = x + 4 * slot;
      const float scale = reinterpret_cast<threadgroup const float*>(x + kSlots * kSlotWords / 4)[slot];
      const float first = add_eight(w.code + 4, from[1], add_eight(w.code, from[0], 0.0f));
      const float last = add_eight(w.code + 12, from[3], add_eight(w.code + 8, from[2], 0.0f));
      acc[token] = fma(fma(last, w.odd[1], first * w.odd[0]) * scale, unit, acc[token]);
    }
  }
}

// Sums of 32 rows and n tokens by one simdgroup: tiles simdgroup, simdgroup + simdgroups ...
template <class Block>
static inline void small_sums(constant ProductArgs& args, device const uchar* tiles, device const uchar* data,
                              threadgroup const uint* table, threadgroup uint4* staged, Here here, thread float* acc) {
  const int n = args.x.rows;
  const int groups = groups_at_once(n);
  LK_UNROLL
  for (int i = 0; i < kSmallTokens; ++i) acc[i] = 0.0f;
  for (int tile = here.simdgroup; tile < tiles_of_row(args.w); tile += here.simdgroups) {
    Lane<Block> row;
    row.load(tiles + tile * Tile<Block>::kBytes, here.lane);
    const float unit = unit_of(row);
    const int column = tile * kTileCols;
    for (int g = 0; g < 8 && column + 32 * g < args.w.cols; ++g) {
      if (g % groups == 0) {
        simdgroup_barrier(mem_flags::mem_threadgroup);
        stage_slots(args.x, data, n, groups, column + 32 * g, staged, here.lane);
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }
      Group w;
      unpack_group(row, g, table, w);
      add_products(w, unit, staged, n, groups, g % groups, acc);
    }
  }
}

template <class Block>
struct SmallShape {
  enum : int {
    kWork = Table<Block>::kWords + kSmallSimdgroups * kSlotsWords,
    kSums = kSmallSimdgroups * kSmallTokens * kTileRows,
    kQuads = ((kWork > kSums ? kWork : kSums) + 3) / 4
  };
  static_assert(Table<Block>::kWords % 4 == 0, "x is at a multiple of 16 bytes");
};

}  // namespace metal_kernels
}  // namespace lutkern

kernel void matmul_small(constant ProductArgs& args [[buffer(0)]], device const uchar* weight [[buffer(1)]],
                         device const uchar* x [[buffer(2)]], device float* out [[buffer(3)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint4 shared[SmallShape<LK_WEIGHT>::kQuads];
  const Here here = {thread_index, threads.x, simdgroup, simdgroups, lane};
  const int n = args.x.rows;
  const int tile_row = args.row_begin / kTileRows + group.x;
  threadgroup uint* table = reinterpret_cast<threadgroup uint*>(shared);
  threadgroup uint4* staged = shared + (Table<LK_WEIGHT>::kWords + simdgroup * kSlotsWords) / 4;
  Table<LK_WEIGHT>::fill(table, thread_index, threads.x);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float acc[kSmallTokens];
  small_sums<LK_WEIGHT>(args, tiles_at(args.w, weight, 0, tile_row), x, table, staged, here, acc);

  threadgroup float* sums = reinterpret_cast<threadgroup float*>(shared);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  LK_UNROLL
  for (int token = 0; token < kSmallTokens; ++token) {
    if (token < n) sums[(simdgroup * kSmallTokens + token) * kTileRows + lane] = acc[token];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int row = tile_row * kTileRows + lane;
  if (row < args.row_begin || row >= args.row_end) return;
  for (int token = simdgroup; token < n; token += simdgroups) {
    float sum = 0.0f;
    for (uint s = 0; s < simdgroups; ++s) sum += sums[(s * kSmallTokens + token) * kTileRows + lane];
    out[token * args.out_stride + row] = sum;
  }
}

#endif
