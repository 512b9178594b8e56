// Devices, buffers, libraries, pipelines.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>

#include "fake_metal.h"
#include "metal.h"
#include "run.h"
#include "work.h"

namespace fake {

Class* g_device;
Class* g_buffer;
Class* g_compile_options;
Class* g_library;
Class* g_function;
Class* g_pipeline;

namespace {

constexpr size_t kArena = size_t{1} << 38;  // addresses of a device, each used once
constexpr size_t kAlignment = 256;
constexpr uint8_t kUnwritten = 0xcd;
constexpr uint8_t kMargin = 0xa7;  // around a buffer
constexpr unsigned long kWriteCombined = 1;

// ---- memory ----

[[noreturn]] void broken(const char* text) {
  fprintf(stderr, "fake metal: %s: %s\n", text, strerror(errno));
  abort();
}

size_t system_page() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

size_t up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

struct Arena {
  uint8_t* base = nullptr;
  size_t next = 0;
};
Arena& arena(int device) {
  static auto* all = new std::map<int, Arena>;
  Arena& a = (*all)[device];
  if (!a.base) {
    void* p = mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) broken("no addresses for a device");
    a.base = static_cast<uint8_t*>(p);
    a.next = system_page();
  }
  return a;
}

// A buffer ends where its last page ends, but for the alignment; a closed page follows.
struct Pages {
  uint8_t* begin;
  size_t bytes;
};
Pages pages_of(const Buffer& b) {
  const size_t aligned = up(b.bytes, kAlignment);
  const size_t all = up(aligned, system_page());
  return {b.data + aligned - all, all};
}

Buffer* new_memory(Device* device, size_t bytes) {
  Arena& a = arena(device->index);
  const size_t aligned = up(bytes, kAlignment);
  const size_t all = up(aligned, system_page());
  if (a.next + all + system_page() > kArena) broken("all addresses of a device were used");
  uint8_t* begin = a.base + a.next;
  a.next += all + system_page();
  if (mprotect(begin, all, PROT_READ | PROT_WRITE) != 0) broken("mprotect");
  memset(begin, kMargin, all);
  memset(begin + all - aligned, kUnwritten, bytes);
  device->used += bytes;
  return new Buffer(device, begin + all - aligned, bytes, false);
}

bool margins_are_whole(const Buffer& b) {
  const Pages p = pages_of(b);
  for (const uint8_t* q = p.begin; q < b.data; ++q) {
    if (*q != kMargin) return false;
  }
  for (const uint8_t* q = b.data + b.bytes; q < p.begin + p.bytes; ++q) {
    if (*q != kMargin) return false;
  }
  return true;
}

bool is_mapped(uint8_t* begin, size_t bytes) { return msync(begin, bytes, MS_ASYNC) == 0; }

// ---- MTLDevice ----

String* device_name(Device* self, Selector) {
  return autoreleased(new String("Simulated device " + std::to_string(self->index)));
}
uint64_t device_working_set(Device*, Selector) { return settings().memory; }
unsigned long device_allocated(Device* self, Selector) { return self->used; }
unsigned long device_longest_buffer(Device*, Selector) { return settings().buffer; }
unsigned long device_threadgroup_memory(Device*, Selector) { return static_cast<unsigned long>(settings().shared); }
bool device_unified(Device*, Selector) { return settings().unified != 0; }
bool device_supports(Device*, Selector, long family) {
  if (family > 1000 && family < 2000) return family - 1000 <= settings().family;
  if (family > 3000 && family <= 3003) return 1;
  if (family == 2002) return settings().family >= 7;
  if (family == 5001) return settings().metal3 != 0;
  stop("family %ld is not one that the fake knows", family);
}

Queue* device_queue(Device* self, Selector) { return fails() ? nullptr : new Queue(self); }
void check_length(unsigned long bytes, unsigned long options) {
  if (bytes == 0) stop("0 bytes, expected at least 1");
  if (options & ~kWriteCombined) stop("the options are %#lx, expected shared storage with hazard tracking", options);
}

Buffer* device_buffer(Device* self, Selector, unsigned long bytes, unsigned long options) {
  check_length(bytes, options);
  if (fails() || bytes > settings().buffer) return nullptr;
  if (bytes > settings().memory || self->used > settings().memory - bytes) return nullptr;
  return new_memory(self, bytes);
}

Buffer* device_wrap(Device* self, Selector, void* from, unsigned long bytes, unsigned long options, void* deallocator) {
  check_length(bytes, options);
  if (!from) stop("the pointer is null");
  if (deallocator) stop("there is a deallocator, expected nil");
  const size_t page = settings().page;
  if (reinterpret_cast<uintptr_t>(from) % page) stop("the pointer is not a multiple of the page, %zu bytes", page);
  if (bytes % page) stop("the length is %lu, expected a multiple of the page, %zu bytes", bytes, page);
  if (!is_mapped(static_cast<uint8_t*>(from), bytes)) stop("not all of the %lu bytes are memory of the process", bytes);
  if (fails() || settings().wraps == 0 || bytes > settings().buffer) return nullptr;
  return new Buffer(self, static_cast<uint8_t*>(from), bytes, true);
}

Library* device_library(Device* self, Selector, String* source, CompileOptions* options, Error** error) {
  need_object(source, g_string, "the source");
  need_object(options, g_compile_options, "options");
  if (options->fast_math) stop("fast math is on, expected off: kernels are exact to the bit");
  if (fails()) {
    give_error(error, 3, kAsked);
    return nullptr;
  }
  count("libraries");
  std::string text(size_t{1} << 16, '\0');
  void* code = nullptr;
  if (!settings().compile.empty()) {
    text = settings().compile;
  } else if (lk_metal_compile(source->text.c_str(), &code, &text[0], text.size()) == 0) {
    // As Metal does it where the compiler warns: an error object tells nothing, the result does.
    give_error(error, 4, "Compilation succeeded with: \n\nprogram_source:1:1: warning: only a warning");
    return new Library(self, code);
  }
  give_error(error, 3, text.c_str());
  return nullptr;
}

Pipeline* device_pipeline(Device* self, Selector, Function* function, Error** error) {
  need_object(function, g_function, "the function");
  if (function->library->device != self) stop("the function is of another device");
  if (fails()) {
    give_error(error, 3, kAsked);
    return nullptr;
  }
  if (function->threadgroup_bytes > static_cast<uint32_t>(settings().shared)) {
    give_error(error, 3,
               "Threadgroup memory size (" + std::to_string(function->threadgroup_bytes) +
                   ") exceeds the maximum threadgroup memory allowed (" + std::to_string(settings().shared) + ")");
    return nullptr;
  }
  return new Pipeline(self, function);
}

// ---- MTLBuffer ----

void* buffer_contents(Buffer* self, Selector) { return self->data; }
// ---- MTLCompileOptions, MTLLibrary, MTLFunction, MTLComputePipelineState ----

CompileOptions* options_new(Class*, Selector) { return new CompileOptions; }
void options_fast_math(CompileOptions* self, Selector, bool on) { self->fast_math = on; }
void options_math_mode(CompileOptions* self, Selector, long mode) {
  if (mode != 0) stop("mode %ld, expected 0: safe", mode);
  self->fast_math = false;
}
void options_math_functions(CompileOptions*, Selector, long functions) {
  if (functions != 1) stop("functions %ld, expected 1: precise", functions);
}
void options_language(CompileOptions* self, Selector, unsigned long version) {
  const unsigned long major = version >> 16;
  const unsigned long minor = version & 0xffff;
  if (major < 1 || major > 4 || minor > 4) stop("version %lu.%lu is not one of Metal", major, minor);
  self->language = version;
}

Function* library_function(Library* self, Selector, String* name) {
  need_object(name, g_string, "the name");
  if (fails()) return nullptr;
  uint32_t threadgroup_bytes = 0;
  uint32_t n_buffers = 0;
  char error[512] = "";
  if (lk_metal_kernel(self->code, name->text.c_str(), &threadgroup_bytes, &n_buffers, error, sizeof(error)) != 0) {
    return nullptr;
  }
  return new Function(self, name->text, threadgroup_bytes, n_buffers);
}

unsigned long pipeline_threads(Pipeline*, Selector) { return static_cast<unsigned long>(settings().threads); }
unsigned long pipeline_width(Pipeline*, Selector) { return 32; }
unsigned long pipeline_memory(Pipeline* self, Selector) { return self->function->threadgroup_bytes; }

std::vector<Device*>& devices() {
  static auto* all = new std::vector<Device*>;
  return *all;
}
Device* device_at(int index) {
  for (int i = static_cast<int>(devices().size()); i < settings().devices; ++i) devices().push_back(new Device(i));
  return devices()[static_cast<size_t>(index)];
}

}  // namespace

