// Ternary weights in base 3: five digits to a byte, 1.6 bits per weight.
//
// The codebook of IQ1 has 2048 rows: no register holds it, and loads of one row at a time are what its kernels would
// wait for. Its rows are ternary, so a tile spells them out instead. A byte is a fraction of 256 in base 3, as TQ1_0
// stores it: digit k = floor(3 * ((byte * 3^k) mod 256) / 256), kept minus 128, so that a signed comparison with two
// constants finds a digit and three times the byte (mod 256) brings up the next.
//
// Word w of a row holds in byte j the columns 20 w + j, + 4, + 8, + 12, + 16; the last word only four of them.
//
//   IQ1_S, 58 bytes a row    words 0..12   digits
//                            word  13      for each 32 columns a nibble: bits 0..2 scale s, bit 3 shift is minus
//                            tail          d
//   IQ1_M, 64 bytes a row    words 0..12   digits
//                            word  13      for each 8 columns a bit: shift is minus. Bit h belongs to columns 16 h .. + 7,
//                                          bit 16 + h to columns 16 h + 8 .. + 15
//                            words 14, 15  the four words of scales, as in the block
#pragma once
#include "tile.h"

namespace lutkern {

enum : int { kDigitWords = 13 };

// Eight digits {0, 1, 2}, first column in the highest place -> row of the codebook; 0xffff where there is none.
struct TernaryRows {
  uint16_t row[6561];
};
const TernaryRows& ternary_rows();  // repack.cpp

// rows[i]: row number of columns 8 i .. 8 i + 7
static inline void put_digits(const uint16_t* rows, uint32_t* body) {
  uint8_t digits[4 * 65] = {};
  for (int i = 0; i < 32; ++i) {
    const uint64_t row = kIq1Grid.row[rows[i]];  // bytes of {-1, 0, 1}
    for (int j = 0; j < 8; ++j) digits[8 * i + j] = static_cast<uint8_t>(((row >> (8 * j)) + 1) & 3u);
  }
  for (int w = 0; w < kDigitWords; ++w) {
    uint32_t word = 0;
    for (int j = 0; j < 4; ++j) {
      uint32_t number = 0;
      for (int k = 0; k < 5; ++k) number = 3 * number + digits[20 * w + 4 * k + j];
      word |= (((number * 256 + 242) / 243) ^ 0x80u) << (8 * j);
    }
    body[w] = word;
  }
}

static inline void get_digits(const uint32_t* body, uint16_t* rows) {
  uint8_t digits[4 * 65];
  for (int w = 0; w < kDigitWords; ++w) {
    for (int j = 0; j < 4; ++j) {
      uint32_t byte = ((body[w] >> (8 * j)) & 255u) ^ 0x80u;
      for (int k = 0; k < 5; ++k) {
        digits[20 * w + 4 * k + j] = static_cast<uint8_t>((byte * 3) >> 8);
        byte = (byte * 3) & 255u;
      }
    }
  }
  const TernaryRows& table = ternary_rows();
  for (int i = 0; i < 32; ++i) {
    uint32_t number = 0;
    for (int j = 0; j < 8; ++j) number = 3 * number + digits[8 * i + j];
    rows[i] = table.row[number] & 2047u;  // bytes that no block gives stay in range
  }
}

struct Iq1STile {
  enum : int { kBlocks = 1, kColumns = 256, kBytes = Iq1S::kBlockBytes, kTailBytes = 2, kTailItem = 2, kWords = 14 };

  static inline void put(const uint8_t* bytes, uint32_t* body, uint8_t* tail) {
    const Iq1S& block = *reinterpret_cast<const Iq1S*>(bytes);
    uint16_t rows[32];
    for (int i = 0; i < 32; ++i) rows[i] = static_cast<uint16_t>(grid_index(block, i));
    put_digits(rows, body);
    body[13] = 0;
    for (int g = 0; g < 8; ++g) body[13] |= static_cast<uint32_t>(block.word[g][1] >> 4) << (4 * g);
    memcpy(tail, block.d, sizeof(block.d));
  }

  static inline void get(const uint32_t* body, const uint8_t* tail, uint8_t* bytes) {
    Iq1S& block = *reinterpret_cast<Iq1S*>(bytes);
    uint16_t rows[32];
    get_digits(body, rows);
    for (int g = 0; g < 8; ++g) {
      uint32_t word = ((body[13] >> (4 * g)) & 15u) << 12;
      for (int i = 0; i < 4; ++i) {
        block.index[4 * g + i] = static_cast<uint8_t>(rows[4 * g + i]);
        word |= static_cast<uint32_t>(rows[4 * g + i] >> 8) << (3 * i);
      }
      block.word[g][0] = static_cast<uint8_t>(word);
      block.word[g][1] = static_cast<uint8_t>(word >> 8);
    }
    memcpy(block.d, tail, sizeof(block.d));
  }
};

struct Iq1MTile {
  enum : int { kBlocks = 1, kColumns = 256, kBytes = Iq1M::kBlockBytes, kTailBytes = 0, kTailItem = 2, kWords = 16 };

  static inline void put(const uint8_t* bytes, uint32_t* body, uint8_t*) {
    const Iq1M& block = *reinterpret_cast<const Iq1M*>(bytes);
    uint16_t rows[32];
    uint32_t minus = 0;
    for (int i = 0; i < 32; ++i) {
      rows[i] = static_cast<uint16_t>(grid_index(block, i));
      minus |= (high_bits(block, i) >> 3) << (16 * (i % 2) + i / 2);
    }
    put_digits(rows, body);
    body[13] = minus;
    body[14] = word_at(block.word[0]);
    body[15] = word_at(block.word[2]);
  }

  static inline void get(const uint32_t* body, const uint8_t*, uint8_t* bytes) {
    Iq1M& block = *reinterpret_cast<Iq1M*>(bytes);
    uint16_t rows[32];
    get_digits(body, rows);
    for (int i = 0; i < 32; i += 2) {
      uint32_t high = 0;
      for (int k = 0; k < 2; ++k) {
        block.index[i + k] = static_cast<uint8_t>(rows[i + k]);
        high |= (static_cast<uint32_t>(rows[i + k] >> 8) | ((body[13] >> (16 * k + i / 2)) & 1u) << 3) << (4 * k);
      }
      block.high[i / 2] = static_cast<uint8_t>(high);
    }
    memcpy(block.word[0], body + 14, 4);
    memcpy(block.word[2], body + 15, 4);
  }
};

}  // namespace lutkern
