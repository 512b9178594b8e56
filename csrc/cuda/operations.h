// The operations on a device: where arrays are staged, what scratch they take, and which kernels run.
//
// Arguments are checked, and sizes below 2^31 (arguments.h); weights lie on the device. False: failure() has the
// reason. Arrays of the device are only queued on; an operation with arrays of the CPU is done on return.
#pragma once
#include "../backend.h"
#include "device.h"

namespace lutkern {
namespace cuda {

enum : int64_t {
  kFewPairs = 32  // of a token and an expert: up to here pair by pair, then by expert
};

// True for the formats that have tiles here.
bool has_tiles(FormatId format);
// Bytes of a row of tiles: 32 rows of a weight with that many columns.
int64_t tile_row_bytes(FormatId format, int64_t cols);

bool dequantize(Device& device, const Weight& w, Dtype dtype, void* out, Stream stream);
bool multiply(Device& device, const ProductWork& work, Stream stream);
bool moe(Device& device, const MoeWork& work, Stream stream);
// One side may be in the memory of the CPU, in blocks; both sides have the same format and shape.
bool repack(Device& device, const Weight& from, const Weight& to, Stream stream);

// The first kernel that an operation on a weight would launch: for moe, with gate and up and down of that format, and
// each token with one expert.
KernelId product_kernel(const Device& device, FormatId format, Layout layout, int64_t tokens);
KernelId moe_kernel(const Device& device, FormatId format, Layout layout, int64_t pairs);
KernelId repack_kernel(FormatId format, bool to_tiles);
KernelId dequantize_kernel(FormatId format, Layout layout);

}  // namespace cuda
}  // namespace lutkern
