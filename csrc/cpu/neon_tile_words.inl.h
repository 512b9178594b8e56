// The words of NEON for the loops over tiles that are written once. Included by the NEON rows for tiles inside their
// anonymous namespace; it brings in the codes of every format.
//
// A vector is 4 rows of 4 columns, a quarter of a tile. sdot multiplies each of its lanes with one lane of the
// activations, so 16 activations are one load. Its bytes are signed, and all codes are below 128.

enum : int { kVectorBytes = 16, kParts = kTileRows * 4 / kVectorBytes };
constexpr bool kShortLoops = false;
enum : int { kNumbersKept = 2 };

#include "tile_vectors.inl.h"

// A word as NEON's own types and back
template <typename V>
static inline uint8x16_t u8(V v) {
  return reinterpret_cast<uint8x16_t>(v);
}
template <typename V>
static inline int8x16_t s8(V v) {
  return reinterpret_cast<int8x16_t>(v);
}
template <typename V>
static inline int16x8_t s16(V v) {
  return reinterpret_cast<int16x8_t>(v);
}
template <typename V>
static inline int32x4_t s32(V v) {
  return reinterpret_cast<int32x4_t>(v);
}
template <typename V>
static inline uint32x4_t u32(V v) {
  return reinterpret_cast<uint32x4_t>(v);
}
template <typename V>
static inline float32x4_t f32(V v) {
  return reinterpret_cast<float32x4_t>(v);
}

static inline Vu32 load(const uint8_t* p) { return reinterpret_cast<Vu32>(vld1q_u8(p)); }
static inline void store(float* p, Vf32 v) { vst1q_f32(p, f32(v)); }
// Asks for a line of memory, before p is used again: the compiler would collect what it is free to move in one place.
template <class T>
static inline void prefetch(const uint8_t* line, const T*& p) {
  asm("prfm pldl1keep, %1" : "+r"(p) : "Q"(*line));
}

