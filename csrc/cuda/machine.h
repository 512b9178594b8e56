// The machine that device text is written for: every word of a kernel that is not plain C++ comes from here. nvcc sees
// the instructions below; any other compiler sees their twins in tests/sim/cuda_spelling.h, which run on the CPU.
//
// A kernel is
//
//   LK_KERNEL(name, Args) { ... args.x ... }              or LK_KERNEL_BOUNDS(name, Args, threads, blocks per SM)
//
// with functions of its own marked LK_DEVICE, members LK_MEMBER. Arrays that the threads of a block share are
//
//   LK_SHARED(float, sums, 32);  LK_DYNAMIC_SHARED(table);      float sums[32];  uint8_t* table, at a multiple of 128
//
// Blocks are one-dimensional. Warps are whole: the threads of a block are a multiple of 32, no thread leaves a kernel
// before a barrier, and every lane of a warp calls what a warp does together.
#pragma once
#include <stdint.h>

namespace lutkern {
namespace cuda {

struct alignas(8) Words2 {
  uint32_t x, y;
};
struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};

}  // namespace cuda
}  // namespace lutkern

#if !defined(__CUDACC__)
#include "cuda_spelling.h"
#else

#define LK_DEVICE static __device__ __forceinline__
#define LK_MEMBER __device__ __forceinline__
#define LK_KERNEL(name, Args) extern "C" __global__ void name(const __grid_constant__ Args args)
#define LK_KERNEL_BOUNDS(name, Args, threads, blocks) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args args)
#define LK_SHARED(T, name, count) __shared__ __align__(16) T name[count]
#define LK_DYNAMIC_SHARED(name)                                 \
  extern __shared__ __align__(128) uint8_t lk_dynamic_shared[]; \
  uint8_t* const name = lk_dynamic_shared

namespace lutkern {
namespace cuda {

// ---- where a thread is ----

LK_DEVICE uint32_t thread() { return threadIdx.x; }
LK_DEVICE uint32_t threads() { return blockDim.x; }
LK_DEVICE uint32_t lane() { return threadIdx.x & 31u; }
LK_DEVICE uint32_t warp() { return threadIdx.x >> 5; }
LK_DEVICE uint32_t block_x() { return blockIdx.x; }
LK_DEVICE uint32_t block_y() { return blockIdx.y; }
LK_DEVICE uint32_t block_z() { return blockIdx.z; }
LK_DEVICE uint32_t blocks_x() { return gridDim.x; }
LK_DEVICE uint32_t blocks_y() { return gridDim.y; }
LK_DEVICE uint32_t blocks_z() { return gridDim.z; }

// ---- together ----

// What the block, or the warp, wrote to memory before is seen after. Shuffles and votes order no memory.
LK_DEVICE void barrier() { __syncthreads(); }
LK_DEVICE void warp_barrier() { __syncwarp(); }

template <class T>
LK_DEVICE T shuffle(T value, uint32_t source_lane) {
  return __shfl_sync(0xffffffffu, value, source_lane);
}
template <class T>
LK_DEVICE T shuffle_xor(T value, uint32_t lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
LK_DEVICE uint32_t ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }
LK_DEVICE bool any(bool vote) { return __any_sync(0xffffffffu, vote); }
LK_DEVICE bool all(bool vote) { return __all_sync(0xffffffffu, vote); }

// Ends the launch with an error: a kernel that is told what it cannot do.
LK_DEVICE void trap() { __trap(); }

// ---- integers ----

// c + a[0] b[0] + ... + a[3] b[3], bytes; _us: the bytes of a are unsigned
LK_DEVICE int dp4a(uint32_t a, uint32_t b, int c) { return __dp4a(static_cast<int>(a), static_cast<int>(b), c); }
LK_DEVICE int dp4a_us(uint32_t a, uint32_t b, int c) {
  int d;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// Byte i of the result is byte (select >> 4 i) & 7 of b:a; bit 3 of that nibble repeats the byte's sign instead.
LK_DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t select) {
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(select));
  return d;
}
// The low, or high, word of high:low shifted by shift & 31
LK_DEVICE uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
  return __funnelshift_r(low, high, shift);
}
LK_DEVICE uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t shift) {
  return __funnelshift_l(low, high, shift);
}
LK_DEVICE int count_ones(uint32_t x) { return __popc(x); }

