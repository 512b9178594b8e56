// Tiles on AVX-512: the words of the loops written once in tile_*.inl.h, and paths of its own for IQ1, IQ2 and IQ3.
//
// A vector is a tile: 16 rows of 4 columns. For 32 columns of 16 rows:
//
//   sums  = vpdpbusd(sums, code, x)          for 8 vectors; x the same four activations in every lane
//   acc   = vfmadd(float(sums) * scale, x.scale, acc)
//
// IQ1, five digits in a byte:
//
//   four, fifth = vpermi2b(tables, byte)     codes of two bits: digits 0 .. 3, and digit 4
//   code        = gf2p8affineqb(four)        8 * digit k: cut out, cleared and moved at once
//   sums        = vpmaddwd(7 | 9, -sums of x.q)      what the shift and the 1 of digit - 1 make, where the sums start
//
// IQ2 and IQ3:
//
//   low, high   = vpermi2b(planes, row numbers)      the codes of all columns of 16 rows, two bytes for each number
//   code        = gf2p8affineqb(low or high)         the values are affine in the bits of the code: one instruction
//   x           = vpsubb{vpshufbitqmb(signs)}(0, x)  the sign moves to the activation
//
// Byte i of such a vector is column 4 i + k of 16 columns, so x is transposed to that order, once for 32 columns.
//
// Instructions for 64 weights, GCC 12, all overhead included:
//
//   iq1_s  iq1_m  iq2_xxs  iq2_xs  iq2_s  iq3_xxs  iq3_s  tq1_0  q4_k  q5_k  iq4_xs
//     6.8    8.9      9.5    12.5   15.8     10.4   14.4    7.7   6.7   9.8     8.1
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined registers of its own header for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

#include "../tiles/tiles.h"
#include "kernels.h"

