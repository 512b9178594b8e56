// How the kernels of moe_batch.cuh are launched.
#pragma once
#include "../formats/formats.h"
#include "arguments.h"
#include "fragments_plan.h"
#include "plan.h"

namespace lutkern {
namespace cuda {

enum : int {
  kBatchWarps = 8,     // of a block
  kBatchList = 1024,   // pairs that a block lists at once
  kDownTokens = 16,    // pairs of one expert that meet its weights together, in moe_down_batch
  kDownRange = 16384,  // pairs of a block of moe_down_batch

  kUpTokens = 16,    // pairs of one expert that meet its weights together, in moe_up_batch
  kMixedSplits = 2,  // so that two tables of 32 KB leave room
  kDownWarpBytes = kPanelBytes + kDownTokens * kPanelsBytesPerToken,
  kDownBytes = kBatchWarps * kDownWarpBytes + 4 * kBatchList + 2 * kBatchList + 64
};

LK_FN int64_t pairs_of(const MoeArgs& args) { return int64_t{args.x.rows} * args.k; }

LK_FN int tiles_down(int rows) { return (rows + kTileRows - 1) / kTileRows; }

// Warps of a block of launch 1 that split the columns of a row of tiles. Fewer of them leave more rows to a block, which
// share the work on x; more of them fill the device when pairs are few.
LK_FN int up_splits(const MoeArgs& args) { return pairs_of(args) <= 64 ? 4 : 2; }

// Launch 1 has one block in y for each expert or, where pairs are fewer, for each pair: the first pair of its expert works.
LK_FN bool block_is_pair(const MoeArgs& args) { return pairs_of(args) < args.up.experts; }

// Tokens of a block of launch 2
LK_FN int64_t down_tokens(const MoeArgs& args) {
  const int64_t tokens = args.k > 0 ? kDownRange / args.k : args.x.rows;
  return tokens < 1 ? 1 : (tokens < args.x.rows ? tokens : args.x.rows);
}

static inline Plan plan_up_batch(const MoeArgs& args, int tables, int splits) {
  const int rows = kBatchWarps / splits / (args.gate.data ? 2 : 1);
  const int64_t y = block_is_pair(args) ? pairs_of(args) : args.up.experts;
  const int shared =
      tables + splits * kUpTokens * kPanelsBytesPerToken + kBatchWarps * kPanelBytes + 4 * kBatchList + 64;
  return {static_cast<uint32_t>((tiles_down(args.up.rows) + rows - 1) / rows), static_cast<uint32_t>(y), 1,
          32 * kBatchWarps, static_cast<uint32_t>(shared)};
}

static inline Plan plan_moe_up_batch(const MoeArgs& args, int format) {
  return plan_up_batch(args, table_bytes(format), up_splits(args));
}

static inline Plan plan_moe_up_batch_mixed(const MoeArgs& args, int) {
  return plan_up_batch(args, table_bytes(args.gate.format) + table_bytes(args.up.format), kMixedSplits);
}

static inline Plan plan_moe_down_batch(const MoeArgs& args, int format) {
  const int64_t ranges = (args.x.rows + down_tokens(args) - 1) / down_tokens(args);
  return {static_cast<uint32_t>(tiles_down(args.down.rows)), static_cast<uint32_t>(ranges), 1, 32 * kBatchWarps,
          static_cast<uint32_t>(table_bytes(format) + kDownBytes)};
}

}  // namespace cuda
}  // namespace lutkern
