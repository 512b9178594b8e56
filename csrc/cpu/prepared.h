// The activations of an operation, in the one or two forms that its weights ask for, padded with zeros.
#pragma once
#include <string.h>

#include "../parallel.h"
#include "../tensor.h"
#include "kernels.h"
#include "scratch.h"

namespace lutkern {

struct Prepared {
  int8_t* q = nullptr;
  float* scale = nullptr;
  int16_t* sum = nullptr;
  int16_t* sum16 = nullptr;
  float* floats = nullptr;
  int64_t stride = 0;  // padded columns

  bool allocate(Scratch& scratch, int64_t tokens, int64_t cols, bool need_integers, bool need_floats) {
    stride = (cols + kActivationPad - 1) / kActivationPad * kActivationPad;
    if (need_integers) {
      q = scratch.take<int8_t>(tokens * stride);
      scale = scratch.take<float>(tokens * (stride / kActivationGroup));
      sum = scratch.take<int16_t>(tokens * (stride / kSumGroup));
      sum16 = scratch.take<int16_t>(tokens * (stride / 16));
    }
    if (need_floats) floats = scratch.take<float>(tokens * stride);
    return scratch.ok();
  }

  Activations integers() const { return Activations{q, scale, sum, sum16, stride}; }

  // n columns of a token from column first, both multiples of 32
  void put(int64_t token, int64_t first, const float* x, int64_t n, const CpuKernels& k) const {
    const int64_t at = token * stride + first;
    if (q) k.quantize(x, n, q + at, scale + at / kActivationGroup, sum + at / kSumGroup, sum16 + at / 16);
    if (floats) memcpy(floats + at, x, static_cast<size_t>(n) * sizeof(float));
  }

  // Row token of x
  void fill(const Matrix& x, int64_t token, const CpuKernels& k) const {
    alignas(64) float chunk[kActivationPad];
    for (int64_t first = 0; first < stride; first += kActivationPad) {
      const int64_t left = x.cols - first;
      const int64_t n = left < kActivationPad ? left : int64_t{kActivationPad};
      x.load(token, first, n, chunk);
      memset(chunk + n, 0, static_cast<size_t>(kActivationPad - n) * sizeof(float));
      put(token, first, chunk, kActivationPad, k);
    }
  }

  void fill_all(const Matrix& x, const CpuKernels& k, const Runner& runner) const {
    constexpr int64_t kNumbersPerTask = 32768;
    struct State {
      const Prepared* prepared;
      const Matrix* x;
      const CpuKernels* kernels;
      static void run(void* state, int64_t begin, int64_t end) {
        const State& self = *static_cast<State*>(state);
        for (int64_t token = begin; token < end; ++token) self.prepared->fill(*self.x, token, *self.kernels);
      }
    } state{this, &x, &k};
    const int64_t grain = kNumbersPerTask / stride;
    runner.run(x.rows, grain < 1 ? 1 : grain, State::run, &state);
  }
};

}  // namespace lutkern
