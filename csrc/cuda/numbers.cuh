// Numbers between kernels: activations in, results out, the rule by which activations become integers, the functions
// between the projections of an expert, and which expert a pair has.
#pragma once
#include "arguments.h"
#include "machine.h"

namespace lutkern {
namespace cuda {

enum : int { kF32 = 0, kF16 = 1, kBf16 = 2 };                                   // Dtype of tensor.h
enum : int { kNoActivation = 0, kSilu = 1, kGelu = 2, kRelu2 = 3 };             // Activation of lutkern.h
enum : uint32_t { kMagnitudeBits = 0x7fffffffu, kInfinityBits = 0x7f800000u };  // of a float

// Number i of an array; i counts elements.
LK_DEVICE float load_number(const void* data, int dtype, int64_t i) {
  if (dtype == kF32) return float_of_bits(constant_load4(static_cast<const uint8_t*>(data) + 4 * i));
  const uint32_t bits = constant_load2(static_cast<const uint8_t*>(data) + 2 * i);
  return dtype == kF16 ? float_of_half(bits) : float_of_bits(bits << 16);
}

// To the nearest bfloat16, halves to even; NaN stays NaN.
LK_DEVICE uint32_t bf16_of_float(float x) {
  const uint32_t bits = bits_of_float(x);
  if ((bits & kMagnitudeBits) > kInfinityBits) return bits >> 16 | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

LK_DEVICE void store_number(void* data, int dtype, int64_t i, float x) {
  if (dtype == kF32) {
    store4(static_cast<uint8_t*>(data) + 4 * i, bits_of_float(x));
  } else {
    store2(static_cast<uint8_t*>(data) + 2 * i, dtype == kF16 ? half_of_float(x) : bf16_of_float(x));
  }
}

// How 32 activations become integers: q = round(x * inverse), x ~ scale * q. largest: the largest of their magnitudes as
// bits of a float, which order as integers do, infinity and NaN above all numbers. The same operations as in
// csrc/cpu/quantize.inl.h, so the same integers: a scale that would be subnormal makes zeros; a group that is not finite
// becomes zeros with the scale NaN.
struct QuantizeRule {
  float inverse;
  float scale;
};

LK_DEVICE QuantizeRule quantize_rule(uint32_t largest) {
  if (largest >= kInfinityBits) return {0.0f, float_of_bits(0x7fc00000u)};
  const float magnitude = float_of_bits(largest);
  const float scale = magnitude / 127.0f;
  if (scale < 0x1p-126f) return {0.0f, 0.0f};
  return {127.0f / magnitude, scale};
}

// A number by that rule; NaN or infinity times zero is zero here.
LK_DEVICE int quantize_number(float x, const QuantizeRule& rule) {
  return rule.inverse == 0.0f ? 0 : round_s32(x * rule.inverse);
}

LK_DEVICE uint32_t magnitude_bits(float x) { return bits_of_float(x) & kMagnitudeBits; }

LK_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

LK_DEVICE float activate(int activation, float g) {
  if (activation == kSilu) return g / (1.0f + exp_f32(-g));
  if (activation == kGelu) return 0.5f * g * (1.0f + tanh_f32(0.7978845608028654f * (g + 0.044715f * g * g * g)));
  if (activation == kRelu2) return g < 0.0f ? 0.0f : g * g;
  return g;
}

// What a pair asks for: an expert, nothing, or what does not exist.
enum : int { kLeftOut = -1, kNoSuchExpert = -2 };

LK_DEVICE int expert_of(const MoeArgs& args, int64_t pair) {
  const int id = static_cast<int>(constant_load4(args.ids + pair));
  if (id >= 0 && id < args.up.experts) return id;
  return id == -1 && args.partial ? int{kLeftOut} : int{kNoSuchExpert};
}

}  // namespace cuda
}  // namespace lutkern
