// MXFP4: 32 weights in 17 bytes (4.25 bits per weight), the OCP microscaling format.
//
//   byte 0        e          scale 2^(e - 127), exponent only
//   byte 1..16    code       e2m1 codes; byte m holds weight m (low nibble) and m + 16 (high nibble)
//
//   weight = 2^(e - 128) * value[code]        value is twice the e2m1 number, so that it is an integer up to 12
#pragma once
#include "codebooks.h"

namespace lutkern {

struct Mxfp4 {
  enum : int { kGgmlType = 39, kBlockSize = 32, kBlockBytes = 17, kHasOffset = 0, kIsFloat = 0 };
  uint8_t e;
  uint8_t code[16];
};
static_assert(sizeof(Mxfp4) == Mxfp4::kBlockBytes, "mxfp4 block");

LK_FN Codes8 codes8(LK_BLOCK Mxfp4& b, int i) {
  Codes8 out;
  for (int j = 0; j < 8; ++j) out.v[j] = kMxfp4Values[(b.code[8 * (i % 2) + j] >> (4 * (i / 2))) & 15];
  return out;
}

// 2^(e - 128): the two smallest exponents are subnormal in single precision.
LK_FN float scale16(LK_BLOCK Mxfp4& b, int) {
  const uint32_t e = b.e;
  return float_from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

LK_FN float offset16(LK_BLOCK Mxfp4&, int) { return 0.0f; }

}  // namespace lutkern
