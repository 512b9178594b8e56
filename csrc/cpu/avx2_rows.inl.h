// Rows times one to five tokens, for every integer format. Included by avx2.cpp after the formats' own parts. For 32
// columns of a plain format, codes unsigned:
//
//   pairs = vpmaddubsw(code, x.q)                   16 sums of two, at most 2 * 63 * 127 < 2^15
//   sums  = vpmaddwd(pairs, 1 or scale)             8 sums of four
//   acc   = vfmadd(float(sums), scale * x.scale or x.scale, acc)
//
// A lift is taken off the codes, which are signed then: vpabsb, and vpsignb of x. Taken off sums, in lanes of its own, it
// would leave the rounding of larger numbers behind. The offsets of a unit, 256 columns, meet the sums of 16 activations: one vpmaddwd leaves the eight sums
// of 32 columns in eight lanes. A code serves all tokens while it is in a register.

// Sums of two products
template <bool kUnsignedCodes>
static inline __m256i pairs_i16x16(__m256i code, __m256i magnitude, __m256i x) {
  if constexpr (kUnsignedCodes) return _mm256_maddubs_epi16(code, x);
  return _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, code));
}

// The integer scales of 16 columns, in the order of scales32
struct SixteenScales {
  __m256i split;
  SixteenScales() = default;
  explicit SixteenScales(__m128i s_i8x16)
      : split(_mm256_cvtepi8_epi16(
            _mm_shuffle_epi8(s_i8x16, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)))) {}
  static inline __m256i of(int g, __m256i split) {
    return _mm256_shuffle_epi8(split, _mm256_set1_epi16(static_cast<short>((2 * g + 1) << 8 | 2 * g)));
  }
};

// One row of a unit: what its sums of 32 columns are multiplied with, as integers and as floats. Where codes are shifted,
// the integers shift the others as far, and the factor takes it back.
template <class Block, int kT, int kScales = Plain<Block>::kScales>
struct Scaling {
  float factor;
  Scaling() = default;
  [[gnu::always_inline]] explicit Scaling(Plain<Block>& unit, const Columns*)
      : factor(unit.factor() * (1.0f / (1 << Plain<Block>::kShift))) {}
  inline __m256i integers(int g) const {
    return _mm256_set1_epi16(1 << (Plain<Block>::kShift - Plain<Block>::shift(g)));
  }
  inline __m256 floats(const Columns* x, int t, int g) const { return _mm256_broadcast_ss(x[t].scale + g); }
};

template <class Block, int kT>
struct Scaling<Block, kT, 8> {
  static constexpr float factor = 1.0f;
  alignas(32) float product[kT][8];
  Scaling() = default;
  [[gnu::always_inline]] explicit Scaling(Plain<Block>& unit, const Columns* x) {
    const __m256 scales = unit.scales();
    for (int t = 0; t < kT; ++t) _mm256_store_ps(product[t], _mm256_mul_ps(scales, _mm256_loadu_ps(x[t].scale)));
  }
  inline __m256i integers(int) const { return _mm256_set1_epi16(1); }
  inline __m256 floats(const Columns*, int t, int g) const { return _mm256_broadcast_ss(product[t] + g); }
};

template <class Block, int kT>
struct Scaling<Block, kT, 16> {
  float factor;
  SixteenScales scales;
  __m256i shifted;
  Scaling() = default;
  [[gnu::always_inline]] explicit Scaling(Plain<Block>& unit, const Columns*)
      : factor(unit.factor() * (1.0f / (1 << Plain<Block>::kShift))),
        scales(unit.scales()),
        shifted(_mm256_slli_epi16(scales.split, Plain<Block>::kShift)) {}
  inline __m256i integers(int g) const {
    return SixteenScales::of(g, Plain<Block>::shift(g) < Plain<Block>::kShift ? shifted : scales.split);
  }
  inline __m256 floats(const Columns* x, int t, int g) const { return _mm256_broadcast_ss(x[t].scale + g); }
};

