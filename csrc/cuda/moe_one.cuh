// A layer of experts for few tokens, in two launches; every pair (token, slot) by itself:
//
//   moe_up     h[pair] = activation(gate[e] x[token]) * (up[e] x[token]),   e = ids[pair]; without a gate
//              activation(up x)
//   moe_down   out[token] = sum over slots of weights[token, slot] * down[e] h[pair]
//
// Reads tiles (gpu/tile.h): lane = row, the warps of a block share the tiles of 32 rows: those of gate, then those of up;
// those of down of each slot. The 32 rows of a block of moe_up are one group of h, which becomes integers at once.
//
//   moe_up     stage x; sums of gate and of up (sums.cuh); h of 32 rows; largest magnitude by shuffles; store q and
//              scale
//   moe_down   slots in order of their experts, so that the order of the ids changes nothing; stage h of all slots;
//              one sum over all their tiles, each slot times its weight
//
// Ids are read here, on the device: nothing waits for the host, and both launches fit a CUDA graph. The loop is that of
// dot.cuh: LDG.128 ahead, LDS of entries, IDP4A.
// The caller guarantees tiles, the plans of moe_one_plan.h, integers of h (args.h.q) for moe_down, and k <= kMostSlots.
#pragma once
#include "moe_one_plan.h"
#include "sums.cuh"

