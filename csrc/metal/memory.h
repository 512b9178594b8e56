// The memory of a Metal device by address: the device sees buffers, callers see where their contents lie, and any place
// inside of a buffer will do.
#pragma once
#include <mutex>

#include "objc.h"

namespace lutkern {
namespace metal {

// What a kernel is given: a buffer, and bytes from its beginning
struct Place {
  Id buffer;
  Unsigned offset;
};

class Memory {
 public:
  // max_bytes: of one buffer
  void open(Id device, int index, Unsigned max_bytes);

  // Shared memory of its own
  bool allocate(size_t bytes, void** out);
  // Memory of somebody else, rounded to whole pages. The same beginning may be wrapped again. Metal promises this for mapped
  // memory only: little of other memory is copied where Metal refuses it.
  bool wrap(const void* data, size_t bytes);
  // Gives memory of either kind back. False, with a reason: it is not known.
  bool release(const void* data);

  // The buffer that has these bytes; false, without a reason, where there is none.
  bool find(const void* data, size_t bytes, Place* out);
  // The same for a kernel that may still run when other calls look here: is_used() from then on.
  bool find_for_work(const void* data, size_t bytes, Place* out);
  // Whether queued work may use the memory; what is not known is used.
  bool is_used(const void* data);
  // Whether it is somebody else's, which nothing keeps alive beside its wrap.
  bool is_wrapped(const void* data);

 private:
  struct Entry {
    uintptr_t begin;
    size_t bytes;
    Id buffer;
    uintptr_t contents;  // the address for which the buffer begins
    int count;           // of allocations and wraps with this beginning
    bool wrapped;
    bool used;
  };

  enum : size_t { kCopiedBytes = size_t{1} << 24 };  // of a wrap, at most

  bool check_bytes(size_t bytes) const;
  Id new_wrap(uintptr_t begin, size_t bytes, uintptr_t* contents) const;
  Id new_copy(uintptr_t begin, size_t bytes) const;
  int position(uintptr_t begin) const;
  Entry* find_entry(uintptr_t begin, size_t bytes);
  Entry* entry_at(uintptr_t begin);
  bool insert(const Entry& entry);

  std::mutex lock_;
  Id device_ = nullptr;
  int index_ = 0;
  Unsigned max_bytes_ = 0;
  Entry* entries_ = nullptr;  // by beginning
  int count_ = 0;
  int room_ = 0;
  size_t longest_ = 0;  // of all entries there have been
};

}  // namespace metal
}  // namespace lutkern
