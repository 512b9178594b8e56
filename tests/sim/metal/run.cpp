#include "run.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "../asan.h"
#include "../simt.h"
#include "../watch.h"
#include "binder.h"
#include "builtins.h"
#include "checks.h"
#include "compile.h"

namespace sim = lutkern::sim;
namespace metal = lutkern::sim::metal;

namespace lutkern {
namespace sim {
namespace metal {

void barrier(uint32_t flags, Site site) { sim::barrier(site, static_cast<Memory>(flags & 3u)); }

void simdgroup_barrier(uint32_t flags, Site site) {
  char nothing;
  together("simdgroup_barrier", nullptr, &nothing, kEveryLane, site, static_cast<Memory>(flags & 3u));
}

void check_lane(const char* what, int lane, Site site) {
  if (lane < 0 || lane > 31) fail(site, "%s: lane %d, expected 0 .. 31", what, lane);
}

namespace {

struct Library {
  std::string path;
  void* handle;
  Records records;
};

std::mutex g_launching;
const Library* g_launched;  // for the names of its lines

int told(const std::string& text, char* error, size_t error_bytes) {
  snprintf(error, error_bytes, "%s", text.c_str());
  return 1;
}

const KernelRecord* find(const Library& library, const char* name) {
  for (const KernelRecord* k = library.records.kernels; k < library.records.kernels_end; ++k) {
    if (strcmp(k->name, name) == 0) return k;
  }
  return nullptr;
}

size_t threadgroup_bytes(const Library& library, const char* name) {
  size_t bytes = 0;
  for (const ArrayRecord* a = library.records.arrays; a < library.records.arrays_end; ++a) {
    if (strcmp(a->kernel, name) == 0) bytes += (a->bytes + 15) / 16 * 16;
  }
  return bytes;
}

void code_name(const void* code, char* name, size_t name_bytes) {
  Dl_info info = {};
  const bool found = dladdr(code, &info) != 0;
  // the call stands before the place where it returns to
  const size_t offset = reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  std::string line = found ? line_of(g_launched->path, offset - 1) : "";
  if (line.empty()) line = "an unknown line";
  snprintf(name, name_bytes, "%s", line.c_str());
}

// What the launch may touch. Buffers that overlap are one range. AddressSanitizer knows where an allocation ends: there the
// launch has copies, one allocation each, at addresses that are alike to a multiple of 256.
class Reach {
 public:
  explicit Reach(std::vector<Bound>& bound) {
    for (const Bound& b : bound) {
      const uintptr_t begin = reinterpret_cast<uintptr_t>(b.data);
      if (b.data != nullptr) ranges_.push_back({begin, begin + b.bytes, nullptr});
    }
    if (ranges_.empty()) ranges_.push_back({1, 1, nullptr});  // nothing at all
    std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    size_t n = 1;
    for (const Range& range : ranges_) {
      if (range.begin < ranges_[n - 1].end || range.begin == ranges_[n - 1].begin) {
        ranges_[n - 1].end = std::max(ranges_[n - 1].end, range.end);
      } else {
        ranges_[n++] = range;
      }
    }
    ranges_.resize(n);
    for (Range& range : ranges_) {
      if (has_asan()) copy(range, bound);
      register_memory(place(range), range.end - range.begin);
    }
  }
  ~Reach() {
    for (const Range& range : ranges_) {
      unregister_memory(place(range));
      if (range.copy == nullptr) continue;
      void* given = reinterpret_cast<void*>(range.begin);
      const size_t bytes = range.end - range.begin;
      write_changes(given, place(range), bytes);
      set_poison(range.copy, range.begin % 256, false);
      free(range.copy);
    }
  }
  Reach(const Reach&) = delete;
  Reach& operator=(const Reach&) = delete;

 private:
  struct Range {
    uintptr_t begin;
    uintptr_t end;
    uint8_t* copy;  // from a multiple of 256 on
  };
  static void* place(const Range& range) {
    return range.copy == nullptr ? reinterpret_cast<void*>(range.begin) : range.copy + range.begin % 256;
  }
  // Unseen by AddressSanitizer: a buffer over whole pages reaches beyond the array that was wrapped. Bytes that are equal stay
  // untouched: it may be memory to read only.
  __attribute__((no_sanitize("address"))) static void write_changes(void* to, const void* from, size_t bytes) {
    volatile uint8_t* target = static_cast<uint8_t*>(to);
    const volatile uint8_t* source = static_cast<const uint8_t*>(from);
    for (size_t i = 0; i < bytes; ++i) {
      const uint8_t byte = source[i];
      if (target[i] != byte) target[i] = byte;
    }
  }
  static void copy(Range& range, std::vector<Bound>& bound) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, range.begin % 256 + range.end - range.begin) != 0) return;
    range.copy = static_cast<uint8_t*>(memory);
    set_poison(range.copy, range.begin % 256, true);
    write_changes(place(range), reinterpret_cast<void*>(range.begin), range.end - range.begin);
    for (Bound& b : bound) {
      const uintptr_t begin = reinterpret_cast<uintptr_t>(b.data);
      if (begin < range.begin || begin >= range.end) continue;
      b.data = static_cast<uint8_t*>(place(range)) + (begin - range.begin);
    }
  }

