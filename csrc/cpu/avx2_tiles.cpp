// Tiles on AVX2: the words of the loops written once in tile_*.inl.h.
//
// A vector is 8 rows of 4 columns, half of a tile. For 32 columns of 8 rows:
//
//   pairs = vpmaddubsw(code, x)              code 0 .. max, x the same four activations in every lane
//   sums  = vpaddw(...)                      while the sum of pairs stays below 2^15
//   acc   = vpaddd(vpmaddwd(sums, scale))    the integer scale rides in the addition of pairs
//
// Codebook rows of 8 columns come by scalar loads, their numbers two at a time: rows 0 1 4 5 and 2 3 6 7 fill two vectors,
// two vshufps make of them the columns 0 .. 3 and 4 .. 7 of rows 0 .. 7. Three loads a cycle bound these kernels. Signs
// walk through the top bit of each byte by doubling, where vpsignb sees them.
#include <immintrin.h>

#include "../tiles/tiles.h"
#include "kernels.h"

namespace lutkern {
namespace {

enum : int { kVectorBytes = 32, kParts = kTileRows * 4 / kVectorBytes };
// Eight groups in a row would be more instructions than the processor keeps decoded.
constexpr bool kShortLoops = true;
// A group ahead, its loads would find numbers that are still on their way to the cache.
enum : int { kNumbersKept = 8 };

#include "tile_vectors.inl.h"

template <typename V>
static inline __m256i raw(V v) {
  return reinterpret_cast<__m256i>(v);
}

static inline Vu32 load(const uint8_t* p) {
  return reinterpret_cast<Vu32>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline void store(float* p, Vf32 v) { _mm256_storeu_ps(p, v); }
static inline Vi8 broadcast4(const int8_t* q) {
  int32_t four = 0;
  __builtin_memcpy(&four, q, sizeof(four));
  return reinterpret_cast<Vi8>(_mm256_set1_epi32(four));
}
// Asks for a line of memory, before p is used again: the compiler would collect what it is free to move in one place.
template <class T>
static inline void prefetch(const uint8_t* line, const T*& p) {
  asm("prefetcht0 %1" : "+r"(p) : "m"(*line));
}

// Bits shift .. of each byte, as many as mask has
static inline Vu8 bytes_of(Vu32 word, int shift, uint32_t mask) {
  return reinterpret_cast<Vu8>((word >> shift) & (Vu32{} + 0x01010101u * mask));
}
static inline Vu8 three_times(Vu8 v) { return v + v + v; }
// 255 where a is above b, as signed numbers
static inline Vu8 above(Vu8 a, Vu8 b) { return reinterpret_cast<Vu8>(_mm256_cmpgt_epi8(raw(a), raw(b))); }
// A constant of which the compiler does not know that it is one: it would turn comparisons with it into two instructions.
static inline Vu8 hidden(Vu8 v) {
  asm("" : "+x"(v));
  return v;
}
static inline Vf32 float_of(Vi32 v) { return _mm256_cvtepi32_ps(raw(v)); }
static inline Vf32 fma(Vf32 a, Vf32 b, Vf32 c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vf32 halves(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vf32 floats_of_halves(Vu32 v) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(raw(v), raw(v)), 0xd8);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}
static inline Vu32 widen_u16(const uint8_t* p) {
  return reinterpret_cast<Vu32>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline Vu32 widen_u8(const uint8_t* p) {
  return reinterpret_cast<Vu32>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// Bytes a and b of each lane as a pair of 16-bit numbers: zero-extended, or in the high bytes
static inline Vi16 byte_pair(Vu32 v, int a, int b) {
  const __m256i lanes =
      _mm256_setr_epi32(0x80008000, 0x80048004, 0x80088008, 0x800c800c, 0x80008000, 0x80048004, 0x80088008, 0x800c800c);
  return reinterpret_cast<Vi16>(_mm256_shuffle_epi8(raw(v), _mm256_add_epi32(lanes, _mm256_set1_epi32(a | b << 16))));
}
static inline Vi16 byte_pair_high(Vu32 v, int a, int b) {
  const __m256i lanes =
      _mm256_setr_epi32(0x00800080, 0x04800480, 0x08800880, 0x0c800c80, 0x00800080, 0x04800480, 0x08800880, 0x0c800c80);
  return reinterpret_cast<Vi16>(
      _mm256_shuffle_epi8(raw(v), _mm256_add_epi32(lanes, _mm256_set1_epi32(a << 8 | b << 24))));
}
// Byte b of each lane in all its bytes
static inline Vu32 byte_all(Vu32 v, int b) {
  const __m256i lanes = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
  return reinterpret_cast<Vu32>(
      _mm256_shuffle_epi8(raw(v), _mm256_add_epi32(lanes, _mm256_set1_epi32(0x01010101 * b))));
}
static inline Vi16 low_twice(Vi16 pairs) {
  const __m256i order =
      _mm256_setr_epi32(0x01000100, 0x05040504, 0x09080908, 0x0d0c0d0c, 0x01000100, 0x05040504, 0x09080908, 0x0d0c0d0c);
  return reinterpret_cast<Vi16>(_mm256_shuffle_epi8(raw(pairs), order));
}
static inline Vi16 high_twice(Vi16 pairs) {
  const __m256i order =
      _mm256_setr_epi32(0x03020302, 0x07060706, 0x0b0a0b0a, 0x0f0e0f0e, 0x03020302, 0x07060706, 0x0b0a0b0a, 0x0f0e0f0e);
  return reinterpret_cast<Vi16>(_mm256_shuffle_epi8(raw(pairs), order));
}
static inline Vu8 lookup16(const int8_t* table, Vu8 index) {
  const __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return reinterpret_cast<Vu8>(_mm256_shuffle_epi8(entries, raw(index)));
}

// The signs of a group (signs of tile_grids.inl.h) for vpsignb: of the vectors 1 3 5 7, of 0 2 4 6. A sign is the top bit
// of its byte, the next one comes there by doubling, and bit 0 is set, for a byte of zero would make a number zero.
static inline __m256i odd_signs(Vu32 signs) { return _mm256_or_si256(raw(signs), _mm256_set1_epi8(1)); }
static inline __m256i even_signs(Vu32 signs) {
  // What comes from the byte below stays under the top bit.
  return _mm256_or_si256(_mm256_slli_epi16(raw(signs), 4), _mm256_set1_epi8(1));
}

template <class V>
struct CodeSigns;
template <>
struct CodeSigns<Vu8> {
  __m256i sign;
  __m256i even;
  __m256i middle;
  int left = 4;
  inline CodeSigns(Vu8 signs, int8_t offset)
      : sign(odd_signs(reinterpret_cast<Vu32>(signs))),
        even(even_signs(reinterpret_cast<Vu32>(signs))),
        middle(_mm256_set1_epi8(offset)) {}
  inline Vu8 next(Vu8 code) {
    const __m256i plus_or_minus = _mm256_sign_epi8(raw(code), sign);
    sign = --left == 0 ? even : _mm256_add_epi8(sign, sign);
    return reinterpret_cast<Vu8>(_mm256_add_epi8(plus_or_minus, middle));
  }
};

static inline Vi32 pair_dot(Vi16 pairs, const int16_t* two) {
  int32_t both = 0;
  __builtin_memcpy(&both, two, sizeof(both));
  return reinterpret_cast<Vi32>(_mm256_madd_epi16(raw(pairs), _mm256_set1_epi32(both)));
}

// kN vectors of codes 0 .. kMax (0: signed bytes) times activations of at most 127, summed in each lane, times the scale.
// Products are added in pairs of 16 bits as long as they fit.
template <int kMax, int kN>
static inline Vi32 dot_scaled(const Vu8* code, const Vi8* x, Vi16 scale) {
  constexpr int kRun = kMax == 0 ? 1 : 32767 / (2 * 127 * kMax);
  Vi32 sum{};
#pragma GCC unroll 8
  for (int v = 0; v < kN; v += kRun) {
    __m256i pairs{};
    for (int i = v; i < v + kRun && i < kN; ++i) {
      const __m256i product =
          kMax == 0 ? _mm256_maddubs_epi16(_mm256_abs_epi8(raw(code[i])), _mm256_sign_epi8(raw(x[i]), raw(code[i])))
                    : _mm256_maddubs_epi16(raw(code[i]), raw(x[i]));
      pairs = i == v ? product : _mm256_add_epi16(pairs, product);
    }
    const Vi32 part = reinterpret_cast<Vi32>(_mm256_madd_epi16(pairs, raw(scale)));
    sum = v == 0 ? part : sum + part;
  }
  return sum;
}
template <int kMax, int kN>
static inline Vi32 dot(const Vu8* code, const Vi8* x) {
  return dot_scaled<kMax, kN>(code, x, Vi16{} + int16_t{1});
}

// ---- codebook rows ----

// Row numbers of more than 8 bits: four for each row, as 16-bit numbers, rows in the order 0 1 4 5 2 3 6 7
struct RowNumbers {
  alignas(32) uint16_t number[32];
  inline void put(Vu8 low, Vu8 high) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(number), _mm256_unpacklo_epi8(raw(low), raw(high)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(number + 16), _mm256_unpackhi_epi8(raw(low), raw(high)));
    asm("" : "+m"(number));  // through memory: cutting them out of a register takes more instructions
  }
};

// The row numbers i and i + 1 of row r, i even: of 8-bit numbers, which lie in the tile, or of RowNumbers. One load gives
// both: three loads a cycle are what looking up rows waits for.
struct NumberPair {
  uint32_t first;
  uint32_t second;
};
static inline NumberPair numbers_of(const uint8_t* index, int r, int i) {
  uint16_t memory = 0;
  __builtin_memcpy(&memory, index + 4 * r + i, sizeof(memory));
  uint32_t both = memory;
  asm("" : "+r"(both));  // of 32 bits: shifts of 16 take an instruction more
  return NumberPair{both & 0xffu, both >> 8};
}
static inline NumberPair numbers_of(const RowNumbers& n, int r, int i) {
  uint32_t both = 0;
  __builtin_memcpy(&both, n.number + 4 * (r & 1) + 16 * (r >> 1 & 1) + 8 * (r >> 2) + i, sizeof(both));
  return NumberPair{both & 0xffffu, both >> 16};
}

// A row of the codebook joins a vector at its place by a load that begins as much before it, and a blend: no shuffle.
template <int kPlace>
static inline __m128i joined(__m128i rows, const uint32_t* row) {
  return _mm_blend_epi32(rows, _mm_loadu_si128(reinterpret_cast<const __m128i*>(row - kPlace)), 1 << kPlace);
}
static inline __m128i two_rows(const uint64_t* a, const uint64_t* b) {
  const __m128d first = _mm_castsi128_pd(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(a)));
  return _mm_castpd_si128(_mm_loadh_pd(first, reinterpret_cast<const double*>(b)));
}

// Columns 8 i .. 8 i + 7 of the rows r, r + 1, r + 4, r + 5, for i = 0 .. 3
template <int kRows, class Numbers>
static inline void rows_of_8(const Codebook<uint64_t, kRows>& grid, const Numbers& numbers, int r, __m256i* rows) {
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2) {
    const NumberPair a = numbers_of(numbers, r, i);
    const NumberPair b = numbers_of(numbers, r + 1, i);
    const NumberPair c = numbers_of(numbers, r + 4, i);
    const NumberPair d = numbers_of(numbers, r + 5, i);
    const auto row = [&](uint32_t number) { return grid.row + number; };
    rows[i] = _mm256_set_m128i(two_rows(row(c.first), row(d.first)), two_rows(row(a.first), row(b.first)));
    rows[i + 1] = _mm256_set_m128i(two_rows(row(c.second), row(d.second)), two_rows(row(a.second), row(b.second)));
  }
}

// All 32 columns of rows 0 .. 7
template <int kRows, class Numbers>
static inline void grid8(const Codebook<uint64_t, kRows>& grid, const Numbers& numbers, Vu8* code) {
  __m256i even[4];
  __m256i odd[4];
  rows_of_8(grid, numbers, 0, even);
  rows_of_8(grid, numbers, 2, odd);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256 a = _mm256_castsi256_ps(even[i]);
    const __m256 b = _mm256_castsi256_ps(odd[i]);
    code[2 * i] = reinterpret_cast<Vu8>(_mm256_shuffle_ps(a, b, 0x88));
    code[2 * i + 1] = reinterpret_cast<Vu8>(_mm256_shuffle_ps(a, b, 0xdd));
  }
}

// Columns 4 i .. 4 i + 3 and 4 i + 4 .. 4 i + 7 of rows r .. r + 3
struct FourRows {
  __m128i first;
  __m128i second;
};
template <int kRows, class Numbers>
static inline FourRows four_rows(const Codebook<uint32_t, kRows>& grid, const Numbers& numbers, int r, int i) {
  const NumberPair n0 = numbers_of(numbers, r, i);
  const NumberPair n1 = numbers_of(numbers, r + 1, i);
  const NumberPair n2 = numbers_of(numbers, r + 2, i);
  const NumberPair n3 = numbers_of(numbers, r + 3, i);
  const auto join = [&](uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const __m128i one = _mm_loadu_si128(reinterpret_cast<const __m128i*>(grid.row + a));
    return joined<3>(joined<2>(joined<1>(one, grid.row + b), grid.row + c), grid.row + d);
  };
  return FourRows{join(n0.first, n1.first, n2.first, n3.first), join(n0.second, n1.second, n2.second, n3.second)};
}

// The same of rows 0 .. 7
template <int kRows, class Numbers>
static inline void rows_of_4(const Codebook<uint32_t, kRows>& grid, const Numbers& numbers, int i, __m256i* rows) {
  const FourRows low = four_rows(grid, numbers, 0, i);
  const FourRows high = four_rows(grid, numbers, 4, i);
  rows[0] = _mm256_set_m128i(high.first, low.first);
  rows[1] = _mm256_set_m128i(high.second, low.second);
}

// 16 columns of rows 0 .. 7
template <int kRows, class Numbers>
static inline void grid4(const Codebook<uint32_t, kRows>& grid, const Numbers& numbers, Vu8* code) {
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2) {
    __m256i rows[2];
    rows_of_4(grid, numbers, i, rows);
    code[i] = reinterpret_cast<Vu8>(rows[0]);
    code[i + 1] = reinterpret_cast<Vu8>(rows[1]);
  }
}

