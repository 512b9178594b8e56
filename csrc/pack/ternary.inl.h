// TQ1_0, TQ2_0: float -> blocks.
//
//   weight = d * t        t in {-1, 0, 1}, one fp16 d for 256 weights
//
//   minimise sum(importance * (w - d * t)^2) over d and t
//
// For a given d a weight is nonzero where |w| > d / 2, so the best solution keeps the weights above some magnitude;
// with N the kept ones, d = sum_N(importance * |w|) / sum_N(importance), and the error falls by sum_N(importance *
// |w|)^2 / sum_N(importance). From two limits that the moments of |w| suggest, d and the limit d / 2 are alternated, side
// by side. The best effort replaces one of them by the best edge of kBins bins of magnitudes.

class TernaryBlock {
 public:
  uint32_t half;
  float limit;  // weights beyond it are not zero

  // False: d does not fit fp16.
  bool quantise(const float* w, const float* importance, Effort effort) {
    half = 0;
    limit = 3e38f;
    const float peak = largest_magnitude(w, kPanelSize);
    if (!(peak > 0.0f)) return true;
    const int exponent = exponent_of(peak);
    load(w, importance, PowerOfTwo(-exponent), PowerOfTwo(-exponent_of(largest_magnitude(importance, kPanelSize))));
    float at[2];
    first_limits(at);
    if (effort == Effort::kBest) at[1] = best_edge();
    Kept best = {0.0f, 1.0f}, kept[2];
    float best_limit = 0.0f;
    for (int round = 0; round < (effort == Effort::kFast ? 1 : effort == Effort::kBest ? 3 : 2); ++round) {
      keep_above_both(at, kept);
      for (int k = 0; k < 2; ++k) {
        if (kept[k].gain() > best.gain()) {
          best = kept[k];
          best_limit = at[k];
        }
        if (kept[k].total > 0.0f) at[k] = 0.5f * kept[k].along / kept[k].total;
      }
    }
    half = half_from_float(PowerOfTwo(exponent).times(best.along / best.total));
    if (half >= kHalfInfinity) return false;
    if (half) limit = PowerOfTwo(exponent).times(best_limit);
    return true;
  }

 private:
  enum : int { kBins = 64, kChains = 16, kVecs = kChains / kVectorLanes };

  // Over the weights above a limit.
  struct Kept {
    float along;  // sum of importance * |w|
    float total;  // sum of importance

    float gain() const { return total > 0.0f ? along * (along / total) : -1.0f; }
  };

  void load(const float* w, const float* importance, const PowerOfTwo& factor, const PowerOfTwo& share_factor) {
    const FloatVec faintest = vec_of(kLeastImportance);
    for (int i = 0; i < kPanelSize; i += kVectorLanes) {
      put(magnitude_ + i, magnitude_of(vec_at(w + i)) * factor.first * factor.second);
      put(share_ + i, max(vec_at(importance + i) * share_factor.first * share_factor.second, faintest));
    }
  }

  // The same order of additions whatever the width of the vectors.
  static float sum(const FloatVec* chains) {
    alignas(64) float x[kChains];
    for (int v = 0; v < kVecs; ++v) put(x + v * kVectorLanes, chains[v]);
    for (int k = 0; k < 8; ++k) x[k] += x[k + 8];
    for (int k = 0; k < 4; ++k) x[k] += x[k + 4];
    return (x[0] + x[2]) + (x[1] + x[3]);
  }

  void keep_above_both(const float* at, Kept* kept) const {
    const FloatVec zero = vec_of(0.0f), limit_0 = vec_of(at[0]), limit_1 = vec_of(at[1]);
    FloatVec along_0[kVecs] = {}, along_1[kVecs] = {}, total_0[kVecs] = {}, total_1[kVecs] = {};
    for (int i = 0; i < kPanelSize; i += kChains) {
      for (int v = 0; v < kVecs; ++v) {
        const FloatVec magnitude = vec_at(magnitude_ + i + v * kVectorLanes),
                       share = vec_at(share_ + i + v * kVectorLanes);
        const FloatVec kept_0 = magnitude > limit_0 ? share : zero, kept_1 = magnitude > limit_1 ? share : zero;
        along_0[v] += kept_0 * magnitude;
        along_1[v] += kept_1 * magnitude;
        total_0[v] += kept_0;
        total_1[v] += kept_1;
      }
    }
    kept[0] = {sum(along_0), sum(total_0)};
    kept[1] = {sum(along_1), sum(total_1)};
  }