// Bits shift .. of each byte, as many as mask has
static inline Vu8 bytes_of(Vu32 word, int shift, uint8_t mask) {
  const Vu8 down = reinterpret_cast<Vu8>(word) >> static_cast<uint8_t>(shift);
  return (0xff >> shift) == mask ? down : down & (Vu8{} + mask);
}
static inline Vu8 three_times(Vu8 v) {
  uint8x16_t three = vdupq_n_u8(3);
  asm("" : "+w"(three));  // one product, which the compiler would make two sums
  return reinterpret_cast<Vu8>(vmulq_u8(u8(v), three));
}
static inline Vu8 above(Vu8 a, Vu8 b) { return reinterpret_cast<Vu8>(vcgtq_s8(s8(a), s8(b))); }
static inline Vu8 hidden(Vu8 v) { return v; }
static inline Vf32 float_of(Vi32 v) { return reinterpret_cast<Vf32>(vcvtq_f32_s32(s32(v))); }
static inline Vf32 fma(Vf32 a, Vf32 b, Vf32 c) { return reinterpret_cast<Vf32>(vfmaq_f32(f32(c), f32(a), f32(b))); }
static inline Vf32 halves(const uint8_t* p) {
  return reinterpret_cast<Vf32>(vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))));
}
static inline Vf32 floats_of_halves(Vu32 v) {
  return reinterpret_cast<Vf32>(vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(u32(v)))));
}
static inline Vu32 widen_u16(const uint8_t* p) {
  return reinterpret_cast<Vu32>(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p))));
}
static inline Vu32 widen_u8(const uint8_t* p) {
  uint32_t four = 0;
  __builtin_memcpy(&four, p, sizeof(four));
  return reinterpret_cast<Vu32>(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}

// Bytes of each lane of v by their numbers in it; 255 gives zero.
template <typename Out>
static inline Out bytes_in_lane(Vu32 v, uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
  const Vu8 lane = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
  const Vu8 byte = {a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d};
  return reinterpret_cast<Out>(vqtbl1q_u8(u8(v), u8(byte | lane)));
}
// Bytes a and b of each lane as a pair of 16-bit numbers: zero-extended, or in the high bytes
static inline Vi16 byte_pair(Vu32 v, int a, int b) {
  return bytes_in_lane<Vi16>(v, static_cast<uint8_t>(a), 255, static_cast<uint8_t>(b), 255);
}
static inline Vi16 byte_pair_high(Vu32 v, int a, int b) {
  return bytes_in_lane<Vi16>(v, 255, static_cast<uint8_t>(a), 255, static_cast<uint8_t>(b));
}
// Byte b of each lane in all its bytes
static inline Vu32 byte_all(Vu32 v, int b) {
  const uint8_t byte = static_cast<uint8_t>(b);
  return bytes_in_lane<Vu32>(v, byte, byte, byte, byte);
}
static inline Vu8 lookup16(const int8_t* table, Vu8 index) {
  return reinterpret_cast<Vu8>(vqtbl1q_s8(vld1q_s8(table), u8(index)));
}

// Of pairs of 16-bit numbers the first and the second one of each lane
static inline int32x4_t first_of(Vi16 pairs) { return vshrq_n_s32(vshlq_n_s32(s32(pairs), 16), 16); }
static inline int32x4_t second_of(Vi16 pairs) { return vshrq_n_s32(s32(pairs), 16); }

// Two sums of activations in every lane of 32 bits
static inline int16x8_t load_two(const int16_t* two) {
  int32_t both = 0;
  __builtin_memcpy(&both, two, sizeof(both));
  return vreinterpretq_s16_s32(vdupq_n_s32(both));
}

static inline Vi32 pair_dot(Vi16 pairs, const int16_t* two) {
  const int16x4_t sums = vget_low_s16(load_two(two));
  const int16x4_t first = vmovn_s32(s32(pairs));
  const int16x4_t second = vshrn_n_s32(s32(pairs), 16);
  return reinterpret_cast<Vi32>(vmlal_lane_s16(vmull_lane_s16(first, sums, 0), second, sums, 1));
}

// ---- codebook rows ----

// Row numbers of more than 8 bits: four for each row. They go through memory, from where four come with one load.
struct RowNumbers {
  alignas(16) uint16_t number[16];
  inline void put(Vu8 low, Vu8 high) {
    vst1q_u8(reinterpret_cast<uint8_t*>(number), vzip1q_u8(u8(low), u8(high)));
    vst1q_u8(reinterpret_cast<uint8_t*>(number + 8), vzip2q_u8(u8(low), u8(high)));
  }
};

static inline uint64_t load_u64(const void* p) {
  uint64_t word = 0;
  __builtin_memcpy(&word, p, sizeof(word));
  return word;
}

// Row number i of row r: of 8-bit numbers, which lie in the tile, or of RowNumbers. The compiler shares the loads.
[[gnu::always_inline]] static inline uint64_t number_of(const uint8_t* index, int r, int i) {
  return load_u64(index + r / 2 * 8) >> (32 * (r % 2) + 8 * i) & 255;
}
[[gnu::always_inline]] static inline uint64_t number_of(const RowNumbers& n, int r, int i) {
  return load_u64(n.number + 4 * r) >> (16 * i) & 0xffff;
}

// The first row as an address of its own: the compiler would add what lies before it to each row number.
template <typename Word, int kRows>
[[gnu::always_inline]] static inline const Word* first_row(const Codebook<Word, kRows>& grid) {
  const Word* row = grid.row;
  asm("" : "+r"(row));
  return row;
}

// Columns 8 i .. 8 i + 7 of the rows r and r + 1
template <int kRows, class Numbers>
[[gnu::always_inline]] static inline int8x16_t two_rows(const Codebook<uint64_t, kRows>& grid, const Numbers& numbers,
                                                        int r, int i) {
  const uint64x2_t a = vcombine_u64(vcreate_u64(first_row(grid)[number_of(numbers, r, i)]), vcreate_u64(0));
  const uint64x2_t b = vcombine_u64(vcreate_u64(first_row(grid)[number_of(numbers, r + 1, i)]), vcreate_u64(0));
  return vreinterpretq_s8_u64(vzip1q_u64(a, b));
}

// All 32 columns
template <int kRows, class Numbers>
[[gnu::always_inline]] static inline void grid8(const Codebook<uint64_t, kRows>& grid, const Numbers& numbers,
                                                Vu8* code) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int32x4_t a = vreinterpretq_s32_s8(two_rows(grid, numbers, 0, i));
    const int32x4_t b = vreinterpretq_s32_s8(two_rows(grid, numbers, 2, i));
    code[2 * i] = reinterpret_cast<Vu8>(vuzp1q_s32(a, b));
    code[2 * i + 1] = reinterpret_cast<Vu8>(vuzp2q_s32(a, b));
  }
}

