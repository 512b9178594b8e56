// Tiles times one vector, written once. Included after group_sum, which tile_sums.inl.h or the ISA itself gives.
//
//   for each row of tiles, for each part (one row a lane): for each tile: for each group of 32 columns:
//     codes  = 8 vectors from the tile
//     sum    = scale * (codes . x.q - offset * sum of x.q)           integer, one row a lane
//     acc   += float(sum) * x.scale
//   result  += factor * acc
//
// The activation is the same four bytes in every lane; nothing crosses lanes, and a row has its result in its lane.

// OwnSum: what 32 columns make of x.q, exact, as float(sum) of the formula, where an ISA has it in another form: it
// declares the template and specialises it before this file. Otherwise group_sum of tile_sums.inl.h, or of the ISA.
template <class Codes>
struct OwnSum {
  static constexpr bool kExists = false;
};

// g is known only where this is inlined.
template <class Codes>
[[gnu::always_inline]] static inline Vf32 sum_of(Codes& codes, int g, const int8_t* q, const int16_t* sum8,
                                                 const int16_t* sum16) {
  if constexpr (OwnSum<Codes>::kExists) {
    return OwnSum<Codes>::run(codes, g, q, sum8, sum16);
  } else {
    return float_of(group_sum(codes, g, q, sum8, sum16));
  }
}

// Memory is asked for 8 KB ahead, a few lines with each group: a burst for a whole tile would wait for its own places in
// the queue of misses. The parts of a tile share its lines.
template <class T>
struct LinesAhead {
  static constexpr int kLines = (T::kWords + kParts - 1) / kParts;
  static constexpr int of_groups(int n) { return (kLines * n + 7) / 8; }
  static constexpr int end(int g) { return (g + 1) * kLines * 32 / T::kColumns; }
  static inline const uint8_t* first(const uint8_t* tile, int part) { return tile + 8192 + 64 * kLines * part; }
};

// 256 columns of one part: one tile of 256 columns, or up to eight tiles of 32.
template <class Block>
static inline Vf32 panel_dot(const uint8_t* body, const uint8_t* tail, int64_t n_tiles, const Activations& x,
                             int64_t column, const uint8_t* ahead) {
  using Codes = TileCodes<Block>;
  using T = Tile<Block>;
  using Lines = LinesAhead<T>;
  const int8_t* q = x.q + column;
  // Addresses come from these two with small offsets, not from one register for each; volatile: what a part makes of the
  // activations is not kept in memory for the next.
  asm volatile("" : "+r"(q), "+r"(body), "+r"(ahead));
  const float* scale = x.scale + column / kActivationGroup;
  const int16_t* sum8 = x.sum + column / kSumGroup;
  const int16_t* sum16 = x.sum16 + column / 16;
  Vf32 acc{};
  if constexpr (Codes::kGroups == 1) {
    // No LinesAhead: these tiles are read in the order of their bytes, which the processor foresees.
    for (int64_t t = 0; t < n_tiles; ++t) {
      Codes codes(body + t * (T::kWords * 4 * kTileRows), tail + t * (T::kTailBytes * kTileRows));
      const Vf32 sum = sum_of(codes, 0, q + 32 * t, sum8 + 4 * t, sum16 + 2 * t);
      acc = fma(sum, codes.factor() * scale[t], acc);
      if constexpr (Codes::kFloatOffset) {
        acc += codes.float_offset() * (scale[t] * static_cast<float>(sum16[2 * t] + sum16[2 * t + 1]));
      }
    }
    return acc;
  } else {
    Codes codes(body, tail);
    Vf32 minimum{};
    const auto group = [&](int g) __attribute__((always_inline)) {
      const Vf32 x_scale = scale[g] - Vf32{};  // a broadcast; zero plus it would be an addition
      acc = fma(sum_of(codes, g, q + 32 * g, sum8 + 4 * g, sum16 + 2 * g), x_scale, acc);
      if constexpr (Codes::kMinimum) {
        minimum = fma(float_of(pair_dot(codes.minima(g), sum16 + 2 * g)), x_scale, minimum);
      }
    };
    if constexpr (kShortLoops && Codes::kUnrolled < 8) {
      constexpr int kLines = Lines::of_groups(Codes::kUnrolled);
#pragma GCC unroll 1
      for (int first = 0; first < 8; first += Codes::kUnrolled) {
        for (int line = 0; line < kLines; ++line) prefetch(ahead + 64 * line, q);
        ahead += 64 * kLines;
#pragma GCC unroll 4
        for (int g = first; g < first + Codes::kUnrolled; ++g) group(g);
      }
    } else {
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) {
        for (int line = Lines::end(g - 1); line < Lines::end(g); ++line) prefetch(ahead + 64 * line, q);
        group(g);
      }
    }
    acc *= codes.factor();
    if constexpr (Codes::kMinimum) acc -= minimum * codes.minimum_factor();
    return acc;
  }
}

template <class Block>
static void gemv_tiles(const TileRows& rows, const Activations& x, float* out) {
  using T = Tile<Block>;
  constexpr int64_t kBody = T::kWords * 4 * kTileRows;
  constexpr int64_t kTail = T::kTailBytes * kTileRows;
  constexpr int64_t kTogether = 8 / TileCodes<Block>::kGroups;
  const int64_t count = rows.cols / T::kColumns;
  for (int64_t i = 0; i < rows.n_tiles; ++i) {
    const uint8_t* body = rows.data + i * rows.row_bytes;
    const uint8_t* tail = body + count * kBody;
    Vf32 sum[kParts] = {};
    for (int64_t t = 0; t < count; t += kTogether) {
      const int64_t n = count - t < kTogether ? count - t : kTogether;
      const uint8_t* tile = body + t * kBody;
      for (int p = 0; p < kParts; ++p) {
        sum[p] += panel_dot<Block>(tile + p * kVectorBytes, tail + t * kTail + p * kVectorBytes / 4 * T::kTailItem, n,
                                   x, t * T::kColumns, LinesAhead<T>::first(tile, p));
      }
    }
    for (int p = 0; p < kParts; ++p) store(out + i * kTileRows + p * kVectorBytes / 4, sum[p]);
  }
}
