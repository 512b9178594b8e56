// What compiled Metal text and its simulator share: the buffers of a launch, and what is known of a kernel.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "../simt.h"

namespace lutkern {
namespace sim {
namespace metal {

enum : uint32_t { kMaxBuffers = 31, kThreadgroupLimit = 32768 };

struct Bound {
  void* data;
  size_t bytes;
};

// A buffer that a kernel takes. bytes: at least so many; 0 for a pointer, of which nothing is known.
struct BufferRecord {
  uint32_t index;
  uint32_t bytes;
  uint32_t alignment;
  const char* name;
};
struct KernelRecord {
  const char* name;
  void (*body)(const void* bound);
  uint32_t max_threads;  // 0: not told
  uint32_t n_buffers;
  const BufferRecord* buffers;
};
// A threadgroup array of a kernel
struct ArrayRecord {
  const char* kernel;
  size_t bytes;
};
struct Records {
  const KernelRecord* kernels;
  const KernelRecord* kernels_end;
  const ArrayRecord* arrays;
  const ArrayRecord* arrays_end;
};

// flags: 1 device memory, 2 threadgroup memory
void barrier(uint32_t flags, Site site);
void simdgroup_barrier(uint32_t flags, Site site);
void check_lane(const char* what, int lane, Site site);

}  // namespace metal
}  // namespace sim
}  // namespace lutkern