  std::vector<Range> ranges_;
};

std::string wrong_buffer(const KernelRecord& kernel, const std::vector<Bound>& bound) {
  for (uint32_t i = 0; i < kernel.n_buffers; ++i) {
    const BufferRecord& buffer = kernel.buffers[i];
    const Bound& b = bound[buffer.index];
    const std::string what =
        std::string("launch ") + kernel.name + ": buffer " + std::to_string(buffer.index) + " (" + buffer.name + ") ";
    if (buffer.bytes != 0 && b.data == nullptr) return what + "is not bound";
    if (b.data != nullptr && b.bytes < buffer.bytes) {
      return what + "has " + std::to_string(b.bytes) + " bytes, expected " + std::to_string(buffer.bytes);
    }
    if (reinterpret_cast<uintptr_t>(b.data) % buffer.alignment != 0) {
      return what + "is not at a multiple of " + std::to_string(buffer.alignment) + " bytes";
    }
  }
  return "";
}

std::string wrong_kernel(const Library& library, const char* name) {
  if (find(library, name) == nullptr) return std::string("kernel: the library has no kernel ") + name;
  const size_t bytes = threadgroup_bytes(library, name);
  if (bytes > kThreadgroupLimit) {
    return std::string("kernel ") + name + ": " + std::to_string(bytes) +
           " bytes of threadgroup memory, the limit is " + std::to_string(kThreadgroupLimit);
  }
  return "";
}

}  // namespace

}  // namespace metal
}  // namespace sim
}  // namespace lutkern

// ---- what -fsanitize=alignment calls ----

extern "C" {

struct lk_misaligned {
  const char* file;
  uint32_t line;
  uint32_t column;
  const void* type;
  uint8_t log_alignment;
  uint8_t kind;
};
void __ubsan_handle_type_mismatch_v1_abort(const lk_misaligned* found, uintptr_t p) {
  const unsigned alignment = 1u << found->log_alignment;
  sim::fail({found->file, static_cast<int>(found->line)}, "uses %#zx, expected a multiple of %u",
            static_cast<size_t>(p), alignment);
}

}  // extern "C"

using metal::Library;

int lk_metal_compile(const char* text, void** library, char* error, size_t error_bytes) {
  *library = nullptr;
  std::string why;
  const std::string path = metal::compiled(text, why);
  if (path.empty()) return metal::told(why, error, error_bytes);
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return metal::told(std::string("compile: ") + dlerror(), error, error_bytes);
  const auto records = reinterpret_cast<void (*)(metal::Records*)>(dlsym(handle, "lk_metal_records"));
  if (records == nullptr) return metal::told("compile: " + path + " is no library of Metal text", error, error_bytes);
  Library* made = new Library{path, handle, {}};
  records(&made->records);
  *library = made;
  return 0;
}

int lk_metal_check(const char* text, char* error, size_t error_bytes) {
  std::string why;
  if (metal::is_plain(text, why) && metal::is_accepted(text, why)) return 0;
  return metal::told(why, error, error_bytes);
}

size_t lk_metal_bound(const char* text, char* bound, size_t bound_bytes) {
  metal::Findings findings(text);
  const std::string made = metal::bind(text, false, findings);
  snprintf(bound, bound_bytes, "%s", made.c_str());
  return made.size() + 1;
}

int lk_metal_kernel(void* library, const char* kernel, uint32_t* threadgroup_bytes, uint32_t* n_buffers, char* error,
                    size_t error_bytes) {
  const Library& from = *static_cast<Library*>(library);
  const std::string why = metal::wrong_kernel(from, kernel);
  if (!why.empty()) return metal::told(why, error, error_bytes);
  if (threadgroup_bytes != nullptr) {
    *threadgroup_bytes = static_cast<uint32_t>(metal::threadgroup_bytes(from, kernel));
  }
  if (n_buffers != nullptr) *n_buffers = metal::find(from, kernel)->n_buffers;
  return 0;
}

const char* lk_metal_kernel_at(void* library, uint32_t index) {
  const metal::Records& records = static_cast<Library*>(library)->records;
  return index < static_cast<size_t>(records.kernels_end - records.kernels) ? records.kernels[index].name : nullptr;
}

int lk_metal_launch(void* library, const char* name, const lk_metal_buffer* buffers, uint32_t n_buffers,
                    const uint32_t groups[3], uint32_t threads, uint64_t seed, char* error, size_t error_bytes) {
  const Library& from = *static_cast<Library*>(library);
  std::string why = metal::wrong_kernel(from, name);
  if (!why.empty()) return metal::told(why, error, error_bytes);
  if (n_buffers > metal::kMaxBuffers) {
    return metal::told(
        "launch: " + std::to_string(n_buffers) + " buffers, at most " + std::to_string(metal::kMaxBuffers), error,
        error_bytes);
  }
  const metal::KernelRecord& record = *metal::find(from, name);
  if (record.max_threads != 0 && threads > record.max_threads) {
    return metal::told(std::string("launch ") + name + ": " + std::to_string(threads) + " threads, its text allows " +
                           std::to_string(record.max_threads),
                       error, error_bytes);
  }
  std::vector<metal::Bound> bound(metal::kMaxBuffers);
  for (uint32_t i = 0; i < n_buffers; ++i) bound[i] = {buffers[i].data, buffers[i].bytes};
  why = metal::wrong_buffer(record, bound);
  if (!why.empty()) return metal::told(why, error, error_bytes);
  const std::lock_guard<std::mutex> lock(metal::g_launching);
  const metal::Reach reach(bound);
  metal::g_launched = &from;
  sim::watch_tables(reinterpret_cast<const void*>(record.body));
  sim::set_shared_limit(metal::kThreadgroupLimit);
  sim::Kernel kernel;
  kernel.name = record.name;
  kernel.body = record.body;
  kernel.args_bytes = sizeof(metal::Bound) * bound.size();
  sim::Launch launch = {&kernel, bound.data(), {groups[0], groups[1], groups[2]}, threads, 0, seed, metal::code_name};
  return sim::run(launch, error, error_bytes) ? 0 : 1;
}

void lk_metal_release(void* library) {
  Library* made = static_cast<Library*>(library);
  if (made == nullptr) return;
  dlclose(made->handle);
  delete made;
}
