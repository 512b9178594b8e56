// Q2_K, Q3_K, Q4_K, Q5_K, Q6_K: float -> blocks.
//
//   q2_k  weight = d * s * code - dmin * m     code 0..3,  s and m 4 bits for 16 weights
//   q4_k  weight = d * s * code - dmin * m     code 0..15, s and m 6 bits for 32 weights
//   q5_k  weight = d * s * code - dmin * m     code 0..31, s and m 6 bits for 32 weights
//   q3_k  weight = d * s * code                code -4..3,   s -32..31 for 16 weights
//   q6_k  weight = d * s * code                code -32..31, s int8 for 16 weights

struct Q2Lines {
  enum : int { kSubs = 16, kHigh = 3, kMost = 15 };
  static LineTrials trials(Effort effort) {
    if (effort == Effort::kFast) return {3, 2.2f, 0.5f, 2, 1};
    if (effort == Effort::kBest) return {12, 2.0f, 0.2f, 3, 3};
    return {5, 2.1f, 0.35f, 2, 1};
  }
  static Settling settling(Effort effort) {
    if (effort == Effort::kFast) return {1, 1, 0};
    if (effort == Effort::kBest) return {9, 3, 2};
    return {3, 1, 1};
  }
};

struct Q4Lines {
  enum : int { kSubs = 8, kHigh = 15, kMost = 63 };
  static LineTrials trials(Effort effort) {
    if (effort == Effort::kFast) return {4, 12.5f, 1.0f, 1, 1};
    if (effort == Effort::kBest) return {16, 11.0f, 0.5f, 3, 3};
    return {6, 12.0f, 0.8f, 2, 1};
  }
  static Settling settling(Effort effort) {
    if (effort == Effort::kFast) return {1, 1, 0};
    if (effort == Effort::kBest) return {9, 2, 1};
    return {1, 1, 1};
  }
};

struct Q5Lines {
  enum : int { kSubs = 8, kHigh = 31, kMost = 63 };
  static LineTrials trials(Effort effort) {
    if (effort == Effort::kFast) return {4, 28.5f, 1.0f, 1, 1};
    if (effort == Effort::kBest) return {16, 27.0f, 0.5f, 3, 3};
    return {6, 28.0f, 0.8f, 2, 1};
  }
  static Settling settling(Effort effort) {
    if (effort == Effort::kFast) return {1, 1, 0};
    if (effort == Effort::kBest) return {9, 2, 1};
    return {1, 1, 1};
  }
};

struct Q3Scales {
  using Values = Integers<-4, 3>;
  enum : int { kSubs = 16 };
  static constexpr float kLeast = -32.0f, kMost = 31.0f;
  static ScaleTrials trials(Effort effort) {
    if (effort == Effort::kFast) return {3, {-3.4f, -3.8f}, {-0.7f, -0.7f}, 1};
    if (effort == Effort::kBest) return {24, {-2.7f, 2.7f}, {-0.09f, 0.09f}, 2};
    return {8, {-3.0f, 3.0f}, {-0.25f, 0.25f}, 1};
  }
  static Settling settling(Effort effort) {
    if (effort == Effort::kBest) return {3, 2, 1};
    return {1, 1, 0};
  }
};

struct Q6Scales {
  using Values = Integers<-32, 31>;
  enum : int { kSubs = 16 };
  static constexpr float kLeast = -128.0f, kMost = 127.0f;
  static ScaleTrials trials(Effort effort) {
    if (effort == Effort::kFast) return {3, {-30.5f, -31.2f}, {-1.4f, -1.4f}, 0};
    if (effort == Effort::kBest) return {24, {-27.0f, 27.0f}, {-0.4f, 0.4f}, 2};
    return {10, {-28.0f, -28.4f}, {-0.8f, -0.8f}, 0};
  }
  static Settling settling(Effort effort) {
    if (effort == Effort::kBest) return {3, 2, 1};
    return {1, 1, 0};
  }
};

// Runs of 32 two-bit codes share bytes: byte m of a half holds the codes m, m + 32, m + 64 and m + 96.
static inline void store_two_bits(const uint8_t* code, uint8_t* to) {
  for (int h = 0; h < 2; ++h) {
    const uint8_t* c = code + 128 * h;
    for (int m = 0; m < 32; ++m) {
      to[32 * h + m] = static_cast<uint8_t>(c[m] | c[m + 32] << 2 | c[m + 64] << 4 | c[m + 96] << 6);
    }
  }
}

static inline void store(const LineBlock<Q2Lines>& from, Q2K* to) {
  store_u16(to->d, from.half_d);
  store_u16(to->dmin, from.half_min);
  for (int b = 0; b < 16; ++b) to->scale[b] = static_cast<uint8_t>(from.scale[b] | from.offset[b] << 4);
  store_two_bits(from.code, to->code);
}

