// The AVX-512 row (F BW VL DQ VNNI VBMI BITALG GFNI): kernels for the blocks of the codebook formats and of the
// floats; the blocks of every other format go to the AVX2 row.
//
//   y = sum over blocks of d * sum over 32 columns of x.scale * sum over 16 columns of s * (q . x.q)
//
// Reads GGUF blocks in place. A block is four chunks of 64 columns. The inner loop of IQ2 and IQ3:
//
//   index  = the row numbers of 64 codebook rows                        one block of iq3, two of iq2 (of two rows)
//   codes  = vpermi2b(planes, index)                                    two table bytes per row, codes of 2 or 3 bits
//   for each chunk:
//     row    = vpermb(values, vpmultishiftqb(codes))                    64 magnitudes, unsigned bytes
//     x.q    = vpsubb{signs}(0, x.q)                                    the sign moves to the activation
//     dots   = vpdpbusd(0, row, x.q)                                    16 sums of four
//     sum    = vfmadd(float(dots), (2 s + 1) * x.scale, sum)
//   acc    = vfmadd(sum, d, acc)
//
// vpermi2b looks 64 rows up in two registers of table, so nothing is loaded per row. vpmultishiftqb cuts the codes of
// eight weights out of one 64-bit lane; the row numbers are laid out so that the lane that needs a row has looked it up.
// vpermb ignores the bits above the code. Signs are a mask register as they are stored; gf2p8affineqb appends the
// parity bit where seven are stored. The 16 scales of a block lie with number 4 j + l in element j of 128-bit lane l,
// so that chunk j takes its four by a shuffle inside the lanes.
//
// IQ1 has 2048 rows, too many for registers: its rows are loaded one by one, and their signs are taken from the loaded
// bytes. Batches move the activations up by 128 to make them unsigned, and start their sums below zero instead.
//
// Instructions for 256 weights, GCC 12, loop control included, beside the AVX2 row:
//
//              iq1_s  iq1_m  iq2_xxs  iq2_xs  iq2_s  iq3_xxs  iq3_s
//     avx512     160    169       66      77     82       78     85
//     avx2       203    241      231     231    261      330    375
//
// The caller guarantees whole blocks and activations padded to 256 columns.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined registers of its own header for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

#include "kernels.h"

namespace lutkern {
namespace {

// ---- words ----

static inline __m512i load_i8x64(const void* p) { return _mm512_loadu_si512(p); }
static inline __m256i load_u8x32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline __m128i load_u8x16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

static inline uint64_t load_u64(const void* p) {
  uint64_t out;
  __builtin_memcpy(&out, p, sizeof out);
  return out;
}

static inline __m512i all_u64(uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }

static inline __m512i negate_where(__mmask64 minus, __m512i v_i8x64) {
  return _mm512_mask_sub_epi8(v_i8x64, minus, _mm512_setzero_si512(), v_i8x64);
}

static inline float sum_of_lanes(__m512 v) {
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Sums of four products of int8 by int8. The magnitude of -128 is 128, which an unsigned byte holds.
static inline __m512i dot4_i32x16(__m512i w_i8, __m512i x_i8) {
  return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_abs_epi8(w_i8),
                             negate_where(_mm512_movepi8_mask(w_i8), x_i8));
}

// Constants of vpermb, vpermd, vpmultishiftqb and vpshufbitqmb
struct Bytes64 {
  alignas(64) uint8_t v[64];
};
struct Words16 {
  alignas(64) int32_t v[16];
};

// ---- the order of scales: number 4 j + l in element j of 128-bit lane l ----

// Element i holds number v[i]. The same order leads back to the plain one.
constexpr Words16 transposed() {
  Words16 out{};
  for (int i = 0; i < 16; ++i) out.v[i] = 4 * (i % 4) + i / 4;
  return out;
}

// Scales of 32 columns serve two of 16: step * number + first
constexpr Words16 transposed_pairs(int step, int first) {
  Words16 out{};
  for (int i = 0; i < 16; ++i) out.v[i] = step * (transposed().v[i] / 2) + first;
  return out;
}

// Bit fields of one 64-bit word for vpmultishiftqb: bit j * per_chunk + l / share * per_lane comes to bit 0 of its
// element.
constexpr Bytes64 transposed_bits(int per_chunk, int per_lane, int share) {
  Bytes64 out{};
  for (int i = 0; i < 16; ++i) out.v[4 * i] = static_cast<uint8_t>(per_chunk * (i % 4) + i / 4 / share * per_lane);
  return out;
}

constexpr Words16 kTransposed = transposed();
constexpr Words16 kTransposedPairs = transposed_pairs(1, 0);

static inline __m512 in_order(const Words16& order, __m512 v) {
  return _mm512_permutexvar_ps(_mm512_load_si512(order.v), v);
}

static inline __m512i in_order(const Words16& order, __m512i v) {
  return _mm512_permutexvar_epi32(_mm512_load_si512(order.v), v);
}

// Bytes picked from a, and past it from b
static inline __m512i pick(const Bytes64& from, __m512i a) {
  return _mm512_permutexvar_epi8(_mm512_load_si512(from.v), a);
}

static inline __m512i pick(const Bytes64& from, __m512i a, __m512i b) {
  return _mm512_permutex2var_epi8(a, _mm512_load_si512(from.v), b);
}

static inline __m512i shifted(const Bytes64& bit, __m512i v) {
  return _mm512_multishift_epi64_epi8(_mm512_load_si512(bit.v), v);
}

// Of 256 columns
static inline __m512 x_scales(const float* scale) {
  return in_order(kTransposedPairs, _mm512_castps256_ps512(_mm256_loadu_ps(scale)));
}

// Four scales of a chunk, each over the four sums that it belongs to
template <int kChunkOfBlock>
static inline __m512 scales_of_chunk(__m512 scales) {
  return _mm512_permute_ps(scales, kChunkOfBlock * 0x55);
}

// (2 s + 1) * factor, rounded once; infinite where factor is
static inline __m512 odd_times(__m512i s_i32x16, __m512 factor) {
  const __m512 odd = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s_i32x16), _mm512_set1_ps(2), _mm512_set1_ps(1));
  return _mm512_mul_ps(odd, factor);
}

