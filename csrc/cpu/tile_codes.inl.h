// The tiles of every format as codes, scales and offsets, written once. Included by each ISA file inside its anonymous
// namespace, after the words of that ISA. Its vectors Vu8 Vi8 Vu16 Vi16 Vu32 Vi32 Vf32 have kVectorBytes (kParts of them
// are 16 rows); what the compiler's vector operators do not say is
//
//   load(p)                         one word of each row
//   bytes_of(word, shift, mask)     bits shift .. of each byte
//   byte_pair(word, a, b)           bytes a and b of each lane as two 16-bit numbers; byte_pair_high: in their high bytes
//   byte_all(word, b)               byte b of each lane in all its bytes
//   low_twice(pairs), high_twice    one number of each pair in both places
//   lookup16(table, index)          16 entries of a byte
//   above(a, b), hidden(v), three_times(v)          for digits of base 3
//   halves(p), floats_of_halves(v), widen_u8(p), widen_u16(p), float_of(v), fma(a, b, c)
//   grid8, grid4, RowNumbers        codebook rows, see avx2_tiles.cpp
//   kShortLoops                     whether the groups of a tile are a loop over kUnrolled of them, not unrolled
//   kNumbersKept                    groups that have their RowNumbers: 8 before the first is used, or 2 and so a group ahead
//
// TileCodes<Block>(body, tail) is one part of a tile: as many rows as a vector has lanes of 32 bits. 32 columns are a
// group, a group is 8 vectors of codes; groups are asked for in order, 0 first.
//
//   weight = factor * scale * (code - kOffset)  [- minimum_factor * minimum]  [+ float offset]
//
//   kGroups          groups of a tile: 8, or 1 where a block has 32 columns
//   kMax             codes are 0 .. kMax; 0: they are signed bytes
//   kOffset          see above
//   kScales          0: no integer scale; 1: one for the group; 2: one for each 16 columns
//   kMinimum         integer minima, one for each 16 columns
//   kFloatOffset     a float offset, one for the group
//   kUnrolled        of the 8 groups, those whose instructions a processor keeps decoded
//   codes(g, Vu8*)    the 8 vectors of codes
//   scales(g)        Vi16 pairs: scale of the first 16 columns, of the second 16 columns
//   minima(g)        the same for the minima
//   factor()         of the tile;  minimum_factor(), float_offset() likewise

template <class Block>
struct TileCodes;

// Word u of the rows of one part
struct TileBody {
  const uint8_t* body;
  inline Vu32 word(int u) const { return load(body + 64 * u); }
};

// What an ISA may have in another form: it declares the template and specialises it for its vector before this file.
//
// SignedCodes: how signed bytes become codes; kMax and kOffset as in TileCodes.
template <class V>
struct SignedCodes {
  static constexpr int kMax = 0;
  static constexpr int kOffset = 0;
  static inline V of(V bytes) { return bytes; }
  static inline V of_iq4(V nibbles) { return lookup16(kIq4Values, nibbles); }
};

// CodeSigns: the signs of a group. next: offset + code, or offset - code where the top bit of the byte is set, which the
// next sign then is.
template <class V>
struct CodeSigns {
  V sign;
  int8_t offset;
  inline CodeSigns(V signs, int8_t offset_) : sign(signs), offset(offset_) {}
  inline V next(V code) {
    const Vi8 minus = Vi8(reinterpret_cast<Vi8>(sign) < 0);
    sign += sign;
    return reinterpret_cast<V>((reinterpret_cast<Vi8>(code) ^ minus) - minus + offset);
  }
};

static inline Vu32 splat(uint32_t value) { return Vu32{} + value; }

// Byte b (0 .. 7) of two words twice, as a pair of 16-bit numbers; b is known when the loop is unrolled.
static inline Vi16 byte_twice(const Vu32* words, int b) { return byte_pair(words[b / 4], b % 4, b % 4); }

