// A layer of experts for several tokens, in two dispatches:
//
//   moe_up_batch     h[pair] = activation(gate[e] x[token]) * (up[e] x[token]),   e = ids[pair]
//   moe_down_batch   out[token] = sum over its slots of weight * down[e] h[pair],   pair = token * k + slot
//
// Weights lie in tiles (gpu/tile.h); the arithmetic, its layouts and the operations that matter are in panels.metal. h
// is integers as halfs with a scale for each 32 of them (arguments.h).
//
// moe_up_batch: a threadgroup has one expert and 4 rows of tiles, each of one simdgroup; it leaves at once if the
// expert has no pairs:
//
//   list the pairs of the expert
//   for each 16 of them:
//     for gate, then for up: fill the table; for each 128 columns: barrier; x -> integers;
//       barrier; acc += tile x, 32 columns at a time
//     h of 32 rows: activation; the largest magnitude of the lanes; integers
//
// One table at a time leaves room for any two formats, and x is staged twice. Where both have the same format the table
// is filled once.
//
// moe_down_batch: a threadgroup has one row of tiles of down and all tokens (or a range of them): nobody else writes
// its part of out. Its simdgroups split the columns:
//
//   out = 0, or NaN for a token that asks for an expert that does not exist
//   for each expert that a token asks for, in ascending order: list its pairs; for each 16 of them:
//     for each tile of the simdgroup: h -> panel of the simdgroup; acc += tile h
//     barrier; out[token] += weight * (sums of the simdgroups, in their order); barrier
//
// A number of out always belongs to the same thread. Nothing depends on chance: no atomics, sums in ascending order of
// experts, for each pair the same whatever pairs it meets.
//
// Operations of a lane for 32 columns and 16 pairs: 512 in the matrices, about 190 beside them (panels.metal), 40 to
// stage x for one of four simdgroups, 50 to stage h. An expert with one pair takes about 200 and 50 for it: two
// dispatches of moe_one.metal are better there, and these from about two pairs of an expert on. Reading ids again for
// each expert takes less than a tenth of the work on 4096 pairs.
//
// Threadgroup memory: the table (iq1_m 16 KB); up 6 KB of panels, 6.3 KB of x; down 12.3 KB of both; 2 KB of the list.
// The caller guarantees: stride of h is a multiple of 256; pairs are below 2^31; moe_down_batch follows moe_up_batch.
#pragma once
#include "panels.metal"

