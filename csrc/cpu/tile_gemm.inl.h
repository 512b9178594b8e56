// Tiles times several vectors, written once. Included after tile_gemv.inl.h.
//
// 256 columns of a row of tiles are unpacked once, to unsigned codes and scales that stay in the first-level cache, and
// meet every token:
//
//   for each row of tiles: for each 256 columns: unpack a panel
//     for each 4 tokens: for each group:
//       sum  = scale * (code . x.q) - offset * scale * (sums of x.q)
//       acc += float(sum) * x.scale
//     out[token, rows] += factor * acc

enum : int { kPanelGroups = 8 };

template <class Block>
struct Panel {
  using Codes = TileCodes<Block>;
  static constexpr bool kPerGroup = Codes::kGroups == 1;
  static constexpr int kFactors = kPerGroup ? kPanelGroups : 1;

  Vu8 code[kPanelGroups][8][kParts];
  Vi16 scale[kPanelGroups][2][kParts];
  Vi16 offset[kPanelGroups][kParts];
  Vi16 minimum[kPanelGroups][kParts];
  Vf32 factor[kFactors][kParts];
  Vf32 float_offset[kFactors][kParts];
  Vf32 minimum_factor[kParts];

  void unpack_group(Codes& codes, int g, int at, int p) {
    Vu8 group[8];
    codes.codes(g, group);
    for (int v = 0; v < 8; ++v) code[at][v][p] = group[v];
    if constexpr (Codes::kScales > 0) {
      const Vi16 scales = codes.scales(g);
      scale[at][0][p] = Codes::kScales == 2 ? ScaleForm<Vi16>::first(scales) : ScaleForm<Vi16>::both(scales);
      if (Codes::kScales == 2) scale[at][1][p] = ScaleForm<Vi16>::second(scales);
      if (Codes::kOffset > 0) offset[at][p] = scales * int16_t{Codes::kOffset};
    }
    if constexpr (Codes::kMinimum) minimum[at][p] = codes.minima(g);
  }

  // Returns the groups that exist.
  int unpack(const uint8_t* body, const uint8_t* tail, int64_t first_tile, int64_t tiles_left) {
    using T = Tile<Block>;
    constexpr int kTilesInPanel = kPanelGroups / Codes::kGroups;
    const int n_tiles = tiles_left < kTilesInPanel ? static_cast<int>(tiles_left) : kTilesInPanel;
    for (int t = 0; t < n_tiles; ++t) {
      for (int p = 0; p < kParts; ++p) {
        const uint8_t* tile = body + (first_tile + t) * (T::kWords * 4 * kTileRows);
        Codes codes(tile + p * kVectorBytes,
                    tail + (first_tile + t) * (T::kTailBytes * kTileRows) + p * kVectorBytes / 4 * T::kTailItem);
        if constexpr (kShortLoops && Codes::kUnrolled < 8) {
          // Two, whatever kUnrolled is: unpacking takes more instructions than products with one vector.
#pragma GCC unroll 1
          for (int g = 0; g < 8; g += 2) {
            unpack_group(codes, g, g, p);
            unpack_group(codes, g + 1, g + 1, p);
          }
        } else {
#pragma GCC unroll 8
          for (int g = 0; g < Codes::kGroups; ++g) unpack_group(codes, g, t * Codes::kGroups + g, p);
        }
        factor[t][p] = codes.factor();
        if constexpr (Codes::kMinimum) minimum_factor[p] = codes.minimum_factor();
        if constexpr (Codes::kFloatOffset) float_offset[t][p] = codes.float_offset();
      }
    }
    return n_tiles * Codes::kGroups;
  }
};

// Sums of one group for kCount tokens: codes times activations, times the integer scales
template <class Block, int kCount>
static inline void panel_sums(const Panel<Block>& panel, int g, const int8_t* const* q, Vi32 (&sum)[kCount][kParts]) {
  using Codes = TileCodes<Block>;
  for (int i = 0; i < kCount; ++i) {
    Vi8 x[8];
    load_x(q[i], x);
    for (int p = 0; p < kParts; ++p) {
      Vu8 code[8];
      for (int v = 0; v < 8; ++v) code[v] = panel.code[g][v][p];
      if constexpr (Codes::kScales == 0) {
        sum[i][p] = dot<Codes::kMax, 8>(code, x);
      } else if constexpr (Codes::kScales == 1) {
        sum[i][p] = dot_scaled<Codes::kMax, 8>(code, x, panel.scale[g][0][p]);
      } else {
        sum[i][p] = dot_scaled<Codes::kMax, 4>(code, x, panel.scale[g][0][p]) +
                    dot_scaled<Codes::kMax, 4>(code + 4, x + 4, panel.scale[g][1][p]);
      }
    }
  }
}