template <int kGroupsV, int kMaxV, int kOffsetV, int kScalesV, bool kMinimumV = false, bool kFloatOffsetV = false>
struct Plan {
  static constexpr int kGroups = kGroupsV;
  static constexpr int kMax = kMaxV;
  static constexpr int kOffset = kOffsetV;
  static constexpr int kScales = kScalesV;
  static constexpr bool kMinimum = kMinimumV;
  static constexpr bool kFloatOffset = kFloatOffsetV;
  static constexpr bool kSigned = false;
  static constexpr int kUnrolled = 8;
};

// ---- 2-bit codes, four of them to a byte: byte m of 32 holds the columns m, m + 32, m + 64, m + 96 ----

static inline void two_bit_codes(const TileBody& t, int first_word, int g, Vu8* code) {
  for (int v = 0; v < 8; ++v) code[v] = bytes_of(t.word(first_word + 8 * (g / 4) + v), 2 * (g % 4), 3);
}

template <>
struct TileCodes<Q2K> : Plan<8, 3, 0, 2, true>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int g, Vu8* code) const { two_bit_codes(*this, 4, g, code); }
  inline Vi16 both(int g) const { return byte_pair(word(g / 2), 2 * (g % 2), 2 * (g % 2) + 1); }
  inline Vi16 scales(int g) const { return both(g) & 15; }
  inline Vi16 minima(int g) const { return both(g) >> 4; }
  inline Vf32 factor() const { return halves(tail); }
  inline Vf32 minimum_factor() const { return halves(tail + 2 * kTileRows); }
};

template <>
struct TileCodes<Q3K> : Plan<8, 7, 4, 2>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int g, Vu8* code) const {
    two_bit_codes(*this, 8, g, code);
    for (int v = 0; v < 8; ++v) {
      const Vu32 high = word(v);
      code[v] |= reinterpret_cast<Vu8>((g < 2 ? high << (2 - g) : high >> (g - 2)) & splat(0x04040404u));
    }
  }
  inline Vi16 scales(int g) const {
    const Vi16 low = (byte_pair(word(24 + g % 4 / 2), 2 * (g % 2), 2 * (g % 2) + 1) >> (4 * (g / 4))) & 15;
    const Vi16 high = (byte_pair(word(26), 2 * (g % 2), 2 * (g % 2) + 1) >> (2 * (g / 2))) & 3;
    return (low | high << 4) - 32;
  }
  inline Vf32 factor() const { return halves(tail); }
};

template <>
struct TileCodes<Tq20> : Plan<8, 3, 1, 0>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int g, Vu8* code) const { two_bit_codes(*this, 0, g, code); }
  inline Vf32 factor() const { return halves(tail); }
};

// ---- 4, 5 and 6 bits ----

// The eight scales and minima of ScaleOffset6 as bytes
struct SixBits {
  Vu32 scale[2];
  Vu32 minimum[2];
  inline SixBits(Vu32 a, Vu32 b, Vu32 c) {
    const Vu32 low = splat(0x0f0f0f0fu);
    const Vu32 high = splat(0x30303030u);
    scale[0] = a & splat(0x3f3f3f3fu);
    scale[1] = (c & low) | ((a >> 2) & high);
    minimum[0] = b & splat(0x3f3f3f3fu);
    minimum[1] = ((c >> 4) & low) | ((b >> 2) & high);
  }
};

template <>
struct TileCodes<Q4K> : Plan<8, 15, 0, 1, true>, TileBody {
  const uint8_t* tail;
  SixBits six;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_)
      : TileBody{body_}, tail(tail_), six(word(0), word(1), word(2)) {}
  inline void codes(int g, Vu8* code) const {
    for (int v = 0; v < 8; ++v) code[v] = bytes_of(word(3 + 8 * (g / 2) + v), 4 * (g % 2), 15);
  }
  inline Vi16 scales(int g) const { return byte_twice(six.scale, g); }
  inline Vi16 minima(int g) const { return byte_twice(six.minimum, g); }
  inline Vf32 factor() const { return halves(tail); }
  inline Vf32 minimum_factor() const { return halves(tail + 2 * kTileRows); }
};

