#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <mutex>

namespace lutkern {
namespace cuda {

namespace {

thread_local Failure g_failure{};

Driver g_driver{};
bool g_found = false;
char g_absent[320] = "";
std::once_flag g_once;
std::atomic<bool> g_used{false};  // from the first look for the driver on, unless there is none
std::atomic<bool> g_forked{false};

constexpr char kForked[] = "CUDA was used before this process was forked, expected a process that was started by spawn";

__attribute__((format(printf, 1, 2))) bool absent(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(g_absent, sizeof(g_absent), text, arguments);
  va_end(arguments);
  return false;
}

bool look_up(void* library) {
  struct Entry {
    const char* name;
    void** where;
  };
  const Entry entries[] = {
#define LUTKERN_DRIVER_ENTRY(name, parameters) {#name, reinterpret_cast<void**>(&g_driver.name)},
      LUTKERN_CUDA_DRIVER(LUTKERN_DRIVER_ENTRY)
#undef LUTKERN_DRIVER_ENTRY
  };
  for (const Entry& entry : entries) {
    *entry.where = dlsym(library, entry.name);
    if (!*entry.where) {
      return absent("the CUDA driver has no %s, expected version %d.%d or newer", entry.name, kOldestDriver / 1000,
                    kOldestDriver % 1000 / 10);
    }
  }
  return true;
}

// LUTKERN_LIBCUDA names another library with the same functions: the tests' driver, which needs no device.
void* open_library() {
  const char* wished = getenv("LUTKERN_LIBCUDA");
  const char* name = wished && *wished ? wished : "libcuda.so.1";
  void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (library) return library;
  if (name == wished) {
    absent("no CUDA driver: LUTKERN_LIBCUDA names '%.200s', which could not be loaded", wished);
  } else {
    absent("no CUDA driver: libcuda.so.1 was not found");
  }
  return nullptr;
}

bool find() {
  void* library = open_library();
  if (!library || !look_up(library)) return false;
  int version = 0;
  if (!check(g_driver.cuDriverGetVersion(&version), "cuDriverGetVersion")) return absent("%s", failure().text);
  if (version < kOldestDriver) {
    return absent("the CUDA driver is of version %d.%d, expected %d.%d or newer", version / 1000, version % 1000 / 10,
                  kOldestDriver / 1000, kOldestDriver % 1000 / 10);
  }
  const Result result = g_driver.cuInit(0);
  if (result == kNoDevice) return absent("the CUDA driver reports no device");
  if (!check(result, "cuInit")) return absent("%s", failure().text);
  return true;
}

// Registered when the library is loaded: later, a fork on another thread could come while the driver is being found.
const bool g_fork_is_seen = pthread_atfork(nullptr, nullptr, [] { g_forked = g_used || g_forked; }) == 0;

}  // namespace

const Failure& failure() { return g_failure; }

bool failed(Cause cause, const char* text, ...) {
  g_failure.cause = cause;
  g_failure.result = kSuccess;
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(g_failure.text, sizeof(g_failure.text), text, arguments);
  va_end(arguments);
  return false;
}

bool failed(const Failure& why) {
  g_failure = why;
  return false;
}

bool check(Result result, const char* call) {
  if (result == kSuccess) return true;
  const char* name = nullptr;
  const char* text = nullptr;
  g_driver.cuGetErrorName(result, &name);
  g_driver.cuGetErrorString(result, &text);
  const Cause cause = result == kOutOfMemory ? Cause::memory : Cause::device;
  if (name) {
    failed(cause, "%s failed: %s (%s)", call, text ? text : "no text", name);
  } else {
    failed(cause, "%s failed: error %d", call, result);
  }
  g_failure.result = result;
  return false;
}

const Driver* driver() {
  if (g_forked) return nullptr;
  std::call_once(g_once, [] {
    g_used = true;
    g_found = find();
    g_used = g_found;
  });
  return g_found ? &g_driver : nullptr;
}

const char* no_driver() { return g_forked ? kForked : g_absent; }

bool is_forked() { return g_forked; }

}  // namespace cuda
}  // namespace lutkern
