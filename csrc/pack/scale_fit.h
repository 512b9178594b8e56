// One fp16 scale d and small integers s for the sub-blocks of a block, fitted to the scales that the sub-blocks want.
//
//   minimise over d, s[b]:  sum_b weight[b] * (want[b] - d * unit(s[b]))^2      unit(s) = (s + offset) * step
//
// want[b] is a sub-block's own best scale and weight[b] the curvature of its error around it (sum of importance *
// code^2), so this is the block's error to second order. d is tried with the largest wanted scale on each of the
// integers, every try is finished by a least-squares d for its integers, and the best one wins.
#pragma once
#include "half.h"

namespace lutkern {

struct ScaleUnits {
  float offset;
  float step;
  int max_code;

  float unit(int s) const { return (static_cast<float>(s) + offset) * step; }

  // Where a wanted scale lies between the integers; d is positive.
  float position(float want, float d) const { return want / (d * step) - offset; }

  int nearest(float want, float d) const {
    const float p = position(want, d);
    if (!(p > 0.0f)) return 0;
    return p >= static_cast<float>(max_code) ? max_code : static_cast<int>(p + 0.5f);
  }

  // The integer that brackets a wanted scale together with the next one.
  int below(float want, float d) const {
    const float p = position(want, d);
    if (!(p > 0.0f)) return 0;
    return p >= static_cast<float>(max_code) ? max_code - 1 : static_cast<int>(p);
  }
};

static inline float fit_block_scale(const ScaleUnits& units, const float* want, const float* weight, int n) {
  float largest = 0.0f;
  for (int b = 0; b < n; ++b) largest = want[b] > largest ? want[b] : largest;
  if (!(largest > 0.0f)) return 0.0f;
  float best_d = largest / units.unit(units.max_code);
  float best_error = 3e38f;
  for (int anchor = 0; anchor <= units.max_code; ++anchor) {
    float d = largest / units.unit(anchor);
    for (int round = 0; round < 2; ++round) {
      float along = 0.0f, square = 0.0f, rest = 0.0f;
      for (int b = 0; b < n; ++b) {
        const float u = units.unit(units.nearest(want[b], d));
        along += weight[b] * want[b] * u;
        square += weight[b] * u * u;
      }
      if (!(square > 0.0f)) break;
      const float fitted = along / square;
      for (int b = 0; b < n; ++b) {
        const float off = want[b] - fitted * units.unit(units.nearest(want[b], d));
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

}  // namespace lutkern
