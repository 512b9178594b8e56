// Activations as integers, 32 columns with one scale:
//
//   scale = largest / 127;  q = round(x * (127 / largest))          rule and exceptions: numbers.cuh
//
// A lane has 8 columns, four lanes have a group, a warp has 256 columns of one token:
//
//   v[8]     <- x[token][column + 8 lane ..]                 two 16-byte loads, or one of halves
//   largest  <- over the 8, then over the quad               2 SHFL
//   q[8]     <- low byte of bits(v inverse + 1.5 2^23)       FMUL, FADD; 6 PRMT pack
//
// FADD of 1.5 2^23 rounds halves to even, as rint does, and leaves the integer in the low bits: there is no conversion.
//
// The caller guarantees: every lane of a warp comes; stride is a multiple of 256; q and scale are at multiples of 16.
#pragma once
#include "numbers.cuh"
#include "quantize_plan.h"

namespace lutkern {
namespace cuda {

enum : uint32_t { kMagicBits = 0x4b400000u };  // 1.5 2^23: integers up to 2^22 added to it stay in the low bits
constexpr float kMagic = 12582912.0f;

LK_DEVICE float load_half_number(uint32_t bits, int dtype) {
  return dtype == kF16 ? float_of_half(bits) : float_of_bits(bits << 16);
}

// Every row of x starts at a multiple of 16 bytes.
LK_DEVICE bool has_whole_words(const MatrixArgs& x) {
  const uint64_t bytes = x.dtype == kF32 ? 4 : 2;
  return ((reinterpret_cast<uint64_t>(x.data) | static_cast<uint64_t>(x.row_stride) * bytes) & 15) == 0;
}

// Columns column .. column + 7 of a row; zeros past the last. column is a multiple of 8.
LK_DEVICE void load_eight(const MatrixArgs& x, bool whole_words, int64_t row, int column, float (&v)[8]) {
  const int64_t first = row * x.row_stride + column;
  if (!whole_words || column + 8 > x.cols) {
    if (x.dtype == kF32) {
      for (int j = 0; j < 8; ++j) v[j] = column + j < x.cols ? load_number(x.data, kF32, first + j) : 0.0f;
      return;
    }
    for (int j = 0; j < 8; ++j) {
      const uint32_t bits =
          column + j < x.cols ? constant_load2(static_cast<const uint8_t*>(x.data) + 2 * (first + j)) : 0;
      v[j] = load_half_number(bits, x.dtype);
    }
  } else if (x.dtype == kF32) {
    const uint8_t* from = static_cast<const uint8_t*>(x.data) + 4 * first;
    const Words4 low = constant_load16(from), high = constant_load16(from + 16);
    const uint32_t bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    for (int j = 0; j < 8; ++j) v[j] = float_of_bits(bits[j]);
  } else {
    const Words4 all = constant_load16(static_cast<const uint8_t*>(x.data) + 2 * first);
    const uint32_t bits[4] = {all.x, all.y, all.z, all.w};
    for (int j = 0; j < 8; ++j) v[j] = load_half_number((bits[j / 2] >> (16 * (j % 2))) & 0xffffu, x.dtype);
  }
}

// The low bytes of four words
LK_DEVICE uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return byte_perm(byte_perm(a, b, 0x0040), byte_perm(c, d, 0x0040), 0x5410);
}

// Eight of the 32 columns that a quad has together: their codes, and the scale of all.
LK_DEVICE Words2 quantize_eight(const float (&v)[8], float& scale) {
  uint32_t largest = 0;
  for (int j = 0; j < 8; ++j) largest = larger(largest, magnitude_bits(v[j]));
  largest = larger(largest, shuffle_xor(largest, 1));
  largest = larger(largest, shuffle_xor(largest, 2));
  const QuantizeRule rule = quantize_rule(largest);
  scale = rule.scale;
  uint32_t code[8];
  for (int j = 0; j < 8; ++j) code[j] = bits_of_float(v[j] * rule.inverse + kMagic);
  const uint32_t keep = rule.inverse == 0.0f ? 0u : ~0u;  // NaN and infinity times zero leave bits
  return {pack_bytes(code[0], code[1], code[2], code[3]) & keep, pack_bytes(code[4], code[5], code[6], code[7]) & keep};
}

LK_KERNEL(quantize, QuantizeArgs) {
  const int tiles = static_cast<int>(args.to.stride / kTileCols);
  const int64_t units = int64_t{args.x.rows} * tiles;
  const bool whole_words = has_whole_words(args.x);
  for (int64_t unit = int64_t{block_x()} * kQuantizeWarps + warp(); unit < units;
       unit += int64_t{blocks_x()} * kQuantizeWarps) {
    const int64_t row = unit / tiles;
    const int column = static_cast<int>(unit % tiles) * kTileCols + 8 * static_cast<int>(lane());
    float v[8];
    float scale;
    load_eight(args.x, whole_words, row, column, v);
    const Words2 codes = quantize_eight(v, scale);
    const int64_t at = row * args.to.stride + column;
    store8(args.to.q + at, codes);
    if (lane() % 4 == 0) store4(args.to.scale + at / kGroup, bits_of_float(scale));
  }
}

}  // namespace cuda
}  // namespace lutkern
