// Formats whose weights lie on a line: weight = S * q - M, q in 0 .. kHigh.
//
//   minimise over S, M and q:  sum(importance * (w - S * q + M)^2)
//
// One step serves everything: round the weights to codes at some S and M, and solve least squares for the S and M that
// suit these codes best; the error falls by S * qw - M * along. The starts divide the range of a sub-block into fewer
// or more steps than there are codes, held at its low or its high end; from each the step is repeated a few times.
// Two starts run side by side, and a lane is a sub-block.

// Start t divides the range into first + t * step parts, and is followed for `rounds` steps; the best of all for
// `last_rounds` more.
struct LineTrials {
  int starts;
  float first;
  float step;
  int rounds;
  int last_rounds;
};

// Over the weights of a lane, with a the importance and q the code.
struct LineSums {
  FloatVec q1;  // sum a * q
  FloatVec q2;  // sum a * q^2
  FloatVec qw;  // sum a * q * w
};

struct Line {
  FloatVec scale;
  FloatVec offset;
};

// Of a lane, for all codes.
struct LineTotals {
  FloatVec total;  // sum a
  FloatVec along;  // sum a * w
};

template <typename P>
static inline LineTotals line_totals(const P& panel, int lane) {
  LineTotals out = {vec_of(0.0f), vec_of(0.0f)};
  for (int i = 0; i < P::kSize; ++i) {
    const FloatVec a = vec_at(&panel.a[i][lane]);
    out.total += a;
    out.along += a * vec_at(&panel.w[i][lane]);
  }
  return out;
}

template <int kHigh, typename P>
static inline void measure_lines(const P& panel, int lane, const Line& first, const Line& second, LineSums* sums) {
  const Limits limits(0.0f, kHigh);
  const FloatVec zero = vec_of(0.0f), inverse_0 = inverse_of(first.scale), inverse_1 = inverse_of(second.scale);
  const FloatVec offset_0 = first.offset, offset_1 = second.offset;
  FloatVec q1_0 = zero, q2_0 = zero, qw_0 = zero, q1_1 = zero, q2_1 = zero, qw_1 = zero;
  for (int i = 0; i < P::kSize; ++i) {
    const FloatVec w = vec_at(&panel.w[i][lane]), a = vec_at(&panel.a[i][lane]);
    const FloatVec q_0 = nearest(limits.clamp((w + offset_0) * inverse_0));
    const FloatVec q_1 = nearest(limits.clamp((w + offset_1) * inverse_1));
    const FloatVec aq_0 = a * q_0, aq_1 = a * q_1;
    q1_0 += aq_0;
    q1_1 += aq_1;
    q2_0 += aq_0 * q_0;
    q2_1 += aq_1 * q_1;
    qw_0 += aq_0 * w;
    qw_1 += aq_1 * w;
  }
  sums[0] = {q1_0, q2_0, qw_0};
  sums[1] = {q1_1, q2_1, qw_1};
}

// What measure_lines rounds to, at the line of every sub-block.
template <int kHigh, typename P>
static inline void line_codes(const P& panel, const float* scale, const float* offset, uint8_t* code) {
  const Limits limits(0.0f, kHigh);
  PanelCodes codes;
  for (int b = 0; b < P::kSubs; ++b) {
    const FloatVec inverse = vec_of(inverse_of(scale[b])), up = vec_of(offset[b]);
    for (int i = b * P::kSize; i < (b + 1) * P::kSize; i += kVectorLanes) {
      const FloatVec q = nearest(limits.clamp((vec_at(panel.flat + i) + up) * inverse));
      codes.set(i, __builtin_convertvector(q, IntVec));
    }
  }
  codes.narrow(code);
}

