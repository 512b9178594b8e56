// Blocks to the words of a lane and back, format by format: the second part of tile_blocks.h.
#pragma once

namespace lutkern {
namespace gpu {

LK_FN void put_u16(uint8_t* to, uint32_t value) {
  to[0] = static_cast<uint8_t>(value);
  to[1] = static_cast<uint8_t>(value >> 8);
}

LK_FN void put_u32(uint8_t* to, uint32_t value) {
  put_u16(to, value & 0xffffu);
  put_u16(to + 2, value >> 16);
}

// ---- signs ----

// A place in a word is a number of five bits. The bits of the word move as if bits a and b of their places changed
// sides; a < b.
LK_FN constexpr uint32_t places_with(int a, int b) {
  uint32_t places = 0;
  for (int p = 0; p < 32; ++p) places |= ((p >> a) & 1 && !((p >> b) & 1)) ? 1u << p : 0u;
  return places;
}
template <int a, int b>
LK_FN uint32_t swap_places(uint32_t word) {
  constexpr uint32_t kPlaces = places_with(a, b);
  constexpr int kShift = (1 << b) - (1 << a);
  const uint32_t difference = (word ^ (word >> kShift)) & kPlaces;
  return word ^ difference ^ (difference << kShift);
}

// Four bytes of signs, weight j of codeword k in bit 8 k + j, to the order of a tile: iq2 4 j + k; iq3, where index
// 2 k + j / 4 has four weights, 8 (j % 4) + 2 k + j / 4.
LK_FN uint32_t signs2(uint32_t bytes) {
  return swap_places<1, 4>(swap_places<1, 2>(swap_places<0, 3>(swap_places<0, 1>(bytes))));
}
LK_FN uint32_t bytes_of_signs2(uint32_t signs) {
  return swap_places<0, 1>(swap_places<0, 3>(swap_places<1, 2>(swap_places<1, 4>(signs))));
}
LK_FN uint32_t signs3(uint32_t bytes) {
  return swap_places<2, 4>(swap_places<1, 3>(swap_places<0, 2>(swap_places<0, 1>(bytes))));
}
LK_FN uint32_t bytes_of_signs3(uint32_t signs) {
  return swap_places<0, 1>(swap_places<0, 2>(swap_places<1, 3>(swap_places<2, 4>(signs))));
}

// The eight signs of codeword i; words: of signs
template <bool kHalves>
LK_FN uint32_t get_signs(const uint32_t* words, int i) {
  const uint32_t bytes = kHalves ? bytes_of_signs3(words[i / 4]) : bytes_of_signs2(words[i / 4]);
  return (bytes >> (8 * (i % 4))) & 255u;
}

// Four sign codes of seven bits, one to a byte, with their eighth signs
LK_FN uint32_t with_parity(uint32_t sevens) {
  uint32_t parity = sevens ^ (sevens >> 4);
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return sevens | (parity & 0x01010101u) << 7;
}
LK_FN uint32_t bytes_of_sevens(uint32_t word) {
  return (word & 0x7fu) | ((word << 1) & 0x7f00u) | ((word << 2) & 0x7f0000u) | ((word << 3) & 0x7f000000u);
}
LK_FN uint32_t sevens_of_bytes(uint32_t bytes) {
  return (bytes & 0x7fu) | ((bytes & 0x7f00u) >> 1) | ((bytes & 0x7f0000u) >> 2) | ((bytes & 0x7f000000u) >> 3);
}

// ---- iq1 ----

// Fields of 64 columns of iq1_s whose upper bit belongs to the scale of the first and of the other 32 columns, lowest
// bit first, and those with the shift
LK_FN constexpr int scale_field(int other, int bit) { return other ? (7 + bit) % 8 : 2 + bit; }
LK_FN constexpr int shift_field(int other) { return other ? 6 : 5; }

LK_FN LaneWords<Iq1S> words_of(const Iq1S& b) {
  LaneWords<Iq1S> out{};
  LK_UNROLL
  for (int g = 0; g < 8; ++g) {
    const uint32_t word = load_u16(b.word[g]);
    const int first = 8 * (g / 2);
    LK_UNROLL
    for (int k = 0; k < 4; ++k) {
      put_field<Tile<Iq1S>>(out.word, 4 * g + k, b.index[4 * g + k] | ((word >> (3 * k)) & 7u) << 8);
      const int field = k < 3 ? scale_field(g % 2, k) : shift_field(g % 2);
      put_field<Tile<Iq1S>>(out.word, first + field, ((word >> (12 + k)) & 1u) << 11);
    }
  }
  out.half = load_u16(b.d);
  return out;
}

LK_FN Iq1S block_of(const LaneWords<Iq1S>& words) {
  Iq1S b{};
  put_u16(b.d, words.half);
  LK_UNROLL
  for (int g = 0; g < 8; ++g) {
    uint32_t word = 0;
    LK_UNROLL
    for (int k = 0; k < 4; ++k) {
      const uint32_t field = get_field<Tile<Iq1S>>(words.word, 4 * g + k);
      b.index[4 * g + k] = static_cast<uint8_t>(field);
      const int upper = 8 * (g / 2) + (k < 3 ? scale_field(g % 2, k) : shift_field(g % 2));
      word |= ((field >> 8) & 7u) << (3 * k) | (get_field<Tile<Iq1S>>(words.word, upper) >> 11) << (12 + k);
    }
    put_u16(b.word[g], word);
  }
  return b;
}

LK_FN LaneWords<Iq1M> words_of(const Iq1M& b) {
  LaneWords<Iq1M> out{};
  LK_UNROLL
  for (int i = 0; i < 32; ++i) put_field<Tile<Iq1M>>(out.word, i, b.index[i] | high_bits(b, i) << 8);
  uint64_t tail = 0;
  LK_UNROLL
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
  LK_UNROLL
  for (int i = 0; i < 32; i += 2) {
    const uint32_t first = get_field<Tile<Iq1M>>(words.word, i);
    const uint32_t second = get_field<Tile<Iq1M>>(words.word, i + 1);
    b.index[i] = static_cast<uint8_t>(first);
    b.index[i + 1] = static_cast<uint8_t>(second);
    b.high[i / 2] = static_cast<uint8_t>(first >> 8 | (second >> 8) << 4);
  }
  const uint32_t* scales = words.word + Tile<Iq1M>::kScales;
  const uint64_t tail = scales[0] | static_cast<uint64_t>(scales[1]) << 32;
  LK_UNROLL
  for (int k = 0; k < 4; ++k) {
    const uint64_t word = ((tail >> (12 * k)) & 0xfffu) | ((tail >> (48 + 4 * k)) & 15u) << 12;
    put_u16(b.word[k], static_cast<uint32_t>(word));
  }
  return b;
}

// ---- iq2 and iq3: the place of everything, format by format ----

LK_FN uint32_t get_index(const Iq2Xxs& b, int k) { return b.group[k / 4].index[k % 4]; }
LK_FN uint32_t get_index(const Iq2Xs& b, int k) { return load_u16(b.word[k]) & 511u; }
LK_FN uint32_t get_index(const Iq2S& b, int k) { return grid_index(b, k); }
LK_FN uint32_t get_index(const Iq3Xxs& b, int k) { return b.index[k]; }
LK_FN uint32_t get_index(const Iq3S& b, int k) { return grid_index(b, k); }

LK_FN void add_index(Iq2Xxs& b, int k, uint32_t i) { b.group[k / 4].index[k % 4] = static_cast<uint8_t>(i); }
LK_FN void add_index(Iq2Xs& b, int k, uint32_t i) { put_u16(b.word[k], load_u16(b.word[k]) | i); }
LK_FN void add_index(Iq2S& b, int k, uint32_t i) {
  b.index[k] = static_cast<uint8_t>(i);
  b.high[k / 4] = static_cast<uint8_t>(b.high[k / 4] | (i >> 8) << (2 * (k % 4)));
}
LK_FN void add_index(Iq3Xxs& b, int k, uint32_t i) { b.index[k] = static_cast<uint8_t>(i); }
LK_FN void add_index(Iq3S& b, int k, uint32_t i) {
  b.index[k] = static_cast<uint8_t>(i);
  b.high[k / 8] = static_cast<uint8_t>(b.high[k / 8] | (i >> 8) << (k % 8));
}

}  // namespace gpu
}  // namespace lutkern
