// The NEON row with the int8 matrix product (i8mm): matrix times several vectors. Everything else is the row below.
//
//   y[token][row] = sum over 32 columns of x.scale * sum over 16 columns of (scale * (q . x.q) + offset * x.sum)
//
// smmla multiplies two rows of 8 bytes with two rows of 8 bytes: four dot products, twice what sdot does. So rows and
// tokens come in pairs, and a panel of 8 rows is unpacked chunk by chunk with the bytes of a pair interleaved, eight of
// one row, eight of the other:
//
//   for each panel: for each chunk of 256 columns: unpack 8 rows; for each 4 tokens: for each 32 columns:
//     x = zip1, zip2 of two tokens                        eight bytes of one, eight of the other
//     for each pair of rows:
//       sum   = smmla(sum, rows, x)                       lanes: row 0 token 0, row 0 token 1, row 1 token 0, ...
//       group = fmla(group, convert(sum), scale)          once for 16 columns, or 32 where the format has one scale
//       acc   = fmla(acc, group, x.scale)
//
// With 64 tokens, 256 weights times one of them are 46 to 66 instructions, where the row below has 68 to 92.
//
// A lane never meets another one, so a row and a token have one result, whatever they are paired with.
//
// The caller guarantees whole blocks and activations padded to 256 columns.
#include <arm_neon.h>

#include "kernels.h"

