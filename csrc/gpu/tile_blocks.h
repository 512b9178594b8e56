// Blocks to a lane of a tile and back: tile.h draws the tile.
#pragma once
#include "tile.h"

// A loop whose steps the device has all in registers
#if defined(__CUDACC__)
#define LK_UNROLL _Pragma("unroll")
#else
#define LK_UNROLL
#endif

namespace lutkern {
namespace gpu {

// What one lane has, in registers
template <class Block>
struct LaneWords {
  uint32_t word[Tile<Block>::kWords];
  uint32_t half;
};

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

}  // namespace gpu
}  // namespace lutkern

#include "tile_words.h"

#include "tile_signs.h"

namespace lutkern {
namespace gpu {

// Through words_of and block_of of tile_words.h and tile_signs.h. tile is at a multiple of 4 bytes.
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

}  // namespace gpu
}  // namespace lutkern
