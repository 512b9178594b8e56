// The pool of threads alone: every item once, threads that really run side by side, calls inside of calls and beside
// them. A lost wake-up shows as a meeting that does not take place.
//
//   pool          everything but what follows
//   pool fork     children of fork, whose threads neither QEMU nor ThreadSanitizer starts
#include "cpu/threads.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace {

using lutkern::parallel_for;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kNever{60};

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  vfprintf(stderr, text, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  _Exit(1);
}

void* threads_of(int n) { return reinterpret_cast<void*>(static_cast<intptr_t>(n)); }

// Runs body(begin, end) on the pool.
template <typename Body>
void run(int threads, int64_t n, int64_t grain, Body body) {
  const lutkern::RangeFn fn = [](void* state, int64_t begin, int64_t end) { (*static_cast<Body*>(state))(begin, end); };
  parallel_for(threads_of(threads), n, grain, fn, &body);
}

// Whether it came true before the test has to be given up.
template <typename Ready>
bool wait_until(Ready ready) {
  const auto deadline = std::chrono::steady_clock::now() + kNever;
  while (!ready()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(microseconds(20));
  }
  return true;
}

// ---- pieces ----

void check_once(int threads, int64_t n, int64_t grain) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
  std::atomic<int> odd{0};
  const int64_t step = grain < 1 ? 1 : grain;
  run(threads, n, grain, [&](int64_t begin, int64_t end) {
    const bool whole = threads == 1 || n <= step;
    if (begin % step != 0 || end > n || end <= begin || (!whole && end - begin > step)) ++odd;
    for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
  });
  if (odd != 0) fail("%d threads, %lld items by %lld: %d odd ranges", threads, (long long)n, (long long)grain, +odd);
  for (int64_t i = 0; i < n; ++i) {
    const int times = seen[static_cast<size_t>(i)];
    if (times != 1)
      fail("%d threads, %lld by %lld: item %lld %d times", threads, (long long)n, (long long)grain, (long long)i,
           times);
  }
}

void test_every_item_once() {
  for (int threads = 1; threads <= 8; ++threads) {
    for (const int64_t n : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {0, 1, 3, 64, 2000}) check_once(threads, n, grain);
    }
  }
}

// Items that need more than 32 bits to count.
void test_many_items() {
  const int64_t n = int64_t{1} << 40;
  std::atomic<int64_t> items{0};
  std::atomic<int64_t> calls{0};
  run(2, n, n / 64, [&](int64_t begin, int64_t end) {
    items += end - begin;
    ++calls;
  });
  if (items != n || calls != 64) fail("%lld items in %lld calls", (long long)items, (long long)calls);
}

// ---- threads side by side ----

// As many pieces as threads, and nobody leaves before all have come: all the threads run, and nobody runs two pieces.
void meet(int threads) {
  std::atomic<int> here{0};
  run(threads, threads, 1, [&](int64_t, int64_t) {
    ++here;
    if (!wait_until([&] { return here == threads; })) fail("%d of %d threads came", +here, threads);
  });
}

void test_all_threads_come() {
  for (int round = 0; round < 20; ++round) {
    for (const int threads : {2, 8, 3, 5}) meet(threads);
  }
}

// Pauses around the time after which a worker parks.
void test_parked_threads_come() {
  for (int pause = 0; pause < 400; ++pause) {
    std::this_thread::sleep_for(microseconds(pause));
    meet(2 + pause % 3);
  }
  std::this_thread::sleep_for(milliseconds(20));
  meet(8);
}

void test_fewer_threads_when_told() {
  meet(8);
  std::this_thread::sleep_for(milliseconds(20));
  std::mutex mutex;
  std::set<std::thread::id> ids;
  run(2, 50, 1, [&](int64_t, int64_t) {
    std::this_thread::sleep_for(microseconds(200));
    std::lock_guard<std::mutex> lock(mutex);
    ids.insert(std::this_thread::get_id());
  });
  if (ids.size() > 2) fail("%zu threads where 2 were asked for", ids.size());
}

