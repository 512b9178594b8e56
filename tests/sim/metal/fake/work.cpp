#include "work.h"

#include <string.h>

#include <algorithm>
#include <chrono>

#include "fake_metal.h"
#include "run.h"

namespace fake {

namespace {

std::vector<Queue*>& queues() {
  static auto* all = new std::vector<Queue*>;
  return *all;
}

std::string* g_kernels = new std::string;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void complete(CommandBuffer* b, const std::string& error) {
  if (!error.empty()) {
    if (error != kAsked) fault(error);
    auto* e = new Error(1, error);
    b->error = Kept<Error>(e);
    disown(e);
  }
  b->end = now();
  b->status = error.empty() ? kCompleted : kError;
  b->steps.clear();
  const Kept<Queue> queue = b->queue;
  --queue->made;
  queue->committed.pop_front();
}

// One step of the oldest command buffer of the queue; false: there is none.
bool advance(Queue* queue) {
  if (queue->committed.empty()) return false;
  const Kept<Queue> kept(queue);
  const Kept<CommandBuffer> b = queue->committed.front();
  if (b->begin == 0.0) b->begin = now();
  std::string error;
  if (!b->steps.empty()) {
    error = b->steps.front()();
    b->steps.pop_front();
  }
  if (b->steps.empty() || !error.empty()) complete(b.get(), error);
  return true;
}

// One step of any queue, those from a random one on
bool advance_some() {
  const std::vector<Queue*> all = queues();
  const size_t first = all.empty() ? 0 : choice(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    if (advance(all[(first + i) % all.size()])) return true;
  }
  return false;
}

// Metal keeps the object, but not the memory, where that belongs to the CPU.
constexpr char kGone[] = "memory of the CPU was given back before the work that uses it has run";
bool is_gone(const Binding& b) { return b.buffer->borrowed && b.buffer->owned + b.buffer->pooled == 0; }

}  // namespace

std::string run_kernel(const Pipeline& pipeline, const std::array<Binding, kBindings>& bindings, const Size& groups,
                       unsigned long threads) {
  const Function& f = *pipeline.function.get();
  std::vector<lk_metal_buffer> buffers(f.n_buffers, lk_metal_buffer{});
  for (uint32_t i = 0; i < f.n_buffers; ++i) {
    const Binding& b = bindings[i];
    if (b.buffer) {
      if (is_gone(b)) return f.name + ": index " + std::to_string(i) + ": " + kGone;
      buffers[i] = {b.buffer->data + b.offset, b.buffer->bytes - b.offset};
    } else {
      buffers[i] = {const_cast<uint8_t*>(b.bytes.data()), b.bytes.size()};
    }
  }
  const uint32_t sizes[3] = {static_cast<uint32_t>(groups.width), static_cast<uint32_t>(groups.height),
                             static_cast<uint32_t>(groups.depth)};
  char error[1024] = "";
  const uint64_t seed = settings().seed ? choice(UINT64_MAX) : 0;
  const int failed = lk_metal_launch(f.library->code, f.name.c_str(), buffers.data(), f.n_buffers, sizes,
                                     static_cast<uint32_t>(threads), seed, error, sizeof(error));
  count("dispatches");
  *g_kernels += f.name + "\n";
  return failed ? f.name + ": " + error : "";
}

std::string run_copy(const Binding& from, const Binding& to, size_t bytes) {
  if (is_gone(from) || is_gone(to)) return std::string("copy: ") + kGone;
  memmove(to.buffer->data + to.offset, from.buffer->data + from.offset, bytes);
  return "";
}

void run_until(const std::function<bool()>& condition, const char* what) {
  while (!condition()) {
    if (!advance_some()) stop("waits for ever: nothing that is committed ends the wait for %s", what);
  }
}

void wander() {
  if (settings().seed == 0) return;
  for (uint64_t turns = choice(3); turns > 0 && advance_some(); --turns) {
  }
}

int pending() {
  size_t n = 0;
  for (const Queue* q : queues()) n += q->committed.size();
  return static_cast<int>(n);
}

void add_queue(Queue* queue) { queues().push_back(queue); }
void remove_queue(Queue* queue) { queues().erase(std::find(queues().begin(), queues().end(), queue)); }

}  // namespace fake

using namespace fake;

FAKE_API const char* fake_metal_kernels(void) {
  const Held held;
  return g_kernels->c_str();
}

FAKE_API void fake_metal_finish(void) {
  const Held held;
  run_until([] { return pending() == 0; }, "the end of all work");
}
