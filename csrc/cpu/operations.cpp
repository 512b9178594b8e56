#include "operations.h"

#include <string.h>

#include "../tiles/repack.h"
#include "../tiles/tile.h"
#include "kernels.h"
#include "prepared.h"
#include "products.h"
#include "scratch.h"

namespace lutkern {
namespace {

constexpr int64_t kChunk = 256;  // columns that wait on the stack: whole blocks of every format
// Results of more bytes go past the caches, which could not hold them: a line need not be read before it is written.
constexpr int64_t kCached = int64_t{16} << 20;

// Rows of all matrices, one after another; with tiles, rows of tiles.
struct DequantizeTask {
  const Weight* w;
  void* out;
  Dtype dtype;
  Stores stores;
  DequantizeFn kernel;
  DequantizeTilesFn tiles_kernel;  // null: tiles go through blocks
  NarrowFn narrow;                 // null: float32

  int64_t bytes_of(int64_t cols) const {
    return (cols + w->info().block_size - 1) / w->info().block_size * w->info().block_bytes;
  }
  float* floats(int64_t at) const { return static_cast<float*>(out) + at; }
  uint16_t* halves(int64_t at) const { return static_cast<uint16_t*>(out) + at; }

  // n numbers from blocks to out[at]
  void decode(const uint8_t* blocks, int64_t n, int64_t at, Stores how) const {
    if (!narrow) {
      kernel(blocks, n, floats(at), how);
      return;
    }
    alignas(64) float values[kChunk];
    for (int64_t first = 0; first < n; first += kChunk, blocks += bytes_of(kChunk)) {
      const int64_t count = n - first < kChunk ? n - first : kChunk;
      kernel(blocks, count, values, Stores::cached);
      narrow(values, count, halves(at + first));
    }
  }

  static void blocks(void* state, int64_t begin, int64_t end) {
    const DequantizeTask& self = *static_cast<DequantizeTask*>(state);
    const Weight& w = *self.w;
    // Rows without padding are one long row.
    const int64_t step = w.cols == w.stored_cols ? end - begin : 1;
    for (int64_t row = begin; row < end; row += step) {
      self.decode(w.data + row * w.row_bytes, step * w.cols, row * w.cols, self.stores);
    }
  }

  static void tiles(void* state, int64_t begin, int64_t end) {
    const DequantizeTask& self = *static_cast<DequantizeTask*>(state);
    const Weight& w = *self.w;
    const int64_t down = tiles_down(w);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % down * kTileRows;
      const int n_rows = w.rows - first < kTileRows ? static_cast<int>(w.rows - first) : int{kTileRows};
      const TileRows rows{w.row(i / down, i % down), w.row_bytes, 1, w.stored_cols};
      const int64_t at = (i / down * w.rows + first) * w.cols;
      if (!self.tiles_kernel) {
        self.through_blocks(rows.data, n_rows, at);
      } else if (self.narrow) {
        self.through_floats(rows, n_rows, at);
      } else {
        self.tiles_kernel(rows, 0, w.cols, n_rows, self.floats(at), w.cols, self.stores);
      }
    }
  }

  void through_floats(const TileRows& rows, int n_rows, int64_t at) const {
    alignas(64) float values[kTileRows * kChunk];
    for (int64_t column = 0; column < w->cols; column += kChunk) {
      const int64_t cols = w->cols - column < kChunk ? w->cols - column : kChunk;
      tiles_kernel(rows, column, cols, n_rows, values, kChunk, Stores::cached);
      for (int r = 0; r < n_rows; ++r) narrow(values + r * kChunk, cols, halves(at + r * w->cols + column));
    }
  }

  void through_blocks(const uint8_t* data, int n_rows, int64_t at) const {
    alignas(64) uint8_t bytes[kTileRows * kChunk * 4];
    for (int64_t column = 0; column < w->cols; column += kChunk) {
      const int64_t cols = w->cols - column < kChunk ? w->cols - column : kChunk;
      const int64_t row_bytes = bytes_of(cols);
      get_tiles(w->format, w->cols, data, column, cols, n_rows, row_bytes, bytes);
      for (int r = 0; r < n_rows; ++r) {
        decode(bytes + r * row_bytes, cols, at + r * w->cols + column, Stores::cached);
      }
    }
  }

  static int64_t tiles_down(const Weight& w) { return (w.rows + kTileRows - 1) / kTileRows; }
};

// Units of 16 rows; the first and the last one may reach past the rows that are wanted.
struct MatmulTask {
  const Weight* w;
  const Prepared* x;
  bool exact;
  const int32_t* token;
  int64_t n_tokens;
  int64_t row_begin;
  int64_t row_end;
  float* out;
  const CpuKernels* kernels;

