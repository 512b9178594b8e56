// IQ2_S: 256 weights in 82 bytes (2.5625 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..33    index      low 8 bits of 32 rows of the 1024-row codebook, 8 weights each
//   byte 34..65   sign       one byte for each row, bit j set: weight j is negative
//   byte 66..73   high       2 high index bits for each row, four rows to a byte
//   byte 74..81   scale      4-bit scales s, one for each 16 weights, low nibble first
//
//   weight = d * (s + 0.5) / 4 * codebook[index][j] * sign[j]        codebook of {8, 25, 43}
#pragma once
#include "codebooks.h"

namespace lutkern {

struct Iq2S {
  enum : int { kGgmlType = 22, kBlockSize = 256, kBlockBytes = 82, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t index[32];
  uint8_t sign[32];
  uint8_t high[8];
  uint8_t scale[8];
};
static_assert(sizeof(Iq2S) == Iq2S::kBlockBytes, "iq2_s block");

LK_FN uint32_t grid_index(LK_BLOCK Iq2S& b, int i) { return b.index[i] | ((b.high[i / 4] >> (2 * (i % 4))) & 3u) << 8; }

LK_FN Codes8 codes8(LK_BLOCK Iq2S& b, int i) { return apply_signs(iq2_s_row(grid_index(b, i)), b.sign[i]); }

LK_FN float scale16(LK_BLOCK Iq2S& b, int g) {
  const uint32_t s = (b.scale[g / 2] >> (4 * (g % 2))) & 15u;
  return load_half(b.d) * (static_cast<float>(s) + 0.5f) * 0.25f;
}

LK_FN float offset16(LK_BLOCK Iq2S&, int) { return 0.0f; }

}  // namespace lutkern
