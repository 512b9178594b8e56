// IQ2_XXS: 256 weights in 66 bytes (2.0625 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..65    8 groups of 32 weights, 8 bytes each, little endian:
//                   u8  index[4]    four rows of the 256-row codebook, 8 weights each
//                   u32 word        bits 0..27: four 7-bit sign codes; bits 28..31: scale s
//
//   weight = d * (s + 0.5) / 4 * codebook[index][j] * sign[j]        codebook of {8, 25, 43}
#pragma once
#include "codebooks.h"

namespace lutkern {

struct Iq2Xxs {
  enum : int { kGgmlType = 16, kBlockSize = 256, kBlockBytes = 66, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  struct {
    uint8_t index[4];
    uint8_t word[4];
  } group[8];
};
static_assert(sizeof(Iq2Xxs) == Iq2Xxs::kBlockBytes, "iq2_xxs block");

LK_FN Codes8 codes8(LK_BLOCK Iq2Xxs& b, int i) {
  const uint32_t seven = (load_u32(b.group[i / 4].word) >> (7 * (i % 4))) & 127u;
  return apply_signs(iq2_xxs_row(b.group[i / 4].index[i % 4]), signs_from_parity(seven));
}

LK_FN float scale16(LK_BLOCK Iq2Xxs& b, int g) {
  const uint32_t s = b.group[g / 2].word[3] >> 4;
  return load_half(b.d) * (static_cast<float>(s) + 0.5f) * 0.25f;
}

LK_FN float offset16(LK_BLOCK Iq2Xxs&, int) { return 0.0f; }

}  // namespace lutkern
