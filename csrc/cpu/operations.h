// The operations on the CPU: what happens around the kernels. Arguments are checked; false means that there was no
// memory for scratch, and then nothing was written.
#pragma once
#include <stdint.h>

#include "../parallel.h"
#include "../tensor.h"

namespace lutkern {

enum class Activation : int { none = 0, silu = 1, gelu = 2, relu2 = 3 };

struct MoeWork {
  const Weight* gate;  // null: no gate
  const Weight* up;
  const Weight* down;
  Matrix x;
  const int32_t* expert_ids;    // x.rows x k, each within the experts, or negative: left out
  const float* expert_weights;  // x.rows x k
  int64_t k;
  Activation activation;
  bool exact;
  float* out;    // x.rows x hidden
  bool partial;  // pairs whose id is -1 are left out
};

// out[expert, row, col], numbers of dtype, rounded to nearest even
bool dequantize(const Weight& w, Dtype dtype, void* out, const Runner& runner);
// out[token * w.rows + row] for row_begin <= row < row_end; the weight has one expert
bool matmul(const Weight& w, const Matrix& x, bool exact, int64_t row_begin, int64_t row_end, float* out,
            const Runner& runner);
bool moe(const MoeWork& work, const Runner& runner);
// One row of x as the kernels see it: q has x.cols codes, scale one number for each 32
void quantize_row(const Matrix& x, int8_t* q, float* scale);

}  // namespace lutkern
