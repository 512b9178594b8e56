// Every kernel, one translation unit: compiled by nvcc for the devices, and as host C++ for the simulator.
//
// A family's text defines its kernels with LK_KERNEL; their names are those of kernels.h, where the host and the tests
// look them up. How each is launched is in <family>_plan.h.
#include "kernels.h"

#include "any.cuh"
#include "dequantize.cuh"
#include "machine.h"
#include "matmul.cuh"
#include "matvec.cuh"
#include "moe_batch.cuh"
#include "moe_one.cuh"
#include "quantize.cuh"
#include "repack.cuh"
