// How a parallel call runs:
//
//   the caller cuts the items into pieces, gives every seat (itself and each worker) a contiguous share of them,
//   publishes the shares, bumps the generation;
//   every thread: take a piece of the own share, from its front, else one from the end of another share;
//                 wake one parked worker; run the piece;    none left: publish how many pieces were run;
//   the caller returns when all pieces have been run.
//
// Taking a piece is one compare-and-swap on a cache line that others touch only when they run out of work. It is the only
// way into a job: whoever holds a piece keeps the job from ending, so what describes the job may be read then and only
// then. A worker that comes late, at any point, finds either no piece or a piece of the job that runs now. So the caller
// waits for pieces that have begun, never for a thread that was merely woken.
//
// Shares are contiguous because a thread then reads one stream of memory, what it prefetches past the end of a piece is
// its own next piece, and equal calls give equal rows to equal threads: their caches and, where a machine has several,
// their memory node.
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <initializer_list>
#include <mutex>
#include <new>

#include "processors.h"

namespace lutkern {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxPieces = int64_t{1} << 31;
constexpr std::chrono::microseconds kSpin{100};         // longer than the gap between two operations of a decode step
constexpr std::chrono::microseconds kPatience{25};      // a few pieces: who takes longer has lost its processor
constexpr std::chrono::milliseconds kAffinityAge{100};  // asking takes less than a microsecond
constexpr size_t kLine = 128;                           // processors fetch cache lines of 64 bytes in pairs

// The pieces of a share that nobody has taken: the first in the upper half of the word, one past the last in the lower.
using Share = std::atomic<uint64_t>;

constexpr uint64_t share_of(int64_t first, int64_t end) {
  return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(end);
}
constexpr int64_t first_of(uint64_t share) { return static_cast<int64_t>(share >> 32); }
constexpr int64_t end_of(uint64_t share) { return static_cast<int64_t>(share & 0xffffffff); }

struct Job {
  int64_t begin;
  int64_t n;
  int64_t grain;
  RangeFn fn;
  void* state;
};

struct Pool;

// The place of one thread; number 0 is the caller's.
struct Seat {
  alignas(kLine) Share share{0};
  alignas(kLine) std::atomic<bool> parked{false};
  std::mutex mutex;
  std::condition_variable wake;
  Pool* pool = nullptr;
  int number = 0;
};

struct Pool {
  Job job{};  // written by the holder of busy while no piece is left; read by those who hold a piece
  // Threads of the job. Right for those who hold a piece, a hint for others.
  std::atomic<int> threads{0};
  std::atomic<uint64_t> generation{0};
  std::atomic<int> processor{-1};  // where the caller was

  alignas(kLine) std::atomic<int> to_wake{kMaxThreads};  // the next seat to be woken
  alignas(kLine) std::atomic<int64_t> left{0};           // pieces that have not been run
  std::atomic<bool> caller_parked{false};
  std::mutex mutex;
  std::condition_variable all_done;

