// The objects of the fake Metal.
//
// A command buffer is a list of steps. It runs after it was committed: when something waits for it, or earlier, step by
// step, at moments that the seed chooses; those of one queue in their order, those of two queues in any.
#pragma once
#include <array>
#include <deque>
#include <functional>

#include "foundation.h"

namespace fake {

struct Size {  // MTLSize
  unsigned long width, height, depth;
};

struct Device : Object {
  explicit Device(int number);
  int index;
  size_t used = 0;  // bytes of its buffers
};

struct Buffer : Object {
  Buffer(Device* owner, uint8_t* begin, size_t n, bool of_cpu);
  ~Buffer() override;
  Device* device;  // devices are there for ever
  uint8_t* data;
  size_t bytes;
  bool borrowed;  // memory of the CPU
};

struct CompileOptions : Object {
  CompileOptions();
  bool fast_math = true;
  unsigned long language = 0;
};

struct Library : Object {
  Library(Device* owner, void* compiled);
  ~Library() override;
  Device* device;
  void* code;
};

struct Function : Object {
  Function(Library* of, std::string called, uint32_t bytes, uint32_t buffers);
  Kept<Library> library;
  std::string name;
  uint32_t threadgroup_bytes;
  uint32_t n_buffers;
};

struct Pipeline : Object {
  Pipeline(Device* owner, Function* of);
  Device* device;
  Kept<Function> function;
};

struct CommandBuffer;

struct Queue : Object {
  explicit Queue(Device* owner);
  ~Queue() override;
  Device* device;
  size_t made = 0;                            // command buffers that are not done
  std::deque<Kept<CommandBuffer>> committed;  // and are not done
};

enum Status : unsigned long { kNotEnqueued = 0, kCommitted = 2, kCompleted = 4, kError = 5 };  // MTLCommandBufferStatus

// Says what went wrong, or an empty text.
using Step = std::function<std::string()>;

struct Encoder;

struct CommandBuffer : Object {
  explicit CommandBuffer(Queue* on);
  ~CommandBuffer() override;
  Kept<Queue> queue;
  Encoder* open = nullptr;
  Status status = kNotEnqueued;
  std::deque<Step> steps;
  double begin = 0.0;  // 0: has not begun
  double end = 0.0;
  int polls = 0;
  Kept<Error> error;
};

// What a kernel gets for one index: a buffer from an offset on, or bytes of its own.
struct Binding {
  Kept<Buffer> buffer;
  size_t offset = 0;
  std::vector<uint8_t> bytes;
  bool is_bound() const { return buffer || !bytes.empty(); }
};
constexpr size_t kBindings = 31;

// Of kernels or of copies
struct Encoder : Object {
  Encoder(Class* c, CommandBuffer* into);
  ~Encoder() override;
  Kept<CommandBuffer> target;
  bool ended = false;
  Kept<Pipeline> pipeline;
  std::array<Binding, kBindings> bindings;
};

extern Class* g_device;
extern Class* g_buffer;
extern Class* g_compile_options;
extern Class* g_library;
extern Class* g_function;
extern Class* g_pipeline;
extern Class* g_queue;
extern Class* g_command_buffer;
extern Class* g_compute_encoder;
extern Class* g_blit_encoder;

void make_metal();     // device.cpp
void make_commands();  // commands.cpp

}  // namespace fake
