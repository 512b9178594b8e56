// Tiles times several vectors on NEON, apart from the products themselves. Included by the NEON rows for tiles inside
// their anonymous namespace, after neon_tile_words.inl.h and
//
//   kSpread      1: a vector of codes is 4 rows of 4 columns; 2: it is 2 rows of 8 columns, and the sums of a row are in
//                two neighbouring lanes, one for each of two tokens
//   kTogether    tokens that times() takes together
//
// and before the product itself
//
//   times<Block, kCount>(panel, n_groups, x, token, column, results)
//
// where results[i][p] is sum over groups of x.scale * float(scale * (code . x.q)) of token i and the rows of part p.
//
//   for each row of tiles: for each 256 columns: unpack a panel
//     for each kTogether tokens: out[token, rows] += factor * results - minimum_factor * minima

enum : int { kGroupsOfPanel = 8 };

template <class Block>
struct Panel {
  using Codes = TileCodes<Block>;
  static constexpr bool kPerGroup = Codes::kGroups == 1;
  static constexpr int kFactors = kPerGroup ? kGroupsOfPanel : 1;
  static constexpr int kScaleCount = Codes::kScales == 0 ? 1 : Codes::kScales;

  int8x16_t code[kParts][kGroupsOfPanel][8];
  int32x4_t scale[kParts][kGroupsOfPanel][kScaleCount][kSpread];
  int16x8_t minimum[kParts][kGroupsOfPanel];            // of the first 16 columns of four rows, of the second
  float32x4_t group_factor[kParts][kFactors][kSpread];  // where blocks have 32 columns
  float32x4_t float_offset[kParts][kFactors][kSpread];
  Vf32 factor[kParts];
  Vf32 minimum_factor[kParts];

  template <typename V>
  static inline void spread(V lanes, V* out) {
    const int32x4_t v = s32(lanes);
    out[0] = kSpread == 1 ? lanes : reinterpret_cast<V>(vzip1q_s32(v, v));
    if (kSpread == 2) out[1] = reinterpret_cast<V>(vzip2q_s32(v, v));
  }

  [[gnu::always_inline]] inline void unpack_group(Codes& codes, int g, int at, int p) {
    Vu8 group[8];
    signed_codes(codes, g, group);
    for (int v = 0; v < 8; v += 2) {
      if constexpr (kSpread == 1) {
        code[p][at][v] = s8(group[v]);
        code[p][at][v + 1] = s8(group[v + 1]);
      } else {
        code[p][at][v / 2] = vreinterpretq_s8_s32(vzip1q_s32(s32(group[v]), s32(group[v + 1])));
        code[p][at][4 + v / 2] = vreinterpretq_s8_s32(vzip2q_s32(s32(group[v]), s32(group[v + 1])));
      }
    }
    if constexpr (Codes::kScales > 0) {
      const Vi16 scales = codes.scales(g);
      if constexpr (Codes::kScales == 2) {
        spread(first_of(scales), scale[p][at][0]);
        spread(second_of(scales), scale[p][at][1]);
      } else {
        spread(second_of(scales), scale[p][at][0]);
      }
    }
    if constexpr (Codes::kMinimum) {
      const int32x4_t minima = s32(codes.minima(g));
      minimum[p][at] = vshrn_high_n_s32(vmovn_s32(minima), minima, 16);
    }
  }

  // Returns the groups that exist.
  int unpack(const uint8_t* body, const uint8_t* tail, int64_t first_tile, int64_t tiles_left) {
    using T = Tile<Block>;
    constexpr int kTilesInPanel = kGroupsOfPanel / Codes::kGroups;
    const int n_tiles = tiles_left < kTilesInPanel ? static_cast<int>(tiles_left) : kTilesInPanel;
    for (int t = 0; t < n_tiles; ++t) {
      for (int p = 0; p < kParts; ++p) {
        Codes codes(body + (first_tile + t) * (T::kWords * 4 * kTileRows) + p * kVectorBytes,
                    tail + (first_tile + t) * (T::kTailBytes * kTileRows) + p * kVectorBytes / 4 * T::kTailItem);
#pragma GCC unroll 8
        for (int g = 0; g < Codes::kGroups; ++g) unpack_group(codes, g, t * Codes::kGroups + g, p);
        if constexpr (kPerGroup) {
          spread(f32(codes.factor()), group_factor[p][t]);
          if constexpr (Codes::kFloatOffset) spread(f32(codes.float_offset()), float_offset[p][t]);
        } else {
          factor[p] = codes.factor();
          if constexpr (Codes::kMinimum) minimum_factor[p] = codes.minimum_factor();
        }
      }
    }
    return n_tiles * Codes::kGroups;
  }

