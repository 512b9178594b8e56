// Activations in shared memory, as the inner loops read them: 48 bytes for each 32 columns, the same for all lanes.
//
//   byte 0..31    32 codes
//   byte 32..35   their scale
//   byte 36..47   i32 -72 * sum of all codes, of the first 16, of the other 16: what iq1 starts its sums with (dot.cuh)
//
// staged by all threads of a block, between two barriers. From floats: eight lanes share 32 columns; from integers
// that a kernel before this one wrote: one lane copies 32 columns. Columns past the last one are zeros.
#pragma once
#include "block_plan.h"
#include "numbers.cuh"

namespace lutkern {
namespace cuda {

LK_DEVICE void store_group_tail(uint8_t* group, float scale, int first, int second) {
  store16(group + 32, Words4{bits_of_float(scale), static_cast<uint32_t>(-72 * (first + second)),
                             static_cast<uint32_t>(-72 * first), static_cast<uint32_t>(-72 * second)});
}

// Four numbers of a row from column on, zeros past the last one
struct Numbers4 {
  float v[4];
};

LK_DEVICE Numbers4 load_numbers4(const MatrixArgs& x, int64_t row, int column) {
  Numbers4 out = {{0.0f, 0.0f, 0.0f, 0.0f}};
  const int64_t at = row * x.row_stride + column;
  const int bytes = x.dtype == kF32 ? 4 : 2;
  const uint8_t* from = static_cast<const uint8_t*>(x.data) + bytes * at;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(4 * bytes) == 0;
  if (!aligned || column + 4 > x.cols) {
    for (int j = 0; j < 4; ++j) {
      if (column + j < x.cols) out.v[j] = load_number(x.data, x.dtype, at + j);
    }
  } else if (x.dtype == kF32) {
    const Words4 w = constant_load16(from);
    out = {{float_of_bits(w.x), float_of_bits(w.y), float_of_bits(w.z), float_of_bits(w.w)}};
  } else {
    const Words2 w = constant_load8(from);
    if (x.dtype == kF16) {
      out = {{float_of_half(w.x & 0xffffu), float_of_half(w.x >> 16), float_of_half(w.y & 0xffffu),
              float_of_half(w.y >> 16)}};
    } else {
      out = {{float_of_bits(w.x << 16), float_of_bits(w.x & 0xffff0000u), float_of_bits(w.y << 16),
              float_of_bits(w.y & 0xffff0000u)}};
    }
  }
  return out;
}

// n_tiles of 256 columns of row `row` of x, from tile first_tile on
LK_DEVICE void stage_floats(uint8_t* staged, const MatrixArgs& x, int64_t row, int first_tile, int n_tiles) {
  const uint32_t part = lane() % 8;  // of 32 columns
  for (uint32_t first = 4 * warp(); first < 8u * static_cast<uint32_t>(n_tiles); first += threads() / 8) {
    const uint32_t group = first + lane() / 8;
    const int column = 256 * first_tile + static_cast<int>(32 * group + 4 * part);
    const Numbers4 numbers = load_numbers4(x, row, column);
    uint32_t largest = 0;
    for (int j = 0; j < 4; ++j) largest = larger(largest, magnitude_bits(numbers.v[j]));
    for (uint32_t mask = 1; mask < 8; mask *= 2) largest = larger(largest, shuffle_xor(largest, mask));
    const QuantizeRule rule = quantize_rule(largest);
    uint32_t codes = 0;
    for (int j = 0; j < 4; ++j) {
      codes |= (static_cast<uint32_t>(quantize_number(numbers.v[j], rule)) & 0xffu) << (8 * j);
    }
    int sum = dp4a(codes, 0x01010101u, 0);
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    const int other = shuffle_xor(sum, 4);
    store4(staged + kStagedGroup * group + 4 * part, codes);
    if (part == 0) store_group_tail(staged + kStagedGroup * group, rule.scale, sum, other);
  }
}

// n_groups of 32 columns of row `row`, from group first on
LK_DEVICE void stage_integers(uint8_t* staged, const Quantized& x, int64_t row, int first, int n_groups) {
  const int8_t* codes = x.q + row * x.stride + kGroup * first;
  const float* scales = x.scale + row * (x.stride / kGroup) + first;
  for (uint32_t g = thread(); g < static_cast<uint32_t>(n_groups); g += threads()) {
    uint8_t* group = staged + kStagedGroup * g;
    int sums[2];
    for (int half = 0; half < 2; ++half) {
      const Words4 q = constant_load16(codes + kGroup * g + 16 * half);
      sums[half] = dp4a(q.x, 0x01010101u, dp4a(q.y, 0x01010101u, 0));
      sums[half] = dp4a(q.z, 0x01010101u, dp4a(q.w, 0x01010101u, sums[half]));
      store16(group + 16 * half, q);
    }
    store_group_tail(group, float_of_bits(constant_load4(scales + g)), sums[0], sums[1]);
  }
}

}  // namespace cuda
}  // namespace lutkern
