// The operations on a Metal device: what buffers they bind, what is staged, and which kernels run.
//
// Arguments are checked, and sizes below 2^31 (arguments.h); weights lie on the device. False: failure() has the reason.
// Arrays of the device are only queued on; an operation with arrays of the CPU is done on return.
#pragma once
#include "../backend.h"
#include "device.h"

namespace lutkern {
namespace metal {

enum : int64_t {
  kSmallTokens = 8,  // matmul_small; more: matmul_large
  kFewPairs = 32     // of a token and an expert: up to here, or up to one for each expert, pair by pair; then by expert
};

bool dequantize(Device& device, const Weight& w, Dtype dtype, void* out, void* stream);
bool multiply(Device& device, const ProductWork& work, void* stream);
bool moe(Device& device, const MoeWork& work, void* stream);
// One side may be in the memory of the CPU, in blocks; both sides have the same format and shape. Done on return.
bool repack(Device& device, const Weight& from, const Weight& to, const Runner& runner, void* stream);
// A copy inside of the device is only queued, where its addresses and size are multiples of 4.
bool copy(Device& device, const CopyWork& work, void* stream);

// Queued work of the stream, if it may use memory of the device, is waited for.
bool wait_for_users(Device& device, const void* data, void* stream);

// The first kernel that an operation on a weight would launch: for moe, with gate and up and down of that format, and
// each token with one of at most kFewPairs experts.
KernelId dequantize_kernel(Layout layout);
KernelId product_kernel(Layout layout, bool exact, int64_t tokens);
KernelId moe_kernel(FormatId format, Layout layout, int64_t pairs);

}  // namespace metal
}  // namespace lutkern
