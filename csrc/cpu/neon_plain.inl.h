// The formats without a codebook to plain integers, by NEON. Included by the NEON rows inside their anonymous namespace,
// after neon_codebook.inl.h and before unpack.inl.h, which it gives OwnUnpack.
//
//   unpack_codes(block, q)      what codes8 says for the whole block, 16 weights at a time
//
// Codes of 2 and 4 bits lie so that a shift and a mask leave 16 consecutive weights; a fifth or sixth bit comes from
// its own bytes in the same order.

static inline void store_codes(int8_t* q, uint8x16_t codes) { vst1q_s8(q, vreinterpretq_s8_u8(codes)); }

// Bits shift .. of each byte, as many as mask has
static inline uint8x16_t bits_of(uint8x16_t bytes, int shift, uint8_t mask) {
  return vandq_u8(vshlq_u8(bytes, vdupq_n_s8(static_cast<int8_t>(-shift))), vdupq_n_u8(mask));
}

// The same, moved up by up
static inline uint8x16_t bits_up(uint8x16_t bytes, int shift, uint8_t mask, int up) {
  return vshlq_u8(bits_of(bytes, shift, mask), vdupq_n_s8(static_cast<int8_t>(up)));
}

// ---- 2 bits ----

static inline void unpack_codes(const Q2K& b, int8_t* q) {
  for (int part = 0; part < 4; ++part) {
    const uint8x16_t bytes = load_u8x16(b.code + 16 * part);
    int8_t* out = q + 128 * (part / 2) + 16 * (part % 2);
    for (int k = 0; k < 4; ++k) store_codes(out + 32 * k, bits_of(bytes, 2 * k, 3));
  }
}

static inline void unpack_codes(const Tq20& b, int8_t* q) {
  for (int part = 0; part < 4; ++part) {
    const uint8x16_t bytes = load_u8x16(b.code + 16 * part);
    int8_t* out = q + 128 * (part / 2) + 16 * (part % 2);
    for (int k = 0; k < 4; ++k) store_codes(out + 32 * k, vsubq_u8(bits_of(bytes, 2 * k, 3), vdupq_n_u8(1)));
  }
}

static inline void unpack_codes(const Q3K& b, int8_t* q) {
  for (int part = 0; part < 4; ++part) {
    const uint8x16_t bytes = load_u8x16(b.code + 16 * part);
    const uint8x16_t high = load_u8x16(b.high + 16 * (part % 2));
    int8_t* out = q + 128 * (part / 2) + 16 * (part % 2);
    for (int k = 0; k < 4; ++k) {
      const uint8x16_t code = vorrq_u8(bits_of(bytes, 2 * k, 3), bits_up(high, 4 * (part / 2) + k, 1, 2));
      store_codes(out + 32 * k, vsubq_u8(code, vdupq_n_u8(4)));
    }
  }
}

// ---- base 3 ----

// Digit k of a byte is floor(3 v / 256), v = byte * 3^k modulo 256: at least 1 from 86 on, 2 from 171 on. Minus one.
static inline uint8x16_t ternary_digits(uint8x16_t bytes, uint8x16_t power) {
  const uint8x16_t v = vmulq_u8(bytes, power);
  const uint8x16_t one = vcgeq_u8(v, vdupq_n_u8(86));
  return vsubq_u8(vsubq_u8(vdupq_n_u8(255), one), vcgeq_u8(v, vdupq_n_u8(171)));
}

static inline void unpack_codes(const Tq10& b, int8_t* q) {
  const uint8_t power[5] = {1, 3, 9, 27, 81};
  for (int k = 0; k < 5; ++k) {
    const uint8x16_t times = vdupq_n_u8(power[k]);
    store_codes(q + 32 * k, ternary_digits(load_u8x16(b.digits), times));
    store_codes(q + 32 * k + 16, ternary_digits(load_u8x16(b.digits + 16), times));
    store_codes(q + 160 + 16 * k, ternary_digits(load_u8x16(b.digits + 32), times));
  }
  const uint8x16_t last = vreinterpretq_u8_u32(vdupq_n_u32(load_u32(b.digits + 48)));
  const uint8x16_t times = {1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27};
  store_codes(q + 240, ternary_digits(last, times));
}

// ---- 4 bits and more, 256 weights ----

static inline void unpack_codes(const Q4K& b, int8_t* q) {
  for (int part = 0; part < 8; ++part) {
    const uint8x16_t bytes = load_u8x16(b.code + 16 * part);
    int8_t* out = q + 64 * (part / 2) + 16 * (part % 2);
    store_codes(out, bits_of(bytes, 0, 15));
    store_codes(out + 32, vshrq_n_u8(bytes, 4));
  }
}

static inline void unpack_codes(const Q5K& b, int8_t* q) {
  for (int part = 0; part < 8; ++part) {
    const uint8x16_t bytes = load_u8x16(b.code + 16 * part);
    const uint8x16_t high = load_u8x16(b.high + 16 * (part % 2));
    const int bit = 2 * (part / 2);
    int8_t* out = q + 64 * (part / 2) + 16 * (part % 2);
    store_codes(out, vorrq_u8(bits_of(bytes, 0, 15), bits_up(high, bit, 1, 4)));
    store_codes(out + 32, vorrq_u8(vshrq_n_u8(bytes, 4), bits_up(high, bit + 1, 1, 4)));
  }
}

