// The second half of cuda_spelling.h: what csrc/cuda/machine_units.h says to nvcc.
#pragma once

namespace lutkern {
namespace cuda {

// The bytes arrive when the thread waits for them, as late as they may.
LK_DEVICE void copy16_async(void* shared, const void* global, Site site = LK_SITE) {
  sim::copy_later(shared, global, 16, site);
}
LK_DEVICE void copy_commit() { sim::copy_commit(); }
template <int kGroups>
LK_DEVICE void copy_wait() {
  sim::copy_wait(kGroups);
}

// ---- matrix units ----

struct MatrixRows {
  uint8_t row[16];
  uint32_t v[4];
};
LK_DEVICE void resolve_load_matrices(void* const* slots, uint32_t) {
  for (int i = 0; i < 32; ++i) {
    MatrixRows* slot = static_cast<MatrixRows*>(slots[i]);
    for (int j = 0; j < 4; ++j) {
      memcpy(&slot->v[j], static_cast<const MatrixRows*>(slots[8 * j + i / 4])->row + 4 * (i % 4), 4);
    }
  }
}
LK_DEVICE void load_matrices(uint32_t (&v)[4], const void* row, Site site = LK_SITE) {
  MatrixRows slot = {};
  const Words4 words = checked_load<Words4>(row, site);
  memcpy(slot.row, &words, sizeof(words));
  sim::together("load_matrices", resolve_load_matrices, &slot, sim::kEveryLane, site);
  memcpy(v, slot.v, sizeof(v));
}

template <int kDepth>
struct Matrix {
  uint32_t a[kDepth / 8];
  uint32_t b[kDepth / 16];
  int c[4];
};
template <int kDepth>
LK_DEVICE void resolve_mma(void* const* slots, uint32_t) {
  int8_t a[16][kDepth];
  int8_t b[8][kDepth];
  for (int i = 0; i < 32; ++i) {
    const Matrix<kDepth>* slot = static_cast<const Matrix<kDepth>*>(slots[i]);
    for (int part = 0; part < kDepth / 16; ++part) {
      const int k = 16 * part + 4 * (i % 4);
      memcpy(&a[i / 4][k], &slot->a[2 * part], 4);
      memcpy(&a[i / 4 + 8][k], &slot->a[2 * part + 1], 4);
      memcpy(&b[i / 4][k], &slot->b[part], 4);
    }
  }
  for (int i = 0; i < 32; ++i) {
    Matrix<kDepth>* slot = static_cast<Matrix<kDepth>*>(slots[i]);
    for (int j = 0; j < 4; ++j) {
      const int8_t* row = a[i / 4 + j / 2 * 8];
      const int8_t* column = b[2 * (i % 4) + j % 2];
      int sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += row[k] * column[k];
      slot->c[j] = static_cast<int>(static_cast<uint32_t>(slot->c[j]) + static_cast<uint32_t>(sum));
    }
  }
}
LK_DEVICE void mma_16x8x32(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = LK_SITE) {
  Matrix<32> slot;
  memcpy(slot.a, a, sizeof(a));
  memcpy(slot.b, b, sizeof(b));
  memcpy(slot.c, c, sizeof(c));
  sim::together("mma_16x8x32", resolve_mma<32>, &slot, sim::kEveryLane, site);
  memcpy(c, slot.c, sizeof(c));
}
LK_DEVICE void mma_16x8x16(int (&c)[4], const uint32_t (&a)[2], uint32_t b, Site site = LK_SITE) {
  Matrix<16> slot;
  memcpy(slot.a, a, sizeof(a));
  slot.b[0] = b;
  memcpy(slot.c, c, sizeof(c));
  sim::together("mma_16x8x16", resolve_mma<16>, &slot, sim::kEveryLane, site);
  memcpy(c, slot.c, sizeof(c));
}

}  // namespace cuda
}  // namespace lutkern