template <>
struct TileCodes<Q5K> : Plan<8, 31, 0, 1, true>, TileBody {
  const uint8_t* tail;
  SixBits six;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_)
      : TileBody{body_}, tail(tail_), six(word(0), word(1), word(2)) {}
  inline void codes(int g, Vu8* code) const {
    for (int v = 0; v < 8; ++v) {
      const Vu32 high = word(3 + v);
      const Vu32 fifth = (g < 4 ? high << (4 - g) : high >> (g - 4)) & splat(0x10101010u);
      code[v] = bytes_of(word(11 + 8 * (g / 2) + v), 4 * (g % 2), 15) | reinterpret_cast<Vu8>(fifth);
    }
  }
  inline Vi16 scales(int g) const { return byte_twice(six.scale, g); }
  inline Vi16 minima(int g) const { return byte_twice(six.minimum, g); }
  inline Vf32 factor() const { return halves(tail); }
  inline Vf32 minimum_factor() const { return halves(tail + 2 * kTileRows); }
};

template <>
struct TileCodes<Q6K> : Plan<8, 63, 32, 2>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int g, Vu8* code) const {
    const int h = g / 4;
    const int k = g % 4;
    for (int v = 0; v < 8; ++v) {
      const Vu32 high = word(32 + 8 * h + v);
      const Vu32 upper = (k < 2 ? high << (4 - 2 * k) : high >> (2 * k - 4)) & splat(0x30303030u);
      code[v] = bytes_of(word(16 * h + 8 * (k % 2) + v), 4 * (k / 2), 15) | reinterpret_cast<Vu8>(upper);
    }
  }
  inline Vi16 scales(int g) const { return byte_pair_high(word(48 + g / 2), 2 * (g % 2), 2 * (g % 2) + 1) >> 8; }
  inline Vf32 factor() const { return halves(tail); }
};

// Nibbles of four words: the low ones are the first 16 columns.
static inline void nibbles(const TileBody& t, int first_word, Vu8* code) {
  for (int v = 0; v < 4; ++v) {
    const Vu32 word = t.word(first_word + v);
    code[v] = bytes_of(word, 0, 15);
    code[4 + v] = bytes_of(word, 4, 15);
  }
}

static inline void fifth_bits(Vu32 high, Vu8* code) {
  for (int v = 0; v < 8; ++v) {
    const int bit = 4 * (v % 2) + v / 2;
    code[v] |= reinterpret_cast<Vu8>((bit < 4 ? high << (4 - bit) : high >> (bit - 4)) & splat(0x10101010u));
  }
}

template <>
struct TileCodes<Q40> : Plan<1, 15, 8, 0>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int, Vu8* code) const { nibbles(*this, 0, code); }
  inline Vf32 factor() const { return halves(tail); }
};

template <>
struct TileCodes<Q41> : Plan<1, 15, 0, 0, false, true>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int, Vu8* code) const { nibbles(*this, 0, code); }
  inline Vf32 factor() const { return halves(tail); }
  inline Vf32 float_offset() const { return halves(tail + 2 * kTileRows); }
};

template <>
struct TileCodes<Q50> : Plan<1, 31, 16, 0>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int, Vu8* code) const {
    nibbles(*this, 1, code);
    fifth_bits(word(0), code);
  }
  inline Vf32 factor() const { return halves(tail); }
};

template <>
struct TileCodes<Q51> : Plan<1, 31, 0, 0, false, true>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int, Vu8* code) const {
    nibbles(*this, 1, code);
    fifth_bits(word(0), code);
  }
  inline Vf32 factor() const { return halves(tail); }
  inline Vf32 float_offset() const { return halves(tail + 2 * kTileRows); }
};

template <>
struct TileCodes<Q80> : Plan<1, SignedCodes<Vu8>::kMax, SignedCodes<Vu8>::kOffset, 0>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int, Vu8* code) const {
    for (int v = 0; v < 8; ++v) code[v] = SignedCodes<Vu8>::of(reinterpret_cast<Vu8>(word(v)));
  }
  inline Vf32 factor() const { return halves(tail); }
};

