// The sum of one group of 32 columns, for an ISA that multiplies bytes in pairs and has the four activations of a vector
// in every lane. Included after tile_codes.inl.h and tile_grids.inl.h.
//
//   group_sum(codes, g, q, sum8, sum16) = scale * (code . x.q) - offset * scale * (sums of x.q), an integer, one row a lane

// What an ISA may have in another form: it declares the template and specialises it before this file.
//
// ScaleForm: the pairs of scales in the form that dot_scaled takes.
template <class V>
struct ScaleForm {
  static inline V first(V pairs) { return low_twice(pairs); }
  static inline V second(V pairs) { return high_twice(pairs); }
  static inline V both(V twice) { return twice; }
};
// GridSum: run(codes, g, q) is the sum of a codebook format with signs. Needed where OwnSum has none for it.
template <class Codes>
struct GridSum;

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

// One group: codes and their offset
template <class Codes>
[[gnu::always_inline]] static inline Vi32 group_sum(Codes& codes, int g, const int8_t* q, const int16_t*,
                                                    const int16_t* sum16) {
  if constexpr (Codes::kSigned) return GridSum<Codes>::run(codes, g, q);
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
