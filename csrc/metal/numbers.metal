// Numbers between kernels: activations in, results out, the rule by which activations become integers, the functions
// between the projections of an expert, and which expert a pair has.
#pragma once
#include "arguments.h"

// A loop whose steps the compiler writes out, so that arrays of the thread stay in registers
#if !defined(LK_UNROLL)
#define LK_UNROLL _Pragma("clang loop unroll(full)")
#endif

namespace lutkern {
namespace metal_kernels {

using namespace metal_args;

enum : int { kF32 = 0, kF16 = 1, kBf16 = 2 };                                   // Dtype of tensor.h
enum : int { kNoActivation = 0, kSilu = 1, kGelu = 2, kRelu2 = 3 };             // Activation of lutkern.h
enum : uint32_t { kMagnitudeBits = 0x7fffffffu, kInfinityBits = 0x7f800000u };  // of a float

// LK_GATE of a layer without gates
struct NoGate {};

// Number i of an array; i counts elements.
static inline float load_number(const device void* data, int dtype, int64_t i) {
  if (dtype == kF32) return static_cast<const device float*>(data)[i];
  const uint32_t bits = static_cast<const device uint16_t*>(data)[i];
  return dtype == kF16 ? float_from_half(bits) : as_type<float>(bits << 16);
}

// To the nearest bfloat16, halves to even; NaN stays NaN.
static inline uint32_t bf16_of_float(float x) {
  const uint32_t bits = as_type<uint32_t>(x);
  if ((bits & kMagnitudeBits) > kInfinityBits) return bits >> 16 | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// To the nearest half, halves to even. Subnormal halves are multiples of 2^-24, made as integers: no mode that flushes them
// can lose them.
static inline uint32_t half_of_float(float x) {
  const uint32_t sign = as_type<uint32_t>(x) >> 16 & 0x8000u;
  const float magnitude = fabs(x);
  if (magnitude < 6.103515625e-5f) return sign | static_cast<uint32_t>(rint(magnitude * 16777216.0f));
  return as_type<uint16_t>(static_cast<half>(x));
}

static inline void store_number(device void* data, int dtype, int64_t i, float x) {
  if (dtype == kF32) {
    static_cast<device float*>(data)[i] = x;
  } else {
    static_cast<device uint16_t*>(data)[i] = static_cast<uint16_t>(dtype == kF16 ? half_of_float(x) : bf16_of_float(x));
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

static inline QuantizeRule quantize_rule(uint32_t largest) {
  QuantizeRule rule = {0.0f, 0.0f};
  const float magnitude = as_type<float>(largest);
  const float scale = magnitude / 127.0f;
  if (largest >= kInfinityBits) {
    rule.scale = as_type<float>(0x7fc00000u);
  } else if (scale >= 1.17549435082228751e-38f) {
    rule.inverse = 127.0f / magnitude;
    rule.scale = scale;
  }
  return rule;
}

// A number by that rule, an integer of at most 127; NaN or infinity times zero is zero here.
static inline float quantize_number(float x, QuantizeRule rule) {
  return rule.inverse == 0.0f ? 0.0f : rint(x * rule.inverse);
}

static inline uint32_t magnitude_bits(float x) { return as_type<uint32_t>(x) & kMagnitudeBits; }

static inline float activate(int activation, float g) {
  if (activation == kSilu) return g / (1.0f + precise::exp(-g));
  if (activation == kGelu) {
    return 0.5f * g * (1.0f + precise::tanh(0.7978845608028654f * (g + 0.044715f * g * g * g)));
  }
  if (activation == kRelu2) return g < 0.0f ? 0.0f : g * g;
  return g;
}

// What a pair asks for: an expert, nothing, or what does not exist.
enum : int { kLeftOut = -1, kNoSuchExpert = -2 };

static inline int expert_of(constant MoeArgs& args, const device int32_t* ids, int64_t pair) {
  const int id = ids[pair];
  if (id >= 0 && id < args.up.experts) return id;
  return id == -1 && args.partial ? static_cast<int>(kLeftOut) : static_cast<int>(kNoSuchExpert);
}

}  // namespace metal_kernels
}  // namespace lutkern