namespace lutkern {
namespace {

enum : int { kVectorBytes = 64, kParts = 1 };
constexpr bool kShortLoops = false;
enum : int { kNumbersKept = 2 };

#include "tile_vectors.inl.h"

template <typename V>
static inline __m512i raw(V v) {
  return reinterpret_cast<__m512i>(v);
}

static inline Vu32 load(const uint8_t* p) { return reinterpret_cast<Vu32>(_mm512_loadu_si512(p)); }
static inline void store(float* p, Vf32 v) { _mm512_storeu_ps(p, reinterpret_cast<__m512>(v)); }
static inline Vi8 broadcast4(const void* q) {
  int32_t four = 0;
  __builtin_memcpy(&four, q, sizeof(four));
  return reinterpret_cast<Vi8>(_mm512_set1_epi32(four));
}
// Asks for a line of memory, before p is used again: the compiler would collect what it is free to move in one place.
template <class T>
static inline void prefetch(const uint8_t* line, const T*& p) {
  asm("prefetcht0 %1" : "+r"(p) : "m"(*line));
}

static inline Vf32 float_of(Vi32 v) { return reinterpret_cast<Vf32>(_mm512_cvtepi32_ps(raw(v))); }
static inline Vf32 fma(Vf32 a, Vf32 b, Vf32 c) {
  return reinterpret_cast<Vf32>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
}
static inline Vf32 halves(const uint8_t* p) {
  return reinterpret_cast<Vf32>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
static inline Vf32 floats_of_halves(Vu32 v) {
  return reinterpret_cast<Vf32>(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(raw(v))));
}
static inline Vu32 widen_u16(const uint8_t* p) {
  return reinterpret_cast<Vu32>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
static inline Vu32 widen_u8(const uint8_t* p) {
  return reinterpret_cast<Vu32>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// ---- constants ----

struct Bytes64 {
  alignas(64) uint8_t v[64];
};
struct Words16 {
  alignas(64) int32_t v[16];
};
struct Floats16 {
  alignas(64) float v[16];
};

template <class Constant>
static inline __m512i vector_of(const Constant& c) {
  return _mm512_load_si512(c.v);
}

// Each 32-bit lane picks bytes of itself: four numbers, 0x80 for a zero byte.
constexpr Bytes64 bytes_of_lane(int a, int b, int c, int d) {
  Bytes64 out{};
  const int from[4] = {a, b, c, d};
  for (int i = 0; i < 64; ++i) {
    out.v[i] = static_cast<uint8_t>(from[i % 4] == 0x80 ? 0x80 : i % 16 / 4 * 4 + from[i % 4]);
  }
  return out;
}

template <int kA, int kB, int kC, int kD>
static inline __m512i pick(Vu32 v) {
  static constexpr Bytes64 kFrom = bytes_of_lane(kA, kB, kC, kD);
  return _mm512_shuffle_epi8(raw(v), vector_of(kFrom));
}

// Bytes a and b of each lane as a pair of 16-bit numbers: zero-extended, or in the high bytes
static inline Vi16 byte_pair(Vu32 v, int a, int b) {
  static constexpr Bytes64 kLanes = bytes_of_lane(0, 0x80, 0, 0x80);
  return reinterpret_cast<Vi16>(
      _mm512_shuffle_epi8(raw(v), _mm512_add_epi32(vector_of(kLanes), _mm512_set1_epi32(a | b << 16))));
}
static inline Vi16 byte_pair_high(Vu32 v, int a, int b) {
  static constexpr Bytes64 kLanes = bytes_of_lane(0x80, 0, 0x80, 0);
  return reinterpret_cast<Vi16>(
      _mm512_shuffle_epi8(raw(v), _mm512_add_epi32(vector_of(kLanes), _mm512_set1_epi32(a << 8 | b << 24))));
}
// Byte b of each lane in all its bytes
static inline Vu32 byte_all(Vu32 v, int b) {
  static constexpr Bytes64 kLanes = bytes_of_lane(0, 0, 0, 0);
  return reinterpret_cast<Vu32>(
      _mm512_shuffle_epi8(raw(v), _mm512_add_epi32(vector_of(kLanes), _mm512_set1_epi32(0x01010101 * b))));
}
static inline Vi16 low_twice(Vi16 pairs) {
  return reinterpret_cast<Vi16>(pick<0, 1, 0, 1>(reinterpret_cast<Vu32>(pairs)));
}
static inline Vi16 high_twice(Vi16 pairs) {
  return reinterpret_cast<Vi16>(pick<2, 3, 2, 3>(reinterpret_cast<Vu32>(pairs)));
}
static inline Vu8 lookup16(const int8_t* table, Vu8 index) {
  const __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return reinterpret_cast<Vu8>(_mm512_shuffle_epi8(entries, raw(index)));
}

// ---- products ----

static inline Vi32 pair_dot(Vi16 pairs, const int16_t* two) {
  return reinterpret_cast<Vi32>(_mm512_madd_epi16(raw(pairs), raw(broadcast4(two))));
}

// Codes are 0 .. 255.
template <int kMax, int kN>
static inline Vi32 dot(const Vu8* code, const Vi8* x) {
  static_assert(kMax > 0, "signed bytes come as codes");
  // Two chains: with one, the processor would wait for its last sum before it has found enough else to do.
  __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
#pragma GCC unroll 8
  for (int v = 0; v < kN; ++v) sum[v % (kN / 4)] = _mm512_dpbusd_epi32(sum[v % (kN / 4)], raw(code[v]), raw(x[v]));
  return reinterpret_cast<Vi32>(kN > 4 ? _mm512_add_epi32(sum[0], sum[1]) : sum[0]);
}

// The scale is a number of 32 bits.
template <class V>
struct ScaleForm;
template <>
struct ScaleForm<Vi16> {
  static inline Vi16 first(Vi16 pairs) {
    return reinterpret_cast<Vi16>(reinterpret_cast<Vi32>(reinterpret_cast<Vu32>(pairs) << 16) >> 16);
  }
  static inline Vi16 second(Vi16 pairs) { return reinterpret_cast<Vi16>(reinterpret_cast<Vi32>(pairs) >> 16); }
  static inline Vi16 both(Vi16 twice) { return second(twice); }
};
template <int kMax, int kN>
static inline Vi32 dot_scaled(const Vu8* code, const Vi8* x, Vi16 scale) {
  return dot<kMax, kN>(code, x) * reinterpret_cast<Vi32>(scale);
}

// Signed bytes become codes by 128 more.
template <class V>
struct SignedCodes;
template <>
struct SignedCodes<Vu8> {
  static constexpr int kMax = 255;
  static constexpr int kOffset = 128;
  static inline Vu8 of(Vu8 bytes) { return bytes ^ 0x80; }
  static inline Vu8 of_iq4(Vu8 nibbles) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kIq4Values));
    const __m512i table = _mm512_broadcast_i32x4(_mm_xor_si128(values, _mm_set1_epi8(-128)));
    return reinterpret_cast<Vu8>(_mm512_shuffle_epi8(table, raw(nibbles)));
  }
};

template <class V>
struct CodeSigns;
template <>
struct CodeSigns<Vu8> {
  Vu8 sign;
  __m512i middle;
  inline CodeSigns(Vu8 signs, int8_t offset) : sign(signs), middle(_mm512_set1_epi8(offset)) {}
  inline Vu8 next(Vu8 code) {
    const __mmask64 minus = _mm512_movepi8_mask(raw(sign));
    sign += sign;
    return reinterpret_cast<Vu8>(_mm512_mask_sub_epi8(_mm512_add_epi8(middle, raw(code)), minus, middle, raw(code)));
  }
};

// ---- lookups of bytes ----

// 128 or more entries. bit[0]: where bit 7 of the index is set, bit[1]: where bit 8 is, and so on; vpermi2b sees bits
// 0 .. 6.
template <int kEntries>
static inline __m512i look_up(const uint8_t* table, __m512i index, const __mmask64* bit) {
  if constexpr (kEntries == 128) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
  } else {
    const __m512i low = look_up<kEntries / 2>(table, index, bit);
    const __m512i high = look_up<kEntries / 2>(table + kEntries / 2, index, bit);
    return _mm512_mask_blend_epi8(bit[kEntries == 256 ? 0 : kEntries == 512 ? 1 : 2], low, high);
  }
}

