// A layer of experts for few tokens, in two dispatches; every pair (token, slot) by itself:
//
//   moe_up     h[pair] = activation(gate[e] x[token]) * (up[e] x[token]),   e = ids[pair];
//              without a gate activation(up[e] x[token])
//   moe_down   out[token] = sum over slots of weights[token, slot] * down[e] h[pair]
//
// Reads tiles (gpu/tile.h): lane = row. A threadgroup of moe_up has 32 rows of gate and the same of up, one of moe_down
// 64 rows of down; its SIMD groups share the 256-column tiles, of all slots in moe_down. The 32 rows of moe_up are one
// group of h, which becomes integers at once.
//
//   moe_up     load the first tiles; fill the tables
//              for each tile of this SIMD group: stage x (activations.metal), sums of gate and of up (dot.metal)
//              add the SIMD groups; h of 32 rows; its largest magnitude by simd_max; store integers and their scale
//   moe_down   slots in the order of their experts, so that the order of the ids changes nothing
//              for each tile of a slot of this SIMD group: stage h, sums of both rows, times the weight of the slot
//              add the SIMD groups; store 64 rows
//
// Ids are read here, on the device: nothing waits for the host. What matters is what matters in matvec.metal: an
// activation is read once for gate and up, whatever their formats; two rows of tiles on their way for each SIMD group;
// no threadgroup barrier but for the table and the sums. A layer of GLM-4.7 (5120, 1536, 8 experts) is 384 and 80
// threadgroups: filling a table of iq1_m is 3 % of the operations of moe_up, making x for each 32 rows anew 7 %.
//
// Operations for a codeword: dot.metal. The caller guarantees tiles, integers of h (h_floats 0), k <= kMostSlots, the
// plans of moe_one_plan.h, and that nothing writes what is read here meanwhile.
#pragma once
#include "matvec.metal"

namespace lutkern {
namespace metal_kernels {

static inline device const uchar* tiles_of(constant WeightArgs& w, device const uchar* weight, int64_t expert,
                                           int tile_row) {
  return weight + expert * w.expert_bytes + tile_row * w.row_bytes;
}

// ---- h ----

// 32 rows of h of a pair by one SIMD group
static inline void store_hidden(constant MoeArgs& args, device half* h, device float* h_scale, int64_t pair, int group,
                                float value, uint lane) {
  const QuantizeRule rule = quantize_rule(simd_max(magnitude_bits(value)));
  h[pair * args.h_stride + kGroup * group + lane] = static_cast<half>(quantize_number(value, rule));
  if (lane == 0) h_scale[pair * (args.h_stride / kGroup) + group] = rule.scale;
}

// By one SIMD group, of the sums of its lanes' rows. After the last rows come zeros up to h_stride.
static inline void finish_hidden(constant MoeArgs& args, device half* h, device float* h_scale, int64_t pair,
                                 int tile_row, float gate, float up, uint lane) {
  const int row = kTileRows * tile_row + static_cast<int>(lane);
  const float value = args.gate.experts > 0 ? activate(args.activation, gate) * up : activate(args.activation, up);
  store_hidden(args, h, h_scale, pair, tile_row, row < args.up.rows ? value : 0.0f, lane);
  if (kTileRows * (tile_row + 1) < args.up.rows) return;
  for (int group = tile_row + 1; group < args.h_stride / kGroup; ++group) {
    store_hidden(args, h, h_scale, pair, group, 0.0f, lane);
  }
}

// ---- slots ----

// The slots of a token in the order of their experts, those of one expert in their own order; slots that are left out
// are not there. Gives their number, or kNoSuchExpert. A barrier follows.
static inline int sort_slots(constant MoeArgs& args, device const int32_t* ids, int64_t first,
                             threadgroup ushort* order, uint thread_index, uint threads) {
  int present = 0;
  bool is_broken = false;
  for (int slot = 0; slot < args.k; ++slot) {
    const int expert = expert_of(args, ids, first + slot);
    is_broken = is_broken || expert == kNoSuchExpert;
    present += expert >= 0 ? 1 : 0;
  }
  for (int slot = static_cast<int>(thread_index); slot < args.k; slot += static_cast<int>(threads)) {
    const int expert = expert_of(args, ids, first + slot);
    int place = 0;
    for (int other = 0; other < args.k; ++other) {
      const int e = expert_of(args, ids, first + other);
      if (e >= 0 && (e < expert || (e == expert && other < slot))) ++place;
    }
    if (expert >= 0) order[place] = static_cast<ushort>(slot);
  }
  return is_broken ? static_cast<int>(kNoSuchExpert) : present;
}

// Where moe_down reads
struct DownBuffers {
  device const uchar* down;
  device const int32_t* ids;
  device const float* weights;
  device const half* h;
  device const float* h_scale;
};

// A tile of both rows of tiles of a slot, with what they meet: columns 8 lane .. 8 lane + 7 of h
template <class Block>
struct SlotTile {
  Dot<Block> a;
  Dot<Block> b;
  Numbers8 q;
  float scale;
  float weight;

