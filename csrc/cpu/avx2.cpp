#include "kernels.h"
namespace lutkern {
extern const CpuKernels kAvx2Kernels = {"avx2", {}, {}, {}, {}, nullptr};
}