// Least squares:  S * q2 - M * q1 = qw,  S * q1 - M * total = along.  kSigned: M may be negative.
template <int kSigned>
static inline Line solve_line(const LineSums& s, const LineTotals& t, FloatVec* gain) {
  const FloatVec zero = vec_of(0.0f), tiny = vec_of(1e-30f);
  const FloatVec determinant = s.q2 * t.total - s.q1 * s.q1;
  const IntVec both = determinant > 1e-6f * (s.q2 * t.total);
  const FloatVec scale = (s.qw * t.total - t.along * s.q1) / max(determinant, tiny);
  const FloatVec offset = (scale * s.q1 - t.along) / t.total;
  Line out;
  if (kSigned) {
    const IntVec slanted = both & (scale > zero);
    out.scale = slanted ? scale : zero;
    out.offset = slanted ? offset : -(t.along / t.total);
  } else {
    const IntVec slanted = both & (scale > zero) & (offset > zero);
    // Otherwise the better of a line through zero and a constant.
    const FloatVec through_zero = max(s.qw / max(s.q2, tiny), zero), constant = max(-(t.along / t.total), zero);
    const IntVec flat = -(t.along * constant) > s.qw * through_zero;
    out.scale = slanted ? scale : (flat ? zero : through_zero);
    out.offset = slanted ? offset : (flat ? constant : zero);
  }
  *gain = out.scale * s.qw - out.offset * t.along;
  return out;
}

// The best line of each lane so far, and the sums of its codes.
struct LineFit {
  FloatVec gain;
  Line line;
  LineSums sums;

  // Better by more than rounding: of lines that are equally good the first one stays, which starts at the lowest weight.
  void consider(FloatVec found, const Line& some, const LineSums& some_sums) {
    const IntVec better = found > gain * 1.0000003f;
    gain = better ? found : gain;
    line.scale = better ? some.scale : line.scale;
    line.offset = better ? some.offset : line.offset;
    sums.q1 = better ? some_sums.q1 : sums.q1;
    sums.q2 = better ? some_sums.q2 : sums.q2;
    sums.qw = better ? some_sums.qw : sums.qw;
  }
};

template <int kHigh, int kSigned, typename P>
static inline LineFit search_lines(const P& panel, int lane, const LineTrials& trials, const LineTotals& totals) {
  const FloatVec zero = vec_of(0.0f), high = vec_at(panel.high + lane);
  const FloatVec low = kSigned ? vec_at(panel.low + lane) : min(vec_at(panel.low + lane), zero);
  LineFit best;
  best.gain = vec_of(-1.0f);
  best.line = {zero, zero};
  best.sums = {zero, zero, zero};
  Line at[2];
  LineSums sums[2];
  const auto descend = [&](int rounds) {
    for (int round = 0; round < rounds; ++round) {
      measure_lines<kHigh>(panel, lane, at[0], at[1], sums);
      for (int k = 0; k < 2; ++k) {
        FloatVec gain;
        at[k] = solve_line<kSigned>(sums[k], totals, &gain);
        best.consider(gain, at[k], sums[k]);
      }
    }
  };
  const FloatVec range = max(high - low, zero);
  for (int t = 0; t < trials.starts; ++t) {
    const FloatVec scale = range / (trials.first + static_cast<float>(t) * trials.step);
    const FloatVec at_high = scale * static_cast<float>(kHigh) - high;
    at[0] = {scale, -low};
    at[1] = {scale, kSigned ? at_high : max(at_high, zero)};
    descend(trials.rounds);
  }
  // The best line, and one a little steeper: the descent stops at the first line that repeats itself.
  at[0] = best.line;
  at[1] = {best.line.scale * 0.99f, best.line.offset};
  descend(trials.last_rounds);
  return best;
}

// The pairs of d and dmin that are tried, as parts of the fitted one.
static constexpr float kMinFactors[] = {1.0f, 1.0f, 1.0f, 0.92f, 1.08f, 0.92f, 1.08f, 0.85f, 1.17f};
static constexpr float kDFactors[] = {1.0f, 0.92f, 1.08f, 1.0f, 1.0f, 0.92f, 1.08f, 0.85f, 1.17f};

// A block of 256 weights: weight = d * s * q - dmin * m, with integers s and m in 0 .. F::kMost for each sub-block.
// F gives kSubs, kHigh, kMost, trials(effort) and settling(effort).
template <typename F>
class LineBlock {
 public:
  enum : int { kSubs = F::kSubs };

  uint32_t half_d, half_min;
  int scale[kSubs];
  int offset[kSubs];
  uint8_t code[kPanelSize];

