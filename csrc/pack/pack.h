// float -> blocks: one quantiser per format, row by row. The quantisers are written once, in the *.inl.h of this
// folder, and compiled once per instruction set row; every row gives the same bytes.
#pragma once
#include <stdint.h>

#include "../formats/formats.h"
#include "../once.h"

namespace lutkern {

// How long a quantiser may search. kDefault is zero, as in lutkern_options.
enum class Effort : int { kDefault = 0, kFast = 1, kBest = 2 };

// Quantises one row of cols weights into cols / kBlockSize blocks.
//   w           finite weights; cols is a multiple of the format's block, the caller pads with zeros
//   importance  cols finite, positive numbers; the quantiser minimises sum(importance * (w - decoded)^2)
// Returns false when the row holds a magnitude that the format's fp16 scale cannot reach. Allocates nothing, throws
// nothing; the result depends on the row and the effort alone.
using PackRowFn = bool (*)(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks);

struct Packer {
  PackRowFn row;  // null: the format is read but not written
  // Builds the search tables of the format once, thread-safe. Null: nothing to build.
  void (*prepare)();
};

// One instruction set row of quantisers.
struct PackKernels {
  const char* name;
  Packer packer[kFormatCount];
};

extern const PackKernels kScalarPackKernels;
extern const PackKernels kAvx2PackKernels;

// The row of an instruction set by its name; null if there is none.
const PackKernels* pack_kernels(const char* isa);

}  // namespace lutkern
