// Queues, command buffers and what is encoded into them.
#include <string.h>

#include "metal.h"
#include "work.h"

namespace fake {

Class* g_queue;
Class* g_command_buffer;
Class* g_compute_encoder;
Class* g_blit_encoder;

namespace {

constexpr size_t kMostBuffers = 64;  // of a queue, that are not done
constexpr size_t kMostBytes = 4096;  // of setBytes

// ---- MTLCommandQueue ----

CommandBuffer* queue_buffer(Queue* self, Selector) {
  if (fails()) return nullptr;
  // Metal waits where there are too many; it would do so for ever where none of them is committed.
  if (self->made >= kMostBuffers) run_until([&] { return self->made < kMostBuffers; }, "a command buffer");
  return autoreleased(new CommandBuffer(self));
}

// ---- MTLCommandBuffer ----

void need_building(const CommandBuffer& b) {
  if (b.status != kNotEnqueued) stop("the command buffer was committed");
  if (b.open) stop("an encoder is open, expected endEncoding first");
}

void need_committed(const CommandBuffer& b) {
  if (b.status == kNotEnqueued) stop("the command buffer was not committed: it would wait for ever");
}

bool is_done(const CommandBuffer& b) { return b.status == kCompleted || b.status == kError; }

Encoder* new_encoder(Class* c, CommandBuffer* target) {
  need_building(*target);
  return fails() ? nullptr : autoreleased(new Encoder(c, target));
}
Encoder* buffer_compute(CommandBuffer* self, Selector) { return new_encoder(g_compute_encoder, self); }
Encoder* buffer_blit(CommandBuffer* self, Selector) { return new_encoder(g_blit_encoder, self); }

void buffer_commit(CommandBuffer* self, Selector) {
  need_building(*self);
  count("commits");
  if (fails()) {
    self->steps.emplace_front([]() -> std::string { return kAsked; });
  }
  self->status = kCommitted;
  self->queue->committed.emplace_back(self);
}

void buffer_wait(CommandBuffer* self, Selector) {
  need_committed(*self);
  count("waits");
  run_until([&] { return is_done(*self); }, "the command buffer");
}

// A program that asks again and again sees it done in the end.
unsigned long buffer_status(CommandBuffer* self, Selector) {
  if (self->status == kCommitted && ++self->polls > 100)
    run_until([&] { return is_done(*self); }, "the command buffer");
  return self->status;
}

Error* buffer_error(CommandBuffer* self, Selector) { return self->error.get(); }
double buffer_begin(CommandBuffer* self, Selector) { return is_done(*self) ? self->begin : 0.0; }
double buffer_end(CommandBuffer* self, Selector) { return is_done(*self) ? self->end : 0.0; }

// ---- MTLComputeCommandEncoder and MTLBlitCommandEncoder ----

void need_open(const Encoder& e) {
  if (e.ended) stop("the encoder was ended");
}

void encoder_end(Encoder* self, Selector) {
  need_open(*self);
  self->ended = true;
  self->target->open = nullptr;
  self->pipeline = {};
  self->bindings = {};
}

// A range of a buffer, for a command of the encoder
Binding bind(const Encoder& e, Buffer* buffer, unsigned long offset, unsigned long bytes) {
  need_object(buffer, g_buffer, "the buffer");
  if (buffer->device != e.target->queue->device) stop("the buffer is of another device");
  if (offset > buffer->bytes || bytes > buffer->bytes - offset) {
    stop("%lu bytes from %lu on are not inside of a buffer of %zu bytes", bytes, offset, buffer->bytes);
  }
  Binding b;
  b.buffer = Kept<Buffer>(buffer);
  b.offset = offset;
  return b;
}

void encoder_pipeline(Encoder* self, Selector, Pipeline* pipeline) {
  need_open(*self);
  need_object(pipeline, g_pipeline, "the pipeline");
  if (pipeline->device != self->target->queue->device) stop("the pipeline is of another device");
  self->pipeline = Kept<Pipeline>(pipeline);
}

Binding& binding(Encoder* e, unsigned long index) {
  need_open(*e);
  if (index >= kBindings) stop("index %lu, expected at most %zu", index, kBindings - 1);
  return e->bindings[index];
}

void encoder_buffer(Encoder* self, Selector, Buffer* buffer, unsigned long offset, unsigned long index) {
  Binding& place = binding(self, index);
  place = buffer ? bind(*self, buffer, offset, 1) : Binding{};
}

void encoder_bytes(Encoder* self, Selector, const void* bytes, unsigned long n, unsigned long index) {
  Binding& place = binding(self, index);
  if (!bytes) stop("the bytes are null");
  if (n < 1 || n > kMostBytes) stop("%lu bytes, expected 1 to %zu", n, kMostBytes);
  place = Binding{};
  place.bytes.assign(static_cast<const uint8_t*>(bytes), static_cast<const uint8_t*>(bytes) + n);
}

void encoder_dispatch(Encoder* self, Selector, Size groups, Size threads) {
  need_open(*self);
  if (!self->pipeline) stop("there is no pipeline");
  const Function& f = *self->pipeline->function.get();
  const char* name = f.name.c_str();
  if (groups.width < 1 || groups.height < 1 || groups.depth < 1) {
    stop("%s: %lu x %lu x %lu threadgroups", name, groups.width, groups.height, groups.depth);
  }
  if (groups.width > UINT32_MAX || groups.height > UINT32_MAX || groups.depth > UINT32_MAX) {
    stop("%s: positions of threadgroups are numbers of 32 bits", name);
  }
  const unsigned long most = static_cast<unsigned long>(settings().threads);
  if (threads.width < 1 || threads.height != 1 || threads.depth != 1 || threads.width > most) {
    stop("%s: %lu x %lu x %lu threads, expected 1 to %lu in one dimension", name, threads.width, threads.height,
         threads.depth, most);
  }
  for (uint32_t i = 0; i < f.n_buffers; ++i) {
    if (!self->bindings[i].is_bound()) stop("%s: nothing is bound to index %u of %u", name, i, f.n_buffers);
  }
  self->target->steps.emplace_back([pipeline = self->pipeline, bindings = self->bindings, groups, threads] {
    return run_kernel(*pipeline.get(), bindings, groups, threads.width);
  });
}

void encoder_copy(Encoder* self, Selector, Buffer* from, unsigned long from_offset, Buffer* to, unsigned long to_offset,
                  unsigned long bytes) {
  need_open(*self);
  if (bytes == 0) stop("0 bytes");
  if (from_offset % 4 || to_offset % 4 || bytes % 4) {
    stop("%lu bytes from %lu to %lu, expected multiples of 4", bytes, from_offset, to_offset);
  }
  const Binding source = bind(*self, from, from_offset, bytes);
  const Binding target = bind(*self, to, to_offset, bytes);
  self->target->steps.emplace_back([source, target, bytes] { return run_copy(source, target, bytes); });
}

}  // namespace

Queue::Queue(Device* owner) : Object(g_queue), device(owner) { add_queue(this); }
Queue::~Queue() { remove_queue(this); }

CommandBuffer::CommandBuffer(Queue* on) : Object(g_command_buffer), queue(on) { ++on->made; }
CommandBuffer::~CommandBuffer() {
  if (!is_done(*this)) --queue->made;
}

Encoder::Encoder(Class* c, CommandBuffer* into) : Object(c), target(into) { into->open = this; }
Encoder::~Encoder() {
  if (!ended) stop("an encoder was freed before endEncoding");
}

void make_commands() {
  g_queue = new_class("MTLCommandQueue", {method<queue_buffer>("commandBuffer")});
  g_command_buffer = new_class(
      "MTLCommandBuffer",
      {method<buffer_compute>("computeCommandEncoder"), method<buffer_blit>("blitCommandEncoder"),
       method<buffer_commit>("commit"), method<buffer_wait>("waitUntilCompleted"), method<buffer_status>("status"),
       method<buffer_error>("error"), method<buffer_begin>("GPUStartTime"), method<buffer_end>("GPUEndTime")});
  g_compute_encoder = new_class(
      "MTLComputeCommandEncoder",
      {method<encoder_pipeline>("setComputePipelineState:"), method<encoder_buffer>("setBuffer:offset:atIndex:"),
       method<encoder_bytes>("setBytes:length:atIndex:"),
       method<encoder_dispatch>("dispatchThreadgroups:threadsPerThreadgroup:"), method<encoder_end>("endEncoding")});
  g_blit_encoder = new_class("MTLBlitCommandEncoder",
                             {method<encoder_copy>("copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:"),
                              method<encoder_end>("endEncoding")});
}

}  // namespace fake
