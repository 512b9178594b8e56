// The whole CPU contract: tables of kernels, one or two for each row of instruction sets. A null entry means: use the
// next row down the list.
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
  const int16_t* sum16;  // the same over 16 columns, token_stride / 16 apart
  int64_t token_stride;  // padded columns
};

// Rows of a weight: cols is the number of stored columns, a multiple of the block.
struct Rows {
  const uint8_t* data;
  int64_t row_bytes;
  int64_t n_rows;
  int64_t cols;
};

// Rows of tiles, 16 rows of a weight each: see tiles/tile.h. cols is a multiple of the columns of a tile.
struct TileRows {
  const uint8_t* data;
  int64_t row_bytes;  // of a row of tiles
  int64_t n_tiles;    // rows of tiles
  int64_t cols;
};

// out[r] = row r times x
using GemvFn = void (*)(const Rows& rows, const Activations& x, float* out);
// out[i * out_stride + r] = row r times token[i] of x, i < n_tokens
using GemmFn = void (*)(const Rows& rows, const Activations& x, const int32_t* token, int64_t n_tokens, float* out,
                        int64_t out_stride);
// The same for tiles, which write 16 rows for each row of tiles
using GemvTilesFn = void (*)(const TileRows& rows, const Activations& x, float* out);
using GemmTilesFn = void (*)(const TileRows& rows, const Activations& x, const int32_t* token, int64_t n_tokens,
                             float* out, int64_t out_stride);
// The same with float activations, x[token[i] * x_stride], columns padded with zeros like the integer ones
using GemmFloatFn = void (*)(const Rows& rows, const float* x, int64_t x_stride, const int32_t* token, int64_t n_tokens,
                             float* out, int64_t out_stride);
// Streamed results do not go through the caches. out and all rows of it are then multiples of 16 bytes. A request: a
// kernel may do as always.
enum class Stores { cached, streamed };
// out[c] for c < cols, which may end inside the last block
using DequantizeFn = void (*)(const uint8_t* row, int64_t cols, float* out, Stores stores);
// out[r * out_stride + c] = column first + c of row r of one row of tiles, c < n, r < n_rows <= 16. first is a multiple
// of 256.
using DequantizeTilesFn = void (*)(const TileRows& rows, int64_t first, int64_t n, int n_rows, float* out,
                                   int64_t out_stride, Stores stores);
// Numbers of 16 bits: nearest, ties to even; a NaN stays one.
using NarrowFn = void (*)(const float* x, int64_t n, uint16_t* out);
// x: cols (a multiple of 256), already padded
using QuantizeFn = void (*)(const float* x, int64_t cols, int8_t* q, float* scale, int16_t* sum, int16_t* sum16);

// Entries of one row of instruction sets. Those for tiles lie in a file of their own.
struct TileKernels {
  const char* name;
  GemvTilesFn gemv[kFormatCount];
  GemmTilesFn gemm[kFormatCount];
  DequantizeTilesFn dequantize[kFormatCount] = {};  // an ISA may have none
};

struct BlockKernels {
  const char* name;
  GemvFn gemv[kFormatCount];
  GemmFn gemm[kFormatCount];
  GemmFloatFn gemm_float[kFormatCount];
  DequantizeFn dequantize[kFormatCount];
  QuantizeFn quantize;
  NarrowFn to_f16 = nullptr;
  NarrowFn to_bf16 = nullptr;
};

extern const BlockKernels kScalarKernels;
extern const BlockKernels kAvx2Kernels;
extern const BlockKernels kNeonKernels;
extern const BlockKernels kNeonI8mmKernels;
extern const BlockKernels kAvx512Kernels;
extern const TileKernels kAvx2TileKernels;
extern const TileKernels kAvx512TileKernels;
extern const TileKernels kNeonTileKernels;
extern const TileKernels kNeonI8mmTileKernels;

// What runs, with the row that supplied each entry. Only the entries for tiles may be null: then tiles go through
// blocks.
struct CpuKernels {
  const char* name;  // of the row at which the walk starts
  GemvFn gemv[kFormatCount];
  GemmFn gemm[kFormatCount];
  GemmFloatFn gemm_float[kFormatCount];
  DequantizeFn dequantize[kFormatCount];
  GemvTilesFn gemv_tiles[kFormatCount];
  GemmTilesFn gemm_tiles[kFormatCount];
  DequantizeTilesFn dequantize_tiles[kFormatCount];
  QuantizeFn quantize;
  NarrowFn to_f16;
  NarrowFn to_bf16;

  struct Sources {
    const char* gemv[kFormatCount];
    const char* gemm[kFormatCount];
    const char* gemm_float[kFormatCount];
    const char* dequantize[kFormatCount];
    const char* gemv_tiles[kFormatCount];
    const char* gemm_tiles[kFormatCount];
    const char* dequantize_tiles[kFormatCount];
  } source;
};

// dispatch.cpp
const CpuKernels& kernels();
const char* isa_at(int index);
bool isa_supported(const char* name);
// False: the name is unknown or the processor lacks it. Null: the best row.
bool use_isa(const char* name);

}  // namespace lutkern
