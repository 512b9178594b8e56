// Rows times one to four tokens, for every integer format. Included by avx2.cpp after the formats' own parts. For 32
// columns of a plain format, codes unsigned:
//
//   pairs = vpmaddubsw(code, x.q)                   16 sums of two, at most 2 * 63 * 127 < 2^15
//   sums  = vpmaddwd(pairs, 1 or scale)             8 sums of four
//   sums -= what the lift of the codes added        an integer in one of the lanes
//   acc   = vfmadd(float(sums), scale * x.scale or x.scale, acc)
//
// The lift and the offsets of a unit, 256 columns, meet the sums of 16 activations: one vpmaddwd leaves the eight sums
// of 32 columns in eight lanes. A code serves all tokens while it is in a register.

// Lane g of a vector alone
alignas(32) static const int32_t kLane[8][8] = {
    {-1, 0, 0, 0, 0, 0, 0, 0}, {0, -1, 0, 0, 0, 0, 0, 0}, {0, 0, -1, 0, 0, 0, 0, 0}, {0, 0, 0, -1, 0, 0, 0, 0},
    {0, 0, 0, 0, -1, 0, 0, 0}, {0, 0, 0, 0, 0, -1, 0, 0}, {0, 0, 0, 0, 0, 0, -1, 0}, {0, 0, 0, 0, 0, 0, 0, -1}};

// Sums of two products
template <Codes kCodes>
static inline __m256i pairs_i16x16(__m256i code, __m256i magnitude, __m256i x) {
  if constexpr (kCodes == kUnsigned) return _mm256_maddubs_epi16(code, x);
  return _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, code));
}
template <Codes kCodes>
static inline __m256i magnitude_of(__m256i code) {
  return kCodes == kSigned ? _mm256_abs_epi8(code) : _mm256_set1_epi8(1);
}

// The integer scales of 16 columns, in order and in the order of scales32
struct SixteenScales {
  __m256i in_order;
  __m256i split;
  explicit SixteenScales(__m128i s_i8x16)
      : in_order(_mm256_cvtepi8_epi16(s_i8x16)),
        split(_mm256_cvtepi8_epi16(
            _mm_shuffle_epi8(s_i8x16, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)))) {}
  inline __m256i of(int g) const {
    return _mm256_shuffle_epi8(split, _mm256_set1_epi16(static_cast<short>((2 * g + 1) << 8 | 2 * g)));
  }
};

// acc[t] += unit . token t
template <class Block, int kT>
static inline void dot_unit8(const Block* block, const Columns* x, __m256* acc_f32x8) {
  using P = Plain<Block>;
  P unit(block);
  const __m256 scales = unit.scales();
  alignas(32) float factor[kT][8];
  __m256i lift[kT];
  for (int t = 0; t < kT; ++t) {
    const __m256 x_scale = _mm256_loadu_ps(x[t].scale);
    _mm256_store_ps(factor[t], _mm256_mul_ps(scales, x_scale));
    const __m256i sums = load_i8x32(x[t].sum16);
    if (P::kLift) lift[t] = _mm256_madd_epi16(sums, _mm256_set1_epi16(P::kLift));
    if constexpr (P::kMinimum) {
      const __m256 sums_f32x8 = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
      acc_f32x8[t] = _mm256_fmadd_ps(sums_f32x8, _mm256_mul_ps(unit.offsets(), x_scale), acc_f32x8[t]);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const __m256i code = unit.code(g);
    const __m256i magnitude = magnitude_of<P::kCodes>(code);
    for (int t = 0; t < kT; ++t) {
      const __m256i pairs = pairs_i16x16<P::kCodes>(code, magnitude, load_i8x32(x[t].q + 32 * g));
      __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
      if (P::kLift) sums = _mm256_sub_epi32(sums, _mm256_and_si256(lift[t], load_i8x32(kLane[g])));
      acc_f32x8[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_broadcast_ss(factor[t] + g), acc_f32x8[t]);
    }
  }
}

template <class Block, int kT>
static inline void dot_unit16(const Block* block, const Columns* x, __m256* acc_f32x8) {
  using P = Plain<Block>;
  P unit(block);
  const SixteenScales scales(unit.scales());
  __m256i lift[kT];
  __m256 sum_f32x8[kT];
  for (int t = 0; t < kT; ++t) {
    sum_f32x8[t] = _mm256_setzero_ps();
    const __m256i sums = load_i8x32(x[t].sum16);
    if (P::kLift) lift[t] = _mm256_madd_epi16(sums, _mm256_mullo_epi16(scales.in_order, _mm256_set1_epi16(P::kLift)));
    if constexpr (P::kMinimum) {
      const __m256 minima = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_cvtepi8_epi16(unit.minima())));
      acc_f32x8[t] = _mm256_fmadd_ps(_mm256_mul_ps(minima, _mm256_loadu_ps(x[t].scale)),
                                     _mm256_set1_ps(unit.minimum_factor()), acc_f32x8[t]);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const __m256i code = unit.code(g);
    const __m256i magnitude = magnitude_of<P::kCodes>(code);
    const __m256i scale = scales.of(g);
    for (int t = 0; t < kT; ++t) {
      const __m256i pairs = pairs_i16x16<P::kCodes>(code, magnitude, load_i8x32(x[t].q + 32 * g));
      __m256i sums = _mm256_madd_epi16(pairs, scale);
      if (P::kLift) sums = _mm256_sub_epi32(sums, _mm256_and_si256(lift[t], load_i8x32(kLane[g])));
      sum_f32x8[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_broadcast_ss(x[t].scale + g), sum_f32x8[t]);
    }
  }
  const __m256 factor = _mm256_set1_ps(unit.factor());
  for (int t = 0; t < kT; ++t) acc_f32x8[t] = _mm256_fmadd_ps(sum_f32x8[t], factor, acc_f32x8[t]);
}