// One long piece among short ones: the thread that has it does nothing else.
void test_shares_of_the_slow_are_taken() {
  std::atomic<int> others{0};
  run(2, 40, 1, [&](int64_t begin, int64_t) {
    if (begin != 0) {
      ++others;
    } else if (!wait_until([&] { return others == 39; })) {
      fail("%d of 39 pieces were run beside a long one", +others);
    }
  });
}

// ---- calls inside of calls and beside them ----

void test_nested() {
  std::atomic<int64_t> sum{0};
  run(3, 20, 1, [&](int64_t i, int64_t) {
    run(3, 10, 1, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) sum += i * 10 + j;
    });
  });
  if (sum != 199 * 200 / 2) fail("nested: the sum is %lld", static_cast<long long>(sum));
}

void test_callers_at_once() {
  const auto call = [](int number) {
    for (int round = 0; round < 300; ++round) {
      std::vector<int> out(100, 0);  // each item is written by one thread, and read here
      run(1 + (number + round) % 4, 100, 1 + round % 7, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) out[static_cast<size_t>(i)] += number;
      });
      for (const int value : out) {
        if (value != number) fail("caller %d: %d", number, value);
      }
    }
  };
  std::vector<std::thread> callers;
  for (int i = 1; i <= 4; ++i) callers.emplace_back(call, i);
  for (int i = 0; i < 200; ++i) {
    lutkern::set_num_threads(1 + i % 4);
    std::this_thread::yield();
  }
  for (std::thread& caller : callers) caller.join();
  lutkern::set_num_threads(0);
}

// A call that began while another had the pool gets help when the other has ended.
void test_the_pool_is_taken_when_free() {
  std::atomic<bool> first_runs{false};
  std::atomic<bool> first_may_end{false};
  std::atomic<bool> first_ended{false};
  std::thread first([&] {
    run(2, 2, 1, [&](int64_t, int64_t) {
      first_runs = true;
      if (!wait_until([&] { return first_may_end.load(); })) fail("the second call never came");
    });
    first_ended = true;
  });
  if (!wait_until([&] { return first_runs.load(); })) fail("the first call never ran");
  std::atomic<int> here{0};
  run(2, 100, 1, [&](int64_t begin, int64_t) {
    if (begin == 0) {
      first_may_end = true;
      if (!wait_until([&] { return first_ended.load(); })) fail("the first call never ended");
    } else if (begin == 1 || begin == 99) {  // the first piece of the first share, the last one of the second
      ++here;
      if (!wait_until([&] { return here == 2; })) fail("nobody came to help");
    }
  });
  first.join();
  if (here != 2) fail("the second call had %d threads", +here);
}

// ---- fork ----

// Each thread forks in the middle of its piece, together with the others.
void test_fork_inside_of_a_call() {
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> here{0};
    run(3, 3, 1, [&](int64_t, int64_t) {
      ++here;
      if (!wait_until([&] { return here == 3; })) fail("%d of 3 threads came", +here);
      const pid_t child = fork();
      if (child == 0) {
        alarm(60);
        meet(4);
        meet(2);
        _exit(0);
      }
      int status = -1;
      if (waitpid(child, &status, 0) != child || status != 0) fail("the child ended with %d", status);
    });
    meet(3);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    if (strcmp(argv[1], "fork") != 0) fail("unknown part %s", argv[1]);
    test_fork_inside_of_a_call();
    printf("pool fork: passed\n");
    return 0;
  }
  test_every_item_once();
  test_many_items();
  test_all_threads_come();
  test_parked_threads_come();
  test_fewer_threads_when_told();
  test_shares_of_the_slow_are_taken();
  test_nested();
  test_callers_at_once();
  test_the_pool_is_taken_when_free();
  printf("pool: passed\n");
  return 0;
}
