// How the kernels of any.cuh are launched.
#pragma once
#include "../formats/formats.h"
#include "arguments.h"
#include "plan.h"

namespace lutkern {
namespace cuda {

enum : int {
  kAnyWarps = 16,     // of a block, each with one row
  kAnyTokens = 8,     // that meet the weights together
  kAnyChunk = 1024,   // columns between two barriers
  kAnyCopyWarps = 4,  // dequantize_any: of a block
  kAnyCopy = 256,     // columns of a warp at a time
  kAnyCopyWords = kAnyCopy + kAnyCopy / 8,
  kAnyMostBlocks = 65536,  // of a grid, in y at most 65535: what is left over is looped over
};

LK_FN bool is_float_format(int format) {
  switch (static_cast<FormatId>(format)) {
#define LUTKERN_IS_FLOAT(name, Block) \
  case FormatId::name:                \
    return Block::kIsFloat != 0;
    LUTKERN_FORMATS(LUTKERN_IS_FLOAT)
#undef LUTKERN_IS_FLOAT
    case FormatId::count:
      break;
  }
  return false;
}

// Float weights meet float activations, as every weight does where exact is set.
LK_FN bool wants_floats(const WeightArgs& w, int exact) { return w.data && (exact || is_float_format(w.format)); }

// Of the activations of a chunk: words of four codes and scales, or floats
LK_FN uint32_t any_shared_bytes(int tokens, bool floats) {
  return static_cast<uint32_t>(tokens) * (floats ? 4 * kAnyChunk : kAnyChunk + kAnyChunk / kGroup * 4);
}

static inline uint32_t any_parts(int64_t n, int64_t size, int64_t most) {
  const int64_t parts = (n + size - 1) / size;
  return static_cast<uint32_t>(parts < most ? parts : most);
}

static inline Plan plan_dequantize_any(const DequantizeArgs& args, int) {
  const int64_t chunks = (args.w.cols + kAnyCopy - 1) / kAnyCopy;
  const int64_t units = int64_t{args.w.experts} * args.w.rows * chunks;
  return {any_parts(units, kAnyCopyWarps, kAnyMostBlocks), 1, 1, 32 * kAnyCopyWarps, 0};
}

static inline Plan plan_product_any(const ProductArgs& args, int) {
  const int tokens = args.x.rows < kAnyTokens ? args.x.rows : int{kAnyTokens};
  return {any_parts(args.row_end - args.row_begin, kAnyWarps, INT32_MAX), any_parts(args.x.rows, kAnyTokens, 65535), 1,
          32 * kAnyWarps, any_shared_bytes(tokens, wants_floats(args.w, args.exact))};
}

static inline Plan plan_moe_up_any(const MoeArgs& args, int) {
  const int64_t stride = args.h.q ? args.h.stride : args.h_stride;
  return {static_cast<uint32_t>(args.x.rows) * static_cast<uint32_t>(args.k), any_parts(stride, kGroup, 65535), 1,
          32 * kAnyWarps,
          any_shared_bytes(1, wants_floats(args.gate, args.exact) || wants_floats(args.up, args.exact))};
}

static inline Plan plan_moe_down_any(const MoeArgs& args, int) {
  return {static_cast<uint32_t>(args.x.rows), any_parts(args.down.rows, kAnyWarps, 65535), 1, 32 * kAnyWarps,
          any_shared_bytes(1, wants_floats(args.down, args.exact))};
}

}  // namespace cuda
}  // namespace lutkern