static inline void unpack_codes(const Q6K& b, int8_t* q) {
  const uint8x16_t middle = vdupq_n_u8(32);
  for (int part = 0; part < 8; ++part) {
    const int half = part / 4;
    const uint8x16_t bytes = load_u8x16(b.low + 16 * part);
    const uint8x16_t high = load_u8x16(b.high + 32 * half + 16 * (part % 2));
    const int bit = part % 4 / 2 * 2;
    int8_t* out = q + 128 * half + 16 * (part % 4);
    store_codes(out, vsubq_u8(vorrq_u8(bits_of(bytes, 0, 15), bits_up(high, bit, 3, 4)), middle));
    store_codes(out + 64, vsubq_u8(vorrq_u8(vshrq_n_u8(bytes, 4), bits_up(high, bit + 4, 3, 4)), middle));
  }
}

// ---- 16 bytes for 32 weights ----

static inline void unpack_values(const uint8_t* code, const int8_t* value, int8_t* q) {
  const int8x16_t values = vld1q_s8(value);
  const uint8x16_t bytes = load_u8x16(code);
  vst1q_s8(q, vqtbl1q_s8(values, bits_of(bytes, 0, 15)));
  vst1q_s8(q + 16, vqtbl1q_s8(values, vshrq_n_u8(bytes, 4)));
}

static inline void unpack_codes(const Iq4Nl& b, int8_t* q) { unpack_values(b.code, kIq4Values, q); }
static inline void unpack_codes(const Mxfp4& b, int8_t* q) { unpack_values(b.code, kMxfp4Values, q); }
static inline void unpack_codes(const Iq4Xs& b, int8_t* q) {
  for (int g = 0; g < 8; ++g) unpack_values(b.code[g], kIq4Values, q + 32 * g);
}

static inline void unpack_codes(const Q40& b, int8_t* q) {
  const uint8x16_t bytes = load_u8x16(b.code);
  store_codes(q, vsubq_u8(bits_of(bytes, 0, 15), vdupq_n_u8(8)));
  store_codes(q + 16, vsubq_u8(vshrq_n_u8(bytes, 4), vdupq_n_u8(8)));
}

static inline void unpack_codes(const Q41& b, int8_t* q) {
  const uint8x16_t bytes = load_u8x16(b.code);
  store_codes(q, bits_of(bytes, 0, 15));
  store_codes(q + 16, vshrq_n_u8(bytes, 4));
}

static inline void unpack_codes(const Q80& b, int8_t* q) {
  store_codes(q, load_u8x16(b.code));
  store_codes(q + 16, load_u8x16(b.code + 16));
}

// Nibbles with a fifth bit, less minus
static inline void unpack_fifth(const uint8_t* code, const uint8_t* high, uint8_t minus, int8_t* q) {
  const uint8x16_t spread = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t bytes = load_u8x16(code);
  const uint8x16_t word = vreinterpretq_u8_u32(vdupq_n_u32(load_u32(high)));
  const uint8x16_t first = vandq_u8(vtstq_u8(vqtbl1q_u8(word, spread), bit), vdupq_n_u8(16));
  const uint8x16_t second = vandq_u8(vtstq_u8(vqtbl1q_u8(word, vaddq_u8(spread, vdupq_n_u8(2))), bit), vdupq_n_u8(16));
  store_codes(q, vsubq_u8(vorrq_u8(bits_of(bytes, 0, 15), first), vdupq_n_u8(minus)));
  store_codes(q + 16, vsubq_u8(vorrq_u8(vshrq_n_u8(bytes, 4), second), vdupq_n_u8(minus)));
}

static inline void unpack_codes(const Q50& b, int8_t* q) { unpack_fifth(b.code, b.high, 16, q); }
static inline void unpack_codes(const Q51& b, int8_t* q) { unpack_fifth(b.code, b.high, 0, q); }

// ---- scales ----

// One scale for the whole block, where nothing else is said
template <class Block>
static inline void unpack_scales(const Block& b, float* scale, float*) {
  const float32x2_t d = vdup_n_f32(half_of(b.d));
  for (int g = 0; g < Block::kBlockSize / 16; g += 2) vst1_f32(scale + g, d);
}

static inline void unpack_scales(const Mxfp4& b, float* scale, float*) { vst1_f32(scale, vdup_n_f32(scale16(b, 0))); }

template <class Block>
static inline void unpack_scale_offset(const Block& b, float* scale, float* offset) {
  vst1_f32(scale, vdup_n_f32(half_of(b.d)));
  vst1_f32(offset, vdup_n_f32(half_of(b.m)));
}

static inline void unpack_scales(const Q41& b, float* scale, float* offset) { unpack_scale_offset(b, scale, offset); }
static inline void unpack_scales(const Q51& b, float* scale, float* offset) { unpack_scale_offset(b, scale, offset); }

