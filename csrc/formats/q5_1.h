// Q5_1: 32 weights in 24 bytes (6 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..3     m          fp16 offset of the block
//   byte 4..7     high       u32: bit w is the fifth code bit of weight w
//   byte 8..23    code       4-bit codes; byte k holds weight k (low nibble) and k + 16 (high nibble)
//
//   weight = d * (code + 16 high) + m
#pragma once
#include "port.h"

namespace lutkern {

struct Q51 {
  enum : int { kGgmlType = 7, kBlockSize = 32, kBlockBytes = 24, kHasOffset = 1, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t m[2];
  uint8_t high[4];
  uint8_t code[16];
};
static_assert(sizeof(Q51) == Q51::kBlockBytes, "q5_1 block");

LK_FN Codes8 codes8(LK_BLOCK Q51& b, int i) {
  Codes8 out;
  for (int j = 0; j < 8; ++j) {
    const int low = (b.code[8 * (i % 2) + j] >> (4 * (i / 2))) & 15;
    out.v[j] = static_cast<int8_t>(low | ((b.high[i] >> j) & 1) << 4);
  }
  return out;
}

LK_FN float scale16(LK_BLOCK Q51& b, int) { return load_half(b.d); }

LK_FN float offset16(LK_BLOCK Q51& b, int) { return load_half(b.m); }

}  // namespace lutkern
