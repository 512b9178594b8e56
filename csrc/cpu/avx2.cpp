// The AVX2 row (with FMA and F16C): matrix-vector kernels for the codebook formats, and for every other format the
// loops written once over AVX2 words.
//
//   y = sum over blocks of d * sum over 32 columns of x.scale * sum over 16 columns of s * (q . x.q)
//
// Reads GGUF blocks in place. The inner loop of a codebook format, for 32 columns:
//
//   row    = four 8-byte (or eight 4-byte) codebook rows                32 magnitudes, unsigned bytes
//   signed = vpsignb(x.q, signs)                                       the sign moves to the activation
//   pairs  = vpmaddubsw(row, signed)                                   16 sums of two, at most 2 * 62 * 127 < 2^15
//   sums   = vpmaddwd(pairs, s)                                        8 sums of four, times the sub-block scale
//   acc    = vfmadd(float(sums), x.scale, acc)
//
// vpmaddubsw is why magnitudes stay apart from signs: it takes unsigned times signed bytes, 32 products in one
// instruction. The sub-block scale rides in vpmaddwd, which is needed anyway, so fp32 enters once for 32 columns and d
// once for 256. IQ1 is ternary: vpsignb of the activation by the codebook row is the product itself, weighted by eight;
// the shift of one eighth is a second vpsignb.
//
// The caller guarantees whole blocks and activations padded to 256 columns.
#include <immintrin.h>

#include "kernels.h"

namespace lutkern {
namespace {

// ---- words ----

static inline __m256i load_i8x32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

static inline float sum_of_lanes(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// Sums of four products of int8 by int8. The magnitude of -128 is 128, which an unsigned byte holds.
static inline __m256i dot4_i32x8(__m256i w_i8, __m256i x_i8) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w_i8), _mm256_sign_epi8(x_i8, w_i8));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

static inline __m256i rows_of_8(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  return _mm256_set_epi64x(static_cast<int64_t>(d), static_cast<int64_t>(c), static_cast<int64_t>(b),
                           static_cast<int64_t>(a));
}

static inline uint64_t two_rows_of_4(uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; }

// 28 bits, four seven-bit sign codes -> 32 bytes of 1 or -1
static inline __m256i signs_of_codes(uint32_t word) {
  return rows_of_8(kSigns.row[word & 127], kSigns.row[(word >> 7) & 127], kSigns.row[(word >> 14) & 127],
                   kSigns.row[(word >> 21) & 127]);
}

// 32 sign bits -> 32 bytes of 1 or -1
static inline __m256i signs_of_bits(uint32_t bits) {
  const __m256i spread = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), spread);
  const __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
  return _mm256_or_si256(minus, _mm256_set1_epi8(1));
}

// Two scales, 16 columns each, as the int16 operand of vpmaddwd
static inline __m256i two_scales(int low, int high) {
  return _mm256_set_m128i(_mm_set1_epi16(static_cast<short>(high)), _mm_set1_epi16(static_cast<short>(low)));
}

// ---- codebook formats: 32 columns at a time ----

// Magnitudes (unsigned bytes) and signs (bytes of 1 or -1) of 32 weights.
struct Signed32 {
  __m256i magnitude;
  __m256i sign;
};

static inline uint32_t word_of(const uint8_t* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return word;
}

static inline Signed32 group32(const Iq2Xxs& b, int g) {
  const uint8_t* index = b.group[g].index;
  return {rows_of_8(kIq2XxsGrid.row[index[0]], kIq2XxsGrid.row[index[1]], kIq2XxsGrid.row[index[2]],
                    kIq2XxsGrid.row[index[3]]),
          signs_of_codes(word_of(b.group[g].word))};
}

static inline Signed32 group32(const Iq2Xs& b, int g) {
  uint64_t words;
  __builtin_memcpy(&words, b.word[4 * g], sizeof(words));
  return {rows_of_8(kIq2XsGrid.row[words & 511], kIq2XsGrid.row[(words >> 16) & 511],
                    kIq2XsGrid.row[(words >> 32) & 511], kIq2XsGrid.row[(words >> 48) & 511]),
          rows_of_8(kSigns.row[(words >> 9) & 127], kSigns.row[(words >> 25) & 127], kSigns.row[(words >> 41) & 127],
                    kSigns.row[words >> 57])};
}

