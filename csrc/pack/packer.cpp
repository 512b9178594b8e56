// Which function packs a format: the one place that expands the format list.
#include "quantisers.h"

namespace lutkern {

Packer packer(FormatId format) {
  switch (format) {
#define LUTKERN_PACKER(name, Block) \
  case FormatId::name:              \
    return packer_of<Block>();
    LUTKERN_FORMATS(LUTKERN_PACKER)
#undef LUTKERN_PACKER
    case FormatId::count:
      break;
  }
  return {nullptr, nullptr};
}

}  // namespace lutkern
