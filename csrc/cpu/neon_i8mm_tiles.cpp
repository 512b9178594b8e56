// Tiles on NEON with the int8 matrix product (i8mm): matrix times several vectors. Everything else is the row below, and
// results are the same to the bit.
//
// smmla multiplies two rows of 8 columns with two tokens of 8 columns. zip1 and zip2 of two vectors of a tile are such
// pairs of rows; pairs of tokens are made once for 16 rows of 256 columns. For 32 columns of 2 rows and 2 tokens:
//
//   sum = smmla(start, rows, tokens)                4 times; 8 sdot would do the same
//   acc = fmla(acc, convert(mul(sum, scale)), x.scale)
//
// With 64 tokens 256 weights times one of them are 31 to 51 instructions, where the row below has 42 to 62.
#include <arm_neon.h>

#include "../tiles/tiles.h"
#include "kernels.h"

namespace lutkern {
namespace {

#include "neon_tile_words.inl.h"

enum : int { kSpread = 2, kTogether = 4 };

#include "neon_tile_gemm.inl.h"

// 256 columns of two tokens as smmla takes them, and what its lanes (row 0 token 0, row 0 token 1, row 1 token 0, ...)
// start from and are scaled with
struct TokenPair {
  int8x16_t q[kGroupsOfPanel][4];  // 8 columns of one token and the same of the other
  int32x4_t start[2 * kGroupsOfPanel];
  float32x4_t scale[kGroupsOfPanel];
  float32x4_t offset_scale[kGroupsOfPanel];

  template <class Block>
  inline void fill(const Columns& a, const Columns& b) {
    for (int k = 0; k < 2 * kGroupsOfPanel; ++k) {
      const uint64x2_t first = vreinterpretq_u64_s8(vld1q_s8(a.q + 16 * k));
      const uint64x2_t second = vreinterpretq_u64_s8(vld1q_s8(b.q + 16 * k));
      q[k / 2][2 * (k % 2)] = vreinterpretq_s8_u64(vzip1q_u64(first, second));
      q[k / 2][2 * (k % 2) + 1] = vreinterpretq_s8_u64(vzip2q_u64(first, second));
    }
    for (int g = 0; g < kGroupsOfPanel; ++g) {
      scale[g] = float32x4_t{a.scale[g], b.scale[g], a.scale[g], b.scale[g]};
      if constexpr (TileCodes<Block>::kFloatOffset) {
        const float one = a.offset_scale(g);
        const float other = b.offset_scale(g);
        offset_scale[g] = float32x4_t{one, other, one, other};
      }
    }
    if constexpr (kCodeOffset<Block> != 0) {
      constexpr int kCount = kGroupsOfPanel * (TileCodes<Block>::kScales == 2 ? 2 : 1);
      int32_t one[2 * kGroupsOfPanel];
      int32_t other[2 * kGroupsOfPanel];
      a.starts<Block>(one);
      b.starts<Block>(other);
      for (int k = 0; k < kCount; ++k) start[k] = int32x4_t{one[k], other[k], one[k], other[k]};
    }
  }
};

static inline int32x4_t products16(int32x4_t sum, const int8x16_t* rows, const int8x16_t* x) {
  return vmmlaq_s32(vmmlaq_s32(sum, rows[0], x[0]), rows[1], x[1]);
}

// 4 rows and 4 tokens are 16 sums, whose eight registers leave room for the activations of a group.
template <class Block, int kCount>
static inline void times(const Panel<Block>& panel, int n_groups, const Activations& x, const int32_t* token,
                         int64_t column, Vf32 (*results)[kParts]) {
  using Codes = TileCodes<Block>;
  constexpr int kPairs = kCount / 2;
  constexpr int kStep = 2;  // parts together
  TokenPair pair[kPairs];
  for (int t = 0; t < kPairs; ++t) {
    pair[t].template fill<Block>(Columns(x, token[2 * t] * x.token_stride + column),
                                 Columns(x, token[2 * t + 1] * x.token_stride + column));
  }
  for (int p = 0; p < kParts; p += kStep) {
    Vf32 acc[kStep][2][kPairs] = {};
    for (int g = 0; g < n_groups; ++g) {
#pragma GCC unroll 4
      for (int r = 0; r < 2 * kStep; ++r) {
        const int at = p + r / 2;
        const int8x16_t* rows = panel.code[at][g] + 4 * (r % 2);
#pragma GCC unroll 2
        for (int t = 0; t < kPairs; ++t) {
          const TokenPair& tokens = pair[t];
          const int32x4_t zero = vdupq_n_s32(0);
          int32x4_t sum;
          if constexpr (Codes::kScales == 2) {
            const int32x4_t first = products16(kCodeOffset<Block> == 0 ? zero : tokens.start[2 * g], rows, tokens.q[g]);
            const int32x4_t start = kCodeOffset<Block> == 0 ? zero : tokens.start[2 * g + 1];
            sum = vmulq_s32(first, panel.scale[at][g][0][r % 2]);
            sum = vmlaq_s32(sum, products16(start, rows + 2, tokens.q[g] + 2), panel.scale[at][g][1][r % 2]);
          } else {
            sum = products16(kCodeOffset<Block> == 0 ? zero : tokens.start[g], rows, tokens.q[g]);
            sum = products16(sum, rows + 2, tokens.q[g] + 2);
            if constexpr (Codes::kScales == 1) sum = vmulq_s32(sum, panel.scale[at][g][0][r % 2]);
          }
          float32x4_t scale = tokens.scale[g];
          if constexpr (Panel<Block>::kPerGroup) scale = vmulq_f32(scale, panel.group_factor[at][g][r % 2]);
          Vf32& into = acc[r / 2][r % 2][t];
          into = fma(float_of(reinterpret_cast<Vi32>(sum)), reinterpret_cast<Vf32>(scale), into);
          if constexpr (Codes::kFloatOffset) {
            into += reinterpret_cast<Vf32>(vmulq_f32(panel.float_offset[at][g][r % 2], tokens.offset_scale[g]));
          }
        }
      }
    }
    for (int k = 0; k < kStep; ++k) {
      for (int t = 0; t < kPairs; ++t) {
        results[2 * t][p + k] = reinterpret_cast<Vf32>(vuzp1q_f32(f32(acc[k][0][t]), f32(acc[k][1][t])));
        results[2 * t + 1][p + k] = reinterpret_cast<Vf32>(vuzp2q_f32(f32(acc[k][0][t]), f32(acc[k][1][t])));
      }
    }
  }
}

}  // namespace

#define LUTKERN_GEMM(name, Block) GemmEntry<Block>::kFn,

extern const TileKernels kNeonI8mmTileKernels = {"neon_i8mm", {}, {LUTKERN_FORMATS(LUTKERN_GEMM)}};

}  // namespace lutkern
