// One fp16 scale d and small integers s for the sub-blocks of a block, fitted to the scales that the sub-blocks want.
//
//   minimise over d, s[b]:  sum_b weight[b] * (want[b] - d * unit(s[b]))^2      unit(s) = (s + offset) * step
//
// want[b] is a sub-block's own best scale and weight[b] the curvature of its error around it (sum of importance *
// code^2), so this is the block's error to second order. d is tried with the largest wanted scale on each of the
// integers, every try is finished by a least-squares d for its integers, and the best one wins.

struct ScaleUnits {
  float offset;
  float step;
  int max_code;

  float unit(int s) const { return (static_cast<float>(s) + offset) * step; }

  // The integer that brackets a wanted scale together with the next one; d is positive.
  int below(float want, float d) const {
    const float position = want / (d * step) - offset;
    if (!(position > 0.0f)) return 0;
    return position >= static_cast<float>(max_code) ? max_code - 1 : static_cast<int>(position);
  }

  // Unit of the nearest integer for a wanted scale, given as want / (d * step).
  float nearest_unit(float quotient) const {
    const float position = quotient - offset + 0.5f;
    int code = static_cast<int>(position > 0.0f ? position : 0.0f);
    return unit(code < max_code ? code : max_code);
  }
};

enum : int { kMostSubs = 16, kMostAnchors = 16 };

// At most kMostSubs wanted scales, not negative.
static inline float fit_block_scale(const ScaleUnits& units, const float* want, const float* weight, int n) {
  float largest = 0.0f;
  for (int b = 0; b < n; ++b) largest = want[b] > largest ? want[b] : largest;
  if (!(largest > 0.0f)) return 0.0f;
  float best_d = largest / units.unit(units.max_code);
  float best_error = 3e38f;
  for (int anchor = units.max_code; anchor >= 0 && anchor > units.max_code - kMostAnchors; --anchor) {
    if (!(units.unit(anchor) > 0.0f)) break;
    float d = largest / units.unit(anchor);
    for (int round = 0; round < 2; ++round) {
      float unit[kMostSubs];
      float along = 0.0f, square = 0.0f, rest = 0.0f;
      const float inverse = 1.0f / (d * units.step);
      for (int b = 0; b < n; ++b) {
        // 2^20 is past every range of integers and safe to convert.
        const float quotient = want[b] * inverse;
        unit[b] = units.nearest_unit(quotient < 0x1p20f ? quotient : 0x1p20f);
        along += weight[b] * want[b] * unit[b];
        square += weight[b] * unit[b] * unit[b];
      }
      if (!(square > 0.0f)) break;
      const float fitted = along / square;
      for (int b = 0; b < n; ++b) {
        const float off = want[b] - fitted * unit[b];
        rest += weight[b] * off * off;
      }
      if (rest < best_error) {
        best_error = rest;
        best_d = fitted;
      }
      d = fitted;
    }
  }
  return best_d;
}
