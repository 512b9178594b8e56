// The tiles of the codebook formats with signs, written once. Included after tile_codes.inl.h. Besides what every
// TileCodes has:
//
//   kSigned                true: weight = +- factor * scale * magnitude
//   magnitudes(g, Vu8*)     the 8 vectors of codebook values
//   signs(g)               bit i of byte j: column 8 i + j of the group is negative; bit 4 + i: column 8 i + 4 + j
//
// codes(g) for batches are magnitudes with their signs and kOffset added, so that they are unsigned.

// Of 32 columns, the signs of columns 8 i .. 8 i + 3 are bit i of the bytes 0 .. 3, those of columns 8 i + 4 .. 8 i + 7 bit
// 4 + i. Where the eighth sign has no bit of its own the tile has running_signs (tile.h), and bits 28 .. 31 are free for
// something else.

// Byte 0: 2 s + 1 of the s in bits 28 .. 31
static inline Vu32 odd_of_top(Vu32 word) { return word >> 27 | splat(1); }

// The order in which the signs of the vectors of a group reach bit 7 of their bytes by doubling
constexpr int kSignOrder[8] = {7, 5, 3, 1, 6, 4, 2, 0};

template <class Derived, int kOffsetV, int kScalesV>
struct GridCodes : Plan<8, 2 * kOffsetV, kOffsetV, kScalesV>, TileBody {
  static constexpr bool kSigned = true;
  const uint8_t* tail;
  inline GridCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}

  inline void codes(int g, Vu8* code) {
    Derived& self = static_cast<Derived&>(*this);
    self.magnitudes(g, code);
    CodeSigns<Vu8> signs(reinterpret_cast<Vu8>(self.signs(g)), int8_t{kOffsetV});
    for (const int v : kSignOrder) code[v] = signs.next(code[v]);
  }
};

template <>
struct TileCodes<Iq2Xxs> : GridCodes<TileCodes<Iq2Xxs>, 43, 1> {
  static constexpr int kUnrolled = 4;
  using GridCodes::GridCodes;
  inline const uint8_t* numbers(int g) const { return body + 64 * (2 * g); }
  inline void magnitudes(int g, Vu8* code) const { grid8(kIq2XxsGrid, numbers(g), code); }
  inline Vu32 signs(int g) const { return signs_of_running(word(2 * g + 1)); }
  inline Vu32 odd(int g) const { return odd_of_top(word(2 * g + 1)); }
  inline Vi16 scales(int g) const { return byte_pair(odd(g), 0, 0); }
  inline Vf32 factor() const { return halves(tail) * 0.125f; }
};

// Sixteen nibbles in words u and u + 1; byte g: first and second half of the group
struct NibbleScales {
  Vu32 odd[2][2];  // [half][word], bytes 2 s + 1
  inline NibbleScales(Vu32 a, Vu32 b) {
    const Vu32 low = splat(0x0f0f0f0fu);
    const Vu32 one = splat(0x01010101u);
    odd[0][0] = ((a & low) << 1) + one;
    odd[0][1] = ((b & low) << 1) + one;
    odd[1][0] = ((a >> 3) & (low << 1)) + one;
    odd[1][1] = ((b >> 3) & (low << 1)) + one;
  }
  // Byte 0: of group g
  inline Vu32 of(int g, int half) const { return odd[half][g / 4] >> (8 * (g % 4)); }
  inline Vi16 twice(int g, int half) const { return byte_pair(of(g, half), 0, 0); }
  inline Vi16 pair(int g) const {
    const Vu32 low = splat(0x0000ffffu);
    return reinterpret_cast<Vi16>((reinterpret_cast<Vu32>(twice(g, 0)) & low) |
                                  (reinterpret_cast<Vu32>(twice(g, 1)) & ~low));
  }
};

// Row numbers of more than 8 bits are put together before a group is used: all at once, or a group ahead.
template <class Codes>
static inline void prepare_first(Codes& codes) {
#pragma GCC unroll 8
  for (int g = 0; g < (kNumbersKept == 8 ? 8 : 1); ++g) codes.prepare(g);
}
template <class Codes>
static inline void prepare_after(Codes& codes, int g) {
  if (kNumbersKept < 8 && g < 7) codes.prepare(g + 1);
}