// gf2p8affineqb: bit i of each byte is the parity of the bits that byte 7 - i of the matrix names. width bits from bit
// from on, to bit to.
constexpr uint64_t cut(int from, int width, int to) {
  uint64_t out = 0;
  for (int i = 0; i < width; ++i) out |= uint64_t{1} << (8 * (7 - to - i) + from + i);
  return out;
}

static inline Vu8 affine(__m512i v, uint64_t matrix) {
  return reinterpret_cast<Vu8>(_mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(static_cast<long long>(matrix)), 0));
}

// ---- base 3, see tiles/ternary.h ----

struct DigitTables {
  alignas(64) uint8_t four[256];   // digits 0 .. 3, two bits each
  alignas(64) uint8_t fifth[256];  // 8 times digit 4
};

constexpr DigitTables digit_tables() {
  DigitTables out{};
  for (int stored = 0; stored < 256; ++stored) {
    int byte = stored ^ 0x80;
    for (int k = 0; k < 4; ++k) {
      out.four[stored] = static_cast<uint8_t>(out.four[stored] | (3 * byte / 256) << (2 * k));
      byte = 3 * byte % 256;
    }
    out.fifth[stored] = static_cast<uint8_t>(3 * byte / 256 * 8);
  }
  return out;
}
alignas(64) constexpr DigitTables kDigitTables = digit_tables();

template <class V>
struct FiveDigits;
template <>
struct FiveDigits<Vu8> {
  __m512i four;
  __m512i fifth;
  inline void put(Vu8 bytes) {
    const __mmask64 bit[] = {_mm512_movepi8_mask(raw(bytes))};
    four = look_up<256>(kDigitTables.four, raw(bytes), bit);
    fifth = look_up<256>(kDigitTables.fifth, raw(bytes), bit);
  }
  inline Vu8 digit(int k) const {
    return k == 4   ? affine(fifth, cut(3, 2, 0))
           : k == 0 ? reinterpret_cast<Vu8>(four) & 3
                    : affine(four, cut(2 * k, 2, 0));
  }
  inline Vu8 eight_times(int k, Vu8 base) const { return eight_times(k) + base; }
  inline Vu8 eight_times(int k) const { return k == 4 ? reinterpret_cast<Vu8>(fifth) : affine(four, cut(2 * k, 2, 3)); }
};

