// The codebook formats in NEON registers, written once for the NEON rows. Included by them inside their anonymous
// namespace. It gives, for a block of 256 weights,
//
//   Fields, fields_of(block, fields)      what has to be put together from several bit fields, for the whole block
//   codes16(block, fields, i)             the weights 16 i .. 16 i + 15 as int8, for IQ1 without their shifts
//   scales_of(block)                      2 s + 1 of every 16 columns
//   block_factor(block)                   a weight is block_factor * (2 s + 1) * code, for IQ1 8 * code + 1 or - 1
//   CodebookUnpack                        the same as plain integers, for unpack.inl.h
//
// Row numbers are cut out of 64 bits in a general register, four or eight to a load, because loads are what a codebook
// needs most: a row is one, and for IQ2 so are its signs. The helpers are forced inline: a call would move every vector
// through memory.

static inline float half_of(const uint8_t* p) {
  __fp16 half;
  __builtin_memcpy(&half, p, 2);
  return static_cast<float>(half);
}

// ---- fields ----

struct Fields {
  alignas(16) uint16_t row[64];  // codebook rows, where the block has them in pieces
  alignas(16) uint8_t sign[32];  // iq3_xxs: sign bits, one byte for 8 weights
};

static inline uint8x16_t load_u8x16(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
// Eight bytes, the upper half zero
static inline uint8x16_t load_u8x8(const uint8_t* p) { return vcombine_u8(vld1_u8(p), vdup_n_u8(0)); }
static inline uint16x8_t load_u16x8(const void* p) { return vreinterpretq_u16_u8(load_u8x16(p)); }
static inline uint32x4_t load_u32x4(const void* p) { return vreinterpretq_u32_u8(load_u8x16(p)); }

// Rows at .. at + 15 from their low and high bytes
static inline void store_rows(Fields& f, int at, uint8x16_t low, uint8x16_t high) {
  vst1q_u16(f.row + at, vreinterpretq_u16_u8(vzip1q_u8(low, high)));
  vst1q_u16(f.row + at + 8, vreinterpretq_u16_u8(vzip2q_u8(low, high)));
}

// Four seven-bit sign codes in the low 28 bits of four words -> 32 sign bits each. 28 bits part into twice 14 and then
// into four times 7; cnt counts the bits of a byte, and sli puts the lowest bit of the count above seven others.
static inline uint8x16_t signs_of_words(uint32x4_t word) {
  const uint16x8_t two = vreinterpretq_u16_u32(vsliq_n_u32(word, vshrq_n_u32(word, 14), 16));
  const uint8x16_t four = vreinterpretq_u8_u16(vsliq_n_u16(two, vshrq_n_u16(two, 7), 8));
  const uint8x16_t codes = vandq_u8(four, vdupq_n_u8(0x7f));
  return vsliq_n_u8(codes, vcntq_u8(codes), 7);
}

// The upper 32-bit numbers of four groups: a group is four indices and the word.
static inline uint32x4_t words_of(const Iq2Xxs& b, int half) {
  return vuzp2q_u32(load_u32x4(b.group + 4 * half), load_u32x4(b.group + 4 * half + 2));
}
static inline uint32x4_t words_of(const Iq3Xxs& b, int half) { return load_u32x4(b.word[4 * half]); }

[[gnu::always_inline]] static inline void fields_of(const Iq2Xxs&, Fields&) {}

[[gnu::always_inline]] static inline void fields_of(const Iq2Xs&, Fields&) {}

[[gnu::always_inline]] static inline void fields_of(const Iq3Xxs& b, Fields& f) {
  for (int half = 0; half < 2; ++half) vst1q_u8(f.sign + 16 * half, signs_of_words(words_of(b, half)));
}

[[gnu::always_inline]] static inline void fields_of(const Iq2S& b, Fields& f) {
  // A byte of high serves four rows, two bits each.
  const uint8x16_t four = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  const int8x16_t down = {0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6};
  const uint8x16_t bytes = load_u8x8(b.high);
  for (int half = 0; half < 2; ++half) {
    const uint8x16_t spread = vqtbl1q_u8(bytes, vaddq_u8(four, vdupq_n_u8(static_cast<uint8_t>(4 * half))));
    store_rows(f, 16 * half, load_u8x16(b.index + 16 * half), vandq_u8(vshlq_u8(spread, down), vdupq_n_u8(3)));
  }
}

[[gnu::always_inline]] static inline void fields_of(const Iq3S& b, Fields& f) {
  // A byte of high serves eight rows, one bit each.
  const uint8x16_t eight = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  const int8x16_t down = {0, -1, -2, -3, -4, -5, -6, -7, 0, -1, -2, -3, -4, -5, -6, -7};
  const uint8x16_t bytes = load_u8x8(b.high);
  for (int part = 0; part < 4; ++part) {
    const uint8x16_t spread = vqtbl1q_u8(bytes, vaddq_u8(eight, vdupq_n_u8(static_cast<uint8_t>(2 * part))));
    store_rows(f, 16 * part, load_u8x16(b.index + 16 * part), vandq_u8(vshlq_u8(spread, down), vdupq_n_u8(1)));
  }
}

[[gnu::always_inline]] static inline void fields_of(const Iq1S& b, Fields& f) {
  // A word serves four rows: its bits 3 i come to bits 8..10.
  const uint8x16_t four = {0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3};
  const int16x8_t to_bit8 = {8, 5, 2, -1, 8, 5, 2, -1};
  const uint8x16_t words = load_u8x16(b.word);
  for (int part = 0; part < 4; ++part) {
    const uint8x16_t spread = vqtbl1q_u8(words, vaddq_u8(four, vdupq_n_u8(static_cast<uint8_t>(4 * part))));
    const uint16x8_t moved = vshlq_u16(vreinterpretq_u16_u8(spread), to_bit8);
    const uint16x8_t low = vmovl_u8(vld1_u8(b.index + 8 * part));
    vst1q_u16(f.row + 8 * part, vbslq_u16(vdupq_n_u16(0x700), moved, low));
  }
}

[[gnu::always_inline]] static inline void fields_of(const Iq1M& b, Fields& f) {
  // A byte of high serves two rows.
  const uint8x16_t bytes = load_u8x16(b.high);
  const uint8x16_t even = vandq_u8(bytes, vdupq_n_u8(7));
  const uint8x16_t odd = vandq_u8(vshrq_n_u8(bytes, 4), vdupq_n_u8(7));
  store_rows(f, 0, load_u8x16(b.index), vzip1q_u8(even, odd));
  store_rows(f, 16, load_u8x16(b.index + 16), vzip2q_u8(even, odd));
}

// A format is a codebook format where fields_of takes it.
template <class Block, class Result = void>
constexpr bool kIsCodebook = false;
template <class Block>
constexpr bool
    kIsCodebook<Block, decltype(fields_of(*static_cast<const Block*>(nullptr), *static_cast<Fields*>(nullptr)))> = true;

// ---- codes ----

// Both words go straight from memory into low halves, so that zip1 can join them.
static inline uint64x2_t low_half(uint64_t word) { return vcombine_u64(vcreate_u64(word), vcreate_u64(0)); }

[[gnu::always_inline]] static inline int8x16_t join(uint64_t low, uint64_t high) {
  return vreinterpretq_s8_u64(vzip1q_u64(low_half(low), low_half(high)));
}

static inline uint64_t load_u64(const void* p) {
  uint64_t word;
  __builtin_memcpy(&word, p, 8);
  return word;
}

// Index k of an array: one load for eight bytes of them, which the compiler shares.
template <typename Index>
[[gnu::always_inline]] static inline uint64_t index_at(const Index* row, int k) {
  constexpr int kEach = 8 / sizeof(Index);
  return static_cast<Index>(load_u64(row + k / kEach * kEach) >> 8 * sizeof(Index) * (k % kEach));
}

// The first row as an address of its own: the compiler would add what lies before it to each row number.
template <typename Word, int kRows>
[[gnu::always_inline]] static inline const Word* first_row(const Codebook<Word, kRows>& grid) {
  const Word* row = grid.row;
  asm("" : "+r"(row));
  return row;
}

template <int kRows>
[[gnu::always_inline]] static inline int8x16_t rows16(const Codebook<uint64_t, kRows>& grid, const uint16_t* row,
                                                      int i) {
  return join(first_row(grid)[index_at(row, 2 * i)], first_row(grid)[index_at(row, 2 * i + 1)]);
}

template <typename Index, int kRows>
[[gnu::always_inline]] static inline int8x16_t rows16(const Codebook<uint32_t, kRows>& grid, const Index* row, int i) {
  uint32x2_t word[4];
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) word[k] = vcreate_u32(first_row(grid)[index_at(row, 4 * i + k)]);
  return vreinterpretq_s8_u32(vcombine_u32(vzip1_u32(word[0], word[1]), vzip1_u32(word[2], word[3])));
}

