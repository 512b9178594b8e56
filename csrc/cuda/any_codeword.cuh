// One codeword, 8 columns of a row, out of GGUF blocks or out of a tile.
//
//   weight = scale * code + offset
//
// A tile gives a block of which only the first codeword is filled, for the decoder of the format to read: its fields are
// fetched one by one, so that nothing depends on the number of the codeword but addresses and shifts.
#pragma once
#include "../gpu/tile_blocks.h"
#include "kernels.h"
#include "machine.h"

namespace lutkern {
namespace cuda {

struct Codeword {
  uint32_t codes[2];  // four in a word
  float scale;
  float offset;
  bool has_offset;
};

// ---- a row of a tile ----

struct TileRow {
  const uint8_t* tile;
  int row;
};

template <class Block>
LK_DEVICE uint32_t tile_word(const TileRow& t, int i) {
  return constant_load4(t.tile + word_offset<Tile<Block>>(t.row, i));
}

template <class Block>
LK_DEVICE uint32_t tile_half(const TileRow& t) {
  return constant_load2(t.tile + Tile<Block>::kHalfAt + 2 * t.row);
}

// get_field of gpu/tile_blocks.h, of words that are in memory
template <class Block>
LK_DEVICE uint32_t tile_field(const TileRow& t, int i) {
  using T = Tile<Block>;
  const int ring = T::kCodes + T::kRing * (i / T::kFields);
  const int bit = (T::kBits * (i % T::kFields) + T::kPlace) % (32 * T::kRing);
  const uint32_t low = tile_word<Block>(t, ring + bit / 32);
  const uint32_t high = tile_word<Block>(t, ring + (bit / 32 + 1) % T::kRing);
  return funnel_right(low, high, bit % 32) & ((1u << T::kBits) - 1);
}

template <class Block, bool kHalves>
LK_DEVICE uint32_t tile_signs(const TileRow& t, int i) {
  const uint32_t word = tile_word<Block>(t, i / 4);
  return get_signs<kHalves>(&word, i % 4);
}

// Scale k of four bits
template <class Block>
LK_DEVICE uint32_t tile_scale(const TileRow& t, int k) {
  return (tile_word<Block>(t, Tile<Block>::kScales + k / 8) >> (4 * (k % 8))) & 15u;
}

LK_DEVICE void first_codeword(const TileRow& t, int i, Iq1S& b) {
  const int first = i / 8 * 8;
  const int other = i % 8 / 4;
  const uint32_t field = tile_field<Iq1S>(t, i);
  uint32_t word = ((field >> 8) & 7u) | (tile_field<Iq1S>(t, first + shift_field(other)) >> 11) << 15;
  for (int bit = 0; bit < 3; ++bit) word |= (tile_field<Iq1S>(t, first + scale_field(other, bit)) >> 11) << (12 + bit);
  put_u16(b.d, tile_half<Iq1S>(t));
  b.index[0] = static_cast<uint8_t>(field);
  put_u16(b.word[0], word);
}

LK_DEVICE void first_codeword(const TileRow& t, int i, Iq1M& b) {
  const uint32_t field = tile_field<Iq1M>(t, i);
  const uint32_t low = tile_word<Iq1M>(t, Tile<Iq1M>::kScales);
  const uint32_t high = tile_word<Iq1M>(t, Tile<Iq1M>::kScales + 1);
  const int bit = 3 * (i / 2);
  const uint32_t scale = (bit < 32 ? funnel_right(low, high, bit) : high >> (bit - 32)) & 7u;
  b.index[0] = static_cast<uint8_t>(field);
  b.high[0] = static_cast<uint8_t>(field >> 8);
  for (int k = 0; k < 4; ++k) put_u16(b.word[k], (k == 0 ? scale : 0u) | ((high >> (16 + 4 * k)) & 15u) << 12);
}

LK_DEVICE void first_codeword(const TileRow& t, int i, Iq2Xxs& b) {
  put_u16(b.d, tile_half<Iq2Xxs>(t));
  b.group[0].index[0] = static_cast<uint8_t>(tile_field<Iq2Xxs>(t, i));
  put_u32(b.group[0].word, (tile_signs<Iq2Xxs, false>(t, i) & 127u) | tile_scale<Iq2Xxs>(t, i / 4) << 28);
}

LK_DEVICE void first_codeword(const TileRow& t, int i, Iq2Xs& b) {
  put_u16(b.d, tile_half<Iq2Xs>(t));
  put_u16(b.word[0], tile_field<Iq2Xs>(t, i) | (tile_signs<Iq2Xs, false>(t, i) & 127u) << 9);
  b.scale[0] = static_cast<uint8_t>(tile_scale<Iq2Xs>(t, i / 2));
}

LK_DEVICE void first_codeword(const TileRow& t, int i, Iq2S& b) {
  const uint32_t field = tile_field<Iq2S>(t, i);
  put_u16(b.d, tile_half<Iq2S>(t));
  b.index[0] = static_cast<uint8_t>(field);
  b.high[0] = static_cast<uint8_t>(field >> 8);
  b.sign[0] = static_cast<uint8_t>(tile_signs<Iq2S, false>(t, i));
  b.scale[0] = static_cast<uint8_t>(tile_scale<Iq2S>(t, i / 2));
}

LK_DEVICE void first_codeword(const TileRow& t, int i, Iq3Xxs& b) {
  put_u16(b.d, tile_half<Iq3Xxs>(t));
  for (int k = 0; k < 2; ++k) b.index[k] = static_cast<uint8_t>(tile_field<Iq3Xxs>(t, 2 * i + k));
  put_u32(b.word[0], (tile_signs<Iq3Xxs, true>(t, i) & 127u) | tile_scale<Iq3Xxs>(t, i / 4) << 28);
}

LK_DEVICE void first_codeword(const TileRow& t, int i, Iq3S& b) {
  const uint32_t fields[2] = {tile_field<Iq3S>(t, 2 * i), tile_field<Iq3S>(t, 2 * i + 1)};
  put_u16(b.d, tile_half<Iq3S>(t));
  for (int k = 0; k < 2; ++k) b.index[k] = static_cast<uint8_t>(fields[k]);
  b.high[0] = static_cast<uint8_t>(fields[0] >> 8 | fields[1] >> 8 << 1);
  b.sign[0] = static_cast<uint8_t>(tile_signs<Iq3S, true>(t, i));
  b.scale[0] = static_cast<uint8_t>(tile_scale<Iq3S>(t, i / 4));
}

// ---- every format ----

template <class Block>
struct HasTiles {
  static constexpr bool kValue = false;
};
#define LUTKERN_HAS_TILES(name, Block)   \
  template <>                            \
  struct HasTiles<Block> {               \
    static constexpr bool kValue = true; \
  };
LUTKERN_CUDA_TILE_FORMATS(LUTKERN_HAS_TILES)
#undef LUTKERN_HAS_TILES

LK_DEVICE uint32_t word_of(const int8_t* v) {
  return static_cast<uint32_t>(static_cast<uint8_t>(v[0])) | static_cast<uint32_t>(static_cast<uint8_t>(v[1])) << 8 |
         static_cast<uint32_t>(static_cast<uint8_t>(v[2])) << 16 |
         static_cast<uint32_t>(static_cast<uint8_t>(v[3])) << 24;
}

template <class Block>
LK_DEVICE Codeword codeword_of(const Block& block, int i) {
  const Codes8 c = codes8(block, i);
  Codeword out;
  out.codes[0] = word_of(c.v);
  out.codes[1] = word_of(c.v + 4);
  out.scale = scale16(block, i / 2);
  out.offset = Block::kHasOffset ? offset16(block, i / 2) : 0.0f;
  out.has_offset = Block::kHasOffset != 0;
  return out;
}

template <class Block>
LK_DEVICE Codeword load_codeword_of(const WeightArgs& w, const uint8_t* matrix, int64_t row, int64_t n) {
  constexpr int kOfBlock = Block::kBlockSize / 8;
  const int64_t at = n / kOfBlock;
  const int i = static_cast<int>(n % kOfBlock);
  if constexpr (HasTiles<Block>::kValue) {
    if (w.tiles) {
      const uint8_t* tile = matrix + row / kTileRows * w.row_bytes + at * Tile<Block>::kBytes;
      Block block{};
      first_codeword(TileRow{tile, static_cast<int>(row % kTileRows)}, i, block);
      return codeword_of(block, 0);
    }
  }
  return codeword_of(reinterpret_cast<const Block*>(matrix + row * w.row_bytes)[at], i);
}

// Codeword number n of a row of an integer format
LK_DEVICE Codeword load_codeword(const WeightArgs& w, const uint8_t* matrix, int64_t row, int64_t n) {
  switch (static_cast<FormatId>(w.format)) {
#define LUTKERN_LOAD_CODEWORD(name, Block) \
  case FormatId::name:                     \
    if constexpr (Block::kIsFloat == 0) return load_codeword_of<Block>(w, matrix, row, n);
    LUTKERN_FORMATS(LUTKERN_LOAD_CODEWORD)
#undef LUTKERN_LOAD_CODEWORD
    case FormatId::count:
      break;
  }
  return Codeword{};
}

// Weight i of a codeword: one product, one sum, as the format defines it.
LK_DEVICE float weight_of(const Codeword& codeword, int i) {
  const int code = static_cast<int8_t>(codeword.codes[i / 4] >> (8 * (i % 4)));
  const float product = codeword.scale * static_cast<float>(code);
  return codeword.has_offset ? product + codeword.offset : product;
}

}  // namespace cuda
}  // namespace lutkern
