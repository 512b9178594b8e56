// Eight 6-bit scales and eight 6-bit offsets in 12 bytes, as Q4_K and Q5_K store them.
//
//   byte k        k < 4: bits 0..5 scale k,      bits 6..7 bits 4..5 of scale k + 4
//   byte 4 + k    k < 4: bits 0..5 offset k,     bits 6..7 bits 4..5 of offset k + 4
//   byte 8 + k    k < 4: low nibble bits 0..3 of scale k + 4, high nibble bits 0..3 of offset k + 4
#pragma once
#include "port.h"

namespace lutkern {

struct ScaleOffset6 {
  uint8_t byte[12];
};

LK_FN int scale6(LK_BLOCK ScaleOffset6& s, int k) {
  if (k < 4) return s.byte[k] & 63;
  return (s.byte[4 + k] & 15) | (s.byte[k - 4] >> 6) << 4;
}

LK_FN int offset6(LK_BLOCK ScaleOffset6& s, int k) {
  if (k < 4) return s.byte[4 + k] & 63;
  return (s.byte[4 + k] >> 4) | (s.byte[k] >> 6) << 4;
}

}  // namespace lutkern
