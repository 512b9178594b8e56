// What the walk stands on: exactly sized memory, random numbers that are the same everywhere, weights whose values are sane, and the
// judge in double.
#pragma once
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "lutkern.h"

// ---- failing ----

inline char g_case[256] = "";

__attribute__((format(printf, 1, 2))) inline void set_case(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(g_case, sizeof(g_case), text, arguments);
  va_end(arguments);
}

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  fprintf(stderr, "walk: FAILED: %s: ", g_case);
  vfprintf(stderr, text, arguments);
  fprintf(stderr, "\n");
  va_end(arguments);
  exit(1);
}

inline void check_ok(lutkern_status status) {
  if (status != LUTKERN_OK) fail("status %d, %s", status, lutkern_last_error());
}

// ---- memory ----

// n elements and not one byte more, so that a sanitizer sees a read past either end. shift: bytes off the alignment of malloc.
template <typename T>
class Exact {
 public:
  explicit Exact(int64_t n, int shift = 0)
      : base_(static_cast<uint8_t*>(malloc(static_cast<size_t>(n) * sizeof(T) + static_cast<size_t>(shift)))),
        n_(n),
        shift_(shift) {
    if (!base_) fail("no memory for %lld elements", static_cast<long long>(n));
  }
  Exact(Exact&& other) noexcept : base_(other.base_), n_(other.n_), shift_(other.shift_) { other.base_ = nullptr; }
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;
  ~Exact() { free(base_); }

  T* get() const { return reinterpret_cast<T*>(base_ + shift_); }
  T& operator[](int64_t i) const { return get()[i]; }
  int64_t size() const { return n_; }
  size_t nbytes() const { return static_cast<size_t>(n_) * sizeof(T); }
  void fill_bytes(int byte) const { memset(base_ + shift_, byte, nbytes()); }

 private:
  uint8_t* base_;
  int64_t n_;
  int shift_;
};

using Bytes = Exact<uint8_t>;
using Floats = Exact<float>;

constexpr int kUntouched = 0xa5;  // every byte of an output before a call

inline Floats output(int64_t n) {
  Floats out(n);
  out.fill_bytes(kUntouched);
  return out;
}

inline bool untouched(const void* memory, size_t nbytes) {
  const uint8_t* bytes = static_cast<const uint8_t*>(memory);
  for (size_t i = 0; i < nbytes; ++i) {
    if (bytes[i] != kUntouched) return false;
  }
  return true;
}

inline void check_same(const Floats& got, const Floats& expected, const char* what) {
  for (int64_t i = 0; i < expected.size(); ++i) {
    if (memcmp(got.get() + i, expected.get() + i, sizeof(float)) == 0) continue;
    if (isnan(got[i]) && isnan(expected[i])) continue;
    fail("%s: element %lld is %a, expected %a to the bit", what, static_cast<long long>(i), static_cast<double>(got[i]),
         static_cast<double>(expected[i]));
  }
}

// ---- random numbers ----

struct Random {
  uint64_t state;

  uint64_t bits() {
    state += 0x9e3779b97f4a7c15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-23f - 1.0f; }  // -1 .. 1
  void fill(uint8_t* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<uint8_t>(bits() >> 56);
  }
};

// ---- what exists ----

inline std::vector<lutkern_format> all_formats() {
  std::vector<lutkern_format> out(static_cast<size_t>(lutkern_format_count()));
  for (int32_t i = 0; i < lutkern_format_count(); ++i) check_ok(lutkern_format_at(i, &out[static_cast<size_t>(i)]));
  return out;
}

inline std::vector<const char*> all_isas() {
  std::vector<const char*> out;
  for (int32_t i = 0; lutkern_isa_at(i); ++i) {
    if (lutkern_isa_supported(lutkern_isa_at(i))) out.push_back(lutkern_isa_at(i));
  }
  return out;
}

// ---- weights ----

enum class Content {
  any,  // random bytes: scales may be infinite or NaN
  sane  // random blocks whose weights are finite and reach between 1/8 and 8
};

inline bool is_sane(const lutkern_format& f, const uint8_t* block) {
  lutkern_tensor one;
  check_ok(lutkern_tensor_init(&one, f.ggml_type, 1, 1, f.block_size, block, static_cast<size_t>(f.block_bytes)));
  float weights[256];
  check_ok(lutkern_dequantize(&one, weights, nullptr));
  float largest = 0.0f;
  for (int i = 0; i < f.block_size; ++i) {
    if (!isfinite(weights[i])) return false;
    if (fabsf(weights[i]) > largest) largest = fabsf(weights[i]);
  }
  return largest >= 0.125f && largest <= 8.0f;
}

