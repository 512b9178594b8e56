// 32 rows of weights times 8, 16 or 32 tokens by the matrices of a simdgroup: what matmul_large.metal and
// moe_batch.metal are made of.
//
//   acc[token] += (sum over 32 columns of q_w * odd * q_x) * scale_x * d        odd = 2 s + 1, of 16 columns each
//
// A simdgroup has a row of tiles (gpu/tile.h), lane = row. For each 32 columns of a tile
//
//   unpack: 4 codewords of the lane -> 32 integers q_w, as halfs, in registers
//   up to 4 tokens: 32 columns times 2 or 4 tokens                                1 load of x for 2 or 4 fma
//   more: twice: 16 q_w * odd -> panel[row][column]                               2 stores of 16 bytes
//                matrices of it, 8 rows x 8 columns                               8 loads
//         for each 8 tokens:
//           c = sums of 32 rows; matrices of x, 8 columns x 8 tokens              4 loads, 16 products
//           c -> panel[row][token]; the lane reads its row: 8 sums                4 stores, 2 loads of 16 bytes
//           acc = fma(sum * scale_x, d, acc) for 8 tokens                         16 operations
//
// What matters: simdgroup_multiply_accumulate of halfs with sums in float. All that it sees are integers: q_w * odd is
// at most 62 * 31 < 2^11, exact as a half, and a sum of 32 columns below 62 * 31 * 127 * 32 < 2^23, exact as a float.
// So these kernels have the integers of every other backend, and round twice for 32 columns. Scales never enter the
// matrices: whatever is not finite stays in its row and its token. Metal does not say which lane has which number of a
// matrix, so sums go to their lanes through threadgroup memory. Strides of 24 halfs and 12 floats spread eight rows
// over all banks.
//
// Operations of a lane for 32 columns, counted by tests/sim/metal/count.py:
//
//   unpack   iq1_s 75, iq1_m 88, iq2_xxs 63, iq2_xs 67, iq2_s 67, iq3_xxs 99, iq3_s 99
//   then     106 for 2 tokens, 180 for 4 tokens
//
// More, by hand: 32 products with odd, 10 stores and loads; for each 8 tokens 16 matrix products of 16 cycles each, and
// 30 others. With the weights of iq1_m, 8 tokens: 256 beside 160; 16 tokens: 512 beside 190; 32 tokens: 1024 beside
// 250; and what staging x takes. The sum of 32 columns is the same integer in each way: a token has the same result
// whatever others it meets.
//
// The caller guarantees whole simdgroups; the panel is the simdgroup's own; x was staged before a barrier of those who
// did.
#pragma once
#include "activations.metal"
#include "batch_shape.h"

