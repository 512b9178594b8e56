// A tile on the device: 32 rows and 256 columns, one lane of a warp has one row. It holds the same information as the
// blocks, so that either can be made from the other.
//
//   chunks   16 bytes of each lane side by side: chunk[c][lane], one 16-byte load of a warp each
//   tail     4 bytes, then 8 bytes, then 2 bytes of each lane side by side
//
// A row of tiles is one tile for each 256 columns. Rows that the weight does not have are zero bytes.
//
// A lane has words of 32 bits, and d, the fp16 scale of its block, in 2 bytes (iq1_m: in a word):
//
//   iq1_s     12 codes; 8 fields of 12 bits to a ring of 3 words: row of the codebook, and one bit: of fields 2, 3, 4
//             the scale of the first 32 columns, of 5 their shift; of 7, 0, 1 the scale of the other 32, of 6 their
//             shift
//   iq1_m     12 codes: row of the codebook and the shift; 2: 16 scales of 3 bits, then d
//   iq2_xxs   8 signs, 8 indices of 8 bits,   1: 8 scales of 4 bits
//   iq2_xs    8 signs, 9 indices of 9 bits,   2: 16 scales of 4 bits
//   iq2_s     8 signs, 10 indices of 10 bits, 2: 16 scales of 4 bits
//   iq3_xxs   8 signs, 16 indices of 8 bits,  1: 8 scales of 4 bits
//   iq3_s     8 signs, 18 indices of 9 bits,  1: 8 scales of 4 bits
//
// Fields lie one after another in a ring of words, from bit kPlace on; the last one goes on at bit 0. kPlace is where
// the index of an entry stands in its byte offset (Table), so that one shift and one mask make an offset.
// A word of signs is for 32 columns: iq2 bit 4 j + k has the sign of weight j of codeword k (j < 8); iq3 bit 8 j + k
// that of weight j of index k (j < 4). All eight signs are there, also where the block leaves one to parity.
#pragma once
#include <string.h>

#include "../formats/formats.h"
#include "arguments.h"

// A loop whose steps the device has all in registers
#if defined(__CUDACC__)
#define LK_UNROLL _Pragma("unroll")
#else
#define LK_UNROLL
#endif

