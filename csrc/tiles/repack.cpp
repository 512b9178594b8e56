#include "repack.h"

#include "../once.h"
#include "panel.h"
#include "ternary_panel.h"
#include "tiles.h"

namespace lutkern {
namespace {

// One tile of n_rows rows. bytes: how much of a row's blocks belongs to the tile, less than all of it only at the end
// of a row of floats.
using PutFn = void (*)(const uint8_t* blocks, int64_t row_bytes, int n_rows, int bytes, uint8_t* body, uint8_t* tail);
using GetFn = void (*)(const uint8_t* body, const uint8_t* tail, int64_t row_bytes, int n_rows, int bytes,
                       uint8_t* blocks);

// Tiles of fewer rows or columns, as the tile is defined: row by row
template <class Block>
void put_rows(const uint8_t* blocks, int64_t row_bytes, int n_rows, int bytes, uint8_t* body, uint8_t* tail) {
  using T = Tile<Block>;
  constexpr int kItems = T::kTailBytes / T::kTailItem;
  for (int r = 0; r < kTileRows; ++r) {
    uint32_t words[T::kWords] = {};
    uint8_t items[T::kTailBytes + 1] = {};
    if (r < n_rows) {
      const uint8_t* row = blocks + r * row_bytes;
      if (bytes == T::kBytes) {
        T::put(row, words, items);
      } else {
        uint8_t whole[T::kBytes] = {};
        memcpy(whole, row, static_cast<size_t>(bytes));
        T::put(whole, words, items);
      }
    }
    for (int u = 0; u < T::kWords; ++u) memcpy(body + 4 * (u * kTileRows + r), words + u, 4);
    for (int i = 0; i < kItems; ++i) {
      memcpy(tail + T::kTailItem * (i * kTileRows + r), items + T::kTailItem * i, T::kTailItem);
    }
  }
}

template <class Block>
void get_rows(const uint8_t* body, const uint8_t* tail, int64_t row_bytes, int n_rows, int bytes, uint8_t* blocks) {
  using T = Tile<Block>;
  constexpr int kItems = T::kTailBytes / T::kTailItem;
  for (int r = 0; r < n_rows; ++r) {
    uint32_t words[T::kWords];
    uint8_t items[T::kTailBytes + 1];
    for (int u = 0; u < T::kWords; ++u) memcpy(words + u, body + 4 * (u * kTileRows + r), 4);
    for (int i = 0; i < kItems; ++i) {
      memcpy(items + T::kTailItem * i, tail + T::kTailItem * (i * kTileRows + r), T::kTailItem);
    }
    uint8_t* row = blocks + r * row_bytes;
    if (bytes == T::kBytes) {
      T::get(words, items, row);
    } else {
      uint8_t whole[T::kBytes];
      T::get(words, items, whole);
      memcpy(row, whole, static_cast<size_t>(bytes));
    }
  }
}

// Whole tiles
template <class Block>
struct Panel {
  using T = Tile<Block>;
  static void put(const uint8_t* blocks, int64_t row_bytes, uint8_t* body, uint8_t* tail) {
    put_panel<T>(blocks, row_bytes, body, tail);
  }
  static void get(const uint8_t* body, const uint8_t* tail, int64_t row_bytes, uint8_t* blocks) {
    get_panel<T>(body, tail, row_bytes, blocks);
  }
};

template <class Row>
struct TernaryPanel {
  static void put(const uint8_t* blocks, int64_t row_bytes, uint8_t* body, uint8_t* tail) {
    put_ternary_panel<Row>(blocks, row_bytes, body, tail);
  }
  static void get(const uint8_t* body, const uint8_t* tail, int64_t row_bytes, uint8_t* blocks) {
    get_ternary_panel<Row>(body, tail, row_bytes, blocks);
  }
};
template <>
struct Panel<Iq1S> : TernaryPanel<Iq1SRow> {};
template <>
struct Panel<Iq1M> : TernaryPanel<Iq1MRow> {};

template <class Block>
void put(const uint8_t* blocks, int64_t row_bytes, int n_rows, int bytes, uint8_t* body, uint8_t* tail) {
  if (n_rows == kTileRows && bytes == Tile<Block>::kBytes) {
    Panel<Block>::put(blocks, row_bytes, body, tail);
  } else {
    put_rows<Block>(blocks, row_bytes, n_rows, bytes, body, tail);
  }
}

template <class Block>
void get(const uint8_t* body, const uint8_t* tail, int64_t row_bytes, int n_rows, int bytes, uint8_t* blocks) {
  if (n_rows == kTileRows && bytes == Tile<Block>::kBytes) {
    Panel<Block>::get(body, tail, row_bytes, blocks);
  } else {
    get_rows<Block>(body, tail, row_bytes, n_rows, bytes, blocks);
  }
}

struct TileInfo {
  int columns;
  int bytes;  // of one row's blocks
  int body_bytes;
  int tail_bytes;
  PutFn put;
  GetFn get;
};

constexpr TileInfo kTileInfo[kFormatCount] = {
#define LUTKERN_TILE(name, Block)       \
  {Tile<Block>::kColumns,               \
   Tile<Block>::kBytes,                 \
   Tile<Block>::kWords * 4 * kTileRows, \
   Tile<Block>::kTailBytes * kTileRows, \
   put<Block>,                          \
   get<Block>},
    LUTKERN_FORMATS(LUTKERN_TILE)
#undef LUTKERN_TILE
};

const TileInfo& info_of(FormatId format) { return kTileInfo[static_cast<int>(format)]; }

int64_t tile_count(const TileInfo& info, int64_t cols) { return (cols + info.columns - 1) / info.columns; }

// Bytes of one row's blocks in tile number tile of a row of cols columns
int bytes_in_tile(FormatId format, const TileInfo& info, int64_t cols, int64_t tile) {
  const FormatInfo& block = kFormatInfo[static_cast<int>(format)];
  const int64_t left = cols - tile * info.columns;
  if (left >= info.columns) return info.bytes;
  return static_cast<int>((left + block.block_size - 1) / block.block_size * block.block_bytes);
}

}  // namespace

int64_t tile_row_bytes(FormatId format, int64_t cols) {
  const TileInfo& info = info_of(format);
  return (tile_count(info, cols) * (info.body_bytes + info.tail_bytes) + 63) / 64 * 64;
}

void put_tiles(FormatId format, int64_t cols, const uint8_t* blocks, int64_t row_bytes, int n_rows, uint8_t* tiles) {
  const TileInfo& info = info_of(format);
  const int64_t count = tile_count(info, cols);
  uint8_t* tails = tiles + count * info.body_bytes;
  for (int64_t t = 0; t < count; ++t) {
    info.put(blocks + t * info.bytes, row_bytes, n_rows, bytes_in_tile(format, info, cols, t),
             tiles + t * info.body_bytes, tails + t * info.tail_bytes);
  }
  uint8_t* end = tails + count * info.tail_bytes;
  memset(end, 0, static_cast<size_t>(tiles + tile_row_bytes(format, cols) - end));
}

void get_tiles(FormatId format, int64_t cols, const uint8_t* tiles, int64_t first, int64_t n, int n_rows,
               int64_t row_bytes, uint8_t* blocks) {
  const TileInfo& info = info_of(format);
  const int64_t count = tile_count(info, cols);
  const uint8_t* tails = tiles + count * info.body_bytes;
  const int64_t begin = first / info.columns;
  for (int64_t t = begin; t * info.columns < first + n; ++t) {
    info.get(tiles + t * info.body_bytes, tails + t * info.tail_bytes, row_bytes, n_rows,
             bytes_in_tile(format, info, cols, t), blocks + (t - begin) * info.bytes);
  }
}

namespace {

struct RepackTask {
  const Weight* w;
  uint8_t* out;
  int64_t block_row_bytes;
  int64_t tile_row;    // bytes of a row of tiles
  int64_t tiles_down;  // rows of tiles of a matrix