  // False: d or dmin does not fit fp16.
  bool quantise(const float* weights, const float* importance, Effort effort) {
    panel_.load(weights, importance);
    for (int lane = 0; lane < kSubs; lane += kVectorLanes) {
      const LineTotals totals = line_totals(panel_, lane);
      const LineFit fit = search_lines<F::kHigh, 0>(panel_, lane, F::trials(effort), totals);
      put(total_ + lane, totals.total);
      put(along_ + lane, totals.along);
      put(want_scale_ + lane, fit.line.scale);
      put(want_offset_ + lane, fit.line.offset);
      put(q1_ + lane, fit.sums.q1);
      put(q2_ + lane, fit.sums.q2);
    }
    const float most = F::kMost;
    half_d = half_reaching(panel_.unscaled(fit_unit<kSubs>(want_scale_, q2_, 0.0f, most), 0));
    half_min = half_reaching(panel_.unscaled(fit_unit<kSubs>(want_offset_, total_, 0.0f, most), 0));
    if (half_d >= kHalfInfinity || half_min >= kHalfInfinity) return false;
    if (!(value_of(half_d) < kScaleTooCoarse)) half_d = 0;
    if (!(value_of(half_min) < kScaleTooCoarse)) half_min = 0;
    settle(F::settling(effort));
    return true;
  }

 private:
  float value_of(uint32_t half) const { return panel_.scaled(float_from_half(half), 0); }

  // Integers, then d and dmin by least squares; the best of all gives the codes.
  void settle(const Settling& how) {
    double best = 1e300;
    uint32_t best_d = half_d, best_min = half_min;
    const float first_d = value_of(half_d), first_min = value_of(half_min);
    for (int start = 0; start < how.starts; ++start) {
      half_d = half_from_float(panel_.unscaled(first_d * kDFactors[start], 0));
      half_min = half_from_float(panel_.unscaled(first_min * kMinFactors[start], 0));
      for (int round = 0; round < how.rounds; ++round) {
        const uint32_t rounded_d = half_d, rounded_min = half_min;
        choose(value_of(rounded_d), value_of(rounded_min), how.reach);
        const double loss = refit();
        if (!(loss < best)) break;
        best = loss;
        best_d = half_d;
        best_min = half_min;
        for (int b = 0; b < kSubs; ++b) {
          scale[b] = static_cast<int>(s_[b]);
          offset[b] = static_cast<int>(m_[b]);
          step_[b] = value_of(rounded_d) * s_[b];
          up_[b] = value_of(rounded_min) * m_[b];
        }
      }
    }
    half_d = best_d;
    half_min = best_min;
    line_codes<F::kHigh>(panel_, step_, up_, code);
  }

  static FloatVec loss_of(const Line& line, const LineSums& s, const LineTotals& t) {
    return line.scale * (line.scale * s.q2 - 2.0f * (s.qw + line.offset * s.q1)) +
           line.offset * (2.0f * t.along + line.offset * t.total);
  }

  // A sub-block tries the integers s around the scale that it wants, reach more than two to either side, and, for each,
  // the two integers m around the offset that suits this scale.
  void choose(float d, float dmin, int reach) {
    const float inverse_d = inverse_of(d), inverse_min = inverse_of(dmin);
    const Limits limits(0.0f, F::kMost);
    for (int lane = 0; lane < kSubs; lane += kVectorLanes) {
      const LineTotals totals = {vec_at(total_ + lane), vec_at(along_ + lane)};
      const FloatVec below = nearest(limits.clamp(vec_at(want_scale_ + lane) * inverse_d - 0.5f));
      FloatVec least = vec_of(3e38f), s_best = vec_of(0.0f), m_best = s_best;
      LineSums best = {s_best, s_best, s_best};
      for (int k = -reach; k < 2 + reach; ++k) {
        const FloatVec s = limits.clamp(below + static_cast<float>(k)), step = d * s;
        const FloatVec suits = (step * vec_at(q1_ + lane) - totals.along) / totals.total;
        const FloatVec m_0 = nearest(limits.clamp(suits * inverse_min - 0.5f));
        const FloatVec m_1 = min(m_0 + 1.0f, limits.high);
        const Line lines[2] = {{step, dmin * m_0}, {step, dmin * m_1}};
        LineSums sums[2];
        measure_lines<F::kHigh>(panel_, lane, lines[0], lines[1], sums);
        for (int j = 0; j < 2; ++j) {
          const FloatVec loss = loss_of(lines[j], sums[j], totals);
          const IntVec better = loss < least;
          least = better ? loss : least;
          s_best = better ? s : s_best;
          m_best = better ? (j ? m_1 : m_0) : m_best;
          best.q1 = better ? sums[j].q1 : best.q1;
          best.q2 = better ? sums[j].q2 : best.q2;
          best.qw = better ? sums[j].qw : best.qw;
        }
      }
      put(s_ + lane, s_best);
      put(m_ + lane, m_best);
      put(sum_q1_ + lane, best.q1);
      put(sum_q2_ + lane, best.q2);
      put(sum_qw_ + lane, best.qw);
    }
  }

