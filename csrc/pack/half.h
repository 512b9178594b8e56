// Stores of the 16-bit scales: rounding to the nearest half, ties to even, and little-endian words.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../formats/port.h"

namespace lutkern {

enum : uint32_t { kHalfInfinity = 0x7c00u, kLeastNormalHalf = 0x0400u };

static inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// IEEE half of a finite single; kHalfInfinity (with the sign) where the magnitude rounds past 65504.
static inline uint32_t half_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) return sign | kHalfInfinity;
  if (magnitude < 0x38800000u) {
    // Below the smallest normal half the grid is 2^-24: adding 0.5 leaves the rounded multiple in the low mantissa
    // bits.
    float positive;
    memcpy(&positive, &magnitude, sizeof positive);
    return sign | (bits_from_float(positive + 0.5f) - 0x3f000000u);
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return sign | ((magnitude + 0xfffu + odd - 0x38000000u) >> 13);
}

// The same for a scale that is not negative, but upwards among the subnormal halves: rounded down, it could leave the
// largest weight out of reach.
static inline uint32_t half_reaching(float scale) {
  const uint32_t half = half_from_float(scale);
  return half < kLeastNormalHalf && float_from_half(half) < scale ? half + 1 : half;
}

static inline void store_u16(uint8_t* p, uint32_t value) {
  p[0] = static_cast<uint8_t>(value);
  p[1] = static_cast<uint8_t>(value >> 8);
}

static inline void store_u32(uint8_t* p, uint32_t value) {
  store_u16(p, value);
  store_u16(p + 2, value >> 16);
}

}  // namespace lutkern
