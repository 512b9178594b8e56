// Q5_0: 32 weights in 22 bytes (5.5 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..5     high       u32: bit w is the fifth code bit of weight w
//   byte 6..21    code       4-bit codes; byte m holds weight m (low nibble) and m + 16 (high nibble)
//
//   weight = d * (code + 16 high - 16)
#pragma once
#include "port.h"

namespace lutkern {

struct Q50 {
  enum : int { kGgmlType = 6, kBlockSize = 32, kBlockBytes = 22, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t high[4];
  uint8_t code[16];
};
static_assert(sizeof(Q50) == Q50::kBlockBytes, "q5_0 block");

LK_FN Codes8 codes8(LK_BLOCK Q50& b, int i) {
  Codes8 out;
  for (int j = 0; j < 8; ++j) {
    const int low = (b.code[8 * (i % 2) + j] >> (4 * (i / 2))) & 15;
    out.v[j] = static_cast<int8_t>((low | ((b.high[i] >> j) & 1) << 4) - 16);
  }
  return out;
}

LK_FN float scale16(LK_BLOCK Q50& b, int) { return load_half(b.d); }

LK_FN float offset16(LK_BLOCK Q50&, int) { return 0.0f; }

}  // namespace lutkern
