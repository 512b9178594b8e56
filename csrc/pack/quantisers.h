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
template <>
Packer packer_of<Tq10>();
template <>
Packer packer_of<Tq20>();
template <>
Packer packer_of<Q2K>();
template <>
Packer packer_of<Q4K>();
template <>
Packer packer_of<Q6K>();
template <>
Packer packer_of<Iq4Nl>();
template <>
Packer packer_of<Q80>();
template <>
Packer packer_of<Bf16>();
template <>
Packer packer_of<F16>();
template <>
Packer packer_of<F32>();

}  // namespace lutkern
