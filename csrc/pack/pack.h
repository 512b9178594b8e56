// float -> blocks: one quantiser per format, row by row.
#pragma once
#include <stdint.h>

#include "../formats/formats.h"

namespace lutkern {

// Quantises one row of cols weights into cols / kBlockSize blocks.
//   w           finite weights; cols is a multiple of the format's block, the caller pads with zeros
//   importance  cols finite, positive numbers; the quantiser minimises sum(importance * (w - decoded)^2)
// Returns false when the row holds a magnitude that the format's fp16 scale cannot reach. Allocates nothing, throws
// nothing; the result depends on the row alone.
using PackRowFn = bool (*)(const float* w, const float* importance, int64_t cols, uint8_t* blocks);

struct Packer {
  PackRowFn row;
  // Builds the search tables of the format once, thread-safe. False: out of memory. Null: nothing to build.
  bool (*prepare)();
};

// The packer of a format; row is null where the format is read but not written.
Packer packer(FormatId format);

}  // namespace lutkern
