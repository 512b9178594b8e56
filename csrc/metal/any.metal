// Every format in both layouts, with int8 or float activations: what runs where no kernel of its own exists.
//
//   y = sum over 16 columns of x.scale * (scale * (codes . x.q) + offset * sum(x.q))        int8 activations
//   y = sum over columns of weight * x                                                      exact, float formats
//
// Reads rows of GGUF blocks, or tiles (gpu/tile.h): row r of a matrix is lane r % 32 of row r / 32 of tiles. Activations
// wait in threadgroup memory, integers as halves with their scales and sums, or floats; as many columns of them as fit. A
// simdgroup has a row, a lane every 32nd unit of 16 columns (any_codeword.metal):
//
//   for each chunk of columns:
//     the threadgroup stages x of its tokens, quantised or not        barrier
//     for each unit of the lane: 16 codes as halves, scale, offset
//       for each token: dot = sum of code * x.q - bias * sum(x.q)                            exact
//                       acc[token] += x.scale * (scale * dot + offset * sum(x.q))
//   y[token] = simd_sum(acc[token])
//
// What matters: 16 codes of a few bits become halves by masks alone, no conversion; fma with halves for operands;
// neighbouring lanes read neighbouring bytes of a block, byte by byte because blocks are not aligned; one token takes all
// of the threadgroup memory, so that a row of 4096 columns needs one barrier.
// Operations for 8 columns and one token, by tests/sim/metal/count_any.py; both sides of branches and the loop are in it:
//
//   q8_0 43   q4_0 44   q4_k 67   q5_k 77   q6_k 62   mxfp4 47   iq4_xs 62
//
// of which 8 are the products. 80 cores of 128 lanes at 1.4 GHz have time for 17.5 for each bit of a weight at 819 GB/s: 149
// for q8_0, 79 for q4_k, 96 for q5_k, 115 for q6_k, 74 for mxfp4.
// What a lane adds, and in which order, depends on neither the threads of a threadgroup nor the tokens: rows of a product
// of many tokens are those of products of one.
//
// The caller guarantees whole blocks, tiles at multiples of 4 bytes, float weights and activations at multiples of their
// elements, and the plans of any_plan.h.
#pragma once
#include "any_codeword.metal"
#include "any_shape.h"
#include "numbers.metal"