static inline Signed32 group32(const Iq2S& b, int g) {
  const uint8_t* index = b.index + 4 * g;
  const uint32_t high = b.high[g];
  return {rows_of_8(kIq2SGrid.row[index[0] | (high << 8 & 0x300)], kIq2SGrid.row[index[1] | (high << 6 & 0x300)],
                    kIq2SGrid.row[index[2] | (high << 4 & 0x300)], kIq2SGrid.row[index[3] | (high << 2 & 0x300)]),
          signs_of_bits(word_of(b.sign + 4 * g))};
}

static inline Signed32 group32(const Iq3Xxs& b, int g) {
  const uint8_t* index = b.index + 8 * g;
  return {rows_of_8(two_rows_of_4(kIq3XxsGrid.row[index[0]], kIq3XxsGrid.row[index[1]]),
                    two_rows_of_4(kIq3XxsGrid.row[index[2]], kIq3XxsGrid.row[index[3]]),
                    two_rows_of_4(kIq3XxsGrid.row[index[4]], kIq3XxsGrid.row[index[5]]),
                    two_rows_of_4(kIq3XxsGrid.row[index[6]], kIq3XxsGrid.row[index[7]])),
          signs_of_codes(word_of(b.word[g]))};
}

static inline Signed32 group32(const Iq3S& b, int g) {
  const uint8_t* index = b.index + 8 * g;
  const uint32_t high = b.high[g];
  return {
      rows_of_8(
          two_rows_of_4(kIq3SGrid.row[index[0] | (high << 8 & 0x100)], kIq3SGrid.row[index[1] | (high << 7 & 0x100)]),
          two_rows_of_4(kIq3SGrid.row[index[2] | (high << 6 & 0x100)], kIq3SGrid.row[index[3] | (high << 5 & 0x100)]),
          two_rows_of_4(kIq3SGrid.row[index[4] | (high << 4 & 0x100)], kIq3SGrid.row[index[5] | (high << 3 & 0x100)]),
          two_rows_of_4(kIq3SGrid.row[index[6] | (high << 2 & 0x100)], kIq3SGrid.row[index[7] | (high << 1 & 0x100)])),
      signs_of_bits(word_of(b.sign + 4 * g))};
}

static inline __m256i pairs_i16(const Signed32& w, __m256i x_i8) {
  return _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(x_i8, w.sign));
}

// Ternary rows and shifts (bytes of 1 or -1) of 32 weights, in eighths: w = 8 * row + shift.
struct Ternary32 {
  __m256i row;
  __m256i shift;
};

static inline Ternary32 group32(const Iq1S& b, int g) {
  const uint8_t* index = b.index + 4 * g;
  const uint32_t word = static_cast<uint32_t>(b.word[g][0] | b.word[g][1] << 8);
  return {rows_of_8(kIq1Grid.row[index[0] | (word << 8 & 0x700)], kIq1Grid.row[index[1] | (word << 5 & 0x700)],
                    kIq1Grid.row[index[2] | (word << 2 & 0x700)], kIq1Grid.row[index[3] | (word >> 1 & 0x700)]),
          _mm256_set1_epi8((word & 0x8000) ? -1 : 1)};
}

static inline Ternary32 group32(const Iq1M& b, int g) {
  const uint8_t* index = b.index + 4 * g;
  const uint32_t high = static_cast<uint32_t>(b.high[2 * g] | b.high[2 * g + 1] << 8);
  // Shift bits 3, 7, 11, 15, one for 8 weights: byte 0 or byte 1 of high, tested at bit 3 or bit 7.
  const __m256i spread = _mm256_set_epi64x(0x0101010101010101, 0x0101010101010101, 0, 0);
  const __m256i bit = _mm256_set_epi64x(static_cast<int64_t>(0x8080808080808080u), 0x0808080808080808,
                                        static_cast<int64_t>(0x8080808080808080u), 0x0808080808080808);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi16(static_cast<short>(high)), spread);
  const __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
  return {rows_of_8(kIq1Grid.row[index[0] | (high << 8 & 0x700)], kIq1Grid.row[index[1] | (high << 4 & 0x700)],
                    kIq1Grid.row[index[2] | (high & 0x700)], kIq1Grid.row[index[3] | (high >> 4 & 0x700)]),
          _mm256_or_si256(minus, _mm256_set1_epi8(1))};
}

