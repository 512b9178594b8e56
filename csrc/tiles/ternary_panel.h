// Sixteen whole rows of IQ1 at a time.
//
//   put     a table gives the digits of a codebook row, summed up by fives to one byte for each byte of the tile: four
//           columns in one 32-bit word, and no byte overflows. Numbers become fractions and words change places for four
//           rows at once.
//   get     a table gives the five digits of a byte, summed up by fours to one number for four columns; two of those are
//           the number of a codebook row.
#pragma once
#include "ternary_blocks.h"

namespace lutkern {

// What the panels look up, made from the codebook when it is first needed.
struct TernaryTables {
  struct Digits {
    uint32_t both;   // byte j: three times the digit of column j, plus that of column 4 + j
    uint32_t first;  // byte j: the digit of column j
  };
  Digits digits[2048];
  uint64_t fives[256];  // byte k: digit k of the fraction
};
const TernaryTables& ternary_tables();  // repack.cpp

// One row of a tile, its words 0..12 as numbers below 243 instead of fractions. Two words hold the digits of five rows.
LK_FN void number_words(const TernaryTables::Digits* digits, const uint16_t* rows, uint32_t* words) {
  for (int i = 0; i < 6; ++i) {
    const uint16_t* row = rows + 5 * i;
    const TernaryTables::Digits middle = digits[row[2]];
    const uint64_t low = 27ull * digits[row[0]].both + 3ull * digits[row[1]].both + middle.first;
    const uint64_t high =
        81ull * (middle.both - 3ull * middle.first) + 9ull * digits[row[3]].both + digits[row[4]].both;
    const uint64_t two = low | high << 32;
    memcpy(words + 2 * i, &two, sizeof(two));
  }
  words[12] = 27 * digits[rows[30]].both + 3 * digits[rows[31]].both;
}

// The smallest fractions of 256 that are not below n / 243, minus 128
LK_FN RowWords fractions(RowWords numbers) {
  const HalfLanes n = reinterpret_cast<HalfLanes>(numbers);
  const HalfLanes even = ((n << 8) + 242) / 243;
  const HalfLanes odd = ((n & 0xff00) + 242) / 243;
  return reinterpret_cast<RowWords>(even | (odd << 8)) ^ 0x80808080u;
}

// The digits in words 0..12, whose bytes are fractions: byte m of fours is the number of columns 4 m .. 4 m + 3.
LK_FN void number_fours(const uint64_t* fives, const uint32_t* words, uint8_t* fours) {
  const uint8_t* byte = reinterpret_cast<const uint8_t*>(words);
  for (int w = 0; w < kDigitWords; ++w, byte += 4) {
    const uint64_t sum = 3 * (3 * (3 * fives[byte[0]] + fives[byte[1]]) + fives[byte[2]]) + fives[byte[3]];
    memcpy(fours + 5 * w, &sum, sizeof(sum));
  }
}

// The numbers of 32 pairs of fours: eight columns each
LK_FN void number_eights(const uint8_t* fours, uint16_t* eights) {
  for (int i = 0; i < 32; i += 8) {
    const HalfLanes pairs = reinterpret_cast<HalfLanes>(load_bytes(fours + 2 * i));
    const HalfLanes numbers = (pairs & 255) * 81 + (pairs >> 8);
    memcpy(eights + i, &numbers, sizeof(numbers));
  }
}

// Each step is made for all rows before the next: what is written in small pieces is read in large ones, and the other
// way around, which a processor does well only some time later.
template <class Row>
LK_FN void put_ternary_panel(const uint8_t* blocks, int64_t row_bytes, uint8_t* body, uint8_t* tail) {
  using T = typename Row::Tile;
  const TernaryTables& tables = ternary_tables();
  uint32_t words[kTileRows][T::kWords];
  uint16_t rows[kTileRows][32];
  for (int r = 0; r < kTileRows; ++r) {
    Row::put(blocks + r * row_bytes, rows[r], words[r]);
    if (T::kTailBytes > 0) memcpy(tail + T::kTailBytes * r, blocks + r * row_bytes, T::kTailBytes);
  }
  for (int r = 0; r < kTileRows; ++r) number_words(tables.digits, rows[r], words[r]);
  for (int r = 0; r < kTileRows; r += 4) {
    RowWords columns[T::kWords];
    load_rows<T::kWords>(reinterpret_cast<const uint8_t*>(words[r]), sizeof(words[r]), columns);
    for (int u = 0; u < T::kWords; ++u) {
      store_words(body + 4 * (u * kTileRows + r), u < kDigitWords ? fractions(columns[u]) : columns[u]);
    }
  }
}

template <class Row>
LK_FN void get_ternary_panel(const uint8_t* body, const uint8_t* tail, int64_t row_bytes, uint8_t* blocks) {
  using T = typename Row::Tile;
  const TernaryTables& tables = ternary_tables();
  const uint16_t* row_of = ternary_rows().row;
  uint32_t words[kTileRows][T::kWords];
  for (int r = 0; r < kTileRows; r += 4) {
    RowWords columns[T::kWords];
    for (int u = 0; u < T::kWords; ++u) {
      const RowWords word = load_words(body + 4 * (u * kTileRows + r));
      columns[u] = u < kDigitWords ? word ^ 0x80808080u : word;
    }
    store_rows<T::kWords>(columns, sizeof(words[r]), reinterpret_cast<uint8_t*>(words[r]));
  }
  // Step by step, as above
  uint8_t fours[kTileRows][5 * kDigitWords + 3];
  for (int r = 0; r < kTileRows; ++r) number_fours(tables.fives, words[r], fours[r]);
  uint16_t rows[kTileRows][32];
  for (int r = 0; r < kTileRows; ++r) number_eights(fours[r], rows[r]);
  for (int r = 0; r < kTileRows; ++r) {
    for (int i = 0; i < 32; i += 2) {
      const uint32_t second = row_of[rows[r][i + 1]];
      const uint32_t pair = row_of[rows[r][i]] | second << 16;
      memcpy(rows[r] + i, &pair, sizeof(pair));
    }
  }
  for (int r = 0; r < kTileRows; ++r) {
    Row::get(rows[r], words[r], blocks + r * row_bytes);
    if (T::kTailBytes > 0) memcpy(blocks + r * row_bytes, tail + T::kTailBytes * r, T::kTailBytes);
  }
}

}  // namespace lutkern
