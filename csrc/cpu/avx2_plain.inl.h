// The formats without a codebook of rows, as the loops of the AVX2 row want them. Included by avx2.cpp inside its
// anonymous namespace, after its words. A unit is 256 columns: one block, or eight blocks of 32. Plain<Block> of a unit:
//
//   code(g)       the codes of its columns 32 g .. 32 g + 31, to be taken in the order g = 0 .. 7
//   kCodes        kUnsigned: weights are code - kLift, code(g) is 2^shift(g) times the code and at most 128;
//                 kSigned: code(g) is the weight
//   kShift        the largest shift(g)
//   kScales       1: one float for all columns, factor()
//                 8: floats, scales(), one for 32 columns
//                 16: integers, scales(), one for 16 columns, all times factor()
//   kMinimum      there are offsets: with blocks of 32 floats, offsets(), one for 32 columns; else 16-bit integers,
//                 minima(), one for 16 columns, all times minimum_factor()

enum Codes { kUnsigned, kSigned };

template <int kScalesOfUnit, Codes kCodesOfUnit, int kLiftOfUnit, bool kHasMinimum>
struct PlainTraits {
  static constexpr int kScales = kScalesOfUnit;
  static constexpr Codes kCodes = kCodesOfUnit;
  static constexpr int kLift = kLiftOfUnit;
  static constexpr bool kMinimum = kHasMinimum;
  static constexpr int kShift = 0;
  static constexpr int shift(int) { return 0; }
};

template <class Block>
struct Plain;

static inline __m256i bits_of(__m256i v, int shift, int mask) {
  return _mm256_and_si256(shift ? _mm256_srli_epi16(v, shift) : v, _mm256_set1_epi8(static_cast<char>(mask)));
}

// Codes of two bits, four in a byte: those of odd g stay two bits up, which saves their shifts.
static inline __m256i two_bits_of(__m256i v, int g) { return bits_of(v, g % 4 / 2 * 4, g % 2 ? 12 : 3); }

// Bit `bit` of each byte, moved to bit `to`
static inline __m256i bit_to(__m256i v, int bit, int to) {
  const __m256i moved = bit > to ? _mm256_srli_epi16(v, bit - to) : _mm256_slli_epi16(v, to - bit);
  return _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(1 << to)));
}

// 16 bytes: the low nibbles are 16 columns, the high nibbles the next 16.
static inline __m256i nibbles32(const uint8_t* p) {
  const __m256i moved = _mm256_srlv_epi32(both_lanes(load_u8x16(p)), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
  return _mm256_and_si256(moved, _mm256_set1_epi8(15));
}

// 32 bits -> 16 in each byte whose bit is set
static inline __m256i fifth_bits(const uint8_t* p) {
  const __m256i spread = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  const __m256i others = _mm256_set1_epi64x(static_cast<int64_t>(0x7fbfdfeff7fbfdfe));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(load_u32(p))), spread);
  const __m256i set = _mm256_cmpeq_epi8(_mm256_or_si256(bytes, others), _mm256_set1_epi8(-1));
  return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

static inline __m256i lookup(const int8_t* values, __m256i index) {
  return _mm256_shuffle_epi8(both_lanes(load_u8x16(values)), index);
}

static inline __m256 floats_of_bytes(__m128i u8x8) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(u8x8)); }

static inline __m256 times(float factor, __m256 v) { return _mm256_mul_ps(_mm256_set1_ps(factor), v); }

// ---- blocks of 32 ----

// The fp16 at the beginning of eight blocks
template <class Block>
[[gnu::always_inline]] static inline __m256 halves8(const Block* b) {
  const auto half = [b](int i) { return static_cast<short>(load_u16(b[i].d)); };
  return _mm256_cvtph_ps(_mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7)));
}

// The first four bytes of four blocks. Insertions from memory: an array of them would be read before it is written.
template <class Block>
[[gnu::always_inline]] static inline __m128i words4(const Block* b) {
  const auto word = [b](int i) {
    int32_t bytes = 0;
    __builtin_memcpy(&bytes, b + i, sizeof(bytes));
    return bytes;
  };
  const __m128i two = _mm_insert_epi32(_mm_cvtsi32_si128(word(0)), word(1), 1);
  return _mm_insert_epi32(_mm_insert_epi32(two, word(2), 2), word(3), 3);
}

