// Q3_K: 256 weights in 110 bytes (3.4375 bits per weight).
//
//   byte 0..31    high       bit k of byte m: third code bit of weight 32 k + m (set: nothing is subtracted)
//   byte 32..95   code       2-bit codes; byte 32 h + m holds weights 128 h + m, + 32, + 64, + 96, lowest bits first
//   byte 96..107  scale      sixteen 6-bit scales s: low nibbles of bytes 0..7, high nibbles of bytes 0..7,
//                            then bytes 8..11 hold the two high bits of scale k at byte 8 + k % 4, bits 2 (k / 4)
//   byte 108..109 d          fp16 scale of the block
//
//   weight = d * (s - 32) * (code - (high ? 0 : 4))
#pragma once
#include "port.h"

namespace lutkern {

struct Q3K {
  enum : int { kGgmlType = 11, kBlockSize = 256, kBlockBytes = 110, kHasOffset = 0, kIsFloat = 0 };
  uint8_t high[32];
  uint8_t code[64];
  uint8_t scale[12];
  uint8_t d[2];
};
static_assert(sizeof(Q3K) == Q3K::kBlockBytes, "q3_k block");

LK_FN Codes8 codes8(LK_BLOCK Q3K& b, int i) {
  Codes8 out;
  const int first = 32 * (i / 16) + 8 * (i % 4);
  const int shift = 2 * ((i / 4) % 4);
  for (int j = 0; j < 8; ++j) {
    const int high = (b.high[8 * (i % 4) + j] >> (i / 4)) & 1;
    out.v[j] = static_cast<int8_t>(((b.code[first + j] >> shift) & 3) - (high ? 0 : 4));
  }
  return out;
}

LK_FN float scale16(LK_BLOCK Q3K& b, int g) {
  const int low = (b.scale[g % 8] >> (4 * (g / 8))) & 15;
  const int high = (b.scale[8 + g % 4] >> (2 * (g / 4))) & 3;
  return load_half(b.d) * static_cast<float>((low | high << 4) - 32);
}

LK_FN float offset16(LK_BLOCK Q3K&, int) { return 0.0f; }

}  // namespace lutkern
