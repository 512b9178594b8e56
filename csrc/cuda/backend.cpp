// CUDA behind the boundary: one function for each of the table, which opens the device and makes its context current.
#include "../backend.h"

#include <string.h>

#include "device.h"
#include "image.h"
#include "operations.h"

namespace lutkern {
namespace cuda {

namespace {

Stream stream_from(void* stream) { return static_cast<Stream>(stream); }

Address address_of(const void* p) { return static_cast<Address>(reinterpret_cast<uintptr_t>(p)); }

// Runs work on a device whose context is current.
template <class Work>
bool on_device(int index, Work work) {
  Device* d = open_device(index);
  if (!d) return false;
  const Current current(*d);
  return current.ok() && work(*d);
}

// Gives something back: nothing to do where the driver has taken it, or must not be called.
template <class Work>
bool give_back(int index, Work work) {
  return is_forked() || on_device(index, work) || failure().result == kDeinitialized;
}

// ---- what is there ----

Reason reason() {
  const Failure& f = failure();
  return Reason{f.cause == Cause::memory ? LUTKERN_ERROR_MEMORY : LUTKERN_ERROR_DEVICE, f.text};
}

int32_t driver_version() {
  const Driver* d = driver();
  int version = 0;
  return d && d->cuDriverGetVersion(&version) == kSuccess ? version : 0;
}

const char* image(int64_t* nbytes) {
  *nbytes = kImageReal ? static_cast<int64_t>(kImageBytes) : 0;
  return kImageReal ? kImageArchitectures : nullptr;
}

bool open(int index) { return open_device(index) != nullptr; }

bool info(int index, lutkern_device_info* out) {
  return on_device(index, [&](Device& d) {
    const Attributes& a = d.attributes();
    size_t free_bytes = 0;
    if (!d.free_bytes(&free_bytes)) return false;
    *out = lutkern_device_info{};
    memcpy(out->name, a.name, sizeof(out->name) - 1);
    out->memory_bytes = static_cast<int64_t>(a.memory_bytes);
    out->free_bytes = static_cast<int64_t>(free_bytes);
    out->cache_bytes = a.cache_bytes;
    out->processors = a.processors;
    out->capability = a.capability;
    return true;
  });
}

const char* kernel(int index, FormatId format, lutkern_operation operation, Layout layout, int64_t tokens) {
  const Device* d = open_device(index);
  if (!d) return nullptr;
  KernelId found{};
  switch (operation) {
    case LUTKERN_DEQUANTIZE:
      found = dequantize_kernel(format, layout);
      break;
    case LUTKERN_MATVEC:
      found = product_kernel(*d, format, layout, 1);
      break;
    case LUTKERN_MATMUL:
      found = product_kernel(*d, format, layout, tokens);
      break;
    case LUTKERN_MOE:
      found = moe_kernel(*d, format, layout, tokens);
      break;
    default:
      return nullptr;
  }
  return kKernelName[static_cast<int>(found)];
}

// ---- memory ----

bool allocate(int index, size_t nbytes, void* stream, void** out) {
  return on_device(index, [&](Device& d) {
    Address memory = 0;
    if (!d.allocate(nbytes, stream_from(stream), &memory)) return false;
    *out = reinterpret_cast<void*>(static_cast<uintptr_t>(memory));
    return true;
  });
}

bool release(int index, void* data, void* stream) {
  return give_back(index, [&](Device& d) {
    if (stream == LUTKERN_ALL_STREAMS) return d.release_when_idle(address_of(data));
    return d.release_later(address_of(data), stream_from(stream));
  });
}

// From another device. No stream orders the two: what the other one has to do is waited for, and the copy too.
bool copy_across(Device& d, const CopyWork& work, Stream stream) {
  const Device* source = open_device(work.from_device - LUTKERN_CUDA);
  if (!source) return false;
  {
    const Current current(*source);
    if (!current.ok() || !check(d.driver().cuCtxSynchronize(), "cuCtxSynchronize")) return false;
  }
  const Result copied = d.driver().cuMemcpyPeerAsync(address_of(work.to), d.context(), address_of(work.from),
                                                     source->context(), work.nbytes, stream);
  return check(copied, "cuMemcpyPeerAsync") && check(d.driver().cuStreamSynchronize(stream), "cuStreamSynchronize");
}

bool copy(int index, const CopyWork& work, void* stream) {
  const auto rows = [&](const void* data) { return HostRows{const_cast<void*>(data), 1, work.nbytes, work.nbytes}; };
  const Stream s = stream_from(stream);
  return on_device(index, [&](Device& d) {
    if (work.to_device == work.from_device) {
      const Result copied = d.driver().cuMemcpyDtoDAsync_v2(address_of(work.to), address_of(work.from), work.nbytes, s);
      return check(copied, "cuMemcpyDtoDAsync_v2");
    }
    if (!check_not_captured(d, s)) return false;
    if (work.to_device && work.from_device) return copy_across(d, work, s);
    Transfer transfer(d, s);
    if (work.from_device) return transfer.to_host(rows(work.to), address_of(work.from));
    return transfer.to_device(address_of(work.to), rows(work.from)) && transfer.finish();
  });
}

// ---- operations ----

bool run_dequantize(int index, const Weight& w, Dtype dtype, void* out, void* stream) {
  return on_device(index, [&](Device& d) { return dequantize(d, w, dtype, out, stream_from(stream)); });
}

bool run_multiply(int index, const ProductWork& work, void* stream) {
  return on_device(index, [&](Device& d) { return multiply(d, work, stream_from(stream)); });
}

bool run_moe(int index, const MoeWork& work, void* stream) {
  return on_device(index, [&](Device& d) { return moe(d, work, stream_from(stream)); });
}

bool run_repack(int index, const Weight& from, const Weight& to, const Runner&, void* stream) {
  return on_device(index, [&](Device& d) { return repack(d, from, to, stream_from(stream)); });
}

// ---- streams, graphs, events ----

bool synchronize(int index, void* stream) {
  return on_device(index, [&](Device& d) {
    if (stream == LUTKERN_ALL_STREAMS) return check(d.driver().cuCtxSynchronize(), "cuCtxSynchronize");
    return check(d.driver().cuStreamSynchronize(stream_from(stream)), "cuStreamSynchronize");
  });
}

bool stream_create(int index, void** out) {
  return on_device(index, [&](Device& d) {
    Stream stream = nullptr;
    if (!check(d.driver().cuStreamCreate(&stream, kStreamNonBlocking), "cuStreamCreate")) return false;
    *out = stream;
    return true;
  });
}

bool stream_destroy(int index, void* stream) {
  return give_back(index, [&](Device& d) {
    return check(d.driver().cuStreamDestroy_v2(stream_from(stream)), "cuStreamDestroy_v2");
  });
}

bool capturing(int index, void* stream, bool* out) {
  return on_device(index, [&](Device& d) { return d.capturing(stream_from(stream), out); });
}

bool graph_begin(int index, void* stream) {
  return on_device(index, [&](Device& d) {
    const Result begun = d.driver().cuStreamBeginCapture_v2(stream_from(stream), kCaptureThreadLocal);
    return check(begun, "cuStreamBeginCapture_v2");
  });
}

bool graph_end(int index, void* stream, void** out) {
  return on_device(index, [&](Device& d) {
    Graph drawn = nullptr;
    if (!check(d.driver().cuStreamEndCapture(stream_from(stream), &drawn), "cuStreamEndCapture")) return false;
    GraphExec ready = nullptr;
    const Result made = d.driver().cuGraphInstantiateWithFlags(&ready, drawn, kAutoFreeOnLaunch);
    const bool ok = check(made, "cuGraphInstantiateWithFlags");
    d.driver().cuGraphDestroy(drawn);
    if (ok) *out = ready;
    return ok;
  });
}

bool graph_launch(int index, void* graph, void* stream) {
  return on_device(index, [&](Device& d) {
    const Result launched = d.driver().cuGraphLaunch(static_cast<GraphExec>(graph), stream_from(stream));
    return check(launched, "cuGraphLaunch");
  });
}

bool graph_destroy(int index, void* graph) {
  return give_back(index, [&](Device& d) {
    return check(d.driver().cuGraphExecDestroy(static_cast<GraphExec>(graph)), "cuGraphExecDestroy");
  });
}

bool event_create(int index, void** out) {
  return on_device(index, [&](Device& d) {
    Event event = nullptr;
    if (!check(d.driver().cuEventCreate(&event, 0), "cuEventCreate")) return false;
    *out = event;
    return true;
  });
}

bool event_record(int index, void* event, void* stream) {
  return on_device(index, [&](Device& d) {
    const Result recorded = d.driver().cuEventRecord(static_cast<Event>(event), stream_from(stream));
    return check(recorded, "cuEventRecord");
  });
}

bool event_wait(int index, void* event, void* stream) {
  return on_device(index, [&](Device& d) {
    const Result waits = d.driver().cuStreamWaitEvent(stream_from(stream), static_cast<Event>(event), 0);
    return check(waits, "cuStreamWaitEvent");
  });
}

bool event_elapsed(int index, void* begin, void* end, float* milliseconds) {
  return on_device(index, [&](Device& d) {
    const Event last = static_cast<Event>(end);
    if (!check(d.driver().cuEventSynchronize(last), "cuEventSynchronize")) return false;
    const Result told = d.driver().cuEventElapsedTime(milliseconds, static_cast<Event>(begin), last);
    return check(told, "cuEventElapsedTime");
  });
}

bool event_destroy(int index, void* event) {
  return give_back(index, [&](Device& d) {
    return check(d.driver().cuEventDestroy_v2(static_cast<Event>(event)), "cuEventDestroy_v2");
  });
}

}  // namespace

}  // namespace cuda

const Backend kCudaBackend = {LUTKERN_CUDA,         "cuda",
                              cuda::reason,         cuda::device_count,
                              cuda::no_devices,     cuda::driver_version,
                              cuda::image,          cuda::open,
                              cuda::info,           cuda::kernel,
                              cuda::allocate,       nullptr,
                              cuda::copy,           cuda::run_dequantize,
                              cuda::run_multiply,   cuda::run_moe,
                              cuda::run_repack,     cuda::synchronize,
                              cuda::stream_create,  cuda::capturing,
                              cuda::graph_begin,    cuda::graph_end,
                              cuda::graph_launch,   cuda::event_create,
                              cuda::event_record,   cuda::event_wait,
                              cuda::event_elapsed,  cuda::release,
                              cuda::stream_destroy, cuda::graph_destroy,
                              cuda::event_destroy};

}  // namespace lutkern