// Scales and offsets of eight blocks, each two fp16 at the beginning of its block
struct TwoHalves {
  __m256 first;
  __m256 second;
};
template <class Block>
[[gnu::always_inline]] static inline TwoHalves two_halves8(const Block* b) {
  const __m256i words = _mm256_set_m128i(words4(b + 4), words4(b));
  const __m256i low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
  const __m256i apart = _mm256_packus_epi32(low, _mm256_srli_epi32(words, 16));
  const __m256i in_order = _mm256_permute4x64_epi64(apart, 0xd8);
  return {_mm256_cvtph_ps(low_lane(in_order)), _mm256_cvtph_ps(high_lane(in_order))};
}

template <>
struct Plain<Q80> : PlainTraits<8, kSigned, 0, false> {
  const Q80* b;
  Plain() = default;
  explicit Plain(const Q80* unit) : b(unit) {}
  [[gnu::always_inline]] inline __m256i code(int g) { return load_i8x32(b[g].code); }
  [[gnu::always_inline]] inline __m256 scales() const { return halves8(b); }
};

template <>
struct Plain<Q40> : PlainTraits<8, kUnsigned, 8, false> {
  const Q40* b;
  Plain() = default;
  explicit Plain(const Q40* unit) : b(unit) {}
  [[gnu::always_inline]] inline __m256i code(int g) { return nibbles32(b[g].code); }
  [[gnu::always_inline]] inline __m256 scales() const { return halves8(b); }
};

template <>
struct Plain<Q41> : PlainTraits<8, kUnsigned, 0, true> {
  const Q41* b;
  TwoHalves halves;
  Plain() = default;
  explicit Plain(const Q41* unit) : b(unit), halves(two_halves8(unit)) {}
  [[gnu::always_inline]] inline __m256i code(int g) { return nibbles32(b[g].code); }
  [[gnu::always_inline]] inline __m256 scales() const { return halves.first; }
  [[gnu::always_inline]] inline __m256 offsets() const { return halves.second; }
};

template <>
struct Plain<Q50> : PlainTraits<8, kUnsigned, 16, false> {
  const Q50* b;
  Plain() = default;
  explicit Plain(const Q50* unit) : b(unit) {}
  [[gnu::always_inline]] inline __m256i code(int g) {
    return _mm256_or_si256(nibbles32(b[g].code), fifth_bits(b[g].high));
  }
  [[gnu::always_inline]] inline __m256 scales() const { return halves8(b); }
};

template <>
struct Plain<Q51> : PlainTraits<8, kUnsigned, 0, true> {
  const Q51* b;
  TwoHalves halves;
  Plain() = default;
  explicit Plain(const Q51* unit) : b(unit), halves(two_halves8(unit)) {}
  [[gnu::always_inline]] inline __m256i code(int g) {
    return _mm256_or_si256(nibbles32(b[g].code), fifth_bits(b[g].high));
  }
  [[gnu::always_inline]] inline __m256 scales() const { return halves.first; }
  [[gnu::always_inline]] inline __m256 offsets() const { return halves.second; }
};

template <>
struct Plain<Iq4Nl> : PlainTraits<8, kSigned, 0, false> {
  const Iq4Nl* b;
  Plain() = default;
  explicit Plain(const Iq4Nl* unit) : b(unit) {}
  [[gnu::always_inline]] inline __m256i code(int g) { return lookup(kIq4Values, nibbles32(b[g].code)); }
  [[gnu::always_inline]] inline __m256 scales() const { return halves8(b); }
};

template <>
struct Plain<Mxfp4> : PlainTraits<8, kSigned, 0, false> {
  const Mxfp4* b;
  Plain() = default;
  explicit Plain(const Mxfp4* unit) : b(unit) {}
  [[gnu::always_inline]] inline __m256i code(int g) { return lookup(kMxfp4Values, nibbles32(b[g].code)); }
  // 2^(e - 128): exponent e - 1 where that is above zero, else one of two subnormal numbers
  [[gnu::always_inline]] inline __m256 scales() const {
    const auto byte = [this](int i) { return static_cast<char>(b[i].e); };
    const __m256i e = _mm256_cvtepu8_epi32(
        _mm_setr_epi8(byte(0), byte(1), byte(2), byte(3), byte(4), byte(5), byte(6), byte(7), 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    const __m256i is_normal = _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1));
    return _mm256_castsi256_ps(_mm256_blendv_epi8(small, normal, is_normal));
  }
};

// ---- blocks of 256, one scale or scales of 32 columns ----

template <>
struct Plain<Tq10> : PlainTraits<1, kUnsigned, 1, false> {
  static constexpr int kShift = 6;
  static constexpr int shift(int) { return 6; }
  const Tq10* b;
  __m256i fraction;
  Plain() = default;
  explicit Plain(const Tq10* unit) : b(unit), fraction(load_i8x32(unit->digits)) {}

