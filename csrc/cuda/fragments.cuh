// 32 rows of weights times up to 8 kN tokens by the matrix units: what matmul.cuh and moe_batch.cuh are made of.
//
//   acc[row, token] += (sum over 32, or 16, columns of q_w q_x) * scale_w * scale_x
//
// A warp has a tile (gpu/tile.h). For each 64 columns of it
//
//   lane = row:  8 codewords -> 64 int8 -> panel in shared memory (of this warp)        4 STS.128
//                scales -> beside it                                                     2 (or 4) STS
//   for each 8 tokens: B of 64 columns                                                   1 LDSM.x4
//     for each 32 columns, for each 16 rows:
//       c = 1.5 2^23 + A B                                                               IMMA.16832 (2 IMMA.16816)
//       acc = fma((c - 1.5 2^23) * scale_w, scale_x, acc), four numbers of a lane        12 (20)
//
// What matters: one table lookup serves all tokens; LDSM gives a lane what the matrix unit wants, for A (1 for 16 x 32)
// and for B; the accumulator starts as the bits of 1.5 2^23, so that its sum is a float as it stands, minus that
// number: FADD in place of I2F, which is eight times slower. |sum| <= 32 * 127 * 127 < 2^22. Where the weight scale is
// for 16 columns, each half has a product of its own, and the two meet before the activation scale. In code for sm_90a
// a tile of iq1_m takes about 990 instructions with 8 tokens and 1600 with 16, 390 of them to unpack it: 12 for a
// codeword.
//
//   panel of A   32 rows x 64 bytes; 16 bytes c of row r lie at 64 r + 16 (c ^ (r / 2) % 4)
//   panel of B   tokens x 128 bytes; 16 bytes c of token i lie at 128 i + 16 (c ^ i % 8)
//   scales of A  float [32, or 16, columns][lane g: rows g, g + 8, g + 16, g + 24]: one LDS.128
//   scales of B  float [group of 32][tokens]
//
// So eight rows that LDSM reads, and eight lanes of an STS.128, meet eight different quarters of the banks.
//
// The caller guarantees: whole warps; the number of tokens is the same in all lanes; panels of B that other lanes
// filled were shown by a barrier; the panel of A is the warp's own.
#pragma once
#include "fragments_plan.h"
#include "lane.cuh"
#include "quantize.cuh"

