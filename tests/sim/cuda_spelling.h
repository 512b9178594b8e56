// What csrc/cuda/machine.h says to a compiler that is not nvcc: the same words, for threads of simt.h.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "simt.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define LK_DEVICE [[maybe_unused]] static inline
#define LK_MEMBER [[maybe_unused]] inline
#define LK_KERNEL(name, Args)                                                                           \
  static void name(const Args& args);                                                                   \
  static void name##_body(const void* args) { name(*static_cast<const Args*>(args)); }                  \
  [[maybe_unused]] static const ::lutkern::sim::Kernel name##_kernel(#name, name##_body, sizeof(Args)); \
  static void name([[maybe_unused]] const Args& args)
#define LK_KERNEL_BOUNDS(name, Args, threads, blocks) LK_KERNEL(name, Args)
#define LK_SHARED(T, name, count)   \
  static const char name##_key = 0; \
  T(&name)[count] = *static_cast<T(*)[count]>(::lutkern::sim::shared_array(&name##_key, sizeof(T) * (count), 16))
#define LK_DYNAMIC_SHARED(name) uint8_t* const name = static_cast<uint8_t*>(::lutkern::sim::dynamic_shared())

namespace lutkern {
namespace cuda {

using sim::Site;

// ---- where a thread is ----

LK_DEVICE uint32_t thread() { return sim::here.thread; }
LK_DEVICE uint32_t threads() { return sim::here.threads; }
LK_DEVICE uint32_t lane() { return sim::here.thread & 31u; }
LK_DEVICE uint32_t warp() { return sim::here.thread >> 5; }
LK_DEVICE uint32_t block_x() { return sim::here.block[0]; }
LK_DEVICE uint32_t block_y() { return sim::here.block[1]; }
LK_DEVICE uint32_t block_z() { return sim::here.block[2]; }
LK_DEVICE uint32_t blocks_x() { return sim::here.grid[0]; }
LK_DEVICE uint32_t blocks_y() { return sim::here.grid[1]; }
LK_DEVICE uint32_t blocks_z() { return sim::here.grid[2]; }

// ---- together ----

LK_DEVICE void barrier(Site site = LK_SITE) { sim::barrier(site); }

LK_DEVICE void warp_barrier(Site site = LK_SITE) {
  char nothing;
  sim::together("warp_barrier", nullptr, &nothing, sim::kEveryLane, site);
}

struct Shuffle {
  uint32_t value;
  uint32_t source;
  uint32_t result;
};
LK_DEVICE void resolve_shuffle(void* const* slots, uint32_t) {
  for (uint32_t i = 0; i < sim::kWarp; ++i) {
    Shuffle* slot = static_cast<Shuffle*>(slots[i]);
    slot->result = static_cast<const Shuffle*>(slots[slot->source])->value;
  }
}
template <class T>
LK_DEVICE T shuffle(T value, uint32_t source_lane, Site site = LK_SITE) {
  static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
  if (source_lane >= sim::kWarp) sim::fail(site, "shuffle: lane %u, expected 0 .. 31", source_lane);
  Shuffle slot = {0, source_lane, 0};
  memcpy(&slot.value, &value, 4);
  sim::together("shuffle", resolve_shuffle, &slot, sim::kEveryLane, site);
  memcpy(&value, &slot.result, 4);
  return value;
}
template <class T>
LK_DEVICE T shuffle_xor(T value, uint32_t lane_mask, Site site = LK_SITE) {
  return shuffle(value, lane() ^ lane_mask, site);
}

LK_DEVICE void resolve_ballot(void* const* slots, uint32_t) {
  uint32_t votes = 0;
  for (uint32_t i = 0; i < sim::kWarp; ++i) votes |= *static_cast<uint32_t*>(slots[i]) << i;
  for (uint32_t i = 0; i < sim::kWarp; ++i) *static_cast<uint32_t*>(slots[i]) = votes;
}
LK_DEVICE uint32_t ballot(bool vote, Site site = LK_SITE) {
  uint32_t slot = vote ? 1 : 0;
  sim::together("ballot", resolve_ballot, &slot, sim::kEveryLane, site);
  return slot;
}
LK_DEVICE bool any(bool vote, Site site = LK_SITE) { return ballot(vote, site) != 0; }
LK_DEVICE bool all(bool vote, Site site = LK_SITE) { return ballot(vote, site) == sim::kEveryLane; }

LK_DEVICE void trap(Site site = LK_SITE) { sim::fail(site, "trap"); }

// ---- integers ----

LK_DEVICE int signed_byte(uint32_t word, int i) { return static_cast<int8_t>(word >> (8 * i)); }
LK_DEVICE int dp4a(uint32_t a, uint32_t b, int c) {
  uint32_t sum = static_cast<uint32_t>(c);  // wraps, as the instruction does
  for (int i = 0; i < 4; ++i) sum += static_cast<uint32_t>(signed_byte(a, i) * signed_byte(b, i));
  return static_cast<int>(sum);
}
LK_DEVICE int dp4a_us(uint32_t a, uint32_t b, int c) {
  uint32_t sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 4; ++i) sum += static_cast<uint32_t>(static_cast<int>(a >> (8 * i) & 255u) * signed_byte(b, i));
  return static_cast<int>(sum);
}
LK_DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t select) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = select >> (4 * i) & 15u;
    uint32_t byte = static_cast<uint32_t>(both >> (8 * (pick & 7u))) & 255u;
    if (pick & 8u) byte = byte & 128u ? 255u : 0u;
    out |= byte << (8 * i);
  }
  return out;
}
LK_DEVICE uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31u));
}
LK_DEVICE uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31u) >> 32);
}
LK_DEVICE int count_ones(uint32_t x) { return __builtin_popcount(x); }