// 16 columns
template <int kRows, class Numbers>
[[gnu::always_inline]] static inline void grid4(const Codebook<uint32_t, kRows>& grid, const Numbers& numbers,
                                                Vu8* code) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    uint32x2_t row[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) row[r] = vcreate_u32(first_row(grid)[number_of(numbers, r, i)]);
    code[i] = reinterpret_cast<Vu8>(vcombine_u32(vzip1_u32(row[0], row[1]), vzip1_u32(row[2], row[3])));
  }
}

#include "tile_codes.inl.h"

#include "tile_grids.inl.h"

// ---- signed codes ----

// Digits of base 3 minus 1, from bytes of five digits: see Ternary.
// Bytes with the digit of vector v of group g on top
static inline Vu8 next_bytes(Digits& digits, int g, int v) {
  digits.at(8 * g + v);
  return digits.five.next();
}
static inline Vu8 next_bytes(TileCodes<Tq10>& c, int g, int v) {
  if (g == 5 && v < 5) c.five[v].put(reinterpret_cast<Vu8>(c.word(8 + v)));
  return c.five[g < 5 ? v : (g == 7 && v > 3 ? 4 : v % 4)].next();
}

static inline Vu8 centred_digit(Vu8 q) {
  const uint8x16_t zero = vcleq_s8(s8(q), vdupq_n_s8(-43));
  const uint8x16_t two = vcgtq_s8(s8(q), vdupq_n_s8(42));
  return reinterpret_cast<Vu8>(vsubq_u8(zero, two));
}

// -1 in the bytes whose sign is minus; vector v of a group, signs as in tile_grids.inl.h
static inline int8x16_t minus_of(Vu32 signs, int v) {
  return vreinterpretq_s8_u8(vtstq_u8(u8(signs), vdupq_n_u8(static_cast<uint8_t>(1 << (4 * (v % 2) + v / 2)))));
}

// What is left to subtract from the codes that signed_codes gives
template <class Block>
constexpr int kCodeOffset = TileCodes<Block>::kSigned ? 0 : TileCodes<Block>::kOffset;
template <>
constexpr int kCodeOffset<Tq10> = 0;

template <class Codes>
[[gnu::always_inline]] static inline void signed_codes(Codes& c, int g, Vu8* code) {
  if constexpr (Codes::kSigned) {
    c.magnitudes(g, code);
    const Vu32 signs = c.signs(g);
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      const int8x16_t minus = minus_of(signs, v);
      code[v] = reinterpret_cast<Vu8>(vsubq_s8(veorq_s8(s8(code[v]), minus), minus));
    }
  } else {
    c.codes(g, code);
  }
}
[[gnu::always_inline]] static inline void signed_codes(TileCodes<Tq10>& c, int g, Vu8* code) {
  for (int v = 0; v < 8; ++v) code[v] = centred_digit(next_bytes(c, g, v));
}