#include "tile_codes.inl.h"

#include "tile_grids.inl.h"

// ---- matrix times vector with codebook rows of 8 columns ----
//
// Two lanes are one row here, four rows a vector: what the loads give needs no shuffle, and two vectors become lanes of
// one row each by one addition at the end.

template <class Codes>
struct GridSum;

static inline __m256i broadcast8(const int8_t* q) {
  int64_t eight = 0;
  __builtin_memcpy(&eight, q, sizeof(eight));
  return _mm256_set1_epi64x(eight);
}

// Byte 0 of the lanes 0 and 1 (kHigh: 2 and 3) of each half as four 16-bit numbers
template <bool kHigh>
static inline __m256i byte_four_times(Vu32 v) {
  constexpr int first = static_cast<int>(0x80008000u | 0x00010001u * (8 * kHigh));
  const __m256i order = _mm256_setr_epi32(first, first, first + 0x00040004, first + 0x00040004, first, first,
                                          first + 0x00040004, first + 0x00040004);
  return _mm256_shuffle_epi8(raw(v), order);
}

// Byte 0 of each lane of the two is the scale of the first and of the second 16 columns.
struct TwoScales {
  Vu32 first;
  Vu32 second;
};

// The sums of rows r, r + 1, r + 4, r + 5. sign: bit 7 of each byte belongs to the columns 24 .. 31; scale of the first
// and of the second 16 columns.
template <int kRows, class Numbers>
static inline __m256i sum_of_8(const Codebook<uint64_t, kRows>& grid, const Numbers& numbers, int r, const __m256i* x,
                               __m256i sign, __m256i first, __m256i second) {
  __m256i rows[4];
  __m256i pairs[4];
  rows_of_8(grid, numbers, r, rows);
#pragma GCC unroll 4
  for (int i = 3; i >= 0; --i) {
    pairs[i] = _mm256_maddubs_epi16(rows[i], _mm256_sign_epi8(x[i], sign));
    sign = _mm256_add_epi8(sign, sign);
  }
  return _mm256_add_epi32(_mm256_madd_epi16(_mm256_add_epi16(pairs[0], pairs[1]), first),
                          _mm256_madd_epi16(_mm256_add_epi16(pairs[2], pairs[3]), second));
}

