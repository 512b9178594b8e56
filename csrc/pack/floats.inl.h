// BF16, F16, F32: the nearest number, ties to even.

bool pack_bf16(const float* w, const float*, int64_t cols, Effort, uint8_t* blocks) {
  bool fits = true;
  for (int64_t c = 0; c < cols; ++c) {
    const uint32_t bits = bits_from_float(w[c]);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    fits = fits && (rounded & 0x7fffu) < 0x7f80u;
    store_u16(blocks + 2 * c, rounded);
  }
  return fits;
}

bool pack_f16(const float* w, const float*, int64_t cols, Effort, uint8_t* blocks) {
  bool fits = true;
  for (int64_t c = 0; c < cols; ++c) {
    const uint32_t half = half_from_float(w[c]);
    fits = fits && (half & 0x7fffu) < kHalfInfinity;
    store_u16(blocks + 2 * c, half);
  }
  return fits;
}

bool pack_f32(const float* w, const float*, int64_t cols, Effort, uint8_t* blocks) {
  for (int64_t c = 0; c < cols; ++c) store_u32(blocks + 4 * c, bits_from_float(w[c]));
  return true;
}

template <>
constexpr Packer packer_of<Bf16>() {
  return {pack_bf16, nullptr};
}

template <>
constexpr Packer packer_of<F16>() {
  return {pack_f16, nullptr};
}

template <>
constexpr Packer packer_of<F32>() {
  return {pack_f32, nullptr};
}
