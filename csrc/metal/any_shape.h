// Sizes of the kernels of any.metal, read by the kernels and by their plans.
#pragma once
#include "arguments.h"

namespace lutkern {
namespace metal_args {

enum : int {
  kAnyRows = 16,      // of a threadgroup: one for each of its simdgroups, where it has them all
  kAnyTokens = 8,     // of a threadgroup
  kAnyHalves = 4096,  // activations in threadgroup memory, as integers
  kAnyFloats = 2048,  // or as floats
  kAnyUnit = 16,      // columns of a lane at a time
  kAnyStep = 32 * kAnyUnit,
  kAnyCopyRows = 4,  // dequantize_any: pieces of rows of a threadgroup
  kAnyCopyWords = kAnyStep + kAnyStep / kAnyUnit
};

}  // namespace metal_args
}  // namespace lutkern
