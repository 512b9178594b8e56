// libcuda_fake.so: the functions of the CUDA driver that csrc/cuda calls, strict about everything that they are given,
// on machine.h. LUTKERN_LIBCUDA names it; it takes any module image, and runs the kernels of liblutkern_sim.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>

#include "cuda/plans.h"
#include "entry.h"
#include "fake_cuda.h"

using namespace fake;

namespace {

std::recursive_mutex& lock() {
  static auto* m = new std::recursive_mutex;
  return *m;
}

pid_t g_process = 0;  // that called cuInit
bool g_ended = false;
int g_calls = 0;
char g_failed_call[64] = "";
thread_local std::vector<ContextHandle*> t_current;

}  // namespace

namespace fake {

Entry::Entry(const char* name, Needs needs, bool gives_back) : hold_(lock()), name_(name) {
  if (g_process && getpid() != g_process) {
    fprintf(stderr, "fake cuda: %s: called in the child of a process that used CUDA\n", name);
    abort();
  }
  if (g_ended || (needs != kNothing && !g_process)) {
    result_ = g_ended ? kDeinitialized : kNotInitialized;
    refused_ = true;
    return;
  }
  if (needs == kContextCurrent && t_current.empty()) {
    result_ = no(kInvalidContext, "no context is current");
    refused_ = true;
    return;
  }
  if (needs == kContextCurrent) wander();
  if (++g_calls == settings().fail) {
    snprintf(g_failed_call, sizeof(g_failed_call), "%s", name);
    result_ = settings().fail_with;
  } else if (needs == kContextCurrent) {
    result_ = sticky();
  }
  refused_ = result_ != kSuccess && !gives_back;
}

Result Entry::no(Result result, const char* text) const {
  fprintf(stderr, "fake cuda: %s: %s\n", name_, text);
  return result;
}

ContextHandle* current() { return t_current.back(); }

bool is_known(ContextHandle* c) {
  for (const auto& [device, known] : handles().contexts) {
    if (known.get() == c && c->retained > 0) return true;
  }
  return false;
}

// 0 and 1 are the default stream, 2 is that of the thread; null: the stream does not exist or is of another context.
StreamHandle* stream_of(Stream handle) {
  const uintptr_t number = reinterpret_cast<uintptr_t>(handle);
  if (number <= 1) return current()->legacy;
  if (number == 2) return current()->per_thread;
  if (handles().streams.count(handle) == 0 || handle->context != current()) return nullptr;
  return handle;
}

// A call that must not be made while this thread captures; it spoils the capture.
bool spoils_capture() {
  bool spoilt = false;
  for (const CapturePtr& c : handles().captures) {
    if (c->mode == 0 || (c->mode == 1 && c->thread == std::this_thread::get_id())) c->invalid = spoilt = true;
  }
  return spoilt;
}

StreamHandle* new_stream(ContextHandle* context, bool blocking) {
  auto* s = new StreamHandle{context, blocking, {}, nullptr, nullptr};
  handles().streams.insert(s);
  return s;
}

}  // namespace fake