template <class Block, int kT>
static inline void dot_unit(const Block* block, const Columns* x, __m256* acc_f32x8) {
  if constexpr (Plain<Block>::kScales == 8) {
    dot_unit8<Block, kT>(block, x, acc_f32x8);
  } else {
    dot_unit16<Block, kT>(block, x, acc_f32x8);
  }
}

// The end of a row may be fewer than eight blocks of 32: blocks of zero bytes follow them, and meet activations of zero.
template <class Block>
struct Rest {
  Block block[256 / Block::kBlockSize];
  Rest(const Block* from, int64_t n) {
    __builtin_memset(block, 0, sizeof(block));
    __builtin_memcpy(block, from, static_cast<size_t>(n) * sizeof(Block));
  }
};

template <class Block, int kT>
static inline void dot_plain_row(const Block* block, int64_t cols, const Columns* x, __m256* acc_f32x8) {
  constexpr int64_t kBlocks = 256 / Block::kBlockSize;
  Columns here[kT];
  for (int64_t column = 0; column < cols; column += 256) {
    for (int t = 0; t < kT; ++t) here[t] = x[t].from(column);
    const Block* unit = block + column / Block::kBlockSize;
    if (kBlocks == 1 || cols - column >= 256) {
      dot_unit<Block, kT>(unit, here, acc_f32x8);
    } else {
      const Rest<Block> rest(unit, (cols - column) / Block::kBlockSize);
      dot_unit<Block, kT>(rest.block, here, acc_f32x8);
    }
  }
}

// out[t * out_stride + r] = row r times token[t]
template <class Block, int kT>
static void rows_times(const Rows& rows, const Activations& x, const int32_t* token, float* out, int64_t out_stride) {
  Columns columns[kT];
  for (int t = 0; t < kT; ++t) columns[t] = Columns{x.q, x.scale, x.sum, x.sum16}.from(token[t] * x.token_stride);
  for (int64_t r = 0; r < rows.n_rows; ++r) {
    const Block* block = reinterpret_cast<const Block*>(rows.data + r * rows.row_bytes);
    __m256 acc_f32x8[kT];
    for (int t = 0; t < kT; ++t) acc_f32x8[t] = _mm256_setzero_ps();
    if constexpr (IsCodebook<Block>::kExists) {
      dot_codebook_row<Block, kT>(block, rows.cols, columns, acc_f32x8);
    } else {
      dot_plain_row<Block, kT>(block, rows.cols, columns, acc_f32x8);
    }
    for (int t = 0; t < kT; ++t) out[t * out_stride + r] = sum_of_lanes(acc_f32x8[t]);
  }
}

template <class Block>
static void gemv(const Rows& rows, const Activations& x, float* out) {
  const int32_t token = 0;
  rows_times<Block, 1>(rows, x, &token, out, 0);
}

// Three tokens at a time, and no token alone if that can be.
template <class Block>
static void gemm(const Rows& rows, const Activations& x, const int32_t* token, int64_t n_tokens, float* out,
                 int64_t out_stride) {
  for (int64_t i = 0; i < n_tokens;) {
    const int64_t left = n_tokens - i;
    const int64_t now = left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3;
    float* y = out + i * out_stride;
    if (now == 1) rows_times<Block, 1>(rows, x, token + i, y, out_stride);
    if (now == 2) rows_times<Block, 2>(rows, x, token + i, y, out_stride);
    if (now == 3) rows_times<Block, 3>(rows, x, token + i, y, out_stride);
    i += now;
  }
}

// The table entries of a format; a float format has no integer kernels.
template <class Block, bool kFloat = Block::kIsFloat != 0>
struct IntegerKernels {
  static constexpr GemvFn kGemv = gemv<Block>;
  static constexpr GemmFn kGemm = gemm<Block>;
};

template <class Block>
struct IntegerKernels<Block, true> {
  static constexpr GemvFn kGemv = nullptr;
  static constexpr GemmFn kGemm = nullptr;
};
