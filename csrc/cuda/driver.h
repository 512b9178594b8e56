// The CUDA driver, found when it is first needed: nothing of CUDA is linked, and no header of it is included.
//
// A function that fails returns false and keeps its reason, one line that names the call: failure().
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace lutkern {
namespace cuda {

using Result = int;                           // CUresult
using Address = unsigned long long;           // CUdeviceptr
using Context = struct ContextHandle*;        // CUcontext
using Module = struct ModuleHandle*;          // CUmodule
using Function = struct FunctionHandle*;      // CUfunction
using Stream = struct StreamHandle*;          // CUstream
using Event = struct EventHandle*;            // CUevent
using Graph = struct GraphHandle*;            // CUgraph
using GraphExec = struct GraphExecHandle*;    // CUgraphExec
using MemoryPool = struct MemoryPoolHandle*;  // CUmemoryPool

enum : Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kDeinitialized = 4,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kNoBinary = 209,
  kInvalidPtx = 218,
  kUnsupportedPtx = 222,
  kInvalidHandle = 400,
  kNotFound = 500,
  kNotReady = 600,
  kIllegalAddress = 700,
  kLaunchFailed = 719,
  kNotPermitted = 800,
  kNotSupported = 801,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kCaptureUnmatched = 903,
  kCaptureUnjoined = 904
};

enum : int {
  // CUdevice_attribute
  kProcessors = 16,
  kCacheBytes = 38,
  kCapabilityMajor = 75,
  kCapabilityMinor = 76,
  kSharedMemoryOptIn = 97,
  kMemoryPoolsSupported = 115,
  // CUfunction_attribute
  kMaxDynamicSharedBytes = 8,
  // CUmemPool_attribute
  kReleaseThreshold = 4,
  // CUstream_flags
  kStreamNonBlocking = 1,
  // CUstreamCaptureMode, CUstreamCaptureStatus
  kCaptureThreadLocal = 1,
  kCaptureActive = 1,
  // CUgraphInstantiate_flags
  kAutoFreeOnLaunch = 1
};

// CUmemPoolProps
struct MemoryPoolProps {
  int allocation_type;  // 1: memory of a device
  int handle_types;     // 0: not shared with other processes
  int location_type;    // 1: a device
  int location_id;
  void* security;
  size_t max_bytes;
  unsigned char reserved[56];
};
static_assert(sizeof(MemoryPoolProps) == 88, "as the driver lays it out");

// X(name that the driver exports, its parameters). A name with a version is the one that cuda.h means today.
#define LUTKERN_CUDA_DRIVER(X)                                                                                        \
  X(cuInit, (unsigned))                                                                                               \
  X(cuDriverGetVersion, (int*))                                                                                       \
  X(cuGetErrorName, (Result, const char**))                                                                           \
  X(cuGetErrorString, (Result, const char**))                                                                         \
  X(cuDeviceGetCount, (int*))                                                                                         \
  X(cuDeviceGet, (int*, int))                                                                                         \
  X(cuDeviceGetName, (char*, int, int))                                                                               \
  X(cuDeviceTotalMem_v2, (size_t*, int))                                                                              \
  X(cuDeviceGetAttribute, (int*, int, int))                                                                           \
  X(cuDevicePrimaryCtxRetain, (Context*, int))                                                                        \
  X(cuDevicePrimaryCtxRelease_v2, (int))                                                                              \
  X(cuCtxPushCurrent_v2, (Context))                                                                                   \
  X(cuCtxPopCurrent_v2, (Context*))                                                                                   \
  X(cuCtxSynchronize, ())                                                                                             \
  X(cuModuleLoadData, (Module*, const void*))                                                                         \
  X(cuModuleGetFunction, (Function*, Module, const char*))                                                            \
  X(cuModuleUnload, (Module))                                                                                         \
  X(cuFuncSetAttribute, (Function, int, int))                                                                         \
  X(cuMemGetInfo_v2, (size_t*, size_t*))                                                                              \
  X(cuMemAlloc_v2, (Address*, size_t))                                                                                \
  X(cuMemFree_v2, (Address))                                                                                          \
  X(cuMemPoolCreate, (MemoryPool*, const MemoryPoolProps*))                                                           \
  X(cuMemPoolDestroy, (MemoryPool))                                                                                   \
  X(cuMemPoolSetAttribute, (MemoryPool, int, void*))                                                                  \
  X(cuMemAllocFromPoolAsync, (Address*, size_t, MemoryPool, Stream))                                                  \
  X(cuMemFreeAsync, (Address, Stream))                                                                                \
  X(cuMemHostAlloc, (void**, size_t, unsigned))                                                                       \
  X(cuMemFreeHost, (void*))                                                                                           \
  X(cuMemcpyHtoDAsync_v2, (Address, const void*, size_t, Stream))                                                     \
  X(cuMemcpyDtoHAsync_v2, (void*, Address, size_t, Stream))                                                           \
  X(cuMemcpyDtoDAsync_v2, (Address, Address, size_t, Stream))                                                         \
  X(cuMemcpyPeerAsync, (Address, Context, Address, Context, size_t, Stream))                                          \
  X(cuMemsetD8Async, (Address, unsigned char, size_t, Stream))                                                        \
  X(cuLaunchKernel, (Function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
                     unsigned block_z, unsigned shared_bytes, Stream, void** parameters, void** extra))               \
  X(cuStreamCreate, (Stream*, unsigned))                                                                              \
  X(cuStreamDestroy_v2, (Stream))                                                                                     \
  X(cuStreamSynchronize, (Stream))                                                                                    \
  X(cuStreamWaitEvent, (Stream, Event, unsigned))                                                                     \
  X(cuStreamBeginCapture_v2, (Stream, int))                                                                           \
  X(cuStreamEndCapture, (Stream, Graph*))                                                                             \
  X(cuStreamIsCapturing, (Stream, int*))                                                                              \
  X(cuGraphInstantiateWithFlags, (GraphExec*, Graph, unsigned long long))                                             \
  X(cuGraphLaunch, (GraphExec, Stream))                                                                               \
  X(cuGraphDestroy, (Graph))                                                                                          \
  X(cuGraphExecDestroy, (GraphExec))                                                                                  \
  X(cuEventCreate, (Event*, unsigned))                                                                                \
  X(cuEventRecord, (Event, Stream))                                                                                   \
  X(cuEventSynchronize, (Event))                                                                                      \
  X(cuEventElapsedTime, (float*, Event, Event))                                                                       \
  X(cuEventDestroy_v2, (Event))

struct Driver {
#define LUTKERN_DRIVER_ENTRY(name, parameters) Result(*name) parameters;
  LUTKERN_CUDA_DRIVER(LUTKERN_DRIVER_ENTRY)
#undef LUTKERN_DRIVER_ENTRY
};

// The oldest driver that has every function of the table: 11.4
enum : int { kOldestDriver = 11040 };

// ---- failing ----

enum class Cause { device, memory };

struct Failure {
  Cause cause;
  Result result;  // of the call, or 0
  char text[320];
};

// Of the last function that returned false on this thread
const Failure& failure();
// Keeps the text; returns false.
__attribute__((format(printf, 2, 3))) bool failed(Cause cause, const char* text, ...);
bool failed(const Failure& why);
// True for success; otherwise keeps "CALL failed: what the driver says (CUDA_ERROR_NAME)".
bool check(Result result, const char* call);

// ---- the one driver of the process ----

// Loads and initialises it at the first call. Null: there is none, or this is the child of a process that used CUDA.
const Driver* driver();
// Why driver() returned null; a device without kernels or a driver without devices is told by device.h.
const char* no_driver();
// True in the child of a process that used CUDA: no call of the driver is allowed there, not even to free.
bool is_forked();

}  // namespace cuda
}  // namespace lutkern