namespace lutkern {
namespace cuda {

// Blocks that an SM shall hold, as far as registers go. sm_75 has room for the shared memory of one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
enum : int { kBlocksOfSm = 1, kLargeBlocksOfSm = 2 };
#else
enum : int { kBlocksOfSm = 2, kLargeBlocksOfSm = 3 };
#endif

// A scale for each 16 columns: otherwise for each 32.
template <class Block>
struct TwoScales {
  enum : int { kCount = 1 };
};
template <>
struct TwoScales<Iq1M> {
  enum : int { kCount = 2 };
};
template <>
struct TwoScales<Iq2Xs> {
  enum : int { kCount = 2 };
};
template <>
struct TwoScales<Iq2S> {
  enum : int { kCount = 2 };
};

LK_DEVICE uint32_t place_in_a(uint32_t row, uint32_t c) { return 64 * row + 16 * (c ^ ((row / 2) % 4)); }
LK_DEVICE uint32_t place_in_b(uint32_t token, uint32_t c) { return 128 * token + 16 * (c ^ (token % 8)); }

// Activations as a warp meets them: 128 columns of tokens.
struct PanelB {
  const uint8_t* codes;
  const float* scales;  // [4][stride]
  int stride;           // tokens that there is room for
  int eights;           // 8-token steps that are wanted
};

// ---- tables ----

// Codes of eight weights of iq1 in the order of their nibbles, 0 .. 5 for -9 -7 -1 1 7 9, from an entry of lane.cuh:
// one PRMT makes four signed bytes of them, where dot.cuh wants numbers without a sign.
LK_DEVICE uint32_t iq1_codes(uint32_t entry) {
  const uint32_t codes = ((entry >> 1) & 0x66666666u) | (entry & 0x11111111u);
  const uint32_t first = codes & 0x0f0f0f0fu, last = (codes >> 4) & 0x0f0f0f0fu;
  return byte_perm(first | first >> 4, last | last >> 4, 0x6420);
}

// By all threads of a block; a barrier follows.
template <class Block>
LK_DEVICE void fill_codes(uint8_t* shared) {
  if constexpr (Tile<Block>::kFamily == 1) {
    const Block* format = nullptr;
    for (int i = static_cast<int>(thread()); i < Table<Block>::kEntries; i += static_cast<int>(threads())) {
      const uint32_t shift = i < 2048 ? 0x11111111u : 0;  // +1/8 or -1/8
      store4(shared + 4 * i, iq1_codes(entry(format, static_cast<uint32_t>(i) & 2047u) + shift));
    }
  } else {
    Table<Block>::fill(shared, thread(), threads());
  }
}

template <class Block>
LK_DEVICE void codes_of(const Lane<Block>& weights, int i, const Table<Block>& table, uint32_t& low, uint32_t& high) {
  if constexpr (Tile<Block>::kFamily == 1) {
    const uint32_t nibbles = table.at(iq1_offset<Block>(weights.words.word, i));
    low = byte_perm(0x01fff9f7u, 0x00000907u, nibbles);
    high = byte_perm(0x01fff9f7u, 0x00000907u, nibbles >> 16);
  } else {
    weights.codes(i, table, low, high);
  }
}

// ---- a tile to panels of A ----

// What the scales of a lane's row are multiples of
template <class Block>
LK_DEVICE float row_scale(const LaneWords<Block>& words) {
  using T = Tile<Block>;
  return float_of_half(T::kHasHalf ? words.half : words.word[T::kWords - 1] >> 16);
}

// Columns 64 kQuarter .. of the lane's row to the panel. next, where it is not null: the words that no later column
// needs are loaded from there.
template <class Block, int kQuarter>
LK_DEVICE void unpack_quarter(LaneWords<Block>& words, const uint8_t* next, const Table<Block>& table, uint8_t* panel) {
  const uint32_t row = lane();
  const Lane<Block> weights = {words, row_scale(words)};
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    Words4 sixteen;
    codes_of(weights, 8 * kQuarter + 2 * c, table, sixteen.x, sixteen.y);
    codes_of(weights, 8 * kQuarter + 2 * c + 1, table, sixteen.z, sixteen.w);
    store16(panel + place_in_a(row, static_cast<uint32_t>(c)), sixteen);
  }
  uint8_t* scales = panel + kPanelCodes + 4 * (4 * (row % 8) + row / 8);
  constexpr int kScales = 2 * TwoScales<Block>::kCount;
#pragma unroll
  for (int i = 0; i < kScales; ++i) {
    const float scale = weights.scale16(4 * kQuarter + i * (4 / kScales));
    store4(scales + 4 * kTileRows * i, bits_of_float(scale));
  }
  load_words_after(words, next != nullptr, next, row, 2 * kQuarter);
  load_words_after(words, next != nullptr, next, row, 2 * kQuarter + 1);
}

struct Floats4 {
  float v[4];
};
LK_DEVICE Floats4 load_floats4(const void* p) {
  const Words4 bits = load16(p);
  return {{float_of_bits(bits.x), float_of_bits(bits.y), float_of_bits(bits.z), float_of_bits(bits.w)}};
}

// 16 rows x 8 tokens x 32 columns: a lane has rows g and g + 8, their scales in w[half][0] and w[half][1].
template <int kScales>
LK_DEVICE void multiply_32(const uint32_t (&a)[4], uint32_t b_low, uint32_t b_high, const float (&w)[kScales][2],
                           float x0, float x1, float (&acc)[4]) {
  const int magic = static_cast<int>(kMagicBits);
  int c[kScales][4];
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    for (int i = 0; i < 4; ++i) c[s][i] = magic;
  }
  if constexpr (kScales == 1) {
    const uint32_t b[2] = {b_low, b_high};
    mma_16x8x32(c[0], a, b);
  } else {
    const uint32_t low[2] = {a[0], a[1]}, high[2] = {a[2], a[3]};
    mma_16x8x16(c[0], low, b_low);
    mma_16x8x16(c[1], high, b_high);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float sum = (float_of_bits(static_cast<uint32_t>(c[0][i])) - kMagic) * w[0][i / 2];
    if constexpr (kScales == 2) {
      sum = fma_f32(float_of_bits(static_cast<uint32_t>(c[1][i])) - kMagic, w[1][i / 2], sum);
    }
    acc[i] = fma_f32(sum, i % 2 == 0 ? x0 : x1, acc[i]);
  }
}