template <int kRows, class Numbers>
static inline Vi32 sum_of_grid8(const Codebook<uint64_t, kRows>& grid, const Numbers& numbers, const int8_t* q,
                                Vu32 signs, TwoScales s) {
  const __m256i x[4] = {broadcast8(q), broadcast8(q + 8), broadcast8(q + 16), broadcast8(q + 24)};
  const __m256i odd = odd_signs(signs);
  const __m256i even = even_signs(signs);
  const __m256i low = sum_of_8(grid, numbers, 0, x, _mm256_unpacklo_epi32(even, odd), byte_four_times<false>(s.first),
                               byte_four_times<false>(s.second));
  const __m256i high = sum_of_8(grid, numbers, 2, x, _mm256_unpackhi_epi32(even, odd), byte_four_times<true>(s.first),
                                byte_four_times<true>(s.second));
  const __m256 a = _mm256_castsi256_ps(low);
  const __m256 b = _mm256_castsi256_ps(high);
  return reinterpret_cast<Vi32>(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88))) +
         reinterpret_cast<Vi32>(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)));
}

template <>
struct GridSum<TileCodes<Iq2Xxs>> {
  static inline Vi32 run(TileCodes<Iq2Xxs>& c, int g, const int8_t* q) {
    const Vu32 odd = c.odd(g);
    return sum_of_grid8(kIq2XxsGrid, c.numbers(g), q, c.signs(g), TwoScales{odd, odd});
  }
};
template <>
struct GridSum<TileCodes<Iq2Xs>> {
  static inline Vi32 run(TileCodes<Iq2Xs>& c, int g, const int8_t* q) {
    return sum_of_grid8(kIq2XsGrid, c.numbers(g), q, c.signs(g), TwoScales{c.nibble.of(g, 0), c.nibble.of(g, 1)});
  }
};
template <>
struct GridSum<TileCodes<Iq2S>> {
  static inline Vi32 run(TileCodes<Iq2S>& c, int g, const int8_t* q) {
    return sum_of_grid8(kIq2SGrid, c.numbers(g), q, c.signs(g), TwoScales{c.nibble.of(g, 0), c.nibble.of(g, 1)});
  }
};