static inline __m256i pairs_i16(const Ternary32& w, __m256i x_i8) {
  const __m256i rows = _mm256_maddubs_epi16(_mm256_set1_epi8(8), _mm256_sign_epi8(x_i8, w.row));
  const __m256i shifts = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_sign_epi8(x_i8, w.shift));
  return _mm256_add_epi16(rows, shifts);
}

// Integer sub-block scales of 32 columns and the float that multiplies the whole block:
// scale16 = block_factor * integer.
static inline __m256i scales32(const Iq1S& b, int g) {
  return _mm256_set1_epi16(static_cast<short>((b.word[g][1] >> 3 & 14) + 1));
}
static inline __m256i scales32(const Iq1M& b, int g) {
  const int word = b.word[g / 2][0] | b.word[g / 2][1] << 8;
  const int two = word >> (6 * (g % 2));
  return two_scales((two << 1 & 14) + 1, (two >> 2 & 14) + 1);
}
static inline __m256i scales32(const Iq2Xxs& b, int g) {
  return _mm256_set1_epi16(static_cast<short>((b.group[g].word[3] >> 3 & 30) + 1));
}
static inline __m256i scales32(const Iq2Xs& b, int g) {
  return two_scales((b.scale[g] << 1 & 30) + 1, (b.scale[g] >> 3 & 30) + 1);
}
static inline __m256i scales32(const Iq2S& b, int g) {
  return two_scales((b.scale[g] << 1 & 30) + 1, (b.scale[g] >> 3 & 30) + 1);
}
static inline __m256i scales32(const Iq3Xxs& b, int g) {
  return _mm256_set1_epi16(static_cast<short>((b.word[g][3] >> 3 & 30) + 1));
}
static inline __m256i scales32(const Iq3S& b, int g) {
  return _mm256_set1_epi16(static_cast<short>((b.scale[g / 2] >> (4 * (g % 2)) & 15) * 2 + 1));
}

static inline float half_of(const uint8_t* p) { return _cvtsh_ss(static_cast<unsigned short>(p[0] | p[1] << 8)); }

static inline float block_factor(const Iq1S& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq1M& b) {
  const unsigned half =
      b.word[0][1] >> 4 | (b.word[1][1] & 0xf0) | (b.word[2][1] & 0xf0) << 4 | (b.word[3][1] & 0xf0) << 8;
  return _cvtsh_ss(static_cast<unsigned short>(half)) * 0.125f;
}
static inline float block_factor(const Iq2Xxs& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq2Xs& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq2S& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq3Xxs& b) { return half_of(b.d) * 0.25f; }
static inline float block_factor(const Iq3S& b) { return half_of(b.d); }

template <class Block>
static void gemv_codebook(const Rows& rows, const Activations& x, float* out) {
  for (int64_t r = 0; r < rows.n_rows; ++r) {
    const Block* block = reinterpret_cast<const Block*>(rows.data + r * rows.row_bytes);
    __m256 acc_f32x8 = _mm256_setzero_ps();
    for (int64_t b = 0; b < rows.cols / 256; ++b) {
      const int8_t* q = x.q + 256 * b;
      const float* scale = x.scale + 8 * b;
      __m256 sum_f32x8 = _mm256_setzero_ps();
      for (int g = 0; g < 8; ++g) {
        const __m256i pairs_i16x16 = pairs_i16(group32(block[b], g), load_i8x32(q + 32 * g));
        const __m256i sums_i32x8 = _mm256_madd_epi16(pairs_i16x16, scales32(block[b], g));
        sum_f32x8 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums_i32x8), _mm256_broadcast_ss(scale + g), sum_f32x8);
      }
      acc_f32x8 = _mm256_fmadd_ps(sum_f32x8, _mm256_set1_ps(block_factor(block[b])), acc_f32x8);
    }
    out[r] = sum_of_lanes(acc_f32x8);
  }
}