namespace lutkern {
namespace {

#include "neon_codebook.inl.h"

#include "neon_plain.inl.h"

#include "unpack.inl.h"

constexpr int kPairs = 4;  // pairs of rows in a panel

// Formats whose 32 columns share a scale and an offset
template <class Block>
constexpr bool kScale32 = Block::kBlockSize == 32 || (kIsCodebook<Block> && !kScale16<Block>);
template <>
constexpr bool kScale32<Tq10> = true;
template <>
constexpr bool kScale32<Tq20> = true;
template <>
constexpr bool kScale32<Q4K> = true;
template <>
constexpr bool kScale32<Q5K> = true;
template <>
constexpr bool kScale32<Iq4Xs> = true;

// A chunk of two rows. Scales and offsets are spread over the lanes that smmla gives a row: 0 and 1, 2 and 3.
struct RowPair {
  alignas(16) int8_t q[2 * kChunk];
  alignas(16) float scale[4 * kChunk / 16];
  alignas(16) float offset[4 * kChunk / 16];
};

static inline void spread(const float* a, const float* b, int n, float* lanes) {
  for (int k = 0; k < n / 16; ++k) vst1q_f32(lanes + 4 * k, vcombine_f32(vdup_n_f32(a[k]), vdup_n_f32(b[k])));
}

template <class Block>
static inline void pair_rows(const Unpacked& a, const Unpacked& b, int n, RowPair& pair) {
  for (int c = 0; c < n; c += 16) {
    const uint64x2x2_t rows = {{vreinterpretq_u64_u8(load_u8x16(a.q + c)), vreinterpretq_u64_u8(load_u8x16(b.q + c))}};
    vst2q_u64(reinterpret_cast<uint64_t*>(pair.q + 2 * c), rows);
  }
  spread(a.scale, b.scale, n, pair.scale);
  if (Block::kHasOffset) spread(a.offset, b.offset, n, pair.offset);
}

// 32 columns of two tokens
struct TokenPair {
  int8x16_t q[4];  // 8 columns of one token and the same of the other
  float32x4_t scale;
  float32x4_t sum[2];  // of 16 columns
};

// Lanes a, b, a, b
static inline float32x4_t twice(float a, float b) {
  const float32x2_t both = vzip1_f32(vdup_n_f32(a), vdup_n_f32(b));
  return vcombine_f32(both, both);
}

template <class Block>
[[gnu::always_inline]] static inline TokenPair pair_tokens(const Activations& x, int64_t a, int64_t b) {
  TokenPair out;
  for (int half = 0; half < 2; ++half) {
    const uint64x2_t first = vreinterpretq_u64_u8(load_u8x16(x.q + a + 16 * half));
    const uint64x2_t second = vreinterpretq_u64_u8(load_u8x16(x.q + b + 16 * half));
    out.q[2 * half] = vreinterpretq_s8_u64(vzip1q_u64(first, second));
    out.q[2 * half + 1] = vreinterpretq_s8_u64(vzip2q_u64(first, second));
  }
  out.scale = twice(x.scale[a / kActivationGroup], x.scale[b / kActivationGroup]);
  if (Block::kHasOffset) {
    const int32x2_t first = vpaddl_s16(vld1_s16(x.sum + a / kSumGroup));
    const int32x2_t second = vpaddl_s16(vld1_s16(x.sum + b / kSumGroup));
    const int32x2_t low = vzip1_s32(first, second);
    const int32x2_t high = vzip2_s32(first, second);
    out.sum[0] = vcvtq_f32_s32(vcombine_s32(low, low));
    out.sum[1] = vcvtq_f32_s32(vcombine_s32(high, high));
  }
  return out;
}

// 32 columns of two rows times two tokens, before the scales of the tokens; w, scale, offset: those of RowPair there
template <class Block>
[[gnu::always_inline]] static inline float32x4_t dot32(const int8_t* w, const float* scale, const float* offset,
                                                       const TokenPair& x) {
  const float32x4_t first_scale = vld1q_f32(scale);
  const int32x4_t first = vmmlaq_s32(vmmlaq_s32(vdupq_n_s32(0), vld1q_s8(w), x.q[0]), vld1q_s8(w + 16), x.q[1]);
  float32x4_t group;
  if constexpr (kScale32<Block>) {
    const int32x4_t both = vmmlaq_s32(vmmlaq_s32(first, vld1q_s8(w + 32), x.q[2]), vld1q_s8(w + 48), x.q[3]);
    group = vmulq_f32(vcvtq_f32_s32(both), first_scale);
  } else {
    const int32x4_t zero = vdupq_n_s32(0);
    const int32x4_t second = vmmlaq_s32(vmmlaq_s32(zero, vld1q_s8(w + 32), x.q[2]), vld1q_s8(w + 48), x.q[3]);
    group = vmulq_f32(vcvtq_f32_s32(first), first_scale);
    group = vfmaq_f32(group, vcvtq_f32_s32(second), vld1q_f32(scale + 4));
  }
  if (Block::kHasOffset) {
    group = vfmaq_f32(group, x.sum[0], vld1q_f32(offset));
    group = vfmaq_f32(group, x.sum[1], vld1q_f32(offset + 4));
  }
  return group;
}

// dots[2 t], dots[2 t + 1]: the rows of a panel times the two tokens of pair t, whose columns begin at column[2 t],
// column[2 t + 1]
template <class Block, int kTokenPairs>
static inline void dot_panel(const RowPair* panel, int n, const Activations& x, const int64_t* column,
                             float (*dots)[2 * kPairs]) {
  float32x4_t acc[kPairs][kTokenPairs];
  for (int p = 0; p < kPairs; ++p) {
    for (int t = 0; t < kTokenPairs; ++t) acc[p][t] = vdupq_n_f32(0.0f);
  }
  for (int g = 0; g < n / 32; ++g) {
    TokenPair tokens[kTokenPairs];
#pragma GCC unroll 2
    for (int t = 0; t < kTokenPairs; ++t) {
      tokens[t] = pair_tokens<Block>(x, column[2 * t] + 32 * g, column[2 * t + 1] + 32 * g);
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
      const RowPair& rows = panel[p];
#pragma GCC unroll 2
      for (int t = 0; t < kTokenPairs; ++t) {
        const float32x4_t group = dot32<Block>(rows.q + 64 * g, rows.scale + 8 * g, rows.offset + 8 * g, tokens[t]);
        acc[p][t] = vfmaq_f32(acc[p][t], group, tokens[t].scale);
      }
    }
  }
  for (int t = 0; t < kTokenPairs; ++t) {
    for (int p = 0; p < kPairs; p += 2) {
      vst1q_f32(dots[2 * t] + 2 * p, vuzp1q_f32(acc[p][t], acc[p + 1][t]));
      vst1q_f32(dots[2 * t + 1] + 2 * p, vuzp2q_f32(acc[p][t], acc[p + 1][t]));
    }
  }
}

// A chunk of two rows of a panel; a row past its end repeats the last one.
template <class Block>
static inline int unpack_pair(const Rows& rows, int64_t row, int64_t chunk, RowPair& pair) {
  Unpacked u[2];
  int n = 0;
  for (int i = 0; i < 2; ++i) {
    const int64_t at = row + i < rows.n_rows ? row + i : rows.n_rows - 1;
    n = unpack_chunk<Block>(rows.data + at * rows.row_bytes, chunk, rows.cols, u[i]);
  }
  pair_rows<Block>(u[0], u[1], n, pair);
  return n;
}

template <class Block>
static void gemm(const Rows& rows, const Activations& x, const int32_t* token, int64_t n_tokens, float* out,
                 int64_t out_stride) {
  RowPair panel[kPairs];
  float dots[4][2 * kPairs];
  for (int64_t r = 0; r < rows.n_rows; r += 2 * kPairs) {
    const int n_rows = rows.n_rows - r < 2 * kPairs ? static_cast<int>(rows.n_rows - r) : 2 * kPairs;
    for (int64_t chunk = 0; chunk * kChunk < rows.cols; ++chunk) {
      int n = 0;
      for (int p = 0; p < kPairs; ++p) n = unpack_pair<Block>(rows, r + 2 * p, chunk, panel[p]);
      for (int64_t i = 0; i < n_tokens; i += 4) {
        const int group = n_tokens - i < 4 ? static_cast<int>(n_tokens - i) : 4;
        int64_t column[4];
        for (int k = 0; k < 4; ++k) column[k] = token[i + (k < group ? k : 0)] * x.token_stride + chunk * kChunk;
        if (group > 2) {
          dot_panel<Block, 2>(panel, n, x, column, dots);
        } else {
          dot_panel<Block, 1>(panel, n, x, column, dots);
        }
        for (int k = 0; k < group; ++k) {
          float* y = out + (i + k) * out_stride + r;
          for (int p = 0; p < n_rows; ++p) y[p] = chunk == 0 ? dots[k][p] : y[p] + dots[k][p];
        }
      }
    }
  }
}

template <class Block, bool kFloat = Block::kIsFloat != 0>
struct Gemm {
  static constexpr GemmFn kFn = gemm<Block>;
};

template <class Block>
struct Gemm<Block, true> {
  static constexpr GemmFn kFn = nullptr;
};

}  // namespace

#define LUTKERN_GEMM(name, Block) Gemm<Block>::kFn,

extern const BlockKernels kNeonI8mmKernels = {"neon_i8mm", {}, {LUTKERN_FORMATS(LUTKERN_GEMM)}, {}, {}, nullptr};

}  // namespace lutkern