// ---- codebook rows in the order of columns, for batches ----

struct RowNumbers {
  Vu8 low;
  Vu8 high;
  inline void put(Vu8 low_, Vu8 high_) {
    low = low_;
    high = high_;
  }
};

static inline const CodePlanes<256>& planes_of(const Codebook<uint64_t, 256>&) { return kIq2XxsPlanes; }
static inline const CodePlanes<512>& planes_of(const Codebook<uint64_t, 512>&) { return kIq2XsPlanes; }
static inline const CodePlanes<1024>& planes_of(const Codebook<uint64_t, 1024>&) { return kIq2SPlanes; }
static inline const CodePlanes<256>& planes_of(const Codebook<uint32_t, 256>&) { return kIq3XxsPlanes; }
static inline const CodePlanes<512>& planes_of(const Codebook<uint32_t, 512>&) { return kIq3SPlanes; }

// The two bytes of codes of 64 rows
struct RowCodes {
  __m512i low;
  __m512i high;
};

template <int kRows>
static inline RowCodes codes_of(const CodePlanes<kRows>& planes, __m512i index, const __mmask64* bit) {
  return {look_up<kRows>(planes.low, index, bit), look_up<kRows>(planes.high, index, bit)};
}
template <class Grid>
static inline RowCodes codes_of(const Grid& grid, const uint8_t* numbers) {
  const __m512i index = raw(load(numbers));
  const __mmask64 bit[] = {_mm512_movepi8_mask(index)};
  return codes_of(planes_of(grid), index, bit);
}
template <class Grid>
static inline RowCodes codes_of(const Grid& grid, const RowNumbers& n) {
  const __mmask64 bit[] = {_mm512_movepi8_mask(raw(n.low)), _mm512_test_epi8_mask(raw(n.high), _mm512_set1_epi8(1)),
                           _mm512_test_epi8_mask(raw(n.high), _mm512_set1_epi8(2))};
  return codes_of(planes_of(grid), raw(n.low), bit);
}

// Bytes of both, in turn: of the first two row numbers of each lane, or of the last two
constexpr Bytes64 in_turn(int first) {
  Bytes64 out{};
  for (int i = 0; i < 64; ++i) out.v[i] = static_cast<uint8_t>(i / 4 * 4 + first + i % 4 / 2 + (i % 2 ? 64 : 0));
  return out;
}
template <int kHalf>
static inline __m512i in_turn(RowCodes codes) {
  static constexpr Bytes64 kFrom = in_turn(2 * kHalf);
  return _mm512_permutex2var_epi8(codes.low, vector_of(kFrom), codes.high);
}

// Four bit fields of each lane, which begin at these bits, through the values
static inline Vu8 values_at(__m512i codes, const uint8_t* value, int a, int b, int c, int d) {
  uint64_t table = 0;
  __builtin_memcpy(&table, value, sizeof(table));
  const uint64_t lane = static_cast<uint64_t>(a | b << 8 | c << 16) | static_cast<uint64_t>(d) << 24;
  const uint64_t begin = lane | (lane + 0x20202020u) << 32;
  const __m512i index = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(static_cast<long long>(begin)), codes);
  return reinterpret_cast<Vu8>(_mm512_permutexvar_epi8(index, _mm512_set1_epi64(static_cast<long long>(table))));
}