// ---- 4-bit codes through a table ----

template <>
struct TileCodes<Iq4Nl> : Plan<1, SignedCodes<Vu8>::kMax, SignedCodes<Vu8>::kOffset, 0>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int, Vu8* code) const {
    nibbles(*this, 0, code);
    for (int v = 0; v < 8; ++v) code[v] = SignedCodes<Vu8>::of_iq4(code[v]);
  }
  inline Vf32 factor() const { return halves(tail); }
};

template <>
struct TileCodes<Iq4Xs> : Plan<8, SignedCodes<Vu8>::kMax, SignedCodes<Vu8>::kOffset, 1>, TileBody {
  const uint8_t* tail;
  Vu32 low;
  Vu32 high;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_)
      : TileBody{body_}, tail(tail_), low(word(0)), high(widen_u16(tail_ + 2 * kTileRows)) {}
  inline void codes(int g, Vu8* code) const {
    nibbles(*this, 1 + 4 * g, code);
    for (int v = 0; v < 8; ++v) code[v] = SignedCodes<Vu8>::of_iq4(code[v]);
  }
  inline Vi16 scales(int g) const {
    const Vu32 s = ((low >> (4 * g)) & 15) | ((high >> (2 * g)) & 3) << 4;
    return reinterpret_cast<Vi16>(s | s << 16) - 32;
  }
  inline Vf32 factor() const { return halves(tail); }
};

alignas(16) constexpr int8_t kMxfp4Codes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

template <>
struct TileCodes<Mxfp4> : Plan<1, 24, 12, 0>, TileBody {
  const uint8_t* tail;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {}
  inline void codes(int, Vu8* code) const {
    nibbles(*this, 0, code);
    for (int v = 0; v < 8; ++v) code[v] = lookup16(kMxfp4Codes, code[v]);
  }
  // 2^(e - 128): the two smallest exponents are subnormal in single precision.
  inline Vf32 factor() const {
    const Vu32 e = widen_u8(tail);
    const Vu32 small = reinterpret_cast<Vu32>(e < splat(2));
    return reinterpret_cast<Vf32>(((splat(0x00200000u) + e * 0x00200000u) & small) | (((e - 1) << 23) & ~small));
  }
};

// ---- base 3 ----

// The digits of a vector of bytes, see tiles/ternary.h, asked for in order: k is 0, 1, ... 4. The top digit is 1 from
// 86 - 128 on and 2 from 171 - 128 on; three times the byte brings up the next.
template <class V>
struct FiveDigits {
  V one = hidden(V{} + uint8_t{256 - 43});
  V two = hidden(V{} + uint8_t{42});
  V q;
  inline void put(V bytes) { q = bytes; }
  inline V digit(int) {
    const V number = next();
    return V{} - above(number, one) - above(number, two);
  }
  // 8 digit + base
  inline V eight_times(int, V base) {
    const V number = next();
    return (above(number, one) & 8) + base + (above(number, two) & 8);
  }
  inline V next() {
    const V now = q;
    q = three_times(q);
    return now;
  }
};

template <>
struct TileCodes<Tq10> : Plan<8, 2, 1, 0>, TileBody {
  const uint8_t* tail;
  FiveDigits<Vu8> five[8];
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_) : TileBody{body_}, tail(tail_) {
    for (int v = 0; v < 8; ++v) five[v].put(reinterpret_cast<Vu8>(word(v)));
  }
  inline void codes(int g, Vu8* code) {
    if (g < 5) {
      for (int v = 0; v < 8; ++v) code[v] = five[v].digit(g);
      return;
    }
    // Columns 160 .. 239 have 16 columns to a digit, the last 16 columns four.
    if (g == 5) {
      for (int v = 0; v < 5; ++v) five[v].put(reinterpret_cast<Vu8>(word(8 + v)));
    }
    for (int v = 0; v < 4; ++v) code[v] = five[v].digit(2 * (g - 5));
    for (int v = 0; v < 4; ++v) code[4 + v] = g < 7 ? five[v].digit(2 * (g - 5) + 1) : five[4].digit(v);
  }
  inline Vf32 factor() const { return halves(tail); }
};

