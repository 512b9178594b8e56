// The product of a lane's 256 weights with staged activations (activations.metal): what matvec, moe_up and moe_down are
// made of. Two rows of tiles of the same columns go together, so that an activation is read once for both.
//
//   sum = sum over 32 columns of scale_x * sum over 16 or 32 of (s + 1/2) * integer
//   weight . x = d * product_unit * sum
//
//   iq1   integer = sum over codewords of (bias + t) . x, begun with what that is too large;
//         iq1_m: + (4 + f) * sum8(x) / 4;   iq1_s: + (9/8 + shift) * sum32(x)
//   iq2   sum of halfs (weight * 2^-17) . x;   iq3: of weight (iq3_xxs: weight / 4) * 2^-14
//
//   for both halves of the tile, the words of the second moved to where those of the first were:
//     for each 32 columns: float4 tail; 4 times: uint4 x; for both rows: entry, halfs (lane.metal), 8 fma
//                          for both rows: (s + 1/2) * part, sum = fma(scale_x, .., sum)
//
// What matters: fma of two halfs and a float; AND, XOR and turns of lane.metal; threadgroup loads: an entry of 4 bytes
// takes about 3.5 cycles of a core, one of 8 bytes 7, x 4 (16 bytes for all lanes, shared by two rows). A sum of 32
// products is exact: all are integers of the same unit below 2^24.
//
// Operations of a lane for a codeword (8 weights of a row), loads and all that 32 columns and a tile add included,
// counted in what clang makes of this text (tests/sim/metal/count.py); and what 819 GB/s leave time for on 80 cores of
// 128 lanes at 1.4 GHz:
//
//              offset, entry  halfs  fma   x    the rest   together  room    cycles of threadgroup loads, of
//   iq1_s           3           4    8    0.5     4.5        20.0    27.3        5.6     6.8
//   iq1_m           3           5    9    0.5     3.4        20.9    30.6        5.7     7.7
//   iq2_xxs         3          12    8    0.5     2.2        25.7    38.3        9.1     9.6
//   iq2_xs          3          12    8    0.5     3.4        26.9    42.7        9.1    10.7
//   iq2_s           3          12    8    0.5     3.3        26.8    44.8        9.1    11.2
//   iq3_xxs         6          18    8    0.5     2.5        35.0    55.8        9.1    13.9     17.5 for a lookup
//   iq3_s           6          18    8    0.5     2.5        35.0    60.2        9.1    15.0     17.5 for a lookup
//
// The rest: for 32 columns the tail, its scales and, in iq1_s, its shift; for a tile the loads of its words, the moves
// to its second half, and d.
//
// The caller guarantees what lane.metal asks for.
#pragma once
#include "activations.metal"

namespace lutkern {
namespace metal_kernels {

template <class Block>
static inline float product_unit() {
  return Tile<Block>::kFamily == 1 ? 2.0f : 32768.0f;
}

// acc + four weights . x
static inline float dot4(half2 a, half2 b, uint x, uint y, float acc) {
  acc = fma(static_cast<float>(a.x), static_cast<float>(as_type<half2>(x).x), acc);
  acc = fma(static_cast<float>(a.y), static_cast<float>(as_type<half2>(y).x), acc);
  acc = fma(static_cast<float>(b.x), static_cast<float>(as_type<half2>(x).y), acc);
  return fma(static_cast<float>(b.y), static_cast<float>(as_type<half2>(y).y), acc);
}

// Of a row: the sum of its tile, and of 16 columns each of the 32 that are at work.
template <class Block>
struct Dot {
  using T = Tile<Block>;
  enum : int {
    kHasSums = T::kFamily == 1,
    kParts = T::kFamily == 3 || T::kBits == 8 ? 1 : 2  // sums for 32 columns
  };
  Lane<Block> row;
  float sum;
  float part[2];

  // Of a row of tiles
  void load_tile(device const uchar* tiles, int tile, uint lane) {
    row.load(tiles + static_cast<int64_t>(tile) * T::kBytes, lane);
  }

  void to_second_half() { metal_kernels::to_second_half<Block>(row.words); }

  void begin(float4 tail) {
    part[0] = kHasSums ? tail.y : 0.0f;
    part[1] = kHasSums ? tail.z : 0.0f;
  }

