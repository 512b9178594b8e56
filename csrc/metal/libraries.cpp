#include "libraries.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "text.h"

namespace lutkern {
namespace metal {

namespace {

enum : Unsigned { kLanes = 32 /* of a SIMD group, what every kernel is written for */ };

constexpr const char* kBlockType[] = {
#define LUTKERN_BLOCK_TYPE(name, Block) #Block,
    LUTKERN_FORMATS(LUTKERN_BLOCK_TYPE)
#undef LUTKERN_BLOCK_TYPE
};

constexpr const char* kFormatName[] = {
#define LUTKERN_FORMAT_NAME(name, Block) #name,
    LUTKERN_FORMATS(LUTKERN_FORMAT_NAME)
#undef LUTKERN_FORMAT_NAME
};

const char* function_of(KernelId kernel) { return kKernelName[static_cast<int>(kernel)]; }
LibraryKind kind_of(KernelId kernel) { return kKernelLibrary[static_cast<int>(kernel)]; }
bool is_pair(LibraryKind kind) { return kind == LibraryKind::pair || kind == LibraryKind::pair_any; }
bool is_any(LibraryKind kind) { return kind == LibraryKind::weight_any || kind == LibraryKind::pair_any; }

const char* format_name(int format) { return format == kNoGate ? "none" : kFormatName[format]; }

// "matvec_iq1_m", "moe_up_iq1_m_iq2_s": in texts about one library
struct FullName {
  char text[64];

  FullName(KernelId kernel, const Formats& formats) {
    const char* main = format_name(static_cast<int>(formats.main));
    if (is_pair(kind_of(kernel))) {
      snprintf(text, sizeof(text), "%s_%s_%s", function_of(kernel), format_name(formats.gate), main);
    } else {
      snprintf(text, sizeof(text), "%s_%s", function_of(kernel), main);
    }
  }
};

// What the kernels stand on: products and sums rounded one by one, no approximations.
void set_options(Id options) {
  objc::set_language(options, kLanguage2_4);
  objc::set_fast_math(options, false);
  if (objc::responds(options, objc::set_math_mode.selector())) objc::set_math_mode(options, kMathModeSafe);
  if (objc::responds(options, objc::set_math_functions.selector())) {
    objc::set_math_functions(options, kMathFunctionsPrecise);
  }
}

// The text with its macros in front; the caller frees it.
char* text_for(LibraryKind kind, const Formats& formats) {
  char macros[160];
  const char* main = kBlockType[static_cast<int>(formats.main)];
  const int tiles = is_any(kind) ? 0 : 1;
  if (is_pair(kind)) {
    const char* gate = formats.gate == kNoGate ? "NoGate" : kBlockType[formats.gate];
    snprintf(macros, sizeof(macros), "#define LK_TILES %d\n#define LK_GATE %s\n#define LK_UP %s\n", tiles, gate, main);
  } else {
    snprintf(macros, sizeof(macros), "#define LK_TILES %d\n#define LK_WEIGHT %s\n", tiles, main);
  }
  const size_t front = strlen(macros);
  char* text = static_cast<char*>(malloc(front + kKernelTextBytes + 1));
  if (!text) return nullptr;
  memcpy(text, macros, front);
  memcpy(text + front, kKernelText, kKernelTextBytes);
  text[front + kKernelTextBytes] = '\0';
  return text;
}

}  // namespace

void Libraries::open(Id device, int index, Unsigned threadgroup_bytes) {
  device_ = device;
  index_ = index;
  threadgroup_bytes_ = threadgroup_bytes;
}

Libraries::Library* Libraries::slot(KernelId kernel, const Formats& formats) {
  const LibraryKind kind = kind_of(kernel);
  const int main = static_cast<int>(formats.main);
  const std::lock_guard<std::mutex> hold(lock_);
  Library*& place = is_pair(kind) ? pair_[!is_any(kind)][formats.gate + 1][main] : weight_[!is_any(kind)][main];
  if (!place) place = new (std::nothrow) Library;
  return place;
}

bool Libraries::compile(KernelId kernel, const Formats& formats, Owned* out) const {
  char* text = text_for(kind_of(kernel), formats);
  if (!text) return failed(Cause::memory, "no memory for the text of %s", FullName(kernel, formats).text);
  const Id source = string_of(text);
  free(text);
  if (!source) return failed(Cause::device, "stringWithUTF8String failed: the text of the kernels is not UTF-8");
  const Owned options(objc::create(class_of(ClassId::MTLCompileOptions)));
  set_options(options.get());
  Id error = nullptr;
  out->reset(objc::new_library(device_, source, options.get(), &error));
  if (*out) return true;
  char call[128];
  snprintf(call, sizeof(call), "%s: newLibraryWithSource", FullName(kernel, formats).text);
  return failed_call(call, error);
}

bool Libraries::make_pipeline(Id library, KernelId kernel, const Formats& formats, Pipeline* out) const {
  const FullName name(kernel, formats);
  const Owned function(objc::new_function(library, string_of(function_of(kernel))));
  if (!function) return failed(Cause::device, "%s: newFunctionWithName failed: the library has none", name.text);
  Id error = nullptr;
  Owned state(objc::new_pipeline(device_, function.get(), &error));
  if (!state) {
    char call[128];
    snprintf(call, sizeof(call), "%s: newComputePipelineStateWithFunction", name.text);
    return failed_call(call, error);
  }
  const Unsigned bytes = objc::threadgroup_memory(state.get());
  if (bytes > threadgroup_bytes_) {
    return failed(Cause::device, "%s wants %llu bytes of threadgroup memory, metal:%d has %llu", name.text,
                  static_cast<unsigned long long>(bytes), index_, static_cast<unsigned long long>(threadgroup_bytes_));
  }
  const Unsigned lanes = objc::simd_width(state.get());
  const Unsigned threads = objc::max_threads(state.get());
  if (lanes != kLanes || threads < kLanes) {
    return failed(Cause::device, "%s has %llu lanes and %llu threads on metal:%d, expected 32 lanes", name.text,
                  static_cast<unsigned long long>(lanes), static_cast<unsigned long long>(threads), index_);
  }
  *out = Pipeline{state.take(), static_cast<uint32_t>(threads / kLanes * kLanes)};
  return true;
}

bool Libraries::find(KernelId kernel, const Formats& formats, Pipeline* out) {
  Library* library = slot(kernel, formats);
  if (!library) return failed(Cause::memory, "no memory for %s", FullName(kernel, formats).text);
  const std::lock_guard<std::mutex> hold(library->lock);
  Pipeline& pipeline = library->pipeline[static_cast<int>(kernel)];
  if (!pipeline.state) {
    if (!library->object && !compile(kernel, formats, &library->object)) return false;
    if (!make_pipeline(library->object.get(), kernel, formats, &pipeline)) return false;
  }
  *out = pipeline;
  return true;
}

const char* kernel_name(KernelId kernel, FormatId format) {
  static char names[kKernels][kFormatCount][40];
  static std::once_flag once;
  std::call_once(once, [] {
    for (int k = 0; k < kKernels; ++k) {
      for (int f = 0; f < kFormatCount; ++f) {
        snprintf(names[k][f], sizeof(names[k][f]), "%s_%s", kKernelName[k], kFormatName[f]);
      }
    }
  });
  return names[static_cast<int>(kernel)][static_cast<int>(format)];
}

}  // namespace metal
}  // namespace lutkern
