// Floats to numbers of 16 bits, nearest, ties to even; a NaN stays one, with the upper bits that it has, as instructions do
// it. Included by ISA files inside their anonymous namespaces.

static inline uint16_t bf16_of_float(float value) {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// The halves below 2^-14 are multiples of 2^-24: adding 0.5 leaves the rounded multiple in the mantissa.
static inline uint32_t small_half(uint32_t magnitude) {
  const float shifted = float_from_bits(magnitude) + 0.5f;
  uint32_t bits = 0;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  return bits - 0x3f000000u;
}

static inline uint16_t half_of_float(float value) {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half = 0x7c00u;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude < 0x38800000u) {
    half = small_half(magnitude);
  } else if (magnitude < 0x477ff000u) {
    half = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
  }
  return static_cast<uint16_t>((bits >> 16 & 0x8000u) | half);
}
