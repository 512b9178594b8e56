// Q4_0: 32 weights in 18 bytes (4.5 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..17    code       4-bit codes; byte m holds weight m (low nibble) and m + 16 (high nibble)
//
//   weight = d * (code - 8)
#pragma once
#include "port.h"

namespace lutkern {

struct Q40 {
  enum : int { kGgmlType = 2, kBlockSize = 32, kBlockBytes = 18, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t code[16];
};
static_assert(sizeof(Q40) == Q40::kBlockBytes, "q4_0 block");

LK_FN Codes8 codes8(LK_BLOCK Q40& b, int i) {
  Codes8 out;
  for (int j = 0; j < 8; ++j) {
    out.v[j] = static_cast<int8_t>(((b.code[8 * (i % 2) + j] >> (4 * (i / 2))) & 15) - 8);
  }
  return out;
}

LK_FN float scale16(LK_BLOCK Q40& b, int) { return load_half(b.d); }

LK_FN float offset16(LK_BLOCK Q40&, int) { return 0.0f; }

}  // namespace lutkern
