// How the kernels of any.metal are launched.
#pragma once
#include "any_shape.h"
#include "plan.h"

namespace lutkern {
namespace metal {

static inline uint32_t any_parts(int64_t n, int64_t size) { return static_cast<uint32_t>((n + size - 1) / size); }

static inline Plan plan_dequantize_any(const metal_args::DequantizeArgs& args) {
  const int64_t pieces =
      static_cast<int64_t>(args.w.experts) * args.w.rows * any_parts(args.w.cols, metal_args::kAnyStep);
  return {any_parts(pieces, metal_args::kAnyCopyRows), 1, 1, 32 * metal_args::kAnyCopyRows};
}

static inline Plan plan_product_any(const metal_args::ProductArgs& args) {
  return {any_parts(args.row_end - args.row_begin, metal_args::kAnyRows),
          any_parts(args.x.rows, metal_args::kAnyTokens), 1, 32 * metal_args::kAnyRows};
}

static inline Plan plan_moe_up_any(const metal_args::MoeArgs& args) {
  return {static_cast<uint32_t>(args.x.rows) * static_cast<uint32_t>(args.k),
          any_parts(args.h_stride, metal_args::kGroup), 1, 32 * metal_args::kAnyRows};
}

static inline Plan plan_moe_down_any(const metal_args::MoeArgs& args) {
  return {static_cast<uint32_t>(args.x.rows), any_parts(args.down.rows, metal_args::kAnyRows), 1,
          32 * metal_args::kAnyRows};
}

}  // namespace metal
}  // namespace lutkern