// 32 columns of the panel of A, for all rows: fragments and scales of a lane
template <int kScales>
struct GroupOfA {
  uint32_t a[2][4];
  Floats4 scale[kScales];
};

template <int kScales>
LK_DEVICE GroupOfA<kScales> load_group(const uint8_t* panel, uint32_t group) {
  const uint32_t matrix = lane() / 8, line = lane() % 8;
  GroupOfA<kScales> out;
#pragma unroll
  for (uint32_t m = 0; m < 2; ++m) {
    load_matrices(out.a[m], panel + place_in_a(16 * m + 8 * (matrix % 2) + line, 2 * group + matrix / 2));
  }
#pragma unroll
  for (uint32_t s = 0; s < kScales; ++s) {
    out.scale[s] = load_floats4(panel + kPanelCodes + 4 * kTileRows * (kScales * group + s) + 16 * (lane() / 4));
  }
  return out;
}

// 32 rows x 8 tokens; x: the scales of the lane's two tokens
template <int kScales, int kN>
LK_DEVICE void multiply_8(const GroupOfA<kScales>& rows, uint32_t b_low, uint32_t b_high, const float* x,
                          float (&acc)[2][kN][4], int n) {
  const Words2 scales = load8(x);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    float w[kScales][2];
    for (int s = 0; s < kScales; ++s) {
      w[s][0] = rows.scale[s].v[2 * m];
      w[s][1] = rows.scale[s].v[2 * m + 1];
    }
    multiply_32<kScales>(rows.a[m], b_low, b_high, w, float_of_bits(scales.x), float_of_bits(scales.y), acc[m][n]);
  }
}

// The panel of A, 64 columns, with those columns of b: its columns 64 `quarter` ..
template <class Block, int kN>
LK_DEVICE void multiply_quarter(const uint8_t* panel, const PanelB& b, uint32_t quarter, float (&acc)[2][kN][4]) {
  constexpr int kScales = TwoScales<Block>::kCount;
  const uint32_t matrix = lane() / 8, line = lane() % 8;
  const float* scales = b.scales + 2 * static_cast<int>(quarter) * b.stride + 2 * (lane() % 4);
  if constexpr (kN == 1) {
    uint32_t v[4];  // both groups of 8 tokens
    load_matrices(v, b.codes + place_in_b(line, 4 * quarter + matrix));
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const GroupOfA<kScales> rows = load_group<kScales>(panel, static_cast<uint32_t>(group));
      multiply_8<kScales>(rows, v[2 * group], v[2 * group + 1], scales + group * b.stride, acc, 0);
    }
  } else {
    const uint32_t token = line + (b.stride > 8 ? matrix / 2 * 8 : 0);
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const GroupOfA<kScales> rows = load_group<kScales>(panel, static_cast<uint32_t>(group));
      const uint8_t* codes = b.codes + place_in_b(token, 4 * quarter + 2 * static_cast<uint32_t>(group) + matrix % 2);
      const float* x = scales + group * b.stride;
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        if (n < b.eights) {
          uint32_t v[4];  // one group of 16 tokens
          load_matrices(v, codes + 8 * kHalfTile * n);
          multiply_8<kScales>(rows, v[0], v[1], x + 8 * n, acc, n);
          if (n + 1 < b.eights) multiply_8<kScales>(rows, v[2], v[3], x + 8 * (n + 1), acc, n + 1);
        }
      }
    }
  }
}

