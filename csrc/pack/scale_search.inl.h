// Formats whose weights are a scale times one of a few values:
//
//   minimise over d and v:  sum(importance * (w - d * v)^2)        v in the format's values
//
// For a scale that is tried, every weight takes the nearest value; least squares then gives the best scale for these
// values, d = along / square with along = sum(importance * v * w) and square = sum(importance * v^2), and the error
// falls by along^2 / square. The trials bring the largest weight of a sub-block to several positions around the end of
// the values; the best one is refined. Two trials run side by side, and a lane is a sub-block.

// The integers kLow .. kHigh. Codes count from kLow.
template <int kLow, int kHigh>
struct Integers {
  Limits limits = Limits(kLow, kHigh);

  FloatVec value(FloatVec position) const { return nearest(limits.clamp(position)); }
  IntVec code(FloatVec position) const { return __builtin_convertvector(value(position), IntVec) - kLow; }
};

// Trial t of stream k brings the largest weight to first[k] + t * step[k].
struct ScaleTrials {
  int pairs;
  float first[2];
  float step[2];
  int rounds;  // refinements of the best
};

struct ScaleSums {
  FloatVec along[2];
  FloatVec square[2];
};

template <typename V, typename P>
static inline ScaleSums measure_scales(const P& panel, int lane, FloatVec first_inverse, FloatVec second_inverse) {
  const V values;
  FloatVec along_0 = vec_of(0.0f), along_1 = along_0, square_0 = along_0, square_1 = along_0;
  for (int i = 0; i < P::kSize; ++i) {
    const FloatVec w = vec_at(&panel.w[i][lane]), a = vec_at(&panel.a[i][lane]);
    const FloatVec v_0 = values.value(w * first_inverse), v_1 = values.value(w * second_inverse);
    const FloatVec weighted_0 = a * v_0, weighted_1 = a * v_1;
    along_0 += weighted_0 * w;
    along_1 += weighted_1 * w;
    square_0 += weighted_0 * v_0;
    square_1 += weighted_1 * v_1;
  }
  return {{along_0, along_1}, {square_0, square_1}};
}

// The best scale of each lane so far, and its sums.
struct ScaleFit {
  FloatVec gain = vec_of(0.0f), scale = vec_of(0.0f), square = vec_of(0.0f);

  void consider(FloatVec along, FloatVec some_square) {
    const FloatVec found = along / max(some_square, vec_of(1e-30f));
    const FloatVec found_gain = along * found;
    const IntVec better = found_gain > gain;
    gain = better ? found_gain : gain;
    scale = better ? found : scale;
    square = better ? some_square : square;
  }
};

// A lane's own best scale, and its curvature.
template <typename V, typename P>
static inline void search_scales(const P& panel, const ScaleTrials& trials, float* want, float* square) {
  for (int lane = 0; lane < P::kSubs; lane += kVectorLanes) {
    const FloatVec low = vec_at(panel.low + lane), high = vec_at(panel.high + lane);
    const FloatVec to_one = inverse_of(-low > high ? low : high);
    ScaleFit best;
    for (int t = 0; t < trials.pairs; ++t) {
      const float at = static_cast<float>(t);
      const ScaleSums sums = measure_scales<V>(panel, lane, to_one * (trials.first[0] + at * trials.step[0]),
                                               to_one * (trials.first[1] + at * trials.step[1]));
      best.consider(sums.along[0], sums.square[0]);
      best.consider(sums.along[1], sums.square[1]);
    }
    for (int round = 0; round < trials.rounds; ++round) {
      // The least-squares scale, and one a little smaller: the descent stops at the first scale that repeats itself.
      const FloatVec inverse = inverse_of(best.scale);
      const ScaleSums sums = measure_scales<V>(panel, lane, inverse, inverse * 1.01f);
      best.consider(sums.along[0], sums.square[0]);
      best.consider(sums.along[1], sums.square[1]);
    }
    put(want + lane, best.scale);
    put(square + lane, best.square);
  }
}