// ---- IQ2 and IQ3: codebook rows from registers ----

// What the chunks of a block need
struct Decoded {
  __m512i codes[2];      // of IQ2: the first one; of IQ3: two chunks each
  __m512i s_i32x16;      // transposed
  const uint8_t* signs;  // one bit for each weight, in order
};

struct SignBytes {
  alignas(64) uint8_t v[64];
};

// Mask registers are loaded eight bytes at a time, in one instruction; a compiler that saw where the bytes come from
// would take the vector apart, in two or three.
static inline void keep_in_memory(SignBytes& bytes) { asm("" : "+m"(bytes)); }

// How many blocks, of as many rows, are decoded together to fill a vector of 64 row numbers.
template <class Block>
struct Together {
  enum : int { kBlocks = 2, kCodeBits = 2 };
};
template <>
struct Together<Iq3Xxs> {
  enum : int { kBlocks = 1, kCodeBits = 3 };
};
template <>
struct Together<Iq3S> {
  enum : int { kBlocks = 1, kCodeBits = 3 };
};

static inline const CodePlanes<256>& planes_of(const Iq2Xxs*) { return kIq2XxsPlanes; }
static inline const CodePlanes<512>& planes_of(const Iq2Xs*) { return kIq2XsPlanes; }
static inline const CodePlanes<1024>& planes_of(const Iq2S*) { return kIq2SPlanes; }
static inline const CodePlanes<256>& planes_of(const Iq3Xxs*) { return kIq3XxsPlanes; }
static inline const CodePlanes<512>& planes_of(const Iq3S*) { return kIq3SPlanes; }

// bit[0]: where bit 7 of the row number is set, bit[1]: where bit 8 is, and so on; vpermi2b sees bits 0..6.
template <int kRows>
static inline __m512i look_up(const uint8_t* plane, __m512i index, const __mmask64* bit) {
  if constexpr (kRows == 128) {
    return _mm512_permutex2var_epi8(load_i8x64(plane), index, load_i8x64(plane + 64));
  } else {
    const __m512i low = look_up<kRows / 2>(plane, index, bit);
    const __m512i high = look_up<kRows / 2>(plane + kRows / 2, index, bit);
    return _mm512_mask_blend_epi8(bit[kRows == 256 ? 0 : kRows == 512 ? 1 : 2], low, high);
  }
}

// Both bytes of 64 rows; in each 128-bit lane the first eight row numbers go to first, the rest to second.
template <int kRows>
static inline void look_up_codes(const CodePlanes<kRows>& planes, __m512i index, const __mmask64* bit, __m512i& first,
                                 __m512i& second) {
  const __m512i low = look_up<kRows>(planes.low, index, bit);
  const __m512i high = look_up<kRows>(planes.high, index, bit);
  first = _mm512_unpacklo_epi8(low, high);
  second = _mm512_unpackhi_epi8(low, high);
}

// Two blocks of 32 rows. The 64-bit lane k of the codes shall hold rows k, 8 + k, 16 + k, 24 + k, one for each chunk.
struct RowOfTwo {
  int block;
  int row;
};

constexpr RowOfTwo row_of_two(int byte) {
  const int lane = byte / 16 * 2 + byte % 8 / 4;
  return {byte % 16 / 8, 8 * (byte % 4) + lane};
}