struct SignsOfBytes {
  uint64_t row[256];
};

constexpr SignsOfBytes expand_signs() {
  SignsOfBytes out{};
  for (unsigned bits = 0; bits < 256; ++bits) {
    for (unsigned j = 0; j < 8; ++j) {
      out.row[bits] |= static_cast<uint64_t>((bits >> j & 1u) ? 0xffu : 0x01u) << (8 * j);
    }
  }
  return out;
}

// Byte j is -1 where bit j is set, else 1.
constexpr SignsOfBytes kSignsOfBytes = expand_signs();

[[gnu::always_inline]] static inline int8x16_t signs16(const uint8_t* sign, int i) {
  return join(kSignsOfBytes.row[index_at(sign, 2 * i)], kSignsOfBytes.row[index_at(sign, 2 * i + 1)]);
}

// Two sign codes of seven bits, side by side in the lowest 14
[[gnu::always_inline]] static inline int8x16_t signs_of_codes(uint64_t codes) {
  return join(first_row(kSigns)[codes & 127], first_row(kSigns)[codes >> 7 & 127]);
}

[[gnu::always_inline]] static inline int8x16_t codes16(const Iq1S&, const Fields& f, int i) {
  return rows16(kIq1Grid, f.row, i);
}

[[gnu::always_inline]] static inline int8x16_t codes16(const Iq1M&, const Fields& f, int i) {
  return rows16(kIq1Grid, f.row, i);
}

