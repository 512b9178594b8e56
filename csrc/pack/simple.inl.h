// Q8_0, IQ4_NL and the float formats: float -> blocks.
//
//   q8_0    weight = d * code            code in -127..127
//   iq4_nl  weight = d * value[code]     16 values, -127 .. 113
//   bf16, f16, f32: the nearest number, ties to even
//
// Q8_0: d is the largest magnitude over 127.
// IQ4_NL minimises sum(importance * (w - d * value)^2). The values are not symmetric, so d may be negative. d is tried
// where the largest magnitude meets a value exactly, and in both signs in small steps from there down, so that the
// largest ones are cut; the best d is refined by least squares, rounded to fp16, and refined once more for the codes it
// gives.

bool pack_q8_0(const float* w, const float*, int64_t cols, Effort, uint8_t* blocks) {
  for (int64_t c = 0; c < cols; c += Q80::kBlockSize, blocks += Q80::kBlockBytes, w += Q80::kBlockSize) {
    Q80* to = reinterpret_cast<Q80*>(blocks);
    float largest = 0.0f;
    for (int i = 0; i < 32; ++i) largest = fabsf(w[i]) > largest ? fabsf(w[i]) : largest;
    const uint32_t half = half_reaching(largest / 127.0f);
    if (half >= kHalfInfinity) return false;
    const float d = float_from_half(half);
    const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
    store_u16(to->d, half);
    for (int i = 0; i < 32; ++i) {
      float code = w[i] * inverse;
      code = code > 127.0f ? 127.0f : code;
      code = code < -127.0f ? -127.0f : code;
      // Adding 1.5 * 2^23 leaves the integer nearest to code in the low mantissa bits.
      to->code[i] = static_cast<uint8_t>(bits_from_float(code + 12582912.0f));
    }
  }
  return true;
}

// The nearest value and its code for k = floor(2 * (x + 128)): every boundary between two values is a multiple of 1/2.
struct Iq4Nearest {
  enum : int { kEntries = 512 };
  float value[kEntries];
  uint8_t code[kEntries];

  Iq4Nearest() {
    for (int k = 0; k < kEntries; ++k) {
      const float x = (static_cast<float>(k) + 0.5f) * 0.5f - 128.0f;
      int best = 0;
      for (int v = 1; v < 16; ++v) {
        if (fabsf(x - static_cast<float>(kIq4Values[v])) < fabsf(x - static_cast<float>(kIq4Values[best]))) best = v;
      }
      code[k] = static_cast<uint8_t>(best);
      value[k] = static_cast<float>(kIq4Values[best]);
    }
  }
};

const Iq4Nearest& iq4_nearest() {
  static const Iq4Nearest table;
  return table;
}

enum : int { kScaleSteps = 24 };

// Entries of the table for the weights at scale d.
void iq4_entries(const BlockInput<32>& in, float d, int* entry) {
  const float inverse = 2.0f / d;
  float at[32];
  // A loop for each limit: next to one another the comparisons become branches.
  for (int i = 0; i < 32; ++i) {
    const float position = in.w[i] * inverse + 256.0f;
    at[i] = position > 0.0f ? position : 0.0f;
  }
  for (int i = 0; i < 32; ++i) at[i] = at[i] < 511.0f ? at[i] : 511.0f;
  for (int i = 0; i < 32; ++i) entry[i] = static_cast<int>(at[i]);
}

// x[0] becomes the sum of x[0 .. 31].
void sum_32(float* x) {
  for (int i = 0; i < 16; ++i) x[i] += x[i + 16];
  for (int i = 0; i < 8; ++i) x[i] += x[i + 8];
  for (int i = 0; i < 4; ++i) x[i] += x[i + 4];
  x[0] = (x[0] + x[1]) + (x[2] + x[3]);
}

struct Iq4Fit {
  float along;   // sum importance * w * value
  float square;  // sum importance * value^2
};

Iq4Fit fit_iq4(const BlockInput<32>& in, const int* entry) {
  const Iq4Nearest& nearest = iq4_nearest();
  float value[32], along[32], square[32];
  for (int i = 0; i < 32; ++i) value[i] = nearest.value[entry[i]];
  for (int i = 0; i < 32; ++i) {
    const float weighted = in.importance[i] * value[i];
    along[i] = weighted * in.w[i];
    square[i] = weighted * value[i];
  }
  sum_32(along);
  sum_32(square);
  return {along[0], square[0]};
}

float search_iq4(const BlockInput<32>& in) {
  float largest = 0.0f;
  for (int i = 0; i < 32; ++i) largest = fabsf(in.w[i]) > fabsf(largest) ? in.w[i] : largest;
  float best_gain = -1.0f, best_d = 0.0f;
  const auto attempt = [&](float d) {
    int entry[32];
    iq4_entries(in, d, entry);
    const Iq4Fit fit = fit_iq4(in, entry);
    if (!(fit.square > 0.0f)) return;
    const float gain = fit.along * fit.along / fit.square;
    if (gain > best_gain) {
      best_gain = gain;
      best_d = fit.along / fit.square;
    }
  };
  for (int v = 0; v < 16; ++v) attempt(largest / static_cast<float>(kIq4Values[v]));
  for (int step = 0; step < kScaleSteps; ++step) {
    const float d = largest / (66.0f + 7.0f * static_cast<float>(step));
    attempt(d);
    attempt(-d);
  }
  for (int round = 0; round < 2; ++round) attempt(best_d);
  return best_d;
}

bool pack_iq4_nl(const float* w, const float* importance, int64_t cols, Effort, uint8_t* blocks) {
  for (int64_t c = 0; c < cols; c += Iq4Nl::kBlockSize, blocks += Iq4Nl::kBlockBytes) {
    Iq4Nl* to = reinterpret_cast<Iq4Nl*>(blocks);
    BlockInput<32> in;
    memset(to, 0, sizeof *to);
    if (!in.load(w + c, importance + c)) continue;
    const float wanted = in.unscaled(search_iq4(in));
    const uint32_t sign = wanted < 0.0f ? 0x8000u : 0u;
    uint32_t half = half_reaching(fabsf(wanted));
    if (half >= kHalfInfinity) return false;
    if (half == 0) continue;
    int entry[32];
    iq4_entries(in, in.scaled(float_from_half(half | sign)), entry);
    const Iq4Fit fit = fit_iq4(in, entry);
    half = half_from_float(in.unscaled(fit.along / fit.square));
    if ((half & 0x7fffu) >= kHalfInfinity) return false;
    store_u16(to->d, half);
    const uint8_t* code = iq4_nearest().code;
    for (int m = 0; m < 16; ++m) to->code[m] = static_cast<uint8_t>(code[entry[m]] | code[entry[m + 16]] << 4);
  }
  return true;
}

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
constexpr Packer packer_of<Q80>() {
  return {pack_q8_0, nullptr};
}

template <>
constexpr Packer packer_of<Iq4Nl>() {
  return {pack_iq4_nl, [] { iq4_nearest(); }};
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