template <int kRows, class Numbers>
static inline void grid8(const Codebook<uint64_t, kRows>& grid, const Numbers& numbers, Vu8* code) {
  const RowCodes codes = codes_of(grid, numbers);
  const uint8_t* value = planes_of(grid).value;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    code[2 * i] = values_at(codes.low, value, 8 * i, 8 * i + 2, 8 * i + 4, 8 * i + 6);
    code[2 * i + 1] = values_at(codes.high, value, 8 * i, 8 * i + 2, 8 * i + 4, 8 * i + 6);
  }
}

template <int kRows, class Numbers>
static inline void grid4(const Codebook<uint32_t, kRows>& grid, const Numbers& numbers, Vu8* code) {
  const RowCodes codes = codes_of(grid, numbers);
  const uint8_t* value = planes_of(grid).value;
  code[0] = values_at(in_turn<0>(codes), value, 0, 3, 8, 11);
  code[1] = values_at(in_turn<0>(codes), value, 16, 19, 24, 27);
  code[2] = values_at(in_turn<1>(codes), value, 0, 3, 8, 11);
  code[3] = values_at(in_turn<1>(codes), value, 16, 19, 24, 27);
}

template <class Codes>
struct OwnPanelSums {
  static constexpr bool kExists = false;
};

// Bits shift .. of each byte, as many as mask has
static inline Vu8 bytes_of(Vu32 word, int shift, uint32_t mask) {
  return reinterpret_cast<Vu8>((word >> shift) & (Vu32{} + 0x01010101u * mask));
}

#include "tile_codes.inl.h"

#include "tile_grids.inl.h"

// ---- matrix times vector ----
//
// A product of float(sum) and a scale of up to 5 bits is exact: below 2^24.

// 2 s + 1, of a number in the lowest kBits bits of each lane; what lies above does not matter.
constexpr Floats16 odd_numbers(int n) {
  Floats16 out{};
  for (int i = 0; i < 16; ++i) out.v[i] = static_cast<float>(2 * (i % n) + 1);
  return out;
}
template <int kBits>
static inline Vf32 odd(Vu32 s) {
  static constexpr Floats16 kOdd = odd_numbers(1 << kBits);
  return reinterpret_cast<Vf32>(_mm512_permutexvar_ps(raw(s), _mm512_load_ps(kOdd.v)));
}

// ---- IQ1 ----

template <class Codes>
struct OwnSum;

template <class Codes, int kN>
static inline Vi32 add_digits(Codes& c, int first, const int8_t* q, Vi32 start) {
  __m512i sum = raw(start);
#pragma GCC unroll 8
  for (int v = 0; v < kN; ++v) {
    const int at = first + v;
    if (at % 5 == 0) c.five.put(reinterpret_cast<Vu8>(c.word(at / 5)));
    sum = _mm512_dpbusd_epi32(sum, raw(c.five.eight_times(at % 5)), raw(broadcast4(q + 4 * v)));
  }
  return reinterpret_cast<Vi32>(sum);
}

constexpr Words16 shift_pairs() {
  Words16 out{};
  for (int i = 0; i < 16; ++i) out.v[i] = i & 8 ? -9 * 0x10000 + 0xfff7 : -7 * 0x10000 + 0xfff9;
  return out;
}

template <>
struct OwnSum<TileCodes<Iq1S>> {
  static constexpr bool kExists = true;
  static inline Vf32 run(TileCodes<Iq1S>& c, int g, const int8_t* q, const int16_t*, const int16_t* sum16) {
    static constexpr Words16 kShifts = shift_pairs();
    const Vu32 nibble = c.nibble >> (4 * g);
    const Vi16 shifts = reinterpret_cast<Vi16>(_mm512_permutexvar_epi32(raw(nibble), vector_of(kShifts)));
    return float_of(add_digits<TileCodes<Iq1S>, 8>(c, 8 * g, q, pair_dot(shifts, sum16))) * odd<3>(nibble);
  }
};

