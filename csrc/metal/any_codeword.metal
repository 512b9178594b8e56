// A unit: 16 columns of a row that have one scale, out of GGUF blocks or out of a tile.
//
//   weight = scale * (code - kBias) + offset
//
// A code of a few bits becomes a half without a conversion: the bits 0x6400 | n are the number 1024 + n, two numbers in a word,
// four codes of a word of bytes in five operations. A sum over such codes is an integer sum that is kBias too large for each
// activation, and the sum of activations takes that off: integers below 2^24 all the way, whatever their order. Other codes
// come out of a table of 16 halves, or out of codes8() of their format.
#pragma once
#include "any_shape.h"
#include "kernels.h"
#include "numbers.metal"

namespace lutkern {
namespace metal_kernels {

// ---- four codes in a word ----

static inline uint32_t load_word(const device uint8_t* p) { return as_type<uint32_t>(uchar4(p[0], p[1], p[2], p[3])); }

static inline uint4 load_words(const device uint8_t* p) {
  return uint4(load_word(p), load_word(p + 4), load_word(p + 8), load_word(p + 12));
}

static inline uint4 nibbles(const device uint8_t* p, int upper) { return (load_words(p) >> (4 * upper)) & 0x0f0f0f0fu; }

// 16 bits to bit 4 of 16 bytes; bits in a row, lowest first
static inline uint4 fifth_bits(uint32_t bits) {
  const uint4 four = uint4(bits, bits >> 4, bits >> 8, bits >> 12) & 15u;
  return (four * 0x00204081u & 0x01010101u) << 4;
}

// ---- codes as halves ----

struct Codes16 {
  half4 v[4];
};

enum : int { kByteBias = 1024 };

// Four bytes as halves, each kByteBias too large
static inline half4 halves_of(uint32_t bytes) {
  const half2 even = as_type<half2>((bytes & 0x00ff00ffu) | 0x64006400u);
  const half2 odd = as_type<half2>((bytes >> 8 & 0x00ff00ffu) | 0x64006400u);
  return half4(even.x, odd.x, even.y, odd.y);
}

static inline Codes16 from_bytes(uint4 bytes) {
  Codes16 out;
  for (int k = 0; k < 4; ++k) out.v[k] = halves_of(bytes[k]);
  return out;
}

static constant half kIq4Halves[16] = LK_IQ4_VALUES;
static constant half kMxfp4Halves[16] = LK_MXFP4_VALUES;

// Numbers of four bits, one to a byte
static inline Codes16 from_table(constant half* table, uint4 nibbles) {
  Codes16 out;
  for (int k = 0; k < 4; ++k) {
    const uint32_t n = nibbles[k];
    out.v[k] = half4(table[n & 15u], table[n >> 8 & 15u], table[n >> 16 & 15u], table[n >> 24]);
  }
  return out;
}

static inline half4 from_int8(thread const int8_t* v) { return half4(v[0], v[1], v[2], v[3]); }

static inline Codes16 from_codes8(Codes8 first, Codes8 second) {
  Codes16 out;
  out.v[0] = from_int8(first.v);
  out.v[1] = from_int8(first.v + 4);
  out.v[2] = from_int8(second.v);
  out.v[3] = from_int8(second.v + 4);
  return out;
}

// ---- blocks ----

// Codes of unit g of a block
template <class Block>
struct Unpack {
  enum : int { kBias = 0 };
  static Codes16 codes(const device Block& b, int g) { return from_codes8(codes8(b, 2 * g), codes8(b, 2 * g + 1)); }
};
template <>
struct Unpack<Tq20> {
  enum : int { kBias = kByteBias + 1 };
  static Codes16 codes(const device Tq20& b, int g) {
    const uint4 low = (load_words(b.code + 32 * (g / 8) + 16 * (g % 2)) >> (2 * (g / 2 % 4))) & 0x03030303u;
    return from_bytes(low);
  }
};
template <>
struct Unpack<Q2K> {
  enum : int { kBias = kByteBias + 0 };
  static Codes16 codes(const device Q2K& b, int g) {
    const uint4 low = (load_words(b.code + 32 * (g / 8) + 16 * (g % 2)) >> (2 * (g / 2 % 4))) & 0x03030303u;
    return from_bytes(low);
  }
};
template <>
struct Unpack<Q3K> {
  enum : int { kBias = kByteBias + 4 };
  static Codes16 codes(const device Q3K& b, int g) {
    const uint4 low = (load_words(b.code + 32 * (g / 8) + 16 * (g % 2)) >> (2 * (g / 2 % 4))) & 0x03030303u;
    const uint4 high = (load_words(b.high + 16 * (g % 2)) >> (g / 2)) & 0x01010101u;
    return from_bytes(low | high << 2);
  }
};
template <>
struct Unpack<Q4K> {
  enum : int { kBias = kByteBias + 0 };
  static Codes16 codes(const device Q4K& b, int g) {
    return from_bytes(nibbles(b.code + 32 * (g / 4) + 16 * (g % 2), g / 2 % 2));
  }
};
template <>
struct Unpack<Q5K> {
  enum : int { kBias = kByteBias + 0 };
  static Codes16 codes(const device Q5K& b, int g) {
    const uint4 high = (load_words(b.high + 16 * (g % 2)) >> (g / 2)) & 0x01010101u;
    return from_bytes(nibbles(b.code + 32 * (g / 4) + 16 * (g % 2), g / 2 % 2) | high << 4);
  }
};
template <>
struct Unpack<Q6K> {
  enum : int { kBias = kByteBias + 32 };
  static Codes16 codes(const device Q6K& b, int g) {
    const uint4 high = (load_words(b.high + 32 * (g / 8) + 16 * (g % 2)) >> (2 * (g / 2 % 4))) & 0x03030303u;
    return from_bytes(nibbles(b.low + 64 * (g / 8) + 16 * (g % 4), g / 4 % 2) | high << 4);
  }
};
template <>
struct Unpack<Q40> {
  enum : int { kBias = kByteBias + 8 };
  static Codes16 codes(const device Q40& b, int g) { return from_bytes(nibbles(b.code, g)); }
};
template <>
struct Unpack<Q41> {
  enum : int { kBias = kByteBias + 0 };
  static Codes16 codes(const device Q41& b, int g) { return from_bytes(nibbles(b.code, g)); }
};
template <>
struct Unpack<Q50> {
  enum : int { kBias = kByteBias + 16 };
  static Codes16 codes(const device Q50& b, int g) {
    return from_bytes(nibbles(b.code, g) | fifth_bits(load_u16(b.high + 2 * g)));
  }
};
template <>
struct Unpack<Q51> {
  enum : int { kBias = kByteBias + 0 };
  static Codes16 codes(const device Q51& b, int g) {
    return from_bytes(nibbles(b.code, g) | fifth_bits(load_u16(b.high + 2 * g)));
  }
};
template <>
struct Unpack<Q80> {
  enum : int { kBias = kByteBias + 128 };
  static Codes16 codes(const device Q80& b, int g) { return from_bytes(load_words(b.code + 16 * g) ^ 0x80808080u); }
};
template <>
struct Unpack<Mxfp4> {
  enum : int { kBias = 0 };
  static Codes16 codes(const device Mxfp4& b, int g) { return from_table(kMxfp4Halves, nibbles(b.code, g)); }
};
template <>
struct Unpack<Iq4Nl> {
  enum : int { kBias = 0 };
  static Codes16 codes(const device Iq4Nl& b, int g) { return from_table(kIq4Halves, nibbles(b.code, g)); }
};
template <>
struct Unpack<Iq4Xs> {
  enum : int { kBias = 0 };
  static Codes16 codes(const device Iq4Xs& b, int g) { return from_table(kIq4Halves, nibbles(b.code[g / 2], g % 2)); }
};

// ---- tiles ----

// A row of a tile: the words of a lane
struct TileRow {
  const device uint8_t* tile;
  int lane;
};

template <class Block>
static inline uint32_t tile_word(TileRow t, int i) {
  return *reinterpret_cast<const device uint32_t*>(t.tile + gpu::word_offset<gpu::Tile<Block>>(t.lane, i));
}

template <class Block>
static inline float tile_half(TileRow t) {
  const device uint8_t* at = t.tile + gpu::Tile<Block>::kHalfAt + 2 * t.lane;
  return float_from_half(*reinterpret_cast<const device uint16_t*>(at));
}

// Field i of the rings (gpu/tile.h)
template <class Block>
static inline uint32_t tile_field(TileRow t, int i) {
  using T = gpu::Tile<Block>;
  const int ring = static_cast<int>(T::kCodes) + T::kRing * (i / T::kFields);
  const int bit = (T::kBits * (i % T::kFields) + T::kPlace) % (32 * T::kRing);
  const uint32_t low = tile_word<Block>(t, ring + bit / 32) >> (bit % 32);
  const uint32_t high = tile_word<Block>(t, ring + (bit / 32 + 1) % T::kRing) << 1 << (31 - bit % 32);
  return (low | high) & ((1u << T::kBits) - 1u);
}

// The eight signs of codeword i
template <class Block>
static inline uint32_t tile_signs(TileRow t, int i) {
  const bool quads = gpu::Tile<Block>::kFamily == 3;
  const uint32_t word = tile_word<Block>(t, i / 4);
  uint32_t signs = 0;
  for (int j = 0; j < 8; ++j) {
    const int place = quads ? 8 * (j % 4) + 2 * (i % 4) + j / 4 : 4 * j + i % 4;
    signs |= ((word >> place) & 1u) << j;
  }
  return signs;
}

// Scale k of four bits
template <class Block>
static inline float tile_scale4(TileRow t, int k) {
  return static_cast<float>((tile_word<Block>(t, gpu::Tile<Block>::kScales + k / 8) >> (4 * (k % 8))) & 15u);
}

// Codes of codeword i, and scale of unit g, as in formats/<format>.h
template <class Block>
struct TileUnit;
template <>
struct TileUnit<Iq1S> {
  static Codes8 codes(TileRow t, int i) {
    const int shift = i / 8 * 8 + (i % 8 / 4 ? 6 : 5);
    return apply_delta(iq1_row(tile_field<Iq1S>(t, i) & 2047u), tile_field<Iq1S>(t, shift) >> 11 ? -1 : 1);
  }
  static float scale(TileRow t, int g) {
    uint32_t s = 0;
    for (int bit = 0; bit < 3; ++bit) {
      const int field = g / 4 * 8 + (g % 4 / 2 ? (7 + bit) % 8 : 2 + bit);
      s |= tile_field<Iq1S>(t, field) >> 11 << bit;
    }
    return tile_half<Iq1S>(t) * static_cast<float>(2 * s + 1) * 0.125f;
  }
};
template <>
struct TileUnit<Iq1M> {
  static Codes8 codes(TileRow t, int i) {
    const uint32_t field = tile_field<Iq1M>(t, i);
    return apply_delta(iq1_row(field & 2047u), field >> 11 ? -1 : 1);
  }
  static float scale(TileRow t, int g) {
    const uint32_t low = tile_word<Iq1M>(t, gpu::Tile<Iq1M>::kScales);
    const uint32_t high = tile_word<Iq1M>(t, gpu::Tile<Iq1M>::kScales + 1);
    const int bit = 3 * g;
    const uint32_t s = (bit < 32 ? low >> bit | high << 1 << (31 - bit) : high >> (bit - 32)) & 7u;
    return float_from_half(high >> 16) * static_cast<float>(2 * s + 1) * 0.125f;
  }
};
template <>
struct TileUnit<Iq2Xxs> {
  static Codes8 codes(TileRow t, int i) {
    return apply_signs(iq2_xxs_row(tile_field<Iq2Xxs>(t, i)), tile_signs<Iq2Xxs>(t, i));
  }
  static float scale(TileRow t, int g) { return tile_half<Iq2Xxs>(t) * (tile_scale4<Iq2Xxs>(t, g / 2) + 0.5f) * 0.25f; }
};
template <>
struct TileUnit<Iq2Xs> {
  static Codes8 codes(TileRow t, int i) {
    return apply_signs(iq2_xs_row(tile_field<Iq2Xs>(t, i)), tile_signs<Iq2Xs>(t, i));
  }
  static float scale(TileRow t, int g) { return tile_half<Iq2Xs>(t) * (tile_scale4<Iq2Xs>(t, g) + 0.5f) * 0.25f; }
};
template <>
struct TileUnit<Iq2S> {
  static Codes8 codes(TileRow t, int i) {
    return apply_signs(iq2_s_row(tile_field<Iq2S>(t, i)), tile_signs<Iq2S>(t, i));
  }
  static float scale(TileRow t, int g) { return tile_half<Iq2S>(t) * (tile_scale4<Iq2S>(t, g) + 0.5f) * 0.25f; }
};
template <>
struct TileUnit<Iq3Xxs> {
  static Codes8 codes(TileRow t, int i) {
    const uint64_t second = iq3_xxs_row(tile_field<Iq3Xxs>(t, 2 * i + 1));
    return apply_signs(iq3_xxs_row(tile_field<Iq3Xxs>(t, 2 * i)) | second << 32, tile_signs<Iq3Xxs>(t, i));
  }
  static float scale(TileRow t, int g) { return tile_half<Iq3Xxs>(t) * (tile_scale4<Iq3Xxs>(t, g / 2) + 0.5f) * 0.5f; }
};
template <>
struct TileUnit<Iq3S> {
  static Codes8 codes(TileRow t, int i) {
    const uint64_t second = iq3_s_row(tile_field<Iq3S>(t, 2 * i + 1));
    return apply_signs(iq3_s_row(tile_field<Iq3S>(t, 2 * i)) | second << 32, tile_signs<Iq3S>(t, i));
  }
  static float scale(TileRow t, int g) { return tile_half<Iq3S>(t) * (2.0f * tile_scale4<Iq3S>(t, g / 2) + 1.0f); }
};

// ---- a unit of any integer format ----

// Places are unsigned, so that their divisions are shifts and masks.

struct Unit {
  half4 code[4];
  float scale;
  float offset;
};

static inline Unit unit_of(Codes16 codes, float scale, float offset) {
  Unit out;
  for (int k = 0; k < 4; ++k) out.code[k] = codes.v[k];
  out.scale = scale;
  out.offset = offset;
  return out;
}

// Of blocks; formats with tiles, of either layout
template <class Block>
struct Units {
  enum : int { kBias = Unpack<Block>::kBias };
  static Unit load(constant WeightArgs& w, const device uint8_t* matrix, int row, uint n) {
    const uint of_block = Block::kBlockSize / kAnyUnit;
    const int g = static_cast<int>(n % of_block);
    const device Block& b = reinterpret_cast<const device Block*>(matrix + row * w.row_bytes)[n / of_block];
    return unit_of(Unpack<Block>::codes(b, g), scale16(b, g), offset16(b, g));
  }
};

template <class Block>
static inline Unit load_either(constant WeightArgs& w, const device uint8_t* matrix, int row, uint n) {
  const uint of_block = Block::kBlockSize / kAnyUnit;
  const int g = static_cast<int>(n % of_block);
  if (w.tiles) {
    TileRow t;
    t.tile = matrix + row / kTileRows * w.row_bytes + n / of_block * gpu::Tile<Block>::kBytes;
    t.lane = row % kTileRows;
    const Codes16 codes = from_codes8(TileUnit<Block>::codes(t, 2 * g), TileUnit<Block>::codes(t, 2 * g + 1));
    return unit_of(codes, TileUnit<Block>::scale(t, g), 0.0f);
  }
  const device Block& b = reinterpret_cast<const device Block*>(matrix + row * w.row_bytes)[n / of_block];
  return unit_of(Unpack<Block>::codes(b, g), scale16(b, g), 0.0f);
}
#define LUTKERN_EITHER(name, Block)                                                           \
  template <>                                                                                 \
  struct Units<Block> {                                                                       \
    enum : int { kBias = 0 };                                                                 \
    static Unit load(constant WeightArgs& w, const device uint8_t* matrix, int row, uint n) { \
      return load_either<Block>(w, matrix, row, n);                                           \
    }                                                                                         \
  };
LUTKERN_GPU_TILE_FORMATS(LUTKERN_EITHER)
#undef LUTKERN_EITHER

// Weights 4 k .. 4 k + 3 of a unit: one product, one sum, as the format defines them.
template <class Block>
static inline float4 weights_of(Unit unit, int k) {
  const float4 product = unit.scale * (float4(unit.code[k]) - static_cast<float>(Units<Block>::kBias));
  return Block::kHasOffset ? product + unit.offset : product;
}

// code * scale of an integer and the bits of a subnormal, which arithmetic may take for zero: in units of 2^-149
static inline float tiny_product(float code, uint32_t scale) {
  const uint32_t units = static_cast<uint32_t>(fabs(code)) * scale;
  const uint32_t bits = units < 0x00800000u ? units : as_type<uint32_t>(static_cast<float>(units)) - (149u << 23);
  return as_type<float>(bits | (as_type<uint32_t>(code) & 0x80000000u));
}

// The same to the bit where subnormals are flushed: mxfp4 alone has scales so small
template <class Block>
static inline float4 stored_weights_of(Unit unit, int k) {
  const uint32_t scale = as_type<uint32_t>(unit.scale);
  if (!is_same<Block, Mxfp4>::value || scale >= 0x00800000u) return weights_of<Block>(unit, k);
  const float4 codes = float4(unit.code[k]);
  return float4(tiny_product(codes.x, scale), tiny_product(codes.y, scale), tiny_product(codes.z, scale),
                tiny_product(codes.w, scale));
}

}  // namespace metal_kernels
}  // namespace lutkern
