// Q4_1: 32 weights in 20 bytes (5 bits per weight).
//
//   byte 0..1     d          fp16 scale of the block
//   byte 2..3     m          fp16 offset of the block
//   byte 4..19    code       4-bit codes; byte k holds weight k (low nibble) and k + 16 (high nibble)
//
//   weight = d * code + m
#pragma once
#include "port.h"

namespace lutkern {

struct Q41 {
  enum : int { kGgmlType = 3, kBlockSize = 32, kBlockBytes = 20, kHasOffset = 1, kIsFloat = 0 };
  uint8_t d[2];
  uint8_t m[2];
  uint8_t code[16];
};
static_assert(sizeof(Q41) == Q41::kBlockBytes, "q4_1 block");

LK_FN Codes8 codes8(LK_BLOCK Q41& b, int i) {
  Codes8 out;
  for (int j = 0; j < 8; ++j) out.v[j] = static_cast<int8_t>((b.code[8 * (i % 2) + j] >> (4 * (i / 2))) & 15);
  return out;
}

LK_FN float scale16(LK_BLOCK Q41& b, int) { return load_half(b.d); }

LK_FN float offset16(LK_BLOCK Q41& b, int) { return load_half(b.m); }

}  // namespace lutkern
