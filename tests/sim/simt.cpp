// The scheduler of simt.h. A warp runs until all its lanes wait or are done, lane after lane; then the next warp that can
// run does. When nothing can run, either the whole block waits at one barrier, or the launch has failed.
#include "simt.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "asan.h"
#include "fiber.h"
#include "watch.h"

namespace lutkern {
namespace sim {

Here here;
bool is_running;

namespace {

enum : size_t { kStaticLimit = 48 * 1024, kRedZone = 128 };
enum : uint8_t { kUnwritten = 0xcd, kRed = 0xa5 };

enum class State : uint8_t { kNew, kReady, kTogether, kBarrier, kDone };

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  int group;
  Site site;
};

struct Fiber {
  Stack* stack;
  uint32_t thread;
  State state;
  // what it waits for
  const char* what;
  Resolve resolve;
  void* slot;
  uint32_t lanes;
  Site site;
  Memory orders;
  // copies under way: groups_begun counts the commits
  std::vector<Copy> copies;
  int groups_begun;
};

struct Warp {
  uint32_t ready;     // bit i: the lane that is i-th in order can run
  uint32_t together;  // lanes that wait for others
  uint8_t order[kWarp];
  uint8_t place[kWarp];  // of a lane in order
};

struct Array {
  const void* key;
  size_t offset;
  size_t bytes;
};

struct Machine {
  std::mutex running;
  const Launch* launch = nullptr;
  Stack main;
  std::vector<std::unique_ptr<Stack>> stacks;  // all that were ever mapped
  std::vector<Stack*> free_stacks;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<uint32_t> ready_warps;
  Fiber* now = nullptr;
  uint32_t at_barrier = 0;
  uint32_t done = 0;
  uint64_t random = 0;
  std::vector<uint8_t> memory;  // dynamic shared memory, then the arrays, with red zones around each
  uint8_t* shared = nullptr;
  size_t shared_used = 0;
  std::vector<Array> arrays;
  char* error = nullptr;
  size_t error_bytes = 0;
  bool failed = false;
  const void* failed_code = nullptr;  // where, if the error does not say it
};

Machine g;
uint32_t g_shared_limit = 227 * 1024;
const Kernel* g_kernels;

uint32_t random_below(uint32_t n) {
  g.random ^= g.random << 13;
  g.random ^= g.random >> 7;
  g.random ^= g.random << 17;
  return static_cast<uint32_t>((g.random >> 33) % n);
}

void shuffle_order(uint8_t* order, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) order[i] = static_cast<uint8_t>(i);
  if (g.launch->seed == 0) return;
  for (uint32_t i = n; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
}

const char* base_name(const char* file) {
  const char* slash = strrchr(file, '/');
  return slash == nullptr ? file : slash + 1;
}

bool is_same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

std::string place(const Fiber& fiber) {
  char text[160];
  if (fiber.state == State::kDone) {
    snprintf(text, sizeof(text), "thread %u has left the kernel", fiber.thread);
  } else if (fiber.state == State::kNew || fiber.state == State::kReady) {
    snprintf(text, sizeof(text), "thread %u runs", fiber.thread);
  } else {
    snprintf(text, sizeof(text), "thread %u waits in %s at %s:%d", fiber.thread, fiber.what, base_name(fiber.site.file),
             fiber.site.line);
  }
  return text;
}

// The first error is the one that is told.
void tell(const std::string& text) {
  if (g.failed) return;
  g.failed = true;
  snprintf(g.error, g.error_bytes, "%s: block (%u, %u, %u): %s", g.launch->kernel->name, here.block[0], here.block[1],
           here.block[2], text.c_str());
}

// Names the place of an error, on the stack of the process: whoever knows names may need much of it.
void tell_code(const void* code) {
  char name[300];
  if (g.launch->code_name != nullptr) {
    g.launch->code_name(code, name, sizeof(name));
  } else {
    Dl_info info = {};
    const bool found = dladdr(code, &info) != 0;
    const size_t offset = reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase);
    snprintf(name, sizeof(name), "%s+%#zx", found ? base_name(info.dli_fname) : "code", offset);
  }
  const size_t used = strlen(g.error);
  if (used < g.error_bytes) snprintf(g.error + used, g.error_bytes - used, " at %s", name);
}

void make_ready(Fiber& fiber) {
  Warp& warp = g.warps[fiber.thread / kWarp];
  if (warp.ready == 0) g.ready_warps.push_back(fiber.thread / kWarp);
  warp.ready |= 1u << warp.place[fiber.thread % kWarp];
  fiber.state = State::kReady;
}

// The fiber does not run on; whoever calls this chooses another.
void make_wait(Fiber& fiber, State state) {
  const uint32_t w = fiber.thread / kWarp;
  Warp& warp = g.warps[w];
  warp.ready &= ~(1u << warp.place[fiber.thread % kWarp]);
  if (warp.ready == 0) g.ready_warps.erase(std::find(g.ready_warps.begin(), g.ready_warps.end(), w));
  fiber.state = state;
}

void explain_standstill() {
  const Fiber* left = nullptr;
  const Fiber* waiting = nullptr;
  for (const Fiber& fiber : g.fibers) {
    if (fiber.state == State::kDone && left == nullptr) left = &fiber;
    if (fiber.state == State::kBarrier && waiting == nullptr) waiting = &fiber;
  }
  for (const Fiber& fiber : g.fibers) {
    if (fiber.state != State::kTogether) continue;
    const uint32_t first = fiber.thread / kWarp * kWarp;
    for (uint32_t lane = 0; lane < kWarp; ++lane) {
      if (!((fiber.lanes >> lane) & 1u)) continue;
      if (first + lane >= g.fibers.size()) {
        tell("deadlock: " + place(fiber) + " for lane " + std::to_string(lane) + ", which its warp does not have");
        return;
      }
      const Fiber& other = g.fibers[first + lane];
      if (other.state != State::kTogether) {
        tell("deadlock: " + place(fiber) + ", " + place(other));
        return;
      }
    }
  }
  if (left != nullptr && waiting != nullptr) {
    tell("divergent barrier: " + place(*waiting) + ", " + place(*left));
  } else {
    tell("deadlock: nothing can run");
  }
}

// True if the block waits at one barrier, and goes on.
bool open_barrier() {
  if (g.at_barrier != g.fibers.size()) return false;
  const Fiber& first = g.fibers[0];
  for (const Fiber& fiber : g.fibers) {
    if (!is_same(fiber.site, first.site)) {
      tell("divergent barrier: " + place(first) + ", " + place(fiber));
      return false;
    }
    if (fiber.orders != first.orders) {
      tell("a barrier with different memories: " + place(first) + ", " + place(fiber));
      return false;
    }
  }
  g.at_barrier = 0;
  watch_barrier(first.orders);
  for (Fiber& fiber : g.fibers) make_ready(fiber);
  return true;
}

// The next fiber to run; null: back to run().
Fiber* choose() {
  if (g.failed) return nullptr;
  if (g.ready_warps.empty()) {
    if (g.done == g.fibers.size()) return nullptr;
    if (!open_barrier()) {
      if (!g.failed) explain_standstill();
      return nullptr;
    }
  }
  uint32_t w = g.now->thread / kWarp;
  if (g.warps[w].ready == 0) {
    const size_t n = g.ready_warps.size();
    w = g.launch->seed == 0 ? *std::min_element(g.ready_warps.begin(), g.ready_warps.end())
                            : g.ready_warps[random_below(static_cast<uint32_t>(n))];
  }
  const Warp& warp = g.warps[w];
  return &g.fibers[w * kWarp + warp.order[__builtin_ctz(warp.ready)]];
}

void fiber_main();

void take(Fiber* next) {
  g.now = next;
  here.thread = next->thread;
}

void switch_from(Stack& from, bool last) {
  Fiber* next = choose();
  if (next != nullptr && next->state == State::kNew) {
    if (g.free_stacks.empty()) {
      auto stack = std::make_unique<Stack>();
      if (map_stack(*stack, g.stacks.size(), kMaxThreads)) {
        g.free_stacks.push_back(stack.get());
        g.stacks.push_back(std::move(stack));
      } else {
        tell("no memory for the stack of a thread");
        next = nullptr;
      }
    }
    if (next != nullptr) {
      next->stack = g.free_stacks.back();
      g.free_stacks.pop_back();
      prepare_stack(*next->stack, fiber_main);
      next->state = State::kReady;
    }
  }
  if (next == nullptr) {
    jump(from, g.main, last);
    return;
  }
  take(next);
  if (next->stack != &from) jump(from, *next->stack, last);
}

// A thread that is done gives its stack to the next one that has not begun: threads that never wait need one stack.
void fiber_main() {
  arrived(nullptr);
  for (;;) {
    g.launch->kernel->body(g.launch->args);
    Fiber& self = *g.now;
    make_wait(self, State::kDone);
    ++g.done;
    Fiber* next = choose();
    if (next == nullptr || next->state != State::kNew) {
      g.free_stacks.push_back(self.stack);
      if (next == nullptr) {
        jump(*self.stack, g.main, true);
      } else {
        take(next);
        jump(*self.stack, *next->stack, true);
      }
    }
    next->state = State::kReady;
    next->stack = self.stack;
    take(next);
  }
}

// ---- shared memory of a block ----

void red_zone(uint8_t* p) {
  memset(p, kRed, kRedZone);
  watch_red_zone(p, kRedZone, true);
  set_poison(p, kRedZone, true);
}

bool red_zone_is_whole(const uint8_t* p) {
  watch_red_zone(p, kRedZone, false);
  set_poison(p, kRedZone, false);
  for (size_t i = 0; i < kRedZone; ++i) {
    if (p[i] != kRed) return false;
  }
  return true;
}

size_t round_up(size_t bytes) { return (bytes + kRedZone - 1) / kRedZone * kRedZone; }

// Room for every array and its zones.
size_t shared_size() { return round_up(g_shared_limit) + kStaticLimit + 1024 * kRedZone; }

// The dynamic part is the first array; an array's red zones begin right before and after it.
void begin_shared() {
  const uint32_t bytes = g.launch->shared_bytes;
  set_poison(g.memory.data(), g.memory.size(), false);
  g.arrays.clear();
  g.arrays.push_back({nullptr, kRedZone, bytes});
  memset(g.shared + kRedZone, kUnwritten, bytes);
  red_zone(g.shared);
  red_zone(g.shared + kRedZone + bytes);
  g.shared_used = kRedZone + round_up(bytes) + 2 * kRedZone;
}

void end_shared() {
  for (const Array& array : g.arrays) {  // all of them, whatever happened: this takes the zones away
    const bool before = red_zone_is_whole(g.shared + array.offset - kRedZone);
    const bool after = red_zone_is_whole(g.shared + array.offset + array.bytes);
    if (before && after) continue;
    tell((array.key == nullptr ? "writes outside of the dynamic shared memory of "
                               : "writes outside of a shared array of ") +
         std::to_string(array.bytes) + " bytes");
  }
}

// ---- launches ----

void begin_block() {
  g.at_barrier = 0;
  g.done = 0;
  g.ready_warps.clear();
  for (uint32_t w = 0; w < g.warps.size(); ++w) {
    Warp& warp = g.warps[w];
    shuffle_order(warp.order, kWarp);
    for (uint32_t i = 0; i < kWarp; ++i) warp.place[warp.order[i]] = static_cast<uint8_t>(i);
    warp.ready = kEveryLane;
    warp.together = 0;
    g.ready_warps.push_back(w);
  }
  for (Fiber& fiber : g.fibers) {
    fiber.state = State::kNew;
    fiber.copies.clear();
    fiber.groups_begun = 0;
  }
  watch_block();
  begin_shared();
  // Nobody ran before: the search for the next one begins at any warp.
  g.now = &g.fibers[g.ready_warps[random_below(static_cast<uint32_t>(g.warps.size()))] * kWarp];
  if (g.launch->seed == 0) g.now = &g.fibers[0];
}

bool is_launchable(const Launch& launch) {
  char text[200];
  if (launch.threads == 0 || launch.threads > kMaxThreads || launch.threads % kWarp != 0) {
    snprintf(text, sizeof(text), "launch: %u threads in a block, expected a multiple of %u up to %u", launch.threads,
             kWarp, kMaxThreads);
  } else if (launch.grid[0] == 0 || launch.grid[1] == 0 || launch.grid[2] == 0 || launch.grid[0] > 0x7fffffffu ||
             launch.grid[1] > 65535 || launch.grid[2] > 65535) {
    snprintf(text, sizeof(text), "launch: a grid of (%u, %u, %u) blocks, expected 1 .. (2147483647, 65535, 65535)",
             launch.grid[0], launch.grid[1], launch.grid[2]);
  } else if (launch.shared_bytes > g_shared_limit) {
    snprintf(text, sizeof(text), "launch: %u bytes of dynamic shared memory, the device has %u", launch.shared_bytes,
             g_shared_limit);
  } else {
    return true;
  }
  for (uint32_t& number : here.block) number = 0;
  tell(text);
  return false;
}

void run_blocks() {
  const uint64_t n_blocks = static_cast<uint64_t>(g.launch->grid[0]) * g.launch->grid[1] * g.launch->grid[2];
  // A step that shares no factor with the number of blocks visits each of them once.
  uint64_t step = 1;
  uint64_t block = 0;
  if (g.launch->seed != 0 && n_blocks > 2) {
    block = random_below(static_cast<uint32_t>(std::min<uint64_t>(n_blocks, 0xffffffffu)));
    uint64_t a = 0;
    do {
      step = 1 + random_below(static_cast<uint32_t>(std::min<uint64_t>(n_blocks - 1, 0xffffffffu)));
      uint64_t b = n_blocks;
      for (a = step; b != 0;) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
      }
    } while (a != 1);
  }
  for (uint64_t i = 0; i < n_blocks && !g.failed; ++i, block = (block + step) % n_blocks) {
    here.block[0] = static_cast<uint32_t>(block % g.launch->grid[0]);
    here.block[1] = static_cast<uint32_t>(block / g.launch->grid[0] % g.launch->grid[1]);
    here.block[2] = static_cast<uint32_t>(block / g.launch->grid[0] / g.launch->grid[1]);
    begin_block();
    switch_from(g.main, false);
    end_shared();
  }
}

}  // namespace