  // Least squares for d and dmin with the codes and the integers fixed: they stay as they were if rounding them to fp16
  // makes the sum larger. Returns what the error is above sum(importance * w^2).
  double refit() {
    double ss = 0.0, sm = 0.0, mm = 0.0, ws = 0.0, wm = 0.0;
    for (int b = 0; b < kSubs; ++b) {
      const double s = static_cast<double>(s_[b]), m = static_cast<double>(m_[b]);
      ss += s * s * static_cast<double>(sum_q2_[b]);
      sm -= s * m * static_cast<double>(sum_q1_[b]);
      mm += m * m * static_cast<double>(total_[b]);
      ws += s * static_cast<double>(sum_qw_[b]);
      wm -= m * static_cast<double>(along_[b]);
    }
    const auto loss = [&](uint32_t some_d, uint32_t some_min) {
      const double d = static_cast<double>(value_of(some_d)), dmin = static_cast<double>(value_of(some_min));
      return d * (d * ss - 2.0 * ws) + dmin * (dmin * mm - 2.0 * wm) + 2.0 * d * dmin * sm;
    };
    const double determinant = ss * mm - sm * sm, before = loss(half_d, half_min);
    double d = ss > 0.0 ? ws / ss : 0.0, dmin = 0.0;
    if (determinant > 1e-9 * ss * mm) {
      d = (ws * mm - wm * sm) / determinant;
      dmin = (wm * ss - ws * sm) / determinant;
    } else if (mm > 0.0 && !(ss > 0.0)) {
      dmin = wm / mm;
    }
    if (d < 0.0 || dmin < 0.0) return before;
    const uint32_t fitted_d = half_from_float(panel_.unscaled(static_cast<float>(d), 0));
    const uint32_t fitted_min = half_from_float(panel_.unscaled(static_cast<float>(dmin), 0));
    if (fitted_d >= kHalfInfinity || fitted_min >= kHalfInfinity) return before;
    const double after = loss(fitted_d, fitted_min);
    if (!(after < before)) return before;
    half_d = fitted_d;
    half_min = fitted_min;
    return after;
  }

  Panel<kSubs, 1> panel_;
  alignas(64) float total_[kSubs], along_[kSubs];  // sums of importance and of importance * w
  alignas(64) float want_scale_[kSubs], want_offset_[kSubs], q1_[kSubs], q2_[kSubs];  // a sub-block's own best line
  alignas(64) float step_[kSubs], up_[kSubs];  // the best line that can be stored
  alignas(64) float s_[kSubs], m_[kSubs], sum_q1_[kSubs], sum_q2_[kSubs], sum_qw_[kSubs];  // the chosen integers
};

// Blocks of 32 weights, eight at a time: weight = d * q + m with an fp16 d and m.
template <int kHigh>
class LineBlocks {
 public:
  enum : int { kBlocks = 8 };

  uint32_t half_d[kBlocks], half_m[kBlocks];
  uint8_t code[kPanelSize];

