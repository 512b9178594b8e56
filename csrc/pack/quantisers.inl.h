// Every quantiser, and the packer of each block type. Included by each instruction set's file inside its anonymous
// namespace, after kVectorBytes, the width of its vectors. A format that is read but not written keeps the null packer
// of the primary template.

template <typename Block>
constexpr Packer packer_of() {
  return {nullptr, nullptr};
}

#include "block_input.inl.h"

#include "lanes.inl.h"

#include "grid_search.inl.h"

#include "grid_scale.inl.h"

#include "grid_block.inl.h"

#include "iq1.inl.h"

#include "iq2.inl.h"

#include "iq3.inl.h"

#include "panel.inl.h"

#include "scale_search.inl.h"

#include "line_search.inl.h"

#include "k_quants.inl.h"

#include "iq4.inl.h"

#include "legacy.inl.h"

#include "floats.inl.h"

#include "ternary.inl.h"

#define LUTKERN_PACKER(name, Block) packer_of<Block>(),
