// F32: one weight in 4 bytes, little endian: an IEEE single.
//
// A float format: activations meet it unquantised.
#pragma once
#include "port.h"

namespace lutkern {

struct F32 {
  enum : int { kGgmlType = 0, kBlockSize = 1, kBlockBytes = 4, kHasOffset = 0, kIsFloat = 1 };
  uint8_t bits[4];
};
static_assert(sizeof(F32) == F32::kBlockBytes, "f32 block");

LK_FN float weight(LK_BLOCK F32& w) { return float_from_bits(load_u32(w.bits)); }

}  // namespace lutkern