#include "tile_sums.inl.h"

// ---- matrix times vector with codes of two bits ----
//
// Three of the four places of a byte are multiplied where they are: one AND, and the sum is 1, 4 or 16 times too large,
// which one shift undoes for all columns. The highest place would not fit the sums of pairs.

template <int kN>
static inline Vi32 two_bit_dot(const TileBody& t, int first_word, int place, const Vi8* x, Vi16 scale) {
  Vu8 code[kN];
  for (int v = 0; v < kN; ++v) {
    const Vu32 word = t.word(first_word + v);
    code[v] = place == 3 ? bytes_of(word, 6, 3) : reinterpret_cast<Vu8>(word & splat(0x03030303u << 2 * place));
  }
  if (place == 1) return dot_scaled<12, kN>(code, x, scale);
  if (place == 2) return dot_scaled<48, kN>(code, x, scale);
  return dot_scaled<3, kN>(code, x, scale);
}

// A shift of the sum of a group
static inline int place_shift(int g) { return g % 4 == 3 ? 0 : 2 * (g % 4); }

static inline Vi32 group_sum(TileCodes<Tq20>& c, int g, const int8_t* q, const int16_t*, const int16_t* sum16) {
  const Vi16 one = Vi16{} + int16_t{1};
  Vi8 x[8];
  load_x(q, x);
  return (two_bit_dot<8>(c, 8 * (g / 4), g % 4, x, one) >> place_shift(g)) - pair_dot(one, sum16);
}

