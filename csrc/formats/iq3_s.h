// IQ3_S: 256 weights in 110 bytes (3.4375 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..65    index      low 8 bits of 64 rows of the 512-row codebook, 4 weights each
//   byte 66..73   high       ninth index bit of each row, eight rows to a byte
//   byte 74..105  sign       one byte for each 8 weights, bit j set: weight j is negative
//   byte 106..109 scale      4-bit scales s, one for each 32 weights, low nibble first
//
//   weight = d * (2 s + 1) * codebook[index][j] * sign[j]        codebook of {1, 3, 5, 7, 9, 11, 13, 15}
#pragma once
#include "codebooks.h"

namespace lutkern {

struct Iq3S {
  enum : int { kGgmlType = 21, kBlockSize = 256, kBlockBytes = 110, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t index[64];
  uint8_t high[8];
  uint8_t sign[32];
  uint8_t scale[4];
};
static_assert(sizeof(Iq3S) == Iq3S::kBlockBytes, "iq3_s block");

LK_FN uint32_t grid_index(LK_BLOCK Iq3S& b, int k) {
  return b.index[k] | static_cast<uint32_t>((b.high[k / 8] >> (k % 8)) & 1) << 8;
}

LK_FN Codes8 codes8(LK_BLOCK Iq3S& b, int i) {
  const uint64_t row = iq3_s_row(grid_index(b, 2 * i)) | static_cast<uint64_t>(iq3_s_row(grid_index(b, 2 * i + 1)))
                                                             << 32;
  return apply_signs(row, b.sign[i]);
}

LK_FN float scale16(LK_BLOCK Iq3S& b, int g) {
  const int group = g / 2;
  const uint32_t s = (b.scale[group / 2] >> (4 * (group % 2))) & 15u;
  return load_half(b.d) * static_cast<float>(2 * s + 1);
}

LK_FN float offset16(LK_BLOCK Iq3S&, int) { return 0.0f; }

}  // namespace lutkern
