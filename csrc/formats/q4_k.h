// Q4_K: 256 weights in 144 bytes (4.5 bits per weight).
//
//   byte 0..1     d          fp16 scale of the scales
//   byte 2..3     dmin       fp16 scale of the offsets
//   byte 4..15    scale      eight 6-bit scales s and eight 6-bit offsets m, a pair for 32 weights (ScaleOffset6)
//   byte 16..143  code       4-bit codes; byte 32 h + m holds weights 64 h + m (low nibble), 64 h + 32 + m (high)
//
//   weight = d * s * code - dmin * m
#pragma once
#include "scale_offset6.h"

namespace lutkern {

struct Q4K {
  enum : int { kGgmlType = 12, kBlockSize = 256, kBlockBytes = 144, kHasOffset = 1, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t dmin[2];
  ScaleOffset6 scale;
  uint8_t code[128];
};
static_assert(sizeof(Q4K) == Q4K::kBlockBytes, "q4_k block");

LK_FN Codes8 codes8(LK_BLOCK Q4K& b, int i) {
  Codes8 out;
  const int first = 32 * (i / 8) + 8 * (i % 4);
  const int shift = 4 * ((i / 4) % 2);
  for (int j = 0; j < 8; ++j) out.v[j] = static_cast<int8_t>((b.code[first + j] >> shift) & 15);
  return out;
}

LK_FN float scale16(LK_BLOCK Q4K& b, int g) { return load_half(b.d) * static_cast<float>(scale6(b.scale, g / 2)); }

LK_FN float offset16(LK_BLOCK Q4K& b, int g) {
  return -(load_half(b.dmin) * static_cast<float>(offset6(b.scale, g / 2)));
}

}  // namespace lutkern