static inline Vi32 group_sum(TileCodes<Q2K>& c, int g, const int8_t* q, const int16_t*, const int16_t*) {
  const Vi16 scales = c.scales(g);
  const int first_word = 4 + 8 * (g / 4);
  Vi8 x[8];
  load_x(q, x);
  return (two_bit_dot<4>(c, first_word, g % 4, x, low_twice(scales)) +
          two_bit_dot<4>(c, first_word + 4, g % 4, x + 4, high_twice(scales))) >>
         place_shift(g);
}

#include "tile_gemv.inl.h"

// Codebook rows of 4 columns: a lane is a row. Each vector meets its activations at once, so that few are alive.
template <int kLargest, int kRows, class Numbers>
static inline Vi32 sum_of_grid4(const Codebook<uint32_t, kRows>& grid, const Numbers& low, const Numbers& high,
                                const int8_t* q, Vu32 signs, Vi16 scale) {
  constexpr bool kFit = 8 * 127 * kLargest < 32768;  // four sums of pairs
  __m256i odd = odd_signs(signs);
  __m256i even = even_signs(signs);
  __m256i sum = _mm256_setzero_si256();
  __m256i held{};
#pragma GCC unroll 4
  for (int i = 3; i >= 0; --i) {
    // The columns 8 i .. 8 i + 7 are the vectors 2 i and 2 i + 1.
    __m256i rows[2];
    rows_of_4(grid, i < 2 ? low : high, 2 * i % 4, rows);
    const __m256i xa = _mm256_sign_epi8(raw(broadcast4(q + 8 * i)), even);
    const __m256i first = _mm256_maddubs_epi16(rows[0], xa);
    const __m256i xb = _mm256_sign_epi8(raw(broadcast4(q + 8 * i + 4)), odd);
    __m256i pairs = _mm256_add_epi16(first, _mm256_maddubs_epi16(rows[1], xb));
    even = _mm256_add_epi8(even, even);
    odd = _mm256_add_epi8(odd, odd);
    if (kFit && i % 2 == 1) {
      held = pairs;
    } else {
      if (kFit) pairs = _mm256_add_epi16(pairs, held);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, raw(scale)));
    }
  }
  return reinterpret_cast<Vi32>(sum);
}

