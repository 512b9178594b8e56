// What lets one format header compile as C++, CUDA and Metal.
//
//   LK_FN      a decode helper: internal linkage, inlined, callable on the device
//   LK_BLOCK   address space of a packed block that is passed by reference
//   LK_CODES   linkage and address space of the generated data
//   LK_TABLE   address space of a codebook
//   LK_TABLE_DEFINITION   linkage and address space of its definition
//
// Decode helpers take a block by reference and return values, so that nothing else depends on the language.
#pragma once

#if defined(__METAL_VERSION__)
#include <metal_stdlib>
using namespace metal;
#define LK_FN static inline
#define LK_BLOCK const device
#define LK_CODES static constant
#else
#include <stdint.h>
#if defined(__CUDACC__)
#define LK_FN static __host__ __device__ __forceinline__
#define LK_TABLE __device__ const
#define LK_TABLE_DEFINITION static __device__ constexpr
#else
#define LK_FN static inline
#define LK_TABLE const
#define LK_TABLE_DEFINITION extern constexpr
#endif
#define LK_BLOCK const
#define LK_CODES static constexpr
#endif

namespace lutkern {

// Eight consecutive weights as integers, before scale and offset.
struct Codes8 {
  int8_t v[8];
};

LK_FN float float_from_bits(uint32_t bits) {
#if defined(__METAL_VERSION__)
  return as_type<float>(bits);
#else
  union {
    uint32_t u;
    float f;
  } pun;
  pun.u = bits;
  return pun.f;
#endif
}

// IEEE half to single. Subnormals go through an integer conversion, so that a flush-to-zero mode cannot lose them.
LK_FN float float_from_half(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude < 0x0400u) {
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign ? -value : value;
  }
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude << 13));
  return float_from_bits(sign | ((magnitude << 13) + (112u << 23)));
}

LK_FN uint32_t load_u16(LK_BLOCK uint8_t* p) { return static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 8; }

LK_FN uint32_t load_u32(LK_BLOCK uint8_t* p) { return load_u16(p) | load_u16(p + 2) << 16; }

LK_FN float load_half(LK_BLOCK uint8_t* p) { return float_from_half(load_u16(p)); }

// Seven stored sign bits name eight signs: the eighth makes the number of minus signs even.
LK_FN uint32_t signs_from_parity(uint32_t seven) {
  uint32_t parity = seven ^ (seven >> 4);
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return seven | (parity & 1u) << 7;
}

// Codebook row of eight bytes times eight signs (bit j set: weight j is negative).
LK_FN Codes8 apply_signs(uint64_t row, uint32_t signs) {
  Codes8 out;
  for (int j = 0; j < 8; ++j) {
    const int magnitude = static_cast<int>((row >> (8 * j)) & 0xffu);
    out.v[j] = static_cast<int8_t>(((signs >> j) & 1u) ? -magnitude : magnitude);
  }
  return out;
}

// Ternary codebook row {-1,0,1} and its shift of one eighth, in units of one eighth: 8 * row + delta, delta = +1 or -1.
LK_FN Codes8 apply_delta(uint64_t row, int delta) {
  Codes8 out;
  for (int j = 0; j < 8; ++j) {
    const int digit = static_cast<int8_t>((row >> (8 * j)) & 0xffu);
    out.v[j] = static_cast<int8_t>(8 * digit + delta);
  }
  return out;
}

}  // namespace lutkern