template <>
struct OwnSum<TileCodes<Iq1M>> {
  static constexpr bool kExists = true;
  template <int kHalf>
  static inline Vf32 sum(TileCodes<Iq1M>& c, int g, const int8_t* q, const int16_t* sum8) {
    const int h = 2 * g + kHalf;
    const __mmask32 minus = _mm512_test_epi16_mask(raw(c.shift_bits), _mm512_set1_epi16(static_cast<short>(1 << h)));
    const Vi16 shifts =
        reinterpret_cast<Vi16>(_mm512_mask_blend_epi16(minus, _mm512_set1_epi16(-7), _mm512_set1_epi16(-9)));
    return float_of(add_digits<TileCodes<Iq1M>, 4>(c, 4 * h, q + 16 * kHalf, pair_dot(shifts, sum8 + 2 * kHalf)));
  }
  static inline Vf32 run(TileCodes<Iq1M>& c, int g, const int8_t* q, const int16_t* sum8, const int16_t*) {
    const Vu32 word = c.scale_words[g / 4] >> (16 * (g / 2 % 2) + 6 * (g % 2));
    const Vf32 first = sum<0>(c, g, q, sum8) * odd<3>(word);
    return fma(sum<1>(c, g, q, sum8), odd<3>(word >> 3), first);
  }
};

// ---- IQ2, IQ3 ----

// 32 activations in the order of the codes: byte i of word k of 16 columns is column 4 i + k.
struct Transposed {
  alignas(32) int8_t q[32];
  inline explicit Transposed(const int8_t* from) {
    const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9,
                                           13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i natural = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    _mm256_store_si256(reinterpret_cast<__m256i*>(q), _mm256_shuffle_epi8(natural, order));
    asm("" : "+m"(q));  // through memory: a load spreads four bytes over a vector, a register takes a shuffle more
  }
};

// Where the signs of bytes i of vector k of half a are: see bits_by_byte
constexpr Bytes64 sign_places(int a, int k) {
  Bytes64 out{};
  for (int i = 0; i < 64; ++i) {
    const int column = i % 4;
    out.v[i] = static_cast<uint8_t>(i % 8 / 4 * 32 + 8 * k + 4 * (column % 2) + 2 * a + column / 2);
  }
  return out;
}

// Vectors k = 0 .. 3 of half kHalf: byte i of vector k is column 4 i + k of these 16 columns.
template <int kHalf, int kVector>
static inline __m512i add_vector(__m512i sum, Vu8 code, Vu32 signs, const Transposed& x) {
  static constexpr Bytes64 kPlaces = sign_places(kHalf, kVector);
  const __mmask64 minus = _mm512_bitshuffle_epi64_mask(raw(signs), vector_of(kPlaces));
  const __m512i plus = raw(broadcast4(x.q + 16 * kHalf + 4 * kVector));
  return _mm512_dpbusd_epi32(sum, raw(code), _mm512_mask_sub_epi8(plus, minus, _mm512_setzero_si512(), plus));
}

// Of codes of two bits: 8, 8 ^ 17, 8 ^ 35
constexpr uint64_t iq2_matrix(int k) {
  uint64_t out = 0;
  for (int i = 0; i < 6; ++i) {
    const unsigned bits = static_cast<unsigned>((17 >> i & 1) | (35 >> i & 1) << 1);
    out |= static_cast<uint64_t>(bits << (2 * k)) << (8 * (7 - i));
  }
  return out;
}
template <int kVector>
static inline Vu8 iq2_value(__m512i codes) {
  const __m512i matrix = _mm512_set1_epi64(static_cast<long long>(iq2_matrix(kVector)));
  return reinterpret_cast<Vu8>(_mm512_gf2p8affine_epi64_epi8(codes, matrix, 8));
}

// The sum of half of 32 columns, 16 of them
template <int kHalf>
static inline __m512i add_iq2(__m512i sum, RowCodes rows, Vu32 signs, const Transposed& x) {
  const __m512i codes = in_turn<kHalf>(rows);
  sum = add_vector<kHalf, 0>(sum, iq2_value<0>(codes), signs, x);
  sum = add_vector<kHalf, 1>(sum, iq2_value<1>(codes), signs, x);
  sum = add_vector<kHalf, 2>(sum, iq2_value<2>(codes), signs, x);
  return add_vector<kHalf, 3>(sum, iq2_value<3>(codes), signs, x);
}