// Where the row numbers are: per_row bytes for each row, and gap more after four, in blocks 64 bytes apart or less
constexpr Bytes64 rows_of_two(int per_row, int gap, int block_bytes, int first) {
  Bytes64 out{};
  for (int i = 0; i < 64; ++i) {
    const RowOfTwo at = row_of_two(i);
    out.v[i] = static_cast<uint8_t>(at.block * block_bytes + at.row * per_row + at.row / 4 * gap + first);
  }
  return out;
}

// The way back: byte 32 * block + row
constexpr Bytes64 rows_in_order() {
  Bytes64 out{};
  for (int i = 0; i < 64; ++i) {
    const RowOfTwo at = row_of_two(i);
    out.v[32 * at.block + at.row] = static_cast<uint8_t>(i);
  }
  return out;
}

// One block of 64 rows. Lane k of the codes shall hold rows 2 k, 2 k + 1 of one chunk and of the next.
constexpr int row_of_one(int byte) {
  const int lane = byte / 16 * 2 + byte % 8 / 4;
  return 16 * (byte % 16 / 8 * 2 + byte % 4 / 2) + 2 * lane + byte % 2;
}

constexpr Bytes64 rows_of_one() {
  Bytes64 out{};
  for (int i = 0; i < 64; ++i) out.v[i] = static_cast<uint8_t>(row_of_one(i));
  return out;
}

// gf2p8affineqb: bit i of each byte is the parity of the bits that byte 7 - i of the matrix names. Seven sign bits get
// their parity as the eighth.
constexpr uint64_t kWithParity = 0x010204081020407f;     // stored in bits 0..6
constexpr uint64_t kShiftedParity = 0x02040810204080fe;  // stored in bits 1..7

static inline void decode(const Iq2Xxs* const* b, SignBytes& bytes, Decoded* out) {
  static constexpr Bytes64 kRowBytes = rows_of_two(1, 4, 64, 0);
  static constexpr Words16 kWords = transposed_pairs(2, 1);
  static constexpr Words16 kBlocks = {{0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15}};
  const __m512i group[2] = {load_i8x64(b[0]->group), load_i8x64(b[1]->group)};
  const __m512i index = pick(kRowBytes, group[0], group[1]);
  const __mmask64 bit[] = {_mm512_movepi8_mask(index)};
  look_up_codes(kIq2XxsPlanes, index, bit, out[0].codes[0], out[1].codes[0]);
  // The sign codes of a group begin at bits 32, 39, 46, 53: into the low half of its lane, into the high half for the
  // second block.
  const __m512i begin = all_u64(0x352e2720352e2720);
  const __m512i first = _mm512_multishift_epi64_epi8(begin, group[0]);
  const __m512i both = _mm512_mask_multishift_epi64_epi8(first, 0xf0f0f0f0f0f0f0f0, begin, group[1]);
  const __m512i signs = _mm512_gf2p8affine_epi64_epi8(both, all_u64(kWithParity), 0);
  _mm512_store_si512(bytes.v, in_order(kBlocks, signs));
  keep_in_memory(bytes);
  for (int i = 0; i < 2; ++i) {
    out[i].signs = bytes.v + 32 * i;
    out[i].s_i32x16 = _mm512_srli_epi32(in_order(kWords, group[i]), 28);
  }
}

// Sixteen 4-bit scales
static inline __m512i nibbles(const uint8_t* scale) {
  static constexpr Bytes64 kBits = transposed_bits(16, 4, 1);
  return _mm512_and_si512(shifted(kBits, all_u64(load_u64(scale))), _mm512_set1_epi32(15));
}

static inline void decode(const Iq2Xs* const* b, SignBytes& bytes, Decoded* out) {
  static constexpr Bytes64 kLowBytes = rows_of_two(2, 0, 64, 0);
  static constexpr Bytes64 kHighBytes = rows_of_two(2, 0, 64, 1);
  static constexpr Bytes64 kRowsInOrder = rows_in_order();
  const __m512i word[2] = {load_i8x64(b[0]->word), load_i8x64(b[1]->word)};
  const __m512i index = pick(kLowBytes, word[0], word[1]);
  const __m512i high = pick(kHighBytes, word[0], word[1]);
  const __mmask64 bit[] = {_mm512_movepi8_mask(index), _mm512_test_epi8_mask(high, _mm512_set1_epi8(1))};
  look_up_codes(kIq2XsPlanes, index, bit, out[0].codes[0], out[1].codes[0]);
  const __m512i signs = _mm512_gf2p8affine_epi64_epi8(high, all_u64(kShiftedParity), 0);
  _mm512_store_si512(bytes.v, pick(kRowsInOrder, signs));
  keep_in_memory(bytes);
  for (int i = 0; i < 2; ++i) {
    out[i].signs = bytes.v + 32 * i;
    out[i].s_i32x16 = nibbles(b[i]->scale);
  }
}

