// Weights and bytes to a Metal device, from it, and from one layout to the other there. The CPU reads and writes the memory
// of the device, so that its threads do all of this in place, once queued work no longer uses the memory.
#include <string.h>

#include "../gpu/tile_blocks.h"
#include "operations.h"

namespace lutkern {
namespace metal {

namespace {

enum : int64_t { kRowsOfTiles = 4 /* worth one task */ };

using gpu::kTileRows;

int64_t rows_of_tiles(const Weight& w) { return (w.rows + kTileRows - 1) / kTileRows; }

// Rows of tiles begin .. end - 1, counted through all experts
template <class Block>
void encode_rows(const Weight& blocks, const Weight& tiles, int64_t begin, int64_t end) {
  const int64_t down = rows_of_tiles(tiles);
  const int64_t across = blocks.stored_cols / Block::kBlockSize;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t expert = i / down;
    const int64_t first = i % down * kTileRows;
    uint8_t* row = const_cast<uint8_t*>(tiles.row(expert, i % down));
    if (first + kTileRows > blocks.rows) memset(row, 0, static_cast<size_t>(tiles.row_bytes));
    for (int lane = 0; lane < kTileRows && first + lane < blocks.rows; ++lane) {
      const Block* block = reinterpret_cast<const Block*>(blocks.row(expert, first + lane));
      for (int64_t c = 0; c < across; ++c) gpu::encode(block[c], row + c * gpu::Tile<Block>::kBytes, lane);
    }
  }
}

template <class Block>
void decode_rows(const Weight& tiles, const Weight& blocks, int64_t begin, int64_t end) {
  const int64_t down = rows_of_tiles(tiles);
  const int64_t across = blocks.stored_cols / Block::kBlockSize;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t expert = i / down;
    const int64_t first = i % down * kTileRows;
    const uint8_t* row = tiles.row(expert, i % down);
    for (int lane = 0; lane < kTileRows && first + lane < blocks.rows; ++lane) {
      uint8_t* to = const_cast<uint8_t*>(blocks.row(expert, first + lane));
      for (int64_t c = 0; c < across; ++c) {
        const Block block = gpu::decode<Block>(row + c * gpu::Tile<Block>::kBytes, lane);
        memcpy(to + c * Block::kBlockBytes, &block, Block::kBlockBytes);
      }
    }
  }
}

struct Sides {
  const Weight* from;
  const Weight* to;
};

template <class Block>
void repack_rows(void* state, int64_t begin, int64_t end) {
  const Sides& sides = *static_cast<const Sides*>(state);
  if (sides.to->layout == Layout::tiles) {
    encode_rows<Block>(*sides.from, *sides.to, begin, end);
  } else {
    decode_rows<Block>(*sides.from, *sides.to, begin, end);
  }
}

RangeFn repack_of(FormatId format) {
  switch (format) {
#define LUTKERN_REPACK_OF(name, Block) \
  case FormatId::name:                 \
    return repack_rows<Block>;
    LUTKERN_GPU_TILE_FORMATS(LUTKERN_REPACK_OF)
#undef LUTKERN_REPACK_OF
    default:
      return nullptr;
  }
}

void copy_bytes(void* state, int64_t begin, int64_t end) {
  const Sides& sides = *static_cast<const Sides*>(state);
  const int64_t bytes = sides.from->row_bytes;
  memcpy(const_cast<uint8_t*>(sides.to->data) + begin * bytes, sides.from->data + begin * bytes,
         static_cast<size_t>((end - begin) * bytes));
}

}  // namespace

bool repack(Device& device, const Weight& from, const Weight& to, const Runner& runner, void* stream) {
  if (from.device && !wait_for_users(device, from.data, stream)) return false;
  if (to.device && !wait_for_users(device, to.data, stream)) return false;
  Sides sides{&from, &to};
  if (from.layout == to.layout) {
    const int64_t rows = from.experts * from.expert_bytes / from.row_bytes;
    const int64_t grain = (int64_t{1} << 20) / from.row_bytes + 1;
    runner.run(rows, grain, copy_bytes, &sides);
    return true;
  }
  const Weight& tiles = to.layout == Layout::tiles ? to : from;
  runner.run(tiles.experts * rows_of_tiles(tiles), kRowsOfTiles, repack_of(from.format), &sides);
  return true;
}

namespace {

bool are_apart(const CopyWork& work) {
  const uintptr_t to = reinterpret_cast<uintptr_t>(work.to);
  const uintptr_t from = reinterpret_cast<uintptr_t>(work.from);
  return to + work.nbytes <= from || from + work.nbytes <= to;
}

}  // namespace

bool copy(Device& device, const CopyWork& work, void* stream) {
  if (work.to_device == work.from_device) {
    const uintptr_t places = reinterpret_cast<uintptr_t>(work.to) | reinterpret_cast<uintptr_t>(work.from);
    Place to{};
    Place from{};
    const HeldStream held(device, stream);
    if (!held.ok()) return false;
    if ((places | work.nbytes) % 4 == 0 && are_apart(work) &&
        device.memory().find_for_work(work.to, work.nbytes, &to) &&
        device.memory().find_for_work(work.from, work.nbytes, &from)) {
      Encoding encoding(*held);
      return encoding.begin() && encoding.copy(to, from, work.nbytes);
    }
  }
  if (work.to_device && !wait_for_users(device, work.to, stream)) return false;
  if (work.from_device && !wait_for_users(device, work.from, stream)) return false;
  memmove(work.to, work.from, work.nbytes);
  return true;
}

}  // namespace metal
}  // namespace lutkern
