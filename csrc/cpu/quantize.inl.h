// float activations to int8 with one scale for 32 columns, written once. Included by each ISA file inside its anonymous
// namespace, after
//
//   float largest_magnitude(const float* x)          of 32 numbers; NaN if one is NaN
//   void round_group(const float* x, float inverse, int8_t* q)      q = round half to even(x * inverse), 32 numbers
//
//   scale = largest / 127;  q = round(x * (127 / largest))
//
// A group whose scale would be subnormal becomes zero. A group with NaN or infinity gets the scale NaN, so that every
// product with it is NaN: never a wrong finite number.

static void quantize(const float* x, int64_t cols, int8_t* q, float* scale, int16_t* sum, int16_t* sum16) {
  for (int64_t g = 0; g < cols / kActivationGroup; ++g) {
    const float largest = largest_magnitude(x + g * kActivationGroup);
    int8_t* codes = q + g * kActivationGroup;
    if (!(largest <= 3.4028234663852886e38f)) {
      __builtin_memset(codes, 0, kActivationGroup);
      scale[g] = __builtin_nanf("");
    } else if (largest / 127.0f < 0x1p-126f) {
      __builtin_memset(codes, 0, kActivationGroup);
      scale[g] = 0.0f;
    } else {
      round_group(x + g * kActivationGroup, 127.0f / largest, codes);
      scale[g] = largest / 127.0f;
    }
    for (int part = 0; part < kActivationGroup / kSumGroup; ++part) {
      int total_of_part = 0;
      for (int j = 0; j < kSumGroup; ++j) total_of_part += codes[part * kSumGroup + j];
      sum[g * (kActivationGroup / kSumGroup) + part] = static_cast<int16_t>(total_of_part);
    }
    const int16_t* four = sum + g * (kActivationGroup / kSumGroup);
    sum16[2 * g] = static_cast<int16_t>(four[0] + four[1]);
    sum16[2 * g + 1] = static_cast<int16_t>(four[2] + four[3]);
  }
}
