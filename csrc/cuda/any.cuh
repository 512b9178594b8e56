// Every format in both layouts, with int8 or float activations: what runs where no kernel of its own exists.
//
//   y = sum over 16 columns of x.scale * (scale * (codes . x.q) + offset * sum(x.q))        int8 activations
//   y = sum over columns of weight * x                                                      exact, float formats
//
// Reads rows of GGUF blocks, or tiles (gpu/tile.h): row r of a matrix is lane r % 32 of row r / 32 of tiles. Activations wait in
// shared memory, a chunk of 1024 columns at a time. A warp has a row, a lane every 32nd codeword of 8 columns:
//
//   for each 8 tokens: for each chunk:
//     the block stages x, quantised or not                     barrier
//     for each codeword of the lane: codes, scale, offset      switch over formats
//       for each token: acc[token] += x.scale * (scale * dp4a(codes, x) + offset * sum(x))
//   y[token] = acc[token] summed over the lanes, in a tree
//
// What matters: one switch for each kernel, everything else is shared between the formats; dp4a; loads of single bytes from
// blocks, which are not aligned (neighbouring lanes read neighbouring bytes, so the cache sees whole lines).
//
// The caller guarantees whole blocks, float weights aligned to their elements, and the plans of any_plan.h.
#pragma once
#include "any_codeword.cuh"
#include "any_plan.h"
#include "numbers.cuh"

namespace lutkern {
namespace cuda {

// Weight at a column of a row of a float format
LK_DEVICE float float_weight(const WeightArgs& w, const uint8_t* matrix, int64_t row, int64_t column) {
  const int id = w.format;
  const int dtype = id == static_cast<int>(FormatId::f32) ? kF32 : id == static_cast<int>(FormatId::f16) ? kF16 : kBf16;
  return load_number(matrix + row * w.row_bytes, dtype, column);
}

// ---- activations ----

// Rows of activations: floats, or integers already (q not null).
struct Input {
  const void* data;
  int dtype;
  int64_t stride;  // of floats, or of integers
  int64_t cols;    // of floats
  const int8_t* q;
  const float* scale;
};

LK_DEVICE Input input_of(const MatrixArgs& x) { return {x.data, x.dtype, x.row_stride, x.cols, nullptr, nullptr}; }

// The activations of a chunk in shared memory, token after token
struct Staged {
  uint8_t* data;
  bool floats;
};

LK_DEVICE uint32_t* codes_of(const Staged& x, int token) {
  return reinterpret_cast<uint32_t*>(x.data + token * any_shared_bytes(1, false));
}
LK_DEVICE float* scales_of(const Staged& x, int token) {
  return reinterpret_cast<float*>(codes_of(x, token) + kAnyChunk / 4);
}
LK_DEVICE float* numbers_of(const Staged& x, int token) { return reinterpret_cast<float*>(x.data) + token * kAnyChunk; }

// Eight neighbouring threads make the 32 columns of a group integers: four columns each, zero past the last column.
LK_DEVICE void stage_integers(const Staged& to, int token, uint32_t four, const float (&x)[4]) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) largest = larger(largest, magnitude_bits(x[i]));
#pragma unroll
  for (uint32_t mask = 1; mask < 8; mask *= 2) largest = larger(largest, shuffle_xor(largest, mask));
  const QuantizeRule rule = quantize_rule(largest);
  int8_t q[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) q[i] = static_cast<int8_t>(quantize_number(x[i], rule));
  codes_of(to, token)[four] = word_of(q);
  if (four % 8 == 0) scales_of(to, token)[four / 8] = rule.scale;
}

LK_DEVICE void stage_ready(const Staged& to, int token, uint32_t four, const Input& x, int64_t row, int64_t column) {
  const bool inside = column < x.stride;
  const int64_t at = row * x.stride + column;
  codes_of(to, token)[four] = inside ? constant_load4(x.q + at) : 0;
  if (four % 8 == 0)
    scales_of(to, token)[four / 8] = inside ? float_of_bits(constant_load4(x.scale + at / kGroup)) : 0.0f;
}