// The codes of every sub-block at its scale.
template <typename V, typename P>
static inline void codes_at(const P& panel, const float* scale, uint8_t* code) {
  const V values;
  PanelCodes codes;
  for (int b = 0; b < P::kSubs; ++b) {
    const FloatVec inverse = vec_of(inverse_of(scale[b]));
    for (int i = b * P::kSize; i < (b + 1) * P::kSize; i += kVectorLanes) {
      codes.set(i, values.code(vec_at(panel.flat + i) * inverse));
    }
  }
  codes.narrow(code);
}

// How the integers of the sub-blocks are found: from `starts` block scales, at most `rounds` times each, out of 2 + 2 *
// reach integers around what a sub-block wants.
struct Settling {
  int starts;
  int rounds;
  int reach;
};

// The block scales that are tried, as parts of the fitted one.
static constexpr float kScaleFactors[] = {1.0f, 0.985f, 1.015f, 0.97f, 1.03f, 0.955f, 1.045f, 0.94f, 1.06f};

// A block of 256 weights: weight = d * s * v, s one of the integers F::kLeast .. F::kMost for each sub-block.
// F gives Values, kSubs, kLeast, kMost, trials(effort) and settling(effort).
template <typename F>
class ScaledBlock {
 public:
  using Values = typename F::Values;
  enum : int { kSubs = F::kSubs };

  uint32_t half;
  int unit[kSubs];
  uint8_t code[kPanelSize];

  // False: d does not fit fp16.
  bool quantise(const float* weights, const float* importance, Effort effort) {
    panel_.load(weights, importance);
    float want[kSubs], square[kSubs];
    search_scales<Values>(panel_, F::trials(effort), want, square);
    const float fitted = fit_unit<kSubs>(want, square, F::kLeast, F::kMost);
    half = half_reaching(panel_.unscaled(fabsf(fitted), 0)) | (fitted < 0.0f ? 0x8000u : 0u);
    if ((half & 0x7fffu) >= kHalfInfinity) return false;
    if (!(fabsf(value_of(half)) < kScaleTooCoarse)) half = 0;
    settle(want, F::settling(effort));
    return true;
  }

 private:
  float value_of(uint32_t some) const { return panel_.scaled(float_from_half(some), 0); }

  // Integers, then d by least squares; the best of all gives the codes.
  void settle(const float* want, const Settling& how) {
    double best = 1e300;
    uint32_t best_half = half;
    const float first = value_of(half);
    float scale[kSubs];
    for (int start = 0; start < how.starts; ++start) {
      half = half_from_float(panel_.unscaled(first * kScaleFactors[start], 0));
      for (int round = 0; round < how.rounds; ++round) {
        const float d = value_of(half);
        choose(want, d, how.reach);
        const double loss = refit();
        if (!(loss < best)) break;
        best = loss;
        best_half = half;
        for (int b = 0; b < kSubs; ++b) {
          scale[b] = d * unit_[b];
          unit[b] = static_cast<int>(unit_[b]);
        }
      }
    }
    half = best_half;
    codes_at<Values>(panel_, scale, code);
  }

  // Of the integers around what a sub-block wants the one with the smallest error.
  void choose(const float* want, float d, int reach) {
    const float inverse = inverse_of(d);
    const Limits limits(F::kLeast, F::kMost);
    for (int lane = 0; lane < kSubs; lane += kVectorLanes) {
      const FloatVec below = nearest(limits.clamp(vec_at(want + lane) * inverse - 0.5f));
      FloatVec least = vec_of(3e38f), unit = below, along = below, square = below;
      for (int k = -reach; k < 2 + reach; k += 2) {
        const FloatVec tried[2] = {limits.clamp(below + static_cast<float>(k)),
                                   limits.clamp(below + static_cast<float>(k + 1))};
        const ScaleSums sums = measure_scales<Values>(panel_, lane, inverse_of(d * tried[0]), inverse_of(d * tried[1]));
        for (int j = 0; j < 2; ++j) {
          const FloatVec scale = d * tried[j];
          const FloatVec loss = scale * (scale * sums.square[j] - 2.0f * sums.along[j]);
          const IntVec better = loss < least;
          least = better ? loss : least;
          unit = better ? tried[j] : unit;
          along = better ? sums.along[j] : along;
          square = better ? sums.square[j] : square;
        }
      }
      put(unit_ + lane, unit);
      put(along_ + lane, along);
      put(square_ + lane, square);
    }
  }

