// Stands before the compiler's header in the test build of csrc/cpu/avx512.cpp: SIMDe's functions in the place of the
// AVX-512 intrinsics, and plain loops for those that SIMDe 0.7.4 lacks, so that the file runs on a machine with AVX2.
// An intrinsic that neither has is the compiler's own, which does not compile without its instruction set.
#pragma once
#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <simde/x86/avx512.h>
#include <simde/x86/gfni.h>
#include <string.h>

// ---- macros of SIMDe that take other numbers of arguments, or no comma inside of one ----

#undef _mm512_dpbusd_epi32
#undef _mm512_madd_epi16
#define _mm512_dpbusd_epi32(...) simde_mm512_dpbusd_epi32(__VA_ARGS__)
#define _mm512_madd_epi16(...) simde_mm512_madd_epi16(__VA_ARGS__)

// ---- what SIMDe lacks ----

namespace emulated {

// out[i] = fn(in[i])
template <class To, class ToLane, class FromLane, class From, class Fn>
static inline To map(const From& from, Fn fn) {
  constexpr int kLanes = sizeof(To) / sizeof(ToLane);
  static_assert(sizeof(From) == kLanes * sizeof(FromLane), "one lane becomes one lane");
  FromLane in[kLanes];
  ToLane out[kLanes];
  memcpy(in, &from, sizeof in);
  for (int i = 0; i < kLanes; ++i) out[i] = fn(in[i]);
  To result;
  memcpy(&result, out, sizeof result);
  return result;
}

template <class To, class Lane>
static inline To load_where(uint64_t valid, const void* from) {
  Lane out[sizeof(To) / sizeof(Lane)];
  for (size_t i = 0; i < sizeof(To) / sizeof(Lane); ++i) {
    out[i] = 0;
    if (valid >> i & 1) memcpy(out + i, static_cast<const char*>(from) + i * sizeof(Lane), sizeof(Lane));
  }
  To result;
  memcpy(&result, out, sizeof result);
  return result;
}

static inline __m256i broadcast_where(__m256i into, unsigned valid, __m128i v) {
  int64_t out[4];
  memcpy(out, &into, sizeof out);
  for (int i = 0; i < 4; ++i) {
    if (valid >> i & 1) out[i] = _mm_cvtsi128_si64(v);
  }
  memcpy(&into, out, sizeof out);
  return into;
}

static inline __m512 permute_ps(__m512 v, int control) {
  float in[16];
  float out[16];
  memcpy(in, &v, sizeof in);
  for (int i = 0; i < 16; ++i) out[i] = in[i / 4 * 4 + (control >> (2 * (i % 4)) & 3)];
  memcpy(&v, out, sizeof v);
  return v;
}

static inline __m512 cvtph_ps(__m256i v) {
  const __m256 half[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(v)), _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))};
  __m512 out;
  memcpy(&out, half, sizeof out);
  return out;
}

static inline __m512i widen_u8_u16(__m256i v) {
  return map<__m512i, uint16_t, uint8_t>(v, [](uint8_t x) { return uint16_t{x}; });
}

static inline __m512i widen_u16_u64(__m128i v) {
  return map<__m512i, uint64_t, uint16_t>(v, [](uint16_t x) { return uint64_t{x}; });
}

static inline __m512 to_float(__m512i v) {
  return map<__m512, float, int32_t>(v, [](int32_t x) { return static_cast<float>(x); });
}

static inline __m512i round_to_int(__m512 v) {
  return map<__m512i, int32_t, float>(v, [](float x) { return static_cast<int32_t>(nearbyintf(x)); });
}

}  // namespace emulated

#define _mm256_mask_broadcastq_epi64(...) emulated::broadcast_where(__VA_ARGS__)
#define _mm512_permute_ps(v, control) emulated::permute_ps(v, control)
#define _mm512_cvtph_ps(...) emulated::cvtph_ps(__VA_ARGS__)
#define _mm512_cvtepu8_epi16(...) emulated::widen_u8_u16(__VA_ARGS__)
#define _mm512_cvtepu16_epi64(...) emulated::widen_u16_u64(__VA_ARGS__)
#define _mm512_cvtepi32_ps(...) emulated::to_float(__VA_ARGS__)
#define _mm512_cvtps_epi32(...) emulated::round_to_int(__VA_ARGS__)
#define _mm512_maskz_loadu_epi8(valid, from) emulated::load_where<__m512i, uint8_t>(valid, from)
#define _mm512_maskz_loadu_ps(valid, from) emulated::load_where<__m512, float>(valid, from)