namespace {

bool inside_pinned(const void* p, size_t bytes) {
  for (const auto& [begin, n] : handles().pinned_bytes) {
    const uint8_t* b = static_cast<const uint8_t*>(begin);
    if (p >= b && static_cast<const uint8_t*>(p) + bytes <= b + n) return true;
  }
  return false;
}

// Work that reads or writes a range of an array: it must be alive when the work runs.
bool alive(const char* call, Address begin, size_t bytes) {
  const Array* a = find_array(begin, bytes);
  if (a && a->live) return true;
  fault(kIllegalAddress, std::string(call) + ": the array is not there when the work runs");
  return false;
}

void* host_pointer(Address a) { return reinterpret_cast<void*>(static_cast<uintptr_t>(a)); }

bool is_range(const Entry& e, Address begin, size_t bytes) {
  const Array* a = find_array(begin, bytes);
  if (a && !a->doomed) return true;
  e.no(kInvalidValue, is_device_address(host_pointer(begin)) ? "the range is not inside of an array of the device"
                                                             : "the address is not one of the device");
  return false;
}

void end_process() {
  const std::lock_guard<std::recursive_mutex> hold(lock());
  if (!g_process || getpid() != g_process) return;
  g_ended = true;
  if (settings().report.empty()) return;
  FILE* file = fopen(settings().report.c_str(), "w");
  if (!file) return;
  fprintf(file, "{\"calls\": %d, \"fault\": \"%s\"", g_calls, fault_text().c_str());
  for (const char* what : {"arrays", "streams", "events", "graphs"}) {
    fprintf(file, ", \"%s\": %d", what, fake_cuda_alive(what));
  }
  fprintf(file, "}\n");
  fclose(file);
}

struct ErrorText {
  Result result;
  const char* name;
  const char* text;
};
constexpr ErrorText kErrors[] = {
    {kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {kDeinitialized, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {kNoDevice, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {kNoBinary, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {kNotFound, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {kNotReady, "CUDA_ERROR_NOT_READY", "device not ready"},
    {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {kNotSupported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {kCaptureInvalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {kCaptureUnmatched, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture was not initiated in this stream"},
    {kCaptureUnjoined, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capture sequence contains a fork that was not joined"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"}};

const ErrorText* error_text(Result result) {
  for (const ErrorText& e : kErrors) {
    if (e.result == result) return &e;
  }
  return nullptr;
}

}  // namespace

// ---- what tests ask ----

FAKE_API int fake_cuda_alive(const char* what) {
  const std::lock_guard<std::recursive_mutex> hold(lock());
  const std::string name = what;
  if (name == "arrays") return static_cast<int>(live_arrays().size());
  if (name == "events") return static_cast<int>(handles().events.size());
  if (name == "graphs") return static_cast<int>(handles().graphs.size() + handles().execs.size());
  if (name == "pinned") return static_cast<int>(handles().pinned.size());
  if (name == "contexts") return static_cast<int>(t_current.size());
  if (name == "streams") {
    int n = 0;
    for (const StreamHandle* s : handles().streams) n += s != s->context->legacy && s != s->context->per_thread;
    return n;
  }
  return -1;
}

FAKE_API int fake_cuda_calls(void) { return g_calls; }
FAKE_API const char* fake_cuda_failed_call(void) { return g_failed_call; }
FAKE_API const char* fake_cuda_fault(void) { return fault_text().c_str(); }

FAKE_API void fake_cuda_finish(void) {
  const std::lock_guard<std::recursive_mutex> hold(lock());
  for (int i = 0; i < settings().devices; ++i) complete_device(i);
}

// ---- start, errors, devices ----

FAKE_API Result cuInit(unsigned flags) {
  const Entry e("cuInit", kNothing);
  if (e.refused()) return e.result();
  if (flags != 0) return e.no(kInvalidValue, "flags are not 0");
  usleep(1000 * static_cast<unsigned>(settings().slow));
  if (settings().init) return settings().init;
  if (settings().devices == 0) return kNoDevice;
  if (!g_process) atexit(end_process);
  g_process = getpid();
  return kSuccess;
}

FAKE_API Result cuDriverGetVersion(int* version) {
  const Entry e("cuDriverGetVersion", kNothing);
  if (e.refused()) return e.result();
  *version = settings().version;
  return kSuccess;
}

FAKE_API Result cuGetErrorName(Result result, const char** name) {
  const ErrorText* t = error_text(result);
  *name = t ? t->name : nullptr;
  return t ? kSuccess : kInvalidValue;
}

FAKE_API Result cuGetErrorString(Result result, const char** text) {
  const ErrorText* t = error_text(result);
  *text = t ? t->text : nullptr;
  return t ? kSuccess : kInvalidValue;
}

FAKE_API Result cuDeviceGetCount(int* count) {
  const Entry e("cuDeviceGetCount", kInit);
  if (e.refused()) return e.result();
  *count = settings().devices;
  return kSuccess;
}

FAKE_API Result cuDeviceGet(int* device, int ordinal) {
  const Entry e("cuDeviceGet", kInit);
  if (e.refused()) return e.result();
  if (ordinal < 0 || ordinal >= settings().devices) return e.no(kInvalidDevice, "no such device");
  *device = ordinal;
  return kSuccess;
}

FAKE_API Result cuDeviceGetName(char* name, int length, int device) {
  const Entry e("cuDeviceGetName", kInit);
  if (e.refused()) return e.result();
  if (device < 0 || device >= settings().devices) return e.no(kInvalidDevice, "no such device");
  snprintf(name, static_cast<size_t>(length), "Simulated device %d", device);
  return kSuccess;
}

FAKE_API Result cuDeviceTotalMem_v2(size_t* bytes, int device) {
  const Entry e("cuDeviceTotalMem_v2", kInit);
  if (e.refused()) return e.result();
  if (device < 0 || device >= settings().devices) return e.no(kInvalidDevice, "no such device");
  *bytes = settings().memory;
  return kSuccess;
}

FAKE_API Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  const Entry e("cuDeviceGetAttribute", kInit);
  if (e.refused()) return e.result();
  if (device < 0 || device >= settings().devices) return e.no(kInvalidDevice, "no such device");
  const std::map<int, int> values = {{kProcessors, 4},
                                     {kCacheBytes, 1 << 20},
                                     {kCapabilityMajor, settings().capability / 10},
                                     {kCapabilityMinor, settings().capability % 10},
                                     {kSharedMemoryOptIn, settings().shared},
                                     {kMemoryPoolsSupported, settings().pools}};
  const auto found = values.find(attribute);
  if (found == values.end()) return e.no(kInvalidValue, "an attribute that the fake does not know");
  *value = found->second;
  return kSuccess;
}

// ---- contexts, modules ----

FAKE_API Result cuDevicePrimaryCtxRetain(Context* context, int device) {
  const Entry e("cuDevicePrimaryCtxRetain", kInit);
  if (e.refused()) return e.result();
  if (device < 0 || device >= settings().devices) return e.no(kInvalidDevice, "no such device");
  std::unique_ptr<ContextHandle>& c = handles().contexts[device];
  if (!c) {
    c = std::make_unique<ContextHandle>();
    c->device = device;
    c->legacy = new_stream(c.get(), true);
    c->per_thread = new_stream(c.get(), true);
  }
  ++c->retained;
  *context = c.get();
  return kSuccess;
}

FAKE_API Result cuDevicePrimaryCtxRelease_v2(int device) {
  const Entry e("cuDevicePrimaryCtxRelease_v2", kInit, true);
  if (e.refused()) return e.result();
  const auto found = handles().contexts.find(device);
  if (found == handles().contexts.end() || found->second->retained == 0) return e.no(kInvalidContext, "not retained");
  --found->second->retained;
  return e.result();
}

FAKE_API Result cuCtxPushCurrent_v2(Context context) {
  const Entry e("cuCtxPushCurrent_v2", kInit);
  if (e.refused()) return e.result();
  if (!is_known(context)) return e.no(kInvalidContext, "not a context");
  t_current.push_back(context);
  return kSuccess;
}

FAKE_API Result cuCtxPopCurrent_v2(Context* context) {
  const Entry e("cuCtxPopCurrent_v2", kInit, true);
  if (e.refused()) return e.result();
  if (t_current.empty()) return e.no(kInvalidContext, "no context is current");
  *context = t_current.back();
  t_current.pop_back();
  return e.result();
}

FAKE_API Result cuCtxSynchronize(void) {
  const Entry e("cuCtxSynchronize", kContextCurrent);
  if (e.refused()) return e.result();
  if (spoils_capture()) return e.no(kCaptureUnsupported, "a stream is captured");
  complete_device(current()->device);
  return sticky();
}

FAKE_API Result cuModuleLoadData(Module* module, const void* image) {
  const Entry e("cuModuleLoadData", kContextCurrent);
  if (e.refused()) return e.result();
  if (!image) return e.no(kInvalidImage, "no image");
  static int count = 0;
  if (count++ < settings().refuse) return kNoBinary;
  *module = new ModuleHandle{current()};
  handles().modules.insert(*module);
  return kSuccess;
}

FAKE_API Result cuModuleUnload(Module module) {
  const Entry e("cuModuleUnload", kContextCurrent, true);
  if (e.refused()) return e.result();
  if (handles().modules.erase(module) == 0) return e.no(kInvalidHandle, "not a module");
  delete module;
  return e.result();
}

FAKE_API Result cuModuleGetFunction(Function* function, Module module, const char* name) {
  const Entry e("cuModuleGetFunction", kContextCurrent);
  if (e.refused()) return e.result();
  if (handles().modules.count(module) == 0) return e.no(kInvalidHandle, "not a module");
  for (int i = 0; i < static_cast<int>(KernelId::count); ++i) {
    if (strcmp(kKernelName[i], name) != 0) continue;
    *function = new FunctionHandle{module, i};
    handles().functions.insert(*function);
    return kSuccess;
  }
  return e.no(kNotFound, name);
}

FAKE_API Result cuFuncSetAttribute(Function function, int attribute, int value) {
  const Entry e("cuFuncSetAttribute", kContextCurrent);
  if (e.refused()) return e.result();
  if (handles().functions.count(function) == 0) return e.no(kInvalidHandle, "not a function");
  if (attribute != kMaxDynamicSharedBytes) return e.no(kInvalidValue, "an attribute that the fake does not know");
  if (value < 0 || value > settings().shared) return e.no(kInvalidValue, "more shared memory than a block may have");
  function->shared_bytes = value;
  return kSuccess;
}

FAKE_API Result cuLaunchKernel(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream stream,
                               void** parameters, void** extra) {
  const Entry e("cuLaunchKernel", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  if (handles().functions.count(function) == 0) return e.no(kInvalidHandle, "not a function");
  if (function->module->context != current()) return e.no(kInvalidHandle, "the function is of another context");
  if (grid_x < 1 || grid_x > 0x7fffffffu || grid_y < 1 || grid_y > 65535 || grid_z < 1 || grid_z > 65535) {
    return e.no(kInvalidValue, "a grid that no device has");
  }
  if (block_x < 1 || block_x > 1024 || block_y != 1 || block_z != 1) return e.no(kInvalidValue, "a block of that size");
  if (shared_bytes > static_cast<unsigned>(function->shared_bytes)) {
    return e.no(kInvalidValue, "more dynamic shared memory than the function may have");
  }
  if (!parameters || !parameters[0] || extra) return e.no(kInvalidValue, "no parameter");
  const int kernel = function->kernel;
  const uint8_t* bytes = static_cast<const uint8_t*>(parameters[0]);
  std::vector<uint8_t> args(bytes, bytes + kKernelArgsBytes[kernel]);
  enqueue(s, [=] {
    const unsigned grid[3] = {grid_x, grid_y, grid_z};
    // An args struct holds pointers and 64-bit numbers.
    std::vector<uint64_t> aligned((args.size() + 7) / 8);
    memcpy(aligned.data(), args.data(), args.size());
    const std::string text = run_kernel(kernel, aligned.data(), grid, block_x, shared_bytes);
    if (!text.empty()) fault(kLaunchFailed, text);
  });
  return kSuccess;
}

// ---- memory ----

FAKE_API Result cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  const Entry e("cuMemGetInfo_v2", kContextCurrent);
  if (e.refused()) return e.result();
  *total = settings().memory;
  *free_bytes = settings().memory - used_bytes(current()->device);
  return kSuccess;
}

FAKE_API Result cuMemAlloc_v2(Address* out, size_t bytes) {
  const Entry e("cuMemAlloc_v2", kContextCurrent);
  if (e.refused()) return e.result();
  if (bytes == 0) return e.no(kInvalidValue, "0 bytes");
  if (spoils_capture()) return e.no(kCaptureUnsupported, "a stream is captured");
  Array* a = reserve_array(current()->device, bytes, false, false);
  if (!a) return kOutOfMemory;
  enliven(a);
  *out = a->begin;
  return kSuccess;
}

FAKE_API Result cuMemFree_v2(Address begin) {
  const Entry e("cuMemFree_v2", kContextCurrent, true);
  if (e.refused()) return e.result();
  if (begin == 0) return kSuccess;
  Array* a = find_array(begin, 0);
  if (!a || a->begin != begin || a->doomed) return e.no(kInvalidValue, "not an array, or freed before");
  if (a->from_pool) return e.no(kInvalidValue, "the array is of a pool");
  if (a->device != current()->device) return e.no(kInvalidValue, "the array is of another device");
  if (spoils_capture()) return e.no(kCaptureUnsupported, "a stream is captured");
  complete_device(a->device);
  kill(a);
  forget(a);
  return e.result();
}

FAKE_API Result cuMemPoolCreate(MemoryPool* pool, const MemoryPoolProps* props) {
  const Entry e("cuMemPoolCreate", kInit);
  if (e.refused()) return e.result();
  if (!settings().pools) return e.no(kNotSupported, "the device has no memory pools");
  const bool plain = props->allocation_type == 1 && props->handle_types == 0 && props->location_type == 1;
  if (!plain || props->location_id < 0 || props->location_id >= settings().devices) {
    return e.no(kInvalidValue, "properties of no pool");
  }
  *pool = new MemoryPoolHandle{props->location_id};
  handles().pools.insert(*pool);
  return kSuccess;
}

FAKE_API Result cuMemPoolDestroy(MemoryPool pool) {
  const Entry e("cuMemPoolDestroy", kInit, true);
  if (e.refused()) return e.result();
  if (handles().pools.erase(pool) == 0) return e.no(kInvalidHandle, "not a pool");
  delete pool;
  return e.result();
}

FAKE_API Result cuMemPoolSetAttribute(MemoryPool pool, int attribute, void* value) {
  const Entry e("cuMemPoolSetAttribute", kInit);
  if (e.refused()) return e.result();
  if (handles().pools.count(pool) == 0) return e.no(kInvalidHandle, "not a pool");
  if (attribute != kReleaseThreshold || !value) return e.no(kInvalidValue, "an attribute that the fake does not know");
  return kSuccess;
}

FAKE_API Result cuMemAllocFromPoolAsync(Address* out, size_t bytes, MemoryPool pool, Stream stream) {
  const Entry e("cuMemAllocFromPoolAsync", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  if (handles().pools.count(pool) == 0 || pool->device != current()->device) {
    return e.no(kInvalidHandle, "not a pool of the device");
  }
  if (bytes == 0) return e.no(kInvalidValue, "0 bytes");
  Array* a = reserve_array(current()->device, bytes, true, s->capture != nullptr);
  if (!a) return kOutOfMemory;
  if (s->capture) s->capture->arrays.push_back(a);
  enqueue(s, [a] { enliven(a); });
  *out = a->begin;
  return kSuccess;
}

FAKE_API Result cuMemFreeAsync(Address begin, Stream stream) {
  const Entry e("cuMemFreeAsync", kContextCurrent, true);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  Array* a = find_array(begin, 0);
  if (!a || a->begin != begin || a->doomed) return e.no(kInvalidValue, "not an array, or freed before");
  if (!a->from_pool) return e.no(kInvalidValue, "the array is not of a pool");
  if (a->device != current()->device) return e.no(kInvalidValue, "the array is of another device");
  const bool captured = s->capture != nullptr;
  if (captured && !a->of_graph) return e.no(kInvalidValue, "the graph would free an array of others each time it runs");
  if (captured) a->doomed = true;  // for the rest of the capture
  if (!captured && !a->of_graph) a->doomed = true;
  enqueue(s, [a] {
    const bool of_graph = a->of_graph;
    if (!a->live) return fault(kIllegalAddress, "cuMemFreeAsync: the array is not there when the work runs");
    kill(a);
    if (!of_graph) forget(a);
  });
  return e.result();
}

FAKE_API Result cuMemHostAlloc(void** out, size_t bytes, unsigned flags) {
  const Entry e("cuMemHostAlloc", kContextCurrent);
  if (e.refused()) return e.result();
  if (bytes == 0 || flags != 0) return e.no(kInvalidValue, "0 bytes, or flags that the fake does not know");
  if (spoils_capture()) return e.no(kCaptureUnsupported, "a stream is captured");
  *out = malloc(bytes);
  memset(*out, 0xcd, bytes);
  handles().pinned.insert(*out);
  handles().pinned_bytes[*out] = bytes;
  return kSuccess;
}

FAKE_API Result cuMemFreeHost(void* p) {
  const Entry e("cuMemFreeHost", kContextCurrent, true);
  if (e.refused()) return e.result();
  if (handles().pinned.erase(p) == 0) return e.no(kInvalidValue, "not pinned memory");
  complete_device(current()->device);
  handles().pinned_bytes.erase(p);
  free(p);
  return e.result();
}

// ---- copies ----

FAKE_API Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Stream stream) {
  const Entry e("cuMemcpyHtoDAsync_v2", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  if (!is_range(e, to, bytes)) return kInvalidValue;
  if (is_device_address(from)) return e.no(kInvalidValue, "the source is on a device");
  // Memory that is not pinned is read before the call returns.
  std::vector<uint8_t> kept;
  const bool pinned = inside_pinned(from, bytes);
  if (!pinned) kept.assign(static_cast<const uint8_t*>(from), static_cast<const uint8_t*>(from) + bytes);
  enqueue(s, [=] {
    const Opened opened;
    if (alive("cuMemcpyHtoDAsync_v2", to, bytes)) memcpy(host_pointer(to), pinned ? from : kept.data(), bytes);
  });
  return kSuccess;
}

FAKE_API Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Stream stream) {
  const Entry e("cuMemcpyDtoHAsync_v2", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  if (!is_range(e, from, bytes)) return kInvalidValue;
  if (is_device_address(to)) return e.no(kInvalidValue, "the target is on a device");
  enqueue(s, [=] {
    const Opened opened;
    if (alive("cuMemcpyDtoHAsync_v2", from, bytes)) memcpy(to, host_pointer(from), bytes);
  });
  if (!inside_pinned(to, bytes) && !s->capture) complete(s);
  return kSuccess;
}

static Result copy_inside(const Entry& e, Address to, Address from, size_t bytes, Stream stream) {
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  if (!is_range(e, to, bytes) || !is_range(e, from, bytes)) return kInvalidValue;
  enqueue(s, [=] {
    const Opened opened;
    if (alive("a copy on the device", to, bytes) && alive("a copy on the device", from, bytes)) {
      memmove(host_pointer(to), host_pointer(from), bytes);
    }
  });
  return kSuccess;
}

FAKE_API Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream stream) {
  const Entry e("cuMemcpyDtoDAsync_v2", kContextCurrent);
  return e.refused() ? e.result() : copy_inside(e, to, from, bytes, stream);
}

FAKE_API Result cuMemcpyPeerAsync(Address to, Context to_context, Address from, Context from_context, size_t bytes,
                                  Stream stream) {
  const Entry e("cuMemcpyPeerAsync", kContextCurrent);
  if (e.refused()) return e.result();
  if (!is_known(to_context) || !is_known(from_context)) return e.no(kInvalidContext, "not a context");
  if (!is_range(e, to, bytes) || !is_range(e, from, bytes)) return kInvalidValue;
  if (find_array(to, bytes)->device != to_context->device || find_array(from, bytes)->device != from_context->device) {
    return e.no(kInvalidValue, "an array is not of its context");
  }
  return copy_inside(e, to, from, bytes, stream);
}

FAKE_API Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Stream stream) {
  const Entry e("cuMemsetD8Async", kContextCurrent);
  if (e.refused()) return e.result();
  StreamHandle* s = stream_of(stream);
  if (!s) return e.no(kInvalidHandle, "not a stream of the context");
  if (!is_range(e, to, bytes)) return kInvalidValue;
  enqueue(s, [=] {
    const Opened opened;
    if (alive("cuMemsetD8Async", to, bytes)) memset(host_pointer(to), value, bytes);
  });
  return kSuccess;
}