// Columns chunk .. chunk + 1023 of n rows of x. Every thread of the block comes here; a barrier must follow.
LK_DEVICE void stage(const Staged& to, const Input& x, int64_t first_row, int n, int64_t chunk) {
  for (uint32_t i = thread(); i < static_cast<uint32_t>(n) * (kAnyChunk / 4); i += threads()) {
    const int token = static_cast<int>(i / (kAnyChunk / 4));
    const uint32_t four = i % (kAnyChunk / 4);
    const int64_t column = chunk + 4 * four;
    const int64_t row = first_row + token;
    if (x.q) {
      stage_ready(to, token, four, x, row, column);
      continue;
    }
    float v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      v[k] = column + k < x.cols ? load_number(x.data, x.dtype, row * x.stride + column + k) : 0.0f;
    if (!to.floats) {
      stage_integers(to, token, four, v);
      continue;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) numbers_of(to, token)[4 * four + k] = v[k];
  }
}

// ---- dot products of a lane ----

// n: number of the codeword within the chunk
template <int kTokens>
LK_DEVICE void dot_integers(const Codeword& w, const Staged& x, int n, int tokens, float (&acc)[kTokens]) {
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (t >= tokens) break;
    const Words2 codes = load8(codes_of(x, t) + 2 * n);
    const int dot = dp4a(w.codes[1], codes.y, dp4a(w.codes[0], codes.x, 0));
    float sum = w.scale * static_cast<float>(dot);
    // Sums of activations cancel: those of the 16 columns of an offset are integers until the end.
    if (w.has_offset && n % 2 == 0) {
      const Words2 next = load8(codes_of(x, t) + 2 * n + 2);
      int total = dp4a(0x01010101u, codes.y, dp4a(0x01010101u, codes.x, 0));
      total = dp4a(0x01010101u, next.y, dp4a(0x01010101u, next.x, total));
      sum = fma_f32(w.offset, static_cast<float>(total), sum);
    }
    acc[t] = fma_f32(scales_of(x, t)[n / 4], sum, acc[t]);
  }
}

template <int kTokens>
LK_DEVICE void dot_numbers(const Codeword& w, const Staged& x, int n, int tokens, float (&acc)[kTokens]) {
  float weights[8];
#pragma unroll
  for (int c = 0; c < 8; ++c) weights[c] = weight_of(w, c);
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (t >= tokens) break;
    const float* numbers = numbers_of(x, t) + 8 * n;
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < 8; ++c) sum = fma_f32(weights[c], numbers[c], sum);
    acc[t] += sum;
  }
}

// This lane's part of a chunk of a row of an integer format: every 32nd codeword
template <int kTokens>
LK_DEVICE void dot_codewords(const WeightArgs& w, const uint8_t* matrix, int64_t row, int64_t chunk, const Staged& x,
                             int tokens, float (&acc)[kTokens]) {
#pragma unroll 1
  for (int n = static_cast<int>(lane()); n < kAnyChunk / 8; n += 32) {
    if (chunk + 8 * n >= w.stored_cols) break;
    const Codeword codeword = load_codeword(w, matrix, row, chunk / 8 + n);
    if (x.floats) {
      dot_numbers(codeword, x, n, tokens, acc);
    } else {
      dot_integers(codeword, x, n, tokens, acc);
    }
  }
}

