// The boundary of the devices: checks, error texts, and the way to the room of the device.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boundary.h"
#include "cuda/device.h"
#include "cuda/image.h"
#include "cuda/operations.h"
#include "tiles/repack.h"

namespace lutkern {

namespace {

lutkern_status cuda_failed(const char* op) {
  const cuda::Failure& f = cuda::failure();
  return fail(f.cause == cuda::Cause::memory ? LUTKERN_ERROR_MEMORY : LUTKERN_ERROR_DEVICE, "%s: %s", op, f.text);
}

cuda::Stream stream_from(void* stream) { return static_cast<cuda::Stream>(stream); }

cuda::Address address_of(const void* p) { return static_cast<cuda::Address>(reinterpret_cast<uintptr_t>(p)); }

// Runs work on a device whose context is current.
template <class Work>
lutkern_status on_device(const char* op, int32_t device, Work work) {
  if (!is_cuda(device)) {
    return fail(LUTKERN_ERROR_VALUE, "%s: the device is %s, expected a CUDA device", op, device_name(device).text);
  }
  cuda::Device* d = cuda::open_device(device - LUTKERN_CUDA);
  if (!d) return cuda_failed(op);
  const cuda::Current current(*d);
  return current.ok() && work(*d) ? LUTKERN_OK : cuda_failed(op);
}

// The kernels count in 32 bits.
lutkern_status check_sizes(const char* op, const char* what, const Weight& w) {
  if (w.rows <= INT32_MAX && w.stored_cols <= INT32_MAX && w.experts <= INT32_MAX) return LUTKERN_OK;
  return fail(LUTKERN_ERROR_VALUE, "%s: %s is %lld x %lld x %lld, expected sizes below 2^31 on %s", op, what,
              number(w.experts), number(w.rows), number(w.cols), device_name(w.device).text);
}

// The CPU's tiles of some rows of one expert, as blocks: chunks of them go to and from a device.
enum : int64_t { kChunkBytes = int64_t{8} << 20, kChunkRows = 32 /* whole tiles of either side */ };

Weight rows_of(const Weight& w, int64_t expert, int64_t first, int64_t rows) {
  const int64_t tile_rows = w.device ? kChunkRows : kChunkRows / 2;
  const uint8_t* data = w.row(expert, w.layout == Layout::tiles ? first / tile_rows : first);
  return weight_of(w.format, w.layout, w.device, 1, rows, w.cols, data);
}

// One side is tiles of the CPU.
lutkern_status repack_cpu_tiles(const Weight& from, const Weight& to, const lutkern_options* options) {
  const int64_t row_bytes = weight_of(from.format, Layout::blocks, 0, 1, 1, from.cols, nullptr).row_bytes;
  int64_t rows = kChunkBytes / row_bytes / kChunkRows * kChunkRows;
  if (rows < kChunkRows) rows = kChunkRows;
  if (rows > from.rows) rows = from.rows;
  uint8_t* memory = static_cast<uint8_t*>(malloc(static_cast<size_t>(rows * row_bytes)));
  if (!memory) return fail(LUTKERN_ERROR_MEMORY, "repack: no memory for scratch");
  lutkern_status status = LUTKERN_OK;
  for (int64_t e = 0; e < from.experts && !status; ++e) {
    for (int64_t first = 0; first < from.rows && !status; first += rows) {
      const int64_t n = from.rows - first < rows ? from.rows - first : rows;
      const Weight blocks = weight_of(from.format, Layout::blocks, 0, 1, n, from.cols, memory);
      const Weight source = rows_of(from, e, first, n);
      const Weight target = rows_of(to, e, first, n);
      if (from.device == 0) to_blocks(source, memory, runner_of(options));
      status = from.device == 0 ? device_repack(blocks, target, options) : device_repack(source, blocks, options);
      if (!status && to.device == 0) to_tiles(blocks, const_cast<uint8_t*>(target.data), runner_of(options));
    }
  }
  free(memory);
  return status;
}

// From another device. No stream orders the two: what the other one has to do is waited for, and the copy too.
bool copy_across(cuda::Device& d, void* to, const void* from, int32_t from_device, size_t nbytes, cuda::Stream stream) {
  const cuda::Device* source = cuda::open_device(from_device - LUTKERN_CUDA);
  if (!source) return false;
  {
    const cuda::Current current(*source);
    if (!current.ok() || !cuda::check(d.driver().cuCtxSynchronize(), "cuCtxSynchronize")) return false;
  }
  const cuda::Result copied =
      d.driver().cuMemcpyPeerAsync(address_of(to), d.context(), address_of(from), source->context(), nbytes, stream);
  return cuda::check(copied, "cuMemcpyPeerAsync") &&
         cuda::check(d.driver().cuStreamSynchronize(stream), "cuStreamSynchronize");
}

lutkern_status copy(const char* op, void* to, int32_t to_device, const void* from, int32_t from_device, size_t nbytes,
                    void* stream) {
  const auto rows = [nbytes](const void* data) { return cuda::HostRows{const_cast<void*>(data), 1, nbytes, nbytes}; };
  const cuda::Stream s = stream_from(stream);
  return on_device(op, to_device ? to_device : from_device, [&](cuda::Device& d) {
    if (to_device == from_device) {
      const cuda::Result copied = d.driver().cuMemcpyDtoDAsync_v2(address_of(to), address_of(from), nbytes, s);
      return cuda::check(copied, "cuMemcpyDtoDAsync_v2");
    }
    if (!cuda::check_not_captured(d, s)) return false;
    if (to_device && from_device) return copy_across(d, to, from, from_device, nbytes, s);
    cuda::Transfer transfer(d, s);
    if (from_device) return transfer.to_host(rows(to), address_of(from));
    return transfer.to_device(address_of(to), rows(from)) && transfer.finish();
  });
}

}  // namespace

DeviceName device_name(int32_t device) {
  DeviceName name{};
  if (device == 0) {
    snprintf(name.text, sizeof(name.text), "the CPU");
  } else if (is_cuda(device)) {
    snprintf(name.text, sizeof(name.text), "cuda:%d", device - LUTKERN_CUDA);
  } else {
    snprintf(name.text, sizeof(name.text), "device %d", device);
  }
  return name;
}

lutkern_status check_device(const char* op, int32_t device) {
  if (!is_cuda(device)) {
    return fail(LUTKERN_ERROR_VALUE, "%s: the device is %s, expected a CUDA device", op, device_name(device).text);
  }
  return cuda::open_device(device - LUTKERN_CUDA) ? LUTKERN_OK : cuda_failed(op);
}

int64_t device_tile_row_bytes(FormatId format, int64_t cols) { return cuda::tile_row_bytes(format, cols); }

lutkern_status device_dequantize(const Weight& w, Dtype dtype, void* out, const lutkern_options* options) {
  if (const lutkern_status status = check_sizes("dequantize", "the weight", w)) return status;
  return on_device("dequantize", w.device, [&](cuda::Device& d) {
    return cuda::dequantize(d, w, dtype, out, stream_from(stream_of(options)));
  });
}

lutkern_status device_multiply(const char* op, const Weight& w, const Matrix& x, int64_t row_begin, int64_t row_end,
                               float* out, const lutkern_options* options) {
  if (const lutkern_status status = check_sizes(op, "the weight", w)) return status;
  const cuda::ProductWork work{&w, x, exact_of(options), row_begin, row_end, out};
  return on_device(op, w.device,
                   [&](cuda::Device& d) { return cuda::multiply(d, work, stream_from(stream_of(options))); });
}

lutkern_status device_moe(const MoeWork& work, const lutkern_options* options) {
  const Weight* weights[] = {work.gate, work.up, work.down};
  const char* names[] = {"gate", "up", "down"};
  for (int i = 0; i < 3; ++i) {
    if (!weights[i]) continue;
    if (const lutkern_status status = check_sizes("moe", names[i], *weights[i])) return status;
  }
  return on_device("moe", work.up->device,
                   [&](cuda::Device& d) { return cuda::moe(d, work, stream_from(stream_of(options))); });
}

lutkern_status device_repack(const Weight& from, const Weight& to, const lutkern_options* options) {
  if (const lutkern_status status = check_sizes("repack", "the weight", from.device ? from : to)) return status;
  const Weight& on_cpu = from.device ? to : from;
  if (on_cpu.device == 0 && on_cpu.layout == Layout::tiles) return repack_cpu_tiles(from, to, options);
  if (from.device && to.device && from.device != to.device) {
    if (from.layout == to.layout) {
      return copy("repack", const_cast<uint8_t*>(to.data), to.device, from.data, from.device,
                  static_cast<size_t>(from.experts * from.expert_bytes), stream_of(options));
    }
    return fail(LUTKERN_ERROR_VALUE, "repack: the weight is in %s on %s, out is in %s on %s, expected one layout",
                layout_name(from.layout), device_name(from.device).text, layout_name(to.layout),
                device_name(to.device).text);
  }
  return on_device("repack", from.device ? from.device : to.device,
                   [&](cuda::Device& d) { return cuda::repack(d, from, to, stream_from(stream_of(options))); });
}

}  // namespace lutkern