// Bit bit of the two high index bits, which lie at 2 * row in the 64 bits of a block
constexpr Bytes64 high_bits_of_two(int bit) {
  Bytes64 out{};
  for (int i = 0; i < 64; ++i) out.v[i] = static_cast<uint8_t>(2 * row_of_two(i).row + bit);
  return out;
}

static inline void decode(const Iq2S* const* b, SignBytes&, Decoded* out) {
  static constexpr Bytes64 kRowBytes = rows_of_two(1, 0, 32, 0);
  static constexpr Bytes64 kBit8 = high_bits_of_two(0);
  static constexpr Bytes64 kBit9 = high_bits_of_two(1);
  const __m512i in_blocks =
      _mm512_inserti64x4(_mm512_castsi256_si512(load_u8x32(b[0]->index)), load_u8x32(b[1]->index), 1);
  const __m512i index = pick(kRowBytes, in_blocks);
  // A 64-bit lane of row numbers belongs to one block, lane after lane to the other one.
  const __m512i high =
      _mm512_mask_set1_epi64(all_u64(load_u64(b[0]->high)), 0xaa, static_cast<long long>(load_u64(b[1]->high)));
  const __mmask64 bit[] = {_mm512_movepi8_mask(index), _mm512_bitshuffle_epi64_mask(high, load_i8x64(kBit8.v)),
                           _mm512_bitshuffle_epi64_mask(high, load_i8x64(kBit9.v))};
  look_up_codes(kIq2SPlanes, index, bit, out[0].codes[0], out[1].codes[0]);
  for (int i = 0; i < 2; ++i) {
    out[i].signs = b[i]->sign;
    out[i].s_i32x16 = nibbles(b[i]->scale);
  }
}

constexpr Bytes64 kRowsOfOne = rows_of_one();

static inline void decode(const Iq3Xxs* const* b, SignBytes& bytes, Decoded* out) {
  const __m512i index = pick(kRowsOfOne, load_i8x64(b[0]->index));
  const __mmask64 bit[] = {_mm512_movepi8_mask(index)};
  look_up_codes(kIq3XxsPlanes, index, bit, out[0].codes[0], out[0].codes[1]);
  const __m256i words = load_u8x32(b[0]->word);
  const __m256i sevens = _mm256_multishift_epi64_epi8(_mm256_set1_epi64x(0x352e2720150e0700), words);
  const __m256i parity = _mm256_set1_epi64x(static_cast<long long>(kWithParity));
  _mm256_store_si256(reinterpret_cast<__m256i*>(bytes.v), _mm256_gf2p8affine_epi64_epi8(sevens, parity, 0));
  keep_in_memory(bytes);
  out[0].signs = bytes.v;
  out[0].s_i32x16 = _mm512_srli_epi32(in_order(kTransposedPairs, _mm512_castsi256_si512(words)), 28);
}

static inline void decode(const Iq3S* const* b, SignBytes&, Decoded* out) {
  static constexpr Bytes64 kBits = transposed_bits(8, 4, 2);
  const __m512i index = pick(kRowsOfOne, load_i8x64(b[0]->index));
  // Bit number row of the 64 bits is the ninth bit of that row.
  const __m512i high = all_u64(load_u64(b[0]->high));
  const __mmask64 bit[] = {_mm512_movepi8_mask(index), _mm512_bitshuffle_epi64_mask(high, load_i8x64(kRowsOfOne.v))};
  look_up_codes(kIq3SPlanes, index, bit, out[0].codes[0], out[0].codes[1]);
  out[0].signs = b[0]->sign;
  const __m512i scale = _mm512_set1_epi32(static_cast<int>(load_u32(b[0]->scale)));
  out[0].s_i32x16 = _mm512_and_si512(shifted(kBits, scale), _mm512_set1_epi32(15));
}

template <class Block, int kChunkOfBlock>
static inline __m512i magnitudes(const Decoded& d) {
  const __m512i values = all_u64(load_u64(planes_of(static_cast<const Block*>(nullptr)).value));
  if constexpr (Together<Block>::kCodeBits == 2) {
    const __m512i begin = all_u64(0x0e0c0a0806040200 + kChunkOfBlock * 0x1010101010101010);
    return _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(begin, d.codes[0]), values);
  } else {
    const __m512i begin = all_u64(0x1b1813100b080300 + kChunkOfBlock % 2 * 0x2020202020202020);
    return _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(begin, d.codes[kChunkOfBlock / 2]), values);
  }
}

// The scale of 16 columns is block_factor * (2 s + 1), for IQ1 an eighth of that in units of its codes.
static inline __m512 float_of_half(unsigned half) {
  return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(half)));
}

