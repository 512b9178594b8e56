// TQ1_0, TQ2_0: float -> blocks.
//
//   weight = d * t        t in {-1, 0, 1}, one fp16 d for 256 weights
//
//   minimise sum(importance * (w - d * t)^2) over d and t
//
// For a given d a weight is nonzero where |w| > d / 2, so the best solution keeps the weights above some magnitude;
// with N the kept ones, d = sum_N(importance * |w|) / sum_N(importance), and the error falls by sum_N(importance *
// |w|)^2 / sum_N(importance). The magnitudes are counted into bins, every bin edge is tried as the limit, and from the
// best one d and the limit d / 2 are alternated until they agree.

enum : int { kBins = 64, kRounds = 4 };

// Least-squares d of the weights above limit; zero if there are none.
float scale_above(const BlockInput<256>& in, float limit) {
  // Partial sums do not wait for one another.
  enum : int { kSums = 32 };
  float along[kSums] = {}, total[kSums] = {};
  for (int i = 0; i < 256; i += kSums) {
    float kept[kSums];
    for (int k = 0; k < kSums; ++k) kept[k] = fabsf(in.w[i + k]) > limit ? 1.0f : 0.0f;
    for (int k = 0; k < kSums; ++k) {
      const float share = in.importance[i + k] * kept[k];
      along[k] += share * fabsf(in.w[i + k]);
      total[k] += share;
    }
  }
  float sum = 0.0f, weight = 0.0f;
  for (int k = 0; k < kSums; ++k) {
    sum += along[k];
    weight += total[k];
  }
  return weight > 0.0f ? sum / weight : 0.0f;
}

// The limit among the bin edges that leaves the smallest error. Magnitudes are up to 1.
float best_limit(const BlockInput<256>& in) {
  float along[kBins] = {}, total[kBins] = {};
  for (int i = 0; i < 256; ++i) {
    const float magnitude = fabsf(in.w[i]);
    int bin = static_cast<int>(magnitude * kBins);
    bin = bin < kBins ? bin : kBins - 1;
    along[bin] += in.importance[i] * magnitude;
    total[bin] += in.importance[i];
  }
  float sum = 0.0f, weight = 0.0f, best_gain = -1.0f;
  int best = 0;
  for (int bin = kBins - 1; bin >= 0; --bin) {
    sum += along[bin];
    weight += total[bin];
    if (sum * sum > best_gain * weight) {
      best_gain = sum * sum / weight;
      best = bin;
    }
  }
  return static_cast<float>(best) / kBins;
}

// Codes 0, 1, 2 for -1, 0, 1. False: d does not fit fp16.
bool quantise(const float* w, const float* importance, uint8_t* code, uint32_t* half) {
  BlockInput<256> in;
  *half = 0;
  if (!in.load(w, importance)) {
    memset(code, 1, 256);
    return true;
  }
  float d = scale_above(in, best_limit(in));
  float limit = 0.5f * d;
  for (int round = 0; round < kRounds; ++round) {
    const float next = scale_above(in, limit);
    if (next == d) break;
    d = next;
    limit = 0.5f * d;
  }
  *half = half_from_float(in.unscaled(scale_above(in, limit)));
  if (*half >= kHalfInfinity) return false;
  if (*half == 0) limit = 2.0f;
  for (int i = 0; i < 256; ++i) {
    const int above = in.w[i] > limit, below = in.w[i] < -limit;
    code[i] = static_cast<uint8_t>(1 + above - below);
  }
  return true;
}

// Five base-3 digits as a fraction of 256, rounded up: reading multiplies by three and takes what passes 256.
uint8_t five_digits(int number) { return static_cast<uint8_t>((number * 256 + 242) / 243); }

void store(const uint8_t* code, uint32_t half, Tq10* to) {
  for (int m = 0; m < 32; ++m) {
    int number = 0;
    for (int k = 0; k < 5; ++k) number = 3 * number + code[m + 32 * k];
    to->digits[m] = five_digits(number);
  }
  for (int m = 0; m < 16; ++m) {
    int number = 0;
    for (int k = 0; k < 5; ++k) number = 3 * number + code[160 + m + 16 * k];
    to->digits[32 + m] = five_digits(number);
  }
  for (int m = 0; m < 4; ++m) {
    int number = 0;
    for (int k = 0; k < 4; ++k) number = 3 * number + code[240 + m + 4 * k];
    to->digits[48 + m] = five_digits(3 * number);
  }
  store_u16(to->d, half);
}

void store(const uint8_t* code, uint32_t half, Tq20* to) {
  for (int h = 0; h < 2; ++h) {
    for (int m = 0; m < 32; ++m) {
      const uint8_t* c = code + 128 * h + m;
      to->code[32 * h + m] = static_cast<uint8_t>(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
    }
  }
  store_u16(to->d, half);
}

template <typename Block>
bool pack_ternary(const float* w, const float* importance, int64_t cols, Effort, uint8_t* blocks) {
  for (int64_t c = 0; c < cols; c += Block::kBlockSize, blocks += Block::kBlockBytes) {
    uint8_t code[256];
    uint32_t half;
    if (!quantise(w + c, importance + c, code, &half)) return false;
    store(code, half, reinterpret_cast<Block*>(blocks));
  }
  return true;
}

template <>
constexpr Packer packer_of<Tq10>() {
  return {pack_ternary<Tq10>, nullptr};
}

template <>
constexpr Packer packer_of<Tq20>() {
  return {pack_ternary<Tq20>, nullptr};
}