[[gnu::always_inline]] static inline int8x16_t codes16(const Iq2Xxs& b, const Fields&, int i) {
  const uint64_t group = load_u64(&b.group[i / 2]);
  const uint64_t index = group >> 16 * (i % 2);
  const int8x16_t rows = join(first_row(kIq2XxsGrid)[index & 255], first_row(kIq2XxsGrid)[index >> 8 & 255]);
  return vmulq_s8(rows, signs_of_codes(group >> (32 + 14 * (i % 2))));
}

[[gnu::always_inline]] static inline int8x16_t codes16(const Iq2Xs& b, const Fields&, int i) {
  const uint64_t words = load_u64(b.word[4 * (i / 2)]) >> 32 * (i % 2);
  const int8x16_t rows = join(first_row(kIq2XsGrid)[words & 511], first_row(kIq2XsGrid)[words >> 16 & 511]);
  return vmulq_s8(rows, join(first_row(kSigns)[words >> 9 & 127], first_row(kSigns)[words >> 25 & 127]));
}

[[gnu::always_inline]] static inline int8x16_t codes16(const Iq2S& b, const Fields& f, int i) {
  return vmulq_s8(rows16(kIq2SGrid, f.row, i), signs16(b.sign, i));
}

// IQ3 has twice the loads: there the sign bits become a mask of all ones where a weight is negative.
[[gnu::always_inline]] static inline int8x16_t negate16(int8x16_t rows, const uint8_t* sign, int i) {
  const uint8x16_t spread = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t two = vaddq_u8(spread, vdupq_n_u8(static_cast<uint8_t>(2 * (i % 4))));
  const uint8x16_t bits = vqtbl1q_u8(load_u8x8(sign + 8 * (i / 4)), two);
  const int8x16_t minus = vreinterpretq_s8_u8(vtstq_u8(bits, bit));
  return vsubq_s8(veorq_s8(rows, minus), minus);
}

