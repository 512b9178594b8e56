// Metal behind the boundary: one function for each of the table.
#include "../backend.h"

namespace lutkern {
namespace metal {
namespace {

const char kAbsent[] = "no Metal: the Objective-C runtime was not found";

Reason reason() { return Reason{LUTKERN_ERROR_DEVICE, kAbsent}; }
int32_t device_count() { return 0; }
const char* no_devices() { return kAbsent; }
int32_t driver_version() { return 0; }
const char* image(int64_t* nbytes) {
  *nbytes = 0;
  return nullptr;
}
bool open(int) { return false; }
const char* kernel(int, FormatId, lutkern_operation, Layout, int64_t) { return nullptr; }
template <class... Parameters>
bool none(int, Parameters...) {
  return false;
}

}  // namespace
}  // namespace metal

const Backend kMetalBackend = {LUTKERN_METAL,
                               "metal",
                               metal::reason,
                               metal::device_count,
                               metal::no_devices,
                               metal::driver_version,
                               metal::image,
                               metal::open,
                               metal::none<lutkern_device_info*>,
                               metal::kernel,
                               metal::none<size_t, void*, void**>,
                               metal::none<const void*, size_t, void**>,
                               metal::none<const CopyWork&, void*>,
                               metal::none<const Weight&, Dtype, void*, void*>,
                               metal::none<const ProductWork&, void*>,
                               metal::none<const MoeWork&, void*>,
                               metal::none<const Weight&, const Weight&, const Runner&, void*>,
                               metal::none<void*>,
                               metal::none<void**>,
                               metal::none<void*, bool*>,
                               nullptr,
                               nullptr,
                               nullptr,
                               metal::none<void**>,
                               metal::none<void*, void*>,
                               metal::none<void*, void*>,
                               metal::none<void*, void*, float*>,
                               metal::none<void*, void*>,
                               metal::none<void*>,
                               nullptr,
                               metal::none<void*>};

}  // namespace lutkern