  // Codeword i; sum4: a quarter of the sum of its activations
  void add(int i, threadgroup const uint* table, uint4 x, half sum4) {
    float acc = part[i / 2 % kParts];
    if (T::kFamily == 1) {
      const uint entry = *entry_at(table, entry_offset<Block>(row.words, i));
      acc = dot4(iq1_pair(entry, 0), iq1_pair(entry, 1), x.x, x.z, acc);
      acc = dot4(iq1_pair(entry, 2), iq1_pair(entry, 3), x.y, x.w, acc);
      if (T::kHasHalf == 0) {
        acc = fma(static_cast<float>(as_type<half2>(entry & kShiftField).x), static_cast<float>(sum4), acc);
      }
    } else if (T::kFamily == 2) {
      const uint2 entry =
          *reinterpret_cast<threadgroup const uint2*>(entry_at(table, entry_offset<Block>(row.words, i)));
      const uint even = iq2_signed(entry.x, row.words[i / 4], 0, i % 4);
      const uint odd = iq2_signed(entry.y, row.words[i / 4], 1, i % 4);
      acc = dot4(iq2_lower(even), iq2_lower(odd), x.x, x.z, acc);
      acc = dot4(iq2_upper(even), iq2_upper(odd), x.y, x.w, acc);
    } else {
      const int k = 2 * i;
      const uint signs = row.words[k / 8];
      const uint first = *entry_at(table, entry_offset<Block>(row.words, k));
      const uint second = *entry_at(table, entry_offset<Block>(row.words, k + 1));
      acc = dot4(iq3_even(first, signs, k % 8), iq3_odd(first, signs, k % 8), x.x, x.y, acc);
      acc = dot4(iq3_even(second, signs, k % 8 + 1), iq3_odd(second, signs, k % 8 + 1), x.z, x.w, acc);
    }
    part[i / 2 % kParts] = acc;
  }

  // Of columns 32 g .. 32 g + 31
  void end(int g, float4 tail) {
    float value;
    if (T::kFamily == 2 ? T::kBits > 8 : (T::kFamily == 1 && T::kHasHalf == 0)) {
      value = scale_of<Block>(row.words, 2 * g) * part[0];
      value = fma(scale_of<Block>(row.words, 2 * g + 1), part[1], value);
    } else {
      value = part[0];
      if (T::kFamily == 1) value = fma(iq1_s_shift(row.words, g), tail.w, part[0] + part[1]);
      value *= scale_of<Block>(row.words, 2 * g);
    }
    sum = fma(tail.x, value, sum);
  }

  float scale() const { return row.d * product_unit<Block>(); }
};

template <>
struct Dot<NoGate> {
  enum : int { kHasSums = 0 };
  float sum;
  void load_tile(device const uchar*, int, uint) {}
  void to_second_half() {}
  void begin(float4) {}
  void add(int, threadgroup const uint*, uint4, half) {}
  void end(int, float4) {}
  float scale() const { return 0.0f; }
};

// The sums of a tile of both rows, in two halves by the same text, for up to 14 moves of a row: instructions of a
// core's cache are few, and a whole tile would be 10 to 18 KB of them.
template <class A, class B>
static inline void dot_tile(thread Dot<A>& a, thread Dot<B>& b, threadgroup const uint* table_a,
                            threadgroup const uint* table_b, threadgroup const uint4* staged) {
  threadgroup const float4* tails = reinterpret_cast<threadgroup const float4*>(staged + kStagedTails);
  threadgroup const half4* sums = reinterpret_cast<threadgroup const half4*>(staged + kStagedSums);
  a.sum = 0.0f;
  b.sum = 0.0f;
#pragma clang loop unroll(disable)
  for (int half_tile = 0; half_tile < 2; ++half_tile) {
    if (half_tile > 0) {
      a.to_second_half();
      b.to_second_half();
    }
    LK_UNROLL
    for (int g = 0; g < 4; ++g) {
      const float4 tail = tails[g];
      half4 sum4 = half4(0.0h);
      if (Dot<A>::kHasSums || Dot<B>::kHasSums) sum4 = sums[g];
      a.begin(tail);
      b.begin(tail);
      LK_UNROLL
      for (int k = 0; k < 4; ++k) {
        const uint4 x = staged[4 * g + k];
        a.add(4 * g + k, table_a, x, sum4[k]);
        b.add(4 * g + k, table_b, x, sum4[k]);
      }
      a.end(g, tail);
      b.end(g, tail);
    }
    staged += 16;
    tails += 4;
    sums += 4;
  }
}

}  // namespace metal_kernels
}  // namespace lutkern
