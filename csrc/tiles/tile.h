// A tile: the weights of 16 rows and one block of columns in the order in which the CPU kernels read them. It holds the
// same information as the blocks, so that either can be made from the other.
//
//   body     words of 4 bytes, word u of all rows side by side: body[u][row]
//   tail     the fp16 scales (and what else comes in odd sizes), item i of all rows side by side: tail[i][row]
//
// With few exceptions a word is four consecutive bytes of the block, and its four bytes belong to four consecutive
// columns. So a SIMD lane of 32 bits is one row, the activation is the same for all lanes, and sums never cross lanes.
//
// A row of tiles is 16 rows of the weight: the bodies of its tiles, then their tails, padded to 64 bytes. Rows that the
// weight does not have are zero bytes. A float format has tiles of 32 columns.
#pragma once
#include <stdint.h>
#include <string.h>

#include "../formats/formats.h"

namespace lutkern {

enum : int { kTileRows = 16, kTileVersion = 1 };

LK_FN uint32_t word_at(const uint8_t* p) {
  uint32_t word = 0;
  memcpy(&word, p, sizeof(word));
  return word;
}

// The bytes of a block, cut into a body and a tail that starts at byte kTailAt, which is 0 or where the body ends.
// Word::stored(word, u) and Word::natural(word, u) may permute the bits of a word.
template <class Block, int kTailAt, int kTail, class Word>
struct CutTile {
  enum : int {
    kBlocks = Block::kBlockSize < 32 ? 32 / Block::kBlockSize : 1,
    kColumns = kBlocks * Block::kBlockSize,
    kBytes = kBlocks * Block::kBlockBytes,
    kTailBytes = kTail,
    kTailItem = kTail == 1 ? 1 : 2,
    kWords = (kBytes - kTail) / 4,
    kBodyAt = kTail > 0 && kTailAt == 0 ? kTail : 0
  };
  static_assert((kBytes - kTail) % 4 == 0, "the body is whole words");

  // One row: block is kBytes bytes, body kWords words, tail kTailBytes bytes.
  static inline void put(const uint8_t* block, uint32_t* body, uint8_t* tail) {
    for (int u = 0; u < kWords; ++u) body[u] = Word::stored(word_at(block + kBodyAt + 4 * u), u);
    if (kTail > 0) memcpy(tail, block + kTailAt, kTail);
  }
  static inline void get(const uint32_t* body, const uint8_t* tail, uint8_t* block) {
    for (int u = 0; u < kWords; ++u) {
      const uint32_t word = Word::natural(body[u], u);
      memcpy(block + kBodyAt + 4 * u, &word, sizeof(word));
    }
    if (kTail > 0) memcpy(block + kTailAt, tail, kTail);
  }
};

struct PlainWord {
  static inline uint32_t stored(uint32_t word, int) { return word; }
  static inline uint32_t natural(uint32_t word, int) { return word; }
};

// Every format has a tile; formats whose tile is more than a cut have a definition of their own.
template <class Block>
struct Tile;

// Exchange the bits of word under mask with those shift places above.
LK_FN uint32_t exchange(uint32_t word, uint32_t mask, int shift) {
  const uint32_t difference = (word ^ (word >> shift)) & mask;
  return word ^ difference ^ (difference << shift);
}

// Bits in order of columns, bit 4 v + j -> bit 8 j + v: byte j holds the bits of the columns j, 4 + j, 8 + j ..., so that
// one shift brings the bits of four consecutive columns to the same place of their four bytes. The place of a bit is a
// number of five bits; taking out its two lowest and putting them on top is two rotations, each four exchanges.
LK_FN uint32_t bits_by_byte(uint32_t word) {
  for (int step = 0; step < 2; ++step) {
    word = exchange(word, 0x22222222u, 1);
    word = exchange(word, 0x0c0c0c0cu, 2);
    word = exchange(word, 0x00f000f0u, 4);
    word = exchange(word, 0x0000ff00u, 8);
  }
  return word;
}

LK_FN uint32_t bits_by_column(uint32_t word) {
  for (int step = 0; step < 2; ++step) {
    word = exchange(word, 0x0000ff00u, 8);
    word = exchange(word, 0x00f000f0u, 4);
    word = exchange(word, 0x0c0c0c0cu, 2);
    word = exchange(word, 0x22222222u, 1);
  }
  return word;
}

// Four sign codes of seven bits and four more bits, of which bit i takes the place of the eighth sign of code i.
LK_FN uint32_t signs_and_extra(uint32_t sevens, uint32_t extra) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    word |= ((sevens >> (7 * i)) & 127u) << (8 * i) | ((extra >> i) & 1u) << (8 * i + 7);
  }
  return bits_by_byte(word);
}

LK_FN uint32_t sevens_of(uint32_t stored) {
  const uint32_t word = bits_by_column(stored);
  uint32_t sevens = 0;
  for (int i = 0; i < 4; ++i) sevens |= ((word >> (8 * i)) & 127u) << (7 * i);
  return sevens;
}

LK_FN uint32_t extra_of(uint32_t stored) {
  const uint32_t word = bits_by_column(stored);
  uint32_t extra = 0;
  for (int i = 0; i < 4; ++i) extra |= ((word >> (8 * i + 7)) & 1u) << i;
  return extra;
}

}  // namespace lutkern
