// The AVX2 row (with FMA and F16C), on blocks. This file holds the codebook formats; the others have avx2_plain.inl.h,
// the loops over rows and tokens avx2_rows.inl.h, weights as float avx2_floats.inl.h.
//
//   y = sum over blocks of d * sum over 32 columns of x.scale * sum over 16 columns of s * (q . x.q)
//
// Reads GGUF blocks in place. The inner loop of a codebook format, for 32 columns:
//
//   row    = four 8-byte (or eight 4-byte) codebook rows                32 magnitudes, unsigned bytes
//   signed = vpsignb(x.q, signs)                                       the sign moves to the activation
//   pairs  = vpmaddubsw(row, signed)                                   16 sums of two, at most 2 * 62 * 127 < 2^15
//   sums   = vpmaddwd(pairs, 2 s + 1)                                  8 sums of four, times the sub-block scale
//   acc    = vfmadd(float(sums), x.scale, acc)
//
// vpmaddubsw is why magnitudes stay apart from signs: it takes unsigned times signed bytes, 32 products in one
// instruction. The sub-block scale rides in vpmaddwd, which is needed anyway, so fp32 enters once for 32 columns and d
// once for 256. Row numbers, signs and scales are cut out of the bit fields for a whole block first (Fields): vpmullw
// by powers of two shifts 16 of them by different amounts, vpshufb looks up parities and spreads scales, and the loop
// is left with loads. IQ1 is ternary: vpsignb of the activation by the codebook row is the product itself, and its
// shift of one eighth meets sums of 8 activations.
//
// The caller guarantees whole blocks and activations padded to 256 columns.
#include <immintrin.h>

#include "kernels.h"

namespace lutkern {
namespace {

// ---- words ----

static inline __m256i load_i8x32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)), as in sums_of_lanes: a row has one result, alone or in a panel.
static inline float sum_of_lanes(__m256 v) {
  const __m256 pairs = _mm256_add_ps(v, _mm256_movehdup_ps(v));
  const __m128 low = _mm256_castps256_ps128(pairs);
  const __m128 high = _mm256_extractf128_ps(pairs, 1);
  return _mm_cvtss_f32(
      _mm_add_ss(_mm_add_ss(low, _mm_movehl_ps(low, low)), _mm_add_ss(high, _mm_movehl_ps(high, high))));
}

static inline __m256i rows_of_8(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  return _mm256_set_epi64x(static_cast<int64_t>(d), static_cast<int64_t>(c), static_cast<int64_t>(b),
                           static_cast<int64_t>(a));
}

static inline uint64_t two_rows_of_4(uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; }

// 32 sign bits -> 32 bytes of 1 or -1
static inline __m256i signs_of_bits(uint32_t bits) {
  const __m256i spread = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), spread);
  const __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
  return _mm256_or_si256(minus, _mm256_set1_epi8(1));
}

static inline __m128i load_u8x16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
static inline __m128i load_u8x8(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
static inline __m256i both_lanes(__m128i v) { return _mm256_broadcastsi128_si256(v); }
static inline __m128i low_lane(__m256i v) { return _mm256_castsi256_si128(v); }
static inline __m128i high_lane(__m256i v) { return _mm256_extracti128_si256(v, 1); }

static inline float half_of(const uint8_t* p) { return _cvtsh_ss(static_cast<unsigned short>(p[0] | p[1] << 8)); }

// ---- codebook formats ----

// What 256 weights need, cut out of the block's bit fields all at once, so that the inner loop is left with plain
// loads.
struct Fields {
  alignas(32) uint16_t row[64];  // codebook rows, where the block does not store them as bytes
  alignas(32) uint32_t sign[8];  // sign bits of 32 weights
  __m256i scale_i16x16;          // 2 s + 1; low lane: of the even 16 columns, high lane: of the odd ones
};

static inline void store_signs(Fields& f, __m256i sign) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(f.sign), sign);
}

// Rows at .. at + 15: low bytes as stored, high bits in place.
static inline void store_rows(Fields& f, int at, const uint8_t* low, __m256i high_u16x16) {
  const __m256i rows = _mm256_or_si256(_mm256_cvtepu8_epi16(load_u8x16(low)), high_u16x16);
  _mm256_store_si256(reinterpret_cast<__m256i*>(f.row + at), rows);
}

