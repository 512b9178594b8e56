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
    for (int i = 0; i < 32; i += kVectorLanes) {
      // Rounding d may bring the largest weight to just above 127.
      const IntVec k = __builtin_convertvector(nearest(limits.clamp(vec_at(w + i) * inverse)), IntVec);
      memcpy(code + i, &k, sizeof k);
    }
    for (int i = 0; i < 32; ++i) to->code[i] = static_cast<uint8_t>(code[i]);
  }
  return true;
}

// ---- mxfp4 ----

// Of the exponents that bring the largest weight to 4 .. 8, 8 .. 16 and, with more effort, 16 .. 64 the one with the
// smallest error; past 12 weights are cut. The largest exponent that gives finite weights is 252.
class Mxfp4Blocks {
 public:
  enum : int { kBlocks = 8, kSize = 32, kPair = 16 };

  uint8_t e[kBlocks];
  uint8_t code[kBlocks * kPair];  // two codes in a byte

  // A stage at a time for all blocks, since one block alone is a chain of steps that wait for one another.
  void quantise(const float* w, const float* importance, int trials) {
    int wanted[kBlocks], first[kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
      const float peak = largest_magnitude(w + kSize * b, kSize);
      wanted[b] = peak > 0.0f ? exponent_of(peak) + 127 : 0;
      first[b] = bounded(wanted[b]);
      load(b, w, PowerOfTwo(128 - first[b]));
      load_share(b, importance, PowerOfTwo(-exponent_of(largest_magnitude(importance + kSize * b, kSize))));
    }
    alignas(64) float least[kBlocks], best[kBlocks], best_trial[kBlocks] = {};
    for (int b = 0; b < kBlocks; ++b) {
      least[b] = 3e38f;
      best[b] = 1.0f;
    }
    for (int t = 0; t < trials; ++t) {
      alignas(64) float factor[kBlocks], chains[kBlocks][kChains], found[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        factor[b] = PowerOfTwo(first[b] - bounded(wanted[b] - t)).times(1.0f);
        measure(b, factor[b], chains[b]);
      }
      sum_chains(chains, found);
      for (int lane = 0; lane < kBlocks; lane += kVectorLanes) {
        const FloatVec loss = vec_at(found + lane), before = vec_at(least + lane);
        const IntVec better = loss < before;
        put(least + lane, better ? loss : before);
        put(best + lane, better ? vec_at(factor + lane) : vec_at(best + lane));
        put(best_trial + lane, better ? vec_of(static_cast<float>(t)) : vec_at(best_trial + lane));
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      e[b] = static_cast<uint8_t>(bounded(wanted[b] - static_cast<int>(best_trial[b])));
    }
    int32_t pairs[kBlocks * kPair];
    for (int b = 0; b < kBlocks; ++b) join_codes(b, best[b], pairs + kPair * b);
    for (int m = 0; m < kBlocks * kPair; ++m) code[m] = static_cast<uint8_t>(pairs[m]);
  }

 private:
  enum : int { kChains = 8, kMostExponent = 252 };

  static int bounded(int exponent) { return exponent < 0 ? 0 : (exponent < kMostExponent ? exponent : kMostExponent); }

  void load(int b, const float* w, const PowerOfTwo& factor) {
    for (int i = kSize * b; i < kSize * (b + 1); i += kVectorLanes) {
      put(position_ + i, vec_at(w + i) * factor.first * factor.second);
    }
  }

  void load_share(int b, const float* importance, const PowerOfTwo& factor) {
    for (int i = kSize * b; i < kSize * (b + 1); i += kVectorLanes) {
      put(share_ + i, vec_at(importance + i) * factor.first * factor.second);
    }
  }

  // Values are whole up to 4, even up to 8, multiples of four up to 12.
  FloatVec value(FloatVec position) const {
    const FloatVec x = limits_.clamp(position);
    // The power of two below |x|, at least 2, is two steps.
    const FloatVec steps = max(reinterpret_cast<FloatVec>(reinterpret_cast<IntVec>(x) & 0x7f800000), vec_of(2.0f));
    const FloatVec rounder = steps * (0.5f * kRounder);
    return (x + rounder) - rounder;
  }

  // sum(importance * (position - value / factor)^2) in kChains parts, each of every eighth weight.
  void measure(int b, float factor, float* chains) const {
    const float back = 1.0f / factor;
    FloatVec total[kChains / kVectorLanes] = {};
    for (int i = kSize * b; i < kSize * (b + 1); i += kChains) {
      for (int v = 0; v < kChains / kVectorLanes; ++v) {
        const FloatVec x = vec_at(position_ + i + v * kVectorLanes);
        const FloatVec off = x - value(x * factor) * back;
        total[v] += vec_at(share_ + i + v * kVectorLanes) * off * off;
      }
    }
    for (int v = 0; v < kChains / kVectorLanes; ++v) put(chains + v * kVectorLanes, total[v]);
  }

  static void sum_chains(const float (*chains)[kChains], float* sum) {
    alignas(64) float turned[kChains][kBlocks];
    for (int b = 0; b < kBlocks; b += 4) {
      for (int k = 0; k < kChains; k += 4) transpose_4(&chains[b][k], kChains, &turned[k][b], kBlocks);
    }
    for (int lane = 0; lane < kBlocks; lane += kVectorLanes) {
      FloatVec total = vec_at(&turned[0][lane]);
      for (int k = 1; k < kChains; ++k) total += vec_at(&turned[k][lane]);
      put(sum + lane, total);
    }
  }

  // Codes 0 .. 7 are 0, 1, 2, 3, 4, 6, 8, 12; eight more for a minus.
  IntVec code_of(FloatVec x) const {
    const FloatVec v = magnitude_of(value(x));
    // From 2 on, the exponent and the highest bit of the mantissa count the values.
    const IntVec counted = (reinterpret_cast<IntVec>(v) >> 22) - 254;
    const IntVec small = __builtin_convertvector(v, IntVec);
    return (v < vec_of(2.0f) ? small : counted) | ((reinterpret_cast<IntVec>(x) >> 28) & 8);
  }

  void join_codes(int b, float factor, int32_t* to) const {
    for (int i = 0; i < kPair; i += kVectorLanes) {
      const float* x = position_ + kSize * b + i;
      const IntVec pair = code_of(vec_at(x) * factor) | code_of(vec_at(x + kPair) * factor) << 4;
      memcpy(to + i, &pair, sizeof pair);
    }
  }

  const Limits limits_ = Limits(-12.0f, 12.0f);
  alignas(64) float position_[kPanelSize];  // the weights at the first exponent
  alignas(64) float share_[kPanelSize];     // importance, scaled by a power of two
};

bool pack_mxfp4(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks) {
  Mxfp4Blocks from;
  const int trials = effort == Effort::kBest ? 4 : 2;
  return for_each_panel<Mxfp4>(w, importance, cols, blocks, [&](const float* v, const float* a, Mxfp4* to, int count) {
    from.quantise(v, a, trials);
    for (int b = 0; b < count; ++b) {
      to[b].e = from.e[b];
      memcpy(to[b].code, from.code + 16 * b, sizeof to[b].code);
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
