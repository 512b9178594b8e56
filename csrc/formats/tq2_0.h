// TQ2_0: 256 ternary weights in 66 bytes (2.0625 bits per weight).
//
//   byte 0..63    code       2-bit codes; byte 32 h + m holds weights 128 h + m, + 32, + 64, + 96, lowest bits first
//   byte 64..65   d          fp16 scale of the block
//
//   weight = d * (code - 1)
#pragma once
#include "port.h"

namespace lutkern {

struct Tq20 {
  enum : int { kGgmlType = 35, kBlockSize = 256, kBlockBytes = 66, kHasOffset = 0, kIsFloat = 0 };
  uint8_t code[64];
  uint8_t d[2];
};
static_assert(sizeof(Tq20) == Tq20::kBlockBytes, "tq2_0 block");

LK_FN Codes8 codes8(LK_BLOCK Tq20& b, int i) {
  Codes8 out;
  const int first = 32 * (i / 16) + 8 * (i % 4);
  const int shift = 2 * ((i / 4) % 4);
  for (int j = 0; j < 8; ++j) out.v[j] = static_cast<int8_t>(((b.code[first + j] >> shift) & 3) - 1);
  return out;
}

LK_FN float scale16(LK_BLOCK Tq20& b, int) { return load_half(b.d); }

LK_FN float offset16(LK_BLOCK Tq20&, int) { return 0.0f; }

}  // namespace lutkern
