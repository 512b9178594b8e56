// BF16: one weight in 2 bytes, little endian: the upper half of a single.
//
// A float format: activations meet it unquantised.
#pragma once
#include "port.h"

namespace lutkern {

struct Bf16 {
  enum : int { kGgmlType = 30, kBlockSize = 1, kBlockBytes = 2, kHasOffset = 0, kIsFloat = 1 };
  uint8_t bits[2];
};
static_assert(sizeof(Bf16) == Bf16::kBlockBytes, "bf16 block");

LK_FN float weight(LK_BLOCK Bf16& w) { return float_from_bits(load_u16(w.bits) << 16); }

}  // namespace lutkern
