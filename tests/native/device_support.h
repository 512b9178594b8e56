// What the tests of the hosts of GPUs stand on, for CUDA and for Metal alike: LUTKERN_TEST_KIND says which. Weights on the CPU
// and on a device, processes, failing.
#pragma once
#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "lutkern.h"

constexpr int32_t kFirst = LUTKERN_TEST_KIND;
constexpr int32_t kSecond = LUTKERN_TEST_KIND + 1;
inline std::string place(int index) { return (kFirst == LUTKERN_METAL ? "metal:" : "cuda:") + std::to_string(index); }
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
  if (!library) die("the fake is not loaded");
  void* symbol = dlsym(library, name);
  if (!symbol) die("the fake has no %s", name);
  Fn* fn = nullptr;
  memcpy(&fn, &symbol, sizeof(fn));
  return fn;
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

// ---- processes ----

// What a process of its own is started with: the fake that stands for the system's library, and its settings
struct Start {
  const char* library;
  std::string settings;
};

// True if the child did what it should.
template <class Run>
bool in_child(const Start& start, Run run) {
  fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    setenv(kFirst == LUTKERN_METAL ? "LUTKERN_OBJC" : "LUTKERN_LIBCUDA", start.library, 1);
    setenv(kFirst == LUTKERN_METAL ? "LUTKERN_FAKE_METAL" : "LUTKERN_FAKE_CUDA", start.settings.c_str(), 1);
    alarm(200);
    run();
    fflush(nullptr);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) fprintf(stderr, "signal %d\n", WTERMSIG(status));
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// ---- device_operations.cpp: cases of both kinds ----

// Blocks to the device and back, by way of every layout on either side, and to the other device
void round_trip(const char* name, int64_t experts, int64_t rows, int64_t cols);
void case_repack_in_chunks();
void products(const char* name, lutkern_layout layout, int64_t tokens, bool exact);
void case_products();
void case_dequantize();
void case_moe();
void case_moe_edges();
void case_events();
void case_threads();
// After all work is done. tolerated: things that could not be given back, because the fake refused. Each kind has its own.
void nothing_is_left(int tolerated = 0);