template <>
struct TileCodes<Iq2Xs> : GridCodes<TileCodes<Iq2Xs>, 43, 2> {
  static constexpr int kUnrolled = 4;
  NibbleScales nibble;
  RowNumbers next[kNumbersKept];
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : GridCodes(body_, tail_), nibble(word(16), word(17)) {
    prepare_first(*this);
  }
  // The ninth bits of a group, to bit 0 of the byte of their index
  inline Vu8 ninth(int g) const {
    const Vu32 extra = word(8 + g);
    const Vu8 one_of_each = reinterpret_cast<Vu8>(byte_all(extra, 3) & splat(0x80402010u));
    const Vu8 one = Vu8{} + uint8_t{1};
    return one_of_each < one ? one_of_each : one;
  }
  inline void prepare(int g) { next[g % kNumbersKept].put(reinterpret_cast<Vu8>(word(g)), ninth(g)); }
  inline const RowNumbers& numbers(int g) {
    prepare_after(*this, g);
    return next[g % kNumbersKept];
  }
  inline void magnitudes(int g, Vu8* code) { grid8(kIq2XsGrid, numbers(g), code); }
  inline Vu32 signs(int g) const { return signs_of_running(word(8 + g)); }
  inline Vi16 scales(int g) const { return nibble.pair(g); }
  inline Vf32 factor() const { return halves(tail) * 0.125f; }
};

template <>
struct TileCodes<Iq2S> : GridCodes<TileCodes<Iq2S>, 43, 2> {
  static constexpr int kUnrolled = 4;
  NibbleScales nibble;
  RowNumbers next[kNumbersKept];
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : GridCodes(body_, tail_), nibble(word(18), word(19)) {
    prepare_first(*this);
  }
  inline void prepare(int g) {
    next[g % kNumbersKept].put(reinterpret_cast<Vu8>(word(g)), bytes_of(word(16 + g / 4), 2 * (g % 4), 3));
  }
  inline const RowNumbers& numbers(int g) {
    prepare_after(*this, g);
    return next[g % kNumbersKept];
  }
  inline void magnitudes(int g, Vu8* code) { grid8(kIq2SGrid, numbers(g), code); }
  inline Vu32 signs(int g) const { return word(8 + g); }
  inline Vi16 scales(int g) const { return nibble.pair(g); }
  inline Vf32 factor() const { return halves(tail) * 0.125f; }
};

template <>
struct TileCodes<Iq3Xxs> : GridCodes<TileCodes<Iq3Xxs>, 62, 1> {
  static constexpr int kUnrolled = 2;
  using GridCodes::GridCodes;
  inline void magnitudes(int g, Vu8* code) const {
    grid4(kIq3XxsGrid, body + 64 * (2 * g), code);
    grid4(kIq3XxsGrid, body + 64 * (2 * g + 1), code + 4);
  }
  inline Vu32 signs(int g) const { return signs_of_running(word(16 + g)); }
  inline Vi16 scales(int g) const { return byte_pair(odd_of_top(word(16 + g)), 0, 0); }
  inline Vf32 factor() const { return halves(tail) * 0.25f; }
};

template <>
struct TileCodes<Iq3S> : GridCodes<TileCodes<Iq3S>, 15, 1> {
  static constexpr int kUnrolled = 2;
  RowNumbers next[kNumbersKept][2];
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : GridCodes(body_, tail_) { prepare_first(*this); }
  inline void prepare(int g) {
    for (int a = 0; a < 2; ++a)
      next[g % kNumbersKept][a].put(reinterpret_cast<Vu8>(word(2 * g + a)), bytes_of(word(16 + a), g, 1));
  }
  inline void magnitudes(int g, Vu8* code) {
    prepare_after(*this, g);
    for (int a = 0; a < 2; ++a) grid4(kIq3SGrid, next[g % kNumbersKept][a], code + 4 * a);
  }
  inline Vu32 signs(int g) const { return word(18 + g); }
  inline Vi16 scales(int g) const { return byte_pair(odd_of_top(word(26) << (28 - 4 * g)), 0, 0); }
  inline Vf32 factor() const { return halves(tail); }
};
