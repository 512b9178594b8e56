// Blocks to the tiles of a GPU and back, and what tile.h promises about their bytes.
#include "gpu/tile_blocks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

namespace {

using namespace lutkern;
using namespace lutkern::gpu;

uint32_t random_word() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state >> 32);
}

[[noreturn]] void fail(const char* format, const char* what, int lane) {
  fprintf(stderr, "%s: %s, lane %d\n", format, what, lane);
  exit(1);
}

template <class Block>
void random_block(Block& b) {
  uint8_t* bytes = reinterpret_cast<uint8_t*>(&b);
  for (size_t i = 0; i < sizeof(Block); ++i) bytes[i] = static_cast<uint8_t>(random_word());
}

// Every byte of a tile belongs to one word of one lane, or to its half.
template <class Block>
void check_places(const char* format) {
  using T = Tile<Block>;
  std::vector<int> owner(T::kBytes, 0);
  for (int lane = 0; lane < kTileRows; ++lane) {
    for (int i = 0; i < T::kWords; ++i) {
      const int at = word_offset<T>(lane, i);
      if (at % 4 != 0) fail(format, "a word is not at a multiple of 4", lane);
      for (int j = 0; j < 4; ++j) ++owner.at(static_cast<size_t>(at + j));
    }
    for (int j = 0; j < 2 * T::kHasHalf; ++j) ++owner.at(static_cast<size_t>(T::kHalfAt + 2 * lane + j));
  }
  for (int count : owner) {
    if (count != 1) fail(format, "words overlap", 0);
  }
}

// The order of signs as tile.h draws it, bit by bit
void check_signs() {
  for (int k = 0; k < 4; ++k) {
    for (int j = 0; j < 8; ++j) {
      const uint32_t bytes = 1u << (8 * k + j);
      const uint32_t iq2 = 1u << (4 * j + k);
      const uint32_t iq3 = 1u << (8 * (j % 4) + 2 * k + j / 4);
      if (signs2(bytes) != iq2 || bytes_of_signs2(iq2) != bytes) fail("iq2", "signs", 4 * k + j);
      if (signs3(bytes) != iq3 || bytes_of_signs3(iq3) != bytes) fail("iq3", "signs", 4 * k + j);
    }
  }
}

template <class Block>
void check(const char* format, FormatId id) {
  using T = Tile<Block>;
  if (tile_bytes(id) != T::kBytes || T::kBytes % 16 != 0) fail(format, "tile_bytes", 0);
  check_places<Block>(format);
  for (int round = 0; round < 200; ++round) {
    Block blocks[kTileRows];
    std::vector<uint8_t> tile(T::kBytes, 0xa5);
    for (int lane = 0; lane < kTileRows; ++lane) {
      if (round == 0) memset(&blocks[lane], lane == 7 ? 0xff : 0, sizeof(Block));
      if (round > 0) random_block(blocks[lane]);
      encode(blocks[lane], tile.data(), lane);
    }
    for (int lane = 0; lane < kTileRows; ++lane) {
      const Block back = decode<Block>(tile.data(), lane);
      if (memcmp(&back, &blocks[lane], sizeof(Block)) != 0)
        fail(format, "decode(encode(block)) is not the block", lane);
    }
    if (round > 0) continue;
    for (int i = 0; i < T::kWords; ++i) {
      if (load_u32(tile.data() + word_offset<T>(0, i)) != 0) fail(format, "a block of zeros is not zeros", 0);
    }
  }
}

}  // namespace

int main() {
  check_signs();
  check<Iq1S>("iq1_s", FormatId::iq1_s);
  check<Iq1M>("iq1_m", FormatId::iq1_m);
  check<Iq2Xxs>("iq2_xxs", FormatId::iq2_xxs);
  check<Iq2Xs>("iq2_xs", FormatId::iq2_xs);
  check<Iq2S>("iq2_s", FormatId::iq2_s);
  check<Iq3Xxs>("iq3_xxs", FormatId::iq3_xxs);
  check<Iq3S>("iq3_s", FormatId::iq3_s);
  if (tile_bytes(FormatId::q4_k) != 0) fail("q4_k", "tile_bytes", 0);
  return 0;
}
