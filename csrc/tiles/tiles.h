// The tile of every format. The words of a body are numbered u = 0, 1, ...
#pragma once
#include "ternary.h"
#include "tile.h"

namespace lutkern {

// ---- cut, as the block is ----

template <>
struct Tile<Q2K> : CutTile<Q2K, 80, 4, PlainWord> {};  // scale 0..3, code 4..19
template <>
struct Tile<Q3K> : CutTile<Q3K, 108, 2, PlainWord> {};  // high 0..7, code 8..23, scale 24..26
template <>
struct Tile<Q4K> : CutTile<Q4K, 0, 4, PlainWord> {};  // scale 0..2, code 3..34
template <>
struct Tile<Q5K> : CutTile<Q5K, 0, 4, PlainWord> {};  // scale 0..2, high 3..10, code 11..42
template <>
struct Tile<Q6K> : CutTile<Q6K, 208, 2, PlainWord> {};  // low 0..31, high 32..47, scale 48..51
template <>
struct Tile<Tq20> : CutTile<Tq20, 64, 2, PlainWord> {};  // code 0..15
template <>
struct Tile<Iq4Nl> : CutTile<Iq4Nl, 0, 2, PlainWord> {};  // code 0..3
template <>
struct Tile<Iq4Xs> : CutTile<Iq4Xs, 0, 4, PlainWord> {};  // low 0, code 1..32; tail: d, high
template <>
struct Tile<Mxfp4> : CutTile<Mxfp4, 0, 1, PlainWord> {};  // code 0..3; tail: e
template <>
struct Tile<Q40> : CutTile<Q40, 0, 2, PlainWord> {};  // code 0..3
template <>
struct Tile<Q41> : CutTile<Q41, 0, 4, PlainWord> {};  // code 0..3; tail: d, m
template <>
struct Tile<Q80> : CutTile<Q80, 0, 2, PlainWord> {};  // code 0..7
template <>
struct Tile<Bf16> : CutTile<Bf16, 0, 0, PlainWord> {};
template <>
struct Tile<F16> : CutTile<F16, 0, 0, PlainWord> {};
template <>
struct Tile<F32> : CutTile<F32, 0, 0, PlainWord> {};

// ---- cut, with a fifth bit by byte ----

struct FifthBitWord {
  static inline uint32_t stored(uint32_t word, int u) { return u == 0 ? bits_by_byte(word) : word; }
  static inline uint32_t natural(uint32_t word, int u) { return u == 0 ? bits_by_byte(word) : word; }
};
template <>
struct Tile<Q50> : CutTile<Q50, 0, 2, FifthBitWord> {};  // high 0, code 1..4
template <>
struct Tile<Q51> : CutTile<Q51, 0, 4, FifthBitWord> {};  // high 0, code 1..4; tail: d, m

// ---- ternary: base 3, see ternary.h ----

struct BiasedWord {
  static inline uint32_t stored(uint32_t word, int) { return word ^ 0x80808080u; }
  static inline uint32_t natural(uint32_t word, int) { return word ^ 0x80808080u; }
};
template <>
struct Tile<Tq10> : CutTile<Tq10, 52, 2, BiasedWord> {};  // digits 0..12
template <>
struct Tile<Iq1S> : Iq1STile {};
template <>
struct Tile<Iq1M> : Iq1MTile {};

// ---- codebook rows and signs ----

template <int kFirst, int kStep>
struct SevensWord {
  static inline bool is_signs(int u) { return u >= kFirst && (u - kFirst) % kStep == 0; }
  static inline uint32_t stored(uint32_t word, int u) {
    return is_signs(u) ? signs_and_extra(word & 0x0fffffffu, word >> 28) : word;
  }
  static inline uint32_t natural(uint32_t word, int u) {
    return is_signs(u) ? sevens_of(word) | extra_of(word) << 28 : word;
  }
};
// For each 32 columns g: index 2 g, signs with the bits of the scale 2 g + 1
template <>
struct Tile<Iq2Xxs> : CutTile<Iq2Xxs, 0, 2, SevensWord<1, 2>> {};
// index 0..15, two for each 32 columns; signs with the bits of the scale 16..23
template <>
struct Tile<Iq3Xxs> : CutTile<Iq3Xxs, 0, 2, SevensWord<16, 1>> {};

template <int kFirst, int kEnd>
struct SignsWord {
  static inline bool is_signs(int u) { return u >= kFirst && u < kEnd; }
  static inline uint32_t stored(uint32_t word, int u) { return is_signs(u) ? bits_by_byte(word) : word; }
  static inline uint32_t natural(uint32_t word, int u) { return is_signs(u) ? bits_by_byte(word) : word; }
};

// index 0..7, signs 8..15, high 16..17, scale 18..19. Of high, byte i of a word holds the two bits of index i of four
// groups of 32 columns; in the block, byte g holds those of the four indices of group g.
struct Iq2SWord {
  using Signs = SignsWord<8, 16>;
  static inline uint32_t transposed(uint32_t word) { return exchange(exchange(word, 0x00cc00ccu, 6), 0x0000f0f0u, 12); }
  static inline uint32_t stored(uint32_t word, int u) {
    return u == 16 || u == 17 ? transposed(word) : Signs::stored(word, u);
  }
  static inline uint32_t natural(uint32_t word, int u) {
    return u == 16 || u == 17 ? transposed(word) : Signs::natural(word, u);
  }
};
template <>
struct Tile<Iq2S> : CutTile<Iq2S, 0, 2, Iq2SWord> {};

// index 0..15, high 16..17, signs 18..25, scale 26. Bit g of byte i of word 16 + a is the ninth bit of index 8 g + 4 a +
// i; in the block, bit 4 a + i of byte g.
template <>
struct Tile<Iq3S> : CutTile<Iq3S, 0, 2, SignsWord<18, 26>> {
  using Cut = CutTile<Iq3S, 0, 2, SignsWord<18, 26>>;

