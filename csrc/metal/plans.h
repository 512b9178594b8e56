// Every kernel by its number, expanded from kernels.h: its name, the macros of its library, its plan.
#pragma once
#include "any_plan.h"
#include "dequantize_plan.h"
#include "kernels.h"
#include "matmul_large_plan.h"
#include "matmul_small_plan.h"
#include "matvec_plan.h"
#include "moe_batch_plan.h"
#include "moe_one_plan.h"
#include "plan.h"

namespace lutkern {
namespace metal {

// Numbered in the order of the list
enum class KernelId : int {
#define LUTKERN_KERNEL_ID(name, kind, Args) name,
  LUTKERN_METAL_KERNELS(LUTKERN_KERNEL_ID)
#undef LUTKERN_KERNEL_ID
      count
};

inline constexpr const char* kKernelName[] = {
#define LUTKERN_KERNEL_NAME(name, kind, Args) #name,
    LUTKERN_METAL_KERNELS(LUTKERN_KERNEL_NAME)
#undef LUTKERN_KERNEL_NAME
};

// What a library is made for: LK_TILES, and LK_WEIGHT or LK_GATE and LK_UP
enum class LibraryKind : int { weight, pair, weight_any, pair_any };

inline constexpr LibraryKind kKernelLibrary[] = {
#define LUTKERN_KERNEL_KIND(name, kind, Args) LibraryKind::kind,
    LUTKERN_METAL_KERNELS(LUTKERN_KERNEL_KIND)
#undef LUTKERN_KERNEL_KIND
};

inline constexpr int kKernelArgsBytes[] = {
#define LUTKERN_KERNEL_BYTES(name, kind, Args) int{sizeof(metal_args::Args)},
    LUTKERN_METAL_KERNELS(LUTKERN_KERNEL_BYTES)
#undef LUTKERN_KERNEL_BYTES
};

// args points to buffer 0 of that kernel.
static inline Plan plan_of(KernelId kernel, const void* args) {
  switch (kernel) {
#define LUTKERN_PLAN_OF(name, kind, Args) \
  case KernelId::name:                    \
    return plan_##name(*static_cast<const metal_args::Args*>(args));
    LUTKERN_METAL_KERNELS(LUTKERN_PLAN_OF)
#undef LUTKERN_PLAN_OF
    case KernelId::count:
      break;
  }
  return Plan{};
}

}  // namespace metal
}  // namespace lutkern
