// The seven codebook formats in registers: a lane loads its row of a tile (gpu/tile.h), codebook entries come from a
// table in threadgroup memory. An entry is made so that one AND takes two weights out of it, as halfs that are exact:
//
//   iq1   4 bytes, 2048 entries; iq1_m 4096, with the shift. Lane h of 16 bits has weights 4 h .. 4 h + 3 as
//         t = codebook + 1, two bits each, below an exponent of ones. The mask of field k takes its two bits and an
//         exponent at which they are units: 2^(10 - 2 k) + t, for k = 0 .. 3. Field 4 of lane 0 is f = 1 where the
//         shift is +1/8: 4 + f.
//   iq2   8 bytes: weights 0 2 4 6, and 1 3 5 7. A magnitude times 2^-17 is a half of bits 5 6 8 9 10 11 alone:
//         0x0400, 0x0a40, 0x0d60 for 8, 25, 43. These bits with the sign, 15, and the same turned by 8 have none in
//         common: byte i of a word has the sign of its weight i in bit 7.
//   iq3   4 bytes: a magnitude (iq3_xxs: a quarter of it) times 2^-14 is a half of bits 6 .. 12. Weights 0 and 2
//         stand there, 1 and 3 seven bits lower. Signs come after.
//
//                                                                                        operations
//   iq1   half2(entry & mask k) for k = 0 .. 3                                               4
//   iq2   w = entry[i] ^ ((signs << t) & 0x80808080)
//         half2(w & 0x8f608f60), half2(turn(w, 8) & 0x8f608f60)                              6, for four weights
//   iq3   half2((entry & 0x1fc01fc0) ^ ((signs << t) & 0x80008000)), and of turn(entry, 7)   9, for four weights
//
// AND, XOR, shift and turn (of one register, or of two: a funnel shift) are one operation each; there is none of three
// operands. A half is read as a float for nothing, and there is no arithmetic of two halfs at once, so weights of even
// and odd columns may lie in any order. An offset is a shift and a mask. 32 lanes read 4-byte entries in about 3.5
// cycles, 8-byte ones in 7: that is why iq3 packs four weights in 4 bytes, where 8 bytes would save 3 operations.
//
// Operations of a lookup with its offset and its load: iq1 7 and iq2 15 for eight weights, iq3 12 for four.
// Registers of a row of 256 columns: iq1 13 and 14, iq2 18 to 21, iq3 26 and 28.
//
// The caller guarantees tiles, whole simdgroups, a table at a multiple of 16 bytes that was filled before a barrier,
// and codewords that are known when the text is compiled: else words go through memory.
#pragma once
#include "../gpu/tile.h"
#include "numbers.metal"

namespace lutkern {
namespace metal_kernels {

using gpu::Tile;
using gpu::word_offset;

// ---- entries ----

enum : uint {
  kOnes = 0x7c007c00u,      // iq1: exponents
  kShiftField = 0x4500u,    // iq1: 4 + f in lane 0
  kIq2Pairs = 0x8f608f60u,  // iq2: two weights
  kIq3Pairs = 0x1fc01fc0u   // iq3: two weights without signs
};

// 2^(10 - 2 k) + t of both lanes
static inline uint iq1_mask(int k) {
  return k == 0 ? 0x64036403u : (k == 1 ? 0x5c0c5c0cu : (k == 2 ? 0x54305430u : 0x4cc04cc0u));
}

static inline uint codes_of(const thread Iq1S*, uint i) { return kIq1Codes[i]; }
static inline uint codes_of(const thread Iq1M*, uint i) { return kIq1Codes[i]; }
static inline uint codes_of(const thread Iq2Xxs*, uint i) { return kIq2XxsCodes[i]; }
static inline uint codes_of(const thread Iq2Xs*, uint i) { return kIq2XsCodes[i]; }
static inline uint codes_of(const thread Iq2S*, uint i) { return kIq2SCodes[i]; }
static inline uint codes_of(const thread Iq3Xxs*, uint i) { return kIq3XxsCodes[i]; }
static inline uint codes_of(const thread Iq3S*, uint i) { return kIq3SCodes[i]; }

// Codes of two bits, 4 bits apart, to a word of iq2
static inline uint iq2_word(uint codes) {
  uint word = 0;
  for (uint i = 0; i < 4; ++i) {
    const uint code = codes >> (4 * i) & 3u;
    const uint magnitude = code == 0 ? 0x0400u : (code == 1 ? 0x0a40u : 0x0d60u);
    word |= rotate(magnitude, (8 * i + 24) % 32);
  }
  return word;
}

// Four codes of three bits: 2 code + 1, or 15.5 instead of 15
static inline uint iq3_word(uint codes, bool is_s) {
  uint word = 0;
  for (uint j = 0; j < 4; ++j) {
    const uint code = codes >> (3 * j) & 7u;
    uint magnitude = 0x0400u;
    if (code > 0) magnitude = 0x0a00u;
    if (code > 1) magnitude = 0x0d00u + 0x0200u * (code - 2);
    if (code > 3) magnitude = 0x1080u + 0x0100u * (code - 4);
    if (code == 7 && !is_s) magnitude = 0x13c0u;
    word |= rotate(magnitude, (16 * (j / 2) + 25 * (j % 2)) % 32);
  }
  return word;
}

// ---- the table ----

template <class Block>
struct Table {
  using T = Tile<Block>;
  enum : int {
    kIndexBits = T::kFamily == 1 && T::kHasHalf ? 11 : T::kBits,
    kShifts = T::kFamily == 1 && !T::kHasHalf ? 2 : 1,
    kEntryWords = T::kFamily == 2 ? 2 : 1,
    kWords = kEntryWords << kIndexBits
  };

