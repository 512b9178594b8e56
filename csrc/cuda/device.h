// A CUDA device of this process: its primary context, shared with whoever else uses the device, and the kernels.
//
// Opened at the first use and never closed: the driver takes everything back when the process ends, and destructors
// that run then must not call it.
#pragma once
#include <atomic>
#include <mutex>

#include "driver.h"
#include "plans.h"
#include "staging.h"

namespace lutkern {
namespace cuda {

enum : int { kMaxDevices = 64, kOldestCapability = 75, kKernels = static_cast<int>(KernelId::count) };

struct Attributes {
  char name[128];
  size_t memory_bytes;
  int processors;
  int cache_bytes;
  int capability;     // 10 * major + minor
  int shared_bytes;   // that a block may ask for
  bool memory_pools;  // memory can be ordered on a stream
};

class Device {
 public:
  int index() const { return index_; }
  const Attributes& attributes() const { return attributes_; }
  const Driver& driver() const { return *driver_; }
  Context context() const { return context_; }
  Staging& staging() { return staging_; }

  // The functions below want the context to be current: see Current.

  // Queues a kernel on the stream; args is its parameter.
  bool launch(KernelId kernel, const void* args, Stream stream);
  // True if the device has the shared memory that the kernel wants.
  bool fits(KernelId kernel, const void* args) const;

  // Memory that may be used from the stream on. bytes > 0.
  bool allocate(size_t bytes, Stream stream, Address* out);
  // Gives memory of allocate() back when the work that is queued on the stream is done.
  bool release(Address memory, Stream stream);
  // The same from outside of an operation: while the stream is captured, it is put off until the capture has ended.
  bool release_later(Address memory, Stream stream);
  // Waits for all work of the device first.
  bool release_when_idle(Address memory);
  bool capturing(Stream stream, bool* out) const;
  bool free_bytes(size_t* out) const;

 private:
  friend Device* open_device(int index);
  bool open(int index, const Driver* driver);
  bool open_context(int index);
  bool open_pool();
  bool load();
  bool allow_shared(int kernel, uint32_t bytes);
  void release_put_off();

  int index_ = 0;
  const Driver* driver_ = nullptr;
  Attributes attributes_{};
  Context context_ = nullptr;
  Module module_ = nullptr;
  MemoryPool pool_ = nullptr;  // null: memory_pools is false
  Function function_[kKernels] = {};
  std::atomic<uint32_t> shared_set_[kKernels] = {};  // dynamic shared memory that the function may have
  std::mutex shared_lock_;
  std::mutex put_off_lock_;
  Address put_off_[256] = {};
  int n_put_off_ = 0;
  Staging staging_;
};

// The context of a device, current on this thread for as long as this lives.
class Current {
 public:
  explicit Current(const Device& device);
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  bool ok() const { return ok_; }

 private:
  const Driver& driver_;
  bool ok_;
};

// False, with the reason, while the stream is captured: what comes from or goes to the CPU cannot be kept for a graph.
bool check_not_captured(const Device& device, Stream stream);

// Devices that the driver names; 0 where none of them can be used, with the reason in no_devices().
int device_count();
const char* no_devices();
// Null: failure() says why. The same device for every call.
Device* open_device(int index);
// Without opening it: attributes of device index < device_count()
bool read_attributes(const Driver& driver, int index, Attributes* out);

}  // namespace cuda
}  // namespace lutkern