  void load(constant MoeArgs& args, DownBuffers from, int64_t pair, int first_row, int other_row, int tile, uint lane) {
    const int expert = from.ids[pair];
    a.load_tile(tiles_of(args.down, from.down, expert, first_row), tile, lane);
    b.load_tile(tiles_of(args.down, from.down, expert, other_row), tile, lane);
    const uint4 words = reinterpret_cast<device const uint4*>(from.h + pair * args.h_stride + kTileCols * tile)[lane];
    LK_UNROLL
    for (int j = 0; j < 4; ++j) {
      const half2 two = as_type<half2>(words[j]);
      q.v[2 * j] = static_cast<float>(two.x);
      q.v[2 * j + 1] = static_cast<float>(two.y);
    }
    scale = from.h_scale[pair * (args.h_stride / kGroup) + kTileCols / kGroup * tile + lane / 4];
    weight = from.weights[pair];
  }
};

// ---- tables ----

template <class A, class B>
struct Same {
  enum : int { kYes = 0 };
};
template <class A>
struct Same<A, A> {
  enum : int { kYes = 1 };
};

}  // namespace metal_kernels
}  // namespace lutkern

#if defined(LK_GATE)
kernel void moe_up(constant MoeArgs& args [[buffer(0)]], device const uchar* gate [[buffer(1)]],
                   device const uchar* up [[buffer(2)]], device const uchar* x [[buffer(3)]],
                   device const int32_t* ids [[buffer(4)]], device half* h [[buffer(5)]],
                   device float* h_scale [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                   uint thread_index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                   uint simdgroups [[simdgroups_per_threadgroup]]) {
  // Two formats have two tables; one has one.
  constexpr int kGateWords = Same<LK_GATE, LK_UP>::kYes ? 0 : Table<LK_GATE>::kWords;
  threadgroup uint4 tables[(kGateWords + Table<LK_UP>::kWords) / 4];
  threadgroup uint4 staged[kUpSimdgroups * kStagedWords];
  threadgroup uint4* own = staged + kStagedWords * simdgroup;
  threadgroup uint* gate_table = reinterpret_cast<threadgroup uint*>(tables);
  threadgroup uint* up_table = gate_table + kGateWords;

  const int64_t pair = group.y;
  const int expert = expert_of(args, ids, pair);
  if (expert < 0) return;
  const int tile_row = static_cast<int>(group.x);
  const int tiles = args.up.stored_cols / kTileCols;
  const int64_t x_row = pair / args.k * args.x.row_stride;
  device const uchar* gate_tiles = tiles_of(args.gate, gate, expert, tile_row);
  device const uchar* up_tiles = tiles_of(args.up, up, expert, tile_row);

  Dot<LK_GATE> a;
  Dot<LK_UP> b;
  Numbers8 numbers;
  int tile = static_cast<int>(simdgroup);
  if (tile < tiles) {
    a.load_tile(gate_tiles, tile, lane);
    b.load_tile(up_tiles, tile, lane);
    numbers = load_numbers8(args.x, x, x_row, tile, lane);
  }
  Table<LK_UP>::fill(up_table, thread_index, threads.x);
  if (kGateWords > 0) Table<LK_GATE>::fill(gate_table, thread_index, threads.x);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  float2 sum = float2(0.0f);
  while (tile < tiles) {
    const float scale = quantize8(numbers);
    stage8(own, numbers, scale, Dot<LK_GATE>::kHasSums || Dot<LK_UP>::kHasSums, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    dot_tile(a, b, gate_table, up_table, own);
    sum.x = fma(a.scale(), a.sum, sum.x);
    sum.y = fma(b.scale(), b.sum, sum.y);
    tile += static_cast<int>(simdgroups);
    if (tile < tiles) {
      a.load_tile(gate_tiles, tile, lane);
      b.load_tile(up_tiles, tile, lane);
      numbers = load_numbers8(args.x, x, x_row, tile, lane);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }

  sum = add_simdgroups(sum, reinterpret_cast<threadgroup float2*>(staged), simdgroup, simdgroups, lane);
  if (simdgroup == 0) finish_hidden(args, h, h_scale, pair, tile_row, sum.x, sum.y, lane);
}
#endif

#if defined(LK_WEIGHT)
kernel void moe_down(constant MoeArgs& args [[buffer(0)]], device const uchar* down [[buffer(1)]],
                     device const int32_t* ids [[buffer(2)]], device const float* weights [[buffer(3)]],
                     device const half* h [[buffer(4)]], device const float* h_scale [[buffer(5)]],
                     device float* out [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                     uint thread_index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                     uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint4 entries[Table<LK_WEIGHT>::kWords / 4];
  threadgroup uint4 staged[kOneSimdgroups * kStagedWords];
  threadgroup ushort order[kMostSlots];
  threadgroup uint4* own = staged + kStagedWords * simdgroup;
  threadgroup uint* table = reinterpret_cast<threadgroup uint*>(entries);

  const int64_t token = group.y;
  const int64_t first_pair = token * args.k;
  const int tiles = args.down.stored_cols / kTileCols;
  const int tile_rows = (args.down.rows + kTileRows - 1) / kTileRows;
  const int first_row = kRowsTogether * static_cast<int>(group.x);
  const int other_row = first_row + 1 < tile_rows ? first_row + 1 : first_row;  // the same again, where there is none
  const int slots = sort_slots(args, ids, first_pair, order, thread_index, threads.x);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const DownBuffers from = {down, ids, weights, h, h_scale};
  SlotTile<LK_WEIGHT> now;
  int place = static_cast<int>(simdgroup) / tiles;
  int tile = static_cast<int>(simdgroup) % tiles;
  if (place < slots) now.load(args, from, first_pair + order[place], first_row, other_row, tile, lane);
  Table<LK_WEIGHT>::fill(table, thread_index, threads.x);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  float2 sum = float2(slots == kNoSuchExpert ? as_type<float>(0x7fc00000u) : 0.0f);
  while (place < slots) {
    stage8(own, now.q, now.scale, Dot<LK_WEIGHT>::kHasSums, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    dot_tile(now.a, now.b, table, table, own);
    sum.x = fma(now.weight * now.a.scale(), now.a.sum, sum.x);
    sum.y = fma(now.weight * now.b.scale(), now.b.sum, sum.y);
    tile += static_cast<int>(simdgroups);
    while (tile >= tiles) {
      tile -= tiles;
      ++place;
    }
    if (place < slots) now.load(args, from, first_pair + order[place], first_row, other_row, tile, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }

  sum = add_simdgroups(sum, reinterpret_cast<threadgroup float2*>(staged), simdgroup, simdgroups, lane);
  if (simdgroup > 0) return;
  store_rows(out + token * args.down.rows, sum, kTileRows * first_row + static_cast<int>(lane), 0, args.down.rows,
             other_row > first_row);
}
#endif