  static inline __m256i tripled(__m256i v) { return _mm256_add_epi8(_mm256_add_epi8(v, v), v); }
  // The first digit is the two highest bits of floor(3 v / 4) = v - ceil(v / 4).
  static inline __m256i digit(__m256i v) {
    const __m256i half = _mm256_avg_epu8(v, _mm256_setzero_si256());
    const __m256i quarter = _mm256_avg_epu8(half, _mm256_setzero_si256());
    return _mm256_and_si256(_mm256_sub_epi8(v, quarter), _mm256_set1_epi8(static_cast<char>(0xc0)));
  }
  // The last 16 columns are four bytes times 1, 3, 9 and 27.
  inline __m128i last_four() const {
    const __m256i four = _mm256_cvtepu8_epi16(_mm_set1_epi32(static_cast<int>(load_u32(b->digits + 48))));
    const __m256i power = _mm256_setr_epi16(1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27);
    const __m256i product = _mm256_and_si256(_mm256_mullo_epi16(four, power), _mm256_set1_epi16(255));
    return _mm_packus_epi16(low_lane(product), high_lane(product));
  }
  [[gnu::always_inline]] inline __m256i code(int g) {
    if (g == 5) {
      const __m256i sixteen = both_lanes(load_u8x16(b->digits + 32));
      fraction = _mm256_blend_epi32(sixteen, tripled(sixteen), 0xf0);
    } else if (g == 6) {
      fraction = tripled(tripled(fraction));
    } else if (g == 7) {
      fraction = _mm256_inserti128_si256(tripled(tripled(fraction)), last_four(), 1);
    } else if (g > 0) {
      fraction = tripled(fraction);
    }
    return digit(fraction);
  }
  [[gnu::always_inline]] inline float factor() const { return half_of(b->d); }
};

template <>
struct Plain<Tq20> : PlainTraits<1, kUnsigned, 1, false> {
  static constexpr int kShift = 2;
  static constexpr int shift(int g) { return 2 * (g % 2); }
  const Tq20* b;
  Plain() = default;
  explicit Plain(const Tq20* unit) : b(unit) {}
  [[gnu::always_inline]] inline __m256i code(int g) { return two_bits_of(load_i8x32(b->code + 32 * (g / 4)), g); }
  [[gnu::always_inline]] inline float factor() const { return half_of(b->d); }
};

// The scales of Q4_K and Q5_K in bytes 0 .. 7, the offsets in bytes 8 .. 15. The block begins with d and dmin.
template <class Block>
[[gnu::always_inline]] static inline __m128i scales_offsets6(const Block& b) {
  static_assert(__builtin_offsetof(Block, scale) == 4, "one load takes d, dmin and the scales");
  const __m128i all = load_u8x16(&b);
  const __m128i first = _mm_and_si128(all, _mm_set1_epi8(63));
  // Numbers 4 .. 7: two bits on top of the first four, four bits in the last word
  const __m128i top = _mm_and_si128(_mm_srli_epi16(all, 2), _mm_set1_epi8(0x30));
  const __m128i last = _mm_srlv_epi32(_mm_shuffle_epi32(all, 0xff), _mm_setr_epi32(0, 0, 4, 0));
  const __m128i second = _mm_or_si128(top, _mm_and_si128(last, _mm_set1_epi8(15)));
  return _mm_unpacklo_epi32(_mm_srli_si128(first, 4), _mm_srli_si128(second, 4));
}

template <class Block>
struct SixBitPlain : PlainTraits<8, kUnsigned, 0, true> {
  const Block* b;
  __m128i sixes;
  SixBitPlain() = default;
  explicit SixBitPlain(const Block* unit) : b(unit), sixes(scales_offsets6(*unit)) {}
  [[gnu::always_inline]] inline __m256 scales() const { return times(half_of(b->d), floats_of_bytes(sixes)); }
  [[gnu::always_inline]] inline __m256i minima() const {
    return _mm256_cvtepu8_epi16(
        _mm_shuffle_epi8(sixes, _mm_setr_epi8(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15)));
  }
  [[gnu::always_inline]] inline float minimum_factor() const { return -half_of(b->dmin); }
};

template <>
struct Plain<Q4K> : SixBitPlain<Q4K> {
  using SixBitPlain::SixBitPlain;
  [[gnu::always_inline]] inline __m256i code(int g) {
    return bits_of(load_i8x32(b->code + 32 * (g / 2)), 4 * (g % 2), 15);
  }
};

