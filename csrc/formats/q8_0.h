// Q8_0: 32 weights in 34 bytes (8.5 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..33    code       int8
//
//   weight = d * code
#pragma once
#include "port.h"

namespace lutkern {

struct Q80 {
  enum : int { kGgmlType = 8, kBlockSize = 32, kBlockBytes = 34, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t code[32];
};
static_assert(sizeof(Q80) == Q80::kBlockBytes, "q8_0 block");

LK_FN Codes8 codes8(LK_BLOCK Q80& b, int i) {
  Codes8 out;
  for (int j = 0; j < 8; ++j) out.v[j] = static_cast<int8_t>(b.code[8 * i + j]);
  return out;
}

LK_FN float scale16(LK_BLOCK Q80& b, int) { return load_half(b.d); }

LK_FN float offset16(LK_BLOCK Q80&, int) { return 0.0f; }

}  // namespace lutkern
