// Which kernels run. The rows of the build, best first, each with its detector; the table in use is the walk down from
// one row, taking for every entry the first row that has it. Compiled with the flags of the ABI floor.
#include <string.h>

#include <atomic>

#if defined(LUTKERN_HAVE_NEON)
#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
#endif
#endif

#include "../once.h"
#include "kernels.h"

namespace lutkern {
namespace {

#if defined(LUTKERN_HAVE_AVX2)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#if defined(LUTKERN_HAVE_NEON)
// What the system says about the processor: the registers that tell are not readable by programs everywhere.
#if defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_neon() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool has_neon_i8mm() { return has_neon() && has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
constexpr unsigned long kHwcapDotProduct = 1ul << 20;  // HWCAP_ASIMDDP, of the ABI between Linux and programs
constexpr unsigned long kHwcap2I8mm = 1ul << 13;       // HWCAP2_I8MM
bool has_neon() { return (getauxval(AT_HWCAP) & kHwcapDotProduct) != 0; }
bool has_neon_i8mm() { return has_neon() && (getauxval(AT_HWCAP2) & kHwcap2I8mm) != 0; }
#endif
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
  const BlockKernels* blocks;
  const TileKernels* tiles;  // null: none
  bool (*detect)();
  const char* name() const { return blocks->name; }
};

constexpr IsaRow kRows[] = {
#if defined(LUTKERN_HAVE_AVX512)
    {&kAvx512Kernels, &kAvx512TileKernels, has_avx512},
#endif
#if defined(LUTKERN_HAVE_AVX2)
    {&kAvx2Kernels, &kAvx2TileKernels, has_avx2},
#endif
#if defined(LUTKERN_HAVE_NEON_I8MM)
    {&kNeonI8mmKernels, &kNeonI8mmTileKernels, has_neon_i8mm},
#endif
#if defined(LUTKERN_HAVE_NEON)
    {&kNeonKernels, &kNeonTileKernels, has_neon},
#endif
    {&kScalarKernels, nullptr, always},
};
constexpr int kRowCount = sizeof(kRows) / sizeof(kRows[0]);

template <typename Fn>
void fill(Fn (&entry)[kFormatCount], const char* (&source)[kFormatCount], const Fn (&candidate)[kFormatCount],
          const char* name) {
  for (int f = 0; f < kFormatCount; ++f) {
    if (entry[f] || !candidate[f]) continue;
    entry[f] = candidate[f];
    source[f] = name;
  }
}

CpuKernels resolve(int first) {
  CpuKernels out{};
  out.name = kRows[first].name();
  for (int row = first; row < kRowCount; ++row) {
    if (!kRows[row].detect()) continue;
    const BlockKernels& from = *kRows[row].blocks;
    fill(out.gemv, out.source.gemv, from.gemv, from.name);
    fill(out.gemm, out.source.gemm, from.gemm, from.name);
    fill(out.gemm_float, out.source.gemm_float, from.gemm_float, from.name);
    fill(out.dequantize, out.source.dequantize, from.dequantize, from.name);
    if (!out.quantize) out.quantize = from.quantize;
    if (!out.to_f16) out.to_f16 = from.to_f16;
    if (!out.to_bf16) out.to_bf16 = from.to_bf16;
    if (const TileKernels* tiles = kRows[row].tiles) {
      fill(out.gemv_tiles, out.source.gemv_tiles, tiles->gemv, tiles->name);
      fill(out.gemm_tiles, out.source.gemm_tiles, tiles->gemm, tiles->name);
      fill(out.dequantize_tiles, out.source.dequantize_tiles, tiles->dequantize, tiles->name);
    }
  }
  return out;
}

int best_row() {
  int row = 0;
  while (!kRows[row].detect()) ++row;
  return row;
}

struct Tables {
  CpuKernels of[kRowCount];
};

void resolve_all(Tables* tables) {
  for (int r = 0; r < kRowCount; ++r) tables->of[r] = resolve(r);
}

// Every walk that this processor allows, made once: choosing one is a pointer store, so that operations in flight on
// other threads keep a whole table.
const CpuKernels* table(int row) { return &made_once<Tables, resolve_all>().of[row]; }

std::atomic<const CpuKernels*> g_current{nullptr};

int find_row(const char* name) {
  for (int row = 0; row < kRowCount; ++row) {
    if (strcmp(kRows[row].name(), name) == 0) return row;
  }
  return -1;
}

}  // namespace

const CpuKernels& kernels() {
  const CpuKernels* now = g_current.load(std::memory_order_acquire);
  if (!now) {
    now = table(best_row());
    g_current.store(now, std::memory_order_release);
  }
  return *now;
}

const char* isa_at(int index) { return index >= 0 && index < kRowCount ? kRows[index].name() : nullptr; }

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