  // The least-squares d for these values and integers. Returns what the error is above sum(importance * w^2).
  double refit() {
    double along = 0.0, square = 0.0;
    for (int b = 0; b < kSubs; ++b) {
      const double u = static_cast<double>(unit_[b]);
      along += u * static_cast<double>(along_[b]);
      square += u * u * static_cast<double>(square_[b]);
    }
    if (square > 0.0) {
      const uint32_t fitted = half_from_float(panel_.unscaled(static_cast<float>(along / square), 0));
      if ((fitted & 0x7fffu) < kHalfInfinity) half = fitted;
    }
    const double d = static_cast<double>(value_of(half));
    return d * (d * square - 2.0 * along);
  }

  Panel<kSubs, 1> panel_;
  alignas(64) float unit_[kSubs];
  alignas(64) float along_[kSubs];
  alignas(64) float square_[kSubs];
};

// Blocks of 32 weights, eight at a time: weight = d * v with an fp16 d.
template <typename Values>
class ScaledBlocks {
 public:
  enum : int { kBlocks = 8 };

  uint32_t half[kBlocks];
  uint8_t code[kPanelSize];

  // False: a d does not fit fp16.
  bool quantise(const float* weights, const float* importance, const ScaleTrials& trials) {
    alignas(64) float d[kBlocks], square[kBlocks], along[kBlocks];
    panel_.load(weights, importance);
    search_scales<Values>(panel_, trials, d, square);
    for (int b = 0; b < kBlocks; ++b) {
      half[b] = half_reaching(panel_.unscaled(fabsf(d[b]), b)) | (d[b] < 0.0f ? 0x8000u : 0u);
      if ((half[b] & 0x7fffu) >= kHalfInfinity) return false;
      d[b] = panel_.scaled(float_from_half(half[b]), b);
    }
    for (int lane = 0; lane < kBlocks; lane += kVectorLanes) {
      const FloatVec inverse = inverse_of(vec_at(d + lane));
      const ScaleSums sums = measure_scales<Values>(panel_, lane, inverse, inverse);
      put(along + lane, sums.along[0]);
      put(square + lane, sums.square[0]);
    }
    codes_at<Values>(panel_, d, code);
    for (int b = 0; b < kBlocks; ++b) {
      // The least-squares d for these values.
      half[b] = square[b] > 0.0f ? half_from_float(panel_.unscaled(along[b] / square[b], b)) : 0;
      if ((half[b] & 0x7fffu) >= kHalfInfinity) return false;
    }
    return true;
  }

 private:
  Panel<kBlocks, kBlocks> panel_;
};

// A row of a format with 32 weights in a block, a panel at a time; quantise_panel(weights, importance, blocks, count)
// writes the first `count` blocks.
template <typename Block, typename QuantisePanel>
static inline bool for_each_panel(const float* w, const float* importance, int64_t cols, uint8_t* blocks,
                                  const QuantisePanel& quantise_panel) {
  int64_t c = 0;
  for (; c + kPanelSize <= cols; c += kPanelSize, blocks += 8 * Block::kBlockBytes) {
    if (!quantise_panel(w + c, importance + c, reinterpret_cast<Block*>(blocks), 8)) return false;
  }
  if (c == cols) return true;
  alignas(64) float last[kPanelSize] = {}, last_importance[kPanelSize];
  for (int i = 0; i < kPanelSize; ++i) last_importance[i] = 1.0f;
  memcpy(last, w + c, static_cast<size_t>(cols - c) * sizeof(float));
  memcpy(last_importance, importance + c, static_cast<size_t>(cols - c) * sizeof(float));
  return quantise_panel(last, last_importance, reinterpret_cast<Block*>(blocks), static_cast<int>((cols - c) / 32));
}