// The same of a float format: every 32nd column
template <int kTokens>
LK_DEVICE void dot_floats(const WeightArgs& w, const uint8_t* matrix, int64_t row, int64_t chunk, const Staged& x,
                          int tokens, float (&acc)[kTokens]) {
  float sum[kTokens] = {};
  for (int c = static_cast<int>(lane()); c < kAnyChunk; c += 32) {
    if (chunk + c >= w.cols) break;
    const float weight = float_weight(w, matrix, row, chunk + c);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t < tokens) sum[t] = fma_f32(weight, numbers_of(x, t)[c], sum[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) acc[t] += sum[t];
}

// acc[t] = row times rows first .. first + tokens - 1 of x, this lane's part. Every thread of the block comes here, those
// whose row is not wanted too (row negative).
template <int kTokens>
LK_DEVICE void dot_row(const WeightArgs& w, int64_t expert, int64_t row, const Input& x, int64_t first, int tokens,
                       const Staged& staged, float (&acc)[kTokens]) {
  const uint8_t* matrix = w.data + expert * w.expert_bytes;
  const bool floats = is_float_format(w.format);
#pragma unroll
  for (int t = 0; t < kTokens; ++t) acc[t] = 0.0f;
  for (int64_t chunk = 0; chunk < w.cols; chunk += kAnyChunk) {
    stage(staged, x, first, tokens, chunk);
    barrier();
    if (row >= 0 && floats) {
      dot_floats(w, matrix, row, chunk, staged, tokens, acc);
    } else if (row >= 0) {
      dot_codewords(w, matrix, row, chunk, staged, tokens, acc);
    }
    barrier();
  }
}

LK_DEVICE float sum_of_lanes(float x) {
#pragma unroll
  for (uint32_t mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// ---- kernels ----

// A warp takes 256 columns of a row at a time. They pass through shared memory, so that lanes write neighbours: column c
// at c + c / 8, where neither order meets in a bank.
LK_KERNEL_BOUNDS(dequantize_any, DequantizeArgs, 32 * kAnyCopyWarps, 1) {
  LK_SHARED(float, passing, kAnyCopyWarps* kAnyCopyWords);
  float* mine = passing + warp() * kAnyCopyWords;
  const WeightArgs w = args.w;
  const bool floats = is_float_format(w.format);
  const int64_t chunks = (w.cols + kAnyCopy - 1) / kAnyCopy;
  const int64_t units = int64_t{w.experts} * w.rows * chunks;
  const int64_t step = int64_t{blocks_x()} * kAnyCopyWarps;
  for (int64_t unit = int64_t{block_x()} * kAnyCopyWarps + warp(); unit < units; unit += step) {
    const int64_t row = unit / chunks;
    const int64_t chunk = unit % chunks * kAnyCopy;
    const uint8_t* matrix = w.data + row / w.rows * w.expert_bytes;
    if (!floats && chunk + 8 * static_cast<int>(lane()) < w.stored_cols) {
      const Codeword codeword = load_codeword(w, matrix, row % w.rows, chunk / 8 + lane());
#pragma unroll
      for (int c = 0; c < 8; ++c) mine[9 * lane() + c] = weight_of(codeword, c);
    }
    warp_barrier();
    for (int c = static_cast<int>(lane()); c < kAnyCopy && chunk + c < w.cols; c += 32) {
      const float value = floats ? float_weight(w, matrix, row % w.rows, chunk + c) : mine[c + c / 8];
      store_number(args.out, args.dtype, row * w.cols + chunk + c, value);
    }
    warp_barrier();
  }
}

// A block has 16 rows and takes 8 tokens at a time.
LK_KERNEL_BOUNDS(product_any, ProductArgs, 32 * kAnyWarps, 2) {
  LK_DYNAMIC_SHARED(shared);
  const Staged staged{shared, wants_floats(args.w, args.exact)};
  const int64_t row = args.row_begin + int64_t{block_x()} * kAnyWarps + warp();
  const Input x = input_of(args.x);
  for (int64_t first = int64_t{block_y()} * kAnyTokens; first < args.x.rows;
       first += int64_t{blocks_y()} * kAnyTokens) {
    const int n = args.x.rows - first < kAnyTokens ? static_cast<int>(args.x.rows - first) : int{kAnyTokens};
    float acc[kAnyTokens];
    dot_row(args.w, 0, row < args.row_end ? row : -1, x, first, n, staged, acc);
#pragma unroll
    for (int t = 0; t < kAnyTokens; ++t) {
      if (t >= n) break;
      const float y = sum_of_lanes(acc[t]);
      if (lane() == 0 && row < args.row_end) args.out[(first + t) * args.out_stride + row] = y;
    }
  }
}

// 32 rows of h of one pair: the first warp has them. Past the last row they are zero.
LK_DEVICE void put_hidden(const MoeArgs& args, int64_t pair, int64_t row, const float* gate, const float* up) {
  float h = 0.0f;
  if (row < args.up.rows) {
    h = args.gate.data ? activate(args.activation, gate[lane()]) * up[lane()] : activate(args.activation, up[lane()]);
  }
  if (args.h_float) args.h_float[pair * args.h_stride + row] = h;
  if (!args.h.q) return;
  uint32_t largest = magnitude_bits(h);
#pragma unroll
  for (uint32_t mask = 1; mask < 32; mask *= 2) largest = larger(largest, shuffle_xor(largest, mask));
  const QuantizeRule rule = quantize_rule(largest);
  args.h.q[pair * args.h.stride + row] = static_cast<int8_t>(quantize_number(h, rule));
  if (lane() == 0) args.h.scale[(pair * args.h.stride + row) / kGroup] = rule.scale;
}

// A block has a pair and 32 rows, 16 at a time: gate, then up.
LK_KERNEL_BOUNDS(moe_up_any, MoeArgs, 32 * kAnyWarps, 2) {
  LK_DYNAMIC_SHARED(shared);
  LK_SHARED(float, products, 2 * kGroup);
  const int64_t pair = block_x();
  const int expert = expert_of(args, pair);
  if (expert < 0) return;
  const Input x = input_of(args.x);
  const int64_t stride = args.h.q ? args.h.stride : args.h_stride;
  for (int64_t first = int64_t{block_y()} * kGroup; first < stride; first += int64_t{blocks_y()} * kGroup) {
    for (int pass = args.gate.data ? 0 : 2; pass < 4 && first < args.up.rows; ++pass) {
      WeightArgs w = args.up;
      if (pass < 2) w = args.gate;
      const int place = pass % 2 * kAnyWarps + static_cast<int>(warp());
      const int64_t row = first + place;
      float acc[1];
      dot_row(w, expert, row < w.rows ? row : -1, x, pair / args.k, 1, Staged{shared, wants_floats(w, args.exact)},
              acc);
      const float y = sum_of_lanes(acc[0]);
      if (lane() == 0) products[pass / 2 * kGroup + place] = y;
    }
    barrier();
    if (warp() == 0) put_hidden(args, pair, first + lane(), products, products + kGroup);
    barrier();
  }
}

// The next slot in order of experts, and of slots where experts are equal; k where there is none. expert: in and out.
LK_DEVICE int next_slot(const MoeArgs& args, int64_t token, int slot, int& expert) {
  int next = args.k;
  int next_expert = 0x7fffffff;
  for (int s = 0; s < args.k; ++s) {
    const int e = expert_of(args, token * args.k + s);
    const bool after = e > expert || (e == expert && s > slot);
    if (after && e < next_expert) {
      next = s;
      next_expert = e;
    }
  }
  expert = next_expert;
  return next;
}

LK_DEVICE bool asks_for_no_expert(const MoeArgs& args, int64_t token) {
  bool wrong = false;
  for (int s = 0; s < args.k; ++s) wrong |= expert_of(args, token * args.k + s) == kNoSuchExpert;
  return wrong;
}

// A block has a token and 16 rows, and adds its slots.
LK_KERNEL_BOUNDS(moe_down_any, MoeArgs, 32 * kAnyWarps, 1) {
  LK_DYNAMIC_SHARED(shared);
  const WeightArgs w = args.down;
  const Staged staged{shared, wants_floats(w, args.exact)};
  const Input floats{args.h_float, kF32, args.h_stride, w.cols, nullptr, nullptr};
  const Input integers{nullptr, kF32, args.h.stride, w.cols, args.h.q, args.h.scale};
  const Input h = staged.floats ? floats : integers;
  const int64_t token = block_x();
  const bool wrong = asks_for_no_expert(args, token);
  for (int64_t first = int64_t{block_y()} * kAnyWarps; first < w.rows; first += int64_t{blocks_y()} * kAnyWarps) {
    const int64_t row = first + warp();
    float total = 0.0f;
    int expert = 0;
    for (int slot = next_slot(args, token, -1, expert); !wrong && slot < args.k;
         slot = next_slot(args, token, slot, expert)) {
      const int64_t pair = token * args.k + slot;
      float acc[1];
      dot_row(w, expert, row < w.rows ? row : -1, h, pair, 1, staged, acc);
      total += float_of_bits(constant_load4(args.weights + pair)) * sum_of_lanes(acc[0]);
    }
    if (wrong) total = float_of_bits(0x7fc00000u);
    if (lane() == 0 && row < w.rows) args.out[token * w.rows + row] = total;
  }
}

}  // namespace cuda
}  // namespace lutkern
