// A whole weight through the quantiser of its format: rows over threads, importance made usable, columns padded.
#pragma once
#include <stdint.h>

#include "../parallel.h"
#include "../tensor.h"
#include "pack.h"

namespace lutkern {

struct PackWork {
  FormatId format;
  Packer packer;  // of the format
  Effort effort;
  Matrix w;  // experts * rows x cols
  int64_t experts;
  const float* importance;  // experts x cols, or null
  uint8_t* out;
};

enum class PackOutcome { ok, no_memory, not_finite, too_large };

struct PackResult {
  PackOutcome outcome;
  int64_t row;  // the first row that failed, and why
  int64_t col;
  float magnitude;
  int64_t replaced;  // entries of importance that were not finite and positive
};

PackResult pack_rows(const PackWork& work, const Runner& runner);

}  // namespace lutkern