namespace lutkern {
namespace cuda {

// The parts of shared memory
struct MoeShared {
  uint8_t* table;
  uint8_t* staged;
  uint8_t* segments;
  uint8_t* sums;
};

LK_DEVICE MoeShared moe_shared(uint8_t* shared, int table, int64_t x_tiles, int segments, int warp_sums) {
  const BlockShape shape = block_shape(table, x_tiles, segments, threads() / 32, warp_sums);
  return {shared, shared + shape.staged, shared + shape.segments, shared + shape.sums};
}

LK_DEVICE const uint8_t* tiles_of(const WeightArgs& w, int64_t expert, int64_t tile_row) {
  return w.data + expert * w.expert_bytes + tile_row * w.row_bytes;
}

// ---- h ----

// 32 rows of h of a pair by one warp, zeros where the weight has no row
LK_DEVICE void store_hidden(const MoeArgs& args, int64_t pair, int64_t group, float h) {
  const int64_t row = kGroup * group + lane();
  if (args.h_float) args.h_float[pair * args.h_stride + row] = h;
  if (!args.h.q) return;
  uint32_t largest = magnitude_bits(h);
  for (uint32_t mask = 1; mask < 32; mask *= 2) largest = larger(largest, shuffle_xor(largest, mask));
  const QuantizeRule rule = quantize_rule(largest);
  args.h.q[pair * args.h.stride + row] = static_cast<int8_t>(quantize_number(h, rule));
  if (lane() == 0) args.h.scale[pair * (args.h.stride / kGroup) + group] = rule.scale;
}

// By warp 0, of the sums of its lanes' rows
LK_DEVICE void finish_hidden(const MoeArgs& args, int64_t pair, int64_t tile_row, float gate, float up) {
  const int64_t row = kTileRows * tile_row + lane();
  const float h = args.gate.data ? activate(args.activation, gate) * up : activate(args.activation, up);
  store_hidden(args, pair, tile_row, row < args.up.rows ? h : 0.0f);
  if (tile_row + 1 < blocks_x()) return;
  const int64_t stride = args.h.q ? args.h.stride : args.h_stride;
  for (int64_t group = tile_row + 1; group < stride / kGroup; ++group) store_hidden(args, pair, group, 0.0f);
}

// ---- gate and up ----

// What shared memory holds already
struct Ready {
  bool table;
  bool x;
};

// Sums of segments [0, n) with x of the token. The table and x are made here, while the first weights are on their way.
template <class Block, class Sink>
LK_DEVICE void up_sums(const MoeArgs& args, const MoeShared& part, int64_t token, int n, Ready ready, uint32_t own,
                       Sink& sink) {
  const int tiles = args.up.stored_cols / kTileCols;
  const Dot<Block> dot(part.table, own % 32);
  for (int begin = 0; begin < tiles; begin += kStagedTiles) {
    const int end = begin + kStagedTiles < tiles ? begin + kStagedTiles : tiles;
    Walk<Block> walk;
    walk.begin({n * (end - begin), 0, begin, begin, end, 1}, part.segments, own % 32);
    if (!ready.table) Table<Block>::fill(part.table, own, threads());
    ready.table = true;
    if (!ready.x) {
      if (begin > 0) barrier();
      stage_floats(part.staged, args.x, token, begin, end - begin);
    }
    barrier();
    walk.run(dot, part.staged, sink);
  }
}

template <class Block>
LK_DEVICE void moe_up(const MoeArgs& args, uint8_t* shared) {
  const int matrices = args.gate.data ? 2 : 1;
  const MoeShared part = moe_shared(shared, Table<Block>::kBytes, args.up.stored_cols / kTileCols, 2, 2);
  const int64_t pairs = static_cast<int64_t>(args.x.rows) * args.k;
  bool is_filled = false;
  for (int64_t pair = block_y(); pair < pairs; pair += blocks_y()) {
    const int expert = expert_of(args, pair);
    if (expert < 0) continue;
    if (thread() == 0) {
      if (args.gate.data) store_segment(part.segments, 0, {tiles_of(args.gate, expert, block_x()), 1.0f});
      store_segment(part.segments, matrices - 1, {tiles_of(args.up, expert, block_x()), 1.0f});
    }
    barrier();
    SumOfEach sums = {{0.0f, 0.0f}};
    up_sums<Block>(args, part, pair / args.k, matrices, {is_filled, false}, thread(), sums);
    is_filled = true;
    add_warps(sums, part.sums);
    if (warp() == 0) {
      const float first = sums.sum[0] * dot_unit<Block>();
      finish_hidden(args, pair, block_x(), first, matrices == 2 ? sums.sum[1] * dot_unit<Block>() : first);
    }
    barrier();
  }
}

// One matrix of a pair, whatever its format: the sum of this lane's row, in warp 0
template <class Block>
LK_DEVICE float one_matrix(const MoeArgs& args, const MoeShared& part, int64_t token, bool is_staged, uint32_t own) {
  SumOfAll sums = {{0.0f}};
  up_sums<Block>(args, part, token, 1, {false, is_staged}, own, sums);
  add_warps(sums, part.sums);
  return sums.sum[0] * dot_unit<Block>();
}

LK_DEVICE float any_matrix(const MoeArgs& args, const MoeShared& part, int64_t token, int format, bool is_staged) {
  // As far as the compiler knows this changes from matrix to matrix: no offsets of seven formats are made ahead.
  const uint32_t own = kept(thread());
  switch (format) {
#define LUTKERN_ONE_MATRIX(name, Block)  \
  case static_cast<int>(FormatId::name): \
    return one_matrix<Block>(args, part, token, is_staged, own);
    LUTKERN_CUDA_TILE_FORMATS(LUTKERN_ONE_MATRIX)
#undef LUTKERN_ONE_MATRIX
    default:
      return 0.0f;
  }
}

LK_DEVICE void moe_up_of_two(const MoeArgs& args, uint8_t* shared) {
  const int tiles = args.up.stored_cols / kTileCols;
  const MoeShared part = moe_shared(shared, kLargestTable, tiles, 2, 2);
  const int64_t pairs = static_cast<int64_t>(args.x.rows) * args.k;
  for (int64_t pair = block_y(); pair < pairs; pair += blocks_y()) {
    const int expert = expert_of(args, pair);
    if (expert < 0) continue;
    float sums[2] = {0.0f, 0.0f};
#pragma unroll 1
    for (int m = args.gate.data ? 0 : 1; m < 2; ++m) {
      const WeightArgs& w = m == 0 ? args.gate : args.up;
      barrier();
      if (thread() == 0) store_segment(part.segments, 0, {tiles_of(w, expert, block_x()), 1.0f});
      barrier();
      const bool is_staged = m == 1 && args.gate.data && tiles <= kStagedTiles;
      const float sum = any_matrix(args, part, pair / args.k, w.format, is_staged);
      if (m == 0) {
        sums[0] = sum;
      } else {
        sums[1] = sum;
      }
    }
    if (warp() == 0) finish_hidden(args, pair, block_x(), sums[0], sums[1]);
  }
}

// ---- down ----

// Slots of a token in order of experts, slots with the same expert in their own order: segment s has the weights of the
// slot in place s, and its word 3 is that slot. Slots that are left out come last. Gives their number, or
// kNoSuchExpert.
LK_DEVICE int sort_slots(const MoeArgs& args, int64_t token, uint8_t* segments) {
  int present = 0;
  bool broken = false;
  const int64_t first = token * args.k;
  for (int other = 0; other < args.k; ++other) {
    const int expert = expert_of(args, first + other);
    broken = broken || expert == kNoSuchExpert;
    present += expert >= 0;
  }
  if (broken) return kNoSuchExpert;
  for (int slot = static_cast<int>(thread()); slot < args.k; slot += static_cast<int>(threads())) {
    const int expert = expert_of(args, first + slot);
    if (expert < 0) continue;
    int place = 0;
    for (int other = 0; other < args.k; ++other) {
      const int e = expert_of(args, first + other);
      place += e >= 0 && (e < expert || (e == expert && other < slot));
    }
    const uint64_t tiles = reinterpret_cast<uintptr_t>(tiles_of(args.down, expert, block_x()));
    store16(segments + kSegmentBytes * place,
            Words4{low_word(tiles), high_word(tiles), constant_load4(args.weights + first + slot),
                   static_cast<uint32_t>(slot)});
  }
  return present;
}

// h of tiles [begin, end), counted over all segments
LK_DEVICE void stage_slots(const MoeArgs& args, const MoeShared& part, int64_t token, int begin, int end) {
  const int tiles = args.down.stored_cols / kTileCols;
  for (int at = begin; at < end;) {
    const int segment = at / tiles;
    const int next = (segment + 1) * tiles < end ? (segment + 1) * tiles : end;
    const int slot = static_cast<int>(load4(part.segments + kSegmentBytes * segment + 12));
    stage_integers(part.staged + kStagedTile * (at - begin), args.h, token * args.k + slot, 8 * (at - segment * tiles),
                   8 * (next - at));
    at = next;
  }
}

template <class Block>
LK_DEVICE void moe_down(const MoeArgs& args, uint8_t* shared) {
  const int tiles = args.down.stored_cols / kTileCols;
  const int64_t all_tiles = static_cast<int64_t>(tiles) * args.k;
  const MoeShared part = moe_shared(shared, Table<Block>::kBytes, all_tiles, args.k, SumOfAll::kSums);
  const Dot<Block> dot(part.table, lane());
  bool is_filled = false;
  for (int64_t token = block_y(); token < args.x.rows; token += blocks_y()) {
    const int slots = sort_slots(args, token, part.segments);
    barrier();
    SumOfAll sums = {{slots == kNoSuchExpert ? float_of_bits(0x7fc00000u) : 0.0f}};
    for (int begin = 0; begin < slots * tiles; begin += kStagedTiles) {
      const int end = begin + kStagedTiles < slots * tiles ? begin + kStagedTiles : slots * tiles;
      Walk<Block> walk;
      walk.begin({end - begin, begin / tiles, begin % tiles, 0, tiles, 0}, part.segments, lane());
      if (!is_filled) Table<Block>::fill(part.table, thread(), threads());
      is_filled = true;
      if (begin > 0) barrier();
      stage_slots(args, part, token, begin, end);
      barrier();
      walk.run(dot, part.staged, sums);
    }
    add_warps(sums, part.sums);
    const int64_t row = static_cast<int64_t>(block_x()) * kTileRows + lane();
    if (warp() == 0 && row < args.down.rows) {
      args.out[token * args.down.rows + row] = sums.sum[0] * dot_unit<Block>();
    }
    barrier();
  }
}

#define LUTKERN_MOE_ONE(name, Block)                                                                 \
  LK_KERNEL_BOUNDS(moe_up_##name, MoeArgs, 32 * most_warps(static_cast<int>(FormatId::name)), 2) {   \
    LK_DYNAMIC_SHARED(shared);                                                                       \
    moe_up<Block>(args, shared);                                                                     \
  }                                                                                                  \
  LK_KERNEL_BOUNDS(moe_down_##name, MoeArgs, 32 * most_warps(static_cast<int>(FormatId::name)), 2) { \
    LK_DYNAMIC_SHARED(shared);                                                                       \
    moe_down<Block>(args, shared);                                                                   \
  }
LUTKERN_CUDA_TILE_FORMATS(LUTKERN_MOE_ONE)
#undef LUTKERN_MOE_ONE

LK_KERNEL_BOUNDS(moe_up_mixed, MoeArgs, 32 * kMixedWarps, 1) {
  LK_DYNAMIC_SHARED(shared);
  moe_up_of_two(args, shared);
}

}  // namespace cuda
}  // namespace lutkern
