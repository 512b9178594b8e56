// The NEON row (ARMv8.2 with the dot product): matrix-vector kernels for the codebook formats, and for every other
// format the loops written once over NEON words.
//
//   y = sum over blocks of d * sum over 32 columns of x.scale * sum over 16 columns of (2 s + 1) * (q . x.q)
//
// Reads GGUF blocks in place. The inner loop of a codebook format, for 16 columns:
//
//   row = zip1(codebook row, codebook row)          16 magnitudes, 8 to a load; zip1 twice and ins where 4 to a load
//   row = mul(row, zip1(signs, signs))              IQ2: a table gives the eight signs of a code, 1 or -1
//   row = (row ^ minus) - minus                     IQ3: minus = cmtst(tbl(sign bits, [0 x 8, 1 x 8]), [1 2 4 .. 128])
//   sum = sdot(sum, row, x.q)                       4 sums of four products; IQ1: the row as it is
//
// and for 128 columns: addp turns four such vectors into one whose lane g is the integer sum of 32 columns, or two of 16
// that mla joins with their scales; convert and fmla with four activation scales. So fp32 enters once for 128 columns
// and d once for 256. IQ1 is ternary, and its shift of one eighth meets sums of 8 activations. IQ2 takes its signs by
// loads and IQ3 by vector instructions, because IQ3 has twice the loads for its rows: neither kind of unit waits for
// the other.
//
// Instructions for 256 weights, everything included (GCC 12, -O3, rows of 2048), beside ggml's kernels counted so too:
//
//           iq1_s  iq1_m  iq2_xxs  iq2_xs  iq2_s  iq3_xxs  iq3_s
//   here      212    245      263     283    307      352    374
//   ggml      365    451      297     314    446      393    452
//
// The caller guarantees whole blocks and activations padded to 256 columns.
#include <arm_neon.h>

#include "kernels.h"