Kernel::Kernel(const char* name_, void (*body_)(const void*), size_t args_bytes_)
    : name(name_), body(body_), args_bytes(args_bytes_), next(g_kernels) {
  g_kernels = this;
}

const Kernel* first_kernel() { return g_kernels; }

const Kernel* find_kernel(const char* name) {
  const Kernel* kernel = g_kernels;
  while (kernel != nullptr && strcmp(kernel->name, name) != 0) kernel = kernel->next;
  return kernel;
}

bool run(const Launch& launch, char* error, size_t error_bytes) {
  const std::lock_guard<std::mutex> lock(g.running);
  g.launch = &launch;
  g.error = error;
  g.error_bytes = error_bytes;
  g.failed = false;
  g.failed_code = nullptr;
  if (error_bytes > 0) error[0] = 0;
  if (!is_launchable(launch)) return false;
  g.random = launch.seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
  g.main = Stack();
  g.free_stacks.clear();
  for (const std::unique_ptr<Stack>& stack : g.stacks) g.free_stacks.push_back(stack.get());
  g.fibers.assign(launch.threads, Fiber());
  for (uint32_t t = 0; t < launch.threads; ++t) g.fibers[t].thread = t;
  g.warps.assign(launch.threads / kWarp, Warp());
  g.memory.resize(shared_size() + kRedZone);
  g.shared = g.memory.data() + (kRedZone - reinterpret_cast<uintptr_t>(g.memory.data()) % kRedZone) % kRedZone;
  here.threads = launch.threads;
  memcpy(here.grid, launch.grid, sizeof(here.grid));
  watch_launch(launch.args, launch.kernel->args_bytes, g.shared, shared_size());
  is_running = true;
  run_blocks();
  is_running = false;
  if (g.failed_code != nullptr) tell_code(g.failed_code);
  for (const std::unique_ptr<Stack>& stack : g.stacks) stack->is_dirty = stack->is_dirty || g.failed;
  return !g.failed;
}

