// The table of the driver's functions against cuda.h, where a toolkit is at hand: the same parameters, the same numbers.
#include <cuda.h>
#include <stddef.h>

#include <type_traits>

#include "cuda/driver.h"

namespace {

template <class A, class B>
constexpr bool alike() {
  return sizeof(A) == sizeof(B) && std::is_pointer<A>::value == std::is_pointer<B>::value;
}

template <class... A, class... B>
constexpr bool same_shape(CUresult (*)(A...), lutkern::cuda::Result (*)(B...)) {
  if constexpr (sizeof...(A) == sizeof...(B)) {
    return (alike<A, B>() && ...);
  } else {
    return false;
  }
}

#define LUTKERN_CHECK(name, parameters) \
  static_assert(same_shape(decltype(&::name){nullptr}, decltype(lutkern::cuda::Driver::name){nullptr}), #name);
LUTKERN_CUDA_DRIVER(LUTKERN_CHECK)
#undef LUTKERN_CHECK

using namespace lutkern::cuda;

#define LUTKERN_SAME(ours, theirs) static_assert(static_cast<int>(ours) == static_cast<int>(theirs), #theirs)
LUTKERN_SAME(kInvalidValue, CUDA_ERROR_INVALID_VALUE);
LUTKERN_SAME(kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY);
LUTKERN_SAME(kNotInitialized, CUDA_ERROR_NOT_INITIALIZED);
LUTKERN_SAME(kDeinitialized, CUDA_ERROR_DEINITIALIZED);
LUTKERN_SAME(kNoDevice, CUDA_ERROR_NO_DEVICE);
LUTKERN_SAME(kInvalidDevice, CUDA_ERROR_INVALID_DEVICE);
LUTKERN_SAME(kInvalidImage, CUDA_ERROR_INVALID_IMAGE);
LUTKERN_SAME(kInvalidContext, CUDA_ERROR_INVALID_CONTEXT);
LUTKERN_SAME(kNoBinary, CUDA_ERROR_NO_BINARY_FOR_GPU);
LUTKERN_SAME(kInvalidPtx, CUDA_ERROR_INVALID_PTX);
LUTKERN_SAME(kUnsupportedPtx, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
LUTKERN_SAME(kInvalidHandle, CUDA_ERROR_INVALID_HANDLE);
LUTKERN_SAME(kNotFound, CUDA_ERROR_NOT_FOUND);
LUTKERN_SAME(kNotReady, CUDA_ERROR_NOT_READY);
LUTKERN_SAME(kIllegalAddress, CUDA_ERROR_ILLEGAL_ADDRESS);
LUTKERN_SAME(kLaunchFailed, CUDA_ERROR_LAUNCH_FAILED);
LUTKERN_SAME(kNotSupported, CUDA_ERROR_NOT_SUPPORTED);
LUTKERN_SAME(kCaptureUnsupported, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
LUTKERN_SAME(kCaptureInvalidated, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
LUTKERN_SAME(kCaptureUnmatched, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
LUTKERN_SAME(kCaptureUnjoined, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
LUTKERN_SAME(kProcessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
LUTKERN_SAME(kCacheBytes, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
LUTKERN_SAME(kCapabilityMajor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
LUTKERN_SAME(kCapabilityMinor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
LUTKERN_SAME(kSharedMemoryOptIn, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
LUTKERN_SAME(kMemoryPoolsSupported, CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED);
LUTKERN_SAME(kMaxDynamicSharedBytes, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
LUTKERN_SAME(kReleaseThreshold, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD);
LUTKERN_SAME(kStreamNonBlocking, CU_STREAM_NON_BLOCKING);
LUTKERN_SAME(kCaptureThreadLocal, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
LUTKERN_SAME(kCaptureActive, CU_STREAM_CAPTURE_STATUS_ACTIVE);
LUTKERN_SAME(kAutoFreeOnLaunch, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
LUTKERN_SAME(1, CU_MEM_ALLOCATION_TYPE_PINNED);
LUTKERN_SAME(1, CU_MEM_LOCATION_TYPE_DEVICE);
LUTKERN_SAME(sizeof(MemoryPoolProps), sizeof(CUmemPoolProps));
LUTKERN_SAME(offsetof(MemoryPoolProps, location_id), offsetof(CUmemPoolProps, location.id));
LUTKERN_SAME(offsetof(MemoryPoolProps, security), offsetof(CUmemPoolProps, win32SecurityAttributes));

}  // namespace

int main() { return 0; }
