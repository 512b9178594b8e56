// A layer of experts for several tokens, in two launches:
//
//   1. moe_up_batch    h[pair] = activation(gate[e] x[token]) * (up[e] x[token]),  as integers, 32 rows with one scale
//   2. moe_down_batch  out[token] = sum over its pairs of weight * down[e] h[pair]
//
// Weights lie in tiles (gpu/tile.h); the arithmetic, its layouts and the instructions that matter are in fragments.cuh.
//
// Launch 1: a block has one expert and leaves at once if the expert has no pairs. Its eight warps have 2 or 4 units: a
// unit is a row of tiles of gate or of up, and the same rows of both are in one block. The warps of a unit, S = 4 or 2,
// split the columns:
//
//   list the pairs of the expert
//   for each 16 of them: for each S tiles of the columns:
//     barrier; x of these columns -> int8, by all warps; barrier; acc += tile x
//   sums of the warps meet in the order of the warps; activation; 32 rows of h become integers
//
// Launch 2: a block has one row of tiles of down, and all tokens (or a range of them): nobody else writes its part of
// out.
//
//   list the pairs, sorted by expert, and cut the list into chunks of one expert and at most 16 pairs
//   items: chunk by chunk, tile by tile; eight at a time, one for each warp:
//     sums of the item -> shared memory; barrier; out[token] += weight * sums, by warp token % 8; barrier
//
// Whoever adds to a number of out is always the same thread, and chunks come in the order of experts: the result does
// not depend on chance. The words of the next item are loaded while the one before is multiplied, across the barriers.
//
// The caller guarantees: stride of h is a multiple of 256, h.q at a multiple of 16; launch 2 follows launch 1.
#pragma once
#include "fragments.cuh"
#include "matmul.cuh"
#include "moe_batch_plan.h"

namespace lutkern {
namespace cuda {

// ---- which pairs ----

LK_DEVICE int up_to(int left, int most) { return left < most ? left : most; }

// Pairs first .. end - 1 of an expert, in ascending order, without the first `skip`: at most kBatchList of them go to
// the list. Returns how many there are in all, and comes with a barrier.
LK_DEVICE int collect(const MoeArgs& args, int expert, int first, int end, int skip, int32_t* list, int32_t* counts) {
  const int part = ((end - first + kBatchWarps - 1) / kBatchWarps + 31) / 32 * 32;
  const int begin = first + part * static_cast<int>(warp());
  const int stop = begin + up_to(end - begin, part);
  int n = 0;
#pragma unroll 4
  for (int i = begin; i < stop; i += 32) {
    const int pair = i + static_cast<int>(lane());
    n += count_ones(ballot(pair < stop && static_cast<int>(constant_load4(args.ids + pair)) == expert));
  }
  barrier();  // the list and the counts of the round before have been read
  if (lane() == 0) store4(counts + warp(), static_cast<uint32_t>(n));
  barrier();
  int before = -skip, all = 0;
  for (int w = 0; w < kBatchWarps; ++w) {
    const int count = static_cast<int>(load4(counts + w));
    if (w < static_cast<int>(warp())) before += count;
    all += count;
  }
  for (int i = begin; n > 0 && i < stop; i += 32) {
    const int pair = i + static_cast<int>(lane());
    const bool mine = pair < stop && static_cast<int>(constant_load4(args.ids + pair)) == expert;
    const uint32_t votes = ballot(mine);
    const int at = before + count_ones(votes & ((1u << lane()) - 1));
    if (mine && at >= 0 && at < kBatchList) store4(list + at, static_cast<uint32_t>(pair));
    before += count_ones(votes);
  }
  barrier();
  return all;
}

// ---- launch 1 ----

enum : int { kUpEights = kUpTokens / 8 };
using UpSums = float[2][kUpEights][4];

template <class Block>
LK_DEVICE const uint8_t* expert_tile(const WeightArgs& w, int64_t expert, int row_of_tiles, int tile) {
  return tile_of<Block>(w, row_of_tiles, tile) + expert * w.expert_bytes;
}

// A unit is a row of tiles of gate or of up; `splits` warps have one.
struct UpBlock {
  const MoeArgs& args;
  uint8_t* panels;  // of B, then those of A; then sums take their place
  uint8_t* panel;   // of A, of this warp
  int32_t* list;
  int splits;
  int expert;