  // By all threads of a threadgroup; a barrier follows.
  static void fill(threadgroup uint* table, uint thread_index, uint threads) {
    const thread Block* format = nullptr;
    for (uint i = thread_index; i < (1u << kIndexBits) / kShifts; i += threads) {
      const uint codes = codes_of(format, i);
      if (T::kFamily == 1) {
        const uint entry = kOnes | (codes & 0xffu) | (codes & 0xff00u) << 8;
        table[i] = entry | (kShifts - 1u) << 8;
        if (kShifts == 2) table[i + 2048] = entry;
      } else if (T::kFamily == 2) {
        table[2 * i] = iq2_word(codes);
        table[2 * i + 1] = iq2_word(codes >> 2);
      } else {
        table[i] = iq3_word(codes, T::kBits == 9);
      }
    }
  }
};

template <>
struct Table<NoGate> {
  enum : int { kWords = 0 };
  static void fill(threadgroup uint*, uint, uint) {}
};

static inline threadgroup const uint* entry_at(threadgroup const uint* table, uint offset) {
  return reinterpret_cast<threadgroup const uint*>(reinterpret_cast<threadgroup const uchar*>(table) + offset);
}

// ---- a lane ----

// Offset in bytes of the entry of index i
template <class Block>
static inline uint entry_offset(const thread uint* words, int i) {
  using T = Tile<Block>;
  const int low = Table<Block>::kEntryWords + 1;
  const thread uint* ring = words + T::kCodes + T::kRing * (i / T::kFields);
  const int at = (T::kBits * (i % T::kFields) + T::kPlace) % (32 * T::kRing);
  const int bit = at % 32;
  const uint word = ring[at / 32];
  const uint mask = ((1u << Table<Block>::kIndexBits) - 1) << low;
  if (bit < low) return word << (low - bit) & mask;
  if (bit + T::kBits <= 32 || bit == low) return word >> (bit - low) & mask;
  return (word >> (bit - low) | ring[(at / 32 + 1) % T::kRing] << (32 + low - bit)) & mask;
}

// Two halfs of an entry of iq1
static inline half2 iq1_pair(uint entry, int k) { return as_type<half2>(entry & iq1_mask(k)); }

// With their signs: word 0 of weights 0 2 4 6, word 1 of the others; codeword k of the four of a word of signs
static inline uint iq2_signed(uint word, uint signs, int odd, int k) {
  return word ^ (signs << ((odd ? 3 : 7) - k) & 0x80808080u);
}
static inline half2 iq2_upper(uint word) { return as_type<half2>(word & kIq2Pairs); }  // weights 1 3 of a word
static inline half2 iq2_lower(uint word) {
  return as_type<half2>(rotate(word, 8u) & kIq2Pairs);
}  // weights 0 2 of a word

// Index k of the eight of a word of signs
static inline half2 iq3_even(uint entry, uint signs, int k) {
  return as_type<half2>((entry & kIq3Pairs) ^ (signs << (15 - k) & 0x80008000u));
}
static inline half2 iq3_odd(uint entry, uint signs, int k) {
  return as_type<half2>((rotate(entry, 7u) & kIq3Pairs) ^ (signs << (7 - k) & 0x80008000u));
}

// s + 1/2 of the bits of s in a word: they become the lowest bits of a float that has no fraction.
static inline float scale_number(uint word, int bit, int bits) {
  const bool is_high = bit + bits > 23;
  const int at = is_high ? bit - 16 : bit;
  const uint exponent = static_cast<uint>(150 - at) << 23;
  const uint field = (is_high ? word >> 16 : word) & ((1u << bits) - 1) << at;
  return as_type<float>(field | exponent) - (as_type<float>(exponent) - 0.5f);
}

// iq1_s: the bits of a scale stand 12 apart, those of the first 32 columns of a ring in word 1, of the other in word 0.
static inline float iq1_s_scale(const thread uint* words, int group) {
  const thread uint* ring = words + 3 * (group / 2);
  const uint bits = (ring[0] & 0x02002002u) | (ring[1] & 0x20020020u);
  return scale_number(bits | bits >> 11 | bits >> 22, group % 2 == 0 ? 5 : 1, 3);
}

// First word of scales that stand by themselves
template <class Block>
struct Scales {
  enum : int { kAt = Tile<Block>::kScales };
};
template <>
struct Scales<Iq1S> {
  enum : int { kAt = 0 };
};

// s + 1/2 of columns 16 g .. 16 g + 15
template <class Block>
static inline float scale_of(const thread uint* words, int g) {
  using T = Tile<Block>;
  const thread uint* scales = words + Scales<Block>::kAt;
  if (T::kFamily == 1 && T::kHasHalf) return iq1_s_scale(words, g / 2);
  if (T::kFamily == 1) {
    const int bit = 3 * g;
    if (g == 10) return scale_number(scales[0] >> 30 | scales[1] << 2, 0, 3);
    return scale_number(scales[bit / 32], bit % 32, 3);
  }
  const int i = T::kFamily == 2 && T::kBits > 8 ? g : g / 2;
  return scale_number(scales[i / 8], 4 * (i % 8), 4);
}

// iq1_s: 1.25 where the shift of 32 columns is +1/8, 1 where it is -1/8
static inline float iq1_s_shift(const thread uint* words, int group) {
  const uint word = words[3 * (group / 2) + 2];
  return as_type<float>(((group % 2 == 0 ? word << 12 : word) & 0x00200000u) ^ 0x3fa00000u);
}

// Puts what columns 128 .. 255 need where columns 0 .. 127 have it: words of signs, half of the fields, half of the
// scales
template <class Block>
static inline void to_second_half(thread uint* words) {
  using T = Tile<Block>;
  enum : int { kFieldWords = T::kBits * T::kIndices / 64, kTurned = T::kFields > T::kIndices / 2 };
  thread uint* codes = words + T::kCodes;
  thread uint* scales = words + Scales<Block>::kAt;
  if (kTurned) {  // iq2_xs: 16 fields are four words and a half
    const uint first = codes[0];
    LK_UNROLL
    for (int i = 0; i < 4; ++i) codes[i] = codes[i + 4] >> 16 | codes[i + 5] << 16;
    codes[4] = codes[8] >> 16 | first << 16;
  } else {
    LK_UNROLL
    for (int i = 0; i < kFieldWords; ++i) codes[i] = codes[i + kFieldWords];
  }
  if (T::kFamily > 1) {
    LK_UNROLL
    for (int i = 0; i < 4; ++i) words[i] = words[i + 4];
    scales[0] = T::kFamily == 2 && T::kBits > 8 ? scales[1] : scales[0] >> 16;
  } else if (!T::kHasHalf) {
    scales[0] = scales[0] >> 24 | scales[1] << 8;
  }
}

// weight = d * (s + 1/2) * code_unit * code
template <class Block>
static inline float code_unit() {
  return Tile<Block>::kFamily < 3 ? 0.25f : (Tile<Block>::kBits == 8 ? 0.5f : 2.0f);
}

// What raw_codes have for a code of 1: iq2 2^-17, iq3_xxs 2^-16, iq3_s 2^-14
template <class Block>
static inline float raw_unit() {
  if (Tile<Block>::kFamily == 1) return 1.0f;
  return Tile<Block>::kFamily == 2 ? 1.0f / 131072.0f : (Tile<Block>::kBits == 8 ? 1.0f / 65536.0f : 1.0f / 16384.0f);
}

template <class Block>
struct Lane {
  using T = Tile<Block>;
  uint words[T::kWords];
  float d;

