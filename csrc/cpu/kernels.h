// The whole CPU contract: one table per instruction set row. A null entry means: use the next row down the list.
//
// Kernels get a row range, never allocate, never throw, never check.
#pragma once
#include <stdint.h>

#include "../formats/formats.h"

namespace lutkern {

enum : int {
  kActivationGroup = 32,  // columns that share an activation scale
  kSumGroup = 8,          // columns of one activation sum
  kActivationPad = 256,   // activations are padded with zeros to a multiple of this
};

// int8 activations, one token after another. q is token_stride bytes apart, scale token_stride / 32, sum
// token_stride / 8. x = scale * q; sum is the integer sum of q over 8 columns, for formats with an offset or a shift.
struct Activations {
  const int8_t* q;
  const float* scale;
  const int16_t* sum;
  int64_t token_stride;  // padded columns
};

// Rows of a weight: cols is the number of stored columns, a multiple of the block.
struct Rows {
  const uint8_t* data;
  int64_t row_bytes;
  int64_t n_rows;
  int64_t cols;
};

// out[r] = row r times x
using GemvFn = void (*)(const Rows& rows, const Activations& x, float* out);
// out[i * out_stride + r] = row r times token[i] of x, i < n_tokens
using GemmFn = void (*)(const Rows& rows, const Activations& x, const int32_t* token, int64_t n_tokens, float* out,
                        int64_t out_stride);
// The same with float activations, x[token[i] * x_stride], columns padded with zeros like the integer ones
using GemmFloatFn = void (*)(const Rows& rows, const float* x, int64_t x_stride, const int32_t* token, int64_t n_tokens,
                             float* out, int64_t out_stride);
// out[c] for c < cols, which may end inside the last block
using DequantizeFn = void (*)(const uint8_t* row, int64_t cols, float* out);
// x: cols (a multiple of 256), already padded
using QuantizeFn = void (*)(const float* x, int64_t cols, int8_t* q, float* scale, int16_t* sum);

struct CpuKernels {
  const char* name;
  GemvFn gemv[kFormatCount];
  GemmFn gemm[kFormatCount];
  GemmFloatFn gemm_float[kFormatCount];
  DequantizeFn dequantize[kFormatCount];
  QuantizeFn quantize;
};

extern const CpuKernels kScalarKernels;
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;

// dispatch.cpp. The table in use has no null entry; name is that of the row the walk starts at.
const CpuKernels& kernels();
// The row that supplied the entry of the table in use.
const char* gemv_source(FormatId format);
const char* gemm_source(FormatId format);
const char* gemm_float_source(FormatId format);
const char* dequantize_source(FormatId format);
const char* isa_at(int index);
bool isa_supported(const char* name);
// False: the name is unknown or the processor lacks it. Null: the best row.
bool use_isa(const char* name);

}  // namespace lutkern