  LK_MEMBER bool has_gate() const { return args.gate.data != nullptr; }
  LK_MEMBER int unit() const { return static_cast<int>(warp()) / splits; }
  LK_MEMBER int split() const { return static_cast<int>(warp()) % splits; }
  LK_MEMBER bool is_gate() const { return has_gate() && unit() % 2 == 0; }
  LK_MEMBER int rows() const { return kBatchWarps / splits / (has_gate() ? 2 : 1); }
  LK_MEMBER int first_row() const { return static_cast<int>(block_x()) * rows(); }
  LK_MEMBER int row() const { return first_row() + (has_gate() ? unit() / 2 : unit()); }
  LK_MEMBER PanelsB x(int i) const { return panels_at(panels + i * kUpTokens * kPanelsBytesPerToken, kUpTokens); }
  LK_MEMBER float* sums(int w) const { return reinterpret_cast<float*>(panels) + w * kUpTokens * kSumStride; }

  // x of n pairs of the list, in the columns of `splits` tiles
  LK_MEMBER void stage(int first, int n, int tile, bool whole_words) const {
    barrier();
#pragma unroll 1
    for (int i = static_cast<int>(warp()); i < splits * n; i += kBatchWarps) {
      const int here = tile + i / n;
      if (here * kTileCols >= args.x.cols) break;
      const int64_t token = static_cast<int64_t>(load4(list + first + i % n)) / args.k;
      stage_row(args.x, whole_words, token, here * kTileCols, x(i / n), static_cast<uint32_t>(i % n));
    }
    barrier();
  }
};

LK_DEVICE UpBlock up_block(const MoeArgs& args, uint8_t* panels, int splits) {
  uint8_t* a = panels + splits * kUpTokens * kPanelsBytesPerToken;
  return {args, panels, a + warp() * kPanelBytes, reinterpret_cast<int32_t*>(a + kBatchWarps * kPanelBytes), splits, 0};
}

// n pairs of the list times the weight of this warp: the sums of its tiles.
template <class Block>
LK_DEVICE void up_products(const UpBlock& block, const Table<Block>& table, int first, int n, UpSums& acc) {
  const WeightArgs& w = block.is_gate() ? block.args.gate : block.args.up;
  const bool whole_words = has_whole_words(block.args.x);
  const int tiles = tiles_of_row(block.args.up);
  const int split = block.split();
  const int mine = block.row() < tiles_down(block.args.up.rows) ? tiles : 0;  // where this warp has rows
  const uint8_t* from = expert_tile<Block>(w, block.expert, block.row(), split);
  LaneWords<Block> words;
  if (split < mine) load_words(words, from, lane());
#pragma unroll 1
  for (int tile = split; tile < tiles + split; tile += block.splits) {
    block.stage(first, n, tile - split, whole_words);
    from += block.splits * Tile<Block>::kBytes;
    if (tile < mine) {
      const uint8_t* next = tile + block.splits < mine ? from : nullptr;
      multiply_tile(words, next, table, block.panel, StagedHalves{block.x(split), (n + 7) / 8}, acc);
    }
  }
}

// 32 rows of h of a pair, a lane has one: floats, or integers with their scale.
LK_DEVICE void put_hidden(const MoeArgs& args, int64_t pair, int64_t row, float h) {
  if (args.h_float) store4(args.h_float + pair * args.h_stride + row + lane(), bits_of_float(h));
  if (!args.h.q) return;
  uint32_t largest = magnitude_bits(h);
  for (uint32_t i = 1; i < 32; i *= 2) largest = larger(largest, shuffle_xor(largest, i));
  const QuantizeRule rule = quantize_rule(largest);
  uint32_t codes = static_cast<uint32_t>(quantize_number(h, rule)) & 0xffu;
  const uint32_t odd = shuffle_xor(codes, 1);
  codes |= odd << 8;
  codes |= shuffle_xor(codes, 2) << 16;
  const int64_t at = pair * args.h.stride + row;
  if (lane() % 4 == 0) store4(args.h.q + at + lane(), codes);
  if (lane() == 0) store4(args.h.scale + at / kGroup, bits_of_float(rule.scale));
}

// h of n pairs: the sums of the warps meet.
LK_DEVICE void finish_hidden(const UpBlock& block, int first, int n, const UpSums& acc) {
  const MoeArgs& args = block.args;
  const int tiles = tiles_down(args.up.rows);
  const int64_t stride = args.h.q ? args.h.stride : args.h_stride;
  barrier();
  store_sums(acc, (n + 7) / 8, block.sums(static_cast<int>(warp())));
  barrier();
#pragma unroll 1
  for (int unit = static_cast<int>(warp()); unit < block.rows() * n; unit += kBatchWarps) {
    const int r = unit / n, i = unit % n;
    const int tile = block.first_row() + r;
    if (tile >= tiles) break;
    const float* from = block.sums((block.has_gate() ? 2 * r : r) * block.splits) + i * kSumStride + lane();
    float h = 0.0f, factor = 0.0f;
#pragma unroll 1
    for (int s = 0; s < block.splits; ++s) {
      h += load_float(from + s * kUpTokens * kSumStride);
      if (block.has_gate()) factor += load_float(from + (block.splits + s) * kUpTokens * kSumStride);
    }
    const int64_t pair = static_cast<int64_t>(load4(block.list + first + i));
    const int row = tile * kTileRows;
    h = activate(args.activation, h);
    if (block.has_gate()) h *= factor;
    if (row + static_cast<int>(lane()) >= args.up.rows) h = 0.0f;
    const int64_t end = tile == tiles - 1 ? stride : row + int64_t{kTileRows};  // zeros after the last rows
#pragma unroll 1
    for (int64_t to = row; to < end; to += kTileRows) {
      put_hidden(args, pair, to, h);
      h = 0.0f;
    }
  }
}

// The block's expert and its pairs in the list: how many there are; 0: nothing to do.
LK_DEVICE int find_pairs(UpBlock& block) {
  const MoeArgs& args = block.args;
  const int64_t y = block_y();
  block.expert = block_is_pair(args) ? expert_of(args, y) : static_cast<int>(y);
  if (block.expert < 0) return 0;
  const int n =
      collect(args, block.expert, 0, static_cast<int>(pairs_of(args)), 0, block.list, block.list + kBatchList);
  return n > 0 && block_is_pair(args) && static_cast<int64_t>(load4(block.list)) != y ? 0 : n;
}

// Where number `at` of the pairs of the expert is in the list, which is made again when it is used up
LK_DEVICE int listed(const UpBlock& block, int at) {
  if (at > 0 && at % kBatchList == 0) {
    collect(block.args, block.expert, 0, static_cast<int>(pairs_of(block.args)), at, block.list,
            block.list + kBatchList);
  }
  return at % kBatchList;
}

template <class Block>
LK_DEVICE void moe_up_batch(const MoeArgs& args, uint8_t* shared) {
  UpBlock block = up_block(args, shared + Table<Block>::kBytes, up_splits(args));
  const int all = find_pairs(block);
  if (all == 0) return;
  fill_codes<Block>(shared);
  clear_shared(block.panels, block.splits * kUpTokens * kPanelsBytesPerToken, thread(), threads());
  const Table<Block> table(shared, lane());
#pragma unroll 1
  for (int at = 0; at < all; at += kUpTokens) {
    const int first = listed(block, at), n = up_to(all - at, kUpTokens);
    UpSums acc;
    clear(acc);
    up_products<Block>(block, table, first, n, acc);
    finish_hidden(block, first, n, acc);
  }
}

// Two formats: warps of gate and warps of up go their own way between the barriers. Nothing is loaded ahead.
template <class Block>
LK_DEVICE void mixed_tile(const UpBlock& block, const uint8_t* table, int tile, int n, UpSums& acc) {
  const WeightArgs& w = block.is_gate() ? block.args.gate : block.args.up;
  LaneWords<Block> words;
  load_words(words, expert_tile<Block>(w, block.expert, block.row(), tile), lane());
  multiply_tile(words, nullptr, Table<Block>(table, lane()), block.panel,
                StagedHalves{block.x(block.split()), (n + 7) / 8}, acc);
}

LK_DEVICE void mixed_products(const UpBlock& block, const uint8_t* table, int first, int n, UpSums& acc) {
  const bool whole_words = has_whole_words(block.args.x);
  const int tiles = tiles_of_row(block.args.up);
  const int format = block.is_gate() ? block.args.gate.format : block.args.up.format;
  const bool mine = block.row() < tiles_down(block.args.up.rows);
#pragma unroll 1
  for (int tile = 0; tile < tiles; tile += block.splits) {
    block.stage(first, n, tile, whole_words);
    const int here = tile + block.split();
    if (!mine || here >= tiles) continue;
    switch (static_cast<FormatId>(format)) {
#define LUTKERN_MIXED_TILE(name, Block)            \
  case FormatId::name:                             \
    mixed_tile<Block>(block, table, here, n, acc); \
    break;
      LUTKERN_CUDA_TILE_FORMATS(LUTKERN_MIXED_TILE)
#undef LUTKERN_MIXED_TILE
      default:
        trap();
    }
  }
}

LK_DEVICE void fill_table(int format, uint8_t* table) {
  switch (static_cast<FormatId>(format)) {
#define LUTKERN_FILL(name, Block) \
  case FormatId::name:            \
    fill_codes<Block>(table);     \
    break;
    LUTKERN_CUDA_TILE_FORMATS(LUTKERN_FILL)
#undef LUTKERN_FILL
    default:
      trap();
  }
}

LK_DEVICE void moe_up_batch_mixed(const MoeArgs& args, uint8_t* shared) {
  uint8_t* table_of_up = shared + table_bytes(args.gate.format);
  UpBlock block = up_block(args, table_of_up + table_bytes(args.up.format), kMixedSplits);
  const int all = find_pairs(block);
  if (all == 0) return;
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    fill_table(turn == 0 ? args.gate.format : args.up.format, turn == 0 ? shared : table_of_up);
  }
  clear_shared(block.panels, block.splits * kUpTokens * kPanelsBytesPerToken, thread(), threads());
  const uint8_t* table = block.is_gate() ? shared : table_of_up;
#pragma unroll 1
  for (int at = 0; at < all; at += kUpTokens) {
    const int first = listed(block, at), n = up_to(all - at, kUpTokens);
    UpSums acc;
    clear(acc);
    mixed_products(block, table, first, n, acc);
    finish_hidden(block, first, n, acc);
  }
}

// ---- launch 2 ----

struct DownBlock {
  const MoeArgs& args;
  uint8_t* warps;    // panels of all warps
  int32_t* list;     // pairs, sorted by expert; the highest bit: a chunk begins
  uint16_t* chunks;  // number in the list of their first pairs
  int32_t* counts;
  int row;  // of tiles
  int n;
  int n_chunks;