// ---- for a thread of the running launch ----

void fail_at(const void* code, const char* text) {
  if (!g.failed) g.failed_code = code;
  tell("thread " + std::to_string(here.thread) + ": " + text);
  jump(*g.now->stack, g.main, true);
  __builtin_unreachable();
}

void fail(Site site, const char* text, ...) {
  char line[300];
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(line, sizeof(line), text, arguments);
  va_end(arguments);
  tell("thread " + std::to_string(here.thread) + ": " + line + " at " + base_name(site.file) + ":" +
       std::to_string(site.line));
  jump(*g.now->stack, g.main, true);
  __builtin_unreachable();
}

void barrier(Site site, Memory orders) {
  Fiber& self = *g.now;
  self.what = "barrier";
  self.site = site;
  self.orders = orders;
  make_wait(self, State::kBarrier);
  ++g.at_barrier;
  switch_from(*self.stack, false);
}

void together(const char* what, Resolve resolve, void* slot, uint32_t lanes, Site site, Memory orders) {
  Fiber& self = *g.now;
  const uint32_t lane = self.thread % kWarp;
  const uint32_t first = self.thread - lane;
  Warp& warp = g.warps[self.thread / kWarp];
  if (!((lanes >> lane) & 1u)) fail(site, "%s for lanes %08x, which leave out the caller's lane %u", what, lanes, lane);
  self.what = what;
  self.resolve = resolve;
  self.slot = slot;
  self.lanes = lanes;
  self.site = site;
  warp.together |= 1u << lane;
  if ((warp.together & lanes) != lanes) {
    make_wait(self, State::kTogether);
    switch_from(*self.stack, false);
    return;
  }
  void* slots[kWarp] = {};
  for (uint32_t i = 0; i < kWarp; ++i) {
    if (!((lanes >> i) & 1u)) continue;
    const Fiber& other = g.fibers[first + i];
    if (other.resolve != resolve || other.lanes != lanes || !is_same(other.site, site)) {
      char text[160];  // nothing that fail would leave behind
      snprintf(text, sizeof(text), "%s", place(other).c_str());
      fail(site, "the lanes of a warp meet in different places: this one in %s for lanes %08x, %s for lanes %08x", what,
           lanes, text, other.lanes);
    }
    slots[i] = other.slot;
  }
  if (resolve == nullptr) {
    watch_warp_barrier(self.thread / kWarp, orders);
  } else {
    resolve(slots, lanes);
  }
  warp.together &= ~lanes;
  for (uint32_t i = 0; i < kWarp; ++i) {
    if (slots[i] != nullptr && i != lane) make_ready(g.fibers[first + i]);
  }
}

