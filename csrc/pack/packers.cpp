// Which rows of quantisers the build has. Compiled with the flags of the ABI floor.
#include <string.h>

#include "pack.h"

namespace lutkern {

const PackKernels* pack_kernels(const char* isa) {
  static constexpr const PackKernels* kRows[] = {
#if defined(LUTKERN_HAVE_AVX2)
    &kAvx2PackKernels,
#endif
    &kScalarPackKernels,
  };
  for (const PackKernels* row : kRows) {
    if (strcmp(row->name, isa) == 0) return row;
  }
  return nullptr;
}

}  // namespace lutkern
