// The product of a lane's 256 weights with staged activations (activations.cuh), block by block.
//
//   sum = sum over 32 columns of scale_x * integer
//   integer = sum over 16 or 32 columns of (2 s + 1) * (weights . codes)
//   weight . x = d * sum * unit, where unit is a power of two
//
//   iq1   weights are 2 n - 9 with nibbles n: 8 * sum((2 n - 9) x) = 16 * low + high, where low = sum(n x) over low
//         nibbles, high = -72 * sum16(x) + sum(16 n x) over high nibbles, which are not shifted down
//   iq2   four codes of magnitude and sign make four signed bytes: one PRMT
//   iq3   magnitudes are flipped by a mask of signs. iq3_s: all are odd, -v = v ^ 0xfe. iq3_xxs: -v = (v ^ mask) -
//         mask, sum((v ^ mask) x) - sum(mask x)
//
//   for 32 columns: 3 loads of x; for each codeword: offset, entry, (signs), two dp4a; integer *= 2 s + 1;
//                   sum = fma(scale_x, integer, sum)
//
// IDP4A is all of the arithmetic; LDS.128 with one address for all lanes reads x; LOP3 with a constant and IMAD make
// (2 s + 1) * integer of the bits of s. Integers stay below 2^24: their conversion to float is exact.
// The caller guarantees what lane.cuh asks for.
#pragma once
#include "activations.cuh"
#include "lane.cuh"

