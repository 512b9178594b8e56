// The plan of every kernel by its number, expanded from kernels.h.
#pragma once
#include "../formats/formats.h"
#include "any_plan.h"
#include "dequantize_plan.h"
#include "kernels.h"
#include "matmul_plan.h"
#include "matvec_plan.h"
#include "moe_batch_plan.h"
#include "moe_one_plan.h"
#include "plan.h"
#include "quantize_plan.h"
#include "repack_plan.h"

namespace lutkern {
namespace cuda {

// Numbered in the order of the list
enum class KernelId : int {
#define LUTKERN_KERNEL_ID(name, Args) name,
  LUTKERN_CUDA_KERNELS(LUTKERN_KERNEL_ID)
#undef LUTKERN_KERNEL_ID
      count
};

inline constexpr const char* kKernelName[] = {
#define LUTKERN_KERNEL_NAME(name, Args) #name,
    LUTKERN_CUDA_KERNELS(LUTKERN_KERNEL_NAME)
#undef LUTKERN_KERNEL_NAME
};

inline constexpr int kKernelArgsBytes[] = {
#define LUTKERN_KERNEL_BYTES(name, Args) int{sizeof(Args)},
    LUTKERN_CUDA_KERNELS(LUTKERN_KERNEL_BYTES)
#undef LUTKERN_KERNEL_BYTES
};

template <class Args>
static inline const Args& args_as(const void* args) {
  return *static_cast<const Args*>(args);
}

// args points to the parameter of that kernel.
static inline Plan plan_of(KernelId kernel, const void* args) {
  constexpr int kNoFormat = -1;
  switch (kernel) {
#define LUTKERN_PLANS_OF(name, Block)                                                        \
  case KernelId::to_tiles_##name:                                                            \
    return plan_to_tiles(args_as<RepackArgs>(args), static_cast<int>(FormatId::name));       \
  case KernelId::to_blocks_##name:                                                           \
    return plan_to_blocks(args_as<RepackArgs>(args), static_cast<int>(FormatId::name));      \
  case KernelId::dequantize_##name:                                                          \
    return plan_dequantize(args_as<DequantizeArgs>(args), static_cast<int>(FormatId::name)); \
  case KernelId::matvec_##name:                                                              \
    return plan_matvec(args_as<ProductArgs>(args), static_cast<int>(FormatId::name));        \
  case KernelId::matmul_small_##name:                                                        \
    return plan_matmul_small(args_as<ProductArgs>(args), static_cast<int>(FormatId::name));  \
  case KernelId::matmul_large_##name:                                                        \
    return plan_matmul_large(args_as<ProductArgs>(args), static_cast<int>(FormatId::name));  \
  case KernelId::moe_up_##name:                                                              \
    return plan_moe_up(args_as<MoeArgs>(args), static_cast<int>(FormatId::name));            \
  case KernelId::moe_down_##name:                                                            \
    return plan_moe_down(args_as<MoeArgs>(args), static_cast<int>(FormatId::name));          \
  case KernelId::moe_up_batch_##name:                                                        \
    return plan_moe_up_batch(args_as<MoeArgs>(args), static_cast<int>(FormatId::name));      \
  case KernelId::moe_down_batch_##name:                                                      \
    return plan_moe_down_batch(args_as<MoeArgs>(args), static_cast<int>(FormatId::name));
    LUTKERN_CUDA_TILE_FORMATS(LUTKERN_PLANS_OF)
#undef LUTKERN_PLANS_OF
    case KernelId::quantize:
      return plan_quantize(args_as<QuantizeArgs>(args), kNoFormat);
    case KernelId::moe_up_mixed:
      return plan_moe_up_mixed(args_as<MoeArgs>(args), kNoFormat);
    case KernelId::moe_up_batch_mixed:
      return plan_moe_up_batch_mixed(args_as<MoeArgs>(args), kNoFormat);
    case KernelId::dequantize_any:
      return plan_dequantize_any(args_as<DequantizeArgs>(args), kNoFormat);
    case KernelId::product_any:
      return plan_product_any(args_as<ProductArgs>(args), kNoFormat);
    case KernelId::moe_up_any:
      return plan_moe_up_any(args_as<MoeArgs>(args), kNoFormat);
    case KernelId::moe_down_any:
      return plan_moe_down_any(args_as<MoeArgs>(args), kNoFormat);
    case KernelId::count:
      break;
  }
  return Plan{};
}

}  // namespace cuda
}  // namespace lutkern
