#include "products.h"

#include <stdlib.h>

#include "../tiles/repack.h"
#include "../tiles/tile.h"

namespace lutkern {
namespace {

constexpr int64_t kWeightsPerTask = 32768;  // some microseconds of work: far more than handing out a task costs
constexpr int64_t kChunk = 256;             // columns that go from tiles back to blocks together
constexpr int64_t kSlab = 64;               // tokens whose results wait on the stack
constexpr int64_t kRepackTokens = 6;        // from here on blocks are cut into tiles first

Activations one_token(const Prepared& x, int64_t token) {
  Activations out = x.integers();
  out.q += token * x.stride;
  out.scale += token * (x.stride / kActivationGroup);
  out.sum += token * (x.stride / kSumGroup);
  out.sum16 += token * (x.stride / 16);
  return out;
}

Activations from_column(const Prepared& x, int64_t column) {
  Activations out = x.integers();
  out.q += column;
  out.scale += column / kActivationGroup;
  out.sum += column / kSumGroup;
  out.sum16 += column / 16;
  return out;
}

struct Call {
  const Weight* w;
  const Prepared* x;
  bool floats;
  const int32_t* token;
  int64_t n_tokens;
  float* out;  // at row begin
  int64_t out_stride;
  const CpuKernels* kernels;
  int64_t begin;
  int64_t end;

  float* at(int64_t row) const { return out + (row - begin); }
  int format() const { return static_cast<int>(w->format); }

  void blocks(const Rows& rows) const {
    if (floats) {
      kernels->gemm_float[format()](rows, x->floats, x->stride, token, n_tokens, out, out_stride);
    } else if (n_tokens == 1) {
      kernels->gemv[format()](rows, one_token(*x, token[0]), out);
    } else {
      kernels->gemm[format()](rows, x->integers(), token, n_tokens, out, out_stride);
    }
  }

  // Rows of tiles, all 16 rows of each
  void tiles(const TileRows& rows, const int32_t* tokens, int64_t n, float* y, int64_t y_stride) const {
    if (n == 1) {
      kernels->gemv_tiles[format()](rows, one_token(*x, tokens[0]), y);
    } else {
      kernels->gemm_tiles[format()](rows, x->integers(), tokens, n, y, y_stride);
    }
  }

  // One row of tiles of which only some rows are wanted
  void part_of_tile(const TileRows& rows, int64_t first, int64_t row, int64_t stop) const {
    alignas(64) float slab[kSlab * kTileRows];
    for (int64_t i = 0; i < n_tokens; i += kSlab) {
      const int64_t n = n_tokens - i < kSlab ? n_tokens - i : kSlab;
      tiles(rows, token + i, n, slab, kTileRows);
      for (int64_t t = 0; t < n; ++t) {
        memcpy(at(row) + (i + t) * out_stride, slab + t * kTileRows + (row - first),
               static_cast<size_t>(stop - row) * sizeof(float));
      }
    }
  }

  TileRows tile_rows(const uint8_t* data, int64_t row_bytes, int64_t n_tiles) const {
    return TileRows{data, row_bytes, n_tiles, w->stored_cols};
  }

  void whole_tiles(int64_t expert) const {
    for (int64_t row = begin; row < end;) {
      const int64_t tile = row / kTileRows;
      const int64_t first = tile * kTileRows;
      const int64_t whole = row == first ? (end - row) / kTileRows : 0;
      const uint8_t* data = w->row(expert, tile);
      if (whole > 0) {
        tiles(tile_rows(data, w->row_bytes, whole), token, n_tokens, at(row), out_stride);
        row += whole * kTileRows;
      } else {
        const int64_t stop = first + kTileRows < end ? first + kTileRows : end;
        part_of_tile(tile_rows(data, w->row_bytes, 1), first, row, stop);
        row = stop;
      }
    }
  }