template <class Block>
static inline __m512 block_factor(const Block& b) {
  return _mm512_mul_ps(float_of_half(load_u16(b.d)), _mm512_set1_ps(0.125f));
}
static inline __m512 block_factor(const Iq3Xxs& b) {
  return _mm512_mul_ps(float_of_half(load_u16(b.d)), _mm512_set1_ps(0.25f));
}
static inline __m512 block_factor(const Iq3S& b) { return float_of_half(load_u16(b.d)); }
static inline __m512 block_factor(const Iq1S& b) { return float_of_half(load_u16(b.d)); }
static inline __m512 block_factor(const Iq1M& b) {
  // A product with one bit for each nibble moves all four side by side.
  const uint64_t nibble = (load_u64(b.word) >> 12) & 0x000f000f000f000f;
  return float_of_half(static_cast<unsigned>(nibble * 0x0001001001001000 >> 48));
}

template <class Block, int kChunkOfBlock, int kBlocks>
static inline void add_chunk_of(const Decoded (&d)[kBlocks], const __m512 (&scales)[kBlocks], const int8_t* q,
                                __m512 (&sum_f32x16)[kBlocks]) {
  const __m512i x = load_i8x64(q + 64 * kChunkOfBlock);
  for (int i = 0; i < kBlocks; ++i) {
    const __m512i signed_x = negate_where(load_u64(d[i].signs + 8 * kChunkOfBlock), x);
    const __m512i dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), magnitudes<Block, kChunkOfBlock>(d[i]), signed_x);
    const __m512 scale = scales_of_chunk<kChunkOfBlock>(scales[i]);
    sum_f32x16[i] = kChunkOfBlock == 0 ? _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale)
                                       : _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, sum_f32x16[i]);
  }
}

template <class Block>
static void gemv_planes(const Rows& rows, const Activations& x, float* out) {
  constexpr int kBlocks = Together<Block>::kBlocks;
  const int64_t n_blocks = rows.cols / 256;
  for (int64_t r = 0; r < rows.n_rows; r += kBlocks) {
    const Block* at[kBlocks];
    __m512 acc_f32x16[kBlocks];
    for (int i = 0; i < kBlocks; ++i) {
      // Without a partner the last row is its own.
      const int64_t row = r + i < rows.n_rows ? r + i : r;
      at[i] = reinterpret_cast<const Block*>(rows.data + row * rows.row_bytes);
      acc_f32x16[i] = _mm512_setzero_ps();
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
      SignBytes bytes;
      Decoded d[kBlocks];
      decode(at, bytes, d);
      const __m512 x_scale = x_scales(x.scale + 8 * b);
      const int8_t* q = x.q + 256 * b;
      __m512 scales[kBlocks];
      __m512 sum_f32x16[kBlocks];
      for (int i = 0; i < kBlocks; ++i) scales[i] = odd_times(d[i].s_i32x16, x_scale);
      add_chunk_of<Block, 0>(d, scales, q, sum_f32x16);
      add_chunk_of<Block, 1>(d, scales, q, sum_f32x16);
      add_chunk_of<Block, 2>(d, scales, q, sum_f32x16);
      add_chunk_of<Block, 3>(d, scales, q, sum_f32x16);
      for (int i = 0; i < kBlocks; ++i) {
        acc_f32x16[i] = _mm512_fmadd_ps(sum_f32x16[i], block_factor(*at[i]), acc_f32x16[i]);
        ++at[i];
      }
    }
    for (int i = 0; i < kBlocks && r + i < rows.n_rows; ++i) out[r + i] = sum_of_lanes(acc_f32x16[i]);
  }
}

// ---- IQ1: codebook rows from memory ----

// What 256 weights need, cut out of the block's bit fields all at once, so that the inner loop is left with plain
// loads.
struct Fields {
  alignas(64) uint16_t row[32];
  __m512i s_i32x16;  // transposed
  __mmask32 minus;   // where the shift of a row is minus
};

// word: the 16 bits that serve four rows, in lane g those of rows 4 g .. 4 g + 3. bit: where the three high bits of
// the row number begin, for the high byte of each row's 16 bits.
static inline void store_rows(Fields& f, const uint8_t* low, __m512i word_u64x8, uint64_t bit, short minus) {
  const __m512i moved = _mm512_multishift_epi64_epi8(all_u64(bit), word_u64x8);
  const __m512i low_u16x32 = _mm512_cvtepu8_epi16(load_u8x32(low));
  // (moved & 0x700) | low
  _mm512_store_si512(f.row, _mm512_ternarylogic_epi32(moved, _mm512_set1_epi16(0x700), low_u16x32, 0xea));
  f.minus = _mm512_test_epi16_mask(moved, _mm512_set1_epi16(minus));
}

