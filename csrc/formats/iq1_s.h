// IQ1_S: 256 weights in 50 bytes (1.5625 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..33    index      low 8 bits of 32 codebook rows, 8 weights each
//   byte 34..49   word[8]    u16 for each 32 weights: bits 0..11 four times 3 high index bits, bits 12..14 scale s,
//                            bit 15 shift: 0 is +1/8, 1 is -1/8
//
//   weight = d * (2 s + 1) * (codebook[index][j] + shift)        codebook of 2048 rows of {-1, 0, 1}
//          = scale16 * codes8,  scale16 = d * (2 s + 1) / 8,  codes8 = 8 * codebook + {1, -1}: exact
#pragma once
#include "codebooks.h"

namespace lutkern {

struct Iq1S {
  enum : int { kGgmlType = 19, kBlockSize = 256, kBlockBytes = 50, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t index[32];
  uint8_t word[8][2];
};
static_assert(sizeof(Iq1S) == Iq1S::kBlockBytes, "iq1_s block");

LK_FN uint32_t grid_index(LK_BLOCK Iq1S& b, int i) {
  return b.index[i] | ((load_u16(b.word[i / 4]) >> (3 * (i % 4))) & 7u) << 8;
}

LK_FN Codes8 codes8(LK_BLOCK Iq1S& b, int i) {
  return apply_delta(iq1_row(grid_index(b, i)), (b.word[i / 4][1] & 0x80) ? -1 : 1);
}

LK_FN float scale16(LK_BLOCK Iq1S& b, int g) {
  const uint32_t s = (b.word[g / 2][1] >> 4) & 7u;
  return load_half(b.d) * static_cast<float>(2 * s + 1) * 0.125f;
}

LK_FN float offset16(LK_BLOCK Iq1S&, int) { return 0.0f; }

}  // namespace lutkern
