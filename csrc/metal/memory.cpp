#include "memory.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

namespace lutkern {
namespace metal {

namespace {

uintptr_t number_of(const void* p) { return reinterpret_cast<uintptr_t>(p); }

}  // namespace

void Memory::open(Id device, int index, Unsigned max_bytes) {
  device_ = device;
  index_ = index;
  max_bytes_ = max_bytes;
}

bool Memory::check_bytes(size_t bytes) const {
  if (bytes <= max_bytes_) return true;
  return failed(Cause::memory, "%zu bytes, a buffer of metal:%d has at most %llu", bytes, index_,
                static_cast<unsigned long long>(max_bytes_));
}

// Entries that begin at or before a place
int Memory::position(uintptr_t begin) const {
  int low = 0;
  int high = count_;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (entries_[middle].begin <= begin) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

Memory::Entry* Memory::entry_at(uintptr_t begin) {
  const int i = position(begin);
  return i > 0 && entries_[i - 1].begin == begin ? &entries_[i - 1] : nullptr;
}

// Wraps may overlap: of those that begin before, any may reach far enough.
Memory::Entry* Memory::find_entry(uintptr_t begin, size_t bytes) {
  for (int i = position(begin); i-- > 0;) {
    Entry& entry = entries_[i];
    const size_t before = begin - entry.begin;
    if (before >= longest_) return nullptr;
    if (before < entry.bytes && bytes <= entry.bytes - before) return &entry;
  }
  return nullptr;
}

bool Memory::insert(const Entry& entry) {
  if (count_ == room_) {
    const int room = room_ ? 2 * room_ : 64;
    void* larger = realloc(entries_, static_cast<size_t>(room) * sizeof(Entry));
    if (!larger) return failed(Cause::memory, "no memory for the buffers of metal:%d", index_);
    entries_ = static_cast<Entry*>(larger);
    room_ = room;
  }
  const int at = position(entry.begin);
  memmove(entries_ + at + 1, entries_ + at, static_cast<size_t>(count_ - at) * sizeof(Entry));
  entries_[at] = entry;
  ++count_;
  if (entry.bytes > longest_) longest_ = entry.bytes;
  return true;
}

bool Memory::allocate(size_t bytes, void** out) {
  if (!check_bytes(bytes)) return false;
  Owned buffer(objc::new_buffer(device_, bytes, kStorageShared));
  if (!buffer) return failed(Cause::memory, "newBufferWithLength failed: no memory for %zu bytes", bytes);
  void* contents = objc::contents(buffer.get());
  if (!contents) return failed(Cause::device, "contents failed: the buffer is not shared with the CPU");
  const std::lock_guard<std::mutex> hold(lock_);
  const uintptr_t begin = number_of(contents);
  if (!insert(Entry{begin, bytes, buffer.get(), begin, 1, false, false})) return false;
  buffer.take();
  *out = contents;
  return true;
}

Id Memory::new_wrap(uintptr_t begin, size_t bytes, uintptr_t* contents) const {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = begin / page * page;
  const uintptr_t end = (begin + bytes + page - 1) / page * page;
  if (!check_bytes(end - first)) return nullptr;
  *contents = first;
  Id buffer = objc::wrap_buffer(device_, reinterpret_cast<void*>(first), end - first, kStorageShared, nullptr);
  if (!buffer && bytes <= kCopiedBytes) {
    *contents = begin;
    buffer = new_copy(begin, bytes);
  }
  if (!buffer) failed(Cause::memory, "newBufferWithBytesNoCopy failed: %zu bytes of the CPU", bytes);
  return buffer;
}

Id Memory::new_copy(uintptr_t begin, size_t bytes) const {
  Owned buffer(objc::new_buffer(device_, bytes, kStorageShared));
  void* contents = objc::contents(buffer.get());
  if (!contents) return nullptr;
  memcpy(contents, reinterpret_cast<const void*>(begin), bytes);
  return buffer.take();
}

bool Memory::wrap(const void* data, size_t bytes) {
  const std::lock_guard<std::mutex> hold(lock_);
  Entry* known = entry_at(number_of(data));
  if (known && bytes <= known->bytes) {
    ++known->count;
    return true;
  }
  if (known && !known->wrapped) {
    return failed(Cause::device, "%zu bytes, the memory of metal:%d that begins there has %zu", bytes, index_,
                  known->bytes);
  }
  uintptr_t contents = 0;
  Owned buffer(new_wrap(number_of(data), bytes, &contents));
  if (!buffer) return false;
  if (!known) {
    if (!insert(Entry{number_of(data), bytes, buffer.get(), contents, 1, true, false})) return false;
  } else {
    objc::release(known->buffer);  // queued work keeps it
    known->buffer = buffer.get();
    known->contents = contents;
    known->bytes = bytes;
    ++known->count;
    if (bytes > longest_) longest_ = bytes;
  }
  buffer.take();
  return true;
}

bool Memory::release(const void* data) {
  Owned buffer;  // released when the table is free again
  const std::lock_guard<std::mutex> hold(lock_);
  Entry* entry = entry_at(number_of(data));
  if (!entry) return failed(Cause::device, "the memory is not of metal:%d, expected what it gave", index_);
  if (--entry->count > 0) return true;
  buffer.reset(entry->buffer);
  const size_t after = static_cast<size_t>(entries_ + count_ - (entry + 1));
  memmove(entry, entry + 1, after * sizeof(Entry));
  --count_;
  return true;
}

bool Memory::find(const void* data, size_t bytes, Place* out) {
  const std::lock_guard<std::mutex> hold(lock_);
  const Entry* entry = find_entry(number_of(data), bytes);
  if (entry) *out = Place{entry->buffer, number_of(data) - entry->contents};
  return entry != nullptr;
}

bool Memory::find_for_work(const void* data, size_t bytes, Place* out) {
  const std::lock_guard<std::mutex> hold(lock_);
  Entry* entry = find_entry(number_of(data), bytes);
  if (!entry) return false;
  entry->used = true;
  *out = Place{entry->buffer, number_of(data) - entry->contents};
  return true;
}

bool Memory::is_used(const void* data) {
  const std::lock_guard<std::mutex> hold(lock_);
  const Entry* entry = find_entry(number_of(data), 1);
  return !entry || entry->used;
}

bool Memory::is_wrapped(const void* data) {
  const std::lock_guard<std::mutex> hold(lock_);
  const Entry* entry = entry_at(number_of(data));
  return entry && entry->wrapped;
}

}  // namespace metal
}  // namespace lutkern
