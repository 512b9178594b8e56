// F16: one weight in 2 bytes, little endian: an IEEE half.
//
// A float format: activations meet it unquantised.
#pragma once
#include "port.h"

namespace lutkern {

struct F16 {
  enum : int { kGgmlType = 1, kBlockSize = 1, kBlockBytes = 2, kHasOffset = 0, kIsFloat = 1 };
  uint8_t bits[2];
};
static_assert(sizeof(F16) == F16::kBlockBytes, "f16 block");

LK_FN float weight(LK_BLOCK F16& w) { return load_half(w.bits); }

}  // namespace lutkern