namespace lutkern {
namespace metal_kernels {

// ---- activations ----

// Threadgroup memory for the activations of a chunk
struct Staged {
  threadgroup uint4* pool;    // integers as halves, or floats; token after token
  threadgroup float* scales;  // kAnyHalves / kGroup: of integers
  threadgroup float* sums;    // kAnyHalves / kAnyUnit: of integers
  int chunk;                  // columns of a token
  int floats;
};
enum : int { kAnyPool = kAnyHalves / 8, kAnyScales = kAnyHalves / kGroup, kAnySums = kAnyHalves / kAnyUnit };

static inline threadgroup half* integers_of(Staged x, int token) {
  return reinterpret_cast<threadgroup half*>(x.pool) + token * x.chunk;
}
static inline threadgroup float* numbers_of(Staged x, int token) {
  return reinterpret_cast<threadgroup float*>(x.pool) + token * x.chunk;
}

// Tokens that are staged together; columns of each that fit, a multiple of kAnyStep
static inline int most_tokens(bool floats) { return floats ? kAnyTokens / 2 : static_cast<int>(kAnyTokens); }
static inline int chunk_of(int tokens, bool floats) {
  const int room = floats ? kAnyFloats : kAnyHalves;
  return tokens > 4 ? room / 8 : (tokens > 2 ? room / 4 : room / tokens);
}

static inline Staged staged_for(threadgroup uint4* pool, threadgroup float* scales, threadgroup float* sums, int tokens,
                                bool floats) {
  Staged out;
  out.pool = pool;
  out.scales = scales;
  out.sums = sums;
  out.chunk = chunk_of(tokens, floats);
  out.floats = floats ? 1 : 0;
  return out;
}

// Rows of activations: numbers of a dtype, or integers as halves with their scales (scale not null).
struct Input {
  const device void* data;
  const device float* scale;
  int64_t stride;
  int dtype;
  int cols;
};

// Thread and threadgroup, as the kernel is told
struct Place {
  uint thread_index;
  uint threads;
  int lane;
  int simdgroup;
  int simdgroups;
};

static inline Place place_of(uint thread_index, uint threads, uint lane, uint simdgroup, uint simdgroups) {
  Place out;
  out.thread_index = thread_index;
  out.threads = threads;
  out.lane = static_cast<int>(lane);
  out.simdgroup = static_cast<int>(simdgroup);
  out.simdgroups = static_cast<int>(simdgroups);
  return out;
}

// Four columns of a group of 32, which eight neighbouring lanes have: q is what they are as integers.
static inline void put_integers(Staged to, int token, int column, float4 q, float scale) {
  *reinterpret_cast<threadgroup half4*>(integers_of(to, token) + column) = half4(q);
  float sum = q.x + q.y + q.z + q.w;
  sum += simd_shuffle_xor(sum, 1);
  sum += simd_shuffle_xor(sum, 2);
  const int at = token * to.chunk + column;
  if (column % kAnyUnit == 0) to.sums[at / kAnyUnit] = sum;
  if (column % kGroup == 0) to.scales[at / kGroup] = scale;
}

static inline void put_quantized(Staged to, int token, int column, float4 x) {
  uint32_t largest = max(max(magnitude_bits(x.x), magnitude_bits(x.y)), max(magnitude_bits(x.z), magnitude_bits(x.w)));
  largest = max(largest, simd_shuffle_xor(largest, 1));
  largest = max(largest, simd_shuffle_xor(largest, 2));
  largest = max(largest, simd_shuffle_xor(largest, 4));
  const QuantizeRule rule = quantize_rule(largest);
  const float4 q = float4(quantize_number(x.x, rule), quantize_number(x.y, rule), quantize_number(x.z, rule),
                          quantize_number(x.w, rule));
  put_integers(to, token, column, q, rule.scale);
}

static inline float4 load_numbers(Input x, int64_t row, int column) {
  float4 out = float4(0.0f);
  for (int k = 0; k < 4; ++k) {
    if (column + k < x.cols) out[k] = load_number(x.data, x.dtype, row * x.stride + column + k);
  }
  return out;
}

// Columns begin .. begin + chunk - 1 of n rows of x, zeros past the last column. Every thread comes here; a barrier must
// follow. Whole blocks of 256, so that units have all of their columns, and whole simdgroups take part in a step.
static inline void stage(Staged to, Input x, int64_t first_row, int n, int begin, Place place) {
  const int most = (x.cols - begin + kTileCols - 1) / kTileCols * kTileCols;
  const int fours = min(to.chunk, most) / 4;
  for (int i = static_cast<int>(place.thread_index); i < n * fours; i += static_cast<int>(place.threads)) {
    const int token = i / fours;
    const int column = 4 * (i % fours);
    const int64_t row = first_row + token;
    if (x.scale) {
      const bool inside = begin + column < x.stride;
      const int64_t at = row * x.stride + begin + column;
      half4 q = half4(0.0f);
      if (inside) q = *reinterpret_cast<const device half4*>(static_cast<const device half*>(x.data) + at);
      put_integers(to, token, column, float4(q), inside ? x.scale[at / kGroup] : 0.0f);
    } else if (to.floats) {
      *reinterpret_cast<threadgroup float4*>(numbers_of(to, token) + column) = load_numbers(x, row, begin + column);
    } else {
      put_quantized(to, token, column, load_numbers(x, row, begin + column));
    }
  }
}

// ---- dot products of a lane ----

static inline float dot4(half4 codes, half4 x, float sum) {
  sum = fma(static_cast<float>(codes.x), static_cast<float>(x.x), sum);
  sum = fma(static_cast<float>(codes.y), static_cast<float>(x.y), sum);
  sum = fma(static_cast<float>(codes.z), static_cast<float>(x.z), sum);
  return fma(static_cast<float>(codes.w), static_cast<float>(x.w), sum);
}
static inline float dot4(float4 weights, float4 x, float sum) {
  sum = fma(weights.x, x.x, sum);
  sum = fma(weights.y, x.y, sum);
  sum = fma(weights.z, x.z, sum);
  return fma(weights.w, x.w, sum);
}

// at: first column of the unit within the chunk
template <class Block>
static inline void dot_integers(Unit unit, Staged x, int at, int tokens, thread float* acc) {
  for (int t = 0; t < kAnyTokens; ++t) {
    if (t >= tokens) break;
    const threadgroup half4* q = reinterpret_cast<const threadgroup half4*>(integers_of(x, t) + at);
    float dot =
        dot4(unit.code[3], q[3], dot4(unit.code[2], q[2], dot4(unit.code[1], q[1], dot4(unit.code[0], q[0], 0.0f))));
    const float total = x.sums[static_cast<uint>(t * x.chunk + at) / kAnyUnit];
    if (Units<Block>::kBias) dot = fma(-static_cast<float>(Units<Block>::kBias), total, dot);
    float sum = unit.scale * dot;
    if (Block::kHasOffset) sum = fma(unit.offset, total, sum);
    acc[t] = fma(x.scales[static_cast<uint>(t * x.chunk + at) / kGroup], sum, acc[t]);
  }
}

template <class Block>
static inline void dot_numbers(Unit unit, Staged x, int at, int tokens, thread float* acc) {
  const float4 a = weights_of<Block>(unit, 0);
  const float4 b = weights_of<Block>(unit, 1);
  const float4 c = weights_of<Block>(unit, 2);
  const float4 d = weights_of<Block>(unit, 3);
  for (int t = 0; t < kAnyTokens / 2; ++t) {
    if (t >= tokens) break;
    const threadgroup float4* v = reinterpret_cast<const threadgroup float4*>(numbers_of(x, t) + at);
    acc[t] += dot4(d, v[3], dot4(c, v[2], dot4(b, v[1], dot4(a, v[0], 0.0f))));
  }
}

// Dtype of a float format
template <class Block>
struct DtypeOf;
template <>
struct DtypeOf<F32> {
  enum : int { kDtype = kF32 };
};
template <>
struct DtypeOf<F16> {
  enum : int { kDtype = kF16 };
};
template <>
struct DtypeOf<Bf16> {
  enum : int { kDtype = kBf16 };
};

// What differs between integer formats and float formats
template <class Block, int kIsFloat>
struct Rows;

template <class Block>
struct Rows<Block, 0> {
  // This lane's part of the columns that are staged, from begin on: every 32nd unit
  static void dot(constant WeightArgs& w, const device uint8_t* matrix, int row, int begin, Staged x, int tokens,
                  int lane, thread float* acc) {
    const int end = min(x.chunk, w.stored_cols - begin);
    for (int at = kAnyUnit * lane; at < end; at += kAnyStep) {
      const Unit unit = Units<Block>::load(w, matrix, row, static_cast<uint>(begin + at) / kAnyUnit);
      if (x.floats) {
        dot_numbers<Block>(unit, x, at, tokens, acc);
      } else {
        dot_integers<Block>(unit, x, at, tokens, acc);
      }
    }
  }
  // Weights of a row from column begin on, kAnyStep of them: column c at c + c / kAnyUnit
  static void copy(constant WeightArgs& w, const device uint8_t* matrix, int row, int begin, int lane,
                   threadgroup float* to) {
    if (begin + kAnyUnit * lane >= w.stored_cols) return;
    const Unit unit = Units<Block>::load(w, matrix, row, static_cast<uint>(begin / kAnyUnit + lane));
    for (int k = 0; k < 4; ++k) {
      const float4 four = stored_weights_of<Block>(unit, k);
      for (int j = 0; j < 4; ++j) to[(kAnyUnit + 1) * lane + 4 * k + j] = four[j];
    }
  }
};

template <class Block>
struct Rows<Block, 1> {
  // Every 32nd column
  static void dot(constant WeightArgs& w, const device uint8_t* matrix, int row, int begin, Staged x, int tokens,
                  int lane, thread float* acc) {
    const device uint8_t* from = matrix + row * w.row_bytes;
    const int end = min(x.chunk, w.cols - begin);
    for (int at = lane; at < end; at += 32) {
      const float weight = load_number(from, DtypeOf<Block>::kDtype, begin + at);
      for (int t = 0; t < kAnyTokens / 2; ++t) {
        if (t >= tokens) break;
        acc[t] = fma(weight, numbers_of(x, t)[at], acc[t]);
      }
    }
  }
  static void copy(constant WeightArgs& w, const device uint8_t* matrix, int row, int begin, int lane,
                   threadgroup float* to) {
    const device uint8_t* from = matrix + row * w.row_bytes;
    for (int at = lane; at < kAnyStep && begin + at < w.cols; at += 32) {
      to[at + at / kAnyUnit] = load_number(from, DtypeOf<Block>::kDtype, begin + at);
    }
  }
};

template <class Block>
static inline bool wants_floats(int exact) {
  return exact || Block::kIsFloat;
}

}  // namespace metal_kernels
}  // namespace lutkern