  // Half of m2 / m1 and of m3 / m2, with mp the mean of |w|^p: next to the best limit of many distributions, and both
  // exact for weights that are ternary already.
  void first_limits(float* at) const {
    FloatVec m1[kVecs] = {}, m2[kVecs] = {}, m3[kVecs] = {};
    for (int i = 0; i < kPanelSize; i += kChains) {
      for (int v = 0; v < kVecs; ++v) {
        const FloatVec magnitude = vec_at(magnitude_ + i + v * kVectorLanes);
        const FloatVec once = vec_at(share_ + i + v * kVectorLanes) * magnitude, twice = once * magnitude;
        m1[v] += once;
        m2[v] += twice;
        m3[v] += twice * magnitude;
      }
    }
    const float sum_1 = sum(m1), sum_2 = sum(m2);
    at[0] = 0.5f * sum_2 / sum_1;
    at[1] = 0.5f * sum(m3) / sum_2;
  }

  // The limit among the edges of the bins that leaves the smallest error. Magnitudes are below 4.
  float best_edge() const {
    const float per_bin = kBins / 4;
    float along[kBins] = {}, total[kBins] = {};
    for (int i = 0; i < kPanelSize; ++i) {
      const int bin = static_cast<int>(magnitude_[i] * per_bin);
      along[bin] += share_[i] * magnitude_[i];
      total[bin] += share_[i];
    }
    Kept kept = {0.0f, 0.0f};
    float best_gain = -1.0f;
    int best = 0;
    for (int bin = kBins - 1; bin >= 0; --bin) {
      kept.along += along[bin];
      kept.total += total[bin];
      if (kept.gain() > best_gain) {
        best_gain = kept.gain();
        best = bin;
      }
    }
    return static_cast<float>(best) / per_bin;
  }

  alignas(64) float magnitude_[kPanelSize];  // scaled by a power of two
  alignas(64) float share_[kPanelSize];      // importance, scaled by a power of two
};

// Codes 0, 1, 2 for -1, 0, 1.
static inline void ternary_codes(const float* w, float limit, uint8_t* code) {
  PanelCodes codes;
  for (int i = 0; i < kPanelSize; i += kVectorLanes) {
    const FloatVec x = vec_at(w + i);
    codes.set(i, (x < vec_of(-limit)) - (x > vec_of(limit)) + 1);
  }
  codes.narrow(code);
}

// Digit k of byte m is code[m + k * kRun]; a byte is five base-3 digits as a fraction of 256, rounded up: reading
// multiplies by three and takes what passes 256.
template <int kRun, int kDigits>
static inline void store_digits(const uint8_t* code, uint8_t* to) {
  for (int m = 0; m < kRun; ++m) {
    uint16_t number = 0;
    for (int k = 0; k < 5; ++k) number = static_cast<uint16_t>(3 * number + (k < kDigits ? code[m + k * kRun] : 0));
    to[m] = static_cast<uint8_t>(static_cast<uint16_t>(number * 256 + 242) / 243);
  }
}

static inline void store(const uint8_t* code, uint32_t half, Tq10* to) {
  store_digits<32, 5>(code, to->digits);
  store_digits<16, 5>(code + 160, to->digits + 32);
  store_digits<4, 4>(code + 240, to->digits + 48);
  store_u16(to->d, half);
}

static inline void store(const uint8_t* code, uint32_t half, Tq20* to) {
  store_two_bits(code, to->code);
  store_u16(to->d, half);
}

template <typename Block>
bool pack_ternary(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks) {
  TernaryBlock from;
  for (int64_t c = 0; c < cols; c += Block::kBlockSize, blocks += Block::kBlockBytes) {
    uint8_t code[kPanelSize];
    if (!from.quantise(w + c, importance + c, effort)) return false;
    ternary_codes(w + c, from.limit, code);
    store(code, from.half, reinterpret_cast<Block*>(blocks));
  }
  return true;
}

template <>
constexpr Packer packer_of<Tq10>() {
  return {pack_ternary<Tq10>, nullptr};
}

template <>
constexpr Packer packer_of<Tq20>() {
  return {pack_ternary<Tq20>, nullptr};
}