namespace lutkern {
namespace cuda {

template <int chunks, int fours, int eights, int twos, int bits, int place>
struct TileShape {
  enum : int {
    kChunks = chunks,
    kFours = fours,
    kEights = eights,
    kHasHalf = twos,
    kWords = 4 * chunks + fours + 2 * eights,
    kLaneBytes = 4 * kWords + 2 * twos,
    kBytes = kTileRows * kLaneBytes,
    kHalfAt = kTileRows * 4 * kWords,
    kBits = bits,    // of a field
    kPlace = place,  // of the lowest bit of field 0
    kRing = bits == 12 ? 3 : (bits == 10 ? 5 : (bits == 9 ? 9 : 1)),
    kFields = 32 * kRing / bits,  // of a ring
    kIndices = chunks == 6 ? 64 : 32,
    kFamily = bits == 12 ? 1 : (chunks == 6 ? 3 : 2),
    kCodes = bits == 12 ? 0 : 8  // word of the first ring
  };
};

template <class Block>
struct Tile;
template <>
struct Tile<Iq1S> : TileShape<3, 0, 0, 1, 12, 2> {};
template <>
struct Tile<Iq1M> : TileShape<3, 0, 1, 0, 12, 2> {
  enum : int { kScales = 12 };
};
template <>
struct Tile<Iq2Xxs> : TileShape<4, 1, 0, 1, 8, 7> {
  enum : int { kScales = 16 };
};
template <>
struct Tile<Iq2Xs> : TileShape<4, 1, 1, 1, 9, 6> {
  enum : int { kScales = 17 };
};
template <>
struct Tile<Iq2S> : TileShape<4, 0, 2, 1, 10, 5> {
  enum : int { kScales = 18 };
};
template <>
struct Tile<Iq3Xxs> : TileShape<6, 1, 0, 1, 8, 7> {
  enum : int { kScales = 24 };
};
template <>
struct Tile<Iq3S> : TileShape<6, 1, 1, 1, 9, 6> {
  enum : int { kScales = 26 };
};

// Of a tile; 0: the format has none
LK_FN constexpr int tile_bytes(FormatId format) {
  switch (format) {
#define LUTKERN_TILE_BYTES(name, Block) \
  case FormatId::name:                  \
    return Tile<Block>::kBytes;
    LUTKERN_TILE_BYTES(iq1_s, Iq1S)
    LUTKERN_TILE_BYTES(iq1_m, Iq1M)
    LUTKERN_TILE_BYTES(iq2_xxs, Iq2Xxs)
    LUTKERN_TILE_BYTES(iq2_xs, Iq2Xs)
    LUTKERN_TILE_BYTES(iq2_s, Iq2S)
    LUTKERN_TILE_BYTES(iq3_xxs, Iq3Xxs)
    LUTKERN_TILE_BYTES(iq3_s, Iq3S)
#undef LUTKERN_TILE_BYTES
    default:
      return 0;
  }
}

// What one lane has, in registers
template <class Block>
struct LaneWords {
  uint32_t word[Tile<Block>::kWords];
  uint32_t half;
};

// Byte of word i of a lane
template <class T>
LK_FN constexpr int word_offset(int lane, int i) {
  constexpr int kTail = 4 * T::kChunks;
  if (i < kTail) return 512 * (i / 4) + 16 * lane + 4 * (i % 4);
  if (i < kTail + T::kFours) return 128 * i + 4 * lane;
  const int eight = i - kTail - T::kFours;
  return 128 * (kTail + T::kFours) + 256 * (eight / 2) + 8 * lane + 4 * (eight % 2);
}

// ---- fields ----

template <class T>
LK_FN uint32_t get_field(const uint32_t* words, int i) {
  const uint32_t* ring = words + T::kCodes + T::kRing * (i / T::kFields);
  const int bit = (T::kBits * (i % T::kFields) + T::kPlace) % (32 * T::kRing);
  uint32_t value = ring[bit / 32] >> (bit % 32);
  if (bit % 32 + T::kBits > 32) value |= ring[(bit / 32 + 1) % T::kRing] << (32 - bit % 32);
  return value & ((1u << T::kBits) - 1);
}

template <class T>
LK_FN void put_field(uint32_t* words, int i, uint32_t value) {
  uint32_t* ring = words + T::kCodes + T::kRing * (i / T::kFields);
  const int bit = (T::kBits * (i % T::kFields) + T::kPlace) % (32 * T::kRing);
  ring[bit / 32] |= value << (bit % 32);
  if (bit % 32 + T::kBits > 32) ring[(bit / 32 + 1) % T::kRing] |= value >> (32 - bit % 32);
}

}  // namespace cuda
}  // namespace lutkern

#include "tile_words.h"

#include "tile_signs.h"

namespace lutkern {
namespace cuda {

// Through words_of and block_of of tile_words.h. tile is at a multiple of 4 bytes.
template <class Block>
LK_FN void encode(const Block& b, uint8_t* tile, int lane) {
  const LaneWords<Block> words = words_of(b);
  for (int i = 0; i < Tile<Block>::kWords; ++i) {
    uint8_t* to = tile + word_offset<Tile<Block>>(lane, i);
    for (int j = 0; j < 4; ++j) to[j] = static_cast<uint8_t>(words.word[i] >> (8 * j));
  }
  if (Tile<Block>::kHasHalf) {
    uint8_t* to = tile + Tile<Block>::kHalfAt + 2 * lane;
    to[0] = static_cast<uint8_t>(words.half);
    to[1] = static_cast<uint8_t>(words.half >> 8);
  }
}

template <class Block>
LK_FN Block decode(const uint8_t* tile, int lane) {
  LaneWords<Block> words;
  for (int i = 0; i < Tile<Block>::kWords; ++i) words.word[i] = load_u32(tile + word_offset<Tile<Block>>(lane, i));
  words.half = Tile<Block>::kHasHalf ? load_u16(tile + Tile<Block>::kHalfAt + 2 * lane) : 0;
  return block_of(words);
}

}  // namespace cuda
}  // namespace lutkern
