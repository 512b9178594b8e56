// The tile of every format. The words of a body are numbered u = 0, 1, ...
#pragma once
#include "ternary.h"
#include "tile.h"

namespace lutkern {

// ---- cut, as the block is ----

template <>
struct Tile<Q2K> : CutTile<Q2K, 80, 4, PlainWords> {};  // scale 0..3, code 4..19
template <>
struct Tile<Q3K> : CutTile<Q3K, 108, 2, PlainWords> {};  // high 0..7, code 8..23, scale 24..26
template <>
struct Tile<Q4K> : CutTile<Q4K, 0, 4, PlainWords> {};  // scale 0..2, code 3..34
template <>
struct Tile<Q5K> : CutTile<Q5K, 0, 4, PlainWords> {};  // scale 0..2, high 3..10, code 11..42
template <>
struct Tile<Q6K> : CutTile<Q6K, 208, 2, PlainWords> {};  // low 0..31, high 32..47, scale 48..51
template <>
struct Tile<Tq20> : CutTile<Tq20, 64, 2, PlainWords> {};  // code 0..15
template <>
struct Tile<Iq4Nl> : CutTile<Iq4Nl, 0, 2, PlainWords> {};  // code 0..3
template <>
struct Tile<Iq4Xs> : CutTile<Iq4Xs, 0, 4, PlainWords> {};  // low 0, code 1..32; tail: d, high
template <>
struct Tile<Mxfp4> : CutTile<Mxfp4, 0, 1, PlainWords> {};  // code 0..3; tail: e
template <>
struct Tile<Q40> : CutTile<Q40, 0, 2, PlainWords> {};  // code 0..3
template <>
struct Tile<Q41> : CutTile<Q41, 0, 4, PlainWords> {};  // code 0..3; tail: d, m
template <>
struct Tile<Q80> : CutTile<Q80, 0, 2, PlainWords> {};  // code 0..7
template <>
struct Tile<Bf16> : CutTile<Bf16, 0, 0, PlainWords> {};
template <>
struct Tile<F16> : CutTile<F16, 0, 0, PlainWords> {};
template <>
struct Tile<F32> : CutTile<F32, 0, 0, PlainWords> {};

// ---- cut, with a fifth bit by byte ----

// Words kFirst up to kEnd - 1 hold one bit for each column.
template <int kFirst, int kEnd>
struct BitWords {
  enum : bool { kPlain = false };
  template <class W>
  static inline void stored(W* words) {
    for (int u = kFirst; u < kEnd; ++u) words[u] = bits_by_byte(words[u]);
  }
  template <class W>
  static inline void natural(W* words) {
    stored(words);
  }
};
template <>
struct Tile<Q50> : CutTile<Q50, 0, 2, BitWords<0, 1>> {};  // high 0, code 1..4
template <>
struct Tile<Q51> : CutTile<Q51, 0, 4, BitWords<0, 1>> {};  // high 0, code 1..4; tail: d, m

// ---- ternary: base 3, see ternary.h ----

struct BiasedWords {
  enum : bool { kPlain = false };
  template <class W>
  static inline void stored(W* words) {
    for (int u = 0; u < kDigitWords; ++u) words[u] = words[u] ^ 0x80808080u;
  }
  template <class W>
  static inline void natural(W* words) {
    stored(words);
  }
};
template <>
struct Tile<Tq10> : CutTile<Tq10, 52, 2, BiasedWords> {};  // digits 0..12
template <>
struct Tile<Iq1S> : Iq1STile {};
template <>
struct Tile<Iq1M> : Iq1MTile {};

// ---- codebook rows and signs ----

// Words kFirst, kFirst + kStep ... below kEnd hold four sign codes and four bits of a scale.
template <int kFirst, int kEnd, int kStep>
struct SevensWords {
  enum : bool { kPlain = false };
  template <class W>
  static inline void stored(W* words) {
    for (int u = kFirst; u < kEnd; u += kStep) words[u] = signs_and_extra(words[u]);
  }
  template <class W>
  static inline void natural(W* words) {
    for (int u = kFirst; u < kEnd; u += kStep) words[u] = sevens_and_extra(words[u]);
  }
};
// For each 32 columns g: index 2 g, signs with the bits of the scale 2 g + 1
template <>
struct Tile<Iq2Xxs> : CutTile<Iq2Xxs, 0, 2, SevensWords<1, 16, 2>> {};
// index 0..15, two for each 32 columns; signs with the bits of the scale 16..23
template <>
struct Tile<Iq3Xxs> : CutTile<Iq3Xxs, 0, 2, SevensWords<16, 24, 1>> {};

// index 0..7, signs 8..15, high 16..17, scale 18..19. Of high, byte i of a word holds the two bits of index i of four
// groups of 32 columns; in the block, byte g holds those of the four indices of group g.
struct Iq2SWords {
  enum : bool { kPlain = false };
  using Signs = BitWords<8, 16>;
  template <class W>
  static inline void transpose_high(W* words) {
    for (int u = 16; u < 18; ++u) words[u] = exchange(exchange(words[u], 0x00cc00ccu, 6), 0x0000f0f0u, 12);
  }
  template <class W>
  static inline void stored(W* words) {
    Signs::stored(words);
    transpose_high(words);
  }
  template <class W>
  static inline void natural(W* words) {
    Signs::natural(words);
    transpose_high(words);
  }
};
template <>
struct Tile<Iq2S> : CutTile<Iq2S, 0, 2, Iq2SWords> {};

// index 0..15, high 16..17, signs 18..25, scale 26. Bit g of byte i of word 16 + a is the ninth bit of index 8 g + 4 a +
// i; in the block, bit 4 a + i of byte g.
struct Iq3SWords {
  enum : bool { kPlain = false };
  using Signs = BitWords<18, 26>;
  // Between the two words the highest bit of g changes places with a; inside of a word the rest of g with i.
  template <class W>
  static inline void swap_words(W* words) {
    const W difference = ((words[16] >> 4) ^ words[17]) & 0x0f0f0f0fu;
    words[17] = words[17] ^ difference;
    words[16] = words[16] ^ (difference << 4);
  }
  template <class W>
  static inline void transpose(W* words) {
    for (int u = 16; u < 18; ++u) words[u] = exchange(exchange(words[u], 0x00aa00aau, 7), 0x0000ccccu, 14);
  }
  template <class W>
  static inline void stored(W* words) {
    Signs::stored(words);
    swap_words(words);
    transpose(words);
  }
  template <class W>
  static inline void natural(W* words) {
    Signs::natural(words);
    transpose(words);
    swap_words(words);
  }
};
template <>
struct Tile<Iq3S> : CutTile<Iq3S, 0, 2, Iq3SWords> {};

// index (low bytes) 0..7, signs with the ninth index bits 8..15, scale 16..17. In the block an index, its ninth bit and
// its sign code are one u16.
struct Iq2XsWords {
  enum : bool { kPlain = false };
  // Bytes 0 and 2 of two words
  template <class W>
  static inline W even_bytes(W low, W high) {
    return (low & 0xffu) | ((low >> 8) & 0xff00u) | ((high & 0xffu) << 16) | ((high << 8) & 0xff000000u);
  }
  // The bytes 2 k and 2 k + 1 of word as bytes 0 and 2
  template <class W>
  static inline W spread(W word, int k) {
    return ((word >> (16 * k)) & 0xffu) | (((word >> (16 * k)) & 0xff00u) << 8);
  }
  template <class W>
  static inline void stored(W* words) {
    W out[16];
    for (int g = 0; g < 8; ++g) {
      out[g] = even_bytes(words[2 * g], words[2 * g + 1]);
      const W ninth_and_sevens = even_bytes(words[2 * g] >> 8, words[2 * g + 1] >> 8);
      const W by_byte = bits_by_byte(((ninth_and_sevens >> 1) & 0x7f7f7f7fu) | ((ninth_and_sevens & 0x01010101u) << 7));
      out[8 + g] = running_signs(by_byte) | (by_byte & 0xf0000000u);
    }
    for (int u = 0; u < 16; ++u) words[u] = out[u];
  }
  template <class W>
  static inline void natural(W* words) {
    W out[16];
    for (int g = 0; g < 8; ++g) {
      const W signs = signs_of_running(words[8 + g]) & 0x0fffffffu;
      const W by_column = bits_by_byte(signs | (words[8 + g] & 0xf0000000u));
      const W ninth_and_sevens = ((by_column & 0x7f7f7f7fu) << 1) | ((by_column >> 7) & 0x01010101u);
      for (int k = 0; k < 2; ++k) out[2 * g + k] = spread(words[g], k) | (spread(ninth_and_sevens, k) << 8);
    }
    for (int u = 0; u < 16; ++u) words[u] = out[u];
  }
};
template <>
struct Tile<Iq2Xs> : CutTile<Iq2Xs, 0, 2, Iq2XsWords> {};

}  // namespace lutkern
