// Watches what the threads of a launch read and write. Device text is compiled with -fsanitize=thread, which calls a
// function before every access that another thread could see; watch.cpp has these functions in the place of
// ThreadSanitizer's, for threads that are fibers. Without that option only the checked loads and stores are seen, and only
// that they stay inside of arrays and registered memory is watched.
//
// Two accesses to one byte by different threads, one of them a write, must be ordered: by a barrier of the block, or of
// their warp. Shuffles and votes order nothing. No byte of global memory that a block writes may be touched by another
// block of the launch. Shared memory is written before it is read, and only where arrays are.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "simt.h"

namespace lutkern {
namespace sim {

// Accesses are stamped with `now`; those with a stamp below are ordered before what comes now. Never goes back.
struct Clock {
  // The last barriers, of one kind of memory
  struct Barriers {
    uint32_t block;
    uint32_t warp[32];
  };
  uint32_t now;
  uint32_t launch;
  uint32_t block;
  Barriers global;
  Barriers shared;
};
extern Clock g_clock;

void watch_launch(const void* args, size_t args_bytes, uint8_t* shared, size_t shared_bytes);
void watch_block();
void watch_end();
inline void watch_barrier(Memory orders) {
  ++g_clock.now;
  if (orders & kGlobalMemory) g_clock.global.block = g_clock.now;
  if (orders & kSharedMemory) g_clock.shared.block = g_clock.now;
}
inline void watch_warp_barrier(uint32_t warp, Memory orders) {
  ++g_clock.now;
  if (orders & kGlobalMemory) g_clock.global.warp[warp] = g_clock.now;
  if (orders & kSharedMemory) g_clock.shared.warp[warp] = g_clock.now;
}
// Bytes of shared memory that belong to no array, or do again.
void watch_red_zone(const uint8_t* p, size_t bytes, bool on);

// One access; where it breaks a rule, the text of it, and null otherwise. Valid until the next call.
const char* watch_access(uintptr_t begin, size_t bytes, bool is_write);

// What a launch may read besides: the tables of the library that has this place in it.
void watch_tables(const void* place);

// The place of the access that comes next; true if it will be watched by itself.
bool watch_site(const void* p, Site site);

// Where something is registered, global memory is what is registered.
void register_memory(const void* begin, size_t bytes);
void unregister_memory(const void* begin);

}  // namespace sim
}  // namespace lutkern