namespace lutkern {
namespace {

#include "neon_codebook.inl.h"

#include "neon_plain.inl.h"

// ---- codebook formats ----

static inline int8x16_t load_i8x16(const int8_t* p) { return vld1q_s8(p); }

// Lane k: the sum of the lanes of vector k
static inline int32x4_t sums_of_lanes(const int32x4_t* v) {
  return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}

// codes . x.q, times 2 s + 1, for the groups of 32 columns 4 h .. 4 h + 3
template <class Block>
[[gnu::always_inline]] static inline int32x4_t scaled_sums(const Block& b, const Fields& f, const Scales& s, int half,
                                                           const int8_t* q) {
  int32x4_t even[4];
  int32x4_t odd[4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    const int i = 8 * half + 2 * g;
    even[g] = vdotq_s32(vdupq_n_s32(0), codes16(b, f, i), load_i8x16(q + 16 * i));
    const int32x4_t start = kScale16<Block> ? vdupq_n_s32(0) : even[g];
    odd[g] = vdotq_s32(start, codes16(b, f, i + 1), load_i8x16(q + 16 * i + 16));
  }
  if constexpr (kScale16<Block>) {
    return vmlaq_s32(vmulq_s32(sums_of_lanes(even), s.even[half]), sums_of_lanes(odd), s.odd[half]);
  } else {
    return vmulq_s32(sums_of_lanes(odd), s.even[half]);
  }
}

template <class Block>
[[gnu::always_inline]] static inline int32x4_t dot_half(const Block& b, const Fields& f, const Scales& s, int half,
                                                        const int8_t* q, const int16_t*) {
  return scaled_sums(b, f, s, half, q);
}

// The shifts of IQ1 meet sums of activations: one product for 8 columns instead of eight.
[[gnu::always_inline]] static inline int32x4_t dot_half(const Iq1S& b, const Fields& f, const Scales& s, int half,
                                                        const int8_t* q, const int16_t* sum) {
  // Bit 15 of a word: minus, for 32 columns, whose activations are four sums of 8.
  const int32x4_t minus = vmovl_s16(vshr_n_s16(vreinterpret_s16_u8(vld1_u8(b.word[4 * half])), 15));
  const int32x4_t shift = vsubq_s32(veorq_s32(s.even[half], minus), minus);
  const int32x4_t x_sum = vpaddlq_s16(vpaddq_s16(vld1q_s16(sum + 16 * half), vld1q_s16(sum + 16 * half + 8)));
  return vmlaq_s32(vshlq_n_s32(scaled_sums(b, f, s, half, q), 3), shift, x_sum);
}

[[gnu::always_inline]] static inline int32x4_t dot_half(const Iq1M& b, const Fields& f, const Scales& s, int half,
                                                        const int8_t* q, const int16_t* sum) {
  // Bits 3 and 7 of a byte: minus, for 8 columns each. Two of them share a scale.
  const uint8x8_t high = vld1_u8(b.high + 8 * half);
  const int16x8_t first = vmovl_s8(vreinterpret_s8_u8(vshl_n_u8(high, 4)));
  const int16x8_t second = vmovl_s8(vreinterpret_s8_u8(high));
  const int16x8_t one = vdupq_n_s16(1);
  const int16x8x2_t x_sum = vld2q_s16(sum + 16 * half);
  const int16x8_t shifts = vmlaq_s16(vmulq_s16(x_sum.val[0], vorrq_s16(vshrq_n_s16(first, 15), one)), x_sum.val[1],
                                     vorrq_s16(vshrq_n_s16(second, 15), one));
  const int16x8_t scale = scales8(b, half);
  const int32x4_t low = vmull_s16(vget_low_s16(shifts), vget_low_s16(scale));
  const int32x4_t eighths = vpaddq_s32(low, vmull_high_s16(shifts, scale));
  return vmlaq_n_s32(eighths, scaled_sums(b, f, s, half, q), 8);
}

// The fields of a block are cut while the block before it is multiplied: they go through memory, and a loop that waited
// for them would not keep the processor full.
template <class Block>
static void gemv_codebook(const Rows& rows, const Activations& x, float* out) {
  const int64_t n_blocks = rows.cols / 256;
  Fields fields[2];
  for (int64_t r = 0; r < rows.n_rows; ++r) {
    const Block* block = reinterpret_cast<const Block*>(rows.data + r * rows.row_bytes);
    const Block* const last = block + n_blocks - 1;
    Fields* f = &fields[0];
    Fields* ahead = &fields[1];
    const int8_t* q = x.q;
    const float* scale = x.scale;
    const int16_t* sum = x.sum;
    float32x4_t acc_f32x4 = vdupq_n_f32(0.0f);
    fields_of(*block, *f);
    for (; block <= last; ++block, q += 256, scale += 8, sum += 32) {
      fields_of(block[block != last], *ahead);
      const Scales s = scales_of(*block);
      const int32x4_t first = dot_half(*block, *f, s, 0, q, sum);
      const int32x4_t second = dot_half(*block, *f, s, 1, q, sum);
      float32x4_t sum_f32x4 = vmulq_f32(vcvtq_f32_s32(first), vld1q_f32(scale));
      sum_f32x4 = vfmaq_f32(sum_f32x4, vcvtq_f32_s32(second), vld1q_f32(scale + 4));
      acc_f32x4 = vfmaq_n_f32(acc_f32x4, sum_f32x4, block_factor(*block));
      Fields* const used = f;
      f = ahead;
      ahead = used;
    }
    out[r] = vaddvq_f32(acc_f32x4);
  }
}

// ---- the loops written once ----

#include "unpack.inl.h"

template <>
struct ChunkToFloat<F16, true> {
  static inline int run(const uint8_t* row, int64_t chunk, int64_t cols, float* w) {
    const int n = chunk_columns(cols, chunk);
    const F16* block = reinterpret_cast<const F16*>(row) + chunk * kChunk;
    int c = 0;
    for (; c + 4 <= n; c += 4) {
      const uint8x8_t bytes = vld1_u8(reinterpret_cast<const uint8_t*>(block + c));
      vst1q_f32(w + c, vcvt_f32_f16(vreinterpret_f16_u8(bytes)));
    }
    for (; c < n; ++c) w[c] = weight(block[c]);
    return n;
  }
};

struct Sum {
  float32x4_t f32x4;
};

// Sums of 16 activations as float
static inline float32x2_t two_sums(const int16_t* sum) { return vcvt_f32_s32(vpaddl_s16(vld1_s16(sum))); }

template <bool kHasOffset>
static inline void add_chunk(Sum& acc, const Unpacked& u, int n, const int8_t* q, const float* scale,
                             const int16_t* sum) {
  float32x4_t out = acc.f32x4;
  float32x2_t offsets = vdup_n_f32(0.0f);
  for (int g = 0; g < n / kActivationGroup; ++g) {
    const int8_t* w = u.q + 32 * g;
    const int8_t* x = q + 32 * g;
    const int32x4_t first = vdotq_s32(vdupq_n_s32(0), load_i8x16(w), load_i8x16(x));
    const int32x4_t second = vdotq_s32(vdupq_n_s32(0), load_i8x16(w + 16), load_i8x16(x + 16));
    // Lanes 0 and 1 belong to the first 16 columns, lanes 2 and 3 to the rest.
    const float32x2_t two = vld1_f32(u.scale + 2 * g);
    const float32x4_t w_scale = vcombine_f32(vdup_lane_f32(two, 0), vdup_lane_f32(two, 1));
    out = vfmaq_n_f32(out, vmulq_f32(vcvtq_f32_s32(vpaddq_s32(first, second)), w_scale), scale[g]);
    if (kHasOffset)
      offsets = vfma_n_f32(offsets, vmul_f32(vld1_f32(u.offset + 2 * g), two_sums(sum + 4 * g)), scale[g]);
  }
  acc.f32x4 = kHasOffset ? vaddq_f32(out, vcombine_f32(offsets, vdup_n_f32(0.0f))) : out;
}

static inline float total(const Sum& acc) { return vaddvq_f32(acc.f32x4); }

// A chunk of a panel with its rows interleaved: four bytes of a row are one lane, so that the lane is the row's sum and
// the activations are the element that sdot multiplies every lane with.
struct PanelScales {
  alignas(16) int8_t q[kPanel * kChunk];
  alignas(16) float scale[kPanel * kChunk / 16];
  alignas(16) float offset[kPanel * kChunk / 16];
};

// n / 16 numbers of each row, row by row -> number by number
static inline void interleave(const float* a, const float* b, const float* c, const float* d, int n, float* out) {
  for (int k = 0; k < n / 16; k += 2) {
    vst4_f32(out + kPanel * k, (float32x2x4_t{{vld1_f32(a + k), vld1_f32(b + k), vld1_f32(c + k), vld1_f32(d + k)}}));
  }
}

// Rows that the last panel lacks repeat its first one.
static inline void load_scales(const Unpacked* u, int n_rows, int n, PanelScales& panel) {
  const Unpacked& a = u[0];
  const Unpacked& b = u[n_rows > 1 ? 1 : 0];
  const Unpacked& c = u[n_rows > 2 ? 2 : 0];
  const Unpacked& d = u[n_rows > 3 ? 3 : 0];
  for (int i = 0; i < n; i += 16) {
    const uint32x4x4_t rows = {{load_u32x4(a.q + i), load_u32x4(b.q + i), load_u32x4(c.q + i), load_u32x4(d.q + i)}};
    vst4q_u32(reinterpret_cast<uint32_t*>(panel.q + kPanel * i), rows);
  }
  interleave(a.scale, b.scale, c.scale, d.scale, n, panel.scale);
  interleave(a.offset, b.offset, c.offset, d.offset, n, panel.offset);
}

// Lane r: row r of 16 columns times x
static inline int32x4_t dot16_of_rows(const int8_t* w, int8x16_t x) {
  int32x4_t sum = vdotq_laneq_s32(vdupq_n_s32(0), load_i8x16(w), x, 0);
  sum = vdotq_laneq_s32(sum, load_i8x16(w + 16), x, 1);
  sum = vdotq_laneq_s32(sum, load_i8x16(w + 32), x, 2);
  return vdotq_laneq_s32(sum, load_i8x16(w + 48), x, 3);
}

template <bool kHasOffset>
static inline void dot_panel(const Unpacked*, const PanelScales& panel, int, int n, const int8_t* q, const float* scale,
                             const int16_t* sum, float* dots) {
  float32x4_t acc = vdupq_n_f32(0.0f);
  for (int g = 0; g < n / 32; ++g) {
    const int8_t* w = panel.q + kPanel * 32 * g;
    const float* w_scale = panel.scale + kPanel * 2 * g;
    const float32x4_t first = vcvtq_f32_s32(dot16_of_rows(w, load_i8x16(q + 32 * g)));
    const float32x4_t second = vcvtq_f32_s32(dot16_of_rows(w + 64, load_i8x16(q + 32 * g + 16)));
    float32x4_t group = vmulq_f32(first, vld1q_f32(w_scale));
    group = vfmaq_f32(group, second, vld1q_f32(w_scale + kPanel));
    if (kHasOffset) {
      const float* offset = panel.offset + kPanel * 2 * g;
      const float32x2_t sums = two_sums(sum + 4 * g);
      group = vfmaq_lane_f32(group, vld1q_f32(offset), sums, 0);
      group = vfmaq_lane_f32(group, vld1q_f32(offset + kPanel), sums, 1);
    }
    acc = vfmaq_n_f32(acc, group, scale[g]);
  }
  vst1q_f32(dots, acc);
}

static inline float dot_float(const float* w, const float* x, int n) {
  float32x4_t acc[4] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f), vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
  int c = 0;
  for (; c + 16 <= n; c += 16) {
    for (int k = 0; k < 4; ++k) acc[k] = vfmaq_f32(acc[k], vld1q_f32(w + c + 4 * k), vld1q_f32(x + c + 4 * k));
  }
  float tail = 0.0f;
  for (; c < n; ++c) tail += w[c] * x[c];
  return vaddvq_f32(vaddq_f32(vaddq_f32(acc[0], acc[1]), vaddq_f32(acc[2], acc[3]))) + tail;
}

// fmax and fmaxv give NaN if one number is NaN.
static inline float largest_magnitude(const float* x) {
  float32x4_t largest = vabsq_f32(vld1q_f32(x));
  for (int j = 4; j < kActivationGroup; j += 4) largest = vmaxq_f32(largest, vabsq_f32(vld1q_f32(x + j)));
  return vmaxvq_f32(largest);
}

static inline void round_group(const float* x, float inverse, int8_t* q) {
  for (int j = 0; j < kActivationGroup; j += 8) {
    const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + j), inverse));
    const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + j + 4), inverse));
    vst1_s8(q + j, vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high))));
  }
}

