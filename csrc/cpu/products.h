// Rows of one matrix times some of the tokens, in every layout and precision: what matmul and moe are made of.
#pragma once
#include "../tensor.h"
#include "kernels.h"
#include "prepared.h"

namespace lutkern {

// Whether a weight meets float activations.
inline bool wants_float(const Weight& w, bool exact) { return exact || w.info().is_float; }

// Work is handed out in units of 16 rows, a row of tiles.
enum : int64_t { kUnitRows = 16 };
inline int64_t units_of(int64_t rows) { return (rows + kUnitRows - 1) / kUnitRows; }
// Units that are worth one task
int64_t units_per_task(const Weight& w);

// out[i * out_stride + row - begin] for begin <= row < end of the matrix of one expert, i < n_tokens: row times token[i]
void multiply(const Weight& w, int64_t expert, int64_t begin, int64_t end, const Prepared& x, bool exact,
              const int32_t* token, int64_t n_tokens, float* out, int64_t out_stride, const CpuKernels& k);

}  // namespace lutkern