using namespace lutkern;

namespace {

// Gives something back: nothing to do where the driver has taken it, or must not be called.
template <class Work>
lutkern_status give_back(const char* op, int32_t device, const void* what, Work work) {
  if (!what || cuda::is_forked()) return LUTKERN_OK;
  cuda::Device* d = is_cuda(device) ? cuda::open_device(device - LUTKERN_CUDA) : nullptr;
  if (!d) return check_device(op, device);
  const cuda::Current current(*d);
  if ((current.ok() && work(*d)) || cuda::failure().result == cuda::kDeinitialized) return LUTKERN_OK;
  return cuda_failed(op);
}

lutkern_status null_out(const char* op) { return fail(LUTKERN_ERROR_VALUE, "%s: out is null", op); }

lutkern_status no_stream(const char* op) {
  return fail(LUTKERN_ERROR_VALUE, "%s: the stream is null, expected one of lutkern_stream_create", op);
}

lutkern_status null_handle(const char* op, const char* what) {
  return fail(LUTKERN_ERROR_VALUE, "%s: the %s is null", op, what);
}

}  // namespace

extern "C" {

int32_t lutkern_device_count(lutkern_device_kind kind) { return kind == LUTKERN_CUDA ? cuda::device_count() : 0; }

const char* lutkern_device_absent(lutkern_device_kind kind) {
  if (kind == LUTKERN_CUDA) return cuda::no_devices();
  return kind == LUTKERN_CPU ? nullptr : "this build has no such devices";
}

int32_t lutkern_driver_version(lutkern_device_kind kind) {
  const cuda::Driver* driver = kind == LUTKERN_CUDA ? cuda::driver() : nullptr;
  int version = 0;
  return driver && driver->cuDriverGetVersion(&version) == cuda::kSuccess ? version : 0;
}

const char* lutkern_device_image(lutkern_device_kind kind, int64_t* nbytes) {
  const bool real = kind == LUTKERN_CUDA && cuda::kImageReal;
  if (nbytes) *nbytes = real ? static_cast<int64_t>(cuda::kImageBytes) : 0;
  return real ? cuda::kImageArchitectures : nullptr;
}

lutkern_status lutkern_get_device_info(int32_t device, lutkern_device_info* out) {
  if (!out) return null_out("device_info");
  return on_device("device_info", device, [&](cuda::Device& d) {
    const cuda::Attributes& a = d.attributes();
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

int64_t lutkern_device_tensor_bytes(int32_t device, int32_t ggml_type, lutkern_layout layout, int64_t experts,
                                    int64_t rows, int64_t cols) {
  FormatId id{};
  if (device == 0) return lutkern_tensor_bytes(ggml_type, layout, experts, rows, cols);
  if (!is_cuda(device) || !find_type(ggml_type, &id) || (layout != LUTKERN_BLOCKS && layout != LUTKERN_TILES) ||
      check_shape("tensor", experts, rows, cols) != LUTKERN_OK) {
    return 0;
  }
  return experts * weight_of(id, static_cast<Layout>(layout), device, experts, rows, cols, nullptr).expert_bytes;
}

lutkern_status lutkern_device_tensor_init(lutkern_tensor* out, int32_t device, int32_t ggml_type, lutkern_layout layout,
                                          int64_t experts, int64_t rows, int64_t cols, const void* data,
                                          size_t nbytes) {
  if (!out) return null_out("tensor");
  const lutkern_tensor candidate{ggml_type, layout, experts, rows, cols, data, nbytes, device};
  Weight w{};
  if (const lutkern_status status = check_weight("tensor", "the weight", &candidate, &w)) return status;
  *out = candidate;
  return LUTKERN_OK;
}

int32_t lutkern_device_has_tiles(int32_t device, int32_t ggml_type) {
  FormatId id{};
  return is_cuda(device) && find_type(ggml_type, &id) && cuda::has_tiles(id) ? 1 : 0;
}

lutkern_status lutkern_device_alloc(int32_t device, size_t nbytes, void* stream, void** out) {
  if (!out) return null_out("device_alloc");
  if (nbytes == 0) return fail(LUTKERN_ERROR_VALUE, "device_alloc: 0 bytes, expected at least 1");
  return on_device("device_alloc", device, [&](cuda::Device& d) {
    cuda::Address memory = 0;
    if (!d.allocate(nbytes, stream_from(stream), &memory)) return false;
    *out = reinterpret_cast<void*>(static_cast<uintptr_t>(memory));
    return true;
  });
}

lutkern_status lutkern_device_free(int32_t device, void* data, void* stream) {
  return give_back("device_free", device, data, [&](cuda::Device& d) {
    if (stream == LUTKERN_ALL_STREAMS) return d.release_when_idle(address_of(data));
    return d.release_later(address_of(data), stream_from(stream));
  });
}

lutkern_status lutkern_device_wrap(int32_t device, const void* data, size_t nbytes, void** out) {
  if (!data || !out) return fail(LUTKERN_ERROR_VALUE, "device_wrap: data or out is null");
  if (nbytes == 0) return fail(LUTKERN_ERROR_VALUE, "device_wrap: 0 bytes, expected at least 1");
  return fail(LUTKERN_ERROR_DEVICE, "device_wrap: %s has memory of its own, expected a Metal device",
              device_name(device).text);
}

lutkern_status lutkern_device_copy(void* to, int32_t to_device, const void* from, int32_t from_device, size_t nbytes,
                                   void* stream) {
  if (nbytes == 0) return LUTKERN_OK;
  if (!to || !from) return fail(LUTKERN_ERROR_VALUE, "device_copy: to or from is null");
  if (to_device == 0 && from_device == 0) {
    memmove(to, from, nbytes);
    return LUTKERN_OK;
  }
  if (to_device && from_device) {
    if (const lutkern_status status = check_device("device_copy", from_device)) return status;
  }
  return copy("device_copy", to, to_device, from, from_device, nbytes, stream);
}

lutkern_status lutkern_device_synchronize(int32_t device, void* stream) {
  return on_device("synchronize", device, [&](cuda::Device& d) {
    if (stream == LUTKERN_ALL_STREAMS) return cuda::check(d.driver().cuCtxSynchronize(), "cuCtxSynchronize");
    return cuda::check(d.driver().cuStreamSynchronize(stream_from(stream)), "cuStreamSynchronize");
  });
}

lutkern_status lutkern_stream_capturing(int32_t device, void* stream, int32_t* out) {
  if (!out) return null_out("stream_capturing");
  return on_device("stream_capturing", device, [&](cuda::Device& d) {
    bool captured = false;
    if (!d.capturing(stream_from(stream), &captured)) return false;
    *out = captured ? 1 : 0;
    return true;
  });
}

lutkern_status lutkern_stream_create(int32_t device, void** out) {
  if (!out) return null_out("stream_create");
  return on_device("stream_create", device, [&](cuda::Device& d) {
    cuda::Stream stream = nullptr;
    if (!cuda::check(d.driver().cuStreamCreate(&stream, cuda::kStreamNonBlocking), "cuStreamCreate")) return false;
    *out = stream;
    return true;
  });
}

lutkern_status lutkern_stream_destroy(int32_t device, void* stream) {
  return give_back("stream_destroy", device, stream, [&](cuda::Device& d) {
    return cuda::check(d.driver().cuStreamDestroy_v2(stream_from(stream)), "cuStreamDestroy_v2");
  });
}

lutkern_status lutkern_graph_begin(int32_t device, void* stream) {
  if (!stream) return no_stream("graph_begin");
  return on_device("graph_begin", device, [&](cuda::Device& d) {
    const cuda::Result begun = d.driver().cuStreamBeginCapture_v2(stream_from(stream), cuda::kCaptureThreadLocal);
    return cuda::check(begun, "cuStreamBeginCapture_v2");
  });
}

lutkern_status lutkern_graph_end(int32_t device, void* stream, void** graph) {
  if (!graph) return null_out("graph_end");
  if (!stream) return no_stream("graph_end");
  return on_device("graph_end", device, [&](cuda::Device& d) {
    cuda::Graph drawn = nullptr;
    if (!cuda::check(d.driver().cuStreamEndCapture(stream_from(stream), &drawn), "cuStreamEndCapture")) return false;
    cuda::GraphExec ready = nullptr;
    const cuda::Result made = d.driver().cuGraphInstantiateWithFlags(&ready, drawn, cuda::kAutoFreeOnLaunch);
    const bool ok = cuda::check(made, "cuGraphInstantiateWithFlags");
    d.driver().cuGraphDestroy(drawn);
    if (ok) *graph = ready;
    return ok;
  });
}

lutkern_status lutkern_graph_launch(int32_t device, void* graph, void* stream) {
  if (!graph) return null_handle("graph_launch", "graph");
  return on_device("graph_launch", device, [&](cuda::Device& d) {
    const cuda::Result launched = d.driver().cuGraphLaunch(static_cast<cuda::GraphExec>(graph), stream_from(stream));
    return cuda::check(launched, "cuGraphLaunch");
  });
}

lutkern_status lutkern_graph_destroy(int32_t device, void* graph) {
  return give_back("graph_destroy", device, graph, [&](cuda::Device& d) {
    return cuda::check(d.driver().cuGraphExecDestroy(static_cast<cuda::GraphExec>(graph)), "cuGraphExecDestroy");
  });
}

lutkern_status lutkern_event_create(int32_t device, void** out) {
  if (!out) return null_out("event_create");
  return on_device("event_create", device, [&](cuda::Device& d) {
    cuda::Event event = nullptr;
    if (!cuda::check(d.driver().cuEventCreate(&event, 0), "cuEventCreate")) return false;
    *out = event;
    return true;
  });
}

lutkern_status lutkern_event_record(int32_t device, void* event, void* stream) {
  if (!event) return null_handle("event_record", "event");
  return on_device("event_record", device, [&](cuda::Device& d) {
    const cuda::Result recorded = d.driver().cuEventRecord(static_cast<cuda::Event>(event), stream_from(stream));
    return cuda::check(recorded, "cuEventRecord");
  });
}

lutkern_status lutkern_event_wait(int32_t device, void* event, void* stream) {
  if (!event) return null_handle("event_wait", "event");
  return on_device("event_wait", device, [&](cuda::Device& d) {
    const cuda::Result waits = d.driver().cuStreamWaitEvent(stream_from(stream), static_cast<cuda::Event>(event), 0);
    return cuda::check(waits, "cuStreamWaitEvent");
  });
}

lutkern_status lutkern_event_elapsed(int32_t device, void* begin, void* end, float* milliseconds) {
  if (!milliseconds) return null_out("event_elapsed");
  if (!begin || !end) return null_handle("event_elapsed", "event");
  return on_device("event_elapsed", device, [&](cuda::Device& d) {
    const cuda::Event last = static_cast<cuda::Event>(end);
    if (!cuda::check(d.driver().cuEventSynchronize(last), "cuEventSynchronize")) return false;
    const cuda::Result told = d.driver().cuEventElapsedTime(milliseconds, static_cast<cuda::Event>(begin), last);
    return cuda::check(told, "cuEventElapsedTime");
  });
}

lutkern_status lutkern_event_destroy(int32_t device, void* event) {
  return give_back("event_destroy", device, event, [&](cuda::Device& d) {
    return cuda::check(d.driver().cuEventDestroy_v2(static_cast<cuda::Event>(event)), "cuEventDestroy_v2");
  });
}

const char* lutkern_device_kernel(int32_t device, int32_t ggml_type, lutkern_operation operation, lutkern_layout layout,
                                  int64_t tokens) {
  FormatId id{};
  if (!is_cuda(device) || !find_type(ggml_type, &id) || tokens < 1 || tokens > INT32_MAX) return nullptr;
  if (layout != LUTKERN_BLOCKS && (layout != LUTKERN_TILES || !cuda::has_tiles(id))) return nullptr;
  const cuda::Device* d = cuda::open_device(device - LUTKERN_CUDA);
  if (!d) return nullptr;
  const Layout l = static_cast<Layout>(layout);
  cuda::KernelId kernel{};
  switch (operation) {
    case LUTKERN_DEQUANTIZE:
      kernel = cuda::dequantize_kernel(id, l);
      break;
    case LUTKERN_MATVEC:
      kernel = cuda::product_kernel(*d, id, l, 1);
      break;
    case LUTKERN_MATMUL:
      kernel = cuda::product_kernel(*d, id, l, tokens);
      break;
    case LUTKERN_MOE:
      kernel = cuda::moe_kernel(*d, id, l, tokens);
      break;
    default:
      return nullptr;
  }
  return cuda::kKernelName[static_cast<int>(kernel)];
}

}  // extern "C"
