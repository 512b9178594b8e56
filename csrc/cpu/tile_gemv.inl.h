// Tiles times one vector, written once. Included after tile_codes.inl.h and tile_grids.inl.h.
//
//   for each row of tiles, for each part (one row a lane): for each tile: for each group of 32 columns:
//     codes  = 8 vectors from the tile
//     sum    = scale * (codes . x.q - offset * sum of x.q)           integer, one row a lane
//     acc   += float(sum) * x.scale
//   result  += factor * acc
//
// The activation is the same four bytes in every lane; nothing crosses lanes, and a row has its result in its lane.

// What an ISA may have in another form: it declares the template and specialises it before this file.
//
// ScaleForm: the pairs of scales in the form that dot_scaled takes.
// OwnSum: what 32 columns make of x.q, exact, as float(sum) of the formula.
template <class V>
struct ScaleForm {
  static inline V first(V pairs) { return low_twice(pairs); }
  static inline V second(V pairs) { return high_twice(pairs); }
  static inline V both(V twice) { return twice; }
};
template <class Codes>
struct OwnSum {
  static constexpr bool kExists = false;
};

static inline void load_x(const int8_t* q, Vi8* x) {
  for (int v = 0; v < 8; ++v) x[v] = broadcast4(q + 4 * v);
}

// Integer scales, or none: sums of 32 columns
template <class Codes>
static inline Vi32 scaled_dot(const Vu8* code, const Vi8* x, Vi16 scales) {
  if constexpr (Codes::kScales == 0) {
    return dot<Codes::kMax, 8>(code, x);
  } else if constexpr (Codes::kScales == 1) {
    return dot_scaled<Codes::kMax, 8>(code, x, ScaleForm<Vi16>::both(scales));
  } else {
    return dot_scaled<Codes::kMax, 4>(code, x, ScaleForm<Vi16>::first(scales)) +
           dot_scaled<Codes::kMax, 4>(code + 4, x + 4, ScaleForm<Vi16>::second(scales));
  }
}

// The signs of a codebook format move to the activation.
template <class Codes>
static inline Vi32 grid_sum(Codes& codes, int g, const int8_t* q) {
  Vu8 code[8];
  Vi8 x[8];
  load_x(q, x);
  codes.magnitudes(g, code);
  Vu8 sign = reinterpret_cast<Vu8>(codes.signs(g));
#pragma GCC unroll 8
  for (const int v : kSignOrder) {
    x[v] = negate_where(x[v], sign);
    sign += sign;
  }
  const Vi16 scales = codes.scales(g);
  if constexpr (Codes::kScales == 1) {
    return dot_scaled<Codes::kLargest, 8>(code, x, scales);
  } else {
    return dot_scaled<Codes::kLargest, 4>(code, x, low_twice(scales)) +
           dot_scaled<Codes::kLargest, 4>(code + 4, x + 4, high_twice(scales));
  }
}
// One group: codes and their offset
template <class Codes>
static inline Vi32 group_sum(Codes& codes, int g, const int8_t* q, const int16_t*, const int16_t* sum16) {
  if constexpr (Codes::kSigned) {
    return OwnGridSum<Codes>::kExists ? OwnGridSum<Codes>::run(codes, g, q) : grid_sum(codes, g, q);
  }
  Vu8 code[8];
  Vi8 x[8];
  load_x(q, x);
  codes.codes(g, code);
  if constexpr (Codes::kScales == 0) {
    const Vi32 sum = scaled_dot<Codes>(code, x, Vi16{});
    return Codes::kOffset == 0 ? sum : sum - Codes::kOffset * (sum16[0] + sum16[1]);
  } else {
    const Vi16 scales = codes.scales(g);
    const Vi32 sum = scaled_dot<Codes>(code, x, scales);
    return Codes::kOffset == 0 ? sum : sum - Codes::kOffset * pair_dot(scales, sum16);
  }
}

// IQ1: eight times the digits, and what the shifts of one eighth and the 1 in digit - 1 make of sums of activations.
static inline Vi32 group_sum(TileCodes<Iq1S>& c, int g, const int8_t* q, const int16_t*, const int16_t* sum16) {
  Vu8 digit[8];
  Vi8 x[8];
  load_x(q, x);
  c.draw(g, digit);
  const Vi16 odd = c.scales(g);
  const Vi16 minus = reinterpret_cast<Vi16>(c.minus(g));
  // 8 - 1 or 8 + 1
  const Vi16 seven_or_nine = (odd << 3) - ((odd ^ minus) - minus);
  return (dot_scaled<2, 8>(digit, x, odd) << 3) - pair_dot(seven_or_nine, sum16);
}

static inline Vi32 group_sum(TileCodes<Iq1M>& c, int g, const int8_t* q, const int16_t* sum8, const int16_t*) {
  Vu8 digit[8];
  Vi8 x[8];
  load_x(q, x);
  c.draw(g, digit);
  const Vi16 scales = c.scales(g);
  Vi32 sum{};
  Vi32 shifts{};
  for (int half = 0; half < 2; ++half) {
    const Vi16 odd = half ? high_twice(scales) : low_twice(scales);
    const Vi16 minus = c.minus(2 * g + half);
    const Vi16 seven_or_nine = (odd << 3) - ((odd ^ minus) - minus);
    sum += dot_scaled<2, 4>(digit + 4 * half, x + 4 * half, odd);
    shifts += pair_dot(seven_or_nine, sum8 + 2 * half);
  }
  return (sum << 3) - shifts;
}

template <class Codes>
static inline Vf32 sum_of(Codes& codes, int g, const int8_t* q, const int16_t* sum8, const int16_t* sum16) {
  if constexpr (OwnSum<Codes>::kExists) {
    return OwnSum<Codes>::run(codes, g, q, sum8, sum16);
  } else {
    return float_of(group_sum(codes, g, q, sum8, sum16));
  }
}

// 256 columns of one part: one tile of 256 columns, or up to eight tiles of 32.
template <class Block>
static inline Vf32 panel_dot(const uint8_t* body, const uint8_t* tail, int64_t n_tiles, const Activations& x,
                             int64_t column) {
  using Codes = TileCodes<Block>;
  using T = Tile<Block>;
  const int8_t* q = x.q + column;
  // Addresses come from these two with small offsets, not from one register for each.
  asm("" : "+r"(q), "+r"(body));
  const float* scale = x.scale + column / kActivationGroup;
  const int16_t* sum8 = x.sum + column / kSumGroup;
  const int16_t* sum16 = x.sum16 + column / 16;
  Vf32 acc{};
  if constexpr (Codes::kGroups == 1) {
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
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      const Vf32 x_scale = Vf32{} + scale[g];
      acc = fma(sum_of(codes, g, q + 32 * g, sum8 + 4 * g, sum16 + 2 * g), x_scale, acc);
      if constexpr (Codes::kMinimum) {
        minimum = fma(float_of(pair_dot(codes.minima(g), sum16 + 2 * g)), x_scale, minimum);
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
      // Small tiles are read in the order of their bytes, which the processor foresees better.
      if constexpr (TileCodes<Block>::kGroups > 1) prefetch(body + t * kBody, kBody);
      for (int p = 0; p < kParts; ++p) {
        sum[p] += panel_dot<Block>(body + t * kBody + p * kVectorBytes,
                                   tail + t * kTail + p * kVectorBytes / 4 * T::kTailItem, n, x, t * T::kColumns);
      }
    }
    for (int p = 0; p < kParts; ++p) store(out + i * kTileRows + p * kVectorBytes / 4, sum[p]);
  }
}
