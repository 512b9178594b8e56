#include "operations.h"

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "scratch.h"

namespace lutkern {
namespace {

constexpr int64_t kWeightsPerTask = 32768;  // about ten microseconds of work: far more than handing out a task costs

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

int64_t rows_per_task(int64_t cols) {
  const int64_t rows = kWeightsPerTask / (cols > 0 ? cols : 1);
  return rows < 8 ? 8 : round_up(rows, 8);
}

// Whether a projection meets float activations.
bool wants_float(const Weight& w, bool exact) { return exact || w.info().is_float; }

Rows rows_of(const Weight& w, int64_t expert, int64_t begin, int64_t end) {
  return Rows{w.row(expert, begin), w.row_bytes, end - begin, w.stored_cols};
}

// The activations of an operation, in the one or two forms that its weights ask for, padded with zeros.
struct Prepared {
  Activations integers{};
  float* floats = nullptr;
  int64_t stride = 0;

  bool allocate(Scratch& scratch, int64_t tokens, int64_t cols, bool need_integers, bool need_floats) {
    stride = round_up(cols, kActivationPad);
    if (need_integers) {
      integers.q = scratch.take<int8_t>(tokens * stride);
      integers.scale = scratch.take<float>(tokens * (stride / kActivationGroup));
      integers.sum = scratch.take<int16_t>(tokens * (stride / kSumGroup));
      integers.token_stride = stride;
    }
    if (need_floats) floats = scratch.take<float>(tokens * stride);
    return scratch.ok();
  }

  void fill(const Matrix& x, int64_t token, const CpuKernels& k) {
    alignas(64) float chunk[kActivationPad];
    for (int64_t first = 0; first < stride; first += kActivationPad) {
      const int64_t left = x.cols - first;
      const int64_t n = left < kActivationPad ? left : int64_t{kActivationPad};
      x.load(token, first, n, chunk);
      memset(chunk + n, 0, static_cast<size_t>(kActivationPad - n) * sizeof(float));
      const int64_t at = token * stride + first;
      if (integers.q) {
        k.quantize(chunk, kActivationPad, const_cast<int8_t*>(integers.q) + at,
                   const_cast<float*>(integers.scale) + at / kActivationGroup,
                   const_cast<int16_t*>(integers.sum) + at / kSumGroup);
      }
      if (floats) memcpy(floats + at, chunk, sizeof(chunk));
    }
  }

  struct FillAll {
    Prepared* prepared;
    const Matrix* x;
    const CpuKernels* kernels;
    static void run(void* state, int64_t begin, int64_t end) {
      const FillAll& self = *static_cast<FillAll*>(state);
      for (int64_t token = begin; token < end; ++token) self.prepared->fill(*self.x, token, *self.kernels);
    }
  };

