// What a packed weight is, below the boundary: checked once in api.cpp, trusted from there on.
#pragma once
#include <stdint.h>
#include <string.h>

#include "formats/formats.h"

namespace lutkern {

enum : int64_t { kMaxElements = int64_t{1} << 46 };

struct FormatInfo {
  const char* name;
  int ggml_type;
  int block_size;
  int block_bytes;
  bool is_float;
};

inline constexpr FormatInfo kFormatInfo[kFormatCount] = {
#define LUTKERN_INFO(name, Block) \
  {#name, Block::kGgmlType, Block::kBlockSize, Block::kBlockBytes, Block::kIsFloat != 0},
    LUTKERN_FORMATS(LUTKERN_INFO)
#undef LUTKERN_INFO
};

enum class Layout : int { blocks = 0, tiles = 1 };

// Matrices, one after another.
struct Weight {
  FormatId format;
  Layout layout;
  int64_t experts;
  int64_t rows;
  int64_t cols;          // as the user gave them
  int64_t stored_cols;   // rounded up to whole blocks
  int64_t row_bytes;     // of a row of blocks, or of a row of tiles
  int64_t expert_bytes;  // of a matrix
  const uint8_t* data;
  int32_t device;  // 0: data lies in the memory of the CPU

  const FormatInfo& info() const { return kFormatInfo[static_cast<int>(format)]; }
  // Row r of the blocks, or row r of the tiles
  const uint8_t* row(int64_t expert, int64_t r) const { return data + expert * expert_bytes + r * row_bytes; }
};

enum class Dtype : int { f32 = 0, f16 = 1, bf16 = 2 };

// Numbers that come in: rows x cols, row_stride elements from row to row.
struct Matrix {
  const void* data;
  Dtype dtype;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int32_t device;  // 0: data lies in the memory of the CPU

  // n numbers of a row from column first, as float
  void load(int64_t row, int64_t first, int64_t n, float* out) const {
    const int64_t begin = row * row_stride + first;
    if (dtype == Dtype::f32) {
      memcpy(out, static_cast<const uint8_t*>(data) + 4 * begin, static_cast<size_t>(n) * sizeof(float));
      return;
    }
    const uint8_t* halves = static_cast<const uint8_t*>(data) + 2 * begin;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t bits = load_u16(halves + 2 * i);
      out[i] = dtype == Dtype::f16 ? float_from_half(bits) : float_from_bits(bits << 16);
    }
  }
};

}  // namespace lutkern
