// How a kernel is launched: the one place that the host, the kernels and the tests share.
#pragma once
#include "arguments.h"

namespace lutkern {
namespace cuda {

struct Plan {
  uint32_t grid_x;
  uint32_t grid_y;
  uint32_t grid_z;
  uint32_t threads;       // of a block, one dimension
  uint32_t shared_bytes;  // dynamic
};

// A kernel's plan is defined beside its text, in <family>_plan.h, as
//   static inline Plan plan_<family>(const Args&, int format)
// and depends on nothing but its arguments.

}  // namespace cuda
}  // namespace lutkern
