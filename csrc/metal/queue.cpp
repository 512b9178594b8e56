#include "queue.h"

#include <utility>

namespace lutkern {
namespace metal {

namespace {

enum : size_t { kScratchUnit = size_t{1} << 16 };

}  // namespace

bool Stream::open(Id device) {
  device_ = device;
  queue_.reset(objc::new_queue(device));
  return queue_ || failed(Cause::device, "newCommandQueue failed: Metal gave none");
}

void Stream::let_go() {
  if (--holders_ > 0) return;
  drain();
  delete this;
}

bool Stream::begin() {
  if (commands_) return true;
  commands_ = retained(objc::command_buffer(queue_.get()));
  if (!commands_) return failed(Cause::device, "commandBuffer failed: Metal gave none");
  ++serial_;
  return true;
}

void Stream::end_encoder() {
  if (!encoder_) return;
  if (encoder_copies_) {
    objc::end_copies(encoder_.get());
  } else {
    objc::end_encoding(encoder_.get());
  }
  encoder_.reset();
  encoder_copies_ = false;
}

void Stream::commit() {
  if (!commands_) return;
  end_encoder();
  objc::commit(commands_.get());
  batches_[n_batches_].commands = std::move(commands_);
  batches_[n_batches_].serial = serial_;
  ++n_batches_;
  dispatches_ = 0;
  products_ = 0;
}

// A command buffer that has ended: its time, and its failure.
void Stream::account(Id commands) {
  gpu_seconds_ += objc::gpu_end(commands) - objc::gpu_start(commands);
  if (objc::status(commands) != kStatusError || has_failed_) return;
  has_failed_ = true;
  failed_call("commandBuffer", objc::error(commands));
  failure_ = failure();
}

// Waits without the lock, so that other threads can add work.
void Stream::finish_oldest(std::unique_lock<std::mutex>& hold) {
  const Owned oldest = retained(batches_[0].commands.get());
  hold.unlock();
  objc::wait(oldest.get());
  hold.lock();
  if (n_batches_ == 0 || batches_[0].commands.get() != oldest.get()) return;  // another thread was faster
  account(oldest.get());
  done_ = batches_[0].serial;
  --n_batches_;
  for (int i = 0; i < n_batches_; ++i) batches_[i] = std::move(batches_[i + 1]);
  batches_[n_batches_].commands.reset();
  for (Event** at = &events_; *at;) {
    Event* event = *at;
    if (event->serial > done_) {
      at = &event->next;
      continue;
    }
    *at = event->next;
    event->seconds = gpu_seconds_;
    event->reached = true;
  }
}

void Stream::make_room(std::unique_lock<std::mutex>& hold) {
  while (n_batches_ == kMaxBatches) finish_oldest(hold);
}

void Stream::wait_until(uint64_t serial, std::unique_lock<std::mutex>& hold) {
  while (done_ < serial) {
    const bool committed = n_batches_ > 0 && batches_[n_batches_ - 1].serial >= serial;
    if (committed || n_batches_ == kMaxBatches) {
      finish_oldest(hold);
    } else {
      commit();
    }
  }
}

bool Stream::take_failure() {
  if (!has_failed_) return true;
  has_failed_ = false;
  return failed(failure_.cause, "%s", failure_.text);
}

bool Stream::finish(uint64_t serial) {
  std::unique_lock<std::mutex> hold(lock_);
  wait_until(serial, hold);
  return take_failure();
}

bool Stream::finish() {
  std::unique_lock<std::mutex> hold(lock_);
  wait_until(serial_, hold);
  return take_failure();
}

void Stream::drain() {
  std::unique_lock<std::mutex> hold(lock_);
  wait_until(serial_, hold);
}

// ---- events ----

void Stream::record(Event* event) {
  std::unique_lock<std::mutex> hold(lock_);
  make_room(hold);
  commit();
  event->stream = this;
  event->serial = serial_;
  event->reached = done_ >= serial_;
  event->seconds = gpu_seconds_;
  if (event->reached) return;
  event->next = events_;
  events_ = event;
}

void Stream::forget(Event* event) {
  const std::lock_guard<std::mutex> hold(lock_);
  for (Event** at = &events_; *at; at = &(*at)->next) {
    if (*at != event) continue;
    *at = event->next;
    return;
  }
}

// ---- encoding ----

Encoding::~Encoding() {
  if (stream_.dispatches_ < kBatchDispatches && stream_.products_ < kBatchProducts) return;
  stream_.make_room(hold_);
  stream_.commit();
}

bool Encoding::dispatch(const Pipeline& pipeline, KernelId kernel, const void* args, const Binding* bindings, int n,
                        double products) {
  const Plan plan = plan_of(kernel, args);
  if (plan.groups_x == 0 || plan.groups_y == 0 || plan.groups_z == 0) return true;
  if (stream_.encoder_copies_) stream_.end_encoder();
  if (!stream_.encoder_) {
    stream_.encoder_ = retained(objc::encoder(stream_.commands_.get()));
    if (!stream_.encoder_) return failed(Cause::device, "computeCommandEncoder failed: Metal gave none");
  }
  const Id encoder = stream_.encoder_.get();
  objc::set_pipeline(encoder, pipeline.state);
  objc::set_bytes(encoder, args, static_cast<Unsigned>(kKernelArgsBytes[static_cast<int>(kernel)]), 0);
  for (int i = 0; i < n; ++i) {
    const Place& place = bindings[i].place;
    if (place.buffer) objc::set_buffer(encoder, place.buffer, place.offset, static_cast<Unsigned>(bindings[i].index));
  }
  const Unsigned threads = plan.threads < pipeline.max_threads ? plan.threads : pipeline.max_threads;
  objc::dispatch(encoder, Size{plan.groups_x, plan.groups_y, plan.groups_z}, Size{threads, 1, 1});
  ++stream_.dispatches_;
  stream_.products_ += products;
  return true;
}

bool Encoding::copy(const Place& to, const Place& from, size_t bytes) {
  if (!stream_.encoder_copies_) stream_.end_encoder();
  if (!stream_.encoder_) {
    stream_.encoder_ = retained(objc::blit_encoder(stream_.commands_.get()));
    if (!stream_.encoder_) return failed(Cause::device, "blitCommandEncoder failed: Metal gave none");
    stream_.encoder_copies_ = true;
  }
  objc::copy_buffer(stream_.encoder_.get(), from.buffer, from.offset, to.buffer, to.offset, bytes);
  ++stream_.dispatches_;
  return true;
}

// Work of the stream is in order, and command buffers keep what they use: the buffer may grow, and is never waited for.
bool Encoding::scratch(size_t bytes, Id* out) {
  if (bytes > stream_.scratch_bytes_) {
    const size_t wanted = (bytes + kScratchUnit - 1) / kScratchUnit * kScratchUnit;
    Owned larger(objc::new_buffer(stream_.device_, wanted, kStorageShared));
    if (!larger) return failed(Cause::memory, "newBufferWithLength failed: no memory for %zu bytes", wanted);
    stream_.scratch_ = std::move(larger);
    stream_.scratch_bytes_ = wanted;
  }
  *out = stream_.scratch_.get();
  return true;
}

}  // namespace metal
}  // namespace lutkern