  template <int kGroup>
  inline float32x4_t add_minima(float32x4_t sum, int p, int first, int16x8_t x_sums, float32x4_t x_scale) const {
    const int16x8_t m = minimum[p][first + kGroup];
    const int32x4_t of_first = vmull_laneq_s16(vget_low_s16(m), x_sums, 2 * kGroup);
    const int32x4_t of_both = vmlal_high_laneq_s16(of_first, m, x_sums, 2 * kGroup + 1);
    return vfmaq_laneq_f32(sum, vcvtq_f32_s32(of_both), x_scale, kGroup);
  }
  // What the minima of part p make of one token
  inline Vf32 minima(int p, const int16_t* sum16, const float* scale) const {
    float32x4_t sum = vdupq_n_f32(0.0f);
    for (int g = 0; g < kGroupsOfPanel; g += 4) {
      const int16x8_t x_sums = vld1q_s16(sum16 + 2 * g);
      const float32x4_t x_scale = vld1q_f32(scale + g);
      sum = add_minima<0>(sum, p, g, x_sums, x_scale);
      sum = add_minima<1>(sum, p, g, x_sums, x_scale);
      sum = add_minima<2>(sum, p, g, x_sums, x_scale);
      sum = add_minima<3>(sum, p, g, x_sums, x_scale);
    }
    return reinterpret_cast<Vf32>(sum);
  }
};

// 256 columns of one token
struct Columns {
  const int8_t* q;
  const float* scale;
  const int16_t* sum16;
  inline Columns(const Activations& x, int64_t at)
      : q(x.q + at), scale(x.scale + at / kActivationGroup), sum16(x.sum16 + at / 16) {}

  // Where the integer sums of a group start: one for the group, or two
  template <class Block>
  inline void starts(int32_t* start) const {
    constexpr int kOffset = kCodeOffset<Block>;
    for (int k = 0; k < kGroupsOfPanel * 2; k += 8) {
      const int16x8_t sums = vld1q_s16(sum16 + k);
      if constexpr (TileCodes<Block>::kScales == 2) {
        vst1q_s32(start + k, vmull_s16(vget_low_s16(sums), vdup_n_s16(-kOffset)));
        vst1q_s32(start + k + 4, vmull_high_s16(sums, vdupq_n_s16(-kOffset)));
      } else {
        vst1q_s32(start + k / 2, vmulq_n_s32(vpaddlq_s16(sums), -kOffset));
      }
    }
  }
  // Of a float offset: x.scale times the sum of 32 activations
  inline float offset_scale(int g) const { return scale[g] * static_cast<float>(sum16[2 * g] + sum16[2 * g + 1]); }
};

template <class Block, int kCount>
static inline void times(const Panel<Block>& panel, int n_groups, const Activations& x, const int32_t* token,
                         int64_t column, Vf32 (*results)[kParts]);

// n_tokens <= kCount of them, which times() may fill up with the last one
template <class Block, int kCount>
static inline void add_products(const Panel<Block>& panel, int n_groups, const Activations& x, const int32_t* token,
                                int n_tokens, int64_t column, bool first, float* out, int64_t out_stride) {
  Vf32 results[kCount][kParts];
  int32_t filled[kCount];
  for (int i = 0; i < kCount; ++i) filled[i] = token[i < n_tokens ? i : n_tokens - 1];
  times<Block, kCount>(panel, n_groups, x, filled, column, results);
  for (int i = 0; i < n_tokens; ++i) {
    const Columns columns(x, token[i] * x.token_stride + column);
    for (int p = 0; p < kParts; ++p) {
      Vf32 sum = results[i][p];
      if constexpr (!Panel<Block>::kPerGroup) sum *= panel.factor[p];
      if constexpr (Panel<Block>::Codes::kMinimum) {
        sum -= panel.minima(p, columns.sum16, columns.scale) * panel.minimum_factor[p];
      }
      float* y = out + i * out_stride + p * kVectorBytes / 4;
      store(y, (first ? Vf32{} : reinterpret_cast<Vf32>(vld1q_f32(y))) + sum);
    }
  }
}

template <class Block>
static void gemm_tiles(const TileRows& rows, const Activations& x, const int32_t* token, int64_t n_tokens, float* out,
                       int64_t out_stride) {
  using T = Tile<Block>;
  constexpr int64_t kTilesInPanel = kGroupsOfPanel / TileCodes<Block>::kGroups;
  const int64_t count = rows.cols / T::kColumns;
  Panel<Block> panel;
  for (int64_t i = 0; i < rows.n_tiles; ++i) {
    const uint8_t* body = rows.data + i * rows.row_bytes;
    const uint8_t* tail = body + count * (T::kWords * 4 * kTileRows);
    for (int64_t t = 0; t < count; t += kTilesInPanel) {
      const int n_groups = panel.unpack(body, tail, t, count - t);
      const int64_t column = t * T::kColumns;
      for (int64_t at = 0; at < n_tokens; at += kTogether) {
        const int n = n_tokens - at < kTogether ? static_cast<int>(n_tokens - at) : int{kTogether};
        float* y = out + i * kTileRows + at * out_stride;
        if (n > 2) {
          add_products<Block, kTogether>(panel, n_groups, x, token + at, n, column, t == 0, y, out_stride);
        } else {
          add_products<Block, 2>(panel, n_groups, x, token + at, n, column, t == 0, y, out_stride);
        }
      }
    }
  }
}

// The table entries of a format; a float format has no integer kernels.
template <class Block, bool kFloat = Block::kIsFloat != 0>
struct GemmEntry {
  static constexpr GemmTilesFn kFn = gemm_tiles<Block>;
};

template <class Block>
struct GemmEntry<Block, true> {
  static constexpr GemmTilesFn kFn = nullptr;
};