// The digits of IQ1, 0 .. 2: vector number 8 g + v is digit (8 g + v) % 5 of word (8 g + v) / 5.
struct Digits : TileBody {
  FiveDigits<Vu8> five;
  inline int at(int number) {
    if (number % 5 == 0) five.put(reinterpret_cast<Vu8>(word(number / 5)));
    return number % 5;
  }
  inline void draw(int g, Vu8* code) {
    for (int v = 0; v < 8; ++v) {
      const int k = at(8 * g + v);
      code[v] = five.digit(k);
    }
  }
};

// code - 9 = 8 (digit - 1) +- 1
template <>
struct TileCodes<Iq1S> : Plan<8, 18, 9, 1>, Digits {
  const uint8_t* tail;
  Vu32 nibble;
  inline TileCodes(const uint8_t* body_, const uint8_t* tail_)
      : Digits{{body_}, {}}, tail(tail_), nibble(word(kDigitWords)) {}
  inline Vi32 minus(int g) const { return reinterpret_cast<Vi32>(nibble << (28 - 4 * g)) >> 31; }
  inline void codes(int g, Vu8* code) {
    const Vu8 plus_two = reinterpret_cast<Vu8>(~minus(g)) & 2;
    for (int v = 0; v < 8; ++v) {
      const int k = at(8 * g + v);
      code[v] = five.eight_times(k, plus_two);
    }
  }
  // 2 s + 1
  inline Vi16 scales(int g) const {
    const Vu32 s = (nibble >> (4 * g)) & 7;
    const Vu32 odd = s + s + 1;
    return reinterpret_cast<Vi16>(odd | odd << 16);
  }
  inline Vf32 factor() const { return halves(tail) * 0.125f; }
};

template <>
struct TileCodes<Iq1M> : Plan<8, 18, 9, 2>, Digits {
  Vu32 shift_bits;
  Vu32 scale_words[2];
  inline TileCodes(const uint8_t* body_, const uint8_t*)
      : Digits{{body_}, {}}, shift_bits(word(kDigitWords)), scale_words{word(14), word(15)} {}
  // Of 16 columns h: the first and the second 8 columns
  inline Vi16 minus(int h) const {
    return reinterpret_cast<Vi16>(reinterpret_cast<Vu16>(shift_bits) << (15 - h)) >> 15;
  }
  inline void codes(int g, Vu8* code) {
#pragma GCC unroll 4
    for (int eight = 0; eight < 4; ++eight) {
      const Vu32 to_top = shift_bits << (31 - (2 * g + eight / 2 + 16 * (eight % 2)));
      const Vu8 plus_two = reinterpret_cast<Vu8>(~(reinterpret_cast<Vi32>(to_top) >> 31)) & 2;
      for (int v = 2 * eight; v < 2 * eight + 2; ++v) {
        const int k = at(8 * g + v);
        code[v] = five.eight_times(k, plus_two);
      }
    }
  }
  // 2 s + 1 of the 16 columns 2 g and 2 g + 1; a word of 16 bits has four scales of three bits
  inline Vi16 scales(int g) const {
    const Vu32 word = scale_words[g / 4] >> (16 * (g / 2 % 2) + 6 * (g % 2));
    const Vu32 s = (word & 7) | (word & 56) << 13;
    return reinterpret_cast<Vi16>(s + s + splat(0x00010001u));
  }
  inline Vf32 factor() const {
    const Vu32 a = scale_words[0];
    const Vu32 b = scale_words[1];
    return floats_of_halves((a >> 12 & 15) | (a >> 24 & 0xf0) | (b >> 4 & 0xf00) | (b >> 16 & 0xf000)) * 0.125f;
  }
};