  alignas(kLine) std::atomic<bool> busy{false};  // held for the length of a parallel call
  Seat* seats[kMaxThreads] = {};                 // those below n_seats, written by the holder of busy
  int n_seats = 0;
  std::atomic<bool> no_more_threads{false};
};

std::atomic<Pool*> g_pool{nullptr};
std::atomic<int> g_threads{0};     // 0: not decided yet
std::atomic<int> g_processors{1};  // when g_threads was decided

// The child of a fork has none of the workers; their pool is left behind, its locks may be held by threads that no
// longer exist.
void forget_pool() { g_pool.store(nullptr, std::memory_order_relaxed); }

// Registered when the library is loaded: later, a fork on another thread could come between the pool and its handler.
const bool g_fork_is_safe = pthread_atfork(nullptr, nullptr, forget_pool) == 0;

// The number of the processor that runs the thread, -1 where this is not known.
int this_processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Whether ready() became true within a time. It does not yield: a scheduler may take that for giving up the share of
// the processor that is the thread's due. Where threads outnumber processors they would spin in each other's way.
template <typename Ready>
bool spin(const Pool& pool, Clock::duration time, Ready ready) {
  if (pool.threads.load(std::memory_order_relaxed) > g_processors.load(std::memory_order_relaxed)) return false;
  const Clock::time_point deadline = Clock::now() + time;
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (Clock::now() < deadline);
  return false;
}

// ---- pieces ----

bool take_first(Share& share, int64_t* piece) {
  uint64_t now = share.load(std::memory_order_acquire);
  while (first_of(now) < end_of(now)) {
    if (share.compare_exchange_weak(now, share_of(first_of(now) + 1, end_of(now)), std::memory_order_acq_rel,
                                    std::memory_order_acquire)) {
      *piece = first_of(now);
      return true;
    }
  }
  return false;
}

bool take_last(Share& share, int64_t* piece) {
  uint64_t now = share.load(std::memory_order_acquire);
  while (first_of(now) < end_of(now)) {
    if (share.compare_exchange_weak(now, share_of(first_of(now), end_of(now) - 1), std::memory_order_acq_rel,
                                    std::memory_order_acquire)) {
      *piece = end_of(now) - 1;
      return true;
    }
  }
  return false;
}

// From the own share, else from the others in turn, beginning with the one that had a piece last time.
bool take(Pool& pool, int number, int* victim, int64_t* piece) {
  if (take_first(pool.seats[number]->share, piece)) return true;
  const int threads = pool.threads.load(std::memory_order_acquire);
  for (int i = 0; i < threads; ++i, ++*victim) {
    if (*victim >= threads) *victim = 0;
    if (take_last(pool.seats[*victim]->share, piece)) return true;
  }
  return false;
}

// Every piece that is taken wakes one worker, so that a short job wakes few and a long one wakes many at the same time.
// Called while holding a piece.
void wake_one(Pool& pool) {
  const int threads = pool.threads.load(std::memory_order_relaxed);
  while (pool.to_wake.load(std::memory_order_acquire) < threads) {
    const int number = pool.to_wake.fetch_add(1, std::memory_order_acq_rel);
    if (number >= threads) return;
    Seat& seat = *pool.seats[number];
    if (!seat.parked.load()) continue;
    std::lock_guard<std::mutex> lock(seat.mutex);
    seat.wake.notify_one();
    return;
  }
}

void work(Pool& pool, int number) {
  int victim = number + 1;
  int64_t run = 0;
  for (int64_t piece; take(pool, number, &victim, &piece); ++run) {
    wake_one(pool);
    const Job& job = pool.job;
    const int64_t first = job.begin + piece * job.grain;
    const int64_t end = first + job.grain;
    job.fn(job.state, first, end < job.n ? end : job.n);
  }
  // The pieces count as held until here.
  if (run == 0 || pool.left.fetch_sub(run) != run || !pool.caller_parked.load()) return;
  std::lock_guard<std::mutex> lock(pool.mutex);
  pool.all_done.notify_one();
}

// ---- workers ----

// Whether there is a job that the worker has not seen and has a part in.
bool is_called(Seat& seat, uint64_t* seen) {
  const uint64_t generation = seat.pool->generation.load();
  if (generation == *seen) return false;
  *seen = generation;
  return seat.number < seat.pool->threads.load(std::memory_order_acquire);
}

// A worker that spun on the caller's processor would wait for what it keeps from coming.
bool is_in_the_way(const Pool& pool) {
  const int processor = this_processor();
  return processor >= 0 && processor == pool.processor.load(std::memory_order_relaxed);
}

void* worker(void* argument) {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "lutkern");
#elif defined(__APPLE__)
  pthread_setname_np("lutkern");
#endif
  Seat& seat = *static_cast<Seat*>(argument);
  Affinity affinity;
  Clock::time_point follow_at = Clock::now();
  uint64_t seen = 0;
  for (;;) {
    if (Clock::now() >= follow_at) {
      affinity.follow();
      follow_at = Clock::now() + kAffinityAge;
    }
    const auto called = [&] { return is_called(seat, &seen); };
    if (is_in_the_way(*seat.pool) || !spin(*seat.pool, kSpin, called)) {
      std::unique_lock<std::mutex> lock(seat.mutex);
      seat.parked.store(true);
      seat.wake.wait(lock, called);
      seat.parked.store(false);
    }
    work(*seat.pool, seat.number);
  }
}

bool start_thread(Seat& seat) {
  // Signals from outside are the business of the program's own threads; those that an instruction raises stay here.
  sigset_t others;
  sigset_t before;
  sigfillset(&others);
  for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGPROF}) sigdelset(&others, own);
  if (pthread_sigmask(SIG_SETMASK, &others, &before) != 0) return false;
  pthread_t thread;
  const bool started = pthread_create(&thread, nullptr, worker, &seat) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (started) pthread_detach(thread);
  return started;
}

