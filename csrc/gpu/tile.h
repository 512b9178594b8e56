// A tile on a GPU: 32 rows and 256 columns, one lane of a warp has one row. It holds the same information as the
// blocks, so that either can be made from the other.
//
//   chunks   16 bytes of each lane side by side: chunk[c][lane], one 16-byte load of a warp each
//   tail     4 bytes, then 8 bytes, then 2 bytes of each lane side by side
//
// A row of tiles is one tile for each 256 columns. Rows that the weight does not have are zero bytes.
//
// A lane has words of 32 bits, and d, the fp16 scale of its block, in 2 bytes (iq1_m: in a word):
//
//   iq1_s     12 codes; 8 fields of 12 bits to a ring of 3 words: row of the codebook, and one bit: of fields 2, 3, 4
//             the scale of the first 32 columns, of 5 their shift; of 7, 0, 1 the scale of the other 32, of 6 their
//             shift
//   iq1_m     12 codes: row of the codebook and the shift; 2: 16 scales of 3 bits, then d
//   iq2_xxs   8 signs, 8 indices of 8 bits,   1: 8 scales of 4 bits
//   iq2_xs    8 signs, 9 indices of 9 bits,   2: 16 scales of 4 bits
//   iq2_s     8 signs, 10 indices of 10 bits, 2: 16 scales of 4 bits
//   iq3_xxs   8 signs, 16 indices of 8 bits,  1: 8 scales of 4 bits
//   iq3_s     8 signs, 18 indices of 9 bits,  1: 8 scales of 4 bits
//
// Fields lie one after another in a ring of words, from bit kPlace on; the last one goes on at bit 0. kPlace is where
// the index of an entry stands in its byte offset (Table), so that one shift and one mask make an offset.
// A word of signs is for 32 columns: iq2 bit 4 j + k has the sign of weight j of codeword k (j < 8); iq3 bit 8 j + k
// that of weight j of index k (j < 4). All eight signs are there, also where the block leaves one to parity.
#pragma once
#include "../formats/formats.h"

// X(name in GGUF, block type): the formats that have tiles on a GPU
#define LUTKERN_GPU_TILE_FORMATS(X) \
  X(iq1_s, Iq1S)                    \
  X(iq1_m, Iq1M)                    \
  X(iq2_xxs, Iq2Xxs)                \
  X(iq2_xs, Iq2Xs)                  \
  X(iq2_s, Iq2S)                    \
  X(iq3_xxs, Iq3Xxs)                \
  X(iq3_s, Iq3S)

namespace lutkern {
namespace gpu {

// kTileRows x kTileCols weights lie together; one lane has one row.
enum : int { kTileRows = 32, kTileCols = 256, kGroup = 32 /* columns with one activation scale */ };

template <int chunks, int fours, int eights, int twos, int bits, int place>
struct TileShape {
  enum : int {
    kChunks = chunks,
    kFours = fours,
    kEights = eights,
    kHasHalf = twos,
    kWords = 4 * chunks + fours + 2 * eights,
    kLaneBytes = 4 * kWords + 2 * twos,
    kBytes = kTileRows * kLaneBytes,
    kHalfAt = kTileRows * 4 * kWords,
    kBits = bits,    // of a field
    kPlace = place,  // of the lowest bit of field 0
    kRing = bits == 12 ? 3 : (bits == 10 ? 5 : (bits == 9 ? 9 : 1)),
    kFields = 32 * kRing / bits,  // of a ring
    kIndices = chunks == 6 ? 64 : 32,
    kFamily = bits == 12 ? 1 : (chunks == 6 ? 3 : 2),
    kCodes = bits == 12 ? 0 : 8  // word of the first ring
  };
};

template <class Block>
struct Tile;
template <>
struct Tile<Iq1S> : TileShape<3, 0, 0, 1, 12, 2> {};
template <>
struct Tile<Iq1M> : TileShape<3, 0, 1, 0, 12, 2> {
  enum : int { kScales = 12 };
};
template <>
struct Tile<Iq2Xxs> : TileShape<4, 1, 0, 1, 8, 7> {
  enum : int { kScales = 16 };
};
template <>
struct Tile<Iq2Xs> : TileShape<4, 1, 1, 1, 9, 6> {
  enum : int { kScales = 17 };
};
template <>
struct Tile<Iq2S> : TileShape<4, 0, 2, 1, 10, 5> {
  enum : int { kScales = 18 };
};
template <>
struct Tile<Iq3Xxs> : TileShape<6, 1, 0, 1, 8, 7> {
  enum : int { kScales = 24 };
};
template <>
struct Tile<Iq3S> : TileShape<6, 1, 1, 1, 9, 6> {
  enum : int { kScales = 26 };
};

// Of a tile; 0: the format has none
LK_FN constexpr int tile_bytes(FormatId format) {
  switch (format) {
#define LUTKERN_TILE_BYTES(name, Block) \
  case FormatId::name:                  \
    return Tile<Block>::kBytes;
    LUTKERN_GPU_TILE_FORMATS(LUTKERN_TILE_BYTES)
#undef LUTKERN_TILE_BYTES
    default:
      return 0;
  }
}

// Byte of word i of a lane
template <class T>
LK_FN constexpr int word_offset(int lane, int i) {
  constexpr int kTail = 4 * T::kChunks;
  if (i < kTail) return 512 * (i / 4) + 16 * lane + 4 * (i % 4);
  if (i < kTail + T::kFours) return 128 * i + 4 * lane;
  const int eight = i - kTail - T::kFours;
  return 128 * (kTail + T::kFours) + 256 * (eight / 2) + 8 * lane + 4 * (eight % 2);
}

}  // namespace gpu
}  // namespace lutkern
