// A block's weights and importances, scaled by powers of two so that float arithmetic neither overflows nor underflows.

// Importance below this fraction of the block's largest counts as this fraction: it keeps every divisor positive.
static constexpr float kLeastImportance = 1e-10f;

// A block scale from here on, in scaled units, decodes to nothing near the weights but zero: it is the smallest fp16
// number next to weights that are far smaller.
static constexpr float kTooCoarse = 64.0f;

struct BlockInput {
  enum : int { kSize = 256 };

  alignas(64) float w[kSize];           // w * 2^-exponent: magnitudes up to 1
  alignas(64) float importance[kSize];  // up to 1
  int exponent;
  float energy;  // sum of importance * w^2, in the scaled units

  // False: every weight is zero.
  bool load(const float* weights, const float* weights_importance) {
    const float largest = peak(weights), most = peak(weights_importance);
    if (!(largest > 0.0f)) return false;
    // 2^-exponent in two factors: one alone overflows for the smallest subnormals.
    frexpf(largest, &exponent);
    const float half_way = ldexpf(1.0f, -(exponent / 2));
    const float rest = ldexpf(1.0f, -(exponent - exponent / 2));
    int importance_exponent;
    frexpf(most, &importance_exponent);
    const float importance_half_way = ldexpf(1.0f, -(importance_exponent / 2));
    const float importance_rest = ldexpf(1.0f, -(importance_exponent - importance_exponent / 2));
    for (int i = 0; i < kSize; ++i) {
      w[i] = weights[i] * half_way * rest;
      const float share = weights_importance[i] * importance_half_way * importance_rest;
      importance[i] = share > kLeastImportance ? share : kLeastImportance;
    }
    float sum[kChains] = {};
    for (int i = 0; i < kSize; i += kChains) {
      for (int k = 0; k < kChains; ++k) sum[k] += importance[i + k] * w[i + k] * w[i + k];
    }
    energy = 0.0f;
    for (int k = 0; k < kChains; ++k) energy += sum[k];
    return true;
  }

  // A scale in scaled units as the weights have it; infinite where single precision ends.
  float unscaled(float scale) const { return ldexpf(scale, exponent); }
  float scaled(float scale) const { return ldexpf(scale, -exponent); }

 private:
  // Results that do not wait for one another.
  enum : int { kChains = 32 };

  static float peak(const float* x) {
    float most[kChains] = {};
    for (int i = 0; i < kSize; i += kChains) {
      for (int k = 0; k < kChains; ++k) most[k] = fabsf(x[i + k]) > most[k] ? fabsf(x[i + k]) : most[k];
    }
    float largest = 0.0f;
    for (int k = 0; k < kChains; ++k) largest = most[k] > largest ? most[k] : largest;
    return largest;
  }
};
