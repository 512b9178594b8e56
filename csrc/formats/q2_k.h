// Q2_K: 256 weights in 84 bytes (2.625 bits per weight).
//
//   byte 0..15    scale      for each 16 weights: low nibble scale s, high nibble offset m
//   byte 16..79   code       2-bit codes; byte 32 h + m holds weights 128 h + m, + 32, + 64, + 96, lowest bits first
//   byte 80..81   d          fp16 scale of the scales
//   byte 82..83   dmin       fp16 scale of the offsets
//
//   weight = d * s * code - dmin * m
#pragma once
#include "port.h"

namespace lutkern {

struct Q2K {
  enum : int { kGgmlType = 10, kBlockSize = 256, kBlockBytes = 84, kHasOffset = 1, kIsFloat = 0 };
  uint8_t scale[16];
  uint8_t code[64];
  uint8_t d[2];
  uint8_t dmin[2];
};
static_assert(sizeof(Q2K) == Q2K::kBlockBytes, "q2_k block");

LK_FN Codes8 codes8(LK_BLOCK Q2K& b, int i) {
  Codes8 out;
  const int first = 32 * (i / 16) + 8 * (i % 4);
  const int shift = 2 * ((i / 4) % 4);
  for (int j = 0; j < 8; ++j) out.v[j] = static_cast<int8_t>((b.code[first + j] >> shift) & 3);
  return out;
}

LK_FN float scale16(LK_BLOCK Q2K& b, int g) { return load_half(b.d) * static_cast<float>(b.scale[g] & 15); }

LK_FN float offset16(LK_BLOCK Q2K& b, int g) { return -(load_half(b.dmin) * static_cast<float>(b.scale[g] >> 4)); }

}  // namespace lutkern
