#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

namespace lutkern {
namespace {

constexpr int kMaxThreads = 1024;
constexpr std::chrono::microseconds kSpin{100};  // longer than the gap between two operations of a decode step

// The gate of a job is one word: workers may join while it is open, and the caller leaves when it is closed and empty.
// So the caller waits for workers that have begun, never for one that is still parked.
constexpr uint64_t kOpen = uint64_t{1} << 32;
constexpr uint64_t kJoined = kOpen - 1;

struct Pool {
  std::mutex caller;  // held for the length of a parallel call
  std::mutex parking;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<uint64_t> gate{0};
  std::atomic<int> parked{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> limit{0};  // workers that may join the current job
  int workers = 0;            // started so far, written by the holder of caller

  int64_t n = 0;
  int64_t grain = 1;
  RangeFn fn = nullptr;
  void* state = nullptr;
};

std::atomic<Pool*> g_pool{nullptr};
std::atomic<int> g_threads{0};  // 0: not decided yet

void work(Pool& pool) {
  for (;;) {
    const int64_t begin = pool.next.fetch_add(pool.grain, std::memory_order_relaxed);
    if (begin >= pool.n) return;
    const int64_t end = begin + pool.grain;
    pool.fn(pool.state, begin, end < pool.n ? end : pool.n);
  }
}

bool join(Pool& pool) {
  uint64_t gate = pool.gate.load(std::memory_order_acquire);
  while ((gate & kOpen) && static_cast<int>(gate & kJoined) < pool.limit.load(std::memory_order_relaxed)) {
    if (pool.gate.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

uint64_t wait_for_work(Pool& pool, uint64_t seen) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      const uint64_t generation = pool.generation.load(std::memory_order_acquire);
      if (generation != seen) return generation;
    }
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < deadline);
  std::unique_lock<std::mutex> lock(pool.parking);
  pool.parked.fetch_add(1);
  pool.wake.wait(lock, [&] { return pool.generation.load() != seen; });
  pool.parked.fetch_sub(1);
  return pool.generation.load();
}

void* worker(void* argument) {
  Pool& pool = *static_cast<Pool*>(argument);
  uint64_t seen = 0;
  for (;;) {
    seen = wait_for_work(pool, seen);
    if (join(pool)) {
      work(pool);
      pool.gate.fetch_sub(1, std::memory_order_acq_rel);
    }
  }
}

// The child of a fork has none of the workers; their pool is left behind, its locks may be held by threads that no
// longer exist.
void forget_pool() { g_pool.store(nullptr); }

Pool* pool_or_null() {
  Pool* pool = g_pool.load(std::memory_order_acquire);
  if (pool) return pool;
  static std::atomic<bool> registered{false};
  if (!registered.exchange(true)) pthread_atfork(nullptr, nullptr, forget_pool);
  Pool* fresh = new (std::nothrow) Pool;
  if (!fresh) return nullptr;
  if (g_pool.compare_exchange_strong(pool, fresh)) return fresh;
  delete fresh;
  return pool;
}

void start_workers(Pool& pool, int wanted) {
  while (pool.workers < wanted) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, worker, &pool) != 0) return;
    pthread_detach(thread);
    ++pool.workers;
  }
}

int cgroup_quota() {
  FILE* file = fopen("/sys/fs/cgroup/cpu.max", "re");
  if (!file) return kMaxThreads;
  long long quota = 0;
  long long period = 0;
  const int fields = fscanf(file, "%lld %lld", &quota, &period);
  fclose(file);
  if (fields != 2 || quota <= 0 || period <= 0) return kMaxThreads;
  const long long processors = (quota + period - 1) / period;
  return processors < kMaxThreads ? static_cast<int>(processors) : kMaxThreads;
}

int usable_processors() {
  int count = 0;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) count = CPU_COUNT(&set);
#endif
  if (count < 1) count = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (count < 1) count = 1;
  const int quota = cgroup_quota();
  return count < quota ? count : quota;
}

// -1: not a number of threads, 0: not set.
int threads_from_environment() {
  const char* text = getenv("LUTKERN_NUM_THREADS");
  if (!text || !*text) return 0;
  char* end = nullptr;
  const long value = strtol(text, &end, 10);
  return *end == '\0' && value >= 1 && value <= kMaxThreads ? static_cast<int>(value) : -1;
}

}  // namespace

const char* invalid_thread_count() { return threads_from_environment() < 0 ? getenv("LUTKERN_NUM_THREADS") : nullptr; }

void set_num_threads(int n) {
  if (n == 0) n = threads_from_environment();
  if (n <= 0) n = usable_processors();
  g_threads.store(n < kMaxThreads ? n : kMaxThreads);
}

int num_threads() {
  if (g_threads.load(std::memory_order_relaxed) == 0) set_num_threads(0);
  return g_threads.load(std::memory_order_relaxed);
}

void parallel_for(void* context, int64_t n, int64_t grain, RangeFn fn, void* state) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  const int64_t pieces = (n + grain - 1) / grain;
  int64_t threads = reinterpret_cast<intptr_t>(context);
  if (threads < 1 || threads > kMaxThreads) threads = num_threads();
  if (threads > pieces) threads = pieces;
  Pool* pool = threads > 1 ? pool_or_null() : nullptr;
  if (!pool || !pool->caller.try_lock()) {
    fn(state, 0, n);
    return;
  }
  start_workers(*pool, static_cast<int>(threads) - 1);
  pool->n = n;
  pool->grain = grain;
  pool->fn = fn;
  pool->state = state;
  pool->next.store(0, std::memory_order_relaxed);
  pool->limit.store(static_cast<int>(threads) - 1, std::memory_order_relaxed);
  pool->gate.store(kOpen, std::memory_order_release);
  pool->generation.fetch_add(1);
  if (pool->parked.load() > 0) {
    std::lock_guard<std::mutex> lock(pool->parking);
    pool->wake.notify_all();
  }
  work(*pool);
  pool->gate.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spins = 0; (pool->gate.load(std::memory_order_acquire) & kJoined) != 0; ++spins) {
    if (spins > 64) std::this_thread::yield();
  }
  pool->caller.unlock();
}

}  // namespace lutkern