template <typename F>
static inline void store_scales(const LineBlock<F>& from, ScaleOffset6* to) {
  for (int k = 0; k < 4; ++k) {
    const int s = from.scale[k + 4], m = from.offset[k + 4];
    to->byte[k] = static_cast<uint8_t>(from.scale[k] | (s >> 4) << 6);
    to->byte[4 + k] = static_cast<uint8_t>(from.offset[k] | (m >> 4) << 6);
    to->byte[8 + k] = static_cast<uint8_t>((s & 15) | (m & 15) << 4);
  }
}

static inline void store_four_bits(const uint8_t* code, uint8_t* to) {
  for (int h = 0; h < 4; ++h) {
    const uint8_t* c = code + 64 * h;
    for (int m = 0; m < 32; ++m) to[32 * h + m] = static_cast<uint8_t>((c[m] & 15) | (c[m + 32] & 15) << 4);
  }
}

static inline void store(const LineBlock<Q4Lines>& from, Q4K* to) {
  store_u16(to->d, from.half_d);
  store_u16(to->dmin, from.half_min);
  store_scales(from, &to->scale);
  store_four_bits(from.code, to->code);
}

static inline void store(const LineBlock<Q5Lines>& from, Q5K* to) {
  store_u16(to->d, from.half_d);
  store_u16(to->dmin, from.half_min);
  store_scales(from, &to->scale);
  store_four_bits(from.code, to->code);
  for (int m = 0; m < 32; ++m) to->high[m] = 0;
  for (int k = 0; k < 8; ++k) {
    const uint8_t* c = from.code + 32 * k;
    for (int m = 0; m < 32; ++m) to->high[m] = static_cast<uint8_t>(to->high[m] | (c[m] >> 4) << k);
  }
}

static inline void store(const ScaledBlock<Q3Scales>& from, Q3K* to) {
  uint8_t low[kPanelSize];
  for (int i = 0; i < kPanelSize; ++i) low[i] = from.code[i] & 3;
  store_two_bits(low, to->code);
  for (int m = 0; m < 32; ++m) to->high[m] = 0;
  for (int k = 0; k < 8; ++k) {
    const uint8_t* c = from.code + 32 * k;
    for (int m = 0; m < 32; ++m) to->high[m] = static_cast<uint8_t>(to->high[m] | (c[m] >> 2) << k);
  }
  for (int k = 0; k < 4; ++k) to->scale[8 + k] = 0;
  for (int b = 0; b < 8; ++b) {
    to->scale[b] = static_cast<uint8_t>(((from.unit[b] + 32) & 15) | ((from.unit[b + 8] + 32) & 15) << 4);
  }
  for (int b = 0; b < 16; ++b) {
    const int bits = (from.unit[b] + 32) >> 4 << (2 * (b / 4));
    to->scale[8 + b % 4] = static_cast<uint8_t>(to->scale[8 + b % 4] | bits);
  }
  store_u16(to->d, from.half);
}

static inline void store(const ScaledBlock<Q6Scales>& from, Q6K* to) {
  uint8_t high[kPanelSize];
  for (int h = 0; h < 2; ++h) {
    const uint8_t* c = from.code + 128 * h;
    for (int m = 0; m < 64; ++m) {
      to->low[64 * h + m] = static_cast<uint8_t>((c[m] & 15) | (c[m + 64] & 15) << 4);
    }
  }
  for (int i = 0; i < kPanelSize; ++i) high[i] = static_cast<uint8_t>(from.code[i] >> 4);
  store_two_bits(high, to->high);
  for (int b = 0; b < 16; ++b) to->scale[b] = static_cast<uint8_t>(from.unit[b]);
  store_u16(to->d, from.half);
}

template <typename KBlock, typename Block>
bool pack_k(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks) {
  KBlock block;
  for (int64_t c = 0; c < cols; c += Block::kBlockSize, blocks += Block::kBlockBytes) {
    if (!block.quantise(w + c, importance + c, effort)) return false;
    store(block, reinterpret_cast<Block*>(blocks));
  }
  return true;
}

template <>
constexpr Packer packer_of<Q2K>() {
  return {pack_k<LineBlock<Q2Lines>, Q2K>, nullptr};
}

template <>
constexpr Packer packer_of<Q3K>() {
  return {pack_k<ScaledBlock<Q3Scales>, Q3K>, nullptr};
}

template <>
constexpr Packer packer_of<Q4K>() {
  return {pack_k<LineBlock<Q4Lines>, Q4K>, nullptr};
}

template <>
constexpr Packer packer_of<Q5K>() {
  return {pack_k<LineBlock<Q5Lines>, Q5K>, nullptr};
}

template <>
constexpr Packer packer_of<Q6K>() {
  return {pack_k<ScaledBlock<Q6Scales>, Q6K>, nullptr};
}
