#include "objc.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <mutex>

namespace lutkern {
namespace metal {

Runtime g_runtime{};

namespace {

thread_local Failure g_failure{};

bool g_found = false;
char g_absent[320] = "";
std::once_flag g_once;
std::atomic<bool> g_used{false};  // from the first look for the runtime on, unless there is none
std::atomic<bool> g_forked{false};

constexpr char kForked[] =
    "Metal was used before this process was forked, expected a process that was started by spawn";

__attribute__((format(printf, 1, 2))) bool absent(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(g_absent, sizeof(g_absent), text, arguments);
  va_end(arguments);
  return false;
}

// Where functions are looked up
struct Libraries {
  void* objc;
  void* metal;
};

// LUTKERN_OBJC names another library with the same functions: the tests' runtime, which needs no Mac.
bool open_libraries(Libraries* out) {
  const char* wished = getenv("LUTKERN_OBJC");
  if (wished && *wished) {
    out->objc = out->metal = dlopen(wished, RTLD_NOW | RTLD_LOCAL);
    return out->objc || absent("no Metal: LUTKERN_OBJC names '%.200s', which could not be loaded", wished);
  }
  out->objc = dlopen("/usr/lib/libobjc.A.dylib", RTLD_NOW | RTLD_LOCAL);
  if (!out->objc) return absent("no Metal: the Objective-C runtime was not found");
  // For its classes
  const void* foundation = dlopen("/System/Library/Frameworks/Foundation.framework/Foundation", RTLD_NOW | RTLD_LOCAL);
  out->metal = dlopen("/System/Library/Frameworks/Metal.framework/Metal", RTLD_NOW | RTLD_LOCAL);
  return (foundation && out->metal) || absent("no Metal: its framework was not found");
}

bool look_up(const Libraries& libraries) {
  const struct {
    void* library;
    const char* name;
    void** where;
  } entries[] = {
      {libraries.objc, "objc_getClass", reinterpret_cast<void**>(&g_runtime.get_class)},
      {libraries.objc, "sel_registerName", reinterpret_cast<void**>(&g_runtime.register_name)},
      {libraries.objc, "objc_msgSend", reinterpret_cast<void**>(&g_runtime.send)},
      {libraries.objc, "objc_autoreleasePoolPush", reinterpret_cast<void**>(&g_runtime.push_pool)},
      {libraries.objc, "objc_autoreleasePoolPop", reinterpret_cast<void**>(&g_runtime.pop_pool)},
      {libraries.metal, "MTLCopyAllDevices", reinterpret_cast<void**>(&g_runtime.copy_all_devices)},
  };
  for (const auto& entry : entries) {
    *entry.where = dlsym(entry.library, entry.name);
    if (!*entry.where) return absent("no Metal: the Objective-C runtime has no %s", entry.name);
  }
  *reinterpret_cast<void**>(&g_runtime.read_system) = dlsym(libraries.objc, "sysctlbyname");
  return true;
}

bool find_names() {
  const char* const selectors[] = {
#define LUTKERN_SELECTOR(name, owner, selector, result, parameters) selector,
      LUTKERN_OBJC_MESSAGES(LUTKERN_SELECTOR)
#undef LUTKERN_SELECTOR
  };
  for (int i = 0; i < kMessages; ++i) {
    g_runtime.selector[i] = g_runtime.register_name(selectors[i]);
  }
  const char* const classes[] = {
#define LUTKERN_CLASS(name) #name,
      LUTKERN_OBJC_CLASSES(LUTKERN_CLASS)
#undef LUTKERN_CLASS
  };
  for (int i = 0; i < kClasses; ++i) {
    g_runtime.classes[i] = g_runtime.get_class(classes[i]);
    if (!g_runtime.classes[i]) return absent("no Metal: the Objective-C runtime has no class %s", classes[i]);
  }
  return true;
}

bool find() {
  Libraries libraries{};
  if (!open_libraries(&libraries) || !look_up(libraries) || !find_names()) return false;
  return true;
}

// Registered when the library is loaded: later, a fork on another thread could come while the runtime is being found.
const bool g_fork_is_seen = pthread_atfork(nullptr, nullptr, [] { g_forked = g_used || g_forked; }) == 0;

// What a compiler says begins with its warnings: the line of the first error is the one to tell.
const char* first_error(const char* text) {
  const char* found = strstr(text, "error:");
  while (found && found > text && found[-1] != '\n') --found;
  return found ? found : text;
}

}  // namespace

const Failure& failure() { return g_failure; }

bool failed(Cause cause, const char* text, ...) {
  g_failure.cause = cause;
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(g_failure.text, sizeof(g_failure.text), text, arguments);
  va_end(arguments);
  return false;
}

bool failed_call(const char* call, Id error) {
  char text[sizeof(g_failure.text)];
  copy_text(error ? objc::error_text(error) : nullptr, text, sizeof(text));
  return failed(Cause::device, "%s failed: %.340s", call, *text ? text : "Metal does not say why");
}

void copy_text(Id string, char* out, size_t size) {
  const char* text = string ? objc::utf8(string) : nullptr;
  snprintf(out, size, "%s", text ? first_error(text) : "");
  for (char* c = out; *c; ++c) {
    if (*c == '\n') *c = ' ';
  }
}

bool find_runtime() {
  if (g_forked) return false;
  std::call_once(g_once, [] {
    g_used = true;
    g_found = find();
    g_used = g_found;
  });
  return g_found;
}

int system_version() {
  char text[32] = "";
  size_t bytes = sizeof(text) - 1;
  int major = 0;
  int minor = 0;
  if (!g_runtime.read_system || g_runtime.read_system("kern.osproductversion", text, &bytes, nullptr, 0) != 0) return 0;
  return sscanf(text, "%d.%d", &major, &minor) >= 1 ? 1000 * major + 10 * minor : 0;
}

const char* no_runtime() { return g_forked ? kForked : g_absent; }

bool is_forked() { return g_forked; }

}  // namespace metal
}  // namespace lutkern
