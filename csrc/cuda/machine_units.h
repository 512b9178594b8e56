// The second half of machine.h for nvcc: loads ahead, copies that run beside the threads, and the matrix units. Their
// twins are in tests/sim/cuda_spelling.h.
#pragma once

namespace lutkern {
namespace cuda {

// ---- stream_load*, where a condition holds; elsewhere v stays as it is ----

// One instruction and no branch, so that it stays where it is written: far ahead of the first use.
#if __CUDA_ARCH__ >= 800
LK_DEVICE void stream_load16_if(bool condition, const void* p, Words4& v) {
  asm volatile(
      "{ .reg .pred q; setp.ne.u32 q, %5, 0;\n"
      "  @q ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(p), "r"(static_cast<uint32_t>(condition)));
}
LK_DEVICE void stream_load8_if(bool condition, const void* p, Words2& v) {
  asm volatile(
      "{ .reg .pred q; setp.ne.u32 q, %3, 0;\n"
      "  @q ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2]; }"
      : "+r"(v.x), "+r"(v.y)
      : "l"(p), "r"(static_cast<uint32_t>(condition)));
}
LK_DEVICE void stream_load4_if(bool condition, const void* p, uint32_t& v) {
  asm volatile(
      "{ .reg .pred q; setp.ne.u32 q, %2, 0;\n"
      "  @q ld.global.nc.L1::no_allocate.u32 %0, [%1]; }"
      : "+r"(v)
      : "l"(p), "r"(static_cast<uint32_t>(condition)));
}
LK_DEVICE void stream_load2_if(bool condition, const void* p, uint32_t& v) {
  asm volatile(
      "{ .reg .pred q; setp.ne.u32 q, %2, 0;\n"
      "  @q ld.global.nc.L1::no_allocate.u16 %0, [%1]; }"
      : "+r"(v)
      : "l"(p), "r"(static_cast<uint32_t>(condition)));
}
#else
LK_DEVICE void stream_load16_if(bool condition, const void* p, Words4& v) {
  if (condition) v = constant_load16(p);
}
LK_DEVICE void stream_load8_if(bool condition, const void* p, Words2& v) {
  if (condition) v = constant_load8(p);
}
LK_DEVICE void stream_load4_if(bool condition, const void* p, uint32_t& v) {
  if (condition) v = constant_load4(p);
}
LK_DEVICE void stream_load2_if(bool condition, const void* p, uint32_t& v) {
  if (condition) v = constant_load2(p);
}
#endif

// ---- copies of 16 bytes from global to shared memory that the thread does not wait for ----

// Copies between two commits are one group; copy_wait<n> waits until at most the n youngest groups of this thread are
// under way. A barrier after it shows them to the other threads. Before sm_80 the copy is done at once.
LK_DEVICE void copy16_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
  store16(shared, constant_load16(global));
#endif
}
LK_DEVICE void copy_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kGroups>
LK_DEVICE void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

// ---- what a matrix unit wants, from shared memory ----

// Four 8 x 16-byte matrices: the lanes 8 i .. 8 i + 7 have the addresses of the rows of matrix i. A lane gets the bytes
// 4 t .. 4 t + 3 of row g of each, as a and b below want them.
LK_DEVICE void load_matrices(uint32_t (&v)[4], const void* row) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(from)
               : "memory");
}

// ---- matrix units: c += a b on a whole warp, bytes, exact ----

// 16 x 8 += 16 x 32 by 32 x 8. With g = lane / 4 and t = lane % 4, a thread has
//   a[0] a[1]: columns 4 t .. 4 t + 3 of rows g and g + 8;  a[2] a[3]: the same 16 columns further
//   b[0]: rows 4 t .. 4 t + 3 of column g;  b[1]: the same 16 rows further
//   c[0] c[1]: columns 2 t and 2 t + 1 of row g;  c[2] c[3]: of row g + 8
LK_DEVICE void mma_8x8x16(int& c0, int& c1, uint32_t a, uint32_t b) {
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(c0), "+r"(c1)
      : "r"(a), "r"(b));
}
LK_DEVICE void mma_16x8x32(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  mma_8x8x16(c[0], c[1], a[0], b[0]);
  mma_8x8x16(c[0], c[1], a[2], b[1]);
  mma_8x8x16(c[2], c[3], a[1], b[0]);
  mma_8x8x16(c[2], c[3], a[3], b[1]);
#endif
}
// 16 x 8 += 16 x 16 by 16 x 8: the same without the upper 16 columns of a and rows of b
LK_DEVICE void mma_16x8x16(int (&c)[4], const uint32_t (&a)[2], uint32_t b) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
#else
  mma_8x8x16(c[0], c[1], a[0], b);
  mma_8x8x16(c[2], c[3], a[1], b);
#endif
}

}  // namespace cuda
}  // namespace lutkern
