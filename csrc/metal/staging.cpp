#include "staging.h"

namespace lutkern {
namespace metal {

// The smallest that is large enough, or a new one
bool Staging::take(size_t bytes, Room* out) {
  {
    const std::lock_guard<std::mutex> hold(lock_);
    int best = -1;
    for (int i = 0; i < n_kept_; ++i) {
      if (kept_[i].bytes >= bytes && (best < 0 || kept_[i].bytes < kept_[best].bytes)) best = i;
    }
    if (best >= 0) {
      *out = kept_[best];
      kept_[best] = kept_[--n_kept_];
      return true;
    }
  }
  const size_t wanted = (bytes + kUnit - 1) / kUnit * kUnit;
  Owned buffer(objc::new_buffer(device_, wanted, kStorageShared));
  void* contents = objc::contents(buffer.get());
  if (!contents) return failed(Cause::memory, "newBufferWithLength failed: no memory for %zu bytes", wanted);
  *out = Room{buffer.take(), static_cast<uint8_t*>(contents), wanted};
  return true;
}

// The largest are kept, but for those that are too large.
void Staging::give_back(const Room& room) {
  Owned dropped(room.buffer);
  if (room.bytes > kLargestKept) return;
  const std::lock_guard<std::mutex> hold(lock_);
  int at = n_kept_;
  if (n_kept_ == kKept) {
    at = 0;
    for (int i = 1; i < kKept; ++i) {
      if (kept_[i].bytes < kept_[at].bytes) at = i;
    }
    if (kept_[at].bytes >= room.bytes) return;
    dropped.take();
    dropped.reset(kept_[at].buffer);
  } else {
    dropped.take();
    ++n_kept_;
  }
  kept_[at] = room;
}

}  // namespace metal
}  // namespace lutkern
