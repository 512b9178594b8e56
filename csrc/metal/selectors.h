// Everything of the Objective-C runtime and of Metal that the host names: classes, messages, and numbers of enumerations.
// Nothing of Apple's headers is included; the tests hold these lists against those of pyobjc, and the fake runtime of the
// tests answers these messages and no others.
//
// No message returns a struct and none takes a block, so that one kind of call does for arm64 and x86-64.
#pragma once
#include <stdint.h>

namespace lutkern {
namespace metal {

using Id = struct ObjcObject*;            // id
using SelectorId = struct ObjcSelector*;  // SEL
using Text = const char*;                 // UTF-8
using Flag = bool;                        // BOOL: a byte on x86-64, bool on arm64
using Integer = int64_t;                  // NSInteger
using Unsigned = uint64_t;                // NSUInteger
using Seconds = double;                   // CFTimeInterval
using Block = struct ObjcBlock*;          // always null
using ErrorPlace = Id*;                   // NSError**

// MTLSize, by value
struct Size {
  Unsigned width;
  Unsigned height;
  Unsigned depth;
};

}  // namespace metal
}  // namespace lutkern

// X(class)
#define LUTKERN_OBJC_CLASSES(X) \
  X(NSString)                   \
  X(MTLCompileOptions)

// X(name here, class or protocol that has it, selector, result, parameters). A result of `new...` belongs to the caller,
// any other object does not.
#define LUTKERN_OBJC_MESSAGES(X)                                                                              \
  X(create, NSObject, "new", Id, ())                                                                          \
  X(retain, NSObject, "retain", Id, ())                                                                       \
  X(release, NSObject, "release", void, ())                                                                   \
  X(responds, NSObject, "respondsToSelector:", Flag, (SelectorId))                                            \
  X(string, NSString, "stringWithUTF8String:", Id, (Text))                                                    \
  X(utf8, NSString, "UTF8String", Text, ())                                                                   \
  X(count, NSArray, "count", Unsigned, ())                                                                    \
  X(object_at, NSArray, "objectAtIndex:", Id, (Unsigned))                                                     \
  X(error_text, NSError, "localizedDescription", Id, ())                                                      \
  X(error_code, NSError, "code", Integer, ())                                                                 \
  X(name, MTLDevice, "name", Id, ())                                                                          \
  X(supports_family, MTLDevice, "supportsFamily:", Flag, (Integer))                                           \
  X(unified_memory, MTLDevice, "hasUnifiedMemory", Flag, ())                                                  \
  X(working_set, MTLDevice, "recommendedMaxWorkingSetSize", uint64_t, ())                                     \
  X(allocated, MTLDevice, "currentAllocatedSize", Unsigned, ())                                               \
  X(max_buffer, MTLDevice, "maxBufferLength", Unsigned, ())                                                   \
  X(max_threadgroup_memory, MTLDevice, "maxThreadgroupMemoryLength", Unsigned, ())                            \
  X(new_queue, MTLDevice, "newCommandQueue", Id, ())                                                          \
  X(new_buffer, MTLDevice, "newBufferWithLength:options:", Id, (Unsigned, Unsigned))                          \
  X(wrap_buffer, MTLDevice, "newBufferWithBytesNoCopy:length:options:deallocator:", Id,                       \
    (void*, Unsigned, Unsigned, Block))                                                                       \
  X(new_library, MTLDevice, "newLibraryWithSource:options:error:", Id, (Id, Id, ErrorPlace))                  \
  X(new_pipeline, MTLDevice, "newComputePipelineStateWithFunction:error:", Id, (Id, ErrorPlace))              \
  X(set_language, MTLCompileOptions, "setLanguageVersion:", void, (Unsigned))                                 \
  X(set_fast_math, MTLCompileOptions, "setFastMathEnabled:", void, (Flag))                                    \
  X(set_math_mode, MTLCompileOptions, "setMathMode:", void, (Integer))                                        \
  X(set_math_functions, MTLCompileOptions, "setMathFloatingPointFunctions:", void, (Integer))                 \
  X(new_function, MTLLibrary, "newFunctionWithName:", Id, (Id))                                               \
  X(max_threads, MTLComputePipelineState, "maxTotalThreadsPerThreadgroup", Unsigned, ())                      \
  X(simd_width, MTLComputePipelineState, "threadExecutionWidth", Unsigned, ())                                \
  X(threadgroup_memory, MTLComputePipelineState, "staticThreadgroupMemoryLength", Unsigned, ())               \
  X(contents, MTLBuffer, "contents", void*, ())                                                               \
  X(command_buffer, MTLCommandQueue, "commandBuffer", Id, ())                                                 \
  X(encoder, MTLCommandBuffer, "computeCommandEncoder", Id, ())                                               \
  X(blit_encoder, MTLCommandBuffer, "blitCommandEncoder", Id, ())                                             \
  X(commit, MTLCommandBuffer, "commit", void, ())                                                             \
  X(wait, MTLCommandBuffer, "waitUntilCompleted", void, ())                                                   \
  X(status, MTLCommandBuffer, "status", Unsigned, ())                                                         \
  X(error, MTLCommandBuffer, "error", Id, ())                                                                 \
  X(gpu_start, MTLCommandBuffer, "GPUStartTime", Seconds, ())                                                 \
  X(gpu_end, MTLCommandBuffer, "GPUEndTime", Seconds, ())                                                     \
  X(set_pipeline, MTLComputeCommandEncoder, "setComputePipelineState:", void, (Id))                           \
  X(set_buffer, MTLComputeCommandEncoder, "setBuffer:offset:atIndex:", void, (Id, Unsigned, Unsigned))        \
  X(set_bytes, MTLComputeCommandEncoder, "setBytes:length:atIndex:", void, (const void*, Unsigned, Unsigned)) \
  X(dispatch, MTLComputeCommandEncoder, "dispatchThreadgroups:threadsPerThreadgroup:", void, (Size, Size))    \
  X(end_encoding, MTLComputeCommandEncoder, "endEncoding", void, ())                                          \
  X(copy_buffer, MTLBlitCommandEncoder, "copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:", void, \
    (Id, Unsigned, Id, Unsigned, Unsigned)) /* offsets and size: multiples of 4 */                            \
  X(end_copies, MTLBlitCommandEncoder, "endEncoding", void, ())

