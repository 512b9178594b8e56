// Q2_K, Q4_K, Q6_K: float -> blocks.
//
//   q2_k  weight = d * s * code - dmin * m     code 0..3,  s and m 4 bits for 16 weights
//   q4_k  weight = d * s * code - dmin * m     code 0..15, s and m 6 bits for 32 weights
//   q6_k  weight = d * s * code                code -32..31, s int8 for 16 weights
//
//   minimise  sum(importance * (w - weight)^2)
//
// One step serves everything: round the weights of a sub-block to codes at some scale and offset, measure the error,
// and solve least squares for the scale and offset that suit these codes best. It runs on 32 lanes at a time: a lane is
// one sub-block with one trial.
//
// 1. Starts: the sub-block's range divided into fewer or more steps than there are codes, held at its low or its high
//    end. From each, and at last from the best, the step is repeated a few times; a sub-block keeps its best scale and
//    offset.
// 2. d and dmin are fitted to what the sub-blocks want (scale_fit.h) and rounded to fp16.
// 3. A sub-block tries the two integers s around the scale that it wants and, for each, the two integers m around the
//    offset that suits this scale, and keeps the best pair.
// 4. A last least squares gives d and dmin for all codes, s and m; rounded to fp16, it stays if the error falls.

enum : int { kTrialLanes = 32 };

struct alignas(64) TrialLanes {
  float v[kTrialLanes];
};

// weight = scale * code - offset
struct Fit {
  TrialLanes scale;
  TrialLanes offset;
};

// Over the weights of a lane, with a the importance and q the code.
struct Sums {
  TrialLanes error;  // sum a * (w - scale * q + offset)^2
  TrialLanes q1;     // sum a * q
  TrialLanes q2;     // sum a * q^2
  TrialLanes qw;     // sum a * q * w
};

// Nearest integer, ties to even, of a magnitude below 2^22: adding 1.5 * 2^23 rounds, taking it away again is exact.
static inline float nearest_integer(float x) { return (x + 12582912.0f) - 12582912.0f; }

static inline float reciprocal(float scale) { return fabsf(scale) > 1e-30f ? 1.0f / scale : 0.0f; }

// F gives kSubs, kLow and kHigh (range of codes), kOffset (there is a second term), kUnits (integers s and m), and the
// starts: kStarts trials, two for each number of steps, kFirstSteps and on by kMoreSteps, with kRounds repetitions.
template <typename F>
class KBlock {
 public:
  enum : int { kSubs = F::kSubs, kSize = 256 / F::kSubs, kCopies = kTrialLanes / F::kSubs, kLastRounds = 2 };

  uint32_t half_d, half_min;
  int scale_code[kSubs];
  int offset_code[kSubs];
  int8_t code[256];

  // False: d or dmin does not fit fp16.
  bool quantise(const float* weights, const float* importance) {
    half_d = half_min = 0;
    memset(scale_code, 0, sizeof scale_code);
    memset(offset_code, 0, sizeof offset_code);
    memset(code, 0, sizeof code);
    if (!in_.load(weights, importance)) return true;
    arrange();
    Wanted wanted;
    search(&wanted);
    return settle(wanted);
  }

 private:
  struct Wanted {
    float error[kSubs];
    float scale[kSubs];
    float offset[kSubs];

    void forget() {
      for (int b = 0; b < kSubs; ++b) {
        error[b] = 3e38f;
        scale[b] = offset[b] = 0.0f;
      }
    }
  };

  // Lane l is sub-block l % kSubs.
  void arrange() {
    for (int l = 0; l < kTrialLanes; ++l) {
      const int first = l % kSubs * kSize;
      total_.v[l] = along_.v[l] = low_.v[l] = high_.v[l] = 0.0f;
      for (int i = 0; i < kSize; ++i) {
        const float w = in_.w[first + i], a = in_.importance[first + i];
        w_[i].v[l] = w;
        a_[i].v[l] = a;
        total_.v[l] += a;
        along_.v[l] += a * w;
        low_.v[l] = w < low_.v[l] ? w : low_.v[l];
        high_.v[l] = w > high_.v[l] ? w : high_.v[l];
      }
    }
  }

  static float code_of(float w, float inverse, float offset) {
    float q = (w + offset) * inverse;
    q = q < F::kHigh ? q : F::kHigh;
    q = q > F::kLow ? q : F::kLow;
    return nearest_integer(q);
  }

