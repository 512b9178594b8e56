// IQ2_XS: 256 weights in 74 bytes (2.3125 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..65    word[32]   u16 for each 8 weights: bits 0..8 row of the 512-row codebook, bits 9..15 sign code
//   byte 66..73   scale      4-bit scales s, one for each 16 weights, low nibble first
//
//   weight = d * (s + 0.5) / 4 * codebook[index][j] * sign[j]        codebook of {8, 25, 43}
#pragma once
#include "codebooks.h"

namespace lutkern {

struct Iq2Xs {
  enum : int { kGgmlType = 17, kBlockSize = 256, kBlockBytes = 74, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t word[32][2];
  uint8_t scale[8];
};
static_assert(sizeof(Iq2Xs) == Iq2Xs::kBlockBytes, "iq2_xs block");

LK_FN Codes8 codes8(LK_BLOCK Iq2Xs& b, int i) {
  const uint32_t word = load_u16(b.word[i]);
  return apply_signs(iq2_xs_row(word & 511u), signs_from_parity(word >> 9));
}

LK_FN float scale16(LK_BLOCK Iq2Xs& b, int g) {
  const uint32_t s = (b.scale[g / 2] >> (4 * (g % 2))) & 15u;
  return load_half(b.d) * (static_cast<float>(s) + 0.5f) * 0.25f;
}

LK_FN float offset16(LK_BLOCK Iq2Xs&, int) { return 0.0f; }

}  // namespace lutkern