Device::Device(int number) : Object(g_device), index(number) { keep(this); }

Buffer::Buffer(Device* owner, uint8_t* begin, size_t n, bool of_cpu)
    : Object(g_buffer), device(owner), data(begin), bytes(n), borrowed(of_cpu) {}

Buffer::~Buffer() {
  if (borrowed) return;
  if (!margins_are_whole(*this)) fault("memory beside a buffer of " + std::to_string(bytes) + " bytes was written");
  const Pages p = pages_of(*this);
  if (mprotect(p.begin, p.bytes, PROT_NONE) != 0) broken("mprotect");
  madvise(p.begin, p.bytes, MADV_DONTNEED);
  device->used -= bytes;
}

CompileOptions::CompileOptions() : Object(g_compile_options) {}

Library::Library(Device* owner, void* compiled) : Object(g_library), device(owner), code(compiled) {}
Library::~Library() { lk_metal_release(code); }

Function::Function(Library* of, std::string called, uint32_t bytes, uint32_t buffers)
    : Object(g_function), library(of), name(std::move(called)), threadgroup_bytes(bytes), n_buffers(buffers) {}

Pipeline::Pipeline(Device* owner, Function* of) : Object(g_pipeline), device(owner), function(of) {}

void make_metal() {
  g_device =
      new_class("MTLDevice",
                {method<device_name>("name"), method<device_supports>("supportsFamily:"),
                 method<device_unified>("hasUnifiedMemory"), method<device_working_set>("recommendedMaxWorkingSetSize"),
                 method<device_allocated>("currentAllocatedSize"), method<device_longest_buffer>("maxBufferLength"),
                 method<device_threadgroup_memory>("maxThreadgroupMemoryLength"),
                 method<device_queue>("newCommandQueue"), method<device_buffer>("newBufferWithLength:options:"),
                 method<device_wrap>("newBufferWithBytesNoCopy:length:options:deallocator:"),
                 method<device_library>("newLibraryWithSource:options:error:"),
                 method<device_pipeline>("newComputePipelineStateWithFunction:error:")});
  g_buffer = new_class("MTLBuffer", {method<buffer_contents>("contents")});
  g_compile_options =
      new_class("MTLCompileOptions",
                {method<options_language>("setLanguageVersion:"), method<options_fast_math>("setFastMathEnabled:"),
                 method<options_math_mode>("setMathMode:", 15),
                 method<options_math_functions>("setMathFloatingPointFunctions:", 15)},
                {method<options_new>("new")});
  g_library = new_class("MTLLibrary", {method<library_function>("newFunctionWithName:")});
  g_function = new_class("MTLFunction", {});
  g_pipeline = new_class("MTLComputePipelineState", {method<pipeline_threads>("maxTotalThreadsPerThreadgroup"),
                                                     method<pipeline_width>("threadExecutionWidth"),
                                                     method<pipeline_memory>("staticThreadgroupMemoryLength")});
}

}  // namespace fake

using namespace fake;

// ---- the functions of Metal ----

FAKE_API Array* MTLCopyAllDevices(void) {
  const Held held;
  enter_function("MTLCopyAllDevices");
  if (fails()) return nullptr;
  std::vector<Kept<Object>> all;
  for (int i = 0; i < settings().devices; ++i) all.emplace_back(device_at(i));
  return new Array(std::move(all));
}

// Of the system, which every Mac has
FAKE_API int sysctlbyname(const char* name, void* out, size_t* bytes, void* to, size_t) {
  const Held held;
  enter_function("sysctlbyname");
  const std::string version = std::to_string(settings().macos) + ".5";
  if (strcmp(name, "kern.osproductversion") != 0 || to) stop("%s is not known", name);
  if (*bytes <= version.size()) return -1;
  memcpy(out, version.c_str(), version.size() + 1);
  *bytes = version.size() + 1;
  return 0;
}

FAKE_API uint64_t fake_metal_bytes(int device) {
  const Held held;
  return device < static_cast<int>(devices().size()) ? devices()[static_cast<size_t>(device)]->used : 0;
}
