// Floats to numbers of 16 bits, plain loops that a compiler turns into the vectors of the ISA. Included by its file inside
// its anonymous namespace.

static void to_bf16(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits = 0;
    __builtin_memcpy(&bits, x + i, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const uint32_t quiet = bits >> 16 | 0x40u;
    out[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
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
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);  // as instructions do it
  } else if (magnitude < 0x38800000u) {
    half = small_half(magnitude);
  } else if (magnitude < 0x477ff000u) {
    half = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
  }
  return static_cast<uint16_t>((bits >> 16 & 0x8000u) | half);
}