// ---- numbers ----

LK_DEVICE float fma_f32(float a, float b, float c) { return fmaf(a, b, c); }
LK_DEVICE int round_s32(float x) {
  if (!(x == x)) return 0;
  if (x >= 2147483648.0f) return 2147483647;
  if (x < -2147483648.0f) return -2147483647 - 1;
  return static_cast<int>(lrintf(x));
}
LK_DEVICE float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
LK_DEVICE uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
LK_DEVICE float float_of_half(uint32_t half) {
  const float sign = half & 0x8000u ? -1.0f : 1.0f;
  const uint32_t exponent = half >> 10 & 31u;
  const uint32_t mantissa = half & 1023u;
  if (exponent == 0) return sign * static_cast<float>(mantissa) * 0x1p-24f;
  if (exponent == 31) return mantissa != 0 ? float_of_bits(0x7fffffffu) : sign * float_of_bits(0x7f800000u);
  return float_of_bits((half & 0x8000u) << 16 | (exponent + 112) << 23 | mantissa << 13);
}
LK_DEVICE uint32_t half_of_float(float x) {
  const uint32_t bits = bits_of_float(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more
  if (magnitude < 0x38800000u) {                        // a subnormal half counts 2^-24
    return sign | static_cast<uint32_t>(round_s32(float_of_bits(magnitude) * 0x1p24f));
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13);
}
LK_DEVICE float exp_f32(float x) { return expf(x); }
LK_DEVICE float tanh_f32(float x) { return tanhf(x); }

// ---- memory ----

template <class T>
LK_DEVICE T checked_load(const void* p, Site site) {
  sim::check_access(p, sizeof(T), false, site);
  T value;
  memcpy(&value, p, sizeof(T));
  return value;
}
template <class T>
LK_DEVICE void checked_store(void* p, T value, Site site) {
  sim::check_access(p, sizeof(T), true, site);
  memcpy(p, &value, sizeof(T));
}
#define LK_LOADS(prefix)                                                                                           \
  LK_DEVICE Words4 prefix##load16(const void* p, Site site = LK_SITE) { return checked_load<Words4>(p, site); }    \
  LK_DEVICE Words2 prefix##load8(const void* p, Site site = LK_SITE) { return checked_load<Words2>(p, site); }     \
  LK_DEVICE uint32_t prefix##load4(const void* p, Site site = LK_SITE) { return checked_load<uint32_t>(p, site); } \
  LK_DEVICE uint32_t prefix##load2(const void* p, Site site = LK_SITE) { return checked_load<uint16_t>(p, site); }
LK_LOADS()
LK_LOADS(constant_)
LK_LOADS(stream_)
#undef LK_LOADS
#define LK_LOAD_IF(bytes, T)                                                                         \
  LK_DEVICE void stream_load##bytes##_if(bool condition, const void* p, T& v, Site site = LK_SITE) { \
    if (condition) v = stream_load##bytes(p, site);                                                  \
  }
LK_LOAD_IF(16, Words4)
LK_LOAD_IF(8, Words2)
LK_LOAD_IF(4, uint32_t)
LK_LOAD_IF(2, uint32_t)
#undef LK_LOAD_IF
LK_DEVICE uint32_t constant_load1(const void* p, Site site = LK_SITE) { return checked_load<uint8_t>(p, site); }
LK_DEVICE void store16(void* p, Words4 v, Site site = LK_SITE) { checked_store(p, v, site); }
LK_DEVICE void store8(void* p, Words2 v, Site site = LK_SITE) { checked_store(p, v, site); }
LK_DEVICE void store4(void* p, uint32_t v, Site site = LK_SITE) { checked_store(p, v, site); }
LK_DEVICE void store1(void* p, uint32_t v, Site site = LK_SITE) { checked_store(p, static_cast<uint8_t>(v), site); }
LK_DEVICE void store2(void* p, uint32_t v, Site site = LK_SITE) { checked_store(p, static_cast<uint16_t>(v), site); }

}  // namespace cuda
}  // namespace lutkern

#include "cuda_units.h"
