// A whole block of IQ1 without its digits: codebook row numbers, and the words 13 and above of the tile. Sixteen bytes at
// a time.
#pragma once
#include "panel.h"
#include "ternary.h"

namespace lutkern {

using ByteLanes = uint8_t __attribute__((vector_size(16)));
using HalfLanes = uint16_t __attribute__((vector_size(16)));

LK_FN ByteLanes load_bytes(const uint8_t* p) {
  ByteLanes bytes;
  memcpy(&bytes, p, sizeof(bytes));
  return bytes;
}

LK_FN uint64_t u64_at(const uint8_t* p) {
  uint64_t word = 0;
  memcpy(&word, p, sizeof(word));
  return word;
}

// Bit 0 of eight bytes as eight bits, and back
LK_FN uint32_t gather_bits(uint64_t x) {
  return static_cast<uint32_t>(((x & 0x0101010101010101ull) * 0x0102040810204080ull) >> 56);
}
LK_FN uint64_t spread_bits(uint32_t x) {
  const uint64_t single = (x * 0x0101010101010101ull) & 0x8040201008040201ull;
  return ((single + 0x7f7f7f7f7f7f7f7full) >> 7) & 0x0101010101010101ull;
}

// Bytes of low and of high by turns, as 16 numbers
LK_FN void store_pairs(ByteLanes low, ByteLanes high, uint16_t* out) {
  const ByteLanes first = shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(low, high);
  const ByteLanes last = shuffle<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(low, high);
  memcpy(out, &first, sizeof(first));
  memcpy(out + 8, &last, sizeof(last));
}

// The low, or the high, bytes of 16 numbers
LK_FN ByteLanes low_bytes(HalfLanes first, HalfLanes last) {
  return shuffle<0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30>(reinterpret_cast<ByteLanes>(first),
                                                                            reinterpret_cast<ByteLanes>(last));
}
LK_FN ByteLanes high_bytes(HalfLanes first, HalfLanes last) { return low_bytes(first >> 8, last >> 8); }

LK_FN void store_bytes(uint8_t* p, ByteLanes bytes) { memcpy(p, &bytes, sizeof(bytes)); }

// Codebook rows of a block: the low bytes go to index, the bytes above to high.
struct IndexBytes {
  ByteLanes high[2];

  IndexBytes(const uint16_t* rows, uint8_t* index) {
    HalfLanes row[4];
    memcpy(row, rows, sizeof(row));
    for (int k = 0; k < 2; ++k) {
      store_bytes(index + 16 * k, low_bytes(row[2 * k], row[2 * k + 1]));
      high[k] = high_bytes(row[2 * k], row[2 * k + 1]);
    }
  }
};

// What a block has besides digits, to and from words 13 and above; the codebook rows in between
struct Iq1SRow {
  using Tile = Iq1STile;

  static inline void put(const uint8_t* bytes, uint16_t* rows, uint32_t* words) {
    const Iq1S& block = *reinterpret_cast<const Iq1S*>(bytes);
    const HalfLanes word = reinterpret_cast<HalfLanes>(load_bytes(block.word[0]));
    const HalfLanes high01 = (word & 0x07) | ((word << 5) & 0x0700);
    const HalfLanes high23 = ((word >> 6) & 0x07) | ((word >> 1) & 0x0700);
    const HalfLanes first = shuffle<0, 8, 1, 9, 2, 10, 3, 11>(high01, high23);
    const HalfLanes last = shuffle<4, 12, 5, 13, 6, 14, 7, 15>(high01, high23);
    store_pairs(load_bytes(block.index), reinterpret_cast<ByteLanes>(first), rows);
    store_pairs(load_bytes(block.index + 16), reinterpret_cast<ByteLanes>(last), rows + 16);
    words[13] = 0;
    for (int g = 0; g < 8; g += 4) {
      const uint64_t nibbles = (u64_at(block.word[g]) >> 12) & 0x000f000f000f000full;
      words[13] |= static_cast<uint32_t>((nibbles * (1ull << 48 | 1ull << 36 | 1ull << 24 | 1ull << 12)) >> 48)
                   << (4 * g);
    }
  }

  static inline void get(const uint16_t* rows, const uint32_t* words, uint8_t* bytes) {
    Iq1S& block = *reinterpret_cast<Iq1S*>(bytes);
    const IndexBytes index(rows, block.index);
    HalfLanes six[2];  // bits of two rows
    for (int k = 0; k < 2; ++k) {
      const HalfLanes high = reinterpret_cast<HalfLanes>(index.high[k]);
      six[k] = (high & 0x07) | ((high >> 5) & 0x38);
    }
    const HalfLanes even = shuffle<0, 2, 4, 6, 8, 10, 12, 14>(six[0], six[1]);
    const HalfLanes odd = shuffle<1, 3, 5, 7, 9, 11, 13, 15>(six[0], six[1]);
    HalfLanes nibbles;
    for (int g = 0; g < 8; ++g) nibbles[g] = static_cast<uint16_t>((words[13] >> (4 * g)) << 12);
    store_bytes(block.word[0], reinterpret_cast<ByteLanes>(even | (odd << 6) | nibbles));
  }
};

struct Iq1MRow {
  using Tile = Iq1MTile;

  static inline void put(const uint8_t* bytes, uint16_t* rows, uint32_t* words) {
    const Iq1M& block = *reinterpret_cast<const Iq1M*>(bytes);
    const ByteLanes high = load_bytes(block.high);
    const ByteLanes even = high & 7;
    const ByteLanes odd = (high >> 4) & 7;
    store_pairs(load_bytes(block.index), shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(even, odd),
                rows);
    store_pairs(load_bytes(block.index + 16),
                shuffle<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(even, odd), rows + 16);
    const uint64_t first = u64_at(block.high);
    const uint64_t last = u64_at(block.high + 8);
    words[13] = gather_bits(first >> 3) | gather_bits(last >> 3) << 8 | gather_bits(first >> 7) << 16 |
                gather_bits(last >> 7) << 24;
    memcpy(words + 14, block.word, sizeof(block.word));
  }

  static inline void get(const uint16_t* rows, const uint32_t* words, uint8_t* bytes) {
    Iq1M& block = *reinterpret_cast<Iq1M*>(bytes);
    const IndexBytes index(rows, block.index);
    HalfLanes pair[2];
    for (int k = 0; k < 2; ++k) {
      const HalfLanes high = reinterpret_cast<HalfLanes>(index.high[k]);
      pair[k] = (high & 0x07) | ((high >> 4) & 0x70);
    }
    store_bytes(block.high, low_bytes(pair[0], pair[1]));
    for (int half = 0; half < 2; ++half) {
      const uint64_t even = spread_bits((words[13] >> (8 * half)) & 255u);
      const uint64_t odd = spread_bits((words[13] >> (16 + 8 * half)) & 255u);
      const uint64_t high = u64_at(block.high + 8 * half) | even << 3 | odd << 7;
      memcpy(block.high + 8 * half, &high, sizeof(high));
    }
    memcpy(block.word, words + 14, sizeof(block.word));
  }
};

}  // namespace lutkern
