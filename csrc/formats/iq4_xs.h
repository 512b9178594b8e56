// IQ4_XS: 256 weights in 136 bytes (4.25 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..3     high       u16: bits 2 k .. 2 k + 1 are the high bits of scale k
//   byte 4..7     low        low four bits of scale k, one scale for each 32 weights, low nibble first
//   byte 8..135   code       for each 32 weights 16 bytes; byte m holds weight m (low nibble) and m + 16 (high nibble)
//
//   weight = d * (scale - 32) * value[code]        the 16 values of IQ4_NL
#pragma once
#include "codebooks.h"

namespace lutkern {

struct Iq4Xs {
  enum : int { kGgmlType = 23, kBlockSize = 256, kBlockBytes = 136, kHasOffset = 0, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t high[2];
  uint8_t low[4];
  uint8_t code[8][16];
};
static_assert(sizeof(Iq4Xs) == Iq4Xs::kBlockBytes, "iq4_xs block");

LK_FN Codes8 codes8(LK_BLOCK Iq4Xs& b, int i) {
  Codes8 out;
  const int shift = 4 * ((i % 4) / 2);
  for (int j = 0; j < 8; ++j) out.v[j] = kIq4Values[(b.code[i / 4][8 * (i % 2) + j] >> shift) & 15];
  return out;
}

LK_FN float scale16(LK_BLOCK Iq4Xs& b, int g) {
  const int k = g / 2;
  const int low = (b.low[k / 2] >> (4 * (k % 2))) & 15;
  const int high = static_cast<int>((load_u16(b.high) >> (2 * k)) & 3u);
  return load_half(b.d) * static_cast<float>((low | high << 4) - 32);
}

LK_FN float offset16(LK_BLOCK Iq4Xs&, int) { return 0.0f; }

}  // namespace lutkern