// X(name here, name in Metal, value)
#define LUTKERN_METAL_NUMBERS(X)                                    \
  X(kStorageShared, MTLResourceStorageModeShared, 0)                \
  X(kFamilyApple7, MTLGPUFamilyApple7, 1007)                        \
  X(kFamilyApple8, MTLGPUFamilyApple8, 1008)                        \
  X(kFamilyApple9, MTLGPUFamilyApple9, 1009)                        \
  X(kFamilyApple10, MTLGPUFamilyApple10, 1010)                      \
  X(kLanguage2_4, MTLLanguageVersion2_4, 131076)                    \
  X(kMathModeSafe, MTLMathModeSafe, 0)                              \
  X(kMathFunctionsPrecise, MTLMathFloatingPointFunctionsPrecise, 1) \
  X(kStatusCompleted, MTLCommandBufferStatusCompleted, 4)           \
  X(kStatusError, MTLCommandBufferStatusError, 5)

// Functions that are looked up by name: of the runtime, and of Metal.
//
//   Id objc_getClass(Text);  SelectorId sel_registerName(Text);  objc_msgSend, cast to what a message wants
//   void* objc_autoreleasePoolPush(void);  void objc_autoreleasePoolPop(void*);
//   Id MTLCopyAllDevices(void)                                   an NSArray that belongs to the caller
//   int sysctlbyname(Text, void*, size_t*, void*, size_t)        of the system, for its version; may be missing
