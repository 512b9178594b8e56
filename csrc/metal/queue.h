// Streams of a Metal device: a command queue each. Dispatches are gathered in an open command buffer, which is committed when
// it has enough of them, or when somebody waits. Work of one stream runs in order; nothing orders two streams but events.
#pragma once
#include <atomic>
#include <mutex>

#include "libraries.h"
#include "memory.h"
#include "objc.h"

namespace lutkern {
namespace metal {

enum : int {
  kBatchDispatches = 32,  // of a command buffer
  kMaxBatches = 32        // committed and not waited for: Metal allows 64 of a queue
};

// A command buffer that works for seconds is ended by the system.
constexpr double kBatchProducts = 1e11;

struct Event;

class Stream {
 public:
  Stream() = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  bool open(Id device);
  // Waits for all that was given to it until now. False: work on the GPU failed, now or since the last wait.
  bool finish();
  // The same for the work up to a moment that encoding told.
  bool finish(uint64_t serial);
  // Waits, and leaves a failure for the next finish().
  void drain();
  // The event is the moment when all of it is done.
  void record(Event* event);
  void forget(Event* event);

  // Streams are counted: whoever works with one holds it, and the last one deletes it.
  void hold() { ++holders_; }
  void let_go();

 private:
  friend class Encoding;
  struct Batch {
    Owned commands;
    uint64_t serial;
  };

  ~Stream() = default;
  bool begin();
  void end_encoder();
  void commit();
  void make_room(std::unique_lock<std::mutex>& hold);
  void wait_until(uint64_t serial, std::unique_lock<std::mutex>& hold);
  void finish_oldest(std::unique_lock<std::mutex>& hold);
  void account(Id commands);
  bool take_failure();

  std::mutex lock_;
  std::atomic<int> holders_{1};
  Id device_ = nullptr;
  Owned queue_;
  Owned commands_;  // open, or null
  Owned encoder_;
  bool encoder_copies_ = false;
  int dispatches_ = 0;  // of the open command buffer
  double products_ = 0;
  uint64_t serial_ = 0;  // of the last command buffer that was begun
  uint64_t done_ = 0;    // of the last one that has ended
  Batch batches_[kMaxBatches];
  int n_batches_ = 0;
  double gpu_seconds_ = 0;   // that all of them worked
  Event* events_ = nullptr;  // recorded, and not reached
  Owned scratch_;
  size_t scratch_bytes_ = 0;
  bool has_failed_ = false;
  Failure failure_{};
};

// A moment on a stream. Times are those that the GPU worked for the stream before.
struct Event {
  Stream* stream = nullptr;  // held; null: not recorded
  uint64_t serial = 0;
  double seconds = 0;
  bool reached = false;
  Event* next = nullptr;
};

// What one dispatch binds: buffer 0 is the arguments
struct Binding {
  int index;
  Place place;
};

// One operation puts its work on a stream: nothing of others comes in between, and all of it is in one command buffer.
class Encoding {
 public:
  explicit Encoding(Stream& stream) : stream_(stream), hold_(stream.lock_) {}
  // Commits where there is enough.
  ~Encoding();
  Encoding(const Encoding&) = delete;
  Encoding& operator=(const Encoding&) = delete;

  bool begin() { return stream_.begin(); }
  // products: of numbers, about, that the kernel makes
  bool dispatch(const Pipeline& pipeline, KernelId kernel, const void* args, const Binding* bindings, int n,
                double products);
  // Offsets and size are multiples of 4.
  bool copy(const Place& to, const Place& from, size_t bytes);
  // Memory for what one dispatch hands to the next; the next operation of the stream uses it anew.
  bool scratch(size_t bytes, Id* out);
  // For finish()
  uint64_t moment() const { return stream_.serial_; }

 private:
  Stream& stream_;
  std::unique_lock<std::mutex> hold_;
};

}  // namespace metal
}  // namespace lutkern