template <>
struct GridSum<TileCodes<Iq3Xxs>> {
  static inline Vi32 run(TileCodes<Iq3Xxs>& c, int g, const int8_t* q) {
    const uint8_t* numbers = c.body + 64 * (2 * g);
    return sum_of_grid4<62>(kIq3XxsGrid, numbers, numbers + 64, q, c.signs(g), c.scales(g));
  }
};
template <>
struct GridSum<TileCodes<Iq3S>> {
  static inline Vi32 run(TileCodes<Iq3S>& c, int g, const int8_t* q) {
    return sum_of_grid4<15>(kIq3SGrid, c.next[g][0], c.next[g][1], q, c.signs(g), c.scales(g));
  }
};

// ---- several vectors ----
//
// A vector of codes meets four tokens, a vector of activations both halves of the tile: 8 sums stay in registers.

template <class Codes>
struct OwnPanelSums {
  static constexpr bool kExists = true;
  static constexpr int kFit = Codes::kMax == 0 ? 1 : 32767 / (2 * 127 * Codes::kMax);
  static constexpr int kSpan = Codes::kScales == 2 ? 4 : 8;  // vectors that share a scale
  static constexpr int kRun = kFit < kSpan ? kFit : kSpan;   // of which as many sums of pairs fit 16 bits

  template <int kCount>
  static inline void run(const Vu8 (&code)[8][kParts], const Vi16 (&scale)[2][kParts], const int8_t* const* q,
                         Vi32 (&sum)[kCount][kParts]) {
    for (int i = 0; i < kCount; ++i) sum[i][0] = sum[i][1] = Vi32{};
#pragma GCC unroll 2
    for (int span = 0; span < 8; span += kSpan) {
#pragma GCC unroll 8
      for (int first = span; first < span + kSpan; first += kRun) {
        const int end = first + kRun < span + kSpan ? first + kRun : span + kSpan;
        __m256i pairs[kCount][kParts];
        for (int v = first; v < end; ++v) {
          const __m256i low = raw(code[v][0]);
          const __m256i high = raw(code[v][1]);
#pragma GCC unroll 4
          for (int i = 0; i < kCount; ++i) {
            const __m256i x = raw(broadcast4(q[i] + 4 * v));
            const __m256i a = product(low, x);
            const __m256i b = product(high, x);
            pairs[i][0] = v == first ? a : _mm256_add_epi16(pairs[i][0], a);
            pairs[i][1] = v == first ? b : _mm256_add_epi16(pairs[i][1], b);
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i) {
          for (int p = 0; p < kParts; ++p) {
            const __m256i s =
                Codes::kScales == 0 ? _mm256_set1_epi16(1) : raw(scale[span / 4 * (Codes::kScales == 2)][p]);
            sum[i][p] += reinterpret_cast<Vi32>(_mm256_madd_epi16(pairs[i][p], s));
          }
        }
      }
    }
  }

  static inline __m256i product(__m256i code, __m256i x) {
    return Codes::kMax == 0 ? _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(x, code))
                            : _mm256_maddubs_epi16(code, x);
  }
};

