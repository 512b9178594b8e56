// Threads of a GPU on one thread of the CPU: every thread is a fiber, blocks run one after another, and whoever waits
// hands the processor on. Nothing here knows a GPU language; a spelling header gives the words of one to device text.
//
// What is found: threads that miss a barrier or meet in different ones, deadlocks, votes and shuffles that name a lane
// that does not come, shared arrays that are too large, and what watch.h watches: races, accesses outside of arrays, shared
// memory that is read before it is written. A seed changes the order of blocks, warps and lanes.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace lutkern {
namespace sim {

enum : uint32_t { kWarp = 32, kMaxThreads = 1024, kEveryLane = 0xffffffffu };

// Where device text is, for messages.
struct Site {
  const char* file;
  int line;
};
#define LK_SITE {__builtin_FILE(), __builtin_LINE()}  // as the default of a parameter: of the caller

// A kernel of the device text that is linked in enters itself into the list; others are made empty.
struct Kernel {
  Kernel() = default;
  Kernel(const char* name, void (*body)(const void* args), size_t args_bytes);
  const char* name = nullptr;
  void (*body)(const void* args) = nullptr;
  size_t args_bytes = 0;
  const Kernel* next = nullptr;
};
const Kernel* first_kernel();
const Kernel* find_kernel(const char* name);

struct Launch {
  const Kernel* kernel;
  const void* args;
  uint32_t grid[3];
  uint32_t threads;       // of a block
  uint32_t shared_bytes;  // dynamic shared memory
  uint64_t seed;          // 0: everything in order
  // The name of a place in compiled code that has no site; null: its library and offset.
  void (*code_name)(const void* code, char* name, size_t name_bytes) = nullptr;
};

// Runs every block; false: error has one line of text. One launch at a time; others wait.
bool run(const Launch& launch, char* error, size_t error_bytes);

// ---- for a thread of the running launch ----

// Numbers of the running thread.
struct Here {
  uint32_t thread;
  uint32_t threads;
  uint32_t block[3];
  uint32_t grid[3];
};
extern Here here;

// Every thread of the block comes to the same place; what they did before to these memories is ordered before what they
// do after.
enum Memory : uint8_t { kNoMemory = 0, kGlobalMemory = 1, kSharedMemory = 2, kEveryMemory = 3 };
void barrier(Site site, Memory orders = kEveryMemory);

// Every lane of `lanes` comes to the same place with its own slot; the last one calls resolve, which reads what all of
// them brought and leaves the answers in the slots. slots[i] is null where lane i takes no part. A null resolve is a
// barrier of the warp, of the memories that its last lane names.
using Resolve = void (*)(void* const* slots, uint32_t lanes);
void together(const char* what, Resolve resolve, void* slot, uint32_t lanes, Site site, Memory orders = kEveryMemory);

// Shared memory: the same for all threads of the block. key tells one array of the text from another.
void* shared_array(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();

// Copies that are done when the thread waits for all but its `groups` youngest groups.
void copy_later(void* to, const void* from, size_t bytes, Site site);
void copy_commit();
void copy_wait(int groups);

// Ends the launch with an error that names kernel, block, thread and site.
[[noreturn]] void fail(Site site, const char* text, ...) __attribute__((format(printf, 2, 3)));

// The same for a place in the compiled code that has no site.
[[noreturn]] void fail_at(const void* code, const char* text);
// Whether a thread of a launch runs.
extern bool is_running;

// A load or store of a number of bytes; fails if it is not at a multiple of them, or breaks a rule of watch.h.
void check_access(const void* p, size_t bytes, bool is_write, Site site);

// Bytes of shared memory that a block may have, 227 KiB if never called.
void set_shared_limit(uint32_t bytes);

}  // namespace sim
}  // namespace lutkern
