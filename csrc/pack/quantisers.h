// The packer of each block type. A format that is read but not written keeps the null packer of the primary template.
#pragma once
#include "pack.h"

namespace lutkern {

template <typename Block>
Packer packer_of() {
  return {nullptr, nullptr};
}

}  // namespace lutkern