#include "tile_gemm.inl.h"

// ---- floats ----

enum : int { kPartRows = 8 };

#include "avx2_stores.inl.h"

// Two vectors are 8 columns of 8 rows: the bytes of a row come together, four rows in a vector.
struct TurnedRows {
  alignas(32) uint8_t bytes[4][2][4][8];

  inline void put(const Vu8* number) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i a = raw(number[2 * i]);
      const __m256i b = raw(number[2 * i + 1]);
      _mm256_store_si256(reinterpret_cast<__m256i*>(bytes[i][0]), _mm256_unpacklo_epi32(a, b));  // rows 0 1 4 5
      _mm256_store_si256(reinterpret_cast<__m256i*>(bytes[i][1]), _mm256_unpackhi_epi32(a, b));  // rows 2 3 6 7
    }
  }

  template <bool kTwo, bool kAdd, Stores kStores>
  inline void weights(int r, const float* scale, const float* offset, float* out) const {
    // Read before anything is written: the compiler does not know that out is apart.
    const __m256 scales[2] = {_mm256_broadcast_ss(scale), _mm256_broadcast_ss(scale + (kTwo ? kPartRows : 0))};
    const __m256 offsets[2] = {kAdd ? _mm256_broadcast_ss(offset) : __m256{},
                               kAdd ? _mm256_broadcast_ss(offset + (kTwo ? kPartRows : 0)) : __m256{}};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint8_t* eight = bytes[i][r >> 1 & 1][(r & 1) + (r >> 2) * 2];
      const __m256i number = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(eight)));
      const __m256 product = _mm256_mul_ps(scales[i / 2], _mm256_cvtepi32_ps(number));
      store_f32x8<kStores>(out + 8 * i, kAdd ? _mm256_add_ps(product, offsets[i / 2]) : product);
    }
  }
};

static inline __m256 pairs_of(__m256 a, __m256 b, bool high) {
  const __m256d x = _mm256_castps_pd(a);
  const __m256d y = _mm256_castps_pd(b);
  return _mm256_castpd_ps(high ? _mm256_unpackhi_pd(x, y) : _mm256_unpacklo_pd(x, y));
}

// Words 0 .. 7 of 8 rows, 64 bytes from word to word: those of a row side by side, rows stride words apart. Loads bring
// words u and u + 4 of four rows together, so that nothing crosses the halves of a vector.
static inline void turn_words(const uint8_t* body, uint32_t* out, int64_t stride) {
#pragma GCC unroll 2
  for (int first = 0; first < 8; first += 4) {
    __m256 word[4];
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const float* p = reinterpret_cast<const float*>(body + 64 * u) + first;
      word[u] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 64), 1);
    }
    const __m256 low01 = _mm256_unpacklo_ps(word[0], word[1]);
    const __m256 low23 = _mm256_unpacklo_ps(word[2], word[3]);
    const __m256 high01 = _mm256_unpackhi_ps(word[0], word[1]);
    const __m256 high23 = _mm256_unpackhi_ps(word[2], word[3]);
    float* at = reinterpret_cast<float*>(out + first * stride);
    _mm256_storeu_ps(at, pairs_of(low01, low23, false));
    _mm256_storeu_ps(at + stride, pairs_of(low01, low23, true));
    _mm256_storeu_ps(at + 2 * stride, pairs_of(high01, high23, false));
    _mm256_storeu_ps(at + 3 * stride, pairs_of(high01, high23, true));
  }
}

template <Stores kStores, class Block>
static inline void store_weights8(const Block* w, float* out) {
  store_f32x8<kStores>(out, weights8(w));
}

#include "tile_floats.inl.h"

}  // namespace

#define LUTKERN_GEMV(name, Block) TileKernelsOf<Block>::kGemv,
#define LUTKERN_GEMM(name, Block) TileKernelsOf<Block>::kGemm,
#define LUTKERN_DEQUANTIZE(name, Block) TileFloatsOf<Block>::kDequantize,

extern const TileKernels kAvx2TileKernels = {
    "avx2",
    {LUTKERN_FORMATS(LUTKERN_GEMV)},
    {LUTKERN_FORMATS(LUTKERN_GEMM)},
    {LUTKERN_FORMATS(LUTKERN_DEQUANTIZE)},
};

}  // namespace lutkern