  static inline uint64_t transposed(uint64_t bits) {
    uint64_t difference = (bits ^ (bits >> 7)) & 0x00aa00aa00aa00aau;
    bits ^= difference ^ (difference << 7);
    difference = (bits ^ (bits >> 14)) & 0x0000cccc0000ccccu;
    bits ^= difference ^ (difference << 14);
    difference = (bits ^ (bits >> 28)) & 0x00000000f0f0f0f0u;
    return bits ^ difference ^ (difference << 28);
  }
  static inline void transpose_high(uint32_t* body) {
    const uint64_t bits = transposed(body[16] | static_cast<uint64_t>(body[17]) << 32);
    body[16] = static_cast<uint32_t>(bits);
    body[17] = static_cast<uint32_t>(bits >> 32);
  }
  static inline void put(const uint8_t* block, uint32_t* body, uint8_t* tail) {
    Cut::put(block, body, tail);
    transpose_high(body);
  }
  static inline void get(const uint32_t* body, const uint8_t* tail, uint8_t* block) {
    uint32_t natural[kWords];
    memcpy(natural, body, sizeof(natural));
    transpose_high(natural);
    Cut::get(natural, tail, block);
  }
};

// index (low bytes) 0..7, signs with the ninth index bits 8..15, scale 16..17
template <>
struct Tile<Iq2Xs> {
  enum : int {
    kBlocks = 1,
    kColumns = 256,
    kBytes = Iq2Xs::kBlockBytes,
    kTailBytes = 2,
    kTailItem = 2,
    kWords = 18,
  };

  static inline void put(const uint8_t* bytes, uint32_t* body, uint8_t* tail) {
    const Iq2Xs& block = *reinterpret_cast<const Iq2Xs*>(bytes);
    for (int g = 0; g < 8; ++g) {
      uint32_t index = 0;
      uint32_t sevens = 0;
      uint32_t ninth = 0;
      for (int i = 0; i < 4; ++i) {
        const uint32_t word = load_u16(block.word[4 * g + i]);
        index |= (word & 255u) << (8 * i);
        sevens |= (word >> 9) << (7 * i);
        ninth |= ((word >> 8) & 1u) << i;
      }
      body[g] = index;
      body[8 + g] = signs_and_extra(sevens, ninth);
    }
    body[16] = word_at(block.scale);
    body[17] = word_at(block.scale + 4);
    memcpy(tail, block.d, sizeof(block.d));
  }

  static inline void get(const uint32_t* body, const uint8_t* tail, uint8_t* bytes) {
    Iq2Xs& block = *reinterpret_cast<Iq2Xs*>(bytes);
    for (int g = 0; g < 8; ++g) {
      const uint32_t sevens = sevens_of(body[8 + g]);
      const uint32_t ninth = extra_of(body[8 + g]);
      for (int i = 0; i < 4; ++i) {
        block.word[4 * g + i][0] = static_cast<uint8_t>(body[g] >> (8 * i));
        block.word[4 * g + i][1] = static_cast<uint8_t>(((ninth >> i) & 1u) | ((sevens >> (7 * i)) & 127u) << 1);
      }
    }
    memcpy(block.scale, body + 16, sizeof(block.scale));
    memcpy(block.d, tail, sizeof(block.d));
  }
};

}  // namespace lutkern
