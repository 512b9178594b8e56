// A layer of experts, fused. The pairs (token, slot) are sorted by expert, so that the weights of an expert are read once
// for all its tokens:
//
//   1. x becomes integers (or stays float, as the weights ask)
//   2. for each expert that has pairs, for each 32 rows of gate and up:
//        h = activation(gate x) * (up x), and at once integers again: 32 columns of h have a scale of their own
//   3. for each range of rows of down: out[token, rows] += weight * (down h), pair by pair in order of experts
//
// A pair whose id is negative belongs to an expert that lives elsewhere: it gets no place in the order.
//
// Tasks are handed out as threads become free; which thread works on one never changes a number. Scratch, kept from call to
// call (scratch.h): inter numbers for each pair and hidden numbers for each token, rounded up to 256, of 1.5 bytes (4 more
// where a weight wants floats), for at most 16384 pairs at once.
#include <stdlib.h>
#include <string.h>

#include "operations.h"
#include "prepared.h"
#include "products.h"
#include "scratch.h"

namespace lutkern {
namespace {

constexpr int64_t kPairsAtOnce = 16384;  // bounds the scratch
constexpr int64_t kSlab = 64;            // pairs whose numbers wait on the stack
constexpr int64_t kHiddenRows = 32;      // rows of gate and up in one task: one scale of h
constexpr int64_t kOutRows = 128;        // rows of down in one task when there are many pairs

float activate(Activation activation, float g) {
  switch (activation) {
    case Activation::silu:
      return g / (1.0f + __builtin_expf(-g));
    case Activation::gelu:
      return 0.5f * g * (1.0f + __builtin_tanhf(0.7978845608028654f * (g + 0.044715f * g * g * g)));
    case Activation::relu2:
      return g < 0.0f ? 0.0f : g * g;
    case Activation::none:
      break;
  }
  return g;
}

struct Moe {
  const MoeWork* work;
  const CpuKernels* kernels;
  const Runner* runner;
  int64_t first_token;
  int64_t n_tokens;

  Prepared x;
  Prepared h;
  int32_t* first_pair;   // experts + 1: pairs of expert e are first_pair[e] .. first_pair[e + 1] - 1
  int32_t* active;       // experts that have pairs
  int32_t* pair_token;   // pair -> token of this part
  int32_t* pair_itself;  // pair -> pair
  float* pair_weight;
  int64_t n_active;
  int64_t out_rows;  // of one task of down

  int64_t inter() const { return work->up->rows; }
  int64_t hidden() const { return work->down->rows; }
  int64_t hidden_tasks() const { return (inter() + kHiddenRows - 1) / kHiddenRows; }

  bool allocate(Scratch& scratch, int64_t tokens) {
    const int64_t pairs = tokens * work->k;
    const bool gate_floats = work->gate && wants_float(*work->gate, work->exact);
    const bool gate_integers = work->gate && !gate_floats;
    const bool up_floats = wants_float(*work->up, work->exact);
    const bool down_floats = wants_float(*work->down, work->exact);
    first_pair = scratch.take<int32_t>(work->up->experts + 1);
    active = scratch.take<int32_t>(work->up->experts);
    pair_token = scratch.take<int32_t>(pairs);
    pair_itself = scratch.take<int32_t>(pairs);
    pair_weight = scratch.take<float>(pairs);
    return x.allocate(scratch, tokens, work->x.cols, gate_integers || !up_floats, gate_floats || up_floats) &&
           h.allocate(scratch, pairs, inter(), !down_floats, down_floats);
  }

  void sort_pairs() {
    const int32_t* ids = work->expert_ids + first_token * work->k;
    const float* weights = work->expert_weights + first_token * work->k;
    const int64_t pairs = n_tokens * work->k;
    const int64_t experts = work->up->experts;
    memset(first_pair, 0, static_cast<size_t>(experts + 1) * sizeof(int32_t));
    for (int64_t i = 0; i < pairs; ++i) {
      if (ids[i] >= 0) ++first_pair[ids[i] + 1];
    }
    n_active = 0;
    for (int64_t e = 0; e < experts; ++e) {
      if (first_pair[e + 1] > 0) active[n_active++] = static_cast<int32_t>(e);
      first_pair[e + 1] += first_pair[e];
    }
    for (int64_t i = 0; i < pairs; ++i) {
      if (ids[i] < 0) continue;
      const int32_t pair = first_pair[ids[i]]++;
      pair_token[pair] = static_cast<int32_t>(i / work->k);
      pair_itself[pair] = pair;
      pair_weight[pair] = weights[i];
    }
    for (int64_t e = experts; e > 0; --e) first_pair[e] = first_pair[e - 1];
    first_pair[0] = 0;
  }