template <>
struct OwnSum<TileCodes<Iq2Xxs>> {
  static constexpr bool kExists = true;
  static inline Vf32 run(TileCodes<Iq2Xxs>& c, int g, const int8_t* q, const int16_t*, const int16_t*) {
    const Transposed x(q);
    const Vu32 stored = c.word(2 * g + 1);
    const Vu32 signs = signs_of_running(stored);
    const RowCodes rows = codes_of(kIq2XxsGrid, c.numbers(g));
    const __m512i first = add_iq2<0>(_mm512_setzero_si512(), rows, signs, x);
    return float_of(reinterpret_cast<Vi32>(add_iq2<1>(first, rows, signs, x))) * odd<4>(stored >> 28);
  }
};

// Scales of 16 columns are nibbles of byte g.
static inline Vf32 sum_of_halves(RowCodes rows, Vu32 signs, const Transposed& x, Vu32 scales) {
  const Vi32 first = reinterpret_cast<Vi32>(add_iq2<0>(_mm512_setzero_si512(), rows, signs, x));
  const Vi32 second = reinterpret_cast<Vi32>(add_iq2<1>(_mm512_setzero_si512(), rows, signs, x));
  return fma(float_of(second), odd<4>(scales >> 4), float_of(first) * odd<4>(scales));
}

constexpr Bytes64 ninth_bits() {
  Bytes64 out{};
  for (int i = 0; i < 64; ++i) out.v[i] = static_cast<uint8_t>(i % 8 / 4 * 32 + 28 + i % 4);
  return out;
}

template <>
struct OwnSum<TileCodes<Iq2Xs>> {
  static constexpr bool kExists = true;
  static inline Vf32 run(TileCodes<Iq2Xs>& c, int g, const int8_t* q, const int16_t*, const int16_t*) {
    static constexpr Bytes64 kNinth = ninth_bits();
    const Transposed x(q);
    const __m512i index = raw(c.word(g));
    const Vu32 stored = c.word(8 + g);
    const __mmask64 bit[] = {_mm512_movepi8_mask(index), _mm512_bitshuffle_epi64_mask(raw(stored), vector_of(kNinth))};
    const RowCodes rows = codes_of(kIq2XsPlanes, index, bit);
    return sum_of_halves(rows, signs_of_running(stored), x, c.word(16 + g / 4) >> (8 * (g % 4)));
  }
};

template <>
struct OwnSum<TileCodes<Iq2S>> {
  static constexpr bool kExists = true;
  static inline Vf32 run(TileCodes<Iq2S>& c, int g, const int8_t* q, const int16_t*, const int16_t*) {
    const Transposed x(q);
    const __m512i index = raw(c.word(g));
    const __m512i high = raw(c.word(16 + g / 4));
    const __mmask64 bit[] = {_mm512_movepi8_mask(index),
                             _mm512_test_epi8_mask(high, _mm512_set1_epi8(static_cast<char>(1 << (2 * (g % 4))))),
                             _mm512_test_epi8_mask(high, _mm512_set1_epi8(static_cast<char>(2 << (2 * (g % 4)))))};
    return sum_of_halves(codes_of(kIq2SPlanes, index, bit), c.word(8 + g), x, c.word(18 + g / 4) >> (8 * (g % 4)));
  }
};

// Two codes of three bits in each byte; through a table of 64 entries, which sees both
constexpr Bytes64 iq3_xxs_values(int shift) {
  constexpr uint8_t kValue[8] = {4, 12, 20, 28, 36, 44, 52, 62};
  Bytes64 out{};
  for (int i = 0; i < 64; ++i) out.v[i] = kValue[i >> shift & 7];
  return out;
}
template <int kShift>
static inline Vu8 iq3_xxs_value(__m512i codes) {
  static constexpr Bytes64 kValues = iq3_xxs_values(kShift);
  return reinterpret_cast<Vu8>(_mm512_permutexvar_epi8(codes, vector_of(kValues)));
}

