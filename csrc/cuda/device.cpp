#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "image.h"

namespace lutkern {
namespace cuda {

namespace {

constexpr uint64_t kKeptBytes = uint64_t{256} << 20;  // of freed memory, for the next allocations
constexpr uint32_t kSharedByDefault = 48 << 10;       // dynamic shared memory that needs no leave

std::mutex g_lock;
Device* g_devices[kMaxDevices] = {};
std::once_flag g_counted;
int g_count = 0;
char g_absent[320] = "";

const char kNoImage[] = "this build has no CUDA kernels: nvcc was not found when it was made";

// A driver that the environment names may take any image, so the placeholder goes to it too.
bool has_image() {
  const char* wished = getenv("LUTKERN_LIBCUDA");
  return kImageReal || (wished && *wished);
}

// What a driver says of code that it cannot take.
bool is_refusal(Result result) {
  return result == kInvalidImage || result == kNoBinary || result == kInvalidPtx || result == kUnsupportedPtx;
}

bool keep(const char* text) {
  snprintf(g_absent, sizeof(g_absent), "%s", text);
  return false;
}

// Sets g_count, or the reason that there is none.
bool count_devices() {
  const Driver* d = driver();
  if (!d) return keep(no_driver());
  if (!has_image()) return keep(kNoImage);
  int count = 0;
  if (!check(d->cuDeviceGetCount(&count), "cuDeviceGetCount")) return keep(failure().text);
  if (count == 0) return keep("the CUDA driver reports no device");
  if (count > kMaxDevices) count = kMaxDevices;
  Attributes a{};
  bool usable = false;
  for (int i = 0; i < count; ++i) {
    if (!read_attributes(*d, i, &a)) return keep(failure().text);
    usable = usable || a.capability >= kOldestCapability;
  }
  if (usable) {
    g_count = count;
    return true;
  }
  snprintf(g_absent, sizeof(g_absent), "cuda:%d has compute capability %d.%d, expected 7.5 or newer", count - 1,
           a.capability / 10, a.capability % 10);
  return false;
}

}  // namespace

bool read_attributes(const Driver& d, int index, Attributes* out) {
  int handle = 0;
  if (!check(d.cuDeviceGet(&handle, index), "cuDeviceGet")) return false;
  if (!check(d.cuDeviceGetName(out->name, sizeof(out->name), handle), "cuDeviceGetName")) return false;
  if (!check(d.cuDeviceTotalMem_v2(&out->memory_bytes, handle), "cuDeviceTotalMem_v2")) return false;
  int major = 0;
  int minor = 0;
  int pools = 0;
  const struct {
    int attribute;
    int* value;
  } wanted[] = {
      {kProcessors, &out->processors}, {kCacheBytes, &out->cache_bytes},         {kCapabilityMajor, &major},
      {kCapabilityMinor, &minor},      {kSharedMemoryOptIn, &out->shared_bytes}, {kMemoryPoolsSupported, &pools}};
  for (const auto& w : wanted) {
    if (!check(d.cuDeviceGetAttribute(w.value, w.attribute, handle), "cuDeviceGetAttribute")) return false;
  }
  out->capability = 10 * major + minor;
  out->memory_pools = pools != 0;
  return true;
}

int device_count() {
  if (is_forked()) return 0;
  std::call_once(g_counted, [] { count_devices(); });
  return g_count;
}

const char* no_devices() {
  if (device_count() > 0) return nullptr;
  return is_forked() ? no_driver() : g_absent;
}

Device* open_device(int index) {
  if (device_count() == 0) {
    failed(Cause::device, "%s", no_devices());
    return nullptr;
  }
  if (index < 0 || index >= device_count()) {
    failed(Cause::device, "cuda:%d does not exist, expected cuda:0 to cuda:%d", index, device_count() - 1);
    return nullptr;
  }
  const std::lock_guard<std::mutex> hold(g_lock);
  if (g_devices[index]) return g_devices[index];
  Device* device = new (std::nothrow) Device;
  if (!device) {
    failed(Cause::memory, "no memory for cuda:%d", index);
    return nullptr;
  }
  if (!device->open(index, cuda::driver())) {
    delete device;
    return nullptr;
  }
  g_devices[index] = device;
  return device;
}

bool Device::open(int index, const Driver* driver) {
  index_ = index;
  driver_ = driver;
  if (!read_attributes(*driver, index, &attributes_)) return false;
  if (attributes_.capability < kOldestCapability) {
    return failed(Cause::device, "cuda:%d has compute capability %d.%d, expected 7.5 or newer", index,
                  attributes_.capability / 10, attributes_.capability % 10);
  }
  int handle = 0;
  if (!check(driver_->cuDeviceGet(&handle, index), "cuDeviceGet")) return false;
  if (!check(driver_->cuDevicePrimaryCtxRetain(&context_, handle), "cuDevicePrimaryCtxRetain")) return false;
  bool opened = false;
  {
    const Current current(*this);
    opened = current.ok() && load() && (!attributes_.memory_pools || open_pool());
    if (!opened && module_) driver_->cuModuleUnload(module_);
  }
  if (!opened) driver_->cuDevicePrimaryCtxRelease_v2(handle);
  return opened;
}

bool Device::load() {
  // A driver that is older than the nvcc of this build may refuse its code: PTX it compiles itself.
  Result loaded = driver_->cuModuleLoadData(&module_, kImage);
  if (is_refusal(loaded)) loaded = driver_->cuModuleLoadData(&module_, kPtx);
  if (!check(loaded, "cuModuleLoadData")) return false;
  for (int i = 0; i < kKernels; ++i) {
    if (!check(driver_->cuModuleGetFunction(&function_[i], module_, kKernelName[i]), "cuModuleGetFunction")) {
      return false;
    }
  }
  return true;
}

// A pool of our own: what it keeps is nobody else's business.
bool Device::open_pool() {
  const MemoryPoolProps props{1, 0, 1, index_, nullptr, 0, {}};
  if (!check(driver_->cuMemPoolCreate(&pool_, &props), "cuMemPoolCreate")) return false;
  uint64_t kept = kKeptBytes;
  if (check(driver_->cuMemPoolSetAttribute(pool_, kReleaseThreshold, &kept), "cuMemPoolSetAttribute")) return true;
  driver_->cuMemPoolDestroy(pool_);
  return false;
}

bool Device::fits(KernelId kernel, const void* args) const {
  return plan_of(kernel, args).shared_bytes <= static_cast<uint32_t>(attributes_.shared_bytes);
}

// Never less than before: other threads may be about to launch the same function.
bool Device::allow_shared(int kernel, uint32_t bytes) {
  if (bytes <= shared_set_[kernel]) return true;
  const std::lock_guard<std::mutex> hold(shared_lock_);
  if (bytes <= shared_set_[kernel]) return true;
  const Result set = driver_->cuFuncSetAttribute(function_[kernel], kMaxDynamicSharedBytes, static_cast<int>(bytes));
  if (!check(set, "cuFuncSetAttribute")) return false;
  shared_set_[kernel] = bytes;
  return true;
}

bool Device::launch(KernelId kernel, const void* args, Stream stream) {
  const int i = static_cast<int>(kernel);
  const Plan plan = plan_of(kernel, args);
  if (plan.grid_x == 0 || plan.grid_y == 0 || plan.grid_z == 0) return true;
  if (plan.shared_bytes > static_cast<uint32_t>(attributes_.shared_bytes)) {
    return failed(Cause::device, "%s wants %u bytes of shared memory, cuda:%d has %d", kKernelName[i],
                  plan.shared_bytes, index_, attributes_.shared_bytes);
  }
  if (plan.shared_bytes > kSharedByDefault && !allow_shared(i, plan.shared_bytes)) return false;
  void* parameters[] = {const_cast<void*>(args)};
  return check(driver_->cuLaunchKernel(function_[i], plan.grid_x, plan.grid_y, plan.grid_z, plan.threads, 1, 1,
                                       plan.shared_bytes, stream, parameters, nullptr),
               "cuLaunchKernel");
}

bool Device::allocate(size_t bytes, Stream stream, Address* out) {
  if (pool_) {
    const Result got = driver_->cuMemAllocFromPoolAsync(out, bytes, pool_, stream);
    return check(got, "cuMemAllocFromPoolAsync");
  }
  bool captured = false;
  if (!capturing(stream, &captured)) return false;
  if (captured) {
    return failed(Cause::device, "cuda:%d has no memory pools, expected them where a stream is captured", index_);
  }
  return check(driver_->cuMemAlloc_v2(out, bytes), "cuMemAlloc_v2");
}

bool Device::release(Address memory, Stream stream) {
  if (pool_) return check(driver_->cuMemFreeAsync(memory, stream), "cuMemFreeAsync");
  return check(driver_->cuMemFree_v2(memory), "cuMemFree_v2");
}

bool Device::release_later(Address memory, Stream stream) {
  bool captured = false;
  const bool known = capturing(stream, &captured);
  if (known && !captured) {
    release_put_off();
    return release(memory, stream);
  }
  const std::lock_guard<std::mutex> hold(put_off_lock_);
  const int room = static_cast<int>(sizeof(put_off_) / sizeof(put_off_[0]));
  if (n_put_off_ == room) {
    return failed(Cause::device, "%d arrays were freed while a stream was captured, expected at most %d", room + 1,
                  room);
  }
  put_off_[n_put_off_++] = memory;
  return known;
}

bool Device::release_when_idle(Address memory) {
  const bool idle = check(driver_->cuCtxSynchronize(), "cuCtxSynchronize");
  if (idle) release_put_off();
  // Even after a fault: nobody would give it back later.
  const Failure why = failure();
  const bool released = release(memory, nullptr);
  if (idle || !released) return released;
  return failed(why);
}

// Whatever used them has been queued long ago; waiting for it all is cheap beside a capture.
void Device::release_put_off() {
  const std::lock_guard<std::mutex> hold(put_off_lock_);
  if (n_put_off_ == 0 || driver_->cuCtxSynchronize() != kSuccess) return;
  while (n_put_off_ > 0) release(put_off_[--n_put_off_], nullptr);
}

bool Device::capturing(Stream stream, bool* out) const {
  int status = 0;
  if (!check(driver_->cuStreamIsCapturing(stream, &status), "cuStreamIsCapturing")) return false;
  *out = status == kCaptureActive;
  return true;
}

bool check_not_captured(const Device& device, Stream stream) {
  bool captured = false;
  if (!device.capturing(stream, &captured)) return false;
  if (!captured) return true;
  return failed(Cause::device, "the stream is captured, expected arrays on cuda:%d: the CPU has no part in a graph",
                device.index());
}

bool Device::free_bytes(size_t* out) const {
  size_t total = 0;
  return check(driver_->cuMemGetInfo_v2(out, &total), "cuMemGetInfo_v2");
}

Current::Current(const Device& device)
    : driver_(device.driver()), ok_(check(driver_.cuCtxPushCurrent_v2(device.context()), "cuCtxPushCurrent_v2")) {}

Current::~Current() {
  Context popped = nullptr;
  if (ok_) driver_.cuCtxPopCurrent_v2(&popped);
}

}  // namespace cuda
}  // namespace lutkern