namespace lutkern {
namespace metal_kernels {

enum : int {
  kRowStride = 24,                           // halfs from row to row of a panel of weights: 16 columns
  kSumStride = 12,                           // floats from row to row of a panel of sums: 8 tokens
  kPanelQuads = kTileRows * kRowStride / 8,  // 16 bytes each
  kStagedCols = 32                           // of x
};
static_assert(kRowStride * 2 == kSumStride * 4, "either panel fills the place");

// x of 32 columns, staged for kTokens tokens: integers as halfs at [column][token], then scales
template <int kTokens>
struct Staged {
  enum : int { kStride = kTokens + 8, kQuads = (kStagedCols * kStride * 2 + kTokens * 4) / 16 };
};

// Who runs, in a threadgroup
struct Here {
  uint thread_index;
  uint threads;
  uint simdgroup;
  uint simdgroups;
  uint lane;
};

// ---- weights ----

// 32 columns of the row of a lane
struct Group {
  half2 code[16];  // raw_codes
  float odd[2];    // 2 s + 1 of 16 columns each
};

template <class Block, int g>
static inline void unpack_at(const thread Lane<Block>& row, threadgroup const uint* table, thread Group& to) {
  row.raw_codes(4 * g, table, to.code);
  row.raw_codes(4 * g + 1, table, to.code + 4);
  row.raw_codes(4 * g + 2, table, to.code + 8);
  row.raw_codes(4 * g + 3, table, to.code + 12);
  to.odd[0] = 2.0f * scale_of<Block>(row.words, 2 * g);
  to.odd[1] = 2.0f * scale_of<Block>(row.words, 2 * g + 1);
}

// g is the same in all lanes. Places in a lane are known when the text is compiled: its words stay in registers.
template <class Block>
static inline void unpack_group(const thread Lane<Block>& row, int g, threadgroup const uint* table, thread Group& to) {
  switch (g) {
    case 0:
      return unpack_at<Block, 0>(row, table, to);
    case 1:
      return unpack_at<Block, 1>(row, table, to);
    case 2:
      return unpack_at<Block, 2>(row, table, to);
    case 3:
      return unpack_at<Block, 3>(row, table, to);
    case 4:
      return unpack_at<Block, 4>(row, table, to);
    case 5:
      return unpack_at<Block, 5>(row, table, to);
    case 6:
      return unpack_at<Block, 6>(row, table, to);
    default:
      return unpack_at<Block, 7>(row, table, to);
  }
}

// What a sum of code * odd * q_x is multiplied with: d and a power of two
template <class Block>
static inline float unit_of(const thread Lane<Block>& row) {
  return row.d * (0.5f * code_unit<Block>() / raw_unit<Block>());
}

static inline int tiles_of_row(constant WeightArgs& w) { return tiles_for(w.cols, kTileCols); }

// The first tile of a row of tiles
static inline device const uchar* tiles_at(constant WeightArgs& w, device const uchar* weight, int expert,
                                           int tile_row) {
  return weight + expert * w.expert_bytes + tile_row * w.row_bytes;
}

// ---- sums ----

// 16 columns of the rows of all lanes to 4 x 2 matrices, 8 rows x 8 columns
static inline void put_codes(thread const half2* codes, float odd, threadgroup uint4* panel, uint lane,
                             thread simdgroup_half8x8* to) {
  uint words[8];
  LK_UNROLL
  for (int j = 0; j < 8; ++j) {
    words[j] = half_bits(static_cast<float>(codes[j].x) * odd, static_cast<float>(codes[j].y) * odd);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  panel[kRowStride / 8 * lane] = uint4(words[0], words[1], words[2], words[3]);
  panel[kRowStride / 8 * lane + 1] = uint4(words[4], words[5], words[6], words[7]);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup const half* halfs = reinterpret_cast<threadgroup const half*>(panel);
  LK_UNROLL
  for (int i = 0; i < 8; ++i) simdgroup_load(to[i], halfs + 8 * (i / 2) * kRowStride + 8 * (i % 2), kRowStride);
}

// acc[token] += 32 columns of the lane's row times x, for the first kFew tokens
template <int kTokens, int kFew>
static inline void multiply_few(const thread Group& w, float unit, threadgroup const uint4* x, thread float* acc) {
  enum : int { kStride = Staged<kTokens>::kStride };
  threadgroup const half* codes = reinterpret_cast<threadgroup const half*>(x);
  threadgroup const float* scales = reinterpret_cast<threadgroup const float*>(codes + kStagedCols * kStride);
  float sum[2][kFew];
  LK_UNROLL
  for (int t = 0; t < kFew; ++t) sum[0][t] = sum[1][t] = 0.0f;
  LK_UNROLL
  for (int j = 0; j < kStagedCols; ++j) {
    const vec<half, kFew> v = *reinterpret_cast<threadgroup const vec<half, kFew>*>(codes + j * kStride);
    const float code = static_cast<float>(j % 2 == 0 ? w.code[j / 2].x : w.code[j / 2].y);
    LK_UNROLL
    for (int t = 0; t < kFew; ++t) sum[j / 16][t] = fma(code, static_cast<float>(v[t]), sum[j / 16][t]);
  }
  LK_UNROLL
  for (int t = 0; t < kFew; ++t) {
    acc[t] = fma(fma(sum[1][t], w.odd[1], sum[0][t] * w.odd[0]) * scales[t], unit, acc[t]);
  }
}

// The same for the first n tokens, and some more that were staged as zeros
template <int kTokens>
static inline void multiply_group(const thread Group& w, float unit, threadgroup const uint4* x, int n,
                                  threadgroup uint4* panel, uint lane, thread float* acc) {
  if (n <= 2) return multiply_few<kTokens, 2>(w, unit, x, acc);
  if (n <= 4) return multiply_few<kTokens, 4>(w, unit, x, acc);
  enum : int { kStride = Staged<kTokens>::kStride };
  const int eights = tiles_for(n, 8);
  simdgroup_half8x8 a[16];  // a[8 i + 2 m + k]: columns 16 i + 8 k, rows 8 m
  put_codes(w.code, w.odd[0], panel, lane, a);
  put_codes(w.code + 8, w.odd[1], panel, lane, a + 8);
  threadgroup const half* codes = reinterpret_cast<threadgroup const half*>(x);
  threadgroup const float4* scales = reinterpret_cast<threadgroup const float4*>(codes + kStagedCols * kStride);
  threadgroup float* sums = reinterpret_cast<threadgroup float*>(panel);
  threadgroup const float4* mine = reinterpret_cast<threadgroup const float4*>(sums + kSumStride * lane);
  LK_UNROLL
  for (int n = 0; n < kTokens / 8; ++n) {
    if (n < eights) {
      simdgroup_float8x8 c[4];
      LK_UNROLL
      for (int m = 0; m < 4; ++m) c[m] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      LK_UNROLL
      for (int k = 0; k < 4; ++k) {
        simdgroup_half8x8 b;
        simdgroup_load(b, codes + 8 * k * kStride + 8 * n, kStride);
        LK_UNROLL
        for (int m = 0; m < 4; ++m) simdgroup_multiply_accumulate(c[m], a[k / 2 * 8 + 2 * m + k % 2], b, c[m]);
      }
      simdgroup_barrier(mem_flags::mem_threadgroup);
      LK_UNROLL
      for (int m = 0; m < 4; ++m) simdgroup_store(c[m], sums + 8 * m * kSumStride, kSumStride);
      simdgroup_barrier(mem_flags::mem_threadgroup);
      LK_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float4 four = mine[i] * scales[2 * n + i];
        LK_UNROLL
        for (int t = 0; t < 4; ++t) acc[8 * n + 4 * i + t] = fma(four[t], unit, acc[8 * n + 4 * i + t]);
      }
    }
  }
}

// ---- activations ----

// Eight numbers of a token from a column on, a multiple of 8; zeros past the last one. token -1: zeros
static inline Numbers8 load_eight(constant MatrixArgs& x, device const uchar* data, int token, int column) {
  if (token >= 0) return load_numbers8(x, data, token * x.row_stride, 0, column / 8);
  const Numbers8 zeros = {{0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}};
  return zeros;
}

// Eight columns, from number 8 * part of 32 on, of token i of what is staged: integers and their scale
template <int kTokens>
static inline void put_staged(Numbers8 q, float scale, int i, int part, threadgroup uint4* to) {
  enum : int { kStride = Staged<kTokens>::kStride };
  threadgroup half* codes = reinterpret_cast<threadgroup half*>(to);
  LK_UNROLL
  for (int j = 0; j < 8; ++j) codes[(8 * part + j) * kStride + i] = static_cast<half>(q.v[j]);
  if (part == 0) reinterpret_cast<threadgroup float*>(codes + kStagedCols * kStride)[i] = scale;
}

}  // namespace metal_kernels
}  // namespace lutkern
