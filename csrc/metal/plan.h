// How a kernel is launched: the one place that the host, the kernels and the tests share. C++ only.
//
// Every kernel works with any number of threads that is a multiple of 32 and at most its plan's: the host takes fewer where a
// pipeline allows fewer.
#pragma once
#include "arguments.h"

namespace lutkern {
namespace metal {

struct Plan {
  uint32_t groups_x;  // threadgroups
  uint32_t groups_y;
  uint32_t groups_z;
  uint32_t threads;  // of a threadgroup, one dimension
};

// A kernel's plan is defined in <family>_plan.h, as
//   static inline Plan plan_<kernel>(const metal_args::Args&)
// and depends on nothing but its arguments.

}  // namespace metal
}  // namespace lutkern
