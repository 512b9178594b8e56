// One fp16 scale d and small integers s for the sub-blocks of a codebook block, fitted to the scales that the
// sub-blocks want.
//
//   minimise over d, s[b]:  sum_b weight[b] * (want[b] - d * unit(s[b]))^2      unit(s) = (s + offset) * step
//
// want[b] is a sub-block's own best scale and weight[b] the curvature of its error around it (sum of importance *
// code^2), so this is the block's error to second order. d is tried with the largest wanted scale on each of the
// integers, one lane a try; every try is refined by the least-squares d for its integers. With the integers fixed, the
// sum falls by along^2 / square, so the largest of these come first.

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

enum : int { kMostScales = 8 };

// The best values of d, best first; returns how many, at most n <= kMostScales. Wanted scales are not negative; none
// above zero gives the one d of zero.
template <int kSubs>
static inline int fit_grid_scale(const GridUnits& units, const Floats<kSubs>& want, const Floats<kSubs>& weight, int n,
                                 float* best) {
  enum : int { kTries = 16 };
  using Tries = Floats<kTries>;
  const float last = static_cast<float>(units.max_code);
  float largest = 0.0f;
  for (int b = 0; b < kSubs; ++b) largest = want.get(b) > largest ? want.get(b) : largest;
  best[0] = 0.0f;
  if (!(largest > 0.0f)) return 1;
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
  int found = 0;
  while (found < n) {
    int top = 0;
    for (int t = 1; t < kTries; ++t) top = best_gain.get(t) > best_gain.get(top) ? t : top;
    if (best_gain.get(top) < 0.0f) break;
    const float chosen = best_d.get(top);
    best[found++] = chosen;
    for (int t = 0; t < kTries; ++t) {
      // Tries that ended at the same integers.
      if (fabsf(best_d.get(t) - chosen) <= 1e-3f * chosen) best_gain.set(t, -1.0f);
    }
  }
  return found;
}
