// Which kernels run. The rows of the build, best first, each with its detector; the table in use is the walk down from
// one row, taking for every entry the first row that has it. Compiled with the flags of the ABI floor.
#include <string.h>

#include <atomic>

#include "kernels.h"

namespace lutkern {
namespace {

#if defined(LUTKERN_HAVE_AVX2)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#if defined(LUTKERN_EMULATED_AVX512)
// A test build: functions take the place of the intrinsics.
bool has_avx512() { return has_avx2(); }
#elif defined(LUTKERN_HAVE_AVX512)
// Each of these also asks whether the system saves the registers.
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512bitalg") && __builtin_cpu_supports("gfni");
}
#endif

bool always() { return true; }

struct IsaRow {
  const CpuKernels* kernels;
  bool (*detect)();
};

constexpr IsaRow kRows[] = {
#if defined(LUTKERN_HAVE_AVX512)
    {&kAvx512Kernels, has_avx512},
#endif
#if defined(LUTKERN_HAVE_AVX2)
    {&kAvx2Kernels, has_avx2},
#endif
    {&kScalarKernels, always},
};
constexpr int kRowCount = sizeof(kRows) / sizeof(kRows[0]);

struct Resolved {
  CpuKernels kernels;
  const char* gemv[kFormatCount];
  const char* gemm[kFormatCount];
  const char* gemm_float[kFormatCount];
  const char* dequantize[kFormatCount];
};

template <typename Fn>
void fill(Fn& entry, const char*& source, Fn candidate, const char* name) {
  if (entry || !candidate) return;
  entry = candidate;
  source = name;
}

Resolved resolve(int first) {
  Resolved out{};
  out.kernels.name = kRows[first].kernels->name;
  for (int row = first; row < kRowCount; ++row) {
    if (!kRows[row].detect()) continue;
    const CpuKernels& from = *kRows[row].kernels;
    for (int f = 0; f < kFormatCount; ++f) {
      fill(out.kernels.gemv[f], out.gemv[f], from.gemv[f], from.name);
      fill(out.kernels.gemm[f], out.gemm[f], from.gemm[f], from.name);
      fill(out.kernels.gemm_float[f], out.gemm_float[f], from.gemm_float[f], from.name);
      fill(out.kernels.dequantize[f], out.dequantize[f], from.dequantize[f], from.name);
    }
    if (!out.kernels.quantize) out.kernels.quantize = from.quantize;
  }
  return out;
}

int best_row() {
  int row = 0;
  while (!kRows[row].detect()) ++row;
  return row;
}

// Every walk that this processor allows, made once: choosing one is a pointer store, so that operations in flight on
// other threads keep a whole table.
const Resolved* table(int row) {
  static const struct Tables {
    Resolved of[kRowCount];
    Tables() {
      for (int r = 0; r < kRowCount; ++r) of[r] = resolve(r);
    }
  } tables;
  return &tables.of[row];
}

std::atomic<const Resolved*> g_current{nullptr};

const Resolved& current() {
  const Resolved* now = g_current.load(std::memory_order_acquire);
  if (!now) {
    now = table(best_row());
    g_current.store(now, std::memory_order_release);
  }
  return *now;
}

int find_row(const char* name) {
  for (int row = 0; row < kRowCount; ++row) {
    if (strcmp(kRows[row].kernels->name, name) == 0) return row;
  }
  return -1;
}

}  // namespace

const CpuKernels& kernels() { return current().kernels; }
const char* gemv_source(FormatId format) { return current().gemv[static_cast<int>(format)]; }
const char* gemm_source(FormatId format) { return current().gemm[static_cast<int>(format)]; }
const char* gemm_float_source(FormatId format) { return current().gemm_float[static_cast<int>(format)]; }
const char* dequantize_source(FormatId format) { return current().dequantize[static_cast<int>(format)]; }

const char* isa_at(int index) { return index >= 0 && index < kRowCount ? kRows[index].kernels->name : nullptr; }

bool isa_supported(const char* name) {
  const int row = find_row(name);
  return row >= 0 && kRows[row].detect();
}

bool use_isa(const char* name) {
  const int row = name ? find_row(name) : best_row();
  if (row < 0 || !kRows[row].detect()) return false;
  g_current.store(table(row), std::memory_order_release);
  return true;
}

}  // namespace lutkern