void* shared_array(const void* key, size_t bytes, size_t alignment) {
  for (const Array& array : g.arrays) {
    if (array.key == key) return g.shared + array.offset;
  }
  size_t total = bytes;
  for (const Array& array : g.arrays) {
    if (array.key != nullptr) total += array.bytes;
  }
  const Site none = {"shared memory", 0};
  if (alignment > kRedZone) fail(none, "a shared array aligned to %zu bytes", alignment);
  if (total > kStaticLimit) fail(none, "%zu bytes of shared arrays, the limit is %zu", total, size_t{kStaticLimit});
  if (total + g.launch->shared_bytes > g_shared_limit) {
    fail(none, "%zu bytes of shared memory, the device has %u", total + g.launch->shared_bytes, g_shared_limit);
  }
  // No better aligned than it must be, so that an access that needs more is found.
  const size_t offset = g.shared_used + (alignment < 16 ? alignment : 0);
  g.arrays.push_back({key, offset, bytes});
  memset(g.shared + offset, kUnwritten, bytes);
  red_zone(g.shared + offset - kRedZone);
  red_zone(g.shared + offset + bytes);
  g.shared_used += round_up(bytes) + 3 * kRedZone;
  return g.shared + offset;
}

void* dynamic_shared() { return g.shared + kRedZone; }

