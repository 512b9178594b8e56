// The boundary of the devices: checks, error texts, and the way to the backend of the device.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boundary.h"
#include "gpu/tile.h"
#include "tiles/repack.h"

namespace lutkern {

namespace {

const Backend* const kBackends[] = {&kCudaBackend, &kMetalBackend};

const Backend* backend_of_kind(lutkern_device_kind kind) {
  for (const Backend* b : kBackends) {
    if (b->kind == kind) return b;
  }
  return nullptr;
}

int index_of(int32_t device) { return device & 0xff; }

lutkern_status failed(const char* op, const Backend& b) {
  const Reason why = b.reason();
  return fail(why.status, "%s: %s", op, why.text);
}

lutkern_status no_device(const char* op, int32_t device) {
  return fail(LUTKERN_ERROR_VALUE, "%s: the device is %s, expected a CUDA or Metal device", op,
              device_name(device).text);
}

// Calls a function of the device's backend.
template <class... Parameters, class... Arguments>
lutkern_status on_device(const char* op, int32_t device, bool (*Backend::*fn)(int, Parameters...),
                         Arguments&&... arguments) {
  const Backend* b = backend_of(device);
  if (!b) return no_device(op, device);
  return (b->*fn)(index_of(device), arguments...) ? LUTKERN_OK : failed(op, *b);
}

// The same for what only one kind of devices can do. has: "no graphs"
template <class... Parameters, class... Arguments>
lutkern_status if_able(const char* op, int32_t device, const char* has, const char* expected,
                       bool (*Backend::*fn)(int, Parameters...), Arguments&&... arguments) {
  const Backend* b = backend_of(device);
  if (!b || b->*fn) return on_device(op, device, fn, arguments...);
  return fail(LUTKERN_ERROR_DEVICE, "%s: %s has %s, expected a %s device", op, device_name(device).text, has, expected);
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

}  // namespace

const Backend* backend_of(int32_t device) { return backend_of_kind(static_cast<lutkern_device_kind>(device & ~0xff)); }

DeviceName device_name(int32_t device) {
  DeviceName name{};
  const Backend* b = backend_of(device);
  if (device == 0) {
    snprintf(name.text, sizeof(name.text), "the CPU");
  } else if (b) {
    snprintf(name.text, sizeof(name.text), "%s:%d", b->name, index_of(device));
  } else {
    snprintf(name.text, sizeof(name.text), "device %d", device);
  }
  return name;
}

lutkern_status check_device(const char* op, int32_t device) { return on_device(op, device, &Backend::open); }

int64_t device_tile_row_bytes(FormatId format, int64_t cols) {
  return (cols + gpu::kTileCols - 1) / gpu::kTileCols * gpu::tile_bytes(format);
}

lutkern_status device_dequantize(const Weight& w, Dtype dtype, void* out, const lutkern_options* options) {
  if (const lutkern_status status = check_sizes("dequantize", "the weight", w)) return status;
  return on_device("dequantize", w.device, &Backend::dequantize, w, dtype, out, stream_of(options));
}

lutkern_status device_multiply(const char* op, const Weight& w, const Matrix& x, int64_t row_begin, int64_t row_end,
                               float* out, const lutkern_options* options) {
  if (const lutkern_status status = check_sizes(op, "the weight", w)) return status;
  const ProductWork work{&w, x, exact_of(options), row_begin, row_end, out};
  return on_device(op, w.device, &Backend::multiply, work, stream_of(options));
}

lutkern_status device_moe(const MoeWork& work, const lutkern_options* options) {
  const Weight* weights[] = {work.gate, work.up, work.down};
  const char* names[] = {"gate", "up", "down"};
  for (int i = 0; i < 3; ++i) {
    if (!weights[i]) continue;
    if (const lutkern_status status = check_sizes("moe", names[i], *weights[i])) return status;
  }
  return on_device("moe", work.up->device, &Backend::moe, work, stream_of(options));
}

namespace {

lutkern_status copy(const char* op, const CopyWork& work, void* stream) {
  const Backend* to = backend_of(work.to_device);
  if (to && work.from_device) {
    if (const lutkern_status status = check_device(op, work.from_device)) return status;
    if (to != backend_of(work.from_device)) {
      return fail(LUTKERN_ERROR_VALUE, "%s: from %s to %s, expected devices of one kind", op,
                  device_name(work.from_device).text, device_name(work.to_device).text);
    }
  }
  return on_device(op, work.to_device ? work.to_device : work.from_device, &Backend::copy, work, stream);
}

}  // namespace

lutkern_status device_repack(const Weight& from, const Weight& to, const lutkern_options* options) {
  if (const lutkern_status status = check_sizes("repack", "the weight", from.device ? from : to)) return status;
  const Weight& on_cpu = from.device ? to : from;
  if (on_cpu.device == 0 && on_cpu.layout == Layout::tiles) return repack_cpu_tiles(from, to, options);
  if (from.device && to.device && from.device != to.device) {
    if (from.layout == to.layout) {
      const CopyWork work{const_cast<uint8_t*>(to.data), to.device, from.data, from.device,
                          static_cast<size_t>(from.experts * from.expert_bytes)};
      return copy("repack", work, stream_of(options));
    }
    return fail(LUTKERN_ERROR_VALUE, "repack: the weight is in %s on %s, out is in %s on %s, expected one layout",
                layout_name(from.layout), device_name(from.device).text, layout_name(to.layout),
                device_name(to.device).text);
  }
  return on_device("repack", from.device ? from.device : to.device, &Backend::repack, from, to, runner_of(options),
                   stream_of(options));
}

}  // namespace lutkern

using namespace lutkern;

namespace {

// Gives something back.
lutkern_status give_back(const char* op, int32_t device, bool (*Backend::*fn)(int, void*), void* what) {
  return what ? on_device(op, device, fn, what) : LUTKERN_OK;
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

int32_t lutkern_device_count(lutkern_device_kind kind) {
  const Backend* b = backend_of_kind(kind);
  return b ? b->count() : 0;
}

const char* lutkern_device_absent(lutkern_device_kind kind) {
  if (kind == LUTKERN_CPU) return nullptr;
  const Backend* b = backend_of_kind(kind);
  return b ? b->absent() : "this build has no such devices";
}

int32_t lutkern_driver_version(lutkern_device_kind kind) {
  const Backend* b = backend_of_kind(kind);
  return b ? b->driver_version() : 0;
}

const char* lutkern_device_image(lutkern_device_kind kind, int64_t* nbytes) {
  const Backend* b = backend_of_kind(kind);
  int64_t bytes = 0;
  const char* made_for = b ? b->image(&bytes) : nullptr;
  if (nbytes) *nbytes = bytes;
  return made_for;
}

lutkern_status lutkern_get_device_info(int32_t device, lutkern_device_info* out) {
  return out ? on_device("device_info", device, &Backend::info, out) : null_out("device_info");
}

int64_t lutkern_device_tensor_bytes(int32_t device, int32_t ggml_type, lutkern_layout layout, int64_t experts,
                                    int64_t rows, int64_t cols) {
  FormatId id{};
  if (device == 0) return lutkern_tensor_bytes(ggml_type, layout, experts, rows, cols);
  if (!backend_of(device) || !find_type(ggml_type, &id) || (layout != LUTKERN_BLOCKS && layout != LUTKERN_TILES) ||
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
  return backend_of(device) && find_type(ggml_type, &id) && gpu::tile_bytes(id) ? 1 : 0;
}

lutkern_status lutkern_device_alloc(int32_t device, size_t nbytes, void* stream, void** out) {
  if (!out) return null_out("device_alloc");
  if (nbytes == 0) return fail(LUTKERN_ERROR_VALUE, "device_alloc: 0 bytes, expected at least 1");
  return on_device("device_alloc", device, &Backend::allocate, nbytes, stream, out);
}

lutkern_status lutkern_device_free(int32_t device, void* data, void* stream) {
  return data ? on_device("device_free", device, &Backend::release, data, stream) : LUTKERN_OK;
}

lutkern_status lutkern_device_wrap(int32_t device, const void* data, size_t nbytes, void** out) {
  if (!data || !out) return fail(LUTKERN_ERROR_VALUE, "device_wrap: data or out is null");
  if (nbytes == 0) return fail(LUTKERN_ERROR_VALUE, "device_wrap: 0 bytes, expected at least 1");
  return if_able("device_wrap", device, "memory of its own", "Metal", &Backend::wrap, data, nbytes, out);
}

lutkern_status lutkern_device_copy(void* to, int32_t to_device, const void* from, int32_t from_device, size_t nbytes,
                                   void* stream) {
  if (nbytes == 0) return LUTKERN_OK;
  if (!to || !from) return fail(LUTKERN_ERROR_VALUE, "device_copy: to or from is null");
  if (to_device == 0 && from_device == 0) {
    memmove(to, from, nbytes);
    return LUTKERN_OK;
  }
  return copy("device_copy", CopyWork{to, to_device, from, from_device, nbytes}, stream);
}

lutkern_status lutkern_device_synchronize(int32_t device, void* stream) {
  return on_device("synchronize", device, &Backend::synchronize, stream);
}

lutkern_status lutkern_stream_capturing(int32_t device, void* stream, int32_t* out) {
  if (!out) return null_out("stream_capturing");
  bool captured = false;
  const lutkern_status status = on_device("stream_capturing", device, &Backend::capturing, stream, &captured);
  if (!status) *out = captured ? 1 : 0;
  return status;
}

lutkern_status lutkern_stream_create(int32_t device, void** out) {
  return out ? on_device("stream_create", device, &Backend::stream_create, out) : null_out("stream_create");
}

lutkern_status lutkern_stream_destroy(int32_t device, void* stream) {
  return give_back("stream_destroy", device, &Backend::stream_destroy, stream);
}

lutkern_status lutkern_graph_begin(int32_t device, void* stream) {
  if (!stream) return no_stream("graph_begin");
  return if_able("graph_begin", device, "no graphs", "CUDA", &Backend::graph_begin, stream);
}

lutkern_status lutkern_graph_end(int32_t device, void* stream, void** graph) {
  if (!graph) return null_out("graph_end");
  if (!stream) return no_stream("graph_end");
  return if_able("graph_end", device, "no graphs", "CUDA", &Backend::graph_end, stream, graph);
}

lutkern_status lutkern_graph_launch(int32_t device, void* graph, void* stream) {
  if (!graph) return null_handle("graph_launch", "graph");
  return if_able("graph_launch", device, "no graphs", "CUDA", &Backend::graph_launch, graph, stream);
}

lutkern_status lutkern_graph_destroy(int32_t device, void* graph) {
  return graph ? if_able("graph_destroy", device, "no graphs", "CUDA", &Backend::graph_destroy, graph) : LUTKERN_OK;
}

lutkern_status lutkern_event_create(int32_t device, void** out) {
  return out ? on_device("event_create", device, &Backend::event_create, out) : null_out("event_create");
}

lutkern_status lutkern_event_record(int32_t device, void* event, void* stream) {
  if (!event) return null_handle("event_record", "event");
  return on_device("event_record", device, &Backend::event_record, event, stream);
}

lutkern_status lutkern_event_wait(int32_t device, void* event, void* stream) {
  if (!event) return null_handle("event_wait", "event");
  return on_device("event_wait", device, &Backend::event_wait, event, stream);
}

lutkern_status lutkern_event_elapsed(int32_t device, void* begin, void* end, float* milliseconds) {
  if (!milliseconds) return null_out("event_elapsed");
  if (!begin || !end) return null_handle("event_elapsed", "event");
  return on_device("event_elapsed", device, &Backend::event_elapsed, begin, end, milliseconds);
}

lutkern_status lutkern_event_destroy(int32_t device, void* event) {
  return give_back("event_destroy", device, &Backend::event_destroy, event);
}

const char* lutkern_device_kernel(int32_t device, int32_t ggml_type, lutkern_operation operation, lutkern_layout layout,
                                  int64_t tokens) {
  FormatId id{};
  const Backend* b = backend_of(device);
  if (!b || !find_type(ggml_type, &id) || tokens < 1 || tokens > INT32_MAX) return nullptr;
  if (layout != LUTKERN_BLOCKS && (layout != LUTKERN_TILES || !gpu::tile_bytes(id))) return nullptr;
  return b->kernel(index_of(device), id, operation, static_cast<Layout>(layout), tokens);
}

}  // extern "C"