inline std::vector<uint8_t> sane_blocks(const lutkern_format& f, int n, Random& random) {
  const size_t block_bytes = static_cast<size_t>(f.block_bytes);
  std::vector<uint8_t> out(static_cast<size_t>(n) * block_bytes);
  for (int i = 0; i < n; ++i) {
    uint8_t* block = out.data() + static_cast<size_t>(i) * block_bytes;
    do {
      random.fill(block, f.block_bytes);
    } while (!is_sane(f, block));
  }
  return out;
}

struct Sample {
  Bytes bytes;
  lutkern_tensor tensor;
};

inline Sample make_sample(const lutkern_format& f, int64_t experts, int64_t rows, int64_t cols, Content content,
                          int shift, Random& random) {
  const int64_t nbytes = experts * rows * lutkern_row_bytes(f.ggml_type, cols);
  Sample out{Bytes(nbytes, shift), {}};
  if (content == Content::any) {
    random.fill(out.bytes.get(), nbytes);
  } else {
    const int kBlocks = 32;
    const std::vector<uint8_t> pool = sane_blocks(f, kBlocks, random);
    for (int64_t at = 0; at < nbytes; at += f.block_bytes) {
      memcpy(out.bytes.get() + at, pool.data() + random.below(kBlocks) * f.block_bytes,
             static_cast<size_t>(f.block_bytes));
    }
  }
  check_ok(lutkern_tensor_init(&out.tensor, f.ggml_type, experts, rows, cols, out.bytes.get(), out.bytes.nbytes()));
  return out;
}

inline std::vector<double> weights_of(const lutkern_tensor& tensor) {
  Floats w = output(tensor.experts * tensor.rows * tensor.cols);
  check_ok(lutkern_dequantize(&tensor, w.get(), nullptr));
  return std::vector<double>(w.get(), w.get() + w.size());
}

// ---- activations ----

struct Input {
  Bytes bytes;
  lutkern_matrix matrix;
};

constexpr int kElementBytes[] = {4, 2, 2};  // of lutkern_dtype

// tokens x cols numbers around one; the last row ends with the memory.
inline Input make_input(int64_t tokens, int64_t cols, int64_t stride, lutkern_dtype dtype, Random& random) {
  const int64_t n = (tokens - 1) * stride + cols;
  Input out{Bytes(n * kElementBytes[dtype], 1), {nullptr, dtype, tokens, cols, stride}};
  out.matrix.data = out.bytes.get();
  for (int64_t i = 0; i < n; ++i) {
    if (dtype == LUTKERN_F32) {
      const float value = random.uniform();
      memcpy(out.bytes.get() + 4 * i, &value, 4);
      continue;
    }
    // random sign and mantissa, exponents of 1/8 to 1
    const uint64_t bits = random.bits();
    const uint64_t half = dtype == LUTKERN_F16 ? (bits & 0x83ff) | (12 + (bits >> 20) % 4) << 10
                                               : (bits & 0x807f) | (124 + (bits >> 20) % 4) << 7;
    out.bytes[2 * i] = static_cast<uint8_t>(half);
    out.bytes[2 * i + 1] = static_cast<uint8_t>(half >> 8);
  }
  return out;
}

// The same numbers as float32, rows side by side.
inline Input to_f32(const lutkern_matrix& m) {
  Input out{Bytes(m.rows * m.cols * 4, 1), {nullptr, LUTKERN_F32, m.rows, m.cols, m.cols}};
  out.matrix.data = out.bytes.get();
  lutkern_format format;
  check_ok(lutkern_find_format(m.dtype == LUTKERN_F32 ? "f32" : (m.dtype == LUTKERN_F16 ? "f16" : "bf16"), &format));
  Floats row = output(m.cols);
  for (int64_t r = 0; r < m.rows; ++r) {
    const uint8_t* data = static_cast<const uint8_t*>(m.data) + r * m.row_stride * kElementBytes[m.dtype];
    lutkern_tensor t;
    check_ok(lutkern_tensor_init(&t, format.ggml_type, 1, 1, m.cols, data,
                                 static_cast<size_t>(m.cols * kElementBytes[m.dtype])));
    check_ok(lutkern_dequantize(&t, row.get(), nullptr));
    memcpy(out.bytes.get() + r * m.cols * 4, row.get(), row.nbytes());
  }
  return out;
}

