// Metal behind the boundary: one function for each of the table, which opens the device and drains what Objective-C
// autoreleases.
#include "../backend.h"

#include <string.h>

#include <new>

#include "operations.h"
#include "text.h"

namespace lutkern {
namespace metal {

namespace {

template <class Work>
bool on_device(int index, Work work) {
  Device* d = open_device(index);
  if (!d) return false;
  const Pool pool;
  return work(*d);
}

// Gives something back: nothing to do in a child of fork.
template <class Work>
bool give_back(int index, Work work) {
  return is_forked() || on_device(index, work);
}

// ---- what is there ----

Reason reason() {
  const Failure& f = failure();
  return Reason{f.cause == Cause::memory ? LUTKERN_ERROR_MEMORY : LUTKERN_ERROR_DEVICE, f.text};
}

// Metal has no version of its own: it is that of macOS.
int32_t driver_version() { return find_runtime() ? system_version() : 0; }

const char* image(int64_t* nbytes) {
  *nbytes = static_cast<int64_t>(kKernelTextBytes);
  return "Metal 2.4";
}

bool open(int index) { return open_device(index) != nullptr; }

bool info(int index, lutkern_device_info* out) {
  return on_device(index, [&](Device& d) {
    const Attributes& a = d.attributes();
    *out = lutkern_device_info{};
    memcpy(out->name, a.name, sizeof(out->name) - 1);
    out->memory_bytes = static_cast<int64_t>(a.memory_bytes);
    out->free_bytes = static_cast<int64_t>(d.free_bytes());
    out->capability = a.family;
    return true;
  });
}

const char* kernel(int index, FormatId format, lutkern_operation operation, Layout layout, int64_t tokens) {
  if (!open_device(index)) return nullptr;
  switch (operation) {
    case LUTKERN_DEQUANTIZE:
      return kernel_name(dequantize_kernel(layout), format);
    case LUTKERN_MATVEC:
      return kernel_name(product_kernel(layout, false, 1), format);
    case LUTKERN_MATMUL:
      return kernel_name(product_kernel(layout, false, tokens), format);
    case LUTKERN_MOE:
      return kernel_name(moe_kernel(format, layout, tokens), format);
    default:
      return nullptr;
  }
}

// ---- memory ----

// Memory of a new buffer is in use nowhere: any stream may have it.
bool allocate(int index, size_t nbytes, void*, void** out) {
  return on_device(index, [&](Device& d) { return d.memory().allocate(nbytes, out); });
}

bool wrap(int index, const void* data, size_t nbytes, void** out) {
  return on_device(index, [&](Device& d) {
    if (!d.memory().wrap(data, nbytes)) return false;
    *out = const_cast<void*>(data);
    return true;
  });
}

// Queued work keeps the buffers that it uses. Of a wrap it keeps only the buffer: its owner may unmap the memory next.
bool release(int index, void* data, void* stream) {
  return give_back(index, [&](Device& d) {
    if (d.memory().is_wrapped(data) && d.memory().is_used(data)) d.drain(stream);
    return d.memory().release(data);
  });
}

bool copy_bytes(int index, const CopyWork& work, void* stream) {
  return on_device(index, [&](Device& d) {
    if (work.to_device && work.from_device && work.to_device != work.from_device) {
      // No stream orders the two: what the other one has to do is waited for.
      Device* source = open_device(work.from_device - LUTKERN_METAL);
      if (!source || !source->finish(LUTKERN_ALL_STREAMS)) return false;
    }
    return copy(d, work, stream);
  });
}

// ---- operations ----

bool run_dequantize(int index, const Weight& w, Dtype dtype, void* out, void* stream) {
  return on_device(index, [&](Device& d) { return dequantize(d, w, dtype, out, stream); });
}

bool run_multiply(int index, const ProductWork& work, void* stream) {
  return on_device(index, [&](Device& d) { return multiply(d, work, stream); });
}

bool run_moe(int index, const MoeWork& work, void* stream) {
  return on_device(index, [&](Device& d) { return moe(d, work, stream); });
}

bool run_repack(int index, const Weight& from, const Weight& to, const Runner& runner, void* stream) {
  return on_device(index, [&](Device& d) { return repack(d, from, to, runner, stream); });
}

// ---- streams and events ----

bool synchronize(int index, void* stream) {
  return on_device(index, [&](Device& d) { return d.finish(stream); });
}

bool stream_create(int index, void** out) {
  return on_device(index, [&](Device& d) {
    Stream* stream = nullptr;
    if (!d.create_stream(&stream)) return false;
    *out = stream;
    return true;
  });
}

bool stream_destroy(int index, void* stream) {
  return give_back(index, [&](Device& d) { return d.destroy_stream(stream); });
}

// There are no graphs.
bool capturing(int, void*, bool* out) {
  *out = false;
  return true;
}

Event* event_of(void* event) { return static_cast<Event*>(event); }

void detach(Event* event) {
  if (!event->stream) return;
  event->stream->forget(event);
  event->stream->let_go();
  *event = Event{};
}

bool event_create(int index, void** out) {
  return on_device(index, [&](Device& d) {
    Event* event = new (std::nothrow) Event;
    if (!event) return failed(Cause::memory, "no memory for an event of metal:%d", d.index());
    *out = event;
    return true;
  });
}

bool event_record(int index, void* event, void* stream) {
  return on_device(index, [&](Device& d) {
    Stream* held = nullptr;
    if (!d.hold_stream(stream, &held)) return false;
    detach(event_of(event));
    held->record(event_of(event));
    return true;
  });
}

// The CPU waits: the streams of two queues meet rarely, and nothing is left to go wrong.
bool event_wait(int index, void* event, void* stream) {
  return on_device(index, [&](Device& d) {
    const HeldStream waiting(d, stream);
    const Event& e = *event_of(event);
    if (!waiting.ok()) return false;
    return !e.stream || e.stream == &*waiting || e.stream->finish(e.serial);
  });
}

bool event_elapsed(int index, void* begin, void* end, float* milliseconds) {
  return on_device(index, [&](Device&) {
    const Event& first = *event_of(begin);
    const Event& last = *event_of(end);
    if (!first.stream || !last.stream)
      return failed(Cause::device, "an event was not recorded, expected two that were");
    if (first.stream != last.stream) return failed(Cause::device, "the events are of two streams, expected one");
    const uint64_t serial = first.serial > last.serial ? first.serial : last.serial;
    if (!last.stream->finish(serial)) return false;
    *milliseconds = static_cast<float>(1e3 * (last.seconds - first.seconds));
    return true;
  });
}

bool event_destroy(int index, void* event) {
  return give_back(index, [&](Device&) {
    detach(event_of(event));
    delete event_of(event);
    return true;
  });
}

}  // namespace

}  // namespace metal

const Backend kMetalBackend = {LUTKERN_METAL,
                               "metal",
                               metal::reason,
                               metal::device_count,
                               metal::no_devices,
                               metal::driver_version,
                               metal::image,
                               metal::open,
                               metal::info,
                               metal::kernel,
                               metal::allocate,
                               metal::wrap,
                               metal::copy_bytes,
                               metal::run_dequantize,
                               metal::run_multiply,
                               metal::run_moe,
                               metal::run_repack,
                               metal::synchronize,
                               metal::stream_create,
                               metal::capturing,
                               nullptr,
                               nullptr,
                               nullptr,
                               metal::event_create,
                               metal::event_record,
                               metal::event_wait,
                               metal::event_elapsed,
                               metal::release,
                               metal::stream_destroy,
                               nullptr,
                               metal::event_destroy};

}  // namespace lutkern
