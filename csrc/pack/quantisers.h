// The packer of each block type. A format that is read but not written keeps the null packer of the primary template.
#pragma once
#include "pack.h"

namespace lutkern {

template <typename Block>
Packer packer_of() {
  return {nullptr, nullptr};
}

template <>
Packer packer_of<Iq1S>();
template <>
Packer packer_of<Iq1M>();
template <>
Packer packer_of<Iq2Xxs>();
template <>
Packer packer_of<Iq2Xs>();
template <>
Packer packer_of<Iq2S>();
template <>
Packer packer_of<Iq3Xxs>();
template <>
Packer packer_of<Iq3S>();

}  // namespace lutkern