// ---- numbers ----

LK_DEVICE float fma_f32(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// To the nearest integer, halves to even; saturates, NaN is 0.
LK_DEVICE int round_s32(float x) { return __float2int_rn(x); }
LK_DEVICE float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }
LK_DEVICE uint32_t bits_of_float(float x) { return __float_as_uint(x); }
LK_DEVICE float float_of_half(uint32_t half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<uint16_t>(half)));
  return x;
}
LK_DEVICE uint32_t half_of_float(float x) {
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
}
LK_DEVICE float exp_f32(float x) { return expf(x); }
LK_DEVICE float tanh_f32(float x) { return tanhf(x); }

// ---- memory ----

// Loads and stores of 16, 8, 4, 2 bytes, at a multiple of their size. constant_: global memory that nothing writes while
// the kernel runs. stream_: the same, read once: weights.
LK_DEVICE Words4 as_words(uint4 v) { return Words4{v.x, v.y, v.z, v.w}; }
LK_DEVICE Words4 load16(const void* p) { return as_words(*static_cast<const uint4*>(p)); }
LK_DEVICE Words2 load8(const void* p) {
  const uint2 v = *static_cast<const uint2*>(p);
  return Words2{v.x, v.y};
}
LK_DEVICE uint32_t load4(const void* p) { return *static_cast<const uint32_t*>(p); }
LK_DEVICE uint32_t load2(const void* p) { return *static_cast<const uint16_t*>(p); }
LK_DEVICE Words4 constant_load16(const void* p) { return as_words(__ldg(static_cast<const uint4*>(p))); }
LK_DEVICE Words2 constant_load8(const void* p) {
  const uint2 v = __ldg(static_cast<const uint2*>(p));
  return Words2{v.x, v.y};
}
LK_DEVICE uint32_t constant_load4(const void* p) { return __ldg(static_cast<const uint32_t*>(p)); }
LK_DEVICE uint32_t constant_load2(const void* p) { return __ldg(static_cast<const uint16_t*>(p)); }
LK_DEVICE uint32_t constant_load1(const void* p) { return __ldg(static_cast<const uint8_t*>(p)); }
#if __CUDA_ARCH__ >= 800
LK_DEVICE Words4 stream_load16(const void* p) {
  Words4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
}
LK_DEVICE Words2 stream_load8(const void* p) {
  Words2 v;
  asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
LK_DEVICE uint32_t stream_load4(const void* p) {
  uint32_t v;
  asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
#else  // and in PTX that old drivers accept
LK_DEVICE Words4 stream_load16(const void* p) { return constant_load16(p); }
LK_DEVICE Words2 stream_load8(const void* p) { return constant_load8(p); }
LK_DEVICE uint32_t stream_load4(const void* p) { return constant_load4(p); }
#endif
LK_DEVICE void store16(void* p, Words4 v) { *static_cast<uint4*>(p) = make_uint4(v.x, v.y, v.z, v.w); }
LK_DEVICE void store8(void* p, Words2 v) { *static_cast<uint2*>(p) = make_uint2(v.x, v.y); }
LK_DEVICE void store4(void* p, uint32_t v) { *static_cast<uint32_t*>(p) = v; }
LK_DEVICE void store1(void* p, uint32_t v) { *static_cast<uint8_t*>(p) = static_cast<uint8_t>(v); }
LK_DEVICE void store2(void* p, uint32_t v) { *static_cast<uint16_t*>(p) = static_cast<uint16_t>(v); }

}  // namespace cuda
}  // namespace lutkern

#include "machine_units.h"
#endif