  void fill_all(const Matrix& x, const CpuKernels& k, const Runner& runner) {
    FillAll all{this, &x, &k};
    const int64_t grain = kWeightsPerTask / stride;
    runner.run(x.rows, grain < 1 ? 1 : grain, FillAll::run, &all);
  }
};

// Rows begin .. end - 1 of one expert times the tokens named: out[i * out_stride + row].
void multiply(const Weight& w, int64_t expert, int64_t begin, int64_t end, const Prepared& x, bool exact,
              const int32_t* token, int64_t n_tokens, float* out, int64_t out_stride, const CpuKernels& k) {
  const Rows rows = rows_of(w, expert, begin, end);
  const int f = static_cast<int>(w.format);
  if (wants_float(w, exact)) {
    k.gemm_float[f](rows, x.floats, x.stride, token, n_tokens, out + begin, out_stride);
  } else if (n_tokens == 1) {
    Activations one = x.integers;
    one.q += token[0] * x.stride;
    one.scale += token[0] * (x.stride / kActivationGroup);
    one.sum += token[0] * (x.stride / kSumGroup);
    k.gemv[f](rows, one, out + begin);
  } else {
    k.gemm[f](rows, x.integers, token, n_tokens, out + begin, out_stride);
  }
}

struct DequantizeTask {
  const Weight* w;
  float* out;
  DequantizeFn kernel;
  static void run(void* state, int64_t begin, int64_t end) {
    const DequantizeTask& self = *static_cast<DequantizeTask*>(state);
    for (int64_t row = begin; row < end; ++row) {
      self.kernel(self.w->data + row * self.w->row_bytes, self.w->cols, self.out + row * self.w->cols);
    }
  }
};

struct MatmulTask {
  const Weight* w;
  const Prepared* x;
  bool exact;
  const int32_t* token;
  int64_t n_tokens;
  int64_t row_begin;
  float* out;
  const CpuKernels* kernels;
  static void run(void* state, int64_t begin, int64_t end) {
    const MatmulTask& self = *static_cast<MatmulTask*>(state);
    multiply(*self.w, 0, self.row_begin + begin, self.row_begin + end, *self.x, self.exact, self.token, self.n_tokens,
             self.out, self.w->rows, *self.kernels);
  }
};

}  // namespace

bool dequantize(const Weight& w, float* out, const Runner& runner) {
  DequantizeTask task{&w, out, kernels().dequantize[static_cast<int>(w.format)]};
  runner.run(w.experts * w.rows, rows_per_task(w.cols), DequantizeTask::run, &task);
  return true;
}

bool matmul(const Weight& w, const Matrix& x, bool exact, int64_t row_begin, int64_t row_end, float* out,
            const Runner& runner) {
  const CpuKernels& k = kernels();
  const bool floats = wants_float(w, exact);
  Scratch scratch;
  Prepared prepared;
  int32_t* token = scratch.take<int32_t>(x.rows);
  if (!prepared.allocate(scratch, x.rows, x.cols, !floats, floats)) return false;
  for (int64_t t = 0; t < x.rows; ++t) token[t] = static_cast<int32_t>(t);
  prepared.fill_all(x, k, runner);
  MatmulTask task{&w, &prepared, exact, token, x.rows, row_begin, out, &k};
  runner.run(row_end - row_begin, rows_per_task(w.cols), MatmulTask::run, &task);
  return true;
}

void quantize_row(const Matrix& x, int8_t* q, float* scale) {
  alignas(64) float chunk[kActivationPad];
  alignas(64) int8_t codes[kActivationPad];
  float scales[kActivationPad / kActivationGroup];
  int16_t sums[kActivationPad / kSumGroup];
  for (int64_t first = 0; first < x.cols; first += kActivationPad) {
    const int64_t left = x.cols - first;
    const int64_t n = left < kActivationPad ? left : int64_t{kActivationPad};
    x.load(0, first, n, chunk);
    memset(chunk + n, 0, static_cast<size_t>(kActivationPad - n) * sizeof(float));
    kernels().quantize(chunk, kActivationPad, codes, scales, sums);
    memcpy(q + first, codes, static_cast<size_t>(n));
    memcpy(scale + first / kActivationGroup, scales,
           static_cast<size_t>(round_up(n, kActivationGroup) / kActivationGroup) * sizeof(float));
  }
}

// ---- mixture of experts ----
//
// The pairs (token, slot) are sorted by expert, so that each expert's weights are read once for all its tokens:
//
//   1. for each (expert, row range) of gate and up: h[pair, row] = activation(gate x) * (up x)
//   2. for each pair: quantise h
//   3. for each (expert, row range) of down: y[pair, row] = down h
//   4. for each token: out = sum over its slots, in slot order, of weight * y
//
// Tasks are handed out as threads become free; which thread works on one never changes a number.

namespace {

constexpr int64_t kPairsAtOnce = 4096;  // bounds the scratch: (2 inter + hidden) * 4 bytes for each pair

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
  int32_t* pair_of;      // token * k + slot -> pair
  int64_t n_active;
  float* gated;  // pairs x inter
  float* raised;
  float* y;  // pairs x hidden

  int64_t inter() const { return work->up->rows; }
  int64_t hidden() const { return work->down->rows; }

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
    pair_of = scratch.take<int32_t>(pairs);
    gated = scratch.take<float>(pairs * inter());
    raised = work->gate ? scratch.take<float>(pairs * inter()) : nullptr;
    y = scratch.take<float>(pairs * hidden());
    return x.allocate(scratch, tokens, work->x.cols, gate_integers || !up_floats, gate_floats || up_floats) &&
           h.allocate(scratch, pairs, inter(), !down_floats, down_floats);
  }