static inline void fields_of(const Iq1S& b, Fields& f) {
  static constexpr Words16 kWords = transposed_pairs(2, 0);
  const __m512i word_u64x8 = _mm512_cvtepu16_epi64(load_u8x16(b.word));
  // High byte of row i: from bit 3 i on. Low byte: from bit 8 on, so that bit 15, the sign of the shift, is bit 7.
  store_rows(f, b.index, word_u64x8, 0x0908060803080008, 0x80);
  const __m512i s = _mm512_srli_epi32(in_order(kWords, word_u64x8), 12);
  f.s_i32x16 = _mm512_and_si512(s, _mm512_set1_epi32(7));
}

static inline void fields_of(const Iq1M& b, Fields& f) {
  static constexpr Bytes64 kBits = transposed_bits(16, 3, 1);
  // High byte of row i: from bit 4 i on, so that the sign of the shift is bit 11.
  store_rows(f, b.index, _mm512_cvtepu16_epi64(load_u8x16(b.high)), 0x0c00080004000000, 0x800);
  f.s_i32x16 = _mm512_and_si512(shifted(kBits, all_u64(load_u64(b.word))), _mm512_set1_epi32(7));
}

// These four are called for each chunk of two formats: inlined all the same, so that constants stay in registers. A
// masked broadcast puts a row where it belongs without a shuffle.
[[gnu::always_inline]] static inline __m256i rows32(const uint16_t* row) {
  const auto at = [row](int i) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kIq1Grid.row + row[i])); };
  __m256i out = _mm256_castsi128_si256(at(0));
  out = _mm256_mask_broadcastq_epi64(out, 2, at(1));
  out = _mm256_mask_broadcastq_epi64(out, 4, at(2));
  return _mm256_mask_broadcastq_epi64(out, 8, at(3));
}

[[gnu::always_inline]] static inline __m512i rows64(const uint16_t* row) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(rows32(row)), rows32(row + 4), 1);
}

template <int kChunkOfBlock>
[[gnu::always_inline]] static inline __m512 dot_ternary(const Fields& f, const int8_t* q, __m512 scales,
                                                        __m512 sum_f32x16) {
  const __m512i dots = dot4_i32x16(rows64(f.row + 8 * kChunkOfBlock), load_i8x64(q + 64 * kChunkOfBlock));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scales_of_chunk<kChunkOfBlock>(scales), sum_f32x16);
}

[[gnu::always_inline]] static inline __m512 dot_block(const Fields& f, const int8_t* q, const float* scale,
                                                      const int16_t* sum) {
  const __m512 scales = odd_times(f.s_i32x16, x_scales(scale));
  // The shifts meet sums of 8 activations: one product for 8 columns instead of eight, an integer until x.scale.
  const __m512i sign = _mm512_mask_blend_epi16(f.minus, _mm512_set1_epi16(1), _mm512_set1_epi16(-1));
  const __m512i shifts_i32x16 = in_order(kTransposed, _mm512_madd_epi16(sign, _mm512_loadu_si512(sum)));
  const __m512 eighths = _mm512_mul_ps(_mm512_cvtepi32_ps(shifts_i32x16), _mm512_set1_ps(0.125f));
  __m512 out = _mm512_mul_ps(eighths, scales);
  out = dot_ternary<0>(f, q, scales, out);
  out = dot_ternary<1>(f, q, scales, out);
  out = dot_ternary<2>(f, q, scales, out);
  return dot_ternary<3>(f, q, scales, out);
}

// The fields of a block are cut while the block before it is multiplied: they go through memory, and a loop that waited
// for them would not keep the processor full.
template <class Block>
static void gemv_ternary(const Rows& rows, const Activations& x, float* out) {
  const int64_t n_blocks = rows.cols / 256;
  Fields fields[2];
  for (int64_t r = 0; r < rows.n_rows; ++r) {
    const Block* block = reinterpret_cast<const Block*>(rows.data + r * rows.row_bytes);
    __m512 acc_f32x16 = _mm512_setzero_ps();
    fields_of(block[0], fields[0]);
    for (int64_t b = 0; b < n_blocks; ++b) {
      const int64_t next = b + 1 < n_blocks ? b + 1 : b;
      fields_of(block[next], fields[(b + 1) % 2]);
      const __m512 sum_f32x16 = dot_block(fields[b % 2], x.q + 256 * b, x.scale + 8 * b, x.sum + 32 * b);
      acc_f32x16 = _mm512_fmadd_ps(sum_f32x16, block_factor(block[b]), acc_f32x16);
    }
    out[r] = sum_of_lanes(acc_f32x16);
  }
}

// ---- codebook formats to plain integers ----

