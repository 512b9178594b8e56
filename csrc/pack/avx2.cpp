// The quantisers compiled for AVX2: twice the lanes, the same arithmetic, the same bytes.
#include "half.h"
#include "pack.h"

namespace lutkern {
namespace {

constexpr int kVectorBytes = 32;

#include "quantisers.inl.h"

}  // namespace

extern const PackKernels kAvx2PackKernels = {"avx2", {LUTKERN_FORMATS(LUTKERN_PACKER)}};

}  // namespace lutkern