template <>
struct Plain<Q5K> : SixBitPlain<Q5K> {
  using SixBitPlain::SixBitPlain;
  [[gnu::always_inline]] inline __m256i code(int g) {
    const __m256i low = bits_of(load_i8x32(b->code + 32 * (g / 2)), 4 * (g % 2), 15);
    return _mm256_or_si256(low, bit_to(load_i8x32(b->high), g, 4));
  }
};

template <>
struct Plain<Iq4Xs> : PlainTraits<8, kSigned, 0, false> {
  const Iq4Xs* b;
  Plain() = default;
  explicit Plain(const Iq4Xs* unit) : b(unit) {}
  [[gnu::always_inline]] inline __m256i code(int g) { return lookup(kIq4Values, nibbles32(b->code[g])); }
  [[gnu::always_inline]] inline __m256 scales() const {
    const __m256i shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(load_u32(b->low))), shift);
    const __m256i high =
        _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(load_u16(b->high) << 4)), _mm256_srli_epi32(shift, 1));
    const __m256i six =
        _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)), _mm256_and_si256(high, _mm256_set1_epi32(48)));
    return times(half_of(b->d), _mm256_cvtepi32_ps(_mm256_sub_epi32(six, _mm256_set1_epi32(32))));
  }
};

// ---- blocks of 256, scales of 16 columns ----

template <>
struct Plain<Q2K> : PlainTraits<16, kUnsigned, 0, true> {
  static constexpr int kShift = 2;
  static constexpr int shift(int g) { return 2 * (g % 2); }
  const Q2K* b;
  Plain() = default;
  explicit Plain(const Q2K* unit) : b(unit) {}
  [[gnu::always_inline]] inline __m256i code(int g) { return two_bits_of(load_i8x32(b->code + 32 * (g / 4)), g); }
  [[gnu::always_inline]] inline __m128i scales() const {
    return _mm_and_si128(load_u8x16(b->scale), _mm_set1_epi8(15));
  }
  [[gnu::always_inline]] inline __m256i minima() const {
    return _mm256_and_si256(_mm256_srli_epi16(_mm256_cvtepu8_epi16(load_u8x16(b->scale)), 4), _mm256_set1_epi16(15));
  }
  [[gnu::always_inline]] inline float factor() const { return half_of(b->d); }
  [[gnu::always_inline]] inline float minimum_factor() const { return -half_of(b->dmin); }
};

template <>
struct Plain<Q3K> : PlainTraits<16, kUnsigned, 4, false> {
  static constexpr int kShift = 2;
  static constexpr int shift(int g) { return 2 * (g % 2); }
  const Q3K* b;
  Plain() = default;
  explicit Plain(const Q3K* unit) : b(unit) {}
  [[gnu::always_inline]] inline __m256i code(int g) {
    const __m256i low = two_bits_of(load_i8x32(b->code + 32 * (g / 4)), g);
    return _mm256_or_si256(low, bit_to(load_i8x32(b->high), g, 2 + shift(g)));
  }
  [[gnu::always_inline]] inline __m128i scales() const {
    const __m128i low = load_u8x8(b->scale);
    const __m128i nibbles = _mm_unpacklo_epi64(low, _mm_srli_epi16(low, 4));
    const __m128i pairs =
        _mm_srlv_epi32(_mm_set1_epi32(static_cast<int>(load_u32(b->scale + 8))), _mm_setr_epi32(0, 2, 4, 6));
    const __m128i high = _mm_and_si128(_mm_slli_epi16(pairs, 4), _mm_set1_epi8(0x30));
    return _mm_sub_epi8(_mm_or_si128(_mm_and_si128(nibbles, _mm_set1_epi8(15)), high), _mm_set1_epi8(32));
  }
  [[gnu::always_inline]] inline float factor() const { return half_of(b->d); }
};

template <>
struct Plain<Q6K> : PlainTraits<16, kUnsigned, 32, false> {
  const Q6K* b;
  Plain() = default;
  explicit Plain(const Q6K* unit) : b(unit) {}
  [[gnu::always_inline]] inline __m256i code(int g) {
    const int half = g / 4;
    const __m256i low = bits_of(load_i8x32(b->low + 64 * half + 32 * (g % 2)), g % 4 / 2 * 4, 15);
    const __m256i high = load_i8x32(b->high + 32 * half);
    const int shift = 2 * (g % 4);
    const __m256i moved = shift > 4 ? _mm256_srli_epi16(high, shift - 4) : _mm256_slli_epi16(high, 4 - shift);
    return _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8(0x30)));
  }
  [[gnu::always_inline]] inline __m128i scales() const { return load_u8x16(b->scale); }
  [[gnu::always_inline]] inline float factor() const { return half_of(b->d); }
};
