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

// Bits in order of columns, bit 8 i + 4 o + j -> bit 8 j + 4 o + i (i, j < 4, o < 2) and back. Byte j holds the bits of the
// columns j, 4 + j, 8 + j ...: one shift brings the bits of four consecutive columns to the same place of their four
// bytes. The upper nibbles belong to the odd ones of the eight groups of four columns, so that the eighth signs of all
// 8 columns, which need no bit, are one nibble. The place of a bit is a number of five bits of which two pairs change
// sides.
LK_FN uint32_t bits_by_byte(uint32_t word) { return exchange(exchange(word, 0x00aa00aau, 7), 0x0000ccccu, 14); }

// Four sign codes of seven bits and four more bits, which take the places of the eighth signs: bits 28 .. 31.
LK_FN uint32_t signs_and_extra(uint32_t sevens, uint32_t extra) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= ((sevens >> (7 * i)) & 127u) << (8 * i);
  return bits_by_byte(word) | extra << 28;
}

LK_FN uint32_t sevens_of(uint32_t stored) {
  const uint32_t word = bits_by_byte(stored);
  uint32_t sevens = 0;
  for (int i = 0; i < 4; ++i) sevens |= ((word >> (8 * i)) & 127u) << (7 * i);
  return sevens;
}

LK_FN uint32_t extra_of(uint32_t stored) { return stored >> 28; }

}  // namespace lutkern
