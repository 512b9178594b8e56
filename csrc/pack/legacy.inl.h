// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4: blocks of 32 weights, float -> blocks.
//
//   q4_0   weight = d * (code - 8)       code 0..15
//   q5_0   weight = d * (code - 16)      code 0..31
//   q4_1   weight = d * code + m         code 0..15
//   q5_1   weight = d * code + m         code 0..31
//   q8_0   weight = d * code             code -127..127, d is the largest magnitude over 127
//   mxfp4  weight = 2^(e - 128) * value  value 0, 1, 2, 3, 4, 6, 8, 12 with either sign

static inline void store_fifth_bits(const uint8_t* code, uint8_t* to) {
  for (int k = 0; k < 4; ++k) {
    int bits = 0;
    for (int j = 0; j < 8; ++j) bits |= code[8 * k + j] >> 4 << j;
    to[k] = static_cast<uint8_t>(bits);
  }
}

static inline ScaleTrials q4_0_trials(Effort effort) {
  if (effort == Effort::kFast) return {3, {-6.8f, -7.3f}, {-1.0f, -1.0f}, 0};
  if (effort == Effort::kBest) return {30, {-5.5f, 5.5f}, {-0.2f, 0.2f}, 3};
  return {6, {-6.6f, -7.0f}, {-0.8f, -0.8f}, 1};
}

static inline ScaleTrials q5_0_trials(Effort effort) {
  if (effort == Effort::kFast) return {3, {-14.5f, -15.2f}, {-1.4f, -1.4f}, 0};
  if (effort == Effort::kBest) return {24, {-12.0f, 12.0f}, {-0.33f, 0.33f}, 3};
  return {6, {-14.0f, -14.4f}, {-0.8f, -0.8f}, 1};
}

static inline LineTrials q4_1_trials(Effort effort) {
  if (effort == Effort::kFast) return {4, 12.5f, 1.0f, 1, 1};
  if (effort == Effort::kBest) return {24, 10.0f, 0.33f, 4, 4};
  return {6, 11.5f, 0.8f, 2, 1};
}

static inline LineTrials q5_1_trials(Effort effort) {
  if (effort == Effort::kFast) return {4, 28.5f, 1.0f, 1, 1};
  if (effort == Effort::kBest) return {24, 26.0f, 0.33f, 4, 4};
  return {6, 27.5f, 0.8f, 2, 1};
}

bool pack_q4_0(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks) {
  ScaledBlocks<Integers<-8, 7>> from;
  const ScaleTrials trials = q4_0_trials(effort);
  return for_each_panel<Q40>(w, importance, cols, blocks, [&](const float* v, const float* a, Q40* to, int count) {
    if (!from.quantise(v, a, trials)) return false;
    for (int b = 0; b < count; ++b) {
      store_u16(to[b].d, from.half[b]);
      store_halves(from.code + 32 * b, to[b].code);
    }
    return true;
  });
}

bool pack_q5_0(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks) {
  ScaledBlocks<Integers<-16, 15>> from;
  const ScaleTrials trials = q5_0_trials(effort);
  return for_each_panel<Q50>(w, importance, cols, blocks, [&](const float* v, const float* a, Q50* to, int count) {
    if (!from.quantise(v, a, trials)) return false;
    for (int b = 0; b < count; ++b) {
      store_u16(to[b].d, from.half[b]);
      store_fifth_bits(from.code + 32 * b, to[b].high);
      store_halves(from.code + 32 * b, to[b].code);
    }
    return true;
  });
}

bool pack_q4_1(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks) {
  LineBlocks<15> from;
  const LineTrials trials = q4_1_trials(effort);
  return for_each_panel<Q41>(w, importance, cols, blocks, [&](const float* v, const float* a, Q41* to, int count) {
    if (!from.quantise(v, a, trials)) return false;
    for (int b = 0; b < count; ++b) {
      store_u16(to[b].d, from.half_d[b]);
      store_u16(to[b].m, from.half_m[b]);
      store_halves(from.code + 32 * b, to[b].code);
    }
    return true;
  });
}

bool pack_q5_1(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks) {
  LineBlocks<31> from;
  const LineTrials trials = q5_1_trials(effort);
  return for_each_panel<Q51>(w, importance, cols, blocks, [&](const float* v, const float* a, Q51* to, int count) {
    if (!from.quantise(v, a, trials)) return false;
    for (int b = 0; b < count; ++b) {
      store_u16(to[b].d, from.half_d[b]);
      store_u16(to[b].m, from.half_m[b]);
      store_fifth_bits(from.code + 32 * b, to[b].high);
      store_halves(from.code + 32 * b, to[b].code);
    }
    return true;
  });
}

bool pack_q8_0(const float* w, const float*, int64_t cols, Effort, uint8_t* blocks) {
  const Limits limits(-127.0f, 127.0f);
  for (int64_t c = 0; c < cols; c += Q80::kBlockSize, blocks += Q80::kBlockBytes, w += Q80::kBlockSize) {
    Q80* to = reinterpret_cast<Q80*>(blocks);
    const uint32_t half = half_reaching(largest_magnitude(w, 32) / 127.0f);
    if (half >= kHalfInfinity) return false;
    const float d = float_from_half(half);
    const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
    store_u16(to->d, half);
    int32_t code[32];
    for (int i = 0; i < 32; i += kWide) {
      // Rounding d may bring the largest weight to just above 127.
      const Whole k = __builtin_convertvector(nearest(limits.clamp(vec_at(w + i) * inverse)), Whole);
      memcpy(code + i, &k, sizeof k);
    }
    for (int i = 0; i < 32; ++i) to->code[i] = static_cast<uint8_t>(code[i]);
  }
  return true;
}