// ---- the loops written once ----

#include "unpack.inl.h"

struct Sum {
  __m256 f32x8;
};

// Scales of 32 columns: lanes 0..3 belong to the first 16 columns, lanes 4..7 to the rest, like the sums of
// dot4_i32x8.
static inline __m256 lanes_of_two(const float* two) {
  return _mm256_set_m128(_mm_broadcast_ss(two + 1), _mm_broadcast_ss(two));
}

template <bool kHasOffset>
static inline void add_chunk(Sum& acc, const Unpacked& u, int n, const int8_t* q, const float* scale,
                             const int16_t* sum) {
  __m256 out = acc.f32x8;
  for (int g = 0; g < n / kActivationGroup; ++g) {
    const __m256i dots = dot4_i32x8(load_i8x32(u.q + 32 * g), load_i8x32(q + 32 * g));
    const __m256 x_scale = _mm256_broadcast_ss(scale + g);
    out = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dots), lanes_of_two(u.scale + 2 * g)), x_scale, out);
  }
  if (kHasOffset) {
    // 16 sums of 16 columns meet 16 offsets; activation scale g belongs to sums 2 g and 2 g + 1.
    for (int g = 0; g < n / kActivationGroup; g += 4) {
      const __m256 sums =
          _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sum + 2 * g))));
      const __m128 four = _mm_loadu_ps(scale + g);
      const __m256 scales = _mm256_set_m128(_mm_unpackhi_ps(four, four), _mm_unpacklo_ps(four, four));
      const int left = n / 16 - 2 * g;  // offsets past the columns of a short chunk are not written
      const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      const __m256i valid = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), lane);
      const __m256 offsets = _mm256_maskload_ps(u.offset + 2 * g, valid);
      out = _mm256_fmadd_ps(_mm256_mul_ps(offsets, sums), scales, out);
    }
  }
  acc.f32x8 = out;
}

static inline float total(const Sum& acc) { return sum_of_lanes(acc.f32x8); }

template <bool kHasOffset>
static inline void dot_panel(const Unpacked* u, int n_rows, int n, const int8_t* q, const float* scale,
                             const int16_t* sum, float* dots) {
  for (int p = 0; p < n_rows; ++p) {
    Sum acc{_mm256_setzero_ps()};
    add_chunk<kHasOffset>(acc, u[p], n, q, scale, sum);
    dots[p] = total(acc);
  }
}

static inline float dot_float(const float* w, const float* x, int n) {
  __m256 even = _mm256_setzero_ps();
  __m256 odd = _mm256_setzero_ps();
  int c = 0;
  for (; c + 16 <= n; c += 16) {
    even = _mm256_fmadd_ps(_mm256_loadu_ps(w + c), _mm256_loadu_ps(x + c), even);
    odd = _mm256_fmadd_ps(_mm256_loadu_ps(w + c + 8), _mm256_loadu_ps(x + c + 8), odd);
  }
  float tail = 0.0f;
  for (; c < n; ++c) tail += w[c] * x[c];
  return sum_of_lanes(_mm256_add_ps(even, odd)) + tail;
}

static inline float largest_magnitude(const float* x) {
  // A maximum would lose NaN: magnitudes are compared as integers, which order floats of one sign, NaN above infinity.
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_and_si256(load_i8x32(x), mask);
  for (int j = 8; j < kActivationGroup; j += 8) {
    largest = _mm256_max_epi32(largest, _mm256_and_si256(load_i8x32(x + j), mask));
  }
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(half));
}

static inline void round_group(const float* x, float inverse, int8_t* q) {
  __m256i code[4];
  for (int j = 0; j < 4; ++j) {
    code[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * j), _mm256_set1_ps(inverse)));
  }
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]), _mm256_packs_epi32(code[2], code[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_permutevar8x32_epi32(packed, order));
}

