// A Metal device of this process: its memory, kernels and streams.
//
// Opened at the first use and never closed: destructors that run while the process ends must not call Metal.
#pragma once
#include <mutex>

#include "libraries.h"
#include "memory.h"
#include "queue.h"
#include "staging.h"

namespace lutkern {
namespace metal {

enum : int { kMaxDevices = 16, kOldestFamily = 7 /* M1 and A14: simdgroup matrices */ };

struct Attributes {
  char name[128];
  int family;  // of Apple's GPUs; 0: another GPU
  bool unified_memory;
  uint64_t memory_bytes;
};

class Device {
 public:
  int index() const { return index_; }
  const Attributes& attributes() const { return attributes_; }
  Memory& memory() { return memory_; }
  Libraries& libraries() { return libraries_; }
  Staging& staging() { return staging_; }
  uint64_t free_bytes() const;

  bool create_stream(Stream** out);
  bool destroy_stream(void* handle);
  // The stream of a handle, held; null and 1 are the default stream. False: there is none.
  bool hold_stream(void* handle, Stream** out);
  // Waits for one stream, or for LUTKERN_ALL_STREAMS.
  bool finish(void* handle);
  // The same before memory goes back: failures stay for the next finish().
  void drain(void* handle);

 private:
  friend Device* open_device(int index);
  bool open(int index, Id device);
  template <class Work>
  void for_streams(Work work);

  int index_ = 0;
  Id id_ = nullptr;
  Attributes attributes_{};
  Memory memory_;
  Libraries libraries_;
  Staging staging_;
  std::mutex streams_lock_;
  Stream** streams_ = nullptr;  // the first is the default one
  int n_streams_ = 0;
  int stream_room_ = 0;
};

// A stream, held for as long as this lives
class HeldStream {
 public:
  HeldStream(Device& device, void* handle) { ok_ = device.hold_stream(handle, &stream_); }
  ~HeldStream() {
    if (ok_) stream_->let_go();
  }
  HeldStream(const HeldStream&) = delete;
  HeldStream& operator=(const HeldStream&) = delete;
  bool ok() const { return ok_; }
  Stream& operator*() const { return *stream_; }
  Stream* operator->() const { return stream_; }

 private:
  Stream* stream_ = nullptr;
  bool ok_ = false;
};

// Devices that Metal names; 0 where none of them can be used, with the reason in no_devices().
int device_count();
const char* no_devices();
// Null: failure() says why. The same device for every call.
Device* open_device(int index);

}  // namespace metal
}  // namespace lutkern