// ---- mxfp4 ----

// Values are whole up to 4, even up to 8, multiples of four up to 12.
struct Mxfp4ValueSet {
  Limits limits = Limits(-12.0f, 12.0f);

  Vec value(Vec position) const {
    const Vec x = limits.clamp(position);
    // The power of two below |x|, at least 2, is two steps.
    const Vec steps = larger(reinterpret_cast<Vec>(reinterpret_cast<Whole>(x) & 0x7f800000), vec_of(2.0f));
    const Vec rounder = steps * (0.5f * kRounder);
    return (x + rounder) - rounder;
  }

  // Codes 0 .. 7 are 0, 1, 2, 3, 4, 6, 8, 12; eight more for a minus.
  Whole code(Vec position) const {
    const Vec v = value(position), magnitude = magnitude_of(v);
    Vec k = magnitude < vec_of(4.0f) ? magnitude : 0.5f * magnitude + 2.0f;
    k = magnitude < vec_of(8.0f) ? k : 0.25f * magnitude + 4.0f;
    k += v < vec_of(0.0f) ? vec_of(8.0f) : vec_of(0.0f);
    return __builtin_convertvector(k, Whole);
  }
};

// The scale with the smallest error of `count` powers of two downwards from the least that leaves every weight within
// reach. The largest exponent that gives finite weights is 252.
class Mxfp4Blocks {
 public:
  enum : int { kBlocks = 8, kMostExponent = 252 };

  uint8_t e[kBlocks];
  uint8_t code[kPanelSize];

  void quantise(const float* weights, const float* importance, int pairs) {
    panel_.load(weights, importance);
    alignas(64) float scale[2][kBlocks], index[kBlocks];
    Vec least[kBlocks / kWide], best[kBlocks / kWide];
    for (int lane = 0; lane < kBlocks; lane += kWide) {
      least[lane / kWide] = vec_of(3e38f);
      best[lane / kWide] = vec_of(0.0f);
    }
    for (int t = 0; t < 2 * pairs; t += 2) {
      for (int b = 0; b < kBlocks; ++b) {
        for (int k = 0; k < 2; ++k) scale[k][b] = scale_of(exponent(b, t + k), b);
      }
      for (int lane = 0; lane < kBlocks; lane += kWide) {
        const Vec d_0 = vec_at(scale[0] + lane), d_1 = vec_at(scale[1] + lane);
        const ScaleSums sums = measure_scales<Mxfp4ValueSet>(panel_, lane, inverse_of(d_0), inverse_of(d_1));
        const Vec loss_0 = d_0 * (d_0 * sums.square[0] - 2.0f * sums.along[0]);
        const Vec loss_1 = d_1 * (d_1 * sums.square[1] - 2.0f * sums.along[1]);
        keep(loss_0, static_cast<float>(t), &least[lane / kWide], &best[lane / kWide]);
        keep(loss_1, static_cast<float>(t + 1), &least[lane / kWide], &best[lane / kWide]);
      }
    }
    for (int lane = 0; lane < kBlocks; lane += kWide) put(index + lane, best[lane / kWide]);
    for (int b = 0; b < kBlocks; ++b) {
      e[b] = static_cast<uint8_t>(exponent(b, static_cast<int>(index[b])));
      scale[0][b] = scale_of(e[b], b);
    }
    codes_at<Mxfp4ValueSet>(panel_, scale[0], code);
  }

 private:
  static void keep(Vec loss, float number, Vec* least, Vec* best) {
    const Whole better = loss < *least;
    *least = better ? loss : *least;
    *best = better ? vec_of(number) : *best;
  }

  // The largest weight is 2 .. 4 in scaled units; 2^-1 brings it to 4 .. 8 and 2^-2 to 8 .. 16.
  int exponent(int b, int trial) const {
    const int wanted = panel_.exponent[b] + 128 - 1 - trial;
    return panel_.zero[b] || wanted < 0 ? 0 : (wanted < kMostExponent ? wanted : kMostExponent);
  }

  // Scaled units. Past 2^127 everything rounds to zero anyway.
  float scale_of(int some, int b) const {
    const int power = some - 128 - panel_.exponent[b];
    return PowerOfTwo(power < 127 ? power : 127).times(1.0f);
  }

  Panel<kBlocks, kBlocks> panel_;
};

bool pack_mxfp4(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks) {
  Mxfp4Blocks from;
  const int pairs = effort == Effort::kBest ? 2 : 1;
  return for_each_panel<Mxfp4>(w, importance, cols, blocks, [&](const float* v, const float* a, Mxfp4* to, int count) {
    from.quantise(v, a, pairs);
    for (int b = 0; b < count; ++b) {
      to[b].e = from.e[b];
      store_halves(from.code + 32 * b, to[b].code);
    }
    return true;
  });
}

template <>
constexpr Packer packer_of<Q40>() {
  return {pack_q4_0, nullptr};
}

template <>
constexpr Packer packer_of<Q41>() {
  return {pack_q4_1, nullptr};
}

template <>
constexpr Packer packer_of<Q50>() {
  return {pack_q5_0, nullptr};
}

template <>
constexpr Packer packer_of<Q51>() {
  return {pack_q5_1, nullptr};
}

template <>
constexpr Packer packer_of<Q80>() {
  return {pack_q8_0, nullptr};
}

template <>
constexpr Packer packer_of<Mxfp4>() {
  return {pack_mxfp4, nullptr};
}
