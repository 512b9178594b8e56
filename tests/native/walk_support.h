// What the walk stands on: exactly sized memory, random numbers that are the same everywhere, weights whose values are
// sane, and the judge in double.
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

__attribute__((format(printf, 1, 2))) void set_case(const char* text, ...);
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* text, ...);
void check_ok(lutkern_status status);

// ---- memory ----

// n elements and not one byte more, so that a sanitizer sees a read past either end. shift: bytes off the alignment of
// malloc.
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

// Memory of n floats that are untouched.
Floats output(int64_t n);
bool untouched(const void* memory, size_t nbytes);
// Equal to the bit; every NaN is the same.
void check_same(const Floats& got, const Floats& expected, const char* what);

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

std::vector<lutkern_format> all_formats();
// Those that this processor has, best first.
std::vector<const char*> all_isas();

// ---- weights ----

enum class Content {
  any,  // random bytes: scales may be infinite or NaN
  sane  // random blocks whose weights are finite and reach between 1/8 and 8
};

struct Sample {
  Bytes bytes;
  lutkern_tensor tensor;
};

Sample make_sample(const lutkern_format& f, int64_t experts, int64_t rows, int64_t cols, Content content, int shift,
                   Random& random);

// The same weight in tiles, in memory of its own.
Sample in_tiles(const lutkern_tensor& blocks, int shift);
// Tiles of random bytes.
Sample random_tiles(const lutkern_format& f, int64_t rows, int64_t cols, int shift, Random& random);

std::vector<double> weights_of(const lutkern_tensor& tensor);

// ---- activations ----

struct Input {
  Bytes bytes;
  lutkern_matrix matrix;
};

constexpr int kElementBytes[] = {4, 2, 2};  // of lutkern_dtype

// tokens x cols numbers around one; the last row ends with the memory.
Input make_input(int64_t tokens, int64_t cols, int64_t stride, lutkern_dtype dtype, Random& random);

// The same numbers as float32, rows side by side.
Input to_f32(const lutkern_matrix& m);

// The first tokens of an input, alone in memory.
Input first_tokens(const Input& x, int64_t tokens);

lutkern_matrix row_of(const lutkern_matrix& m, int64_t row);

// The numbers that a kernel meets: the floats themselves, or scale * q.
std::vector<double> activations_of(const lutkern_matrix& m, bool quantised);

// ---- the judge ----

constexpr double kUlp = 0x1p-24;  // largest relative error of one float32 rounding
constexpr double kBound = 8.0;    // a result may be off by this many kUlp of the sum of the magnitudes of its terms

// Products in double and the magnitudes of their terms: tokens x rows.
struct Product {
  std::vector<double> value;
  std::vector<double> magnitude;
};

// A weight of a format with an offset is a sum of two terms that may cancel, so the magnitude of a term is taken from
// the largest of the 16 weights that share them.
Product multiply(const double* w, int64_t rows, int64_t cols, const double* x, int64_t tokens);

inline double g_worst = 0.0;  // largest error seen, as a part of its bound

void check_near(const Floats& got, const double* expected, const double* bound, const char* what);
void check_product(const Floats& got, const Product& p, const char* what);

// ---- host threads ----

// One item at a time, last first, on the calling thread.
void backwards(void* context, int64_t n, int64_t grain, lutkern_range_fn fn, void* state);

lutkern_options with_threads(int32_t threads);
lutkern_options with_host(lutkern_parallel_for run);