template <class Block, int kChunkOfBlock>
static inline void store_codes(const Decoded& d, int8_t* q) {
  const __m512i row = magnitudes<Block, kChunkOfBlock>(d);
  _mm512_storeu_si512(q + 64 * kChunkOfBlock, negate_where(load_u64(d.signs + 8 * kChunkOfBlock), row));
}

static inline void store_scales(__m512i s_i32x16, __m512 factor, float* scale) {
  _mm512_storeu_ps(scale, in_order(kTransposed, odd_times(s_i32x16, factor)));
}

// A format is a codebook format where decode or fields_of takes it.
template <class Block, class Result = void>
struct OwnUnpack {
  static constexpr bool kExists = false;
};

template <class Block>
struct OwnUnpack<Block, decltype(decode(static_cast<const Block* const*>(nullptr), *static_cast<SignBytes*>(nullptr),
                                        static_cast<Decoded*>(nullptr)))> {
  static constexpr bool kExists = true;
  static constexpr GemvFn kGemv = gemv_planes<Block>;

  static inline void run(const Block& b, int8_t* q, float* scale, float*) {
    const Block* const at[2] = {&b, &b};
    SignBytes bytes;
    Decoded d[2];
    decode(at, bytes, d);
    store_codes<Block, 0>(d[0], q);
    store_codes<Block, 1>(d[0], q);
    store_codes<Block, 2>(d[0], q);
    store_codes<Block, 3>(d[0], q);
    store_scales(d[0].s_i32x16, block_factor(b), scale);
  }
};

template <class Block>
struct OwnUnpack<Block, decltype(fields_of(*static_cast<const Block*>(nullptr), *static_cast<Fields*>(nullptr)))> {
  static constexpr bool kExists = true;
  static constexpr GemvFn kGemv = gemv_ternary<Block>;

  static inline void run(const Block& b, int8_t* q, float* scale, float*) {
    Fields f;
    fields_of(b, f);
    for (int j = 0; j < 4; ++j) {
      // There is no byte shift: what a 16-bit shift carries across the byte border is cleared.
      const __m512i eight_times = _mm512_and_si512(_mm512_slli_epi16(rows64(f.row + 8 * j), 3), _mm512_set1_epi8(-8));
      const __mmask8 minus = static_cast<__mmask8>(f.minus >> (8 * j));
      const __m512i shift = _mm512_mask_blend_epi64(minus, _mm512_set1_epi8(1), _mm512_set1_epi8(-1));
      _mm512_storeu_si512(q + 64 * j, _mm512_add_epi8(eight_times, shift));
    }
    store_scales(f.s_i32x16, _mm512_mul_ps(block_factor(b), _mm512_set1_ps(0.125f)), scale);
  }
};

// ---- the loops written once ----

#include "unpack.inl.h"

// A chunk as four vectors whose 128-bit lane l holds, in element v, columns 4 e .. 4 e + 3 of the 16 columns number
// 4 v + l: the four sums of 16 columns fall into one lane, and one product with a scale serves 256 columns.
static inline void transpose(__m512i (&v)[4]) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]);
  const __m512i b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]);
  const __m512i d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}

// A panel as dot_panel wants it, made once for all tokens. Activations are moved up by 128 to be unsigned, so the sums
// start 128 times the sum of their 16 codes below zero. A chunk is a whole block, without an offset.
struct PanelScales {
  __m512i q[kPanel][4];
  __m512i start_i32x16[kPanel];
  __m512 scale[kPanel];
};

static inline void load_scales(const Unpacked* u, int n_rows, int, PanelScales& panel) {
  const __m512i middle = _mm512_set1_epi8(-128);
  for (int p = 0; p < n_rows; ++p) {
    for (int v = 0; v < 4; ++v) panel.q[p][v] = load_i8x64(u[p].q + 64 * v);
    transpose(panel.q[p]);
    __m512i above = _mm512_setzero_si512();
    for (int v = 0; v < 4; ++v) above = _mm512_dpbusd_epi32(above, middle, panel.q[p][v]);
    panel.start_i32x16[p] = _mm512_sub_epi32(_mm512_setzero_si512(), above);
    panel.scale[p] = in_order(kTransposed, _mm512_load_ps(u[p].scale));
  }
}

// Four sums of lanes at once
static inline __m128 sums_of_lanes(const __m512 (&v)[4]) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512d ab_pd = _mm512_castps_pd(ab);
  const __m512d cd_pd = _mm512_castps_pd(cd);
  const __m512 abcd = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab_pd, cd_pd)),
                                    _mm512_castpd_ps(_mm512_unpackhi_pd(ab_pd, cd_pd)));
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(abcd), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(abcd), high);
  return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}

