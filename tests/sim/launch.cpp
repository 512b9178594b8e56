#include "launch.h"

#include <stdio.h>
#include <string.h>

#include "cuda/plans.h"
#include "simt.h"
#include "watch.h"
using lutkern::sim::Kernel;

static const Kernel* known(const char* name, size_t args_bytes, char* error, size_t error_bytes) {
  const Kernel* kernel = lutkern::sim::find_kernel(name);
  if (kernel == nullptr) {
    snprintf(error, error_bytes, "launch: there is no kernel %s", name);
  } else if (kernel->args_bytes != args_bytes) {
    snprintf(error, error_bytes, "launch: %zu bytes of arguments for %s, expected %zu", args_bytes, name,
             kernel->args_bytes);
    return nullptr;
  }
  return kernel;
}

int lk_sim_launch(const char* name, const void* args, size_t args_bytes, const uint32_t grid[3], uint32_t threads,
                  uint32_t shared_bytes, uint64_t seed, char* error, size_t error_bytes) {
  const Kernel* kernel = known(name, args_bytes, error, error_bytes);
  if (kernel == nullptr) return 1;
  const lutkern::sim::Launch launch = {kernel, args, {grid[0], grid[1], grid[2]}, threads, shared_bytes, seed};
  return lutkern::sim::run(launch, error, error_bytes) ? 0 : 1;
}

int lk_sim_plan(const char* name, const void* args, size_t args_bytes, uint32_t plan[5], char* error,
                size_t error_bytes) {
  if (known(name, args_bytes, error, error_bytes) == nullptr) return 1;
  using lutkern::cuda::KernelId;
  int id = 0;
  while (id < static_cast<int>(KernelId::count) && strcmp(lutkern::cuda::kKernelName[id], name) != 0) ++id;
  const lutkern::cuda::Plan found = lutkern::cuda::plan_of(static_cast<KernelId>(id), args);
  const uint32_t numbers[5] = {found.grid_x, found.grid_y, found.grid_z, found.threads, found.shared_bytes};
  memcpy(plan, numbers, sizeof(numbers));
  return 0;
}

int lk_sim_run(const char* name, const void* args, size_t args_bytes, int32_t, uint64_t seed, char* error,
               size_t error_bytes) {
  uint32_t plan[5];
  if (lk_sim_plan(name, args, args_bytes, plan, error, error_bytes) != 0) return 1;
  return lk_sim_launch(name, args, args_bytes, plan, plan[3], plan[4], seed, error, error_bytes);
}

int32_t lk_sim_tile_bytes(int32_t format) { return lutkern::cuda::tile_bytes(static_cast<lutkern::FormatId>(format)); }
void lk_sim_register(const void* begin, size_t bytes) { lutkern::sim::register_memory(begin, bytes); }
void lk_sim_unregister(const void* begin) { lutkern::sim::unregister_memory(begin); }
void lk_sim_shared_limit(uint32_t bytes) { lutkern::sim::set_shared_limit(bytes); }

const char* lk_sim_kernel_at(int32_t index, size_t* args_bytes) {
  const Kernel* kernel = lutkern::sim::first_kernel();
  for (int32_t i = 0; i < index && kernel != nullptr; ++i) kernel = kernel->next;
  if (kernel == nullptr) return nullptr;
  if (args_bytes != nullptr) *args_bytes = kernel->args_bytes;
  return kernel->name;
}
