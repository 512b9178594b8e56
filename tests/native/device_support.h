// What the tests of the CUDA host stand on: the fake driver, weights on the CPU and on a device, failing.
#pragma once
#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "lutkern.h"

constexpr int32_t kFirst = LUTKERN_CUDA;
constexpr int32_t kSecond = LUTKERN_CUDA + 1;
constexpr int32_t kNowhere = 0x300;  // no kind of devices

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void die(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  vfprintf(stderr, text, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  _exit(1);
}

inline void need(bool truth, const char* what) {
  if (!truth) die("%s; last error: %s", what, lutkern_last_error());
}

inline void ok(lutkern_status status) {
  if (status) die("status %d: %s", status, lutkern_last_error());
}

inline void expect(lutkern_status got, lutkern_status wanted, const char* text) {
  if (got != wanted || strcmp(lutkern_last_error(), text) != 0) {
    die("got %d '%s', expected %d '%s'", got, lutkern_last_error(), wanted, text);
  }
}

// ---- the fake ----

template <typename Fn>
Fn* fake(const char* name) {
  static void* library = dlopen(LUTKERN_FAKE_LIBRARY, RTLD_NOW | RTLD_NOLOAD);
  if (!library) die("the fake driver is not loaded");
  void* symbol = dlsym(library, name);
  if (!symbol) die("the fake has no %s", name);
  Fn* fn = nullptr;
  memcpy(&fn, &symbol, sizeof(fn));
  return fn;
}

inline int alive(const char* what) { return fake<int(const char*)>("fake_cuda_alive")(what); }
inline int calls() { return fake<int()>("fake_cuda_calls")(); }
inline std::string failed_call() { return fake<const char*()>("fake_cuda_failed_call")(); }
inline std::string fault() { return fake<const char*()>("fake_cuda_fault")(); }
inline void finish() { fake<void()>("fake_cuda_finish")(); }

// kKept: events and pinned buffers of the staging stay for the next operation.
constexpr int kKeptEvents = 2 * 2;  // of two devices

// tolerated: things that could not be given back, because the driver refused.
inline void nothing_is_left(int tolerated = 0) {
  finish();
  int left = 0;
  for (const char* what : {"arrays", "streams", "graphs", "contexts"}) {
    left += alive(what);
    if (left > tolerated) die("%d %s are left", alive(what), what);
  }
  if (alive("events") > kKeptEvents + tolerated) die("%d events are left", alive("events"));
  if (!fault().empty()) die("fault: %s", fault().c_str());
}

// ---- a weight and its arrays ----

struct Random {
  uint64_t state = 1;
  uint32_t bits() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  float uniform() { return static_cast<float>(bits() & 0xffffu) / 32768.0f - 1.0f; }
};

inline lutkern_format format(const char* name) {
  lutkern_format f;
  ok(lutkern_find_format(name, &f));
  return f;
}

// Packed from random numbers, so that all weights are sane; iq formats take a cheap way: packing is slow for them only
// where it searches.
struct Host {
  std::vector<uint8_t> bytes;
  lutkern_tensor tensor;
};

inline Host host_weight(const char* name, int64_t experts, int64_t rows, int64_t cols) {
  const lutkern_format f = format(name);
  Random random;
  std::vector<float> w(static_cast<size_t>(experts * rows * cols));
  for (float& v : w) v = random.uniform();
  Host out;
  out.bytes.resize(static_cast<size_t>(experts * rows * lutkern_row_bytes(f.ggml_type, cols)));
  const lutkern_matrix m{w.data(), LUTKERN_F32, experts * rows, cols, cols, LUTKERN_CPU};
  lutkern_options options{};
  options.effort = LUTKERN_EFFORT_FAST;
  ok(lutkern_pack(f.ggml_type, experts, &m, nullptr, out.bytes.data(), out.bytes.size(), nullptr, &options));
  ok(lutkern_tensor_init(&out.tensor, f.ggml_type, LUTKERN_BLOCKS, experts, rows, cols, out.bytes.data(),
                         out.bytes.size()));
  return out;
}

// Memory of a device
class Memory {
 public:
  Memory() = default;
  Memory(int32_t device, size_t bytes, void* stream = nullptr) : device_(device), bytes_(bytes) {
    status_ = lutkern_device_alloc(device, bytes, stream, &data_);
  }
  Memory(Memory&& other) noexcept
      : device_(other.device_), bytes_(other.bytes_), data_(other.data_), status_(other.status_) {
    other.data_ = nullptr;
  }
  Memory& operator=(Memory&&) = delete;
  ~Memory() { lutkern_device_free(device_, data_, LUTKERN_ALL_STREAMS); }

  lutkern_status status() const { return status_; }
  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  int32_t device_ = kFirst;
  size_t bytes_ = 0;
  void* data_ = nullptr;
  lutkern_status status_ = LUTKERN_OK;
};

struct OnDevice {
  Memory memory;
  lutkern_tensor tensor;
};

// Empty, for repack
inline OnDevice device_weight(const lutkern_tensor& like, lutkern_layout layout, int32_t device) {
  const int64_t n = lutkern_device_tensor_bytes(device, like.ggml_type, layout, like.experts, like.rows, like.cols);
  OnDevice out{Memory(device, static_cast<size_t>(n)), {}};
  ok(out.memory.status());
  ok(lutkern_device_tensor_init(&out.tensor, device, like.ggml_type, layout, like.experts, like.rows, like.cols,
                                out.memory.data(), out.memory.bytes()));
  return out;
}

inline OnDevice upload(const lutkern_tensor& from, lutkern_layout layout, int32_t device) {
  OnDevice out = device_weight(from, layout, device);
  ok(lutkern_repack_to(&from, layout, device, out.memory.data(), out.memory.bytes(), nullptr));
  return out;
}

inline std::vector<float> floats(int64_t n) {
  Random random;
  std::vector<float> out(static_cast<size_t>(n));
  for (float& v : out) v = random.uniform();
  return out;
}

inline lutkern_matrix matrix(const void* data, int64_t rows, int64_t cols, int32_t device) {
  return lutkern_matrix{data, LUTKERN_F32, rows, cols, cols, device};
}

// Both sides quantise x in the same way: they differ by the roundings of a float sum.
inline void near(const std::vector<float>& got, const std::vector<float>& expected, const char* what) {
  double largest = 0.0;
  for (const float v : expected) largest = fmax(largest, fabs(static_cast<double>(v)));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double off = fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
    if (!(off <= 1e-4 * largest)) {
      die("%s: number %zu is %g, expected %g", what, i, static_cast<double>(got[i]), static_cast<double>(expected[i]));
    }
  }
}

// device_failures.cpp: each call of the driver fails once. report: a pipe for the number of calls.
void case_nothing_fails(int report);
void case_one_fails();
