// IQ1_M: 256 weights in 56 bytes (1.75 bits per weight).
//
//   byte 0..31    index      low 8 bits of 32 codebook rows, 8 weights each
//   byte 32..47   high       4 bits for each row: bits 0..2 high index bits, bit 3 shift: 0 is +1/8, 1 is -1/8
//   byte 48..55   word[4]    u16: bits 0..11 four 3-bit scales s, each for 16 weights; bits 12..15 a nibble of the
//                            block's fp16 scale d, lowest nibble in word 0
//
//   weight = d * (2 s + 1) * (codebook[index][j] + shift)        codebook of 2048 rows of {-1, 0, 1}
//          = scale16 * codes8,  scale16 = d * (2 s + 1) / 8,  codes8 = 8 * codebook + {1, -1}
#pragma once
#include "codebooks.h"

namespace lutkern {

struct Iq1M {
  enum : int { kGgmlType = 29, kBlockSize = 256, kBlockBytes = 56, kHasOffset = 0, kIsFloat = 0 };
  uint8_t index[32];
  uint8_t high[16];
  uint8_t word[4][2];
};
static_assert(sizeof(Iq1M) == Iq1M::kBlockBytes, "iq1_m block");

LK_FN uint32_t high_bits(LK_BLOCK Iq1M& b, int i) { return (b.high[i / 2] >> (4 * (i % 2))) & 15u; }

LK_FN uint32_t grid_index(LK_BLOCK Iq1M& b, int i) { return b.index[i] | (high_bits(b, i) & 7u) << 8; }

LK_FN Codes8 codes8(LK_BLOCK Iq1M& b, int i) {
  return apply_delta(iq1_row(grid_index(b, i)), (high_bits(b, i) & 8u) ? -1 : 1);
}

LK_FN float block_scale(LK_BLOCK Iq1M& b) {
  uint32_t bits = 0;
  for (int k = 0; k < 4; ++k) bits |= static_cast<uint32_t>(b.word[k][1] >> 4) << (4 * k);
  return float_from_half(bits);
}

LK_FN float scale16(LK_BLOCK Iq1M& b, int g) {
  const uint32_t s = (load_u16(b.word[g / 4]) >> (3 * (g % 4))) & 7u;
  return block_scale(b) * static_cast<float>(2 * s + 1) * 0.125f;
}

LK_FN float offset16(LK_BLOCK Iq1M&, int) { return 0.0f; }

}  // namespace lutkern
