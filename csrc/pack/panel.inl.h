// A panel: 256 weights as kSubs sub-blocks that are fitted side by side, one vector lane for each.
//
//   flat[256]                  the weights in their order, scaled by powers of two
//   w[kSize][kSubs], a[][]     the same and their importance, transposed: row i holds weight i of every sub-block
//
// No operation crosses lanes, so every width of vector gives the same numbers. A panel is one block of a format with 256
// weights, or several blocks of a format with 32, which then have a power of two each.

enum : int { kPanelSize = 256 };

// A block scale from here on, in scaled units, decodes to nothing near the weights but zero: it is the smallest fp16
// number next to weights that are far smaller.
static constexpr float kScaleTooCoarse = 256.0f;

static inline FloatVec vec_of(float x) { return x - FloatVec{}; }

static inline FloatVec vec_at(const float* from) {
  FloatVec out;
  memcpy(&out, from, sizeof out);
  return out;
}

static inline void put(float* to, FloatVec x) { memcpy(to, &x, sizeof x); }

static inline FloatVec magnitude_of(FloatVec x) {
  return reinterpret_cast<FloatVec>(reinterpret_cast<IntVec>(x) & 0x7fffffff);
}

// The two ends of a range. The compiler must not see that they are constants: it would fold them into compare and
// select where the processor has one instruction for the smaller of two.
struct Limits {
  FloatVec low, high;

  Limits(float least, float most) {
    asm("" : "+m"(least), "+m"(most));
    low = vec_of(least);
    high = vec_of(most);
  }
  FloatVec clamp(FloatVec x) const { return max(min(x, high), low); }
};

// Nearest integer, ties to even, of a magnitude below 2^22: adding 1.5 * 2^23 rounds, taking it away again is exact.
static constexpr float kRounder = 12582912.0f;
static inline FloatVec nearest(FloatVec x) { return (x + kRounder) - kRounder; }

static inline float inverse_of(float scale) { return fabsf(scale) > 1e-30f ? 1.0f / scale : 0.0f; }
static inline FloatVec inverse_of(FloatVec scale) {
  return magnitude_of(scale) > vec_of(1e-30f) ? 1.0f / scale : vec_of(0.0f);
}

// 2^exponent in two factors, since one alone may be out of range.
struct PowerOfTwo {
  float first, second;

  explicit PowerOfTwo(int exponent) : first(one(exponent / 2)), second(one(exponent - exponent / 2)) {}
  float times(float x) const { return x * first * second; }

 private:
  static float one(int exponent) { return float_from_bits(static_cast<uint32_t>(exponent + 127) << 23); }
};

typedef float Quad __attribute__((vector_size(16)));

// The largest lane.
static inline float largest_of(FloatVec x) {
  alignas(64) float lanes[kVectorLanes];
  put(lanes, x);
  Quad most;
  memcpy(&most, lanes, sizeof most);
  for (int l = 4; l < kVectorLanes; l += 4) {
    Quad other;
    memcpy(&other, lanes + l, sizeof other);
    most = other > most ? other : most;
  }
  const Quad swapped = __builtin_shufflevector(most, most, 2, 3, 0, 1);
  most = swapped > most ? swapped : most;
  return most[0] > most[1] ? most[0] : most[1];
}

// n: a multiple of 8.
static inline float largest_magnitude(const float* x, int n) {
  FloatVec most = vec_of(0.0f);
  for (int i = 0; i < n; i += kVectorLanes) most = max(magnitude_of(vec_at(x + i)), most);
  return largest_of(most);
}

static inline float lowest(const float* x, int n) {
  FloatVec most = -vec_at(x);
  for (int i = kVectorLanes; i < n; i += kVectorLanes) most = max(-vec_at(x + i), most);
  return -largest_of(most);
}

// e such that 2^-e brings a magnitude to 2 .. 4.
static inline int exponent_of(float magnitude) {
  const uint32_t biased = bits_from_float(magnitude) >> 23;
  // Subnormal numbers are first brought up by 2^64.
  if (biased == 0) return static_cast<int>(bits_from_float(magnitude * 0x1p64f) >> 23) - 128 - 64;
  return static_cast<int>(biased) - 128;
}

// rows x 4 of `from` becomes 4 x rows of `to`, rows a multiple of 4.
static inline void transpose_4(const float* from, int from_stride, float* to, int to_stride) {
  Quad r[4];
  for (int k = 0; k < 4; ++k) memcpy(&r[k], from + k * from_stride, sizeof(Quad));
  const Quad ab_low = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
  const Quad ab_high = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Quad cd_low = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Quad cd_high = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
  for (int k = 0; k < 4; ++k) memcpy(to + k * to_stride, &r[k], sizeof(Quad));
}

// kBlocks: how many blocks of the format a panel is. kFromLowest: the least weight of a block is taken off all of them.
template <int kSubCount, int kBlockCount, int kFromLowest = 0>
struct Panel {
  enum : int { kSubs = kSubCount, kSize = kPanelSize / kSubs, kBlocks = kBlockCount, kRun = kPanelSize / kBlocks };

