// How many processors this process may keep busy, and which its threads may run on.
//
// Linux keeps an affinity mask for each thread and none for the process. What counts as the mask of the process is that
// of its main thread: programs and tools set it for the process (taskset, numactl, os.sched_setaffinity), whereas any
// other thread that has a mask of its own was pinned by itself or by its framework.
#pragma once

namespace lutkern {

// The processors of the mask of the process, or fewer if a control group bounds the processor time; at least one.
int usable_processors();

// What the control groups of this process allow, rounded up to whole processors: the smallest quota on the way from its
// own group to the root, of version 1 and version 2. kNoQuota without one. root: "", or a folder that stands for /.
constexpr int kNoQuota = 1 << 20;
int quota_processors(const char* root);

// Keeps the calling thread, which has inherited the mask of whoever started it, on the processors of the process.
class Affinity {
 public:
  // The first call takes over the mask of the process. Later ones do so only where that has grown: a main thread that
  // was pinned at the first call is free again. What became narrower since then is the main thread's own affair, and
  // a mask that somebody has given to the calling thread stays.
  void follow();

 private:
  [[maybe_unused]] unsigned char mask_[128] = {};  // of 1024 processors, as Linux has it
};

}  // namespace lutkern