  void sort_pairs() {
    const int32_t* ids = work->expert_ids + first_token * work->k;
    const int64_t pairs = n_tokens * work->k;
    const int64_t experts = work->up->experts;
    memset(first_pair, 0, static_cast<size_t>(experts + 1) * sizeof(int32_t));
    for (int64_t i = 0; i < pairs; ++i) ++first_pair[ids[i] + 1];
    n_active = 0;
    for (int64_t e = 0; e < experts; ++e) {
      if (first_pair[e + 1] > 0) active[n_active++] = static_cast<int32_t>(e);
      first_pair[e + 1] += first_pair[e];
    }
    for (int64_t i = 0; i < pairs; ++i) {
      const int32_t pair = first_pair[ids[i]]++;
      pair_token[pair] = static_cast<int32_t>(i / work->k);
      pair_itself[pair] = pair;
      pair_of[i] = pair;
    }
    for (int64_t e = experts; e > 0; --e) first_pair[e] = first_pair[e - 1];
    first_pair[0] = 0;
  }

  // Task number item: an active expert and a range of its rows.
  template <typename Body>
  void for_tasks(int64_t begin, int64_t end, const Weight& w, Body body) const {
    const int64_t grain = rows_per_task(w.cols);
    const int64_t pieces = (w.rows + grain - 1) / grain;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item % pieces * grain;
      const int64_t row_end = row + grain < w.rows ? row + grain : w.rows;
      const int64_t expert = active[item / pieces];
      body(expert, first_pair[expert], first_pair[expert + 1] - first_pair[expert], row, row_end);
    }
  }

  int64_t task_count(const Weight& w) const {
    const int64_t grain = rows_per_task(w.cols);
    return n_active * ((w.rows + grain - 1) / grain);
  }

  static void gate_up(void* state, int64_t begin, int64_t end) {
    const Moe& self = *static_cast<Moe*>(state);
    const MoeWork& work = *self.work;
    self.for_tasks(
        begin, end, *work.up, [&](int64_t expert, int64_t pair, int64_t n_pairs, int64_t row, int64_t row_end) {
          const int64_t inter = self.inter();
          const int32_t* token = self.pair_token + pair;
          float* g = self.gated + pair * inter;
          float* u = work.gate ? self.raised + pair * inter : nullptr;
          multiply(work.gate ? *work.gate : *work.up, expert, row, row_end, self.x, work.exact, token, n_pairs, g,
                   inter, *self.kernels);
          if (u) {
            multiply(*work.up, expert, row, row_end, self.x, work.exact, token, n_pairs, u, inter, *self.kernels);
          }
          for (int64_t i = 0; i < n_pairs; ++i) {
            for (int64_t at = i * inter + row; at < i * inter + row_end; ++at) {
              const float a = activate(work.activation, g[at]);
              g[at] = u ? a * u[at] : a;
            }
          }
        });
  }

  static void down(void* state, int64_t begin, int64_t end) {
    const Moe& self = *static_cast<Moe*>(state);
    const MoeWork& work = *self.work;
    self.for_tasks(begin, end, *work.down,
                   [&](int64_t expert, int64_t pair, int64_t n_pairs, int64_t row, int64_t row_end) {
                     multiply(*work.down, expert, row, row_end, self.h, work.exact, self.pair_itself + pair, n_pairs,
                              self.y + pair * self.hidden(), self.hidden(), *self.kernels);
                   });
  }

  static void combine(void* state, int64_t begin, int64_t end) {
    const Moe& self = *static_cast<Moe*>(state);
    const int64_t hidden = self.hidden();
    const int64_t k = self.work->k;
    for (int64_t t = begin; t < end; ++t) {
      float* out = self.work->out + (self.first_token + t) * hidden;
      memset(out, 0, static_cast<size_t>(hidden) * sizeof(float));
      for (int64_t slot = 0; slot < k; ++slot) {
        const float weight = self.work->expert_weights[(self.first_token + t) * k + slot];
        const float* y = self.y + self.pair_of[t * k + slot] * hidden;
        for (int64_t c = 0; c < hidden; ++c) out[c] += weight * y[c];
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
    runner->run(task_count(*work->up), 1, gate_up, this);
    const int64_t pairs = n_tokens * work->k;
    h.fill_all(Matrix{gated, Dtype::f32, pairs, inter(), inter()}, *kernels, *runner);
    runner->run(task_count(*work->down), 1, down, this);
    runner->run(n_tokens, 1, combine, this);
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