  alignas(64) float flat[kPanelSize];
  alignas(64) float w[kSize][kSubs];
  alignas(64) float a[kSize][kSubs];
  alignas(64) float low[kSubs];
  alignas(64) float high[kSubs];
  int exponent[kBlocks];
  float base[kBlocks];  // scaled units; what was taken off
  bool zero[kBlocks];

  void load(const float* weights, const float* importance) {
    alignas(64) float share[kPanelSize];
    for (int b = 0; b < kBlocks; ++b) load_block(b, weights + kRun * b, importance + kRun * b, share + kRun * b);
    for (int b = 0; b < kSubs; b += 4) {
      for (int i = 0; i < kSize; i += 4) {
        transpose_4(flat + b * kSize + i, kSize, &w[i][b], kSubs);
        transpose_4(share + b * kSize + i, kSize, &a[i][b], kSubs);
      }
    }
    for (int lane = 0; lane < kSubs; lane += kVectorLanes) {
      FloatVec least = vec_at(&w[0][lane]), most = least;
      for (int i = 1; i < kSize; ++i) {
        least = min(vec_at(&w[i][lane]), least);
        most = max(vec_at(&w[i][lane]), most);
      }
      put(low + lane, least);
      put(high + lane, most);
    }
  }

  // A scale in scaled units as the weights of the block have it, infinite where single precision ends, and back.
  float unscaled(float scale, int block) const { return PowerOfTwo(exponent[block]).times(scale); }
  float scaled(float scale, int block) const { return PowerOfTwo(-exponent[block]).times(scale); }

 private:
  void load_block(int b, const float* weights, const float* importance, float* share) {
    const float peak = largest_magnitude(weights, kRun);
    zero[b] = !(peak > 0.0f);
    exponent[b] = zero[b] ? 0 : exponent_of(peak);
    const PowerOfTwo factor(-exponent[b]), share_factor(-exponent_of(largest_magnitude(importance, kRun)));
    float* to = flat + kRun * b;
    for (int i = 0; i < kRun; ++i) to[i] = weights[i] * factor.first * factor.second;
    for (int i = 0; i < kRun; ++i) {
      const float scaled_share = importance[i] * share_factor.first * share_factor.second;
      share[i] = scaled_share > kLeastImportance ? scaled_share : kLeastImportance;
    }
    base[b] = 0.0f;
    if (!kFromLowest) return;
    base[b] = lowest(to, kRun);
    for (int i = 0; i < kRun; ++i) to[i] -= base[b];
  }
};

// The codes of a panel: whole numbers first, since narrowing runs best over all of them at once.
struct PanelCodes {
  alignas(64) int32_t whole[kPanelSize];

  void set(int i, IntVec k) { memcpy(whole + i, &k, sizeof k); }
  void narrow(uint8_t* code) const {
    for (int i = 0; i < kPanelSize; ++i) code[i] = static_cast<uint8_t>(whole[i]);
  }
};

// One d for integers u[b] in low .. high, fitted to the scales that the sub-blocks want:
//
//   minimise over d, u[b]:  sum_b weight[b] * (want[b] - d * u[b])^2
//
// weight[b] is the curvature of a sub-block's error around its own scale, so this is the block's error to second order.
// d is tried with the largest wanted scale on each of the outermost integers, one lane a try, and refined by least
// squares for the integers that it gives. The sum falls by along^2 / square, so the largest of these wins.
template <int kCount>
static inline float fit_unit(const float* want, const float* weight, float low, float high) {
  enum : int { kTries = 16 };
  float largest = 0.0f;
  for (int b = 0; b < kCount; ++b) largest = fabsf(want[b]) > fabsf(largest) ? want[b] : largest;
  if (!(fabsf(largest) > 0.0f)) return 0.0f;
  const float end = low < 0.0f ? low : high, towards_zero = low < 0.0f ? 1.0f : -1.0f;
  float d[kTries], best_d[kTries], best_gain[kTries];
  for (int t = 0; t < kTries; ++t) {
    const float anchor = end + towards_zero * static_cast<float>(t);
    d[t] = largest / (anchor * end > 0.0f ? anchor : end);
  }
  const Limits limits(low, high);
  for (int lane = 0; lane < kTries; lane += kVectorLanes) {
    FloatVec unit = vec_at(d + lane), best_unit = unit, gain = vec_of(-1.0f);
    for (int round = 0; round < 2; ++round) {
      const FloatVec inverse = 1.0f / unit;
      FloatVec along = vec_of(0.0f), square = along;
      for (int b = 0; b < kCount; ++b) {
        const FloatVec u = nearest(limits.clamp(want[b] * inverse));
        const FloatVec weighted = weight[b] * u;
        along += weighted * want[b];
        square += weighted * u;
      }
      const IntVec any = square > vec_of(0.0f);
      unit = any ? along / square : unit;
      const FloatVec found = any ? along * unit : vec_of(-2.0f);
      const IntVec better = found > gain;
      gain = better ? found : gain;
      best_unit = better ? unit : best_unit;
    }
    put(best_d + lane, best_unit);
    put(best_gain + lane, gain);
  }
  int best = 0;
  for (int t = 1; t < kTries; ++t) best = best_gain[t] > best_gain[best] ? t : best;
  return best_d[best];
}
