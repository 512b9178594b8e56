// How many processors this process may keep busy.
#pragma once

namespace lutkern {

// The processors of the affinity mask, or fewer if a control group bounds the processor time; at least one.
int usable_processors();

// What the control groups of this process allow, rounded up to whole processors: the smallest quota on the way from its
// own group to the root, of version 1 and version 2. kNoQuota without one. root: "", or a folder that stands for /.
constexpr int kNoQuota = 1 << 20;
int quota_processors(const char* root);

}  // namespace lutkern