  // False: a d or m does not fit fp16.
  bool quantise(const float* weights, const float* importance, const LineTrials& trials) {
    panel_.load(weights, importance);
    for (int lane = 0; lane < kBlocks; lane += kVectorLanes) {
      const LineTotals totals = line_totals(panel_, lane);
      const LineFit fit = search_lines<kHigh, 1>(panel_, lane, trials, totals);
      put(total_ + lane, totals.total);
      put(along_ + lane, totals.along);
      put(scale_ + lane, fit.line.scale);
      put(offset_ + lane, fit.line.offset);
    }
    for (int b = 0; b < kBlocks; ++b) {
      half_m[b] = half_from_float(panel_.unscaled(panel_.base[b] - offset_[b], b));
      if ((half_m[b] & 0x7fffu) >= kHalfInfinity) return false;
      offset_[b] = offset_of(half_m[b], b);
    }
    // The scale that suits the rounded offset.
    measure();
    for (int b = 0; b < kBlocks; ++b) {
      const float d = q2_[b] > 0.0f ? (qw_[b] + offset_[b] * q1_[b]) / q2_[b] : 0.0f;
      half_d[b] = half_reaching(panel_.unscaled(d > 0.0f ? d : 0.0f, b));
      if (half_d[b] >= kHalfInfinity) return false;
      scale_[b] = panel_.scaled(float_from_half(half_d[b]), b);
    }
    measure();
    line_codes<kHigh>(panel_, scale_, offset_, code);
    for (int b = 0; b < kBlocks; ++b) refit(b);
    return true;
  }

 private:
  float offset_of(uint32_t half, int b) const { return panel_.base[b] - panel_.scaled(float_from_half(half), b); }

  void measure() {
    for (int lane = 0; lane < kBlocks; lane += kVectorLanes) {
      const Line line = {vec_at(scale_ + lane), vec_at(offset_ + lane)};
      LineSums sums[2];
      measure_lines<kHigh>(panel_, lane, line, line, sums);
      put(q1_ + lane, sums[0].q1);
      put(q2_ + lane, sums[0].q2);
      put(qw_ + lane, sums[0].qw);
    }
  }

  // Least squares for d and m with the codes fixed, if rounding to fp16 leaves them better than they were.
  void refit(int b) {
    const double q1 = static_cast<double>(q1_[b]), q2 = static_cast<double>(q2_[b]), qw = static_cast<double>(qw_[b]);
    const double total = static_cast<double>(total_[b]), along = static_cast<double>(along_[b]);
    double best = 1e300;
    const uint32_t first_d = half_d[b], first_m = half_m[b];
    const auto consider = [&](uint32_t some_d, uint32_t some_m) {
      if (some_d >= kHalfInfinity || (some_m & 0x7fffu) >= kHalfInfinity) return;
      const double d = static_cast<double>(panel_.scaled(float_from_half(some_d), b));
      const double m = static_cast<double>(offset_of(some_m, b));
      const double loss = d * (d * q2 - 2.0 * (qw + m * q1)) + m * (2.0 * along + m * total);
      if (!(loss < best)) return;
      best = loss;
      half_d[b] = some_d;
      half_m[b] = some_m;
    };
    const auto d_for = [&](uint32_t some_m) {
      const double d = (qw + static_cast<double>(offset_of(some_m, b)) * q1) / q2;
      return half_from_float(panel_.unscaled(d > 0.0 ? static_cast<float>(d) : 0.0f, b));
    };
    consider(first_d, first_m);
    const double determinant = q2 * total - q1 * q1;
    if (!(determinant > 1e-9 * q2 * total)) return;
    consider(d_for(first_m), first_m);
    const double offset = ((qw * total - along * q1) / determinant * q1 - along) / total;
    const uint32_t fitted_m = half_from_float(panel_.unscaled(panel_.base[b] - static_cast<float>(offset), b));
    consider(d_for(fitted_m), fitted_m);
  }

  Panel<kBlocks, kBlocks, 1> panel_;
  alignas(64) float total_[kBlocks], along_[kBlocks];  // sums of importance and of importance * w
  alignas(64) float scale_[kBlocks], offset_[kBlocks];
  alignas(64) float q1_[kBlocks], q2_[kBlocks], qw_[kBlocks];
};
