// Activations of 256 columns in threadgroup memory, as the inner loop reads them (dot.metal): one SIMD group makes them
// for itself, lane l has codeword l. So a threadgroup makes each column once, and no threadgroup barrier stands
// between.
//
//   word 0 .. 31    of 16 bytes: eight integers as halfs, of 32 codewords
//   word 32 .. 39   four floats for 32 columns: scale; then for iq1 what the sums of the first 16
//                   columns begin with, the same of the other 16, and the sum of all integers
//   word 40 .. 43   iq1: a half for each codeword, a quarter of the sum of its integers
//
// A sum of iq1 begins with -sum((bias + 1) x) - 9/8 sum(x), bias of field k as in lane.metal: all that its weights are
// too large. Every number here and every sum of 32 products is a multiple of 1/8 below 2^21: exact.
//
// About 90 operations of a lane for 256 columns, beside 600 and more for each row of tiles that meets them.
// The caller guarantees a whole SIMD group, a SIMD group barrier after, and one before the words are written again.
#pragma once
#include "lane.metal"

namespace lutkern {
namespace metal_kernels {

enum : int { kStagedTails = 32, kStagedSums = 40, kStagedWords = 44 };  // words of 16 bytes

// Eight activations of a lane, quantised or not
struct Numbers8 {
  float v[8];
};

// Of columns 256 tile + 8 lane .. + 7 of a row that begins at element `first` of x; zeros past the last column
static inline Numbers8 load_numbers8(constant MatrixArgs& args, device const void* x, int64_t first, int tile,
                                     uint lane) {
  const int column = kTileCols * tile + 8 * static_cast<int>(lane);
  Numbers8 out;
  if (column + 8 <= args.cols && args.dtype == kF32) {
    const device float* from = static_cast<const device float*>(x) + first + column;
    LK_UNROLL
    for (int j = 0; j < 8; ++j) out.v[j] = from[j];
  } else if (column + 8 <= args.cols) {
    LK_UNROLL
    for (int j = 0; j < 8; ++j) out.v[j] = load_number(x, args.dtype, first + column + j);
  } else {
    LK_UNROLL
    for (int j = 0; j < 8; ++j)
      out.v[j] = column + j < args.cols ? load_number(x, args.dtype, first + column + j) : 0.0f;
  }
  return out;
}

// The integers of 32 columns, which four lanes have together, and their scale
static inline float quantize8(thread Numbers8& x) {
  uint largest = 0;
  LK_UNROLL
  for (int j = 0; j < 8; ++j) largest = max(largest, magnitude_bits(x.v[j]));
  largest = max(largest, simd_shuffle_xor(largest, 1));
  largest = max(largest, simd_shuffle_xor(largest, 2));
  const QuantizeRule rule = quantize_rule(largest);
  LK_UNROLL
  for (int j = 0; j < 8; ++j) x.v[j] = quantize_number(x.v[j], rule);
  return rule.scale;
}

static inline uint half_bits(float a, float b) {
  return as_type<uint>(half2(static_cast<half>(a), static_cast<half>(b)));
}

// q: integers. has_sums: some format that meets them is iq1.
static inline void stage8(threadgroup uint4* staged, Numbers8 q, float scale, bool has_sums, uint lane) {
  staged[lane] =
      uint4(half_bits(q.v[0], q.v[1]), half_bits(q.v[2], q.v[3]), half_bits(q.v[4], q.v[5]), half_bits(q.v[6], q.v[7]));
  float4 tail = float4(scale, 0.0f, 0.0f, 0.0f);
  if (has_sums) {
    const float pair[4] = {q.v[0] + q.v[4], q.v[1] + q.v[5], q.v[2] + q.v[6], q.v[3] + q.v[7]};
    const float sum8 = (pair[0] + pair[1]) + (pair[2] + pair[3]);
    float begin = -1.125f * sum8;
    LK_UNROLL
    for (int k = 0; k < 4; ++k) begin = fma(pair[k], -static_cast<float>(1 + (1024 >> (2 * k))), begin);
    begin += simd_shuffle_xor(begin, 1);
    float sum = sum8 + simd_shuffle_xor(sum8, 1);
    sum += simd_shuffle_xor(sum, 2);
    tail = float4(scale, begin, simd_shuffle_xor(begin, 2), sum);
    reinterpret_cast<threadgroup half*>(staged + kStagedSums)[lane] = static_cast<half>(0.25f * sum8);
  }
  if (lane % 4 == 0) reinterpret_cast<threadgroup float4*>(staged + kStagedTails)[lane / 4] = tail;
}

}  // namespace metal_kernels
}  // namespace lutkern
