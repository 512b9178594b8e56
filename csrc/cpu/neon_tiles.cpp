// Tiles on NEON with the dot product (ARMv8.2): matrix times one and several vectors, every format.
//
//   y = sum over tiles of factor * sum over 32 columns of x.scale * scale * (codes . x.q - offset * sum of x.q)
//
// A vector is 4 rows of 4 columns, a quarter of a tile; its lanes are rows and never meet. For 32 columns of 4 rows:
//
//   sum = smull(sums of x, -offset)                 where the sum of products starts, or zero
//   sum = sdot(sum, codes, x.4b[i])                 8 times; one lane of x meets all rows, 16 activations are one load
//   acc = fmla(acc, convert(mul(sum, scale)), x.scale)
//
// Digits of base 3 are cmle, cmgt, sub, and mul for the next one: -1, 0, 1 without an offset. Codebook rows of 8 columns
// keep two lanes for a row, as loads and zip1 give them; cmtst and bsl take the activations or their negatives, addp
// makes lanes rows. Rows of 4 columns are put together by zip1 and ins, and take their signs by cmtst, eor and sub.
//
// Instructions for 256 weights, everything included (GCC 12, -O3, rows of 2048), beside blocks and ggml:
//
//             iq1_s  iq1_m  iq2_xxs  iq2_xs  iq2_s  iq3_xxs  iq3_s
//   tiles       138    170      229     257    228      314    347
//   blocks      212    245      263     282    307      351    374
//   ggml        365    451      297     314    446      393    452
//
// Batches unpack 256 columns once; with 64 tokens 256 weights times one of them are 42 to 62 instructions.
//
// The caller guarantees whole tiles and activations padded to 256 columns.
#include <arm_neon.h>

#include "../tiles/tiles.h"
#include "kernels.h"

