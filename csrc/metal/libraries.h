// The kernels of a device: the Metal text is compiled for a format, or for gate and up of two formats, when such weights are
// first used, and kept.
#pragma once
#include <mutex>

#include "../formats/formats.h"
#include "objc.h"
#include "plans.h"

namespace lutkern {
namespace metal {

enum : int { kKernels = static_cast<int>(KernelId::count), kNoGate = -1 };

// Which library a kernel is taken from
struct Formats {
  int gate;       // FormatId, or kNoGate; not used by kernels of one weight
  FormatId main;  // of the weight, or of up
};

// A kernel, ready to run
struct Pipeline {
  Id state;
  uint32_t max_threads;
};

class Libraries {
 public:
  void open(Id device, int index, Unsigned threadgroup_bytes);
  // Compiles what is missing. Any thread may call it; those that want one library wait for whoever compiles it.
  bool find(KernelId kernel, const Formats& formats, Pipeline* out);

 private:
  struct Library {
    std::mutex lock;
    Owned object;
    Pipeline pipeline[kKernels] = {};
  };

  Library* slot(KernelId kernel, const Formats& formats);
  bool compile(KernelId kernel, const Formats& formats, Owned* out) const;
  bool make_pipeline(Id library, KernelId kernel, const Formats& formats, Pipeline* out) const;

  std::mutex lock_;
  Id device_ = nullptr;
  int index_ = 0;
  Unsigned threadgroup_bytes_ = 0;
  Library* weight_[2][kFormatCount] = {};                  // [tiles or not]
  Library* pair_[2][kFormatCount + 1][kFormatCount] = {};  // [..][gate + 1][up]
};

// What users are told: function and GGUF format, "matvec_iq1_m"; of a pair, the format of both
const char* kernel_name(KernelId kernel, FormatId format);

}  // namespace metal
}  // namespace lutkern
