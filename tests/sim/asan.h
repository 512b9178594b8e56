// AddressSanitizer, where the process has it: linked in, or preloaded for texts that are compiled when a test runs.
#pragma once
#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define LK_SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LK_SIM_ASAN 1
#endif
#endif

#if defined(LK_SIM_ASAN) || defined(__linux__)
extern "C" {
__attribute__((weak)) void __asan_poison_memory_region(void const volatile* p, size_t bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(void const volatile* p, size_t bytes);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** shadow, const void* low, size_t bytes);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* shadow, const void** low, size_t* bytes);
}

namespace lutkern {
namespace sim {

inline bool has_asan() { return &__asan_poison_memory_region != nullptr; }
inline void set_poison(const void* p, size_t bytes, bool on) {
  if (!has_asan()) return;
  if (on) {
    __asan_poison_memory_region(p, bytes);
  } else {
    __asan_unpoison_memory_region(p, bytes);
  }
}
inline void start_switch(void** shadow, const void* low, size_t bytes) {
  if (has_asan()) __sanitizer_start_switch_fiber(shadow, low, bytes);
}
// False: nothing is known of the stack that was left.
inline bool finish_switch(void* shadow, const void** low, size_t* bytes) {
  if (has_asan()) __sanitizer_finish_switch_fiber(shadow, low, bytes);
  return has_asan();
}

}  // namespace sim
}  // namespace lutkern
#else
namespace lutkern {
namespace sim {

inline bool has_asan() { return false; }
inline void set_poison(const void*, size_t, bool) {}
inline void start_switch(void**, const void*, size_t) {}
inline bool finish_switch(void*, const void**, size_t*) { return false; }

}  // namespace sim
}  // namespace lutkern
#endif
