#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "../backend.h"

namespace lutkern {
namespace metal {

namespace {

std::mutex g_lock;
Id g_found[kMaxDevices] = {};
Device* g_devices[kMaxDevices] = {};
std::once_flag g_counted;
int g_count = 0;
char g_absent[320] = "";

void read_attributes(Id device, Attributes* out) {
  copy_text(objc::name(device), out->name, sizeof(out->name));
  const Number families[] = {kFamilyApple7, kFamilyApple8, kFamilyApple9, kFamilyApple10};
  for (const Number family : families) {
    if (objc::supports_family(device, family)) out->family = static_cast<int>(family - kFamilyApple7) + kOldestFamily;
  }
  out->unified_memory = objc::unified_memory(device);
  out->memory_bytes = objc::working_set(device);
}

bool check_usable(int index, const Attributes& a) {
  if (a.family < kOldestFamily) {
    return failed(Cause::device,
                  "metal:%d (%.100s) is of no family of Apple GPUs that is known, expected Apple7 or newer", index,
                  a.name);
  }
  return a.unified_memory ||
         failed(Cause::device, "metal:%d (%.100s) has memory of its own, expected unified memory", index, a.name);
}

// Sets g_count, or the reason that there is none.
void count_devices() {
  if (!find_runtime()) {
    snprintf(g_absent, sizeof(g_absent), "%s", no_runtime());
    return;
  }
  const Pool pool;
  const Owned all(g_runtime.copy_all_devices());
  const Unsigned n = objc::count(all.get());
  const int count = n < kMaxDevices ? static_cast<int>(n) : kMaxDevices;
  if (count == 0) {
    snprintf(g_absent, sizeof(g_absent), "no Metal: this Mac has no Metal device");
    return;
  }
  bool usable = false;
  for (int i = 0; i < count; ++i) {
    g_found[i] = retained(objc::object_at(all.get(), static_cast<Unsigned>(i))).take();
    Attributes a{};
    read_attributes(g_found[i], &a);
    usable = check_usable(i, a) || usable;
  }
  if (usable) {
    g_count = count;
  } else {
    snprintf(g_absent, sizeof(g_absent), "%.319s", failure().text);
  }
}

}  // namespace

int device_count() {
  if (is_forked()) return 0;
  std::call_once(g_counted, [] { count_devices(); });
  return g_count;
}

const char* no_devices() {
  if (device_count() > 0) return nullptr;
  return is_forked() ? no_runtime() : g_absent;
}

Device* open_device(int index) {
  if (device_count() == 0) {
    failed(Cause::device, "%s", no_devices());
    return nullptr;
  }
  if (index < 0 || index >= device_count()) {
    failed(Cause::device, "metal:%d does not exist, expected metal:0 to metal:%d", index, device_count() - 1);
    return nullptr;
  }
  const std::lock_guard<std::mutex> hold(g_lock);
  if (g_devices[index]) return g_devices[index];
  const Pool pool;
  Device* device = new (std::nothrow) Device;
  if (!device) {
    failed(Cause::memory, "no memory for metal:%d", index);
    return nullptr;
  }
  if (!device->open(index, g_found[index])) {
    delete device;
    return nullptr;
  }
  g_devices[index] = device;
  return device;
}

bool Device::open(int index, Id device) {
  index_ = index;
  id_ = device;
  read_attributes(device, &attributes_);
  if (!check_usable(index, attributes_)) return false;
  memory_.open(device, index, objc::max_buffer(device));
  libraries_.open(device, index, objc::max_threadgroup_memory(device));
  staging_.open(device);
  Stream* first = nullptr;
  return create_stream(&first);
}

uint64_t Device::free_bytes() const {
  const Pool pool;
  const uint64_t used = objc::allocated(id_);
  return used < attributes_.memory_bytes ? attributes_.memory_bytes - used : 0;
}

// ---- streams ----

bool Device::create_stream(Stream** out) {
  Stream* stream = new (std::nothrow) Stream;
  if (!stream) return failed(Cause::memory, "no memory for a stream of metal:%d", index_);
  if (!stream->open(id_)) {
    stream->let_go();
    return false;
  }
  const std::lock_guard<std::mutex> hold(streams_lock_);
  if (n_streams_ == stream_room_) {
    const int room = stream_room_ ? 2 * stream_room_ : 16;
    void* larger = realloc(streams_, static_cast<size_t>(room) * sizeof(Stream*));
    if (!larger) {
      stream->let_go();
      return failed(Cause::memory, "no memory for a stream of metal:%d", index_);
    }
    streams_ = static_cast<Stream**>(larger);
    stream_room_ = room;
  }
  streams_[n_streams_++] = stream;
  *out = stream;
  return true;
}

bool Device::hold_stream(void* handle, Stream** out) {
  const std::lock_guard<std::mutex> hold(streams_lock_);
  const bool is_default = reinterpret_cast<uintptr_t>(handle) <= 1;
  for (int i = 0; i < n_streams_; ++i) {
    if (!is_default && streams_[i] != handle) continue;
    streams_[i]->hold();
    *out = streams_[i];
    return true;
  }
  return failed(Cause::device, "the stream %p is not of metal:%d, expected one of lutkern_stream_create", handle,
                index_);
}

bool Device::destroy_stream(void* handle) {
  Stream* found = nullptr;
  {
    const std::lock_guard<std::mutex> hold(streams_lock_);
    for (int i = 1; i < n_streams_ && !found; ++i) {
      if (streams_[i] != handle) continue;
      found = streams_[i];
      streams_[i] = streams_[--n_streams_];
    }
  }
  if (!found) {
    return failed(Cause::device, "the stream %p is not of metal:%d, expected one of lutkern_stream_create", handle,
                  index_);
  }
  const bool fine = found->finish();
  found->let_go();
  return fine;
}

// Streams may come and go while one is waited for: from the last to the first, none that stays is left out.
template <class Work>
void Device::for_streams(Work work) {
  std::unique_lock<std::mutex> hold(streams_lock_);
  for (int i = n_streams_; i-- > 0;) {
    if (i >= n_streams_) continue;
    Stream* stream = streams_[i];
    stream->hold();
    hold.unlock();
    work(*stream);
    stream->let_go();
    hold.lock();
  }
}

bool Device::finish(void* handle) {
  if (handle != LUTKERN_ALL_STREAMS) {
    const HeldStream stream(*this, handle);
    return stream.ok() && stream->finish();
  }
  bool fine = true;
  Failure why{};
  for_streams([&](Stream& stream) {
    if (stream.finish() || !fine) return;
    fine = false;
    why = failure();
  });
  return fine || failed(why.cause, "%s", why.text);
}

void Device::drain(void* handle) {
  Stream* one = nullptr;
  if (handle != LUTKERN_ALL_STREAMS && hold_stream(handle, &one)) {
    one->drain();
    one->let_go();
  } else {
    for_streams([](Stream& stream) { stream.drain(); });
  }
}

}  // namespace metal
}  // namespace lutkern