// 2 * code + 1
template <int kShift>
static inline Vu8 iq3_s_value(__m512i codes) {
  const __m512i matrix = _mm512_set1_epi64(static_cast<long long>(cut(kShift, 3, 1)));
  return reinterpret_cast<Vu8>(_mm512_gf2p8affine_epi64_epi8(codes, matrix, 1));
}

template <int kHalf>
static inline __m512i add_iq3_xxs(__m512i sum, RowCodes rows, Vu32 signs, const Transposed& x) {
  sum = add_vector<kHalf, 0>(sum, iq3_xxs_value<0>(rows.low), signs, x);
  sum = add_vector<kHalf, 1>(sum, iq3_xxs_value<3>(rows.low), signs, x);
  sum = add_vector<kHalf, 2>(sum, iq3_xxs_value<0>(rows.high), signs, x);
  return add_vector<kHalf, 3>(sum, iq3_xxs_value<3>(rows.high), signs, x);
}

template <int kHalf>
static inline __m512i add_iq3_s(__m512i sum, RowCodes rows, Vu32 signs, const Transposed& x) {
  sum = add_vector<kHalf, 0>(sum, iq3_s_value<0>(rows.low), signs, x);
  sum = add_vector<kHalf, 1>(sum, iq3_s_value<3>(rows.low), signs, x);
  sum = add_vector<kHalf, 2>(sum, iq3_s_value<0>(rows.high), signs, x);
  return add_vector<kHalf, 3>(sum, iq3_s_value<3>(rows.high), signs, x);
}

template <>
struct OwnSum<TileCodes<Iq3Xxs>> {
  static constexpr bool kExists = true;
  static inline Vf32 run(TileCodes<Iq3Xxs>& c, int g, const int8_t* q, const int16_t*, const int16_t*) {
    const Transposed x(q);
    const Vu32 stored = c.word(16 + g);
    const Vu32 signs = signs_of_running(stored);
    __m512i sum = _mm512_setzero_si512();
    sum = add_iq3_xxs<0>(sum, codes_of(kIq3XxsGrid, c.body + 64 * (2 * g)), signs, x);
    sum = add_iq3_xxs<1>(sum, codes_of(kIq3XxsGrid, c.body + 64 * (2 * g + 1)), signs, x);
    return float_of(reinterpret_cast<Vi32>(sum)) * odd<4>(stored >> 28);
  }
};

template <>
struct OwnSum<TileCodes<Iq3S>> {
  static constexpr bool kExists = true;
  static inline RowCodes rows(const TileCodes<Iq3S>& c, int g, int half) {
    const __m512i index = raw(c.word(2 * g + half));
    const __m512i ninth = _mm512_set1_epi8(static_cast<char>(1 << g));
    const __mmask64 bit[] = {_mm512_movepi8_mask(index), _mm512_test_epi8_mask(raw(c.word(16 + half)), ninth)};
    return codes_of(kIq3SPlanes, index, bit);
  }
  static inline Vf32 run(TileCodes<Iq3S>& c, int g, const int8_t* q, const int16_t*, const int16_t*) {
    const Transposed x(q);
    const Vu32 signs = c.word(18 + g);
    __m512i sum = add_iq3_s<0>(_mm512_setzero_si512(), rows(c, g, 0), signs, x);
    sum = add_iq3_s<1>(sum, rows(c, g, 1), signs, x);
    return float_of(reinterpret_cast<Vi32>(sum)) * odd<4>(c.word(26) >> (4 * g));
  }
};

#include "tile_sums.inl.h"

#include "tile_gemv.inl.h"

#include "tile_gemm.inl.h"

}  // namespace

#define LUTKERN_GEMV(name, Block) TileKernelsOf<Block>::kGemv,
#define LUTKERN_GEMM(name, Block) TileKernelsOf<Block>::kGemm,

extern const TileKernels kAvx512TileKernels = {
    "avx512",
    {LUTKERN_FORMATS(LUTKERN_GEMV)},
    {LUTKERN_FORMATS(LUTKERN_GEMM)},
};

}  // namespace lutkern