namespace lutkern {
namespace metal_kernels {

enum : int { kNobody = 0x7fffffff };

// ---- which pairs ----

// A list of pairs that all threads of a threadgroup make together
struct PairList {
  threadgroup int* pairs;   // kBatchList
  threadgroup int* counts;  // two for each simdgroup
};

struct Found {
  int all;   // pairs of the expert
  int next;  // the next expert that anybody asks for, or kNobody
};

static inline uint votes_of(bool vote) { return static_cast<uint>(static_cast<simd_vote::vote_t>(simd_ballot(vote))); }

// Pairs first .. end - 1 of an expert, in ascending order, without the first `skip`: at most kBatchList of them go to
// the list. Comes with barriers before and after.
static inline Found collect(device const int* ids, int experts, int expert, int first, int end, int skip, PairList list,
                            Here here) {
  const int part = 32 * tiles_for(tiles_for(end - first, here.simdgroups), 32);
  const int begin = first + min(end - first, part * static_cast<int>(here.simdgroup));
  const int stop = begin + min(end - begin, part);
  const int lane = here.lane;
  int n = 0;
  int next = kNobody;
  for (int i = begin; i < stop; i += 32) {
    const int id = lane < stop - i ? ids[i + lane] : static_cast<int>(kNoSuchExpert);
    n += popcount(votes_of(id == expert));
    next = id > expert && id < experts ? min(next, id) : next;
  }
  next = simd_min(next);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the list and the counts of the round before have been read
  if (lane == 0) {
    list.counts[2 * here.simdgroup] = n;
    list.counts[2 * here.simdgroup + 1] = next;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  Found found = {0, kNobody};
  int before = -skip;
  for (uint s = 0; s < here.simdgroups; ++s) {
    if (s == here.simdgroup) before += found.all;
    found.all += list.counts[2 * s];
    found.next = min(found.next, list.counts[2 * s + 1]);
  }
  for (int i = begin; n > 0 && i < stop; i += 32) {
    const bool mine = lane < stop - i && ids[i + lane] == expert;
    const uint votes = votes_of(mine);
    const int at = before + popcount(votes & ((1u << lane) - 1));
    if (mine && at >= 0 && at < kBatchList) list.pairs[at] = i + lane;
    before += popcount(votes);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return found;
}

}  // namespace metal_kernels
}  // namespace lutkern

#if defined(LK_UP)

namespace lutkern {
namespace metal_kernels {

// ---- gate and up ----

// What a threadgroup has
struct UpPart {
  threadgroup uint* table;
  threadgroup uint4* staged;
  threadgroup uint4* panel;  // of this simdgroup
  threadgroup const int* pairs;
  int n;  // of pairs
  int expert;
  int tile_row;
  bool has_rows;
};

// x of the pairs, kUpGroups times 32 columns from `column` on: a simdgroup has 8 pairs and 32 columns at a time.
static inline void stage_pairs(constant MoeArgs& args, device const uchar* x, UpPart part, int column, Here here) {
  const uint units = kUpGroups * tiles_for(part.n, 8);
  for (uint unit = here.simdgroup; unit < units; unit += here.simdgroups) {
    const int g = unit % kUpGroups;
    const int i = 8 * (unit / kUpGroups) + here.lane / 4;
    const int quarter = here.lane % 4;
    const int token = i < part.n ? part.pairs[i] / args.k : -1;
    Numbers8 numbers = load_eight(args.x, x, token, column + 32 * g + 8 * quarter);
    const float scale = quantize8(numbers);
    put_staged<kBatchTokens>(numbers, scale, i, quarter, part.staged + g * Staged<kBatchTokens>::kQuads);
  }
}

// acc = gate or up times x of the pairs
template <class Block>
struct UpPass {
  static void run(constant WeightArgs& w, device const uchar* weight, constant MoeArgs& args, device const uchar* x,
                  UpPart part, Here here, bool fill, thread float* acc) {
    LK_UNROLL
    for (int t = 0; t < kBatchTokens; ++t) acc[t] = 0.0f;
    if (fill) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      Table<Block>::fill(part.table, here.thread_index, here.threads);
    }
    device const uchar* from = tiles_at(w, weight, part.expert, part.tile_row);
    for (int column = 0; column < w.cols; column += kTileCols) {
      Lane<Block> row;
      if (part.has_rows) row.load(from, here.lane);
      from += Tile<Block>::kBytes;
      for (int g = 0; g < 8 && column + 32 * g < w.cols; ++g) {
        if (g % kUpGroups == 0) {
          threadgroup_barrier(mem_flags::mem_threadgroup);
          stage_pairs(args, x, part, column + 32 * g, here);
          threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        if (!part.has_rows) continue;
        Group group;
        unpack_group(row, g, part.table, group);
        threadgroup const uint4* staged = part.staged + g % kUpGroups * Staged<kBatchTokens>::kQuads;
        multiply_group<kBatchTokens>(group, unit_of(row), staged, part.n, part.panel, here.lane, acc);
      }
    }
  }
};
template <>
struct UpPass<NoGate> {
  static void run(constant WeightArgs&, device const uchar*, constant MoeArgs&, device const uchar*, UpPart, Here, bool,
                  thread float*) {}
};

// A group of 32 numbers of h, one of each lane
static inline void put_hidden(device half* h, device float* h_scale, int64_t group, float value, uint lane) {
  const QuantizeRule rule = quantize_rule(simd_max(magnitude_bits(value)));
  h[kGroup * group + lane] = static_cast<half>(quantize_number(value, rule));
  if (lane == 0) h_scale[group] = rule.scale;
}

// 32 rows of a pair from their sums of gate and of up
static inline void finish_hidden(constant MoeArgs& args, int pair, int tile_row, bool has_gate, float gate, float up,
                                 uint lane, device half* h, device float* h_scale) {
  const int64_t groups = args.h_stride / kGroup;
  const int64_t first = pair * groups;
  const bool is_row = tile_row * kTileRows + static_cast<int>(lane) < args.up.rows;
  const float value = has_gate ? activate(args.activation, gate) * up : activate(args.activation, up);
  put_hidden(h, h_scale, first + tile_row, is_row ? value : 0.0f, lane);
  if (tile_row + 1 < tiles_for(args.up.rows, kTileRows)) return;
  for (int64_t i = tile_row + 1; i < groups; ++i) put_hidden(h, h_scale, first + i, 0.0f, lane);
}

}  // namespace metal_kernels
}  // namespace lutkern

kernel void moe_up_batch(constant MoeArgs& args [[buffer(0)]], device const uchar* gate [[buffer(1)]],
                         device const uchar* up [[buffer(2)]], device const uchar* x [[buffer(3)]],
                         device const int* ids [[buffer(4)]], device half* h [[buffer(5)]],
                         device float* h_scale [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
  enum : int {
    kGateWords = Table<LK_GATE>::kWords,
    kUpWords = Table<LK_UP>::kWords,
    kTableWords = kGateWords > kUpWords ? kGateWords : kUpWords
  };
  constexpr bool has_gate = !is_same<LK_GATE, NoGate>::value;
  constexpr bool refills = has_gate && !is_same<LK_GATE, LK_UP>::value;
  threadgroup uint4 entries[kTableWords / 4];
  threadgroup uint4 staged[kUpGroups * Staged<kBatchTokens>::kQuads];
  threadgroup uint4 panels[kUpTiles * kPanelQuads];
  threadgroup int pairs[kBatchList];
  threadgroup int counts[2 * kUpTiles];
  threadgroup uint* table = reinterpret_cast<threadgroup uint*>(entries);
  const Here here = {thread_index, threads.x, simdgroup, simdgroups, lane};
  const PairList list = {pairs, counts};
  const int n_pairs = args.x.rows * args.k;
  const bool is_pair = n_pairs < args.up.experts;
  const int y = group.y;
  const int expert = is_pair ? expert_of(args, ids, y) : y;
  if (expert < 0) return;
  const int tiles = tiles_for(args.up.rows, kTileRows);
  bool is_filled = false;
  int all = 1;
  for (int skip = 0; skip < all; skip += kBatchList) {
    all = collect(ids, args.up.experts, expert, 0, n_pairs, skip, list, here).all;
    if (skip == 0 && (all == 0 || (is_pair && pairs[0] != y))) return;
    const int listed = min(all - skip, static_cast<int>(kBatchList));
    for (int at = 0; at < listed; at += kBatchTokens) {
      const int n = min(listed - at, static_cast<int>(kBatchTokens));
      for (uint first = 0; first < kUpTiles; first += simdgroups) {
        const int mine = first + simdgroup;
        const int tile_row = group.x * kUpTiles + mine;
        const bool has_rows = mine < kUpTiles && tile_row < tiles;
        threadgroup uint4* panel = panels + (has_rows ? mine : 0) * kPanelQuads;
        const UpPart part = {table, staged, panel, pairs + at, n, expert, has_rows ? tile_row : 0, has_rows};
        float of_gate[kBatchTokens], of_up[kBatchTokens];
        UpPass<LK_GATE>::run(args.gate, gate, args, x, part, here, refills || !is_filled, of_gate);
        UpPass<LK_UP>::run(args.up, up, args, x, part, here, refills || (!has_gate && !is_filled), of_up);
        is_filled = true;
        if (!has_rows) continue;
        LK_UNROLL
        for (int t = 0; t < kBatchTokens; ++t) {
          if (t < n) finish_hidden(args, pairs[at + t], tile_row, has_gate, of_gate[t], of_up[t], lane, h, h_scale);
        }
      }
    }
  }
}

#endif

#if defined(LK_WEIGHT)

namespace lutkern {
namespace metal_kernels {

// ---- down ----

enum : int {
  kDownQuads = kPanelQuads + Staged<kBatchTokens>::kQuads,  // of a simdgroup: panel, h; then sums [pair][row]
  kDownFloats = 4 * kDownQuads
};
static_assert(kDownFloats >= kBatchTokens * kTileRows, "sums take the place of panel and h");

// 32 columns of h of n pairs, by a simdgroup
static inline void stage_hidden(device const half* h, device const float* h_scale, int64_t stride,
                                threadgroup const int* pairs, int n, int column, threadgroup uint4* to, uint lane) {
  for (int unit = lane; unit < 32 * tiles_for(n, 8); unit += 32) {
    const int i = unit / 4;
    const int part = unit % 4;
    const int64_t at = (i < n ? pairs[i] : 0) * stride + column;
    const float scale = i < n ? h_scale[at / kGroup] : 0.0f;
    Numbers8 q;
    LK_UNROLL
    for (int j = 0; j < 8; ++j) q.v[j] = i < n ? static_cast<float>(h[at + 8 * part + j]) : 0.0f;
    put_staged<kBatchTokens>(q, scale, i, part, to);
  }
}

// n pairs times one of the splits of the columns; from: the row of tiles of their expert. Sums to area[pair][row].
template <class Block>
static inline void down_sums(constant MoeArgs& args, device const uchar* from, device const half* h,
                             device const float* h_scale, threadgroup const int* pairs, int n, int split,
                             threadgroup const uint* table, threadgroup uint4* area, uint lane) {
  threadgroup uint4* staged = area + kPanelQuads;
  float acc[kBatchTokens];
  LK_UNROLL
  for (int t = 0; t < kBatchTokens; ++t) acc[t] = 0.0f;
  for (int column = split * kTileCols; column < args.down.cols; column += kDownSplits * kTileCols) {
    Lane<Block> row;
    row.load(from + column / kTileCols * Tile<Block>::kBytes, lane);
    for (int g = 0; g < 8 && column + 32 * g < args.down.cols; ++g) {
      simdgroup_barrier(mem_flags::mem_threadgroup);
      stage_hidden(h, h_scale, args.h_stride, pairs, n, column + 32 * g, staged, lane);
      simdgroup_barrier(mem_flags::mem_threadgroup);
      Group group;
      unpack_group(row, g, table, group);
      multiply_group<kBatchTokens>(group, unit_of(row), staged, n, area, lane, acc);
    }
  }
  threadgroup float* sums = reinterpret_cast<threadgroup float*>(area);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  LK_UNROLL
  for (int t = 0; t < kBatchTokens; ++t) {
    if (t < n) sums[t * kTileRows + lane] = acc[t];
  }
}

// Zeros, or NaN where a token asks for what does not exist, by the simdgroup that has the token
static inline void begin_out(constant MoeArgs& args, device const int* ids, device float* out, int first, int end,
                             int row, Here here) {
  for (int token = first; token < end; ++token) {
    if (token % here.simdgroups != here.simdgroup) continue;
    bool is_bad = false;
    for (int slot = here.lane; slot < args.k; slot += 32) {
      is_bad = is_bad || expert_of(args, ids, static_cast<int64_t>(token) * args.k + slot) == kNoSuchExpert;
    }
    const float value = simd_any(is_bad) ? as_type<float>(0x7fc00000u) : 0.0f;
    if (row < args.down.rows) out[static_cast<int64_t>(token) * args.down.rows + row] = value;
  }
}

// The sums of n pairs to their tokens
static inline void add_pairs(constant MoeArgs& args, device const float* weights, threadgroup const int* pairs, int n,
                             threadgroup const float* areas, device float* out, int row, Here here) {
  for (int i = 0; i < n; ++i) {
    const int pair = pairs[i];
    const int token = pair / args.k;
    if (token % here.simdgroups != here.simdgroup || row >= args.down.rows) continue;
    float sum = 0.0f;
    for (int s = 0; s < kDownSplits; ++s) sum += areas[s * kDownFloats + i * kTileRows + here.lane];
    device float* to = out + static_cast<int64_t>(token) * args.down.rows + row;
    *to = fma(weights[pair], sum, *to);
  }
}

}  // namespace metal_kernels
}  // namespace lutkern

kernel void moe_down_batch(constant MoeArgs& args [[buffer(0)]], device const uchar* down [[buffer(1)]],
                           device const int* ids [[buffer(2)]], device const float* weights [[buffer(3)]],
                           device const half* h [[buffer(4)]], device const float* h_scale [[buffer(5)]],
                           device float* out [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                           uint thread_index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup uint4 entries[Table<LK_WEIGHT>::kWords / 4];
  threadgroup uint4 areas[kDownSplits * kDownQuads];
  threadgroup int pairs[kBatchList];
  threadgroup int counts[2 * kDownSplits];
  threadgroup uint* table = reinterpret_cast<threadgroup uint*>(entries);
  const Here here = {thread_index, threads.x, simdgroup, simdgroups, lane};
  const PairList list = {pairs, counts};
  const int tokens = down_tokens(args.x.rows, args.down.rows);
  const int first = group.y * tokens, end = min(args.x.rows, first + tokens);
  const int first_pair = first * args.k, end_pair = end * args.k;
  const int tile_row = group.x;
  const int row = tile_row * kTileRows + lane;
  Table<LK_WEIGHT>::fill(table, thread_index, threads.x);
  begin_out(args, ids, out, first, end, row, here);

  int expert = -1, skip = 0;  // nobody: to find the first expert
  while (expert != kNobody) {
    const Found found = collect(ids, args.down.experts, expert, first_pair, end_pair, skip, list, here);
    const int listed = expert < 0 ? 0 : min(found.all - skip, static_cast<int>(kBatchList));
    device const uchar* from = tiles_at(args.down, down, max(expert, 0), tile_row);
    for (int at = 0; at < listed; at += kBatchTokens) {
      const int n = min(listed - at, static_cast<int>(kBatchTokens));
      for (int split = simdgroup; split < kDownSplits; split += simdgroups) {
        threadgroup uint4* area = areas + split * kDownQuads;
        down_sums<LK_WEIGHT>(args, from, h, h_scale, pairs + at, n, split, table, area, lane);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      add_pairs(args, weights, pairs + at, n, reinterpret_cast<threadgroup const float*>(areas), out, row, here);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    skip += kBatchList;
    if (expert < 0 || skip >= found.all) {
      expert = found.next;
      skip = 0;
    }
  }
}

#endif
