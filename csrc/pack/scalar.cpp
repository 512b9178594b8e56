// The quantisers compiled for the ABI floor: the judge of the faster rows and their fall-through.
#include "half.h"
#include "pack.h"

namespace lutkern {
namespace {

constexpr int kVectorBytes = 16;

#include "quantisers.inl.h"

}  // namespace

extern const PackKernels kScalarPackKernels = {"scalar", {LUTKERN_FORMATS(LUTKERN_PACKER)}};

}  // namespace lutkern