// The codebook formats unpack by their 32 columns; a template of the same name serves the rest.
template <class Block>
static inline void unpack_codebook(const Block& block, int8_t* q, float* scale) {
  for (int g = 0; g < 8; ++g) {
    const Signed32 w = group32(block, g);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + 32 * g), _mm256_sign_epi8(w.magnitude, w.sign));
  }
  for (int g = 0; g < 16; ++g) scale[g] = scale16(block, g);
}

template <class Block>
static inline void unpack_ternary(const Block& block, int8_t* q, float* scale) {
  for (int g = 0; g < 8; ++g) {
    const Ternary32 w = group32(block, g);
    // There is no byte shift: what a 16-bit shift carries across the byte border is cleared.
    const __m256i clear = _mm256_set1_epi8(static_cast<char>(0xf8));
    const __m256i eighths = _mm256_and_si256(_mm256_slli_epi16(w.row, 3), clear);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + 32 * g), _mm256_add_epi8(eighths, w.shift));
  }
  for (int g = 0; g < 16; ++g) scale[g] = scale16(block, g);
}

template <>
inline void unpack_block(const Iq1S& b, int8_t* q, float* scale, float*) {
  unpack_ternary(b, q, scale);
}
template <>
inline void unpack_block(const Iq1M& b, int8_t* q, float* scale, float*) {
  unpack_ternary(b, q, scale);
}
template <>
inline void unpack_block(const Iq2Xxs& b, int8_t* q, float* scale, float*) {
  unpack_codebook(b, q, scale);
}
template <>
inline void unpack_block(const Iq2Xs& b, int8_t* q, float* scale, float*) {
  unpack_codebook(b, q, scale);
}
template <>
inline void unpack_block(const Iq2S& b, int8_t* q, float* scale, float*) {
  unpack_codebook(b, q, scale);
}
template <>
inline void unpack_block(const Iq3Xxs& b, int8_t* q, float* scale, float*) {
  unpack_codebook(b, q, scale);
}
template <>
inline void unpack_block(const Iq3S& b, int8_t* q, float* scale, float*) {
  unpack_codebook(b, q, scale);
}

#include "gemv.inl.h"

#include "gemm.inl.h"

#include "quantize.inl.h"

// A codebook format takes its own matrix-vector kernel, every other one the loop written once.
template <class Block>
struct Gemv {
  static constexpr GemvFn kFn = IntegerKernels<Block>::kGemv;
};
template <>
struct Gemv<Iq1S> {
  static constexpr GemvFn kFn = gemv_codebook<Iq1S>;
};
template <>
struct Gemv<Iq1M> {
  static constexpr GemvFn kFn = gemv_codebook<Iq1M>;
};
template <>
struct Gemv<Iq2Xxs> {
  static constexpr GemvFn kFn = gemv_codebook<Iq2Xxs>;
};
template <>
struct Gemv<Iq2Xs> {
  static constexpr GemvFn kFn = gemv_codebook<Iq2Xs>;
};
template <>
struct Gemv<Iq2S> {
  static constexpr GemvFn kFn = gemv_codebook<Iq2S>;
};
template <>
struct Gemv<Iq3Xxs> {
  static constexpr GemvFn kFn = gemv_codebook<Iq3Xxs>;
};
template <>
struct Gemv<Iq3S> {
  static constexpr GemvFn kFn = gemv_codebook<Iq3S>;
};

}  // namespace

#define LUTKERN_GEMV(name, Block) Gemv<Block>::kFn,
#define LUTKERN_GEMM(name, Block) IntegerKernels<Block>::kGemm,
#define LUTKERN_GEMM_FLOAT(name, Block) gemm_float<Block>,
#define LUTKERN_DEQUANTIZE(name, Block) dequantize<Block>,

extern const CpuKernels kAvx2Kernels = {
    "avx2",
    {LUTKERN_FORMATS(LUTKERN_GEMV)},
    {LUTKERN_FORMATS(LUTKERN_GEMM)},
    {LUTKERN_FORMATS(LUTKERN_GEMM_FLOAT)},
    {LUTKERN_FORMATS(LUTKERN_DEQUANTIZE)},
    quantize,
};

}  // namespace lutkern