  void measure(const Fit& fit, Sums* sums) const {
    TrialLanes inverse, position;
    for (int l = 0; l < kTrialLanes; ++l) {
      inverse.v[l] = reciprocal(fit.scale.v[l]);
      sums->error.v[l] = sums->q1.v[l] = sums->q2.v[l] = sums->qw.v[l] = 0.0f;
    }
    for (int i = 0; i < kSize; ++i) {
      const TrialLanes& w = w_[i];
      const TrialLanes& a = a_[i];
      // A loop for each limit: next to one another, or to what follows, the comparisons become branches.
      for (int l = 0; l < kTrialLanes; ++l) {
        const float at = (w.v[l] + fit.offset.v[l]) * inverse.v[l];
        position.v[l] = at < F::kHigh ? at : F::kHigh;
      }
      for (int l = 0; l < kTrialLanes; ++l) position.v[l] = position.v[l] > F::kLow ? position.v[l] : F::kLow;
      for (int l = 0; l < kTrialLanes; ++l) {
        const float q = nearest_integer(position.v[l]);
        const float off = w.v[l] - (fit.scale.v[l] * q - fit.offset.v[l]);
        const float aq = a.v[l] * q;
        sums->error.v[l] += a.v[l] * off * off;
        sums->q1.v[l] += aq;
        sums->q2.v[l] += aq * q;
        sums->qw.v[l] += aq * w.v[l];
      }
    }
  }

  // Least squares:  S q2 - M q1 = qw,  S q1 - M total = along;  M is not negative.
  void solve(const Sums& sums, Fit* fit) const {
    for (int l = 0; l < kTrialLanes; ++l) {
      const float q1 = sums.q1.v[l], q2 = sums.q2.v[l], qw = sums.qw.v[l];
      const float determinant = q2 * total_.v[l] - q1 * q1;
      float scale = q2 > 0.0f ? qw / q2 : 0.0f, offset = 0.0f;
      if (F::kOffset && determinant > 1e-6f * q2 * total_.v[l]) {
        const float both = (qw * total_.v[l] - along_.v[l] * q1) / determinant;
        const float rest = (both * q1 - along_.v[l]) / total_.v[l];
        if (both > 0.0f && rest > 0.0f) {
          scale = both;
          offset = rest;
        }
      }
      fit->scale.v[l] = F::kOffset && scale < 0.0f ? 0.0f : scale;
      fit->offset.v[l] = offset;
    }
  }

  static void keep_better(const Sums& sums, const Fit& fit, Wanted* best) {
    for (int l = 0; l < kTrialLanes; ++l) {
      const int b = l % kSubs;
      if (!(sums.error.v[l] < best->error[b])) continue;
      best->error[b] = sums.error.v[l];
      best->scale[b] = fit.scale.v[l];
      best->offset[b] = fit.offset.v[l];
    }
  }

  void start(int first, Fit* fit) const {
    for (int l = 0; l < kTrialLanes; ++l) {
      const int trial = first + l / kSubs;
      const float steps = F::kFirstSteps + F::kMoreSteps * static_cast<float>(trial / 2);
      const bool at_high = trial % 2 != 0;
      const float low = low_.v[l], high = high_.v[l];
      if (F::kOffset) {
        fit->scale.v[l] = (high - low) / steps;
        const float offset = at_high ? fit->scale.v[l] * F::kHigh - high : -low;
        fit->offset.v[l] = offset > 0.0f ? offset : 0.0f;
      } else {
        const float largest = -low > high ? low : high;
        fit->scale.v[l] = (at_high ? largest : -largest) / steps;
        fit->offset.v[l] = 0.0f;
      }
    }
  }

  // Measures, keeps what is better, and moves on to the least-squares answer, rounds times.
  void descend(int rounds, Fit* fit, Wanted* best) const {
    Sums sums;
    for (int round = 0; round < rounds; ++round) {
      measure(*fit, &sums);
      keep_better(sums, *fit, best);
      solve(sums, fit);
    }
  }

  void search(Wanted* best) const {
    Fit fit;
    best->forget();
    for (int first = 0; first < F::kStarts; first += kCopies) {
      start(first, &fit);
      descend(F::kRounds, &fit, best);
    }
    spread(best->scale, &fit.scale);
    spread(best->offset, &fit.offset);
    descend(kLastRounds, &fit, best);
  }

  float value_of(uint32_t half) const { return in_.scaled(float_from_half(half)); }

  // The same for every copy.
  static void spread(const float* of_sub, TrialLanes* lanes) {
    for (int l = 0; l < kTrialLanes; ++l) lanes->v[l] = of_sub[l % kSubs];
  }

  static float sum(const float* of_sub) {
    float total = 0.0f;
    for (int b = 0; b < kSubs; ++b) total += of_sub[b];
    return total;
  }