#include "gemv.inl.h"

#include "gemm.inl.h"

#include "integer_kernels.inl.h"

#include "quantize.inl.h"

// A codebook format takes its own matrix-vector kernel, every other one the loop written once.
template <class Block, bool kOwn = kIsCodebook<Block>>
struct Gemv {
  static constexpr GemvFn kFn = IntegerKernels<Block>::kGemv;
};

template <class Block>
struct Gemv<Block, true> {
  static constexpr GemvFn kFn = gemv_codebook<Block>;
};

}  // namespace

#define LUTKERN_GEMV(name, Block) Gemv<Block>::kFn,
#define LUTKERN_GEMM(name, Block) IntegerKernels<Block>::kGemm,
#define LUTKERN_GEMM_FLOAT(name, Block) gemm_float<Block>,
#define LUTKERN_DEQUANTIZE(name, Block) dequantize<Block>,

extern const BlockKernels kNeonKernels = {
    "neon",
    {LUTKERN_FORMATS(LUTKERN_GEMV)},
    {LUTKERN_FORMATS(LUTKERN_GEMM)},
    {LUTKERN_FORMATS(LUTKERN_GEMM_FLOAT)},
    {LUTKERN_FORMATS(LUTKERN_DEQUANTIZE)},
    quantize,
};

}  // namespace lutkern
