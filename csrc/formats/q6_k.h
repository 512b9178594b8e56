// Q6_K: 256 weights in 210 bytes (6.5625 bits per weight).
//
//   byte 0..127   low        4-bit codes; byte 64 h + m (m < 64) holds weights 128 h + m (low nibble), + 64 (high)
//   byte 128..191 high       2-bit codes; byte 32 h + m holds weights 128 h + m, + 32, + 64, + 96, lowest bits first
//   byte 192..207 scale      int8 scale s, one for each 16 weights
//   byte 208..209 d          fp16 scale of the block
//
//   weight = d * s * ((low | high << 4) - 32)
#pragma once
#include "port.h"

namespace lutkern {

struct Q6K {
  enum : int { kGgmlType = 14, kBlockSize = 256, kBlockBytes = 210, kHasOffset = 0, kIsFloat = 0 };
  uint8_t low[128];
  uint8_t high[64];
  uint8_t scale[16];
  uint8_t d[2];
};
static_assert(sizeof(Q6K) == Q6K::kBlockBytes, "q6_k block");

LK_FN Codes8 codes8(LK_BLOCK Q6K& b, int i) {
  Codes8 out;
  const int low = 64 * (i / 16) + 8 * (i % 8);
  const int low_shift = 4 * ((i / 8) % 2);
  const int high = 32 * (i / 16) + 8 * (i % 4);
  const int high_shift = 2 * ((i / 4) % 4);
  for (int j = 0; j < 8; ++j) {
    const int code = ((b.low[low + j] >> low_shift) & 15) | ((b.high[high + j] >> high_shift) & 3) << 4;
    out.v[j] = static_cast<int8_t>(code - 32);
  }
  return out;
}

LK_FN float scale16(LK_BLOCK Q6K& b, int g) {
  return load_half(b.d) * static_cast<float>(static_cast<int8_t>(b.scale[g]));
}

LK_FN float offset16(LK_BLOCK Q6K&, int) { return 0.0f; }

}  // namespace lutkern