  void load(device const uchar* tile, uint lane) {
    const int l = static_cast<int>(lane);
    LK_UNROLL
    for (int i = 0; i < 4 * T::kChunks; i += 4) {
      const uint4 v = *reinterpret_cast<device const uint4*>(tile + word_offset<T>(l, i));
      words[i] = v.x;
      words[i + 1] = v.y;
      words[i + 2] = v.z;
      words[i + 3] = v.w;
    }
    LK_UNROLL
    for (int i = 4 * T::kChunks; i < 4 * T::kChunks + T::kFours; ++i) {
      words[i] = *reinterpret_cast<device const uint*>(tile + word_offset<T>(l, i));
    }
    LK_UNROLL
    for (int i = 4 * T::kChunks + T::kFours; i < T::kWords; i += 2) {
      const uint2 v = *reinterpret_cast<device const uint2*>(tile + word_offset<T>(l, i));
      words[i] = v.x;
      words[i + 1] = v.y;
    }
    uint bits = words[T::kWords - 1] >> 16;
    if (T::kHasHalf) bits = *reinterpret_cast<device const ushort*>(tile + T::kHalfAt + 2 * l);
    d = float_from_half(bits);
  }

  // Eight weights of codeword i before the scale, integers, in the order of their columns
  void codes(int i, threadgroup const uint* table, thread half2* out4) const {
    raw_codes(i, table, out4);
    if (T::kFamily == 1) return;
    const float inverse = 1.0f / raw_unit<Block>();
    LK_UNROLL
    for (int j = 0; j < 4; ++j) {
      out4[j] = half2(static_cast<half>(static_cast<float>(out4[j].x) * inverse),
                      static_cast<half>(static_cast<float>(out4[j].y) * inverse));
    }
  }

