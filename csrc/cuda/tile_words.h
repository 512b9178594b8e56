// Blocks to the words of a lane and back, format by format: the second half of tile.h, which draws the words.
#pragma once

namespace lutkern {
namespace cuda {

// ---- signs: eight bits for each codeword, in planes ----

// Where a word of signs has the sign of weight j of codeword i; halves: codewords are two indices of four weights.
template <bool kHalves>
LK_FN int sign_place(int i, int j) {
  return kHalves ? 8 * (j % 4) + 2 * (i % 4) + j / 4 : 4 * j + i % 4;
}

template <bool kHalves>
LK_FN void put_signs(uint32_t* words, int i, uint32_t signs) {
  for (int j = 0; j < 8; ++j) words[i / 4] |= ((signs >> j) & 1u) << sign_place<kHalves>(i, j);
}

template <bool kHalves>
LK_FN uint32_t get_signs(const uint32_t* words, int i) {
  uint32_t signs = 0;
  for (int j = 0; j < 8; ++j) signs |= ((words[i / 4] >> sign_place<kHalves>(i, j)) & 1u) << j;
  return signs;
}

LK_FN void put_u16(uint8_t* to, uint32_t value) {
  to[0] = static_cast<uint8_t>(value);
  to[1] = static_cast<uint8_t>(value >> 8);
}

LK_FN void put_u32(uint8_t* to, uint32_t value) {
  put_u16(to, value & 0xffffu);
  put_u16(to + 2, value >> 16);
}

// Fields of 64 columns of iq1_s whose upper bit belongs to the scale of the first and of the other 32 columns, lowest bit
// first, and those with the shift
LK_FN constexpr int scale_field(int other, int bit) { return other ? (7 + bit) % 8 : 2 + bit; }
LK_FN constexpr int shift_field(int other) { return other ? 6 : 5; }

// ---- iq1_s ----

LK_FN LaneWords<Iq1S> words_of(const Iq1S& b) {
  LaneWords<Iq1S> out{};
  for (int i = 0; i < 32; ++i) {
    const int other = (i % 8) / 4;
    uint32_t upper[8] = {};
    for (int g = 0; g < 2; ++g) {
      const uint32_t word = load_u16(b.word[2 * (i / 8) + g]);
      for (int bit = 0; bit < 3; ++bit) upper[scale_field(g, bit)] = (word >> (12 + bit)) & 1u;
      upper[shift_field(g)] = word >> 15;
    }
    const uint32_t row = b.index[i] | ((load_u16(b.word[2 * (i / 8) + other]) >> (3 * (i % 4))) & 7u) << 8;
    put_field<Tile<Iq1S>>(out.word, i, row | upper[i % 8] << 11);
  }
  out.half = load_u16(b.d);
  return out;
}

LK_FN Iq1S block_of(const LaneWords<Iq1S>& words) {
  Iq1S b{};
  put_u16(b.d, words.half);
  for (int g = 0; g < 8; ++g) {
    const int first = 8 * (g / 2);
    uint32_t word = 0;
    for (int k = 0; k < 4; ++k) {
      const uint32_t field = get_field<Tile<Iq1S>>(words.word, 4 * g + k);
      b.index[4 * g + k] = static_cast<uint8_t>(field);
      word |= ((field >> 8) & 7u) << (3 * k);
    }
    for (int bit = 0; bit < 3; ++bit) {
      word |= (get_field<Tile<Iq1S>>(words.word, first + scale_field(g % 2, bit)) >> 11) << (12 + bit);
    }
    word |= (get_field<Tile<Iq1S>>(words.word, first + shift_field(g % 2)) >> 11) << 15;
    put_u16(b.word[g], word);
  }
  return b;
}

// ---- iq1_m: 48 bits of scales, 16 bits of d ----

LK_FN LaneWords<Iq1M> words_of(const Iq1M& b) {
  LaneWords<Iq1M> out{};
  for (int i = 0; i < 32; ++i) put_field<Tile<Iq1M>>(out.word, i, b.index[i] | high_bits(b, i) << 8);
  uint64_t tail = 0;
  for (int k = 0; k < 4; ++k) {
    const uint64_t word = load_u16(b.word[k]);
    tail |= (word & 0xfffu) << (12 * k) | (word >> 12) << (48 + 4 * k);
  }
  out.word[Tile<Iq1M>::kScales] = static_cast<uint32_t>(tail);
  out.word[Tile<Iq1M>::kScales + 1] = static_cast<uint32_t>(tail >> 32);
  return out;
}

LK_FN Iq1M block_of(const LaneWords<Iq1M>& words) {
  Iq1M b{};
  for (int i = 0; i < 32; ++i) {
    const uint32_t field = get_field<Tile<Iq1M>>(words.word, i);
    b.index[i] = static_cast<uint8_t>(field);
    b.high[i / 2] = static_cast<uint8_t>(b.high[i / 2] | (field >> 8) << (4 * (i % 2)));
  }
  const uint64_t tail = words.word[Tile<Iq1M>::kScales] | static_cast<uint64_t>(words.word[Tile<Iq1M>::kScales + 1])
                                                              << 32;
  for (int k = 0; k < 4; ++k) {
    put_u16(b.word[k], static_cast<uint32_t>(((tail >> (12 * k)) & 0xfffu) | ((tail >> (48 + 4 * k)) & 15u) << 12));
  }
  return b;
}

// ---- iq2_xxs and iq3_xxs: groups of 32 columns with a word of four sign codes and a scale ----

LK_FN LaneWords<Iq2Xxs> words_of(const Iq2Xxs& b) {
  LaneWords<Iq2Xxs> out{};
  for (int i = 0; i < 32; ++i) {
    const uint32_t word = load_u32(b.group[i / 4].word);
    put_field<Tile<Iq2Xxs>>(out.word, i, b.group[i / 4].index[i % 4]);
    put_signs<false>(out.word, i, signs_from_parity((word >> (7 * (i % 4))) & 127u));
    if (i % 4 == 0) out.word[Tile<Iq2Xxs>::kScales] |= (word >> 28) << i;
  }
  out.half = load_u16(b.d);
  return out;
}

LK_FN Iq2Xxs block_of(const LaneWords<Iq2Xxs>& words) {
  Iq2Xxs b{};
  put_u16(b.d, words.half);
  for (int g = 0; g < 8; ++g) {
    uint32_t word = ((words.word[Tile<Iq2Xxs>::kScales] >> (4 * g)) & 15u) << 28;
    for (int k = 0; k < 4; ++k) {
      b.group[g].index[k] = static_cast<uint8_t>(get_field<Tile<Iq2Xxs>>(words.word, 4 * g + k));
      word |= (get_signs<false>(words.word, 4 * g + k) & 127u) << (7 * k);
    }
    put_u32(b.group[g].word, word);
  }
  return b;
}

LK_FN LaneWords<Iq3Xxs> words_of(const Iq3Xxs& b) {
  LaneWords<Iq3Xxs> out{};
  for (int k = 0; k < 64; ++k) put_field<Tile<Iq3Xxs>>(out.word, k, b.index[k]);
  for (int i = 0; i < 32; ++i) {
    const uint32_t word = load_u32(b.word[i / 4]);
    put_signs<true>(out.word, i, signs_from_parity((word >> (7 * (i % 4))) & 127u));
    if (i % 4 == 0) out.word[Tile<Iq3Xxs>::kScales] |= (word >> 28) << i;
  }
  out.half = load_u16(b.d);
  return out;
}

LK_FN Iq3Xxs block_of(const LaneWords<Iq3Xxs>& words) {
  Iq3Xxs b{};
  put_u16(b.d, words.half);
  for (int k = 0; k < 64; ++k) b.index[k] = static_cast<uint8_t>(get_field<Tile<Iq3Xxs>>(words.word, k));
  for (int g = 0; g < 8; ++g) {
    uint32_t word = ((words.word[Tile<Iq3Xxs>::kScales] >> (4 * g)) & 15u) << 28;
    for (int k = 0; k < 4; ++k) word |= (get_signs<true>(words.word, 4 * g + k) & 127u) << (7 * k);
    put_u32(b.word[g], word);
  }
  return b;
}

// ---- iq2_xs, iq2_s, iq3_s ----

LK_FN LaneWords<Iq2Xs> words_of(const Iq2Xs& b) {
  LaneWords<Iq2Xs> out{};
  for (int i = 0; i < 32; ++i) {
    const uint32_t word = load_u16(b.word[i]);
    put_field<Tile<Iq2Xs>>(out.word, i, word & 511u);
    put_signs<false>(out.word, i, signs_from_parity(word >> 9));
  }
  for (int k = 0; k < 2; ++k) out.word[Tile<Iq2Xs>::kScales + k] = load_u32(b.scale + 4 * k);
  out.half = load_u16(b.d);
  return out;
}

LK_FN Iq2Xs block_of(const LaneWords<Iq2Xs>& words) {
  Iq2Xs b{};
  put_u16(b.d, words.half);
  for (int i = 0; i < 32; ++i) {
    put_u16(b.word[i], get_field<Tile<Iq2Xs>>(words.word, i) | (get_signs<false>(words.word, i) & 127u) << 9);
  }
  for (int k = 0; k < 2; ++k) put_u32(b.scale + 4 * k, words.word[Tile<Iq2Xs>::kScales + k]);
  return b;
}

LK_FN LaneWords<Iq2S> words_of(const Iq2S& b) {
  LaneWords<Iq2S> out{};
  for (int i = 0; i < 32; ++i) {
    put_field<Tile<Iq2S>>(out.word, i, grid_index(b, i));
    put_signs<false>(out.word, i, b.sign[i]);
  }
  for (int k = 0; k < 2; ++k) out.word[Tile<Iq2S>::kScales + k] = load_u32(b.scale + 4 * k);
  out.half = load_u16(b.d);
  return out;
}

LK_FN Iq2S block_of(const LaneWords<Iq2S>& words) {
  Iq2S b{};
  put_u16(b.d, words.half);
  for (int i = 0; i < 32; ++i) {
    const uint32_t field = get_field<Tile<Iq2S>>(words.word, i);
    b.index[i] = static_cast<uint8_t>(field);
    b.high[i / 4] = static_cast<uint8_t>(b.high[i / 4] | (field >> 8) << (2 * (i % 4)));
    b.sign[i] = static_cast<uint8_t>(get_signs<false>(words.word, i));
  }
  for (int k = 0; k < 2; ++k) put_u32(b.scale + 4 * k, words.word[Tile<Iq2S>::kScales + k]);
  return b;
}

LK_FN LaneWords<Iq3S> words_of(const Iq3S& b) {
  LaneWords<Iq3S> out{};
  for (int k = 0; k < 64; ++k) put_field<Tile<Iq3S>>(out.word, k, grid_index(b, k));
  for (int i = 0; i < 32; ++i) put_signs<true>(out.word, i, b.sign[i]);
  out.word[Tile<Iq3S>::kScales] = load_u32(b.scale);
  out.half = load_u16(b.d);
  return out;
}

LK_FN Iq3S block_of(const LaneWords<Iq3S>& words) {
  Iq3S b{};
  put_u16(b.d, words.half);
  for (int k = 0; k < 64; ++k) {
    const uint32_t field = get_field<Tile<Iq3S>>(words.word, k);
    b.index[k] = static_cast<uint8_t>(field);
    b.high[k / 8] = static_cast<uint8_t>(b.high[k / 8] | (field >> 8) << (k % 8));
  }
  for (int i = 0; i < 32; ++i) b.sign[i] = static_cast<uint8_t>(get_signs<true>(words.word, i));
  put_u32(b.scale, words.word[Tile<Iq3S>::kScales]);
  return b;
}

}  // namespace cuda
}  // namespace lutkern
