// How work is spread over threads: by the pool of cpu/threads.h, or by the host's callback. The rooms below the
// boundary see only this.
#pragma once
#include <stdint.h>

namespace lutkern {

using RangeFn = void (*)(void* state, int64_t begin, int64_t end);

struct Runner {
  void (*parallel_for)(void* context, int64_t n, int64_t grain, RangeFn fn, void* state);
  void* context;

  // Every item of 0 .. n - 1 once, in ranges of about grain items.
  void run(int64_t n, int64_t grain, RangeFn fn, void* state) const { parallel_for(context, n, grain, fn, state); }
};

}  // namespace lutkern
