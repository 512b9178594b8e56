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

enum : int { kTileRows = 16, kTileVersion = 2 };

LK_FN uint32_t word_at(const uint8_t* p) {
  uint32_t word = 0;
  memcpy(&word, p, sizeof(word));
  return word;
}

// The bytes of a block, cut into a body and a tail that starts at byte kTailAt, which is 0 or where the body ends.
// Words::stored(words) and Words::natural(words) may permute the bits of the body, in place: to the order of the tile
// and back. A word is a uint32_t, or the same word of several rows in a vector of them.
template <class Block, int kTailAt, int kTail, class Words>
struct CutTile {
  enum : int {
    kBlocks = Block::kBlockSize < 32 ? 32 / Block::kBlockSize : 1,
    kColumns = kBlocks * Block::kBlockSize,
    kBytes = kBlocks * Block::kBlockBytes,
    kTailBytes = kTail,
    kTailItem = kTail == 1 ? 1 : 2,
    kTailFrom = kTailAt,
    kWords = (kBytes - kTail) / 4,
    kBodyFrom = kTail > 0 && kTailAt == 0 ? kTail : 0
  };
  static_assert((kBytes - kTail) % 4 == 0, "the body is whole words");
  using Order = Words;

  // One row: block is kBytes bytes, body kWords words, tail kTailBytes bytes.
  static inline void put(const uint8_t* block, uint32_t* body, uint8_t* tail) {
    memcpy(body, block + kBodyFrom, 4 * kWords);
    Words::stored(body);
    if (kTail > 0) memcpy(tail, block + kTailAt, kTail);
  }
  static inline void get(const uint32_t* body, const uint8_t* tail, uint8_t* block) {
    uint32_t words[kWords];
    memcpy(words, body, sizeof(words));
    Words::natural(words);
    memcpy(block + kBodyFrom, words, sizeof(words));
    if (kTail > 0) memcpy(block + kTailAt, tail, kTail);
  }
};

// kPlain: words stay as they are.
struct PlainWords {
  enum : bool { kPlain = true };
  template <class W>
  static inline void stored(W*) {}
  template <class W>
  static inline void natural(W*) {}
};

// Every format has a tile; formats whose tile is more than a cut have a definition of their own.
template <class Block>
struct Tile;

// Exchange the bits of word under mask with those shift places above.
template <class W>
LK_FN W exchange(W word, uint32_t mask, int shift) {
  const W difference = (word ^ (word >> shift)) & mask;
  return word ^ difference ^ (difference << shift);
}

// Bits in order of columns, bit 8 i + 4 o + j -> bit 8 j + 4 o + i (i, j < 4, o < 2) and back. Byte j holds the bits of the
// columns j, 4 + j, 8 + j ...: one shift brings the bits of four consecutive columns to the same place of their four
// bytes. The upper nibbles belong to the odd ones of the eight groups of four columns, so that the eighth signs of all
// 8 columns, which need no bit, are one nibble. The place of a bit is a number of five bits of which two pairs change
// sides.
template <class W>
LK_FN W bits_by_byte(W word) {
  return exchange(exchange(word, 0x00aa00aau, 7), 0x0000ccccu, 14);
}

// Signs by byte whose eighth makes their number even: nibble n, of columns n / 2 + 4 (n % 2), becomes the exclusive or of
// the nibbles 0 .. n. So the last is zero and free for something else, and every sign is one of two neighbours:
// stored ^ stored << 4, without what the last nibble holds.
template <class W>
LK_FN W running_signs(W signs) {
  W sum = signs ^ (signs << 4);
  sum = sum ^ (sum << 8);
  return (sum ^ (sum << 16)) & 0x0fffffffu;
}

template <class W>
LK_FN W signs_of_running(W stored) {
  const W shifted = stored << 4;
  return shifted ^ (shifted >> 4);
}

// Four sign codes of seven bits in bits 0 .. 27, and four more bits, which take the free place: bits 28 .. 31.
template <class W>
LK_FN W signs_and_extra(W word) {
  const W sevens = (word & 0x7fu) | ((word << 1) & 0x7f00u) | ((word << 2) & 0x7f0000u) | ((word << 3) & 0x7f000000u);
  return running_signs(bits_by_byte(sevens)) | (word & 0xf0000000u);
}

template <class W>
LK_FN W sevens_and_extra(W stored) {
  const W word = bits_by_byte(signs_of_running(stored));
  const W sevens = (word & 0x7fu) | ((word & 0x7f00u) >> 1) | ((word & 0x7f0000u) >> 2) | ((word & 0x7f000000u) >> 3);
  return sevens | (stored & 0xf0000000u);
}

}  // namespace lutkern
