// IQ4_NL: 32 weights in 18 bytes (4.5 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..17    code       4-bit codes; byte m holds weight m (low nibble) and m + 16 (high nibble)
//
//   weight = d * value[code]        16 values that are denser around zero
#pragma once
#include "codebooks.h"

namespace lutkern {

struct Iq4Nl {
  enum : int { kGgmlType = 20, kBlockSize = 32, kBlockBytes = 18, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t code[16];
};
static_assert(sizeof(Iq4Nl) == Iq4Nl::kBlockBytes, "iq4_nl block");

LK_FN Codes8 codes8(LK_BLOCK Iq4Nl& b, int i) {
  Codes8 out;
  for (int j = 0; j < 8; ++j) out.v[j] = kIq4Values[(b.code[8 * (i % 2) + j] >> (4 * (i / 2))) & 15];
  return out;
}

LK_FN float scale16(LK_BLOCK Iq4Nl& b, int) { return load_half(b.d); }

LK_FN float offset16(LK_BLOCK Iq4Nl&, int) { return 0.0f; }

}  // namespace lutkern