  int64_t first_unit() const { return row_begin / kUnitRows; }
  int64_t n_units() const { return units_of(row_end) - first_unit(); }

  static void run(void* state, int64_t begin, int64_t end) {
    const MatmulTask& self = *static_cast<MatmulTask*>(state);
    int64_t row = (self.first_unit() + begin) * kUnitRows;
    int64_t stop = (self.first_unit() + end) * kUnitRows;
    if (row < self.row_begin) row = self.row_begin;
    if (stop > self.row_end) stop = self.row_end;
    if (row >= stop) return;
    multiply(*self.w, 0, row, stop, *self.x, self.exact, self.token, self.n_tokens, self.out + row, self.w->rows,
             *self.kernels);
  }
};

// Tokens that meet all weights before the next ones: their activations stay in the second-level cache of a processor
// while row after row goes by, and unpacking the weights again costs little. Parts of nearly the same size.
int64_t tokens_together(int64_t tokens, int64_t padded_columns) {
  constexpr int64_t kCacheBytes = 400 * 1024;
  const int64_t fit = kCacheBytes / padded_columns;
  const int64_t most = fit < 32 ? 32 : fit;
  const int64_t parts = (tokens + most - 1) / most;
  return parts < 2 ? tokens : (tokens + parts - 1) / parts;
}

}  // namespace

bool dequantize(const Weight& w, Dtype dtype, void* out, const Runner& runner) {
  const CpuKernels& k = kernels();
  const int format = static_cast<int>(w.format);
  const bool rows_fit = w.cols % 4 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  const bool large = w.experts * w.rows * w.cols > kCached / int64_t{sizeof(float)};
  DequantizeTask task{&w,
                      out,
                      dtype,
                      large && rows_fit ? Stores::streamed : Stores::cached,
                      k.dequantize[format],
                      k.dequantize_tiles[format],
                      dtype == Dtype::f32   ? nullptr
                      : dtype == Dtype::f16 ? k.to_f16
                                            : k.to_bf16};
  if (w.layout == Layout::tiles) {
    runner.run(w.experts * DequantizeTask::tiles_down(w), 1, DequantizeTask::tiles, &task);
  } else {
    runner.run(w.experts * w.rows, units_per_task(w) * kUnitRows, DequantizeTask::blocks, &task);
  }
  return true;
}

bool matmul(const Weight& w, const Matrix& x, bool exact, int64_t row_begin, int64_t row_end, float* out,
            const Runner& runner) {
  const CpuKernels& k = kernels();
  const bool floats = wants_float(w, exact);
  Scratch scratch;
  Prepared prepared;
  int32_t* token = scratch.take<int32_t>(x.rows);
  if (!prepared.allocate(scratch, x.rows, x.cols, !floats, floats)) return false;
  for (int64_t t = 0; t < x.rows; ++t) token[t] = static_cast<int32_t>(t);
  prepared.fill_all(x, k, runner);
  const int64_t together = tokens_together(x.rows, prepared.stride);
  for (int64_t first = 0; first < x.rows; first += together) {
    const int64_t count = x.rows - first < together ? x.rows - first : together;
    MatmulTask task{&w, &prepared, exact, token + first, count, row_begin, row_end, out + first * w.rows, &k};
    runner.run(task.n_units(), units_per_task(w), MatmulTask::run, &task);
  }
  return true;
}

void quantize_row(const Matrix& x, int8_t* q, float* scale) {
  alignas(64) float chunk[kActivationPad];
  alignas(64) int8_t codes[kActivationPad];
  float scales[kActivationPad / kActivationGroup];
  int16_t sums[kActivationPad / kSumGroup];
  int16_t sums16[kActivationPad / 16];
  for (int64_t first = 0; first < x.cols; first += kActivationPad) {
    const int64_t left = x.cols - first;
    const int64_t n = left < kActivationPad ? left : int64_t{kActivationPad};
    x.load(0, first, n, chunk);
    memset(chunk + n, 0, static_cast<size_t>(kActivationPad - n) * sizeof(float));
    kernels().quantize(chunk, kActivationPad, codes, scales, sums, sums16);
    memcpy(q + first, codes, static_cast<size_t>(n));
    memcpy(scale + first / kActivationGroup, scales,
           static_cast<size_t>((n + kActivationGroup - 1) / kActivationGroup) * sizeof(float));
  }
}

}  // namespace lutkern
