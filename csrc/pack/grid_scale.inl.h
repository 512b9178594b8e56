// One fp16 scale d and small integers s for the sub-blocks of a codebook block, fitted to the scales that the
// sub-blocks want.
//
//   minimise over d, s[b]:  sum_b weight[b] * (want[b] - d * unit(s[b]))^2      unit(s) = (s + offset) * step
//
// want[b] is a sub-block's own best scale and weight[b] the curvature of its error around it (sum of importance *
// code^2), so this is the block's error to second order. d is tried with the largest wanted scale on each of the
// integers, one lane a try; every try is refined by the least-squares d for its integers. With the integers fixed, the
// sum falls by along^2 / square, so the largest of these wins.

struct GridUnits {
  float offset;
  float step;
  int max_code;

  float unit(int s) const { return (static_cast<float>(s) + offset) * step; }
};

// Whole numbers towards zero, of numbers from 0 to 2^31.
template <int n>
static inline Floats<n> truncated(const Floats<n>& x) {
  Floats<n> out;
  for (int i = 0; i < Floats<n>::kVectors; ++i) {
    out.v[i] = __builtin_convertvector(__builtin_convertvector(x.v[i], IntVec), FloatVec);
  }
  return out;
}

template <int n>
static inline Floats<n> clamped(const Floats<n>& x, float low, float high) {
  Floats<n> out;
  for (int i = 0; i < Floats<n>::kVectors; ++i) out.v[i] = min(max(x.v[i], FloatVec{} + low), FloatVec{} + high);
  return out;
}

// Wanted scales that are not negative; zero if there is none above.
template <int kSubs>
static inline float fit_grid_scale(const GridUnits& units, const Floats<kSubs>& want, const Floats<kSubs>& weight) {
  enum : int { kTries = 16 };
  using Tries = Floats<kTries>;
  const float last = static_cast<float>(units.max_code);
  float largest = 0.0f;
  for (int b = 0; b < kSubs; ++b) largest = want.get(b) > largest ? want.get(b) : largest;
  if (!(largest > 0.0f)) return 0.0f;
  Tries d, best_d, best_gain = Tries::all(-1.0f);
  for (int t = 0; t < kTries; ++t) d.set(t, largest / units.unit(t < units.max_code ? units.max_code - t : 0));
  best_d = d;
  for (int round = 0; round < 2; ++round) {
    Tries along = Tries::all(0.0f), square = along;
    const Tries inverse = Tries::all(1.0f / units.step) / d;
    for (int b = 0; b < kSubs; ++b) {
      const Tries position = inverse * want.get(b) + Tries::all(0.5f - units.offset);
      const Tries unit = (truncated(clamped(position, 0.0f, last)) + Tries::all(units.offset)) * units.step;
      const Tries weighted = unit * weight.get(b);
      along = along + weighted * want.get(b);
      square = square + weighted * unit;
    }
    d = along / square;
    const Tries gain = along * d;
    const Ints<kTries> better = less(best_gain, gain);
    best_gain = select(better, gain, best_gain);
    best_d = select(better, d, best_d);
  }
  int best = 0;
  for (int t = 1; t < kTries; ++t) best = best_gain.get(t) > best_gain.get(best) ? t : best;
  return best_d.get(best);
}