// acc + the offsets of a unit times a token
template <class Block>
[[gnu::always_inline]] static inline __m256 add_offsets(const Plain<Block>& unit, const Columns& x, __m256 acc_f32x8) {
  const __m256i sums = load_i8x32(x.sum16);
  const __m256 x_scale = _mm256_loadu_ps(x.scale);
  if constexpr (Block::kBlockSize == 256) {
    const __m256 minima = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, unit.minima()));
    return _mm256_fmadd_ps(_mm256_mul_ps(minima, x_scale), _mm256_set1_ps(unit.minimum_factor()), acc_f32x8);
  } else {
    const __m256 sums_f32x8 = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
    return _mm256_fmadd_ps(sums_f32x8, _mm256_mul_ps(unit.offsets(), x_scale), acc_f32x8);
  }
}

// acc[r * kT + t] += unit of row r . token t
template <class Block, int kR, int kT>
[[gnu::always_inline]] static inline void dot_unit(const Block* const* block, const Columns* x, __m256* acc_f32x8) {
  using P = Plain<Block>;
  P unit[kR];
  Scaling<Block, kT> scaling[kR];
  __m256 sum_f32x8[kR][kT];
  for (int r = 0; r < kR; ++r) {
    unit[r] = P(block[r]);
    scaling[r] = Scaling<Block, kT>(unit[r], x);
    for (int t = 0; t < kT; ++t) {
      sum_f32x8[r][t] = _mm256_setzero_ps();
      if constexpr (P::kMinimum) {
        acc_f32x8[r * kT + t] = add_offsets(unit[r], x[t], acc_f32x8[r * kT + t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    for (int r = 0; r < kR; ++r) {
      __m256i code = unit[r].code(g);
      if (P::kLift) code = _mm256_sub_epi8(code, _mm256_set1_epi8(P::kLift << P::shift(g)));
      const __m256i magnitude = _mm256_abs_epi8(code);
      const __m256i integers = scaling[r].integers(g);
      for (int t = 0; t < kT; ++t) {
        const __m256i pairs =
            pairs_i16x16 < P::kCodes == kUnsigned && P::kLift == 0 > (code, magnitude, load_i8x32(x[t].q + 32 * g));
        const __m256i sums = _mm256_madd_epi16(pairs, integers);
        sum_f32x8[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scaling[r].floats(x, t, g), sum_f32x8[r][t]);
      }
    }
  }
  for (int r = 0; r < kR; ++r) {
    for (int t = 0; t < kT; ++t) {
      __m256& acc = acc_f32x8[r * kT + t];
      acc = P::kScales == 8 ? _mm256_add_ps(acc, sum_f32x8[r][t])
                            : _mm256_fmadd_ps(sum_f32x8[r][t], _mm256_set1_ps(scaling[r].factor), acc);
    }
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

// kR rows, block[r] being the first one of row r
template <class Block, int kR, int kT>
static inline void dot_plain_rows(const Block** block, int64_t cols, const Columns* x, __m256* acc_f32x8) {
  constexpr int64_t kBlocks = 256 / Block::kBlockSize;
  Columns here[kT];
  for (int t = 0; t < kT; ++t) here[t] = x[t];
  for (; cols >= 256; cols -= 256) {
    dot_unit<Block, kR, kT>(block, here, acc_f32x8);
    for (int r = 0; r < kR; ++r) block[r] += kBlocks;
    for (int t = 0; t < kT; ++t) here[t] = here[t].from(256);
  }
  if (kBlocks > 1 && cols > 0) {
    for (int r = 0; r < kR; ++r) {
      const Rest<Block> rest(block[r], cols / Block::kBlockSize);
      const Block* unit = rest.block;
      dot_unit<Block, 1, kT>(&unit, here, acc_f32x8 + r * kT);
    }
  }
}

// out[t * out_stride + r] = row r times token[t]
template <class Block, int kR, int kT>
static inline void rows_times(const uint8_t* data, int64_t row_bytes, int64_t cols, const Columns* columns, float* out,
                              int64_t out_stride) {
  const Block* block[kR];
  for (int r = 0; r < kR; ++r) block[r] = reinterpret_cast<const Block*>(data + r * row_bytes);
  __m256 acc_f32x8[kR * kT];
  for (int i = 0; i < kR * kT; ++i) acc_f32x8[i] = _mm256_setzero_ps();
  if constexpr (IsCodebook<Block>::kExists) {
    dot_codebook_row<Block, kT>(block[0], cols, columns, acc_f32x8);
  } else {
    dot_plain_rows<Block, kR, kT>(block, cols, columns, acc_f32x8);
  }
  for (int r = 0; r < kR; ++r) {
    for (int t = 0; t < kT; ++t) out[t * out_stride + r] = sum_of_lanes(acc_f32x8[r * kT + t]);
  }
}

// Rows that meet one token together. They share what is made of the activations; more of them need more registers than
// there are where a format has many constants. Chosen by measurement.
template <class Block>
constexpr int kRowsTogether = 1;
template <>
constexpr int kRowsTogether<Tq10> = 4;
template <>
constexpr int kRowsTogether<Tq20> = 4;
template <>
constexpr int kRowsTogether<Q2K> = 2;
template <>
constexpr int kRowsTogether<Q4K> = 4;
template <>
constexpr int kRowsTogether<Iq4Xs> = 4;

template <class Block, int kT>
static void all_rows_times(const Rows& rows, const Activations& x, const int32_t* token, float* out,
                           int64_t out_stride) {
  constexpr int kR = kT == 1 ? kRowsTogether<Block> : 1;
  Columns columns[kT];
  for (int t = 0; t < kT; ++t) columns[t] = Columns{x.q, x.scale, x.sum, x.sum16}.from(token[t] * x.token_stride);
  int64_t r = 0;
  for (; r + kR <= rows.n_rows; r += kR) {
    rows_times<Block, kR, kT>(rows.data + r * rows.row_bytes, rows.row_bytes, rows.cols, columns, out + r, out_stride);
  }
  for (; kR > 1 && r < rows.n_rows; ++r) {
    rows_times<Block, 1, kT>(rows.data + r * rows.row_bytes, rows.row_bytes, rows.cols, columns, out + r, out_stride);
  }
}

template <class Block>
static void gemv(const Rows& rows, const Activations& x, float* out) {
  const int32_t token = 0;
  all_rows_times<Block, 1>(rows, x, &token, out, 0);
}

// Tokens that a code serves while it is in a register. More of them need more registers than there are.
enum : int { kTokensTogether = 5 };

// Groups of tokens whose sizes differ by one at most: a token alone would be slow.
template <class Block>
static void gemm(const Rows& rows, const Activations& x, const int32_t* token, int64_t n_tokens, float* out,
                 int64_t out_stride) {
  for (int64_t i = 0; i < n_tokens;) {
    const int64_t left = n_tokens - i;
    const int64_t groups = (left + kTokensTogether - 1) / kTokensTogether;
    const int64_t now = (left + groups - 1) / groups;
    float* y = out + i * out_stride;
    if (now == 1) all_rows_times<Block, 1>(rows, x, token + i, y, out_stride);
    if (now == 2) all_rows_times<Block, 2>(rows, x, token + i, y, out_stride);
    if (now == 3) all_rows_times<Block, 3>(rows, x, token + i, y, out_stride);
    if (now == 4) all_rows_times<Block, 4>(rows, x, token + i, y, out_stride);
    if (now == 5) all_rows_times<Block, 5>(rows, x, token + i, y, out_stride);
    i += now;
  }
}

#include "integer_kernels.inl.h"