// Bytes of seven bits get their parity as the eighth, looked up by nibbles.
static inline __m256i with_parity(__m256i codes_u8x32) {
  const __m256i odd = both_lanes(_mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i low = _mm256_and_si256(codes_u8x32, nibble);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes_u8x32, 4), nibble);
  return _mm256_or_si256(codes_u8x32, _mm256_shuffle_epi8(odd, _mm256_xor_si256(low, high)));
}

// Four seven-bit sign codes in the low 28 bits of eight words -> 32 sign bits each
static inline __m256i signs_of_words(__m256i word_u32x8) {
  const __m256i first = _mm256_and_si256(word_u32x8, _mm256_set1_epi32(0x7f));
  const __m256i second = _mm256_and_si256(_mm256_slli_epi32(word_u32x8, 1), _mm256_set1_epi32(0x7f00));
  const __m256i third = _mm256_and_si256(_mm256_slli_epi32(word_u32x8, 2), _mm256_set1_epi32(0x7f0000));
  const __m256i fourth = _mm256_and_si256(_mm256_slli_epi32(word_u32x8, 3), _mm256_set1_epi32(0x7f000000));
  return with_parity(_mm256_or_si256(_mm256_or_si256(first, second), _mm256_or_si256(third, fourth)));
}

// 2 s + 1 for eight scales of 32 columns each
static inline __m256i odd_scales(__m128i s_u16x8) {
  return both_lanes(_mm_add_epi16(_mm_add_epi16(s_u16x8, s_u16x8), _mm_set1_epi16(1)));
}

// The same for eight words with the scale in their bits 28..31
static inline __m256i odd_scales_of_words(__m256i word_u32x8) {
  const __m256i s = _mm256_srli_epi32(word_u32x8, 28);
  return odd_scales(_mm_packus_epi32(low_lane(s), high_lane(s)));
}

// The same for sixteen 4-bit scales in 8 bytes, low nibble first
static inline __m256i odd_scales_of_nibbles(const uint8_t* scale) {
  const __m128i bytes = _mm_cvtepu8_epi16(load_u8x8(scale));
  const __m128i even = _mm_and_si128(_mm_add_epi16(bytes, bytes), _mm_set1_epi16(30));
  const __m128i odd = _mm_and_si128(_mm_srli_epi16(bytes, 3), _mm_set1_epi16(30));
  return _mm256_add_epi16(_mm256_set_m128i(odd, even), _mm256_set1_epi16(1));
}

static inline void fields_of(const Iq2Xxs& b, Fields& f) {
  // A group is two 32-bit numbers, four indices and the word: the words of eight groups come together.
  const __m256 low = _mm256_castsi256_ps(load_i8x32(b.group));
  const __m256 high = _mm256_castsi256_ps(load_i8x32(b.group + 4));
  const __m256i mixed = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
  const __m256i words = _mm256_permute4x64_epi64(mixed, 0xd8);
  store_signs(f, signs_of_words(words));
  f.scale_i16x16 = odd_scales_of_words(words);
}

static inline void fields_of(const Iq2Xs& b, Fields& f) {
  const __m256i first = load_i8x32(b.word[0]);
  const __m256i second = load_i8x32(b.word[16]);
  const __m256i index = _mm256_set1_epi16(511);
  _mm256_store_si256(reinterpret_cast<__m256i*>(f.row), _mm256_and_si256(first, index));
  _mm256_store_si256(reinterpret_cast<__m256i*>(f.row + 16), _mm256_and_si256(second, index));
  const __m256i codes = _mm256_packus_epi16(_mm256_srli_epi16(first, 9), _mm256_srli_epi16(second, 9));
  store_signs(f, with_parity(_mm256_permute4x64_epi64(codes, 0xd8)));
  f.scale_i16x16 = odd_scales_of_nibbles(b.scale);
}

static inline void fields_of(const Iq2S& b, Fields& f) {
  // A byte of high serves four rows: repeated as 16-bit and times 2^(8 - 2 i), its bits 2 i come to bits 8 and 9.
  const __m256i to_bit8 = _mm256_set1_epi64x(0x0004001000400100);
  const __m256i four = _mm256_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1,  //
                                        2, -1, 2, -1, 2, -1, 2, -1, 3, -1, 3, -1, 3, -1, 3, -1);
  for (int half = 0; half < 2; ++half) {
    const __m128i high = _mm_cvtsi32_si128(static_cast<int>(load_u32(b.high + 4 * half)));
    const __m256i moved = _mm256_mullo_epi16(_mm256_shuffle_epi8(both_lanes(high), four), to_bit8);
    store_rows(f, 16 * half, b.index + 16 * half, _mm256_and_si256(moved, _mm256_set1_epi16(0x300)));
  }
  store_signs(f, load_i8x32(b.sign));
  f.scale_i16x16 = odd_scales_of_nibbles(b.scale);
}

