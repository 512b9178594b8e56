// IQ4_NL, IQ4_XS: float -> blocks.
//
//   iq4_nl  weight = d * value[code]          one fp16 d for 32 weights
//   iq4_xs  weight = d * s * value[code]      s -32..31 for 32 weights
//
// The 16 values reach from -127 to 113, so a scale may have either sign.

// The nearest value and its code for k = floor(2 * (x + 128)): every boundary between two values is a multiple of 1/2.
struct Iq4Nearest {
  enum : int { kEntries = 512 };
  float value[kEntries];
  uint8_t code[kEntries];

  constexpr Iq4Nearest() : value(), code() {
    // kIq4Values is not known to the compiler here.
    constexpr int kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    int best = 0;
    for (int k = 0; k < kEntries; ++k) {
      // Four times the middle of the interval k; the nearest value never moves back.
      const int x = 2 * k + 1 - 512;
      while (best < 15 && 4 * kValues[best + 1] - x < x - 4 * kValues[best]) ++best;
      code[k] = static_cast<uint8_t>(best);
      value[k] = static_cast<float>(kValues[best]);
    }
  }
};

constexpr Iq4Nearest kIq4Nearest;

struct Iq4ValueSet {
  Limits limits = Limits(0.0f, Iq4Nearest::kEntries - 1);

  IntVec entry(FloatVec position) const {
    return __builtin_convertvector(limits.clamp(position * 2.0f + 256.0f), IntVec);
  }

  FloatVec value(FloatVec position) const {
    const IntVec k = entry(position);
    FloatVec out;
    for (int l = 0; l < kVectorLanes; ++l) out[l] = kIq4Nearest.value[k[l]];
    return out;
  }

  IntVec code(FloatVec position) const {
    const IntVec k = entry(position);
    IntVec out;
    for (int l = 0; l < kVectorLanes; ++l) out[l] = kIq4Nearest.code[k[l]];
    return out;
  }
};

static inline ScaleTrials iq4_trials(Effort effort) {
  if (effort == Effort::kFast) return {4, {-100.0f, 100.0f}, {-12.0f, 12.0f}, 1};
  if (effort == Effort::kBest) return {24, {-82.0f, 82.0f}, {-3.5f, 3.5f}, 3};
  return {8, {-92.0f, 92.0f}, {-8.0f, 8.0f}, 1};
}

struct Iq4XsScales {
  using Values = Iq4ValueSet;
  enum : int { kSubs = 8 };
  static constexpr float kLeast = -32.0f, kMost = 31.0f;
  static ScaleTrials trials(Effort effort) { return iq4_trials(effort); }
  static Settling settling(Effort effort) {
    if (effort == Effort::kBest) return {3, 2, 1};
    return {1, 1, 0};
  }
};

// Two codes in a byte, m and m + 16.
static inline void store_halves(const uint8_t* code, uint8_t* to) {
  for (int m = 0; m < 16; ++m) to[m] = static_cast<uint8_t>((code[m] & 15) | (code[m + 16] & 15) << 4);
}

bool pack_iq4_nl(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks) {
  ScaledBlocks<Iq4ValueSet> from;
  const ScaleTrials trials = iq4_trials(effort);
  return for_each_panel<Iq4Nl>(w, importance, cols, blocks, [&](const float* v, const float* a, Iq4Nl* to, int count) {
    if (!from.quantise(v, a, trials)) return false;
    for (int b = 0; b < count; ++b) {
      store_u16(to[b].d, from.half[b]);
      store_halves(from.code + 32 * b, to[b].code);
    }
    return true;
  });
}

static inline void store(const ScaledBlock<Iq4XsScales>& from, Iq4Xs* to) {
  uint32_t high = 0;
  for (int k = 0; k < 4; ++k) to->low[k] = 0;
  for (int k = 0; k < 8; ++k) {
    const uint32_t s = static_cast<uint32_t>(from.unit[k] + 32);
    to->low[k / 2] = static_cast<uint8_t>(to->low[k / 2] | (s & 15) << (4 * (k % 2)));
    high |= s >> 4 << (2 * k);
    store_halves(from.code + 32 * k, to->code[k]);
  }
  store_u16(to->high, high);
  store_u16(to->d, from.half);
}

template <>
constexpr Packer packer_of<Iq4Nl>() {
  return {pack_iq4_nl, nullptr};
}

template <>
constexpr Packer packer_of<Iq4Xs>() {
  return {pack_k<ScaledBlock<Iq4XsScales>, Iq4Xs>, nullptr};
}