[[gnu::always_inline]] static inline int8x16_t codes16(const Iq3Xxs& b, const Fields& f, int i) {
  return negate16(rows16(kIq3XxsGrid, b.index, i), f.sign, i);
}

[[gnu::always_inline]] static inline int8x16_t codes16(const Iq3S& b, const Fields& f, int i) {
  return negate16(rows16(kIq3SGrid, f.row, i), b.sign, i);
}

// ---- scales ----

// 2 s + 1, lane g of half h belongs to the columns 32 (4 h + g): even to the first 16 of them, odd to the others.
struct Scales {
  int32x4_t even[2];
  int32x4_t odd[2];  // read only where the format has a scale for 16 columns
};

template <class Block>
constexpr bool kScale16 = false;
template <>
constexpr bool kScale16<Iq1M> = true;
template <>
constexpr bool kScale16<Iq2Xs> = true;
template <>
constexpr bool kScale16<Iq2S> = true;

static inline void widen(uint8x8_t scale, int32x4_t* out) {
  const uint16x8_t wide = vmovl_u8(scale);
  out[0] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
  out[1] = vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(wide)));
}

// Twice a nibble plus one: sli by one puts the one below; of the bits below a high nibble only the lowest stays, as
// the one.
static inline uint8x8_t odd_of_low_nibbles(uint8x8_t bytes) {
  return vand_u8(vsli_n_u8(vdup_n_u8(1), bytes, 1), vdup_n_u8(31));
}
static inline uint8x8_t odd_of_high_nibbles(uint8x8_t bytes) { return vorr_u8(vshr_n_u8(bytes, 3), vdup_n_u8(1)); }

static inline Scales scales_of_nibbles(const uint8_t* scale) {
  Scales out;
  widen(odd_of_low_nibbles(vld1_u8(scale)), out.even);
  widen(odd_of_high_nibbles(vld1_u8(scale)), out.odd);
  return out;
}

template <class Block>
static inline Scales scales_of_words(const Block& b) {
  Scales out;
  for (int half = 0; half < 2; ++half) {
    const uint32x4_t twice = vshrq_n_u32(words_of(b, half), 27);
    out.even[half] = vreinterpretq_s32_u32(vorrq_u32(twice, vdupq_n_u32(1)));
  }
  return out;
}

[[gnu::always_inline]] static inline Scales scales_of(const Iq2Xxs& b) { return scales_of_words(b); }
[[gnu::always_inline]] static inline Scales scales_of(const Iq3Xxs& b) { return scales_of_words(b); }
[[gnu::always_inline]] static inline Scales scales_of(const Iq2Xs& b) { return scales_of_nibbles(b.scale); }
[[gnu::always_inline]] static inline Scales scales_of(const Iq2S& b) { return scales_of_nibbles(b.scale); }

[[gnu::always_inline]] static inline Scales scales_of(const Iq3S& b) {
  const uint8x8_t bytes = vreinterpret_u8_u32(vcreate_u32(load_u32(b.scale)));
  Scales out;
  widen(vzip1_u8(odd_of_low_nibbles(bytes), odd_of_high_nibbles(bytes)), out.even);
  return out;
}

[[gnu::always_inline]] static inline Scales scales_of(const Iq1S& b) {
  const uint16x8_t twice = vandq_u16(vshrq_n_u16(load_u16x8(b.word), 11), vdupq_n_u16(14));
  const uint16x8_t scale = vorrq_u16(twice, vdupq_n_u16(1));
  Scales out;
  out.even[0] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(scale)));
  out.even[1] = vreinterpretq_s32_u32(vmovl_high_u16(scale));
  return out;
}