  // The same times raw_unit, for nothing where an entry has them as they are
  void raw_codes(int i, threadgroup const uint* table, thread half2* out4) const {
    if (T::kFamily == 1) {
      iq1_codes(*entry_at(table, entry_offset<Block>(words, i)), i, out4);
    } else if (T::kFamily == 2) {
      const uint2 entry = *reinterpret_cast<threadgroup const uint2*>(entry_at(table, entry_offset<Block>(words, i)));
      const uint even = iq2_signed(entry.x, words[i / 4], 0, i % 4);
      const uint odd = iq2_signed(entry.y, words[i / 4], 1, i % 4);
      put_pairs(iq2_lower(even), iq2_lower(odd), out4, out4 + 2);
      put_pairs(iq2_upper(even), iq2_upper(odd), out4 + 1, out4 + 3);
    } else {
      LK_UNROLL
      for (int half_word = 0; half_word < 2; ++half_word) {
        const int k = 2 * i + half_word;
        const uint entry = *entry_at(table, entry_offset<Block>(words, k));
        put_pairs(iq3_even(entry, words[k / 8], k % 8), iq3_odd(entry, words[k / 8], k % 8), out4 + 2 * half_word,
                  out4 + 2 * half_word + 1);
      }
    }
  }

  // Of columns 16 g .. 16 g + 15: equal to formats/ to the bit
  float scale16(int g) const { return d * scale_of<Block>(words, g) * code_unit<Block>(); }

 private:
  static void put_pairs(half2 a, half2 b, thread half2* first, thread half2* second) {
    *first = half2(a.x, b.x);
    *second = half2(a.y, b.y);
  }

  // 8 (t - 1) + 1 or - 1
  void iq1_codes(uint entry, int i, thread half2* out4) const {
    const float field =
        T::kHasHalf ? iq1_s_shift(words, i / 4) : static_cast<float>(as_type<half2>(entry & kShiftField).x);
    float numbers[8];
    LK_UNROLL
    for (int k = 0; k < 4; ++k) {  // 8 (base + t) + shift - 8 (base + 1)
      const half2 pair = iq1_pair(entry, k);
      const float base = static_cast<float>(1 + (1024 >> (2 * k)));
      const float shift = fma(field, T::kHasHalf ? 8.0f : 2.0f, -9.0f - 8.0f * base);
      numbers[k] = fma(static_cast<float>(pair.x), 8.0f, shift);
      numbers[4 + k] = fma(static_cast<float>(pair.y), 8.0f, shift);
    }
    LK_UNROLL
    for (int j = 0; j < 4; ++j) {
      out4[j] = half2(static_cast<half>(numbers[2 * j]), static_cast<half>(numbers[2 * j + 1]));
    }
  }
};

}  // namespace metal_kernels
}  // namespace lutkern
