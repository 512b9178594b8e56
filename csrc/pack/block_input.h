// A block's weights and importances, scaled by powers of two so that float arithmetic neither overflows nor underflows.
#pragma once
#include <math.h>
#include <stdint.h>

namespace lutkern {

// Importance below this fraction of the block's largest counts as this fraction: it keeps every divisor positive.
static constexpr float kLeastImportance = 1e-10f;

template <int kSize>
struct BlockInput {
  alignas(64) float w[kSize];           // w * 2^-exponent: magnitudes up to 1
  alignas(64) float importance[kSize];  // up to 1
  int exponent;
  float energy;  // sum of importance * w^2, in the scaled units

  // False: every weight is zero.
  bool load(const float* weights, const float* weights_importance) {
    float largest = 0.0f, most = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      const float magnitude = fabsf(weights[i]);
      largest = magnitude > largest ? magnitude : largest;
      most = weights_importance[i] > most ? weights_importance[i] : most;
    }
    if (!(largest > 0.0f)) return false;
    // 2^-exponent in two factors: one alone overflows for the smallest subnormals.
    frexpf(largest, &exponent);
    const float half_way = ldexpf(1.0f, -(exponent / 2));
    const float rest = ldexpf(1.0f, -(exponent - exponent / 2));
    int importance_exponent;
    frexpf(most, &importance_exponent);
    const float importance_half_way = ldexpf(1.0f, -(importance_exponent / 2));
    const float importance_rest = ldexpf(1.0f, -(importance_exponent - importance_exponent / 2));
    energy = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      w[i] = weights[i] * half_way * rest;
      const float share = weights_importance[i] * importance_half_way * importance_rest;
      importance[i] = share > kLeastImportance ? share : kLeastImportance;
    }
    for (int i = 0; i < kSize; ++i) energy += importance[i] * w[i] * w[i];
    return true;
  }

  // A scale in scaled units as the weights have it; infinite where single precision ends.
  float unscaled(float scale) const { return ldexpf(scale, exponent); }
  float scaled(float scale) const { return ldexpf(scale, -exponent); }
};

}  // namespace lutkern