// Sixteen integers times a float
static inline void store_products(int8x16_t integers, float factor, float* out) {
  const int16x8_t half[2] = {vmovl_s8(vget_low_s8(integers)), vmovl_high_s8(integers)};
  for (int k = 0; k < 2; ++k) {
    vst1q_f32(out + 8 * k, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(half[k]))), factor));
    vst1q_f32(out + 8 * k + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(half[k])), factor));
  }
}

static inline int8x16_t each_twice(int8x8_t v) { return vcombine_s8(vzip1_s8(v, v), vzip2_s8(v, v)); }

static inline void unpack_scales(const Q2K& b, float* scale, float* offset) {
  const uint8x16_t bytes = load_u8x16(b.scale);
  store_products(vreinterpretq_s8_u8(bits_of(bytes, 0, 15)), half_of(b.d), scale);
  store_products(vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), -half_of(b.dmin), offset);
}

static inline void unpack_scales(const Q3K& b, float* scale, float*) {
  const uint8x8_t low = vld1_u8(b.scale);
  const uint8x16_t nibbles = vcombine_u8(vand_u8(low, vdup_n_u8(15)), vshr_n_u8(low, 4));
  const int8x16_t down = {0, 0, 0, 0, -2, -2, -2, -2, -4, -4, -4, -4, -6, -6, -6, -6};
  const uint8x16_t high = vshlq_u8(vreinterpretq_u8_u32(vdupq_n_u32(load_u32(b.scale + 8))), down);
  const uint8x16_t six = vorrq_u8(nibbles, bits_up(high, 0, 3, 4));
  store_products(vreinterpretq_s8_u8(vsubq_u8(six, vdupq_n_u8(32))), half_of(b.d), scale);
}

static inline void unpack_scales(const Q6K& b, float* scale, float*) {
  store_products(vld1q_s8(reinterpret_cast<const int8_t*>(b.scale)), half_of(b.d), scale);
}

// Scales 0 .. 3 and 4 .. 7, offsets 0 .. 3 and 4 .. 7, one byte each
static inline void unpack_scales6(const ScaleOffset6& s, float d, float dmin, float* scale, float* offset) {
  const uint32_t low = load_u32(s.byte);
  const uint32_t middle = load_u32(s.byte + 4);
  const uint32_t high = load_u32(s.byte + 8);
  const uint64_t scales = (low & 0x3f3f3f3f) | uint64_t{(high & 0x0f0f0f0f) | (low >> 2 & 0x30303030)} << 32;
  const uint64_t offsets = (middle & 0x3f3f3f3f) | uint64_t{(high >> 4 & 0x0f0f0f0f) | (middle >> 2 & 0x30303030)}
                                                       << 32;
  store_products(each_twice(vcreate_s8(scales)), d, scale);
  store_products(each_twice(vcreate_s8(offsets)), -dmin, offset);
}

static inline void unpack_scales(const Q4K& b, float* scale, float* offset) {
  unpack_scales6(b.scale, half_of(b.d), half_of(b.dmin), scale, offset);
}
static inline void unpack_scales(const Q5K& b, float* scale, float* offset) {
  unpack_scales6(b.scale, half_of(b.d), half_of(b.dmin), scale, offset);
}

static inline void unpack_scales(const Iq4Xs& b, float* scale, float*) {
  const uint8x8_t low = vreinterpret_u8_u32(vdup_n_u32(load_u32(b.low)));
  const uint8x8_t nibbles = vzip1_u8(vand_u8(low, vdup_n_u8(15)), vshr_n_u8(low, 4));
  const int8x8_t down = {0, -2, -4, -6, 0, -2, -4, -6};
  const uint8x8_t spread = {0, 0, 0, 0, 1, 1, 1, 1};
  const uint8x8_t bytes = vtbl1_u8(vreinterpret_u8_u16(vdup_n_u16(static_cast<uint16_t>(load_u16(b.high)))), spread);
  const uint8x8_t high = vand_u8(vshl_u8(bytes, down), vdup_n_u8(3));
  const uint8x8_t six = vorr_u8(nibbles, vshl_n_u8(high, 4));
  store_products(each_twice(vreinterpret_s8_u8(vsub_u8(six, vdup_n_u8(32)))), half_of(b.d), scale);
}

template <class Block, class Result = void>
constexpr bool kIsPlain = false;
template <class Block>
constexpr bool
    kIsPlain<Block, decltype(unpack_codes(*static_cast<const Block*>(nullptr), static_cast<int8_t*>(nullptr)))> = true;

template <class Block, bool kCodebook = kIsCodebook<Block>, bool kPlain = kIsPlain<Block>>
struct OwnUnpack {
  static constexpr bool kExists = false;
};

template <class Block>
struct OwnUnpack<Block, true, false> : CodebookUnpack<Block> {};

template <class Block>
struct OwnUnpack<Block, false, true> {
  static constexpr bool kExists = true;

  // One copy for all loops
  [[gnu::noinline]] static void run(const Block& b, int8_t* q, float* scale, float* offset) {
    unpack_codes(b, q);
    unpack_scales(b, scale, offset);
  }
};