// A tile with 256 columns of x: half(i) is called before its columns 128 i .. are read, and gives them.
// acc[m][n][i]: row 16 m + 8 (i / 2) + lane / 4, token 8 n + 2 (lane % 4) + i % 2. The loop is not unrolled: fields of
// a lane are found at compile time, so unpacking has a text for each quarter, and the product has one. Meanwhile words
// become those of the tile `next`, if it is not null.
template <class Block, int kN, class Half>
LK_DEVICE void multiply_tile(LaneWords<Block>& words, const uint8_t* next, const Table<Block>& table, uint8_t* panel,
                             const Half& half, float (&acc)[2][kN][4]) {
  PanelB b = {};
#pragma unroll 1
  for (uint32_t quarter = 0; quarter < 4; ++quarter) {
    if (quarter == 0) unpack_quarter<Block, 0>(words, next, table, panel);
    if (quarter == 1) unpack_quarter<Block, 1>(words, next, table, panel);
    if (quarter == 2) unpack_quarter<Block, 2>(words, next, table, panel);
    if (quarter == 3) unpack_quarter<Block, 3>(words, next, table, panel);
    warp_barrier();
    if (quarter % 2 == 0) b = half(static_cast<int>(quarter / 2));
    multiply_quarter<Block, kN>(panel, b, quarter % 2, acc);
    warp_barrier();
  }
}

template <int kN>
LK_DEVICE void clear(float (&acc)[2][kN][4]) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    for (int n = 0; n < kN; ++n) {
      for (int i = 0; i < 4; ++i) acc[m][n][i] = 0.0f;
    }
  }
}

// ---- activations into panels ----

// Two panels of B side by side: the 256 columns of a tile, as a warp quantises them token by token.
struct PanelsB {
  uint8_t* codes;  // [2][stride][128]
  float* scales;   // [8][stride]
  int stride;

  LK_MEMBER PanelB half(int i, int eights) const {
    return {codes + i * stride * kHalfTile, scales + 4 * i * stride, stride, eights};
  }
};

LK_DEVICE PanelsB panels_at(uint8_t* shared, int stride) {
  return {shared, reinterpret_cast<float*>(shared + stride * kTileCols), stride};
}

// By all lanes of a warp: columns column .. column + 255 of a row of x.
LK_DEVICE void stage_row(const MatrixArgs& x, bool whole_words, int64_t row, int column, const PanelsB& to,
                         uint32_t token) {
  float v[8];
  float scale;
  load_eight(x, whole_words, row, column + 8 * static_cast<int>(lane()), v);
  const Words2 codes = quantize_eight(v, scale);
  const uint32_t stride = static_cast<uint32_t>(to.stride);
  uint8_t* half = to.codes + lane() / 16 * stride * kHalfTile;
  store8(half + place_in_b(token, lane() % 16 / 2) + 8 * (lane() % 2), codes);
  if (lane() % 4 == 0) store4(to.scales + lane() / 4 * stride + token, bits_of_float(scale));
}

// Both halves of it, for multiply_tile
struct StagedHalves {
  const PanelsB& x;
  int eights;

  LK_MEMBER PanelB operator()(int i) const { return x.half(i, eights); }
};

// Zeros, by n threads together; bytes is a multiple of 16.
LK_DEVICE void clear_shared(uint8_t* shared, int bytes, uint32_t first, uint32_t n) {
  for (int i = 16 * static_cast<int>(first); i < bytes; i += 16 * static_cast<int>(n)) {
    store16(shared + i, Words4{0, 0, 0, 0});
  }
}

// ---- sums of several warps ----

// acc to sums[token][row]; room for 8 kN tokens
template <int kN>
LK_DEVICE void store_sums(const float (&acc)[2][kN][4], int eights, float* sums) {
  const uint32_t g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    if (n < eights) {
      for (uint32_t m = 0; m < 2; ++m) {
        for (uint32_t i = 0; i < 4; ++i) {
          const uint32_t token = 8 * static_cast<uint32_t>(n) + 2 * t + i % 2;
          store4(sums + token * kSumStride + 16 * m + 8 * (i / 2) + g, bits_of_float(acc[m][n][i]));
        }
      }
    }
  }
}

LK_DEVICE float load_float(const float* p) { return float_of_bits(load4(p)); }

}  // namespace cuda
}  // namespace lutkern
