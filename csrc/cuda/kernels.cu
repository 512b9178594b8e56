// Every kernel, one translation unit: compiled by nvcc for the devices, and as host C++ for the simulator.
//
// A family's text defines its kernels with LK_KERNEL; their names are those of kernels.h, where the host and the tests
// look them up. How each is launched is in <family>_plan.h.
#include "kernels.h"

#include "machine.h"

// Placeholders stand for families whose text is still to come.
#define LUTKERN_NO_KERNEL(name, Args) \
  namespace lutkern {                 \
  namespace cuda {                    \
  LK_KERNEL(name, Args) { trap(); }   \
  }                                   \
  }
#define LUTKERN_FOR_TILES(kernel, Args)     \
  LUTKERN_NO_KERNEL(kernel##_iq1_s, Args)   \
  LUTKERN_NO_KERNEL(kernel##_iq1_m, Args)   \
  LUTKERN_NO_KERNEL(kernel##_iq2_xxs, Args) \
  LUTKERN_NO_KERNEL(kernel##_iq2_xs, Args)  \
  LUTKERN_NO_KERNEL(kernel##_iq2_s, Args)   \
  LUTKERN_NO_KERNEL(kernel##_iq3_xxs, Args) \
  LUTKERN_NO_KERNEL(kernel##_iq3_s, Args)

#if __has_include("any.cuh")
#include "any.cuh"
#else
LUTKERN_NO_KERNEL(dequantize_any, DequantizeArgs)
LUTKERN_NO_KERNEL(product_any, ProductArgs)
LUTKERN_NO_KERNEL(moe_up_any, MoeArgs)
LUTKERN_NO_KERNEL(moe_down_any, MoeArgs)
#endif
#if __has_include("dequantize.cuh")
#include "dequantize.cuh"
#else
LUTKERN_FOR_TILES(dequantize, DequantizeArgs)
#endif
#if __has_include("matmul.cuh")
#include "matmul.cuh"
#else
LUTKERN_FOR_TILES(matmul_small, ProductArgs)
LUTKERN_FOR_TILES(matmul_large, ProductArgs)
#endif
#if __has_include("matvec.cuh")
#include "matvec.cuh"
#else
LUTKERN_FOR_TILES(matvec, ProductArgs)
#endif
#if __has_include("moe_batch.cuh")
#include "moe_batch.cuh"
#else
LUTKERN_FOR_TILES(moe_up_batch, MoeArgs)
LUTKERN_FOR_TILES(moe_down_batch, MoeArgs)
LUTKERN_NO_KERNEL(moe_up_batch_mixed, MoeArgs)
#endif
#if __has_include("moe_one.cuh")
#include "moe_one.cuh"
#else
LUTKERN_FOR_TILES(moe_up, MoeArgs)
LUTKERN_FOR_TILES(moe_down, MoeArgs)
LUTKERN_NO_KERNEL(moe_up_mixed, MoeArgs)
#endif
#if __has_include("quantize.cuh")
#include "quantize.cuh"
#else
LUTKERN_NO_KERNEL(quantize, QuantizeArgs)
#endif
#if __has_include("repack.cuh")
#include "repack.cuh"
#else
LUTKERN_FOR_TILES(to_tiles, RepackArgs)
LUTKERN_FOR_TILES(to_blocks, RepackArgs)
#endif
