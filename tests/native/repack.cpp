// Blocks to tiles and back, against the definition of the tile: each row by itself, bits one by one. The functions are
// hidden in the library, so the program is linked with their files.
#include "tiles/repack.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "tiles/tiles.h"

namespace {

using namespace lutkern;
using Bytes = std::vector<uint8_t>;

constexpr uint8_t kUntouched = 0xa5;
constexpr int64_t kGap = 3;  // bytes between rows of blocks

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  vfprintf(stderr, text, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

uint32_t random_word() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state >> 32);
}

Bytes random_bytes(int64_t n) {
  Bytes out(static_cast<size_t>(n));
  for (uint8_t& byte : out) byte = static_cast<uint8_t>(random_word());
  return out;
}

// ---- bits ----

uint32_t bit(uint32_t word, int place) { return (word >> place) & 1u; }

// Nibble n is the exclusive or of the nibbles 0 .. n; the last one stays.
uint32_t running(uint32_t by_byte) {
  uint32_t out = by_byte & 0xf0000000u;
  uint32_t sum = 0;
  for (int n = 0; n < 7; ++n) {
    sum ^= (by_byte >> (4 * n)) & 15u;
    out |= sum << (4 * n);
  }
  return out;
}

void check_bits() {
  for (int i = 0; i < 1000; ++i) {
    const uint32_t word = i < 32 ? 1u << i : random_word();
    uint32_t columns = 0;
    for (int k = 0; k < 4; ++k) {
      for (int odd = 0; odd < 2; ++odd) {
        for (int j = 0; j < 4; ++j) columns |= bit(word, 8 * k + 4 * odd + j) << (8 * j + 4 * odd + k);
      }
    }
    if (bits_by_byte(word) != columns) fail("bits_by_byte of %08x", word);
    if (bits_by_byte(columns) != word) fail("bits_by_byte of %08x", columns);

    uint32_t signs = 0;
    for (int k = 0; k < 4; ++k) {
      for (int b = 0; b < 7; ++b) signs |= bit(word, 7 * k + b) << (8 * k + b);
      signs |= bit(word, 28 + k) << (8 * k + 7);
    }
    const uint32_t stored = running(bits_by_byte(signs));
    if (signs_and_extra(word) != stored) fail("signs_and_extra of %08x", word);
    if (sevens_and_extra(stored) != word) fail("sevens_and_extra of %08x", stored);
    const uint32_t all_signs = bits_by_byte(signs_of_running(stored));
    for (int k = 0; k < 4; ++k) {
      const uint32_t eight = (all_signs >> (8 * k)) & 255u;
      if ((eight & 127u) != ((word >> (7 * k)) & 127u)) fail("signs_of_running of %08x: signs %d", stored, k);
      uint32_t sum = 0;
      for (int b = 0; b < 8; ++b) sum ^= bit(eight, b);
      if (sum != 0) fail("signs_of_running of %08x: the number of minus signs %d is odd", stored, k);
    }
  }
}

// The formats whose words are more than a cut, bit by bit from a block of one byte each.
void check_words() {
  for (int round = 0; round < 100; ++round) {
    uint32_t block[27];
    uint32_t words[27];
    for (uint32_t& word : block) word = random_word();
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(block);

    memcpy(words, block, sizeof(words));
    Iq2SWords::stored(words);
    for (int g = 0; g < 8; ++g) {
      for (int i = 0; i < 4; ++i) {
        const uint32_t two = (bytes[64 + g] >> (2 * i)) & 3u;
        if (((words[16 + g / 4] >> (8 * i + 2 * (g % 4))) & 3u) != two) fail("iq2_s: high bits of index %d", 4 * g + i);
      }
      if (words[8 + g] != bits_by_byte(block[8 + g])) fail("iq2_s: signs %d", g);
    }

    memcpy(words, block, sizeof(words));
    Iq3SWords::stored(words);
    for (int i = 0; i < 64; ++i) {
      const int group = i / 8;
      const int half = i / 4 % 2;
      if (bit(words[16 + half], 8 * (i % 4) + group) != bit(bytes[64 + group], i % 8)) fail("iq3_s: ninth bit %d", i);
    }

    memcpy(words, block, sizeof(words));
    Iq2XsWords::stored(words);
    for (int i = 0; i < 32; ++i) {
      const uint32_t word = bytes[2 * i] | static_cast<uint32_t>(bytes[2 * i + 1]) << 8;
      if (((words[i / 4] >> (8 * (i % 4))) & 255u) != (word & 255u)) fail("iq2_xs: index %d", i);
    }
    for (int g = 0; g < 8; ++g) {
      uint32_t signs = 0;
      for (int i = 0; i < 4; ++i) {
        const uint32_t upper = bytes[2 * (4 * g + i) + 1];
        signs |= (upper >> 1 | (upper & 1u) << 7) << (8 * i);
      }
      if (words[8 + g] != running(bits_by_byte(signs))) fail("iq2_xs: signs %d", g);
    }
  }
}

// ---- tiles ----

