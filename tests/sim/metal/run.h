// The C entries of liblutkern_metal_sim: Metal text, compiled by clang, its kernels executed on the CPU. 0 is fine;
// otherwise error has the text.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define LK_METAL_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// data null: not bound
typedef struct lk_metal_buffer {
  void* data;
  size_t bytes;
} lk_metal_buffer;

// Messages name the text's own lines: "program_source:12:3: error: ...". Libraries are kept in the folder that
// LUTKERN_SIM_CACHE names, in one of the temporary folder otherwise, and shared by all processes. LUTKERN_SIM_SANITIZE
// (address, undefined): sanitizers of the text in place of what watch.h watches; the process must have their runtime.
LK_METAL_API int lk_metal_compile(const char* text, void** library, char* error, size_t error_bytes);
// The same text with address spaces that the compiler knows, as C++14, and with the rules of checks.h; runs nothing.
LK_METAL_API int lk_metal_check(const char* text, char* error, size_t error_bytes);
// The text as C++ for include/metal_glue, as much of it as bound has room for; returns the bytes of all of it.
LK_METAL_API size_t lk_metal_bound(const char* text, char* bound, size_t bound_bytes);
// threadgroup_bytes: of its threadgroup arrays. n_buffers: that the kernel takes.
LK_METAL_API int lk_metal_kernel(void* library, const char* kernel, uint32_t* threadgroup_bytes, uint32_t* n_buffers,
                                 char* error, size_t error_bytes);
// Name of kernel index, in the order of the text; null past the end.
LK_METAL_API const char* lk_metal_kernel_at(void* library, uint32_t index);
// buffers[i] is buffer(i). seed 0 keeps the order of threadgroups, SIMD groups and lanes; others change it. One launch at a
// time; others wait.
LK_METAL_API int lk_metal_launch(void* library, const char* kernel, const lk_metal_buffer* buffers, uint32_t n_buffers,
                                 const uint32_t groups[3], uint32_t threads, uint64_t seed, char* error,
                                 size_t error_bytes);
LK_METAL_API void lk_metal_release(void* library);

#ifdef __cplusplus
}
#endif
