// The shape of the kernels of any.metal, and how they are launched.
#pragma once
#include "arguments.h"

namespace lutkern {
namespace metal {

enum : int {
  kAnyRows = 16,      // of a threadgroup: one for each of its simdgroups, where it has them all
  kAnyTokens = 8,     // of a threadgroup
  kAnyHalves = 4096,  // activations in threadgroup memory, as integers
  kAnyFloats = 2048,  // or as floats
  kAnyUnit = 16,      // columns of a lane at a time
  kAnyStep = 32 * kAnyUnit,
  kAnyCopyRows = 4,  // dequantize_any: pieces of rows of a threadgroup
  kAnyCopyWords = kAnyStep + kAnyStep / kAnyUnit
};

}  // namespace metal
}  // namespace lutkern

#if !defined(__METAL_VERSION__)
#include "plan.h"

namespace lutkern {
namespace metal {

static inline uint32_t any_parts(int64_t n, int64_t size) { return static_cast<uint32_t>((n + size - 1) / size); }

static inline Plan plan_dequantize_any(const metal_args::DequantizeArgs& args) {
  const int64_t pieces = static_cast<int64_t>(args.w.experts) * args.w.rows * any_parts(args.w.cols, kAnyStep);
  return {any_parts(pieces, kAnyCopyRows), 1, 1, 32 * kAnyCopyRows};
}

static inline Plan plan_product_any(const metal_args::ProductArgs& args) {
  return {any_parts(args.row_end - args.row_begin, kAnyRows), any_parts(args.x.rows, kAnyTokens), 1, 32 * kAnyRows};
}

static inline Plan plan_moe_up_any(const metal_args::MoeArgs& args) {
  return {static_cast<uint32_t>(args.x.rows) * static_cast<uint32_t>(args.k),
          any_parts(args.h_stride, metal_args::kGroup), 1, 32 * kAnyRows};
}

static inline Plan plan_moe_down_any(const metal_args::MoeArgs& args) {
  return {static_cast<uint32_t>(args.x.rows), any_parts(args.down.rows, kAnyRows), 1, 32 * kAnyRows};
}

}  // namespace metal
}  // namespace lutkern

#endif
