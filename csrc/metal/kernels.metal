// Every Metal kernel: the text that libraries are compiled from, with macros in front of it that say for which formats
// (kernels.h). amalgamate.py puts what is included here in place; how each kernel is launched is in <family>_plan.h.
//
// The host turns fast math off. Decoded weights are exact to the bit: products and sums are rounded one by one, and fma() is
// written where one rounding is wanted.
#include "../formats/port.h"

#if __METAL_VERSION__ >= 320
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#else  // the words of C and of clang for it: Metal's own are younger
#pragma STDC FP_CONTRACT OFF
#pragma clang fp contract(off)
#endif

#include "arguments.h"
#include "numbers.metal"

// Helpers are in namespace lutkern::metal_kernels; kernels are outside of namespaces, because the host asks for plain names.
using namespace lutkern;
using namespace lutkern::metal_args;
using namespace lutkern::metal_kernels;

#if LK_TILES
#include "lane.metal"

#include "dequantize.metal"
#include "matmul_large.metal"
#include "matmul_small.metal"
#include "matvec.metal"
#include "moe_batch.metal"
#include "moe_one.metal"
#else
#include "any.metal"
#endif
