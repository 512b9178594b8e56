// Signs and scales of iq2 and iq3: the last part of tile_blocks.h.
#pragma once

namespace lutkern {
namespace gpu {

// Word q of signs: a byte for each of four codewords
LK_FN uint32_t signs_of(const Iq2Xxs& b, int q) { return with_parity(bytes_of_sevens(load_u32(b.group[q].word))); }
LK_FN uint32_t signs_of(const Iq3Xxs& b, int q) { return with_parity(bytes_of_sevens(load_u32(b.word[q]))); }
LK_FN uint32_t signs_of(const Iq2S& b, int q) { return load_u32(b.sign + 4 * q); }
LK_FN uint32_t signs_of(const Iq3S& b, int q) { return load_u32(b.sign + 4 * q); }
LK_FN uint32_t signs_of(const Iq2Xs& b, int q) {
  uint32_t sevens = 0;
  for (int k = 0; k < 4; ++k) sevens |= (load_u16(b.word[4 * q + k]) >> 9) << (8 * k);
  return with_parity(sevens);
}

LK_FN void add_sevens(uint8_t* word, uint32_t bytes) { put_u32(word, load_u32(word) | sevens_of_bytes(bytes)); }
LK_FN void add_signs(Iq2Xxs& b, int q, uint32_t bytes) { add_sevens(b.group[q].word, bytes); }
LK_FN void add_signs(Iq3Xxs& b, int q, uint32_t bytes) { add_sevens(b.word[q], bytes); }
LK_FN void add_signs(Iq2S& b, int q, uint32_t bytes) { put_u32(b.sign + 4 * q, bytes); }
LK_FN void add_signs(Iq3S& b, int q, uint32_t bytes) { put_u32(b.sign + 4 * q, bytes); }
LK_FN void add_signs(Iq2Xs& b, int q, uint32_t bytes) {
  for (int k = 0; k < 4; ++k) {
    put_u16(b.word[4 * q + k], load_u16(b.word[4 * q + k]) | ((bytes >> (8 * k)) & 127u) << 9);
  }
}

// Word i of the scales, 4 bits each
LK_FN uint32_t get_scales(const Iq2Xs& b, int i) { return load_u32(b.scale + 4 * i); }
LK_FN uint32_t get_scales(const Iq2S& b, int i) { return load_u32(b.scale + 4 * i); }
LK_FN uint32_t get_scales(const Iq3S& b, int) { return load_u32(b.scale); }
LK_FN uint32_t get_scales(const Iq2Xxs& b, int) {
  uint32_t scales = 0;
  LK_UNROLL
  for (int g = 0; g < 8; ++g) scales |= static_cast<uint32_t>(b.group[g].word[3] >> 4) << (4 * g);
  return scales;
}
LK_FN uint32_t get_scales(const Iq3Xxs& b, int) {
  uint32_t scales = 0;
  LK_UNROLL
  for (int g = 0; g < 8; ++g) scales |= static_cast<uint32_t>(b.word[g][3] >> 4) << (4 * g);
  return scales;
}

LK_FN void add_scales(Iq2Xs& b, int i, uint32_t scales) { put_u32(b.scale + 4 * i, scales); }
LK_FN void add_scales(Iq2S& b, int i, uint32_t scales) { put_u32(b.scale + 4 * i, scales); }
LK_FN void add_scales(Iq3S& b, int, uint32_t scales) { put_u32(b.scale, scales); }
LK_FN void add_scale(uint8_t* word, uint32_t scale) { word[3] = static_cast<uint8_t>(word[3] | (scale & 15u) << 4); }
LK_FN void add_scales(Iq2Xxs& b, int, uint32_t scales) {
  LK_UNROLL
  for (int g = 0; g < 8; ++g) add_scale(b.group[g].word, scales >> (4 * g));
}
LK_FN void add_scales(Iq3Xxs& b, int, uint32_t scales) {
  LK_UNROLL
  for (int g = 0; g < 8; ++g) add_scale(b.word[g], scales >> (4 * g));
}

template <class Block>
LK_FN LaneWords<Block> words_of(const Block& b) {
  using T = Tile<Block>;
  LaneWords<Block> out{};
  LK_UNROLL
  for (int q = 0; q < 8; ++q) out.word[q] = T::kFamily == 3 ? signs3(signs_of(b, q)) : signs2(signs_of(b, q));
  LK_UNROLL
  for (int k = 0; k < T::kIndices; ++k) put_field<T>(out.word, k, get_index(b, k));
  LK_UNROLL
  for (int i = T::kScales; i < T::kWords; ++i) out.word[i] = get_scales(b, i - T::kScales);
  out.half = load_u16(b.d);
  return out;
}

template <class Block>
LK_FN Block block_of(const LaneWords<Block>& words) {
  using T = Tile<Block>;
  Block b{};
  put_u16(b.d, words.half);
  LK_UNROLL
  for (int k = 0; k < T::kIndices; ++k) add_index(b, k, get_field<T>(words.word, k));
  LK_UNROLL
  for (int q = 0; q < 8; ++q) {
    add_signs(b, q, T::kFamily == 3 ? bytes_of_signs3(words.word[q]) : bytes_of_signs2(words.word[q]));
  }
  LK_UNROLL
  for (int i = T::kScales; i < T::kWords; ++i) add_scales(b, i - T::kScales, words.word[i]);
  return b;
}

}  // namespace gpu
}  // namespace lutkern
