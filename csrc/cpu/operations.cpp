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

// Nearest, ties to even; a NaN stays one.
uint16_t bf16_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

uint16_t half_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // The halves below 2^-14 are multiples of 2^-24: adding 0.5 leaves the rounded multiple in the mantissa.
    float shifted = float_from_bits(magnitude) + 0.5f;
    memcpy(&bits, &shifted, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
}

// Rows of all matrices, one after another; with tiles, rows of tiles.
struct DequantizeTask {
  const Weight* w;
  void* out;
  Dtype dtype;
  DequantizeFn kernel;

  static constexpr int64_t kChunk = 256;  // columns: whole blocks of every format

  // n numbers from blocks to out[at]
  void decode(const uint8_t* blocks, int64_t n, int64_t at) const {
    if (dtype == Dtype::f32) {
      kernel(blocks, n, static_cast<float*>(out) + at);
      return;
    }
    const int64_t chunk_bytes = kChunk / w->info().block_size * w->info().block_bytes;
    uint16_t* halves = static_cast<uint16_t*>(out) + at;
    alignas(64) float values[kChunk];
    for (int64_t first = 0; first < n; first += kChunk, blocks += chunk_bytes) {
      const int64_t count = n - first < kChunk ? n - first : kChunk;
      kernel(blocks, count, values);
      for (int64_t i = 0; i < count; ++i) {
        halves[first + i] = dtype == Dtype::f16 ? half_from_float(values[i]) : bf16_from_float(values[i]);
      }
    }
  }

  static void blocks(void* state, int64_t begin, int64_t end) {
    const DequantizeTask& self = *static_cast<DequantizeTask*>(state);
    for (int64_t row = begin; row < end; ++row) {
      self.decode(self.w->data + row * self.w->row_bytes, self.w->cols, row * self.w->cols);
    }
  }

  static void tiles(void* state, int64_t begin, int64_t end) {
    const DequantizeTask& self = *static_cast<DequantizeTask*>(state);
    const int64_t down = tiles_down(*self.w);
    for (int64_t i = begin; i < end; ++i) self.row_of_tiles(i / down, i % down);
  }

  void row_of_tiles(int64_t expert, int64_t tile) const {
    const FormatInfo& info = w->info();
    alignas(64) uint8_t bytes[kTileRows * kChunk * 4];
    const int64_t first = tile * kTileRows;
    const int64_t n_rows = w->rows - first < kTileRows ? w->rows - first : int64_t{kTileRows};
    for (int64_t column = 0; column < w->cols; column += kChunk) {
      const int64_t cols = w->cols - column < kChunk ? w->cols - column : kChunk;
      const int64_t row_bytes = (cols + info.block_size - 1) / info.block_size * info.block_bytes;
      get_tiles(w->format, w->cols, w->row(expert, tile), column, cols, static_cast<int>(n_rows), row_bytes, bytes);
      for (int64_t r = 0; r < n_rows; ++r) {
        decode(bytes + r * row_bytes, cols, (expert * w->rows + first + r) * w->cols + column);
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

}  // namespace

bool dequantize(const Weight& w, Dtype dtype, void* out, const Runner& runner) {
  DequantizeTask task{&w, out, dtype, kernels().dequantize[static_cast<int>(w.format)]};
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
  MatmulTask task{&w, &prepared, exact, token, x.rows, row_begin, row_end, out, &k};
  runner.run(task.n_units(), units_per_task(w), MatmulTask::run, &task);
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