  template <bool kPut>
  static void run(void* state, int64_t begin, int64_t end) {
    const RepackTask& self = *static_cast<RepackTask*>(state);
    const Weight& w = *self.w;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t expert = i / self.tiles_down;
      const int64_t row = i % self.tiles_down * kTileRows;
      const int n_rows = w.rows - row < kTileRows ? static_cast<int>(w.rows - row) : int{kTileRows};
      const int64_t in_blocks = (expert * w.rows + row) * self.block_row_bytes;
      const int64_t in_tiles = i * self.tile_row;
      if constexpr (kPut) {
        put_tiles(w.format, w.cols, w.data + in_blocks, self.block_row_bytes, n_rows, self.out + in_tiles);
      } else {
        get_tiles(w.format, w.cols, w.data + in_tiles, 0, w.cols, n_rows, self.block_row_bytes, self.out + in_blocks);
      }
    }
  }
};

RepackTask task_of(const Weight& w, uint8_t* out) {
  const FormatInfo& block = w.info();
  const int64_t row_bytes = (w.cols + block.block_size - 1) / block.block_size * block.block_bytes;
  return RepackTask{&w, out, row_bytes, tile_row_bytes(w.format, w.cols), (w.rows + kTileRows - 1) / kTileRows};
}

void make_ternary_rows(TernaryRows* out) {
  memset(out->row, 0xff, sizeof(out->row));
  for (int i = 0; i < 2048; ++i) {
    int number = 0;
    for (int j = 0; j < 8; ++j) {
      number = 3 * number + static_cast<int8_t>((kIq1Grid.row[i] >> (8 * j)) & 255u) + 1;
    }
    out->row[number] = static_cast<uint16_t>(i);
  }
}

void make_ternary_tables(TernaryTables* out) {
  for (int i = 0; i < 2048; ++i) {
    const uint64_t row = kIq1Grid.row[i];  // bytes of {-1, 0, 1}
    out->digits[i] = {0, 0};
    for (int j = 0; j < 4; ++j) {
      const uint32_t first = ((row >> (8 * j)) + 1) & 3u;
      const uint32_t second = ((row >> (32 + 8 * j)) + 1) & 3u;
      out->digits[i].first |= first << (8 * j);
      out->digits[i].both |= (3 * first + second) << (8 * j);
    }
  }
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t byte = i;
    out->fives[i] = 0;
    for (int k = 0; k < 5; ++k) {
      out->fives[i] |= static_cast<uint64_t>((byte * 3) >> 8) << (8 * k);
      byte = (byte * 3) & 255u;
    }
  }
}

}  // namespace

void to_tiles(const Weight& blocks, uint8_t* tiles, const Runner& runner) {
  RepackTask task = task_of(blocks, tiles);
  runner.run(blocks.experts * task.tiles_down, 1, RepackTask::run<true>, &task);
}

void to_blocks(const Weight& tiles, uint8_t* blocks, const Runner& runner) {
  RepackTask task = task_of(tiles, blocks);
  runner.run(tiles.experts * task.tiles_down, 1, RepackTask::run<false>, &task);
}

const TernaryRows& ternary_rows() { return made_once<TernaryRows, make_ternary_rows>(); }

const TernaryTables& ternary_tables() { return made_once<TernaryTables, make_ternary_tables>(); }

}  // namespace lutkern