// ---- kernels of one weight ----

#if defined(LK_WEIGHT)

using WeightRows = Rows<LK_WEIGHT, LK_WEIGHT::kIsFloat>;

// A simdgroup takes 512 columns of a row at a time. They pass through threadgroup memory, so that lanes write neighbours.
kernel void dequantize_any(constant DequantizeArgs& args [[buffer(0)]], const device uint8_t* weight [[buffer(1)]],
                           device uint8_t* out [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float passing[kAnyCopyRows * kAnyCopyWords];
  threadgroup float* mine = passing + simdgroup * kAnyCopyWords;
  const int chunks = (args.w.cols + kAnyStep - 1) / kAnyStep;
  const int64_t rows = static_cast<int64_t>(args.w.experts) * args.w.rows;
  for (uint part = simdgroup; part < kAnyCopyRows; part += simdgroups) {
    const int64_t piece = static_cast<int64_t>(group.x) * kAnyCopyRows + part;
    const int64_t row = piece / chunks;
    const int begin = static_cast<int>(piece % chunks) * kAnyStep;
    if (row < rows) {
      const device uint8_t* matrix = weight + row / args.w.rows * args.w.expert_bytes;
      WeightRows::copy(args.w, matrix, static_cast<int>(row % args.w.rows), begin, static_cast<int>(lane), mine);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (int at = static_cast<int>(lane); row < rows && at < kAnyStep && begin + at < args.w.cols; at += 32) {
      store_number(out, args.dtype, row * args.w.cols + begin + at, mine[at + at / kAnyUnit]);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// A threadgroup has 16 rows and 8 tokens.
kernel void product_any(constant ProductArgs& args [[buffer(0)]], const device uint8_t* weight [[buffer(1)]],
                        const device uint8_t* x [[buffer(2)]], device float* out [[buffer(3)]],
                        uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                        uint3 threads [[threads_per_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint4 pool[kAnyPool];
  threadgroup float scales[kAnyScales];
  threadgroup float sums[kAnySums];
  const Place place = place_of(thread_index, threads.x, lane, simdgroup, simdgroups);
  const bool floats = wants_floats<LK_WEIGHT>(args.exact);
  const Input input = {x, nullptr, args.x.row_stride, args.x.dtype, args.x.cols};
  const int last = min(static_cast<int>(group.y + 1) * kAnyTokens, args.x.rows);
  for (int first = static_cast<int>(group.y) * kAnyTokens; first < last; first += most_tokens(floats)) {
    const int n = min(last - first, most_tokens(floats));
    const Staged staged = staged_for(pool, scales, sums, n, floats);
    for (int pass = 0; pass < kAnyRows; pass += place.simdgroups) {
      const int row = args.row_begin + static_cast<int>(group.x) * kAnyRows + pass + place.simdgroup;
      const bool wanted = pass + place.simdgroup < kAnyRows && row < args.row_end;
      float acc[kAnyTokens] = {0.0f};
      for (int begin = 0; begin < args.w.cols; begin += staged.chunk) {
        stage(staged, input, first, n, begin, place);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (wanted) WeightRows::dot(args.w, weight, row, begin, staged, n, place.lane, acc);
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      for (int t = 0; t < kAnyTokens; ++t) {
        if (t >= n || !wanted) break;
        const float y = simd_sum(acc[t]);
        if (place.lane == 0) out[(first + t) * args.out_stride + row] = y;
      }
    }
  }
}

// A threadgroup has a token and 16 rows, and adds its slots.
kernel void moe_down_any(constant MoeArgs& args [[buffer(0)]], const device uint8_t* down [[buffer(1)]],
                         const device int32_t* ids [[buffer(2)]], const device float* weights [[buffer(3)]],
                         const device uint8_t* h [[buffer(4)]], const device float* h_scale [[buffer(5)]],
                         device float* out [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint4 pool[kAnyPool];
  threadgroup float scales[kAnyScales];
  threadgroup float sums[kAnySums];
  const Place place = place_of(thread_index, threads.x, lane, simdgroup, simdgroups);
  const bool floats = wants_floats<LK_WEIGHT>(args.exact);
  const Staged staged = staged_for(pool, scales, sums, 1, floats);
  const Input input = {h, floats ? nullptr : h_scale, args.h_stride, kF32, args.down.cols};
  const int token = static_cast<int>(group.x);
  for (int pass = 0; pass < kAnyRows; pass += place.simdgroups) {
    const int row = static_cast<int>(group.y) * kAnyRows + pass + place.simdgroup;
    const bool wanted = pass + place.simdgroup < kAnyRows && row < args.down.rows;
    float total = 0.0f;
    for (int slot = 0; slot < args.k; ++slot) {
      const int64_t pair = static_cast<int64_t>(token) * args.k + slot;
      const int expert = expert_of(args, ids, pair);
      if (expert == kNoSuchExpert) total = as_type<float>(0x7fc00000u);
      if (expert < 0) continue;
      const device uint8_t* matrix = down + expert * args.down.expert_bytes;
      float acc[kAnyTokens] = {0.0f};
      for (int begin = 0; begin < args.down.cols; begin += staged.chunk) {
        stage(staged, input, pair, 1, begin, place);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (wanted) WeightRows::dot(args.down, matrix, row, begin, staged, 1, place.lane, acc);
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      total = fma(weights[pair], simd_sum(acc[0]), total);
    }
    if (place.lane == 0 && wanted) out[static_cast<int64_t>(token) * args.down.rows + row] = total;
  }
}

#endif

// ---- the kernel of gate and up ----

#if defined(LK_UP)

namespace lutkern {
namespace metal_kernels {

// The rows of one weight that a threadgroup has, kGroup of them from first on, times what is staged: added to sums of rows
template <class Block>
struct Projection {
  static void add(constant WeightArgs& w, const device uint8_t* weight, int expert, int first, int begin, Staged x,
                  Place place, threadgroup float* products) {
    const device uint8_t* matrix = weight + expert * w.expert_bytes;
    for (int r = place.simdgroup; r < kGroup && first + r < w.rows; r += place.simdgroups) {
      float acc[kAnyTokens] = {0.0f};
      Rows<Block, Block::kIsFloat>::dot(w, matrix, first + r, begin, x, 1, place.lane, acc);
      const float y = simd_sum(acc[0]);
      if (place.lane == 0) products[r] = begin ? products[r] + y : y;
    }
  }
};
template <>
struct Projection<NoGate> {
  static void add(constant WeightArgs&, const device uint8_t*, int, int, int, Staged, Place, threadgroup float*) {}
};

template <class Block>
struct GateKind {
  enum : int { kIs = 1, kIsFloat = Block::kIsFloat };
};
template <>
struct GateKind<NoGate> {
  enum : int { kIs = 0, kIsFloat = 0 };
};

// One row of h of one pair for each lane; past the last row it is zero.
static inline void put_hidden(constant MoeArgs& args, device void* h, device float* h_scale, int64_t at, float value,
                              int lane) {
  if (args.h_floats) {
    static_cast<device float*>(h)[at] = value;
    return;
  }
  const QuantizeRule rule = quantize_rule(simd_max(magnitude_bits(value)));
  static_cast<device half*>(h)[at] = static_cast<half>(quantize_number(value, rule));
  if (lane == 0) h_scale[at / kGroup] = rule.scale;
}

}  // namespace metal_kernels
}  // namespace lutkern

// A threadgroup has a pair and 32 rows of gate and of up.
kernel void moe_up_any(constant MoeArgs& args [[buffer(0)]], const device uint8_t* gate [[buffer(1)]],
                       const device uint8_t* up [[buffer(2)]], const device uint8_t* x [[buffer(3)]],
                       const device int32_t* ids [[buffer(4)]], device uint8_t* h [[buffer(5)]],
                       device float* h_scale [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                       uint thread_index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint4 pool[kAnyPool];
  threadgroup float scales[kAnyScales];
  threadgroup float sums[kAnySums];
  threadgroup float products[2 * kGroup];
  const Place place = place_of(thread_index, threads.x, lane, simdgroup, simdgroups);
  using Gate = GateKind<LK_GATE>;
  const bool up_floats = wants_floats<LK_UP>(args.exact);
  const bool gate_floats = Gate::kIs ? args.exact || Gate::kIsFloat : up_floats;
  const int64_t pair = group.x;
  const int expert = expert_of(args, ids, pair);
  if (expert < 0) return;
  const Input input = {x, nullptr, args.x.row_stride, args.x.dtype, args.x.cols};
  const int token = static_cast<int>(pair / args.k);
  const int first = static_cast<int>(group.y) * kGroup;
  // One chunk for both, also where one of them meets integers and the other floats
  Staged staged = staged_for(pool, scales, sums, 1, up_floats || gate_floats);
  const int cols = first < args.up.rows ? args.up.cols : 0;  // h may be longer than gate and up have rows
  for (int begin = 0; begin < cols; begin += staged.chunk) {
    staged.floats = gate_floats;
    stage(staged, input, token, 1, begin, place);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    Projection<LK_GATE>::add(args.gate, gate, expert, first, begin, staged, place, products);
    if (gate_floats != up_floats) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      staged.floats = up_floats;
      stage(staged, input, token, 1, begin, place);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    Projection<LK_UP>::add(args.up, up, expert, first, begin, staged, place, products + kGroup);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (place.simdgroup > 0) return;
  const int row = first + place.lane;
  float value = 0.0f;
  if (row < args.up.rows) {
    const float y = products[kGroup + place.lane];
    value = Gate::kIs ? activate(args.activation, products[place.lane]) * y : activate(args.activation, y);
  }
  put_hidden(args, h, h_scale, pair * args.h_stride + row, value, place.lane);
}

#endif