// One group of kCount tokens: acc += what it gives
template <class Block, int kCount>
static inline void panel_group(const Panel<Block>& panel, int g, const Activations& x, const int64_t* at,
                               Vf32 (&acc)[kCount][kParts], Vf32 (&minimum)[kCount][kParts]) {
  using Codes = TileCodes<Block>;
  const int8_t* q[kCount];
  for (int i = 0; i < kCount; ++i) {
    q[i] = x.q + at[i] + 32 * g;
    asm("" : "+r"(q[i]));  // four sums of addresses do not become one of vectors, which would have to be taken apart
  }
  Vi32 sums[kCount][kParts];
  if constexpr (OwnPanelSums<Codes>::kExists) {
    OwnPanelSums<Codes>::template run<kCount>(panel.code[g], panel.scale[g], q, sums);
  } else {
    panel_sums<Block, kCount>(panel, g, q, sums);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
    const int16_t* sum16 = x.sum16 + at[i] / 16 + 2 * g;
    const float x_scale = x.scale[at[i] / kActivationGroup + g];
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      Vi32 sum = sums[i][p];
      if constexpr (Codes::kOffset > 0) {
        if constexpr (Codes::kScales == 0) {
          sum -= Codes::kOffset * (sum16[0] + sum16[1]);
        } else {
          sum -= pair_dot(panel.offset[g][p], sum16);
        }
      }
      Vf32 scale = x_scale - Vf32{};
      if constexpr (Panel<Block>::kPerGroup) scale *= panel.factor[g][p];
      acc[i][p] = fma(float_of(sum), scale, acc[i][p]);
      if constexpr (Codes::kMinimum) {
        minimum[i][p] = fma(float_of(pair_dot(panel.minimum[g][p], sum16)), x_scale - Vf32{}, minimum[i][p]);
      }
      if constexpr (Codes::kFloatOffset) {
        acc[i][p] += panel.float_offset[g][p] * (x_scale * static_cast<float>(sum16[0] + sum16[1]));
      }
    }
  }
}

// kCount tokens: out[token][row] = or += the panel's part. ahead: memory that is wanted soon, or null
template <class Block, int kCount>
static inline void panel_times(const Panel<Block>& panel, int n_groups, const Activations& x, const int32_t* token,
                               int64_t column, bool first, float* out, int64_t out_stride, const uint8_t* ahead) {
  using T = Tile<Block>;
  constexpr int kLines = (T::kWords * 256 / T::kColumns + kPanelGroups - 1) / kPanelGroups;  // for each group
  Vf32 acc[kCount][kParts] = {};
  Vf32 minimum[kCount][kParts] = {};
  int64_t at[kCount];
  for (int i = 0; i < kCount; ++i) at[i] = token[i] * x.token_stride + column;
  for (int g = 0; g < n_groups; ++g) {
    for (int line = 0; ahead && line < kLines; ++line) __builtin_prefetch(ahead + 64 * (g * kLines + line));
    panel_group<Block, kCount>(panel, g, x, at, acc, minimum);
  }
  for (int i = 0; i < kCount; ++i) {
    for (int p = 0; p < kParts; ++p) {
      Vf32 sum = acc[i][p];
      if constexpr (!Panel<Block>::kPerGroup) sum *= panel.factor[0][p];
      if constexpr (TileCodes<Block>::kMinimum) sum -= minimum[i][p] * panel.minimum_factor[p];
      float* y = out + i * out_stride + p * kVectorBytes / 4;
      store(y, (first ? Vf32{} : reinterpret_cast<Vf32>(load(reinterpret_cast<const uint8_t*>(y)))) + sum);
    }
  }
}

template <class Block>
static void gemm_tiles(const TileRows& rows, const Activations& x, const int32_t* token, int64_t n_tokens, float* out,
                       int64_t out_stride) {
  using T = Tile<Block>;
  constexpr int64_t kTilesInPanel = kPanelGroups / TileCodes<Block>::kGroups;
  const int64_t count = rows.cols / T::kColumns;
  Panel<Block> panel;
  for (int64_t i = 0; i < rows.n_tiles; ++i) {
    const uint8_t* body = rows.data + i * rows.row_bytes;
    const uint8_t* tail = body + count * (T::kWords * 4 * kTileRows);
    float* y = out + i * kTileRows;
    for (int64_t t = 0; t < count; t += kTilesInPanel) {
      const int n_groups = panel.unpack(body, tail, t, count - t);
      const int64_t column = t * T::kColumns;
      const uint8_t* ahead = body + t * (T::kWords * 4 * kTileRows) + 8192;
      int64_t at = 0;
      for (; at + 4 <= n_tokens; at += 4) {
        panel_times<Block, 4>(panel, n_groups, x, token + at, column, t == 0, y + at * out_stride, out_stride,
                              at == 0 ? ahead : nullptr);
      }
      if (at + 2 <= n_tokens) {
        panel_times<Block, 2>(panel, n_groups, x, token + at, column, t == 0, y + at * out_stride, out_stride,
                              at == 0 ? ahead : nullptr);
        at += 2;
      }
      if (at < n_tokens) {
        panel_times<Block, 1>(panel, n_groups, x, token + at, column, t == 0, y + at * out_stride, out_stride,
                              at == 0 ? ahead : nullptr);
      }
    }
  }
}

// The table entries of a format; a float format has no integer kernels.
template <class Block, bool kFloat = Block::kIsFloat != 0>
struct TileKernelsOf {
  static constexpr GemvTilesFn kGemv = gemv_tiles<Block>;
  static constexpr GemmTilesFn kGemm = gemm_tiles<Block>;
};

template <class Block>
struct TileKernelsOf<Block, true> {
  static constexpr GemvTilesFn kGemv = nullptr;
  static constexpr GemmTilesFn kGemm = nullptr;
};