  LK_MEMBER int64_t pair(int i) const { return static_cast<int64_t>(load4(list + i) & 0x7fffffffu); }
  LK_MEMBER int begin(int chunk) const { return static_cast<int>(load2(chunks + chunk)); }
  LK_MEMBER int end(int chunk) const { return chunk + 1 < n_chunks ? begin(chunk + 1) : n; }
  LK_MEMBER uint8_t* panel(int w) const { return warps + w * kDownWarpBytes; }
  LK_MEMBER float* sums(int w) const { return reinterpret_cast<float*>(panel(w)); }
};

// Chunks of a list whose first pairs are marked: by one warp, before a barrier.
LK_DEVICE void cut(const DownBlock& block, int n) {
  int chunks = 0;
  for (int i = 0; i < n; i += 32) {
    const int at = i + static_cast<int>(lane());
    const bool begins = at < n && (load4(block.list + at) & 0x80000000u) != 0;
    const uint32_t votes = ballot(begins);
    if (begins) {
      store2(block.chunks + chunks + count_ones(votes & ((1u << lane()) - 1)), static_cast<uint32_t>(at));
    }
    chunks += count_ones(votes);
  }
  if (lane() == 0) {
    store4(block.counts, static_cast<uint32_t>(n));
    store4(block.counts + 1, static_cast<uint32_t>(chunks));
  }
}

// All pairs of few tokens, sorted by expert: each counts those that come before it.
LK_DEVICE void sort_pairs(DownBlock& block, int64_t first, int pairs) {
  constexpr uint32_t kNobody = 0x7fffffffu;
  uint8_t* keys = block.warps;
  const int rounded = (pairs + 3) / 4 * 4;
  for (int i = static_cast<int>(thread()); i < rounded; i += 32 * kBatchWarps) {
    const int expert = i < pairs ? expert_of(block.args, first + i) : int{kLeftOut};
    store4(keys + 4 * i, expert < 0 ? kNobody : static_cast<uint32_t>(expert));
  }
  barrier();
  for (int i = static_cast<int>(thread()); i < pairs; i += 32 * kBatchWarps) {
    const uint32_t key = load4(keys + 4 * i);
    int smaller = 0, same = 0;
    for (int j = 0; j < rounded; j += 4) {
      const Words4 four = load16(keys + 4 * j);
      const uint32_t other[4] = {four.x, four.y, four.z, four.w};
      for (int m = 0; m < 4; ++m) {
        smaller += other[m] < key;
        same += other[m] == key && j + m < i;
      }
    }
    if (key != kNobody) {
      const uint32_t mark = same % kDownTokens == 0 ? 0x80000000u : 0u;
      store4(block.list + smaller + same, static_cast<uint32_t>(first + i) | mark);
    }
  }
  barrier();
  if (warp() == 0) {
    int n = 0;
    for (int i = 0; i < pairs; i += 32) {
      const int at = i + static_cast<int>(lane());
      n += count_ones(ballot(at < pairs && load4(keys + 4 * at) != kNobody));
    }
    cut(block, n);
  }
  barrier();
  block.n = static_cast<int>(load4(block.counts));
  block.n_chunks = static_cast<int>(load4(block.counts + 1));
  barrier();
}

// n pairs of one expert
LK_DEVICE void cut_evenly(DownBlock& block, int n) {
  block.n = n;
  block.n_chunks = (n + kDownTokens - 1) / kDownTokens;
  for (int i = static_cast<int>(thread()); i < block.n_chunks; i += 32 * kBatchWarps) {
    store2(block.chunks + i, static_cast<uint32_t>(kDownTokens * i));
  }
  barrier();
}

// h of n pairs from `first` of the list on, in the 256 columns of a tile, to the panels of the warp
LK_DEVICE void stage_hidden(const DownBlock& block, int first, int n, int tile, const PanelsB& to) {
  const Quantized& h = block.args.h;
  for (int i = static_cast<int>(lane()); i < 16 * n; i += 32) {
    const uint32_t token = static_cast<uint32_t>(i) / 16, c = static_cast<uint32_t>(i) % 16;
    const int8_t* from = h.q + block.pair(first + i / 16) * h.stride + int64_t{tile} * kTileCols + 16 * c;
    copy16_async(to.codes + c / 8 * (kDownTokens * kHalfTile) + place_in_b(token, c % 8), from);
  }
  copy_commit();
  if (static_cast<int>(lane()) < 2 * n) {
    const uint32_t token = lane() / 2, part = lane() % 2;
    const float* from = h.scale + block.pair(first + static_cast<int>(token)) * (h.stride / kGroup) + 8 * int64_t{tile};
    const Words4 four = constant_load16(from + 4 * part);
    float* scales = to.scales + 4 * part * kDownTokens + token;
    store4(scales, four.x);
    store4(scales + kDownTokens, four.y);
    store4(scales + 2 * kDownTokens, four.z);
    store4(scales + 3 * kDownTokens, four.w);
  }
}

// out += weight * sums of the items that the warps have just stored, `first` the item of warp 0
LK_DEVICE void add_items(const DownBlock& block, int first, int items, int tiles) {
  const MoeArgs& args = block.args;
  const int end = first + kBatchWarps < items ? first + kBatchWarps : items;
  const int row = block.row * kTileRows + static_cast<int>(lane());
#pragma unroll 1
  for (int chunk = first / tiles; chunk * tiles < end; ++chunk) {
    const int begin_item = chunk * tiles > first ? chunk * tiles : first;
    const int end_item = (chunk + 1) * tiles < end ? (chunk + 1) * tiles : end;
    const int begin = block.begin(chunk), n = block.end(chunk) - begin;
    const int pair = static_cast<int>(lane()) < n ? static_cast<int>(block.pair(begin + static_cast<int>(lane()))) : 0;
    const int token = pair / args.k;
    uint32_t mine = ballot(static_cast<int>(lane()) < n && token % kBatchWarps == static_cast<int>(warp()));
    for (; mine != 0; mine &= mine - 1) {
      const uint32_t i = static_cast<uint32_t>(count_ones((mine & (0u - mine)) - 1));
      const int pair_here = shuffle(pair, i);
      const int token_here = shuffle(token, i);
      float sum = 0.0f;
      for (int item = begin_item; item < end_item; ++item) {
        sum += load_float(block.sums(item - first) + static_cast<int>(i) * kSumStride + static_cast<int>(lane()));
      }
      const float weight = float_of_bits(constant_load4(args.weights + pair_here));
      if (row < args.down.rows) {
        float* out = args.out + int64_t{token_here} * args.down.rows + row;
        store4(out, bits_of_float(fma_f32(weight, sum, load_float(out))));
      }
    }
  }
}

// Everything that is in the list
template <class Block>
LK_DEVICE void down_products(const DownBlock& block, const Table<Block>& table) {
  const MoeArgs& args = block.args;
  const int tiles = tiles_of_row(args.down);
  const int items = block.n_chunks * tiles;
  uint8_t* panel = block.panel(static_cast<int>(warp()));
  const PanelsB h = panels_at(panel + kPanelBytes, kDownTokens);
  const auto tile_of_item = [&](int item) {
    const int64_t expert = static_cast<int>(constant_load4(args.ids + block.pair(block.begin(item / tiles))));
    return expert_tile<Block>(args.down, expert, block.row, item % tiles);
  };
  LaneWords<Block> words;
  if (static_cast<int>(warp()) < items) load_words(words, tile_of_item(static_cast<int>(warp())), lane());
#pragma unroll 1
  for (int first = 0; first < items; first += kBatchWarps) {
    const int item = first + static_cast<int>(warp());
    if (item < items) {
      const int chunk = item / tiles;
      const int n = block.end(chunk) - block.begin(chunk);
      stage_hidden(block, block.begin(chunk), n, item % tiles, h);
      const uint8_t* next = item + kBatchWarps < items ? tile_of_item(item + kBatchWarps) : nullptr;
      float acc[2][kDownTokens / 8][4];
      clear(acc);
      copy_wait<0>();
      warp_barrier();
      multiply_tile(words, next, table, panel, StagedHalves{h, (n + 7) / 8}, acc);
      store_sums(acc, (n + 7) / 8, block.sums(static_cast<int>(warp())));
    }
    barrier();
    add_items(block, first, items, tiles);
    barrier();
  }
}

// Zeros, or NaN where a token asks for what does not exist, to the block's rows of out
LK_DEVICE void begin_out(const DownBlock& block, int first, int end) {
  const MoeArgs& args = block.args;
  const int row = block.row * kTileRows + static_cast<int>(lane());
  for (int64_t token = first; token < end; ++token) {
    if (token % kBatchWarps != warp()) continue;
    bool bad = false;
    for (int slot = static_cast<int>(lane()); slot < args.k; slot += 32) {
      bad = bad || expert_of(args, token * args.k + slot) == kNoSuchExpert;
    }
    const uint32_t value = any(bad) ? 0x7fc00000u : 0u;
    if (row < args.down.rows) store4(args.out + token * args.down.rows + row, value);
  }
}

template <class Block>
LK_DEVICE void moe_down_batch(const MoeArgs& args, uint8_t* shared) {
  static_assert(kDownTokens * kSumStride * 4 <= kPanelBytes, "sums take the place of the panel of A");
  static_assert(4 * kBatchList <= kBatchWarps * kDownWarpBytes, "keys take the place of the panels");
  uint8_t* warps = shared + Table<Block>::kBytes;
  int32_t* list = reinterpret_cast<int32_t*>(warps + kBatchWarps * kDownWarpBytes);
  uint16_t* chunks = reinterpret_cast<uint16_t*>(list + kBatchList);
  int32_t* counts = reinterpret_cast<int32_t*>(chunks + kBatchList);
  DownBlock block = {args, warps, list, chunks, counts, static_cast<int>(block_x()), 0, 0};
  const int first = static_cast<int>(block_y() * down_tokens(args));
  const int end = first + up_to(args.x.rows - first, static_cast<int>(down_tokens(args)));
  const int first_pair = first * args.k, end_pair = end * args.k;  // below 2^31
  fill_codes<Block>(shared);
  const Table<Block> table(shared, lane());
  begin_out(block, first, end);
  const bool few = end_pair - first_pair <= kBatchList;
  if (few) sort_pairs(block, first_pair, end_pair - first_pair);
  clear_shared(warps, kBatchWarps * kDownWarpBytes, thread(), threads());
  barrier();
  int expert = 0, skip = 0;
#pragma unroll 1
  do {
    if (!few) {  // the pairs of one expert after those of the other, as many as the list holds
      const int all = collect(args, expert, first_pair, end_pair, skip, block.list, block.counts);
      cut_evenly(block, up_to(all - skip, kBatchList));
      skip += kBatchList;
      if (skip >= all) {
        ++expert;
        skip = 0;
      }
    }
    down_products(block, table);
  } while (!few && expert < args.down.experts);
}

#define LUTKERN_MOE_BATCH(name, Block)                                              \
  LK_KERNEL_BOUNDS(moe_up_batch_##name, MoeArgs, 32 * kBatchWarps, kBlocksOfSm) {   \
    LK_DYNAMIC_SHARED(shared);                                                      \
    moe_up_batch<Block>(args, shared);                                              \
  }                                                                                 \
  LK_KERNEL_BOUNDS(moe_down_batch_##name, MoeArgs, 32 * kBatchWarps, kBlocksOfSm) { \
    LK_DYNAMIC_SHARED(shared);                                                      \
    moe_down_batch<Block>(args, shared);                                            \
  }
LUTKERN_CUDA_TILE_FORMATS(LUTKERN_MOE_BATCH)
#undef LUTKERN_MOE_BATCH

LK_KERNEL_BOUNDS(moe_up_batch_mixed, MoeArgs, 32 * kBatchWarps, kBlocksOfSm) {
  LK_DYNAMIC_SHARED(shared);
  moe_up_batch_mixed(args, shared);
}

}  // namespace cuda
}  // namespace lutkern