void copy_later(void* to, const void* from, size_t bytes, Site site) {
  g.now->copies.push_back({to, from, bytes, g.now->groups_begun, site});
}

void copy_commit() { ++g.now->groups_begun; }

static void watch_copy(const Copy& copy) {
  for (const void* p : {copy.from, static_cast<const void*>(copy.to)}) {
    check_access(p, copy.bytes, p == copy.to, copy.site);
    const char* text = watch_access(reinterpret_cast<uintptr_t>(p), copy.bytes, p == copy.to);
    if (text != nullptr) fail(copy.site, "%s", text);
  }
}

void copy_wait(int groups) {
  std::vector<Copy>& copies = g.now->copies;
  size_t n = 0;
  while (n < copies.size() && copies[n].group < g.now->groups_begun - groups) {
    const Copy& copy = copies[n++];
    watch_copy(copy);
    memcpy(copy.to, copy.from, copy.bytes);
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(n));
}

void check_access(const void* p, size_t bytes, bool is_write, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    fail(site, "%s %zu bytes at %p, expected a multiple of %zu", is_write ? "writes" : "reads", bytes, p, bytes);
  }
  if (watch_site(p, site)) return;
  const char* text = watch_access(reinterpret_cast<uintptr_t>(p), bytes, is_write);
  if (text != nullptr) fail(site, "%s", text);
}

void set_shared_limit(uint32_t bytes) {
  const std::lock_guard<std::mutex> lock(g.running);
  g_shared_limit = bytes;
}

}  // namespace sim
}  // namespace lutkern