static inline void fields_of(const Iq3Xxs& b, Fields& f) {
  const __m256i words = load_i8x32(b.word);
  store_signs(f, signs_of_words(words));
  f.scale_i16x16 = odd_scales_of_words(words);
}

static inline void fields_of(const Iq3S& b, Fields& f) {
  // Two bytes of high serve 16 rows: each lane of the repeated word keeps one bit.
  const __m256i bit = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
  for (int part = 0; part < 4; ++part) {
    const __m256i word = _mm256_set1_epi16(static_cast<short>(load_u16(b.high + 2 * part)));
    const __m256i set = _mm256_cmpeq_epi16(_mm256_and_si256(word, bit), bit);
    store_rows(f, 16 * part, b.index + 16 * part, _mm256_and_si256(set, _mm256_set1_epi16(0x100)));
  }
  store_signs(f, load_i8x32(b.sign));
  // Each byte of scale twice: times 16 the low nibble comes to bits 4..7, where the high one is.
  const __m128i twice = _mm_shuffle_epi8(_mm_cvtsi32_si128(static_cast<int>(load_u32(b.scale))),
                                         _mm_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1));
  const __m128i nibbles = _mm_srli_epi16(_mm_mullo_epi16(twice, _mm_set1_epi32(0x00010010)), 4);
  f.scale_i16x16 = odd_scales(_mm_and_si128(nibbles, _mm_set1_epi16(15)));
}

static inline void fields_of(const Iq1S& b, Fields& f) {
  // A word serves four rows: repeated, times 2^(9 - 3 i) and right by one, its bits 3 i come to bits 8..10.
  const __m256i to_bit9 = _mm256_set1_epi64x(0x0001000800400200);
  const __m256i four = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3,  //
                                        4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7);
  for (int half = 0; half < 2; ++half) {
    const __m256i words = _mm256_shuffle_epi8(both_lanes(load_u8x8(b.word[4 * half])), four);
    const __m256i moved = _mm256_srli_epi16(_mm256_mullo_epi16(words, to_bit9), 1);
    store_rows(f, 16 * half, b.index + 16 * half, _mm256_and_si256(moved, _mm256_set1_epi16(0x700)));
  }
  f.scale_i16x16 = odd_scales(_mm_and_si128(_mm_srli_epi16(load_u8x16(b.word), 12), _mm_set1_epi16(7)));
}

// The four bits of each row, in order, one byte each
static inline __m256i high_nibbles(const Iq1M& b) {
  const __m256i pairs = _mm256_cvtepu8_epi16(load_u8x16(b.high));
  return _mm256_and_si256(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)), _mm256_set1_epi8(15));
}

static inline void fields_of(const Iq1M& b, Fields& f) {
  const __m256i bits = _mm256_and_si256(high_nibbles(b), _mm256_set1_epi8(7));
  store_rows(f, 0, b.index, _mm256_slli_epi16(_mm256_cvtepu8_epi16(low_lane(bits)), 8));
  store_rows(f, 16, b.index + 16, _mm256_slli_epi16(_mm256_cvtepu8_epi16(high_lane(bits)), 8));
  // Scale i of a word is its bits 3 i: times 2^(13 - 3 i) and right by 13. Even ones in the low lane, odd ones in the
  // high lane.
  const __m128i twice =
      _mm_shuffle_epi8(load_u8x8(b.word), _mm_setr_epi8(0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7));
  const __m256i to_bit13 = _mm256_set_m128i(_mm_set1_epi32(0x00100400), _mm_set1_epi32(0x00802000));
  const __m256i s = _mm256_srli_epi16(_mm256_mullo_epi16(both_lanes(twice), to_bit13), 13);
  f.scale_i16x16 = _mm256_add_epi16(_mm256_add_epi16(s, s), _mm256_set1_epi16(1));
}