// The first tokens of an input, alone in memory.
inline Input first_tokens(const Input& x, int64_t tokens) {
  Input out{Bytes(((tokens - 1) * x.matrix.row_stride + x.matrix.cols) * kElementBytes[x.matrix.dtype], 1), x.matrix};
  memcpy(out.bytes.get(), x.bytes.get(), out.bytes.nbytes());
  out.matrix.data = out.bytes.get();
  out.matrix.rows = tokens;
  return out;
}

inline lutkern_matrix row_of(const lutkern_matrix& m, int64_t row) {
  const uint8_t* data = static_cast<const uint8_t*>(m.data) + row * m.row_stride * kElementBytes[m.dtype];
  return {data, m.dtype, 1, m.cols, m.cols};
}

// The numbers that a kernel meets: the floats themselves, or scale * q.
inline std::vector<double> activations_of(const lutkern_matrix& m, bool quantised) {
  std::vector<double> out;
  const Input floats = to_f32(m);
  for (int64_t r = 0; r < m.rows; ++r) {
    const lutkern_matrix row = row_of(floats.matrix, r);
    Exact<int8_t> q(m.cols);
    Floats scale((m.cols + 31) / 32);
    check_ok(lutkern_quantize_activations(&row, q.get(), scale.get()));
    for (int64_t c = 0; c < m.cols; ++c) {
      float value;
      memcpy(&value, static_cast<const uint8_t*>(row.data) + 4 * c, 4);
      out.push_back(quantised ? static_cast<double>(scale[c / 32]) * q[c] : static_cast<double>(value));
    }
  }
  return out;
}

// ---- the judge ----

constexpr double kUlp = 0x1p-24;  // largest relative error of one float32 rounding
constexpr double kBound =
    16.0;  // roundings that a result may be off by, in units of the sum of the magnitudes of its terms

// Products in double and the magnitudes of their terms: tokens x rows.
struct Product {
  std::vector<double> value;
  std::vector<double> magnitude;
};

// A weight of a format with an offset is a sum of two terms that may cancel, so the magnitude of a term is taken from the largest of
// the 16 weights that share them.
inline Product multiply(const double* w, int64_t rows, int64_t cols, const double* x, int64_t tokens) {
  Product out;
  std::vector<double> largest(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t first = 0; first < cols; first += 16) {
      const int64_t end = first + 16 < cols ? first + 16 : cols;
      double top = 0.0;
      for (int64_t c = first; c < end; ++c) top = fmax(top, fabs(w[r * cols + c]));
      for (int64_t c = first; c < end; ++c) largest[static_cast<size_t>(r * cols + c)] = top;
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < rows; ++r) {
      double value = 0.0;
      double magnitude = 0.0;
      for (int64_t c = 0; c < cols; ++c) {
        value += w[r * cols + c] * x[t * cols + c];
        magnitude += largest[static_cast<size_t>(r * cols + c)] * fabs(x[t * cols + c]);
      }
      out.value.push_back(value);
      out.magnitude.push_back(magnitude);
    }
  }
  return out;
}

inline double g_worst = 0.0;  // largest error seen, as a part of its bound

inline void check_near(const Floats& got, const double* expected, const double* bound, const char* what) {
  for (int64_t i = 0; i < got.size(); ++i) {
    const double error = fabs(static_cast<double>(got[i]) - expected[i]);
    if (!(error <= bound[i])) {
      fail("%s: element %lld is %.9g, expected %.9g within %.3g", what, static_cast<long long>(i),
           static_cast<double>(got[i]), expected[i], bound[i]);
    }
    if (bound[i] > 0.0) g_worst = fmax(g_worst, error / bound[i]);
  }
}

inline void check_product(const Floats& got, const Product& p, const char* what) {
  std::vector<double> bound(p.magnitude);
  for (double& b : bound) b *= kBound * kUlp;
  check_near(got, p.value.data(), bound.data(), what);
}

// ---- host threads ----

// One item at a time, last first, on the calling thread.
inline void backwards(void* context, int64_t n, int64_t grain, lutkern_range_fn fn, void* state) {
  if (grain < 1 || !context) fail("parallel_for: grain %lld, context %p", static_cast<long long>(grain), context);
  for (int64_t i = n - 1; i >= 0; --i) fn(state, i, i + 1);
}

inline lutkern_options with_threads(int32_t threads) {
  lutkern_options options{};
  options.threads = threads;
  return options;
}

inline lutkern_options with_host(lutkern_parallel_for run) {
  static char context;
  lutkern_options options{};
  options.parallel_for = run;
  options.parallel_context = &context;
  return options;
}
