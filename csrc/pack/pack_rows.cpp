#include "pack_rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>

namespace lutkern {
namespace {

// Padding columns meet activations of zero: what they decode to does not matter, so they get next to no importance.
constexpr float kPaddingImportance = 1e-6f;

struct Shared {
  const PackWork* work;
  PackRowFn pack_row;
  const float* importance;  // experts x stored_cols, finite and positive
  int64_t stored_cols;
  int64_t row_bytes;
  std::atomic<int64_t> first_bad_row;
  std::atomic<bool> no_memory;

  void report(int64_t row) {
    int64_t known = first_bad_row.load();
    while (row < known && !first_bad_row.compare_exchange_weak(known, row)) {
    }
  }
};

bool all_finite(const float* row, int64_t cols) {
  // Without an early way out, so that it is vector code.
  uint32_t bad = 0;
  for (int64_t c = 0; c < cols; ++c) {
    uint32_t bits;
    memcpy(&bits, row + c, sizeof bits);
    bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return bad == 0;
}

// A row where it lies, if it lies there as the quantisers read it; otherwise null.
const float* row_in_place(const Matrix& w, int64_t row) {
  if (w.dtype != Dtype::f32 || reinterpret_cast<uintptr_t>(w.data) % sizeof(float) != 0) return nullptr;
  return static_cast<const float*>(w.data) + row * w.row_stride;
}

void check_rows(void* state, int64_t begin, int64_t end) {
  Shared& shared = *static_cast<Shared*>(state);
  const Matrix& w = shared.work->w;
  float chunk[256];
  for (int64_t row = begin; row < end; ++row) {
    if (const float* in_place = row_in_place(w, row)) {
      if (!all_finite(in_place, w.cols)) shared.report(row);
      continue;
    }
    for (int64_t first = 0; first < w.cols; first += 256) {
      const int64_t n = w.cols - first < 256 ? w.cols - first : 256;
      w.load(row, first, n, chunk);
      if (!all_finite(chunk, n)) shared.report(row);
    }
  }
}

void pack_range(void* state, int64_t begin, int64_t end) {
  Shared& shared = *static_cast<Shared*>(state);
  const PackWork& work = *shared.work;
  const int64_t rows = work.w.rows / work.experts;
  float* row = static_cast<float*>(calloc(static_cast<size_t>(shared.stored_cols), sizeof(float)));
  if (!row) {
    shared.no_memory = true;
    return;
  }
  for (int64_t r = begin; r < end; ++r) {
    const float* source = shared.stored_cols == work.w.cols ? row_in_place(work.w, r) : nullptr;
    if (!source) {
      work.w.load(r, 0, work.w.cols, row);
      source = row;
    }
    if (!shared.pack_row(source, shared.importance + r / rows * shared.stored_cols, shared.stored_cols, work.effort,
                         work.out + r * shared.row_bytes)) {
      shared.report(r);
    }
  }
  free(row);
}

bool usable(float importance) { return importance > 0.0f && isfinite(importance); }

// One expert's importance: what is not finite and positive becomes the mean of the rest, or one if there is no rest.
int64_t clean_importance(const float* given, int64_t cols, int64_t stored_cols, float* out) {
  double total = 0.0;
  int64_t good = 0;
  for (int64_t c = 0; given && c < cols; ++c) {
    if (!usable(given[c])) continue;
    total += static_cast<double>(given[c]);
    ++good;
  }
  const float mean = good ? static_cast<float>(total / static_cast<double>(good)) : 1.0f;
  for (int64_t c = 0; c < cols; ++c) out[c] = given && usable(given[c]) ? given[c] : mean;
  const float padding = mean * kPaddingImportance;
  for (int64_t c = cols; c < stored_cols; ++c) out[c] = padding > 0.0f ? padding : mean;
  return given ? cols - good : 0;
}

PackResult describe(const Shared& shared, PackOutcome outcome, int64_t replaced) {
  const Matrix& w = shared.work->w;
  PackResult result{outcome, shared.first_bad_row.load(), 0, 0.0f, replaced};
  for (int64_t c = 0; c < w.cols; ++c) {
    float value = 0.0f;
    w.load(result.row, c, 1, &value);
    if (!isfinite(value)) {
      result.col = c;
      return result;
    }
    if (fabsf(value) > result.magnitude) result.magnitude = fabsf(value);
  }
  return result;
}

}  // namespace

PackResult pack_rows(const PackWork& work, const Runner& runner) {
  const FormatInfo& info = kFormatInfo[static_cast<int>(work.format)];
  const int64_t blocks = (work.w.cols + info.block_size - 1) / info.block_size;
  Shared shared{&work,       work.packer.row, nullptr, blocks * info.block_size, blocks * info.block_bytes,
                {INT64_MAX}, {false}};
  const PackResult no_memory{PackOutcome::no_memory, 0, 0, 0.0f, 0};
  if (work.packer.prepare) work.packer.prepare();
  runner.run(work.w.rows, 64, check_rows, &shared);
  if (shared.first_bad_row.load() != INT64_MAX) return describe(shared, PackOutcome::not_finite, 0);

  float* importance =
      static_cast<float*>(malloc(static_cast<size_t>(work.experts * shared.stored_cols) * sizeof(float)));
  if (!importance) return no_memory;
  int64_t replaced = 0;
  for (int64_t e = 0; e < work.experts; ++e) {
    const float* given = work.importance ? work.importance + e * work.w.cols : nullptr;
    replaced += clean_importance(given, work.w.cols, shared.stored_cols, importance + e * shared.stored_cols);
  }
  shared.importance = importance;
  runner.run(work.w.rows, 4, pack_range, &shared);
  free(importance);
  if (shared.no_memory) return no_memory;
  if (shared.first_bad_row.load() != INT64_MAX) return describe(shared, PackOutcome::too_large, replaced);
  return PackResult{PackOutcome::ok, 0, 0, 0.0f, replaced};
}

}  // namespace lutkern