  // d and dmin, then the integers, then d and dmin again.
  bool settle(const Wanted& wanted) {
    Fit fit;
    Sums sums;
    float magnitude[kSubs];
    spread(wanted.scale, &fit.scale);
    spread(wanted.offset, &fit.offset);
    measure(fit, &sums);
    for (int b = 0; b < kSubs; ++b) magnitude[b] = fabsf(wanted.scale[b]);
    half_d = half_reaching(in_.unscaled(fit_block_scale(F::kUnits, magnitude, sums.q2.v, kSubs)));
    if (F::kOffset) {
      half_min = half_reaching(in_.unscaled(fit_block_scale(F::kUnits, wanted.offset, total_.v, kSubs)));
    }
    if (half_d >= kHalfInfinity || half_min >= kHalfInfinity) return false;
    if (!(value_of(half_d) < kTooCoarse)) half_d = 0;
    if (!(value_of(half_min) < kTooCoarse)) half_min = 0;

    Wanted best;
    choose_integers(wanted, sums, &best);
    const uint32_t chosen_d = half_d, chosen_min = half_min;
    if (!refit()) return false;
    decode(&fit);
    measure(fit, &sums);
    if (!(sum(sums.error.v) < sum(best.error))) {
      half_d = chosen_d;
      half_min = chosen_min;
      decode(&fit);
    }
    for (int i = 0; i < 256; ++i) {
      const int b = i / kSize;
      code[i] = static_cast<int8_t>(code_of(in_.w[i], reciprocal(fit.scale.v[b]), fit.offset.v[b]));
    }
    return true;
  }

  // What the chosen integers stand for.
  void decode(Fit* fit) const {
    const float d = value_of(half_d), dmin = value_of(half_min);
    for (int l = 0; l < kTrialLanes; ++l) {
      fit->scale.v[l] = d * static_cast<float>(scale_code[l % kSubs]);
      fit->offset.v[l] = dmin * static_cast<float>(offset_code[l % kSubs]);
    }
  }

  // Trial t of a sub-block: the lower or upper s by bit 0, the lower or upper m by bit 1. sums: of the wanted codes.
  void choose_integers(const Wanted& wanted, const Sums& sums, Wanted* best) {
    const float d = value_of(half_d), dmin = value_of(half_min);
    best->forget();
    for (int first = 0; first < (F::kOffset ? 4 : 2); first += kCopies) {
      int s[kTrialLanes], m[kTrialLanes];
      Fit fit;
      Sums found;
      for (int l = 0; l < kTrialLanes; ++l) {
        const int b = l % kSubs, trial = first + l / kSubs;
        s[l] = d > 0.0f ? F::kUnits.below(fabsf(wanted.scale[b]), d) + trial % 2 : 0;
        if (wanted.scale[b] < 0.0f) s[l] = -s[l];
        fit.scale.v[l] = d * static_cast<float>(s[l]);
        const float suits = (fit.scale.v[l] * sums.q1.v[b] - along_.v[b]) / total_.v[b];
        m[l] = F::kOffset && dmin > 0.0f ? F::kUnits.below(suits, dmin) + trial / 2 % 2 : 0;
        fit.offset.v[l] = dmin * static_cast<float>(m[l]);
      }
      measure(fit, &found);
      for (int l = 0; l < kTrialLanes; ++l) {
        if (!(found.error.v[l] < best->error[l % kSubs])) continue;
        scale_code[l % kSubs] = s[l];
        offset_code[l % kSubs] = m[l];
        best->error[l % kSubs] = found.error.v[l];
      }
    }
  }

  // Least squares for d and dmin with the codes and the integers fixed.
  bool refit() {
    Fit fit;
    Sums sums;
    double ss = 0.0, sm = 0.0, mm = 0.0, ws = 0.0, wm = 0.0;
    decode(&fit);
    measure(fit, &sums);
    for (int b = 0; b < kSubs; ++b) {
      const double s = scale_code[b], m = offset_code[b];
      ss += s * s * static_cast<double>(sums.q2.v[b]);
      sm -= s * m * static_cast<double>(sums.q1.v[b]);
      mm += m * m * static_cast<double>(total_.v[b]);
      ws += s * static_cast<double>(sums.qw.v[b]);
      wm -= m * static_cast<double>(along_.v[b]);
    }
    const double determinant = ss * mm - sm * sm;
    double d = ss > 0.0 ? ws / ss : 0.0, dmin = 0.0;
    if (determinant > 1e-9 * ss * mm) {
      d = (ws * mm - wm * sm) / determinant;
      dmin = (wm * ss - ws * sm) / determinant;
    }
    if (!(d > 0.0) || dmin < 0.0) return true;
    half_d = half_from_float(in_.unscaled(static_cast<float>(d)));
    half_min = half_from_float(in_.unscaled(static_cast<float>(dmin)));
    return half_d < kHalfInfinity && half_min < kHalfInfinity;
  }