  // Tiles without a kernel, or with float activations: 16 rows of 256 columns become blocks on the stack.
  void tiles_as_blocks(int64_t expert) const {
    for (int64_t row = begin; row < end;) {
      const int64_t first = row / kTileRows * kTileRows;
      const int64_t stop = first + kTileRows < end ? first + kTileRows : end;
      for (int64_t i = 0; i < n_tokens; i += kSlab) {
        const int64_t n = n_tokens - i < kSlab ? n_tokens - i : kSlab;
        slab_as_blocks(w->row(expert, row / kTileRows), row - first, stop - row, token + i, n,
                       at(row) + i * out_stride);
      }
      row = stop;
    }
  }

  void slab_as_blocks(const uint8_t* tile, int64_t skip, int64_t n_rows, const int32_t* tokens, int64_t n,
                      float* y) const {
    const FormatInfo& info = w->info();
    alignas(64) uint8_t bytes[kTileRows * kChunk * 4];
    alignas(64) float slab[kSlab * kTileRows];
    for (int64_t column = 0; column < w->cols; column += kChunk) {
      const int64_t cols = w->cols - column < kChunk ? w->cols - column : kChunk;
      const int64_t blocks = (cols + info.block_size - 1) / info.block_size;
      const int64_t row_bytes = blocks * info.block_bytes;
      const int64_t all_rows = skip + n_rows;
      get_tiles(w->format, w->cols, tile, column, cols, static_cast<int>(all_rows), row_bytes, bytes);
      const Rows rows{bytes + skip * row_bytes, row_bytes, n_rows, blocks * info.block_size};
      if (floats) {
        kernels->gemm_float[format()](rows, x->floats + column, x->stride, tokens, n, slab, kTileRows);
      } else {
        kernels->gemm[format()](rows, from_column(*x, column), tokens, n, slab, kTileRows);
      }
      for (int64_t t = 0; t < n; ++t) {
        for (int64_t r = 0; r < n_rows; ++r) {
          const float part = slab[t * kTileRows + r];
          y[t * out_stride + r] = column == 0 ? part : y[t * out_stride + r] + part;
        }
      }
    }
  }

  // Blocks of many tokens: 16 rows at a time become a row of tiles. False: there was no memory for it.
  bool blocks_as_tiles(int64_t expert) const {
    const int64_t row_bytes = tile_row_bytes(w->format, w->cols);
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, static_cast<size_t>(row_bytes)) != 0) return false;
    uint8_t* data = static_cast<uint8_t*>(memory);
    for (int64_t row = begin; row < end; row += kTileRows) {
      const int n_rows = end - row < kTileRows ? static_cast<int>(end - row) : int{kTileRows};
      put_tiles(w->format, w->cols, w->row(expert, row), w->row_bytes, n_rows, data);
      const TileRows rows = tile_rows(data, row_bytes, 1);
      if (n_rows == kTileRows) {
        tiles(rows, token, n_tokens, at(row), out_stride);
      } else {
        part_of_tile(rows, row, row, row + n_rows);
      }
    }
    free(memory);
    return true;
  }
};

}  // namespace

int64_t units_per_task(const Weight& w) { return units_of(kWeightsPerTask / w.cols + 1); }

void multiply(const Weight& w, int64_t expert, int64_t begin, int64_t end, const Prepared& x, bool exact,
              const int32_t* token, int64_t n_tokens, float* out, int64_t out_stride, const CpuKernels& k) {
  const Call call{&w, &x, wants_float(w, exact), token, n_tokens, out, out_stride, &k, begin, end};
  const bool has_tiles = !call.floats && k.gemv_tiles[call.format()] && k.gemm_tiles[call.format()];
  if (w.layout == Layout::tiles) {
    if (has_tiles) {
      call.whole_tiles(expert);
    } else {
      call.tiles_as_blocks(expert);
    }
  } else if (!has_tiles || n_tokens < kRepackTokens || !call.blocks_as_tiles(expert)) {
    call.blocks(Rows{w.row(expert, begin), w.row_bytes, end - begin, w.stored_cols});
  }
}

}  // namespace lutkern