// How many seats there are, at most wanted.
int seat_threads(Pool& pool, int wanted) {
  while (pool.n_seats < wanted && !pool.no_more_threads.load(std::memory_order_relaxed)) {
    Seat* seat = new (std::nothrow) Seat;
    if (!seat) break;
    seat->pool = &pool;
    seat->number = pool.n_seats;
    pool.seats[pool.n_seats] = seat;
    if (pool.n_seats > 0 && !start_thread(*seat)) {
      // Trying again in every call would cost more than the thread is worth.
      pool.no_more_threads.store(true, std::memory_order_relaxed);
      pool.seats[pool.n_seats] = nullptr;
      delete seat;
      break;
    }
    ++pool.n_seats;
  }
  return pool.n_seats < wanted ? pool.n_seats : wanted;
}

// ---- a call ----

// The pool, held by the caller until it lets go of busy, or null.
Pool* enter() {
  Pool* pool = g_pool.load(std::memory_order_acquire);
  if (!pool) {
    if (!g_fork_is_safe) return nullptr;
    Pool* fresh = new (std::nothrow) Pool;
    if (!fresh) return nullptr;
    if (g_pool.compare_exchange_strong(pool, fresh)) {
      pool = fresh;
    } else {
      delete fresh;
    }
  }
  const bool was_busy = pool->busy.load(std::memory_order_relaxed) || pool->busy.exchange(true);
  return was_busy ? nullptr : pool;
}

void publish(Pool& pool, int64_t pieces, int threads) {
  pool.to_wake.store(kMaxThreads, std::memory_order_relaxed);
  pool.processor.store(this_processor(), std::memory_order_relaxed);
  pool.left.store(pieces, std::memory_order_relaxed);
  pool.threads.store(threads, std::memory_order_release);
  for (int i = 0; i < threads; ++i) {
    pool.seats[i]->share.store(share_of(pieces * i / threads, pieces * (i + 1) / threads), std::memory_order_release);
  }
  // A worker parks after a last look at the generation; who wakes looks after this at who has parked.
  pool.generation.fetch_add(1);
  pool.to_wake.store(1, std::memory_order_release);
}

void wait_for_all(Pool& pool) {
  const auto done = [&] { return pool.left.load() == 0; };
  if (spin(pool, kPatience, done)) return;
  std::unique_lock<std::mutex> lock(pool.mutex);
  pool.caller_parked.store(true);
  pool.all_done.wait(lock, done);
  pool.caller_parked.store(false);
}

void run_job(Pool& pool, int threads, int64_t pieces, const Job& job) {
  pool.job = job;
  publish(pool, pieces, threads);
  work(pool, 0);
  wait_for_all(pool);
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
  const int processors = usable_processors();
  g_processors.store(processors, std::memory_order_relaxed);
  if (n == 0) n = threads_from_environment();
  if (n <= 0) n = processors;
  g_threads.store(n < kMaxThreads ? n : kMaxThreads);
  Pool* pool = g_pool.load(std::memory_order_acquire);
  if (pool) pool->no_more_threads.store(false, std::memory_order_relaxed);
}

int num_threads() {
  if (g_threads.load(std::memory_order_relaxed) == 0) set_num_threads(0);
  return g_threads.load(std::memory_order_relaxed);
}

void parallel_for(void* context, int64_t n, int64_t grain, RangeFn fn, void* state) {
  const int by_default = num_threads();
  int64_t threads = reinterpret_cast<intptr_t>(context);
  if (threads < 1 || threads > kMaxThreads) threads = by_default;
  if (grain < 1) grain = 1;
  if (n / grain >= kMaxPieces) grain = n / kMaxPieces + 1;
  for (int64_t begin = 0; begin < n;) {
    const int64_t pieces = (n - begin + grain - 1) / grain;
    if (threads == 1 || pieces == 1) return fn(state, begin, n);
    Pool* pool = enter();
    if (!pool) {
      fn(state, begin, begin + grain);
      begin += grain;
      continue;
    }
    const int seated = seat_threads(*pool, static_cast<int>(threads < pieces ? threads : pieces));
    if (seated > 1) {
      run_job(*pool, seated, pieces, Job{begin, n, grain, fn, state});
    } else {
      fn(state, begin, n);
    }
    pool->busy.store(false, std::memory_order_release);
    return;
  }
}

}  // namespace lutkern
