// Sizes of the kernels for one token, read by the kernels and by their plans.
#pragma once
#include "arguments.h"

namespace lutkern {
namespace metal_args {

enum : int {
  kOneSimdgroups = 16,                       // of matvec and moe_down: they split the columns
  kUpSimdgroups = 8,                         // of moe_up, which may have two tables
  kRowsTogether = 2,                         // rows of tiles of a threadgroup of matvec and moe_down
  kRowsOfGroup = kRowsTogether * kTileRows,  // rows of weights of theirs
  kMostSlots = 64                            // k of moe_down
};

}  // namespace metal_args
}  // namespace lutkern
