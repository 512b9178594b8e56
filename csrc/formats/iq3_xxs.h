// IQ3_XXS: 256 weights in 98 bytes (3.0625 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..65    index      64 rows of the 256-row codebook, 4 weights each
//   byte 66..97   word[8]    u32 for each 32 weights: bits 0..27 four 7-bit sign codes, bits 28..31 scale s
//
//   weight = d * (s + 0.5) / 2 * codebook[index][j] * sign[j]        codebook of {4, 12, 20, 28, 36, 44, 52, 62}
#pragma once
#include "codebooks.h"

namespace lutkern {

struct Iq3Xxs {
  enum : int { kGgmlType = 18, kBlockSize = 256, kBlockBytes = 98, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t index[64];
  uint8_t word[8][4];
};
static_assert(sizeof(Iq3Xxs) == Iq3Xxs::kBlockBytes, "iq3_xxs block");

LK_FN Codes8 codes8(LK_BLOCK Iq3Xxs& b, int i) {
  const uint64_t second = iq3_xxs_row(b.index[2 * i + 1]);
  const uint64_t row = iq3_xxs_row(b.index[2 * i]) | second << 32;
  const uint32_t seven = (load_u32(b.word[i / 4]) >> (7 * (i % 4))) & 127u;
  return apply_signs(row, signs_from_parity(seven));
}

LK_FN float scale16(LK_BLOCK Iq3Xxs& b, int g) {
  const uint32_t s = b.word[g / 2][3] >> 4;
  return load_half(b.d) * (static_cast<float>(s) + 0.5f) * 0.5f;
}

LK_FN float offset16(LK_BLOCK Iq3Xxs&, int) { return 0.0f; }

}  // namespace lutkern