template <class Block>
void defined_put(const Bytes& blocks, int64_t row_bytes, int64_t n_tiles, int n_rows, Bytes& tiles) {
  using T = Tile<Block>;
  const int64_t body_bytes = 4 * T::kWords * kTileRows;
  std::fill(tiles.begin(), tiles.end(), uint8_t{0});
  for (int64_t t = 0; t < n_tiles; ++t) {
    for (int r = 0; r < n_rows; ++r) {
      const int64_t left = row_bytes - kGap - t * T::kBytes;
      uint8_t block[T::kBytes] = {};
      memcpy(block, blocks.data() + r * row_bytes + t * T::kBytes,
             static_cast<size_t>(left < T::kBytes ? left : int64_t{T::kBytes}));
      uint32_t words[T::kWords];
      uint8_t tail[T::kTailBytes + 1];
      T::put(block, words, tail);
      for (int u = 0; u < T::kWords; ++u) {
        memcpy(tiles.data() + t * body_bytes + 4 * (u * kTileRows + r), words + u, 4);
      }
      uint8_t* tails = tiles.data() + n_tiles * body_bytes + t * T::kTailBytes * kTileRows;
      for (int i = 0; i < T::kTailBytes; i += T::kTailItem) {
        memcpy(tails + i * kTileRows + T::kTailItem * r, tail + i, T::kTailItem);
      }
    }
  }
}

template <class Block>
void defined_get(const Bytes& tiles, int64_t n_tiles, int64_t row_bytes, int n_rows, Bytes& blocks) {
  using T = Tile<Block>;
  const int64_t body_bytes = 4 * T::kWords * kTileRows;
  for (int64_t t = 0; t < n_tiles; ++t) {
    for (int r = 0; r < n_rows; ++r) {
      uint32_t words[T::kWords];
      uint8_t tail[T::kTailBytes + 1];
      for (int u = 0; u < T::kWords; ++u) {
        memcpy(words + u, tiles.data() + t * body_bytes + 4 * (u * kTileRows + r), 4);
      }
      const uint8_t* tails = tiles.data() + n_tiles * body_bytes + t * T::kTailBytes * kTileRows;
      for (int i = 0; i < T::kTailBytes; i += T::kTailItem) {
        memcpy(tail + i, tails + i * kTileRows + T::kTailItem * r, T::kTailItem);
      }
      uint8_t block[T::kBytes];
      T::get(words, tail, block);
      const int64_t left = row_bytes - kGap - t * T::kBytes;
      memcpy(blocks.data() + r * row_bytes + t * T::kBytes, block,
             static_cast<size_t>(left < T::kBytes ? left : int64_t{T::kBytes}));
    }
  }
}

template <class Block>
void check_tiles(const char* name, FormatId format, int64_t cols, int n_rows) {
  using T = Tile<Block>;
  const int64_t n_tiles = (cols + T::kColumns - 1) / T::kColumns;
  const int64_t row_bytes = (cols + Block::kBlockSize - 1) / Block::kBlockSize * Block::kBlockBytes + kGap;
  const size_t n_bytes = static_cast<size_t>(tile_row_bytes(format, cols));

  const Bytes blocks = random_bytes(n_rows * row_bytes - kGap);
  Bytes expected(n_bytes);
  Bytes tiles(n_bytes, kUntouched);
  defined_put<Block>(blocks, row_bytes, n_tiles, n_rows, expected);
  put_tiles(format, cols, blocks.data(), row_bytes, n_rows, tiles.data());
  if (tiles != expected) fail("put_tiles, %s, %lld columns, %d rows", name, static_cast<long long>(cols), n_rows);

  Bytes back(blocks.size(), kUntouched);
  Bytes same = blocks;
  for (int r = 0; r + 1 < n_rows; ++r) memset(same.data() + (r + 1) * row_bytes - kGap, kUntouched, kGap);
  get_tiles(format, cols, tiles.data(), 0, cols, n_rows, row_bytes, back.data());
  if (back != same) fail("get_tiles, %s, %lld columns, %d rows", name, static_cast<long long>(cols), n_rows);

  // Bytes that no block gives
  tiles = random_bytes(static_cast<int64_t>(n_bytes));
  std::fill(same.begin(), same.end(), kUntouched);
  std::fill(back.begin(), back.end(), kUntouched);
  defined_get<Block>(tiles, n_tiles, row_bytes, n_rows, same);
  get_tiles(format, cols, tiles.data(), 0, cols, n_rows, row_bytes, back.data());
  if (back != same) fail("get_tiles of any bytes, %s, %lld columns", name, static_cast<long long>(cols));
}

// Every byte of a tile of IQ1 and every row of the codebook
void check_ternary() {
  const TernaryRows& rows = ternary_rows();
  int found = 0;
  for (const uint16_t row : rows.row) found += row != 0xffff;
  if (found != 2048) fail("%d of 2048 codebook rows have a number", found);
  for (int first = 0; first < 2048; first += 32) {
    uint16_t numbers[32];
    uint32_t body[kDigitWords];
    uint16_t back[32];
    for (int i = 0; i < 32; ++i) numbers[i] = static_cast<uint16_t>(first + i);
    put_digits(numbers, body);
    get_digits(body, back);
    if (memcmp(numbers, back, sizeof(back)) != 0) fail("digits of codebook rows %d to %d", first, first + 31);
  }
}

}  // namespace

int main() {
  check_bits();
  check_words();
  check_ternary();
  for (int n_rows = 1; n_rows <= kTileRows; ++n_rows) {
    for (const int64_t cols : {1, 31, 64, 255, 256, 288, 512, 1000}) {
#define LUTKERN_CHECK(name, Block) check_tiles<Block>(#name, FormatId::name, cols, n_rows);
      LUTKERN_FORMATS(LUTKERN_CHECK)
#undef LUTKERN_CHECK
    }
  }
  puts("tiles are as defined");
  return 0;
}