namespace lutkern {
namespace cuda {

template <class Block>
LK_FN constexpr float dot_unit() {
  if (Tile<Block>::kFamily == 1) return 0x1p-6f;
  if (Tile<Block>::kFamily == 2) return 0x1p-3f;
  return Tile<Block>::kBits == 8 ? 0x1p-2f : 1.0f;
}

// What the inner loop keeps in registers
template <class Block>
struct Dot {
  Table<Block> table;
  uint32_t one;
  uint32_t positive;
  LK_MEMBER Dot(const uint8_t* shared, uint32_t lane)
      : table(shared, lane), one(kept_constant(1)), positive(kept_constant(kIq2Positive)) {}
};

// 2 s of the scale of columns 16 g .. 16 g + 15, with other bits
template <class Block>
LK_DEVICE uint32_t even_scale(const uint32_t* words, int g) {
  using T = Tile<Block>;
  constexpr int kBits = T::kFamily == 1 ? 3 : 4;
  const int bit = kBits * (T::kFamily == 1 || (T::kFamily == 2 && T::kBits > 8) ? g : g / 2) - 1;
  const uint32_t low = words[T::kScales + (bit < 0 ? 0 : bit / 32)];
  if (bit < 0) return low << 1;
  if (bit % 32 + kBits + 1 <= 32) return low >> (bit % 32);
  return funnel_right(low, words[T::kScales + bit / 32 + 1], static_cast<uint32_t>(bit % 32));
}

// 2 s + 1
template <class Block>
LK_DEVICE int odd_scale(const uint32_t* words, int g, uint32_t one) {
  if constexpr (Tile<Block>::kFamily == 1 && Tile<Block>::kHasHalf != 0) {
    return static_cast<int>(iq1_s_scale(words, g / 2) | one);
  } else {
    constexpr uint32_t kMask = Tile<Block>::kFamily == 1 ? 14 : 30;
    return static_cast<int>((even_scale<Block>(words, g) & kMask) | one);
  }
}

// x of one codeword: words of four codes
struct Codes {
  uint32_t low, high;
};

template <class Block>
LK_DEVICE void dot_iq1(const uint32_t* words, int i, const Dot<Block>& dot, Codes x, int& low, int& high) {
  const uint32_t nibbles = dot.table.at(iq1_offset<Block>(words, i));
  low = dp4a_us(nibbles & 0x0f0f0f0fu, x.low, low);
  high = dp4a_us(nibbles & 0xf0f0f0f0u, x.high, high);
}

template <class Block>
LK_DEVICE int dot_iq2(const uint32_t* words, int i, const Dot<Block>& dot, Codes x, int sum) {
  const uint32_t nibbles = signed_nibbles(dot.table.at(entry_offset<Block>(words, i)), words[i / 4], i % 4);
  return dp4a(iq2_bytes(nibbles >> 16, dot.positive), x.high, dp4a(iq2_bytes(nibbles, dot.positive), x.low, sum));
}

// Index k: four weights
template <class Block>
LK_DEVICE void dot_iq3(const uint32_t* words, int k, const Dot<Block>& dot, uint32_t x, int& sum, int& negative) {
  const uint32_t magnitudes = dot.table.at(entry_offset<Block>(words, k));
  const uint32_t mask = sign_mask(words[k / 8], k % 8);
  if (Tile<Block>::kBits == 9) {
    sum = dp4a(magnitudes ^ (mask & 0xfefefefeu), x, sum);
  } else {
    sum = dp4a(magnitudes ^ mask, x, sum);
    negative = dp4a(mask, x, negative);
  }
}

// The integer of 32 columns
template <class Block>
LK_DEVICE int dot32(const uint32_t* words, int g, const Dot<Block>& dot, const Codes (&x)[4], const Words4& tail) {
  using T = Tile<Block>;
  if constexpr (T::kFamily == 1 && T::kHasHalf != 0) {
    int low = 0;
    int high = static_cast<int>(tail.y);
#pragma unroll
    for (int k = 0; k < 4; ++k) dot_iq1<Block>(words, 4 * g + k, dot, x[k], low, high);
    return (16 * low + high) * odd_scale<Block>(words, 2 * g, dot.one);
  } else if constexpr (T::kFamily == 1) {
    int low[2] = {0, 0};
    int high[2] = {static_cast<int>(tail.z), static_cast<int>(tail.w)};
#pragma unroll
    for (int k = 0; k < 4; ++k) dot_iq1<Block>(words, 4 * g + k, dot, x[k], low[k / 2], high[k / 2]);
    return (16 * low[0] + high[0]) * odd_scale<Block>(words, 2 * g, dot.one) +
           (16 * low[1] + high[1]) * odd_scale<Block>(words, 2 * g + 1, dot.one);
  } else if constexpr (T::kFamily == 2) {
    int sum[2] = {0, 0};
    constexpr int kSums = T::kBits == 8 ? 1 : 2;  // scales for 32 columns
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      sum[k / 2 % kSums] = dot_iq2<Block>(words, 4 * g + k, dot, x[k], sum[k / 2 % kSums]);
    }
    const int first = sum[0] * odd_scale<Block>(words, 2 * g, dot.one);
    return kSums == 1 ? first : first + sum[1] * odd_scale<Block>(words, 2 * g + 1, dot.one);
  } else {
    int sum = 0;
    int negative = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      dot_iq3<Block>(words, 8 * g + 2 * k, dot, x[k].low, sum, negative);
      dot_iq3<Block>(words, 8 * g + 2 * k + 1, dot, x[k].high, sum, negative);
    }
    return (T::kBits == 9 ? sum : sum - negative) * odd_scale<Block>(words, 2 * g, dot.one);
  }
}

// before + the product; staged: 256 columns. Words that are used up are loaded anew from the tile `next` where
// there is one.
template <class Block>
LK_DEVICE float dot256(LaneWords<Block>& words, const Dot<Block>& dot, const uint8_t* staged, bool more,
                       const uint8_t* next, uint32_t lane, float before) {
  const float d = float_of_half(scale_half(words));
  float sum = 0.0f;
#pragma unroll
  for (int g = 0; g < 8; ++g) {
    const Words4 a = load16(staged + kStagedGroup * g);
    const Words4 b = load16(staged + kStagedGroup * g + 16);
    const Words4 tail = load16(staged + kStagedGroup * g + 32);
    const Codes x[4] = {{a.x, a.y}, {a.z, a.w}, {b.x, b.y}, {b.z, b.w}};
    sum = fma_f32(float_of_bits(tail.x), static_cast<float>(dot32<Block>(words.word, g, dot, x, tail)), sum);
    load_words_after(words, more, next, lane, g);
    // Never: a branch that ptxas does not move loads across. Without it they would all follow the last product.
    if (g == 3 && dot.one == 0) trap();
  }
  return fma_f32(d, sum, before);
}

}  // namespace cuda
}  // namespace lutkern
