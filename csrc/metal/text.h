// The kernels as Metal text, embedded at build time (amalgamate.py): what every library is compiled from.
#pragma once
#include <stddef.h>

namespace lutkern {
namespace metal {

extern const char kKernelText[];  // ends with 0
extern const size_t kKernelTextBytes;

}  // namespace metal
}  // namespace lutkern