  // h[0 .. 31] of n pairs from row on: one slab through gate and up.
  void hidden_slab(int64_t expert, int64_t row, int64_t row_end, int64_t pair, int64_t n) const {
    alignas(64) float g[kSlab * kHiddenRows];
    alignas(64) float u[kSlab * kHiddenRows];
    const int64_t n_rows = row_end - row;
    const int32_t* token = pair_token + pair;
    multiply(work->gate ? *work->gate : *work->up, expert, row, row_end, x, work->exact, token, n, g, kHiddenRows,
             *kernels);
    if (work->gate) multiply(*work->up, expert, row, row_end, x, work->exact, token, n, u, kHiddenRows, *kernels);
    for (int64_t i = 0; i < n; ++i) {
      float* values = g + i * kHiddenRows;
      for (int64_t r = 0; r < n_rows; ++r) {
        const float a = activate(work->activation, values[r]);
        values[r] = work->gate ? a * u[i * kHiddenRows + r] : a;
      }
      memset(values + n_rows, 0, static_cast<size_t>(kHiddenRows - n_rows) * sizeof(float));
      h.put(pair + i, row, values, kHiddenRows, *kernels);
      if (row_end == inter()) pad(pair + i, row + kHiddenRows);
    }
  }

  // Zeros from column first to the end of the padded columns
  void pad(int64_t pair, int64_t first) const {
    const float zeros[kHiddenRows] = {};
    for (int64_t column = first; column < h.stride; column += kHiddenRows) {
      h.put(pair, column, zeros, kHiddenRows, *kernels);
    }
  }

  static void gate_up(void* state, int64_t begin, int64_t end) {
    const Moe& self = *static_cast<Moe*>(state);
    const int64_t tasks = self.hidden_tasks();
    for (int64_t item = begin; item < end; ++item) {
      const int64_t expert = self.active[item / tasks];
      const int64_t row = item % tasks * kHiddenRows;
      const int64_t row_end = row + kHiddenRows < self.inter() ? row + kHiddenRows : self.inter();
      for (int64_t pair = self.first_pair[expert]; pair < self.first_pair[expert + 1]; pair += kSlab) {
        const int64_t left = self.first_pair[expert + 1] - pair;
        self.hidden_slab(expert, row, row_end, pair, left < kSlab ? left : kSlab);
      }
    }
  }

  void add_slab(int64_t expert, int64_t row, int64_t row_end, int64_t pair, int64_t n, float* y) const {
    const int64_t n_rows = row_end - row;
    multiply(*work->down, expert, row, row_end, h, work->exact, pair_itself + pair, n, y, n_rows, *kernels);
    for (int64_t i = 0; i < n; ++i) {
      float* out = work->out + (first_token + pair_token[pair + i]) * hidden() + row;
      const float weight = pair_weight[pair + i];
      for (int64_t r = 0; r < n_rows; ++r) out[r] += weight * y[i * n_rows + r];
    }
  }

  static void down(void* state, int64_t begin, int64_t end) {
    const Moe& self = *static_cast<Moe*>(state);
    alignas(64) float y[kSlab * kOutRows];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item * self.out_rows;
      const int64_t row_end = row + self.out_rows < self.hidden() ? row + self.out_rows : self.hidden();
      for (int64_t t = 0; t < self.n_tokens; ++t) {
        memset(self.work->out + (self.first_token + t) * self.hidden() + row, 0,
               static_cast<size_t>(row_end - row) * sizeof(float));
      }
      for (int64_t a = 0; a < self.n_active; ++a) {
        const int64_t expert = self.active[a];
        for (int64_t pair = self.first_pair[expert]; pair < self.first_pair[expert + 1]; pair += kSlab) {
          const int64_t left = self.first_pair[expert + 1] - pair;
          self.add_slab(expert, row, row_end, pair, left < kSlab ? left : kSlab, y);
        }
      }
    }
  }

  void run_part() {
    Matrix part = work->x;
    const int64_t element = part.dtype == Dtype::f32 ? 4 : 2;
    part.data = static_cast<const uint8_t*>(part.data) + first_token * part.row_stride * element;
    part.rows = n_tokens;
    sort_pairs();
    x.fill_all(part, *kernels, *runner);
    runner->run(n_active * hidden_tasks(), 1, gate_up, this);
    out_rows = n_tokens * work->k >= kSlab ? kOutRows : int64_t{kUnitRows};
    runner->run((hidden() + out_rows - 1) / out_rows, 1, down, this);
  }
};

}  // namespace

bool moe(const MoeWork& work, const Runner& runner) {
  const int64_t tokens = work.x.rows;
  if (work.k == 0) {
    memset(work.out, 0, static_cast<size_t>(tokens * work.down->rows) * sizeof(float));
    return true;
  }
  int64_t part = kPairsAtOnce / work.k;
  part = part < 1 ? 1 : (part < tokens ? part : tokens);
  Scratch scratch;
  Moe state{};
  state.work = &work;
  state.kernels = &kernels();
  state.runner = &runner;
  if (!state.allocate(scratch, part)) return false;
  for (int64_t first = 0; first < tokens; first += part) {
    state.first_token = first;
    state.n_tokens = tokens - first < part ? tokens - first : part;
    state.run_part();
  }
  return true;
}

}  // namespace lutkern