  BlockInput<256> in_;
  TrialLanes w_[kSize], a_[kSize];
  TrialLanes total_;       // sum of importance
  TrialLanes along_;       // sum of importance * w
  TrialLanes low_, high_;  // range of the weights, widened to hold zero
};

struct Two {
  enum : int { kSubs = 16, kOffset = 1, kStarts = 12, kRounds = 3 };
  static constexpr float kLow = 0.0f, kHigh = 3.0f, kFirstSteps = 2.0f, kMoreSteps = 0.35f;
  static constexpr ScaleUnits kUnits = {0.0f, 1.0f, 15};
};

struct Four {
  enum : int { kSubs = 8, kOffset = 1, kStarts = 12, kRounds = 3 };
  static constexpr float kLow = 0.0f, kHigh = 15.0f, kFirstSteps = 12.0f, kMoreSteps = 1.0f;
  static constexpr ScaleUnits kUnits = {0.0f, 1.0f, 63};
};

struct Six {
  enum : int { kSubs = 16, kOffset = 0, kStarts = 8, kRounds = 1 };
  static constexpr float kLow = -32.0f, kHigh = 31.0f, kFirstSteps = 29.0f, kMoreSteps = 1.0f;
  static constexpr ScaleUnits kUnits = {0.0f, 1.0f, 127};
};

void store(const KBlock<Two>& from, Q2K* to) {
  store_u16(to->d, from.half_d);
  store_u16(to->dmin, from.half_min);
  for (int b = 0; b < 16; ++b) to->scale[b] = static_cast<uint8_t>(from.scale_code[b] | from.offset_code[b] << 4);
  for (int h = 0; h < 2; ++h) {
    for (int m = 0; m < 32; ++m) {
      const int8_t* c = from.code + 128 * h + m;
      to->code[32 * h + m] = static_cast<uint8_t>(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
    }
  }
}

void store(const KBlock<Four>& from, Q4K* to) {
  store_u16(to->d, from.half_d);
  store_u16(to->dmin, from.half_min);
  for (int k = 0; k < 4; ++k) {
    const int s = from.scale_code[k + 4], m = from.offset_code[k + 4];
    to->scale.byte[k] = static_cast<uint8_t>(from.scale_code[k] | (s >> 4) << 6);
    to->scale.byte[4 + k] = static_cast<uint8_t>(from.offset_code[k] | (m >> 4) << 6);
    to->scale.byte[8 + k] = static_cast<uint8_t>((s & 15) | (m & 15) << 4);
  }
  for (int h = 0; h < 4; ++h) {
    for (int m = 0; m < 32; ++m) {
      const int8_t* c = from.code + 64 * h + m;
      to->code[32 * h + m] = static_cast<uint8_t>(c[0] | c[32] << 4);
    }
  }
}

void store(const KBlock<Six>& from, Q6K* to) {
  uint8_t code[256];
  for (int i = 0; i < 256; ++i) code[i] = static_cast<uint8_t>(from.code[i] + 32);
  for (int h = 0; h < 2; ++h) {
    const uint8_t* c = code + 128 * h;
    for (int m = 0; m < 64; ++m) {
      to->low[64 * h + m] = static_cast<uint8_t>((c[m] & 15) | (c[m + 64] & 15) << 4);
    }
    for (int m = 0; m < 32; ++m) {
      to->high[32 * h + m] =
          static_cast<uint8_t>(c[m] >> 4 | c[m + 32] >> 4 << 2 | c[m + 64] >> 4 << 4 | c[m + 96] >> 4 << 6);
    }
  }
  for (int b = 0; b < 16; ++b) to->scale[b] = static_cast<uint8_t>(from.scale_code[b]);
  store_u16(to->d, from.half_d);
}

template <typename F, typename Block>
bool pack_row(const float* w, const float* importance, int64_t cols, Effort, uint8_t* blocks) {
  KBlock<F> block;
  for (int64_t c = 0; c < cols; c += Block::kBlockSize, blocks += Block::kBlockBytes) {
    if (!block.quantise(w + c, importance + c)) return false;
    store(block, reinterpret_cast<Block*>(blocks));
  }
  return true;
}

template <>
constexpr Packer packer_of<Q2K>() {
  return {pack_row<Two, Q2K>, nullptr};
}

template <>
constexpr Packer packer_of<Q4K>() {
  return {pack_row<Four, Q4K>, nullptr};
}

template <>
constexpr Packer packer_of<Q6K>() {
  return {pack_row<Six, Q6K>, nullptr};
}