// 2 s + 1 of the 16 columns 8 h .. 8 h + 7 in order
static inline int16x8_t scales8(const Iq1M& b, int half) {
  // A word has four scales: bits 3 i come to bits 1..3.
  const uint8x16_t four = {0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3};
  const int16x8_t to_bit1 = {1, -2, -5, -8, 1, -2, -5, -8};
  const uint8x16_t bytes = load_u8x8(b.word[0]);
  const uint8x16_t spread = vqtbl1q_u8(bytes, vaddq_u8(four, vdupq_n_u8(static_cast<uint8_t>(4 * half))));
  const uint16x8_t moved = vshlq_u16(vreinterpretq_u16_u8(spread), to_bit1);
  return vreinterpretq_s16_u16(vorrq_u16(vandq_u16(moved, vdupq_n_u16(14)), vdupq_n_u16(1)));
}

[[gnu::always_inline]] static inline Scales scales_of(const Iq1M& b) {
  Scales out;
  for (int half = 0; half < 2; ++half) {
    const int32x4_t pairs = vreinterpretq_s32_s16(scales8(b, half));
    out.even[half] = vandq_s32(pairs, vdupq_n_s32(0xffff));
    out.odd[half] = vshrq_n_s32(pairs, 16);
  }
  return out;
}

// The shift of IQ1 is one eighth: with it the codes are 8 * row + 1 or - 1, and the factor is an eighth.
static inline float block_factor(const Iq1S& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq1M& b) {
  // The top nibbles of four 16-bit words, lowest first
  const uint64_t nibbles = load_u64(b.word) >> 12 & 0x000f000f000f000f;
  const uint64_t bytes = nibbles | nibbles >> 12;
  const uint8_t half[2] = {static_cast<uint8_t>(bytes), static_cast<uint8_t>(bytes >> 32)};
  return half_of(half) * 0.125f;
}
static inline float block_factor(const Iq2Xxs& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq2Xs& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq2S& b) { return half_of(b.d) * 0.125f; }
static inline float block_factor(const Iq3Xxs& b) { return half_of(b.d) * 0.25f; }
static inline float block_factor(const Iq3S& b) { return half_of(b.d); }

// ---- plain integers ----

template <class Block>
static inline int8x16_t unpacked16(const Block& b, const Fields& f, int i) {
  return codes16(b, f, i);
}

static inline int8x16_t eight_times(int8x16_t rows, int8x16_t plus) { return vaddq_s8(vshlq_n_s8(rows, 3), plus); }

static inline int8x16_t unpacked16(const Iq1S& b, const Fields& f, int i) {
  return eight_times(codes16(b, f, i), vdupq_n_s8((b.word[i / 2][1] & 0x80) ? -1 : 1));
}

static inline int8x16_t unpacked16(const Iq1M& b, const Fields& f, int i) {
  const int8x8_t low = vdup_n_s8((b.high[i] & 0x08) ? -1 : 1);
  const int8x8_t high = vdup_n_s8((b.high[i] & 0x80) ? -1 : 1);
  return eight_times(codes16(b, f, i), vcombine_s8(low, high));
}

template <class Block>
struct CodebookUnpack {
  static constexpr bool kExists = true;

  static inline void run(const Block& b, int8_t* q, float* scale, float*) {
    Fields f;
    fields_of(b, f);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) vst1q_s8(q + 16 * i, unpacked16(b, f, i));
    const Scales s = scales_of(b);
    const float factor = block_factor(b);
    for (int half = 0; half < 2; ++half) {
      const float32x4_t even = vmulq_n_f32(vcvtq_f32_s32(s.even[half]), factor);
      const float32x4_t odd = kScale16<Block> ? vmulq_n_f32(vcvtq_f32_s32(s.odd[half]), factor) : even;
      vst1q_f32(scale + 8 * half, vzip1q_f32(even, odd));
      vst1q_f32(scale + 8 * half + 4, vzip2q_f32(even, odd));
    }
  }
};
