// The C entries of liblutkern_sim: kernels of csrc/cuda by name, on the CPU. 0 is fine; otherwise error has one line.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define LK_SIM_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// args is the kernel's struct of arguments.h. seed 0 keeps the order of blocks, warps and lanes; others change it.
LK_SIM_API int lk_sim_launch(const char* kernel, const void* args, size_t args_bytes, const uint32_t grid[3],
                             uint32_t threads, uint32_t shared_bytes, uint64_t seed, char* error, size_t error_bytes);
// The same, launched by the plan of plans.h; format is not needed, a kernel's name tells it.
LK_SIM_API int lk_sim_run(const char* kernel, const void* args, size_t args_bytes, int32_t format, uint64_t seed,
                          char* error, size_t error_bytes);
// The plan of plans.h: the grid in x, y, z, threads of a block, bytes of dynamic shared memory.
LK_SIM_API int lk_sim_plan(const char* kernel, const void* args, size_t args_bytes, uint32_t plan[5], char* error,
                           size_t error_bytes);
// Of a tile of a FormatId; 0: the format has none.
LK_SIM_API int32_t lk_sim_tile_bytes(int32_t format);
// Once anything is registered, checked loads and stores must stay inside of what is.
LK_SIM_API void lk_sim_register(const void* begin, size_t bytes);
LK_SIM_API void lk_sim_unregister(const void* begin);
// Shared memory of a block, 232448 bytes (227 KiB) if never called.
LK_SIM_API void lk_sim_shared_limit(uint32_t bytes);
// Name and size of the args of kernel index, in no order; null past the end.
LK_SIM_API const char* lk_sim_kernel_at(int32_t index, size_t* args_bytes);

#ifdef __cplusplus
}
#endif