// Codebook rows of 32 weights
template <typename Index, int kRows>
static inline __m256i rows32(const Codebook<uint64_t, kRows>& grid, const Index* row) {
  return rows_of_8(grid.row[row[0]], grid.row[row[1]], grid.row[row[2]], grid.row[row[3]]);
}

template <typename Index, int kRows>
static inline __m256i rows32(const Codebook<uint32_t, kRows>& grid, const Index* row) {
  return rows_of_8(two_rows_of_4(grid.row[row[0]], grid.row[row[1]]), two_rows_of_4(grid.row[row[2]], grid.row[row[3]]),
                   two_rows_of_4(grid.row[row[4]], grid.row[row[5]]),
                   two_rows_of_4(grid.row[row[6]], grid.row[row[7]]));
}

static inline __m256i rows32(const Iq1S&, const Fields& f, int g) { return rows32(kIq1Grid, f.row + 4 * g); }
static inline __m256i rows32(const Iq1M&, const Fields& f, int g) { return rows32(kIq1Grid, f.row + 4 * g); }
static inline __m256i rows32(const Iq2Xxs& b, const Fields&, int g) { return rows32(kIq2XxsGrid, b.group[g].index); }
static inline __m256i rows32(const Iq2Xs&, const Fields& f, int g) { return rows32(kIq2XsGrid, f.row + 4 * g); }
static inline __m256i rows32(const Iq2S&, const Fields& f, int g) { return rows32(kIq2SGrid, f.row + 4 * g); }
static inline __m256i rows32(const Iq3Xxs& b, const Fields&, int g) { return rows32(kIq3XxsGrid, b.index + 8 * g); }
static inline __m256i rows32(const Iq3S&, const Fields& f, int g) { return rows32(kIq3SGrid, f.row + 8 * g); }

// The scale of 16 columns is block_factor * (2 s + 1), for IQ1 an eighth of that in units of its codes.
static inline float block_factor(const Iq1S& b) { return half_of(b.d); }
static inline float block_factor(const Iq1M& b) {
  const unsigned half =
      b.word[0][1] >> 4 | (b.word[1][1] & 0xf0) | (b.word[2][1] & 0xf0) << 4 | (b.word[3][1] & 0xf0) << 8;
  return _cvtsh_ss(static_cast<unsigned short>(half));
}
static inline float block_factor(const Iq2Xxs& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq2Xs& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq2S& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq3Xxs& b) { return half_of(b.d) * 0.25f; }
static inline float block_factor(const Iq3S& b) { return half_of(b.d); }

// 2 s + 1 of 32 columns where vpmaddwd wants it: element g of each lane, all over that lane
static inline __m256i scales32(const Fields& f, int g) {
  return _mm256_shuffle_epi8(f.scale_i16x16, _mm256_set1_epi16(static_cast<short>((2 * g + 1) << 8 | 2 * g)));
}

static inline __m256 add32(__m256i pairs_i16x16, __m256i scales_i16x16, const float* scale, __m256 sum_f32x8) {
  const __m256i sums_i32x8 = _mm256_madd_epi16(pairs_i16x16, scales_i16x16);
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums_i32x8), _mm256_broadcast_ss(scale), sum_f32x8);
}

// What is multiplied with a row, or with one block of it: a token from some column on
struct Columns {
  const int8_t* q;
  const float* scale;
  const int16_t* sum;
  const int16_t* sum16;

  inline Columns from(int64_t column) const {
    return {q + column, scale + column / kActivationGroup, sum + column / kSumGroup, sum16 + column / 16};
  }
};

// sum[t] += block . token t, of kT tokens: what is cut out of the block serves all of them.
template <int kT, class Block>
static inline void dot_rows(const Block& b, const Fields& f, const Columns* x, __m256* sum_f32x8) {
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const __m256i row = rows32(b, f, g);
    const __m256i sign = signs_of_bits(f.sign[g]);
    const __m256i scales = scales32(f, g);
    for (int t = 0; t < kT; ++t) {
      const __m256i signed_x = _mm256_sign_epi8(load_i8x32(x[t].q + 32 * g), sign);
      sum_f32x8[t] = add32(_mm256_maddubs_epi16(row, signed_x), scales, x[t].scale + g, sum_f32x8[t]);
    }
  }
}

