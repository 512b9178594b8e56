// TQ1_0: 256 ternary weights in 54 bytes (1.6875 bits per weight).
//
//   byte 0..31    five[0]    weights   0..159: byte m holds the weights m, m + 32, ..., m + 128
//   byte 32..47   five[1]    weights 160..239: byte m holds the weights m, m + 16, ..., m + 64 of this part
//   byte 48..51   four       weights 240..255: byte m holds the weights m, m + 4, m + 8, m + 12 of this part
//   byte 52..53   d          fp16 scale of the block
//
// A byte is a fraction of 256 in base 3: digit k = floor(3 * ((byte * 3^k) mod 256) / 256).
//
//   weight = d * (digit - 1)
#pragma once
#include "port.h"

namespace lutkern {

struct Tq10 {
  enum : int { kGgmlType = 34, kBlockSize = 256, kBlockBytes = 54, kHasOffset = 0, kIsFloat = 0 };
  uint8_t digits[52];
  uint8_t d[2];
};
static_assert(sizeof(Tq10) == Tq10::kBlockBytes, "tq1_0 block");

LK_FN int ternary_digit(uint32_t byte, int k) {
  const uint32_t power = static_cast<uint32_t>(0x511b090301u >> (8 * k)) & 255u;  // 3^k, k < 5
  return static_cast<int>((((byte * power) & 255u) * 3u) >> 8) - 1;
}

// Byte m of a part has the weights m, m + 2^width, ... of the part.
LK_FN Codes8 codes8(LK_BLOCK Tq10& b, int i) {
  const int part = i < 20 ? 0 : (i < 30 ? 160 : 240);
  const int width = i < 20 ? 5 : (i < 30 ? 4 : 2);
  const int bytes = i < 20 ? 0 : (i < 30 ? 32 : 48);
  Codes8 out;
  for (int j = 0; j < 8; ++j) {
    const int w = 8 * i + j - part;
    out.v[j] = static_cast<int8_t>(ternary_digit(b.digits[bytes + (w & ((1 << width) - 1))], w >> width));
  }
  return out;
}

LK_FN float scale16(LK_BLOCK Tq10& b, int) { return load_half(b.d); }

LK_FN float offset16(LK_BLOCK Tq10&, int) { return 0.0f; }

}  // namespace lutkern