namespace lutkern {
namespace {

#include "neon_tile_words.inl.h"

// ---- the sum of a group, for matrix times vector ----

// Between groups: a compiler that moves the loads of the next group up runs out of registers. The processor does that
// better.
static inline void fence() { asm volatile("" ::: "memory"); }

// 16 columns: four vectors of codes times the four lanes of x
[[gnu::always_inline]] static inline int32x4_t dot16(int32x4_t sum, const Vu8* code, int8x16_t x) {
  sum = vdotq_laneq_s32(sum, s8(code[0]), x, 0);
  sum = vdotq_laneq_s32(sum, s8(code[1]), x, 1);
  sum = vdotq_laneq_s32(sum, s8(code[2]), x, 2);
  return vdotq_laneq_s32(sum, s8(code[3]), x, 3);
}

// Minus kOffset times two sums of activations, in every lane: where the sums of products start
template <int kOffset>
struct Starts {
  int32x4_t of[2];
  inline explicit Starts(const int16_t* two) {
    if constexpr (kOffset == 0) {
      of[0] = of[1] = vdupq_n_s32(0);
    } else {
      const int16x4_t sums = vget_low_s16(load_two(two));
      const int16x4_t minus = vdup_n_s16(-kOffset);
      of[0] = vmull_lane_s16(minus, sums, 0);
      of[1] = vmull_lane_s16(minus, sums, 1);
    }
  }
  inline int32x4_t both() const { return kOffset == 0 ? of[0] : vaddq_s32(of[0], of[1]); }
};

template <class Block>
[[gnu::always_inline]] static inline Vi32 group_sum(TileCodes<Block>& codes, int g, const int8_t* q, const int16_t*,
                                                    const int16_t* sum16) {
  using Codes = TileCodes<Block>;
  fence();
  Vu8 code[8];
  signed_codes(codes, g, code);
  const Starts<kCodeOffset<Block>> starts(sum16);
  const int8x16_t x[2] = {vld1q_s8(q), vld1q_s8(q + 16)};
  int32x4_t sum;
  if constexpr (Codes::kScales == 2) {
    const Vi16 scales = codes.scales(g);
    sum = vmulq_s32(dot16(starts.of[0], code, x[0]), first_of(scales));
    sum = vmlaq_s32(sum, dot16(starts.of[1], code + 4, x[1]), second_of(scales));
  } else {
    sum = dot16(dot16(starts.both(), code, x[0]), code + 4, x[1]);
    if constexpr (Codes::kScales == 1) sum = vmulq_s32(sum, second_of(codes.scales(g)));
  }
  return reinterpret_cast<Vi32>(sum);
}

// IQ1: eight times the digits less 1, and sums of activations, which are plus or minus one eighth.
[[gnu::always_inline]] static inline Vi32 group_sum(TileCodes<Iq1S>& c, int g, const int8_t* q, const int16_t*,
                                                    const int16_t* sum16) {
  fence();
  Vu8 digit[8];
  for (int v = 0; v < 8; ++v) digit[v] = centred_digit(next_bytes(c, g, v));
  int32x4_t sum = dot16(vdupq_n_s32(0), digit, vld1q_s8(q));
  sum = dot16(sum, digit + 4, vld1q_s8(q + 16));
  const int32x4_t x_sum = vpaddlq_s16(load_two(sum16));
  const int32x4_t minus = s32(c.minus(g));
  const int32x4_t shift = vsubq_s32(veorq_s32(x_sum, minus), minus);
  sum = vaddq_s32(vshlq_n_s32(sum, 3), shift);
  return reinterpret_cast<Vi32>(vmulq_s32(sum, second_of(c.scales(g))));
}

[[gnu::always_inline]] static inline Vi32 group_sum(TileCodes<Iq1M>& c, int g, const int8_t* q, const int16_t* sum8,
                                                    const int16_t*) {
  fence();
  Vu8 digit[8];
  for (int v = 0; v < 8; ++v) digit[v] = centred_digit(next_bytes(c, g, v));
  const Vi16 scales = c.scales(g);
  int32x4_t sum = vdupq_n_s32(0);
  for (int half = 0; half < 2; ++half) {
    const int32x4_t eighths = vshlq_n_s32(dot16(vdupq_n_s32(0), digit + 4 * half, vld1q_s8(q + 16 * half)), 3);
    const int16x8_t two = load_two(sum8 + 2 * half);
    const int16x8_t minus = s16(c.minus(2 * g + half));
    const int16x8_t shift = vsubq_s16(veorq_s16(two, minus), minus);
    sum = vmlaq_s32(sum, vpadalq_s16(eighths, shift), half == 0 ? first_of(scales) : second_of(scales));
  }
  return reinterpret_cast<Vi32>(sum);
}

// Codebook rows of 8 columns: two lanes are one row, as the loads give them; one addition of neighbours makes the lanes
// rows. The signs take the activations or their negatives.
template <int kRows, class Numbers>
[[gnu::always_inline]] static inline void sums_of_grid8(const Codebook<uint64_t, kRows>& grid, const Numbers& numbers,
                                                        const int8_t* q, Vu32 signs, int32x4_t* half) {
  fence();
  const uint32x4_t odd = u32(signs);
  const uint32x4_t even = vreinterpretq_u32_u8(vshlq_n_u8(u8(signs), 4));
  const uint8x16_t sign[2] = {vreinterpretq_u8_u32(vzip1q_u32(even, odd)), vreinterpretq_u8_u32(vzip2q_u32(even, odd))};
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    int32x4_t sum[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
#pragma GCC unroll 2
    for (int i = 2 * h; i < 2 * h + 2; ++i) {
      const int8x16_t x = vreinterpretq_s8_u64(vdupq_n_u64(load_u64(q + 8 * i)));
      const int8x16_t negative = vnegq_s8(x);
      const uint8x16_t bit = vdupq_n_u8(static_cast<uint8_t>(16 << i));
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        sum[k] = vdotq_s32(sum[k], two_rows(grid, numbers, 2 * k, i), vbslq_s8(vtstq_u8(sign[k], bit), negative, x));
      }
    }
    half[h] = vpaddq_s32(sum[0], sum[1]);
  }
}

[[gnu::always_inline]] static inline Vi32 group_sum(TileCodes<Iq2Xxs>& c, int g, const int8_t* q, const int16_t*,
                                                    const int16_t*) {
  int32x4_t half[2];
  sums_of_grid8(kIq2XxsGrid, c.numbers(g), q, c.signs(g), half);
  return reinterpret_cast<Vi32>(vmulq_s32(vaddq_s32(half[0], half[1]), second_of(c.scales(g))));
}

template <int kRows, class Codes>
[[gnu::always_inline]] static inline Vi32 two_scales(const Codebook<uint64_t, kRows>& grid, Codes& c, int g,
                                                     const int8_t* q) {
  int32x4_t half[2];
  sums_of_grid8(grid, c.numbers(g), q, c.signs(g), half);
  const int32x4_t sum = vmulq_s32(half[0], second_of(c.nibble.twice(g, 0)));
  return reinterpret_cast<Vi32>(vmlaq_s32(sum, half[1], second_of(c.nibble.twice(g, 1))));
}
[[gnu::always_inline]] static inline Vi32 group_sum(TileCodes<Iq2Xs>& c, int g, const int8_t* q, const int16_t*,
                                                    const int16_t*) {
  return two_scales(kIq2XsGrid, c, g, q);
}
[[gnu::always_inline]] static inline Vi32 group_sum(TileCodes<Iq2S>& c, int g, const int8_t* q, const int16_t*,
                                                    const int16_t*) {
  return two_scales(kIq2SGrid, c, g, q);
}

#include "tile_gemv.inl.h"

// ---- several vectors ----

enum : int { kSpread = 1, kTogether = 4 };

#include "neon_tile_gemm.inl.h"

// The codes of a group stay in registers while they meet the tokens.
template <class Block, int kCount>
static inline void times(const Panel<Block>& panel, int n_groups, const Activations& x, const int32_t* token,
                         int64_t column, Vf32 (*results)[kParts]) {
  using Codes = TileCodes<Block>;
  constexpr int kStarts = Codes::kScales == 2 ? 2 : 1;
  const int8_t* q[kCount];
  const float* x_scale[kCount];
  int32_t start[kCount][2 * kGroupsOfPanel];
  float offset_scale[kCount][kGroupsOfPanel];
  for (int i = 0; i < kCount; ++i) {
    const Columns columns(x, token[i] * x.token_stride + column);
    q[i] = columns.q;
    x_scale[i] = columns.scale;
    columns.starts<Block>(start[i]);
    for (int g = 0; Codes::kFloatOffset && g < n_groups; ++g) offset_scale[i][g] = columns.offset_scale(g);
  }
  for (int p = 0; p < kParts; ++p) {
    Vf32 acc[kCount] = {};
    for (int g = 0; g < n_groups; ++g) {
      Vu8 code[8];
      for (int v = 0; v < 8; ++v) code[v] = reinterpret_cast<Vu8>(panel.code[p][g][v]);
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        const int8x16_t first = vld1q_s8(q[i] + 32 * g);
        const int8x16_t second = vld1q_s8(q[i] + 32 * g + 16);
        const int32_t* from = start[i] + kStarts * g;
        int32x4_t sum = dot16(kCodeOffset<Block> == 0 ? vdupq_n_s32(0) : vld1q_dup_s32(from), code, first);
        if constexpr (Codes::kScales == 2) {
          const int32x4_t other = kCodeOffset<Block> == 0 ? vdupq_n_s32(0) : vld1q_dup_s32(from + 1);
          sum = vmulq_s32(sum, panel.scale[p][g][0][0]);
          sum = vmlaq_s32(sum, dot16(other, code + 4, second), panel.scale[p][g][1][0]);
        } else {
          sum = dot16(sum, code + 4, second);
          if constexpr (Codes::kScales == 1) sum = vmulq_s32(sum, panel.scale[p][g][0][0]);
        }
        Vf32 scale = Vf32{} + x_scale[i][g];
        if constexpr (Panel<Block>::kPerGroup) scale *= reinterpret_cast<Vf32>(panel.group_factor[p][g][0]);
        acc[i] = fma(float_of(reinterpret_cast<Vi32>(sum)), scale, acc[i]);
        if constexpr (Codes::kFloatOffset) {
          acc[i] += reinterpret_cast<Vf32>(panel.float_offset[p][g][0]) * offset_scale[i][g];
        }
      }
    }
    for (int i = 0; i < kCount; ++i) results[i][p] = acc[i];
  }
}

template <class Block, bool kFloat = Block::kIsFloat != 0>
struct GemvEntry {
  static constexpr GemvTilesFn kFn = gemv_tiles<Block>;
};

template <class Block>
struct GemvEntry<Block, true> {
  static constexpr GemvTilesFn kFn = nullptr;
};

}  // namespace

#define LUTKERN_GEMV(name, Block) GemvEntry<Block>::kFn,
#define LUTKERN_GEMM(name, Block) GemmEntry<Block>::kFn,

extern const TileKernels kNeonTileKernels = {
    "neon",
    {LUTKERN_FORMATS(LUTKERN_GEMV)},
    {LUTKERN_FORMATS(LUTKERN_GEMM)},
};

}  // namespace lutkern