// The ternary rows of IQ1, without their shifts
template <int kT, class Block>
static inline void dot_ternary(const Block& b, const Fields& f, const Columns* x, __m256* sum_f32x8) {
  const __m256i one = _mm256_set1_epi8(1);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const __m256i row = rows32(b, f, g);
    const __m256i scales = scales32(f, g);
    for (int t = 0; t < kT; ++t) {
      const __m256i signed_x = _mm256_sign_epi8(load_i8x32(x[t].q + 32 * g), row);
      sum_f32x8[t] = add32(_mm256_maddubs_epi16(one, signed_x), scales, x[t].scale + g, sum_f32x8[t]);
    }
  }
}

// The shifts of IQ1 meet sums of activations: one product for 8 columns instead of eight, an integer until x.scale.
static inline __m256 dot_shifts(const Iq1S& b, const Fields& f, const Columns& x) {
  // Bit 15 of a word: minus, for 32 columns, whose activations are two sums of 16.
  const __m128i sign = _mm_or_si128(_mm_srai_epi16(load_u8x16(b.word), 15), _mm_set1_epi16(1));
  const __m128i shift = _mm_sign_epi16(low_lane(f.scale_i16x16), sign);
  const __m256i once = _mm256_cvtepu16_epi32(shift);
  const __m256i twice = _mm256_or_si256(once, _mm256_slli_epi32(once, 16));
  const __m256 eighths = _mm256_cvtepi32_ps(_mm256_madd_epi16(load_i8x32(x.sum16), twice));
  return _mm256_mul_ps(_mm256_mul_ps(eighths, _mm256_set1_ps(0.125f)), _mm256_loadu_ps(x.scale));
}

static inline __m256 dot_shifts(const Iq1M& b, const Fields& f, const Columns& x) {
  // Bit 3 of a nibble: minus, for 8 columns. Two of them share a scale.
  const __m256i minus = _mm256_cmpgt_epi8(high_nibbles(b), _mm256_set1_epi8(7));
  const __m128i even = low_lane(f.scale_i16x16);
  const __m128i odd = high_lane(f.scale_i16x16);
  __m256 eighths = _mm256_setzero_ps();
  for (int half = 0; half < 2; ++half) {
    const __m256i sign = _mm256_cvtepi8_epi16(half ? high_lane(minus) : low_lane(minus));
    const __m256i signed_i16x16 =
        _mm256_sign_epi16(load_i8x32(x.sum + 16 * half), _mm256_or_si256(sign, _mm256_set1_epi16(1)));
    const __m128i in_order = half ? _mm_unpackhi_epi16(even, odd) : _mm_unpacklo_epi16(even, odd);
    const __m256i once = _mm256_cvtepi16_epi32(in_order);
    const __m256i twice = _mm256_or_si256(once, _mm256_slli_epi32(once, 16));
    const __m128 four = _mm_loadu_ps(x.scale + 4 * half);
    const __m256 x_scale = _mm256_set_m128(_mm_unpackhi_ps(four, four), _mm_unpacklo_ps(four, four));
    eighths = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(signed_i16x16, twice)), x_scale, eighths);
  }
  return _mm256_mul_ps(eighths, _mm256_set1_ps(0.125f));
}

template <int kT, class Block>
static inline void dot_block(const Block& b, const Fields& f, const Columns* x, __m256* sum_f32x8) {
  dot_rows<kT>(b, f, x, sum_f32x8);
}
template <int kT>
static inline void dot_block(const Iq1S& b, const Fields& f, const Columns* x, __m256* sum_f32x8) {
  for (int t = 0; t < kT; ++t) sum_f32x8[t] = dot_shifts(b, f, x[t]);
  dot_ternary<kT>(b, f, x, sum_f32x8);
}
template <int kT>
static inline void dot_block(const Iq1M& b, const Fields& f, const Columns* x, __m256* sum_f32x8) {
  for (int t = 0; t < kT; ++t) sum_f32x8[t] = dot_shifts(b, f, x[t]);
  dot_ternary<kT>(b, f, x, sum_f32x8);
}