// A row has one result, alone or in a panel: what a panel lacks of four rows is zero.
template <bool kHasOffset>
static inline void dot_panel(const Unpacked*, const PanelScales& panel, int n_rows, int, const int8_t* q,
                             const float* scale, const int16_t*, float* dots) {
  static_assert(!kHasOffset, "codebook formats have none");
  const __m512i middle = _mm512_set1_epi8(-128);
  __m512i x[4];
  for (int v = 0; v < 4; ++v) x[v] = _mm512_xor_si512(load_i8x64(q + 64 * v), middle);
  transpose(x);
  const __m512 x_scale = x_scales(scale);
  __m512 part[kPanel];
#pragma GCC unroll 4
  for (int p = 0; p < kPanel; ++p) {
    part[p] = _mm512_setzero_ps();
    if (p >= n_rows) continue;
    __m512i dot = panel.start_i32x16[p];
    for (int v = 0; v < 4; ++v) dot = _mm512_dpbusd_epi32(dot, x[v], panel.q[p][v]);
    part[p] = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot), panel.scale[p]), x_scale);
  }
  _mm_storeu_ps(dots, sums_of_lanes(part));
}

static inline float dot_float(const float* w, const float* x, int n) {
  __m512 even = _mm512_setzero_ps();
  __m512 odd = _mm512_setzero_ps();
  int c = 0;
  for (; c + 32 <= n; c += 32) {
    even = _mm512_fmadd_ps(_mm512_loadu_ps(w + c), _mm512_loadu_ps(x + c), even);
    odd = _mm512_fmadd_ps(_mm512_loadu_ps(w + c + 16), _mm512_loadu_ps(x + c + 16), odd);
  }
  for (; c < n; c += 16) {
    const __mmask16 valid = n - c < 16 ? static_cast<__mmask16>((1u << (n - c)) - 1) : __mmask16{0xffff};
    even = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(valid, w + c), _mm512_maskz_loadu_ps(valid, x + c), even);
  }
  return sum_of_lanes(_mm512_add_ps(even, odd));
}

static inline float largest_magnitude(const float* x) {
  // A maximum would lose NaN: magnitudes are compared as integers, which order floats of one sign, NaN above infinity.
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  const __m512i both = _mm512_max_epi32(_mm512_and_si512(_mm512_loadu_si512(x), mask),
                                        _mm512_and_si512(_mm512_loadu_si512(x + 16), mask));
  const __m256i eight = _mm256_max_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(four));
}

static inline void round_group(const float* x, float inverse, int8_t* q) {
  for (int j = 0; j < 2; ++j) {
    const __m512i codes = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * j), _mm512_set1_ps(inverse)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16 * j), _mm512_cvtsepi32_epi8(codes));
  }
}

#include "gemm.inl.h"

#include "quantize.inl.h"

// A format without a codebook goes on to the next row: AVX2 decodes it in registers, the loop over unpacked chunks would
// take ten times as long.
template <class Block, bool kOwn = OwnUnpack<Block>::kExists, bool kFloat = Block::kIsFloat != 0>
struct Entries {
  static constexpr GemvFn kGemv = nullptr;
  static constexpr GemmFn kGemm = nullptr;
  static constexpr GemmFloatFn kGemmFloat = nullptr;
  static constexpr DequantizeFn kDequantize = nullptr;
};

template <class Block>
struct Entries<Block, true, false> {
  static constexpr GemvFn kGemv = OwnUnpack<Block>::kGemv;
  static constexpr GemmFn kGemm = gemm<Block>;
  static constexpr GemmFloatFn kGemmFloat = gemm_float<Block>;
  static constexpr DequantizeFn kDequantize = dequantize<Block>;
};

template <class Block>
struct Entries<Block, false, true> {
  static constexpr GemvFn kGemv = nullptr;
  static constexpr GemmFn kGemm = nullptr;
  static constexpr GemmFloatFn kGemmFloat = gemm_float<Block>;
  static constexpr DequantizeFn kDequantize = dequantize<Block>;
};

}  // namespace

#define LUTKERN_GEMV(name, Block) Entries<Block>::kGemv,
#define LUTKERN_GEMM(name, Block) Entries<Block>::kGemm,
#define LUTKERN_GEMM_FLOAT(name, Block) Entries<Block>::kGemmFloat,
#define LUTKERN_DEQUANTIZE(name, Block) Entries<Block>::kDequantize,

extern const BlockKernels kAvx512Kernels = {
    "avx512",
    {LUTKERN_FORMATS(LUTKERN_GEMV)},
    {LUTKERN_FORMATS(LUTKERN_GEMM)},
    {LUTKERN_FORMATS(LUTKERN_GEMM_FLOAT)},
    {LUTKERN_FORMATS(LUTKERN_DEQUANTIZE)},
    quantize,
};

}  // namespace lutkern