// The fields of a block are cut while the block before it is multiplied: they go through memory, and a loop that waited
// for them would not keep the processor full.
template <class Block, int kT>
static inline void dot_codebook_row(const Block* block, int64_t cols, const Columns* x, __m256* acc_f32x8) {
  const int64_t n_blocks = cols / 256;
  Fields fields[2];
  fields_of(block[0], fields[0]);
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t next = b + 1 < n_blocks ? b + 1 : b;
    fields_of(block[next], fields[(b + 1) % 2]);
    Columns here[kT];
    __m256 sum_f32x8[kT];
    for (int t = 0; t < kT; ++t) {
      here[t] = x[t].from(256 * b);
      sum_f32x8[t] = _mm256_setzero_ps();
    }
    dot_block<kT>(block[b], fields[b % 2], here, sum_f32x8);
    const __m256 factor = _mm256_set1_ps(block_factor(block[b]));
    for (int t = 0; t < kT; ++t) acc_f32x8[t] = _mm256_fmadd_ps(sum_f32x8[t], factor, acc_f32x8[t]);
  }
}

// ---- codebook formats to plain integers ----

template <class Block>
static inline __m256i codes32(const Block& b, const Fields& f, int g) {
  return _mm256_sign_epi8(rows32(b, f, g), signs_of_bits(f.sign[g]));
}

// There is no byte shift: what a 16-bit shift carries across the byte border is cleared.
static inline __m256i eight_times(__m256i row_i8x32) {
  return _mm256_and_si256(_mm256_slli_epi16(row_i8x32, 3), _mm256_set1_epi8(static_cast<char>(0xf8)));
}

static inline __m256i codes32(const Iq1S& b, const Fields& f, int g) {
  return _mm256_add_epi8(eight_times(rows32(b, f, g)), _mm256_set1_epi8((b.word[g][1] & 0x80) ? -1 : 1));
}

static inline __m256i codes32(const Iq1M& b, const Fields& f, int g) {
  const uint64_t shift[2] = {0x0101010101010101, ~uint64_t{0}};
  const uint8_t* high = b.high + 2 * g;
  const __m256i shifts =
      rows_of_8(shift[high[0] >> 3 & 1], shift[high[0] >> 7], shift[high[1] >> 3 & 1], shift[high[1] >> 7]);
  return _mm256_add_epi8(eight_times(rows32(b, f, g)), shifts);
}

// In units of the codes of codes32
template <class Block>
static inline float code_factor(const Block& b) {
  return block_factor(b);
}
static inline float code_factor(const Iq1S& b) { return block_factor(b) * 0.125f; }
static inline float code_factor(const Iq1M& b) { return block_factor(b) * 0.125f; }

// A format is a codebook format where fields_of takes it.
template <class Block, class Result = void>
struct IsCodebook {
  static constexpr bool kExists = false;
};
template <class Block>
struct IsCodebook<Block, decltype(fields_of(*static_cast<const Block*>(nullptr), *static_cast<Fields*>(nullptr)))> {
  static constexpr bool kExists = true;
};

// ---- every other format, and the loops ----

#include "avx2_plain.inl.h"

#include "avx2_rows.inl.h"

#include "avx2_stores.inl.h"

#include "avx2_floats.inl.h"

#include "gemm_float.inl.h"

// ---- activations ----

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

#include "quantize.inl.h"

#include "narrow.inl.h"

static void to_f16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), halves);
  }
  for (; i < n; ++i) out[i] = half_of_float(x[i]);
}

// In the low halves of the lanes
static inline __m256i bf16_of_floats(const float* x) {
  const __m256 value = _mm256_loadu_ps(x);
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i even = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
}

static void to_bf16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i apart = _mm256_packus_epi32(bf16_of_floats(x + i), bf16_of_floats(x + i + 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permute4x64_epi64(apart, 0xd8));
  }
  for (; i < n; ++i) out[i] = bf16_of_float(x[i]);
}

}  // namespace

#define LUTKERN_GEMV(name, Block) IntegerKernels<Block>::kGemv,
#define LUTKERN_GEMM(name, Block) IntegerKernels<Block>::kGemm,
#define LUTKERN_GEMM_FLOAT(name, Block) gemm_float<Block>,
#define LUTKERN_DEQUANTIZE(name, Block) dequantize<Block>,

extern const BlockKernels kAvx2Kernels = {
    "avx2",
    {LUTKERN_FORMATS(LUTKERN_GEMV)},
    {LUTKERN_FORMATS(LUTKERN_GEMM)},
    {LUTKERN_FORMATS(LUTKERN_GEMM_FLOAT)},
    {LUTKERN_FORMATS(LUTKERN_DEQUANTIZE)},
    quantize,
    to_f16,
    to_bf16,
};

}  // namespace lutkern
