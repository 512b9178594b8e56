// The simulator itself: small kernels that are right, and kernels with one fault each that it must find and tell.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "cuda/machine.h"
#include "launch.h"

namespace lutkern {
namespace cuda {

struct Numbers {
  uint32_t* out;
  const uint32_t* in;
  uint32_t n;
};

// ---- kernels that are right ----

LK_KERNEL(places, Numbers) {
  const uint32_t block = (block_z() * blocks_y() + block_y()) * blocks_x() + block_x();
  store4(args.out + block * threads() + thread(), block << 16 | warp() << 8 | lane());
}

// Sum of the block's numbers, by shuffles, shared memory and a barrier
LK_KERNEL(sum, Numbers) {
  LK_SHARED(uint32_t, sums, 32);
  uint32_t x = constant_load4(args.in + block_x() * threads() + thread());
  for (uint32_t i = 16; i > 0; i /= 2) x += shuffle_xor(x, i);
  if (lane() == 0) sums[warp()] = x;
  barrier();
  if (thread() > 0) return;
  uint32_t total = 0;
  for (uint32_t i = 0; i < threads() / 32; ++i) total += sums[i];
  args.out[block_x()] = total;
}

// Each lane asks another one, which depends on the data, and votes.
LK_KERNEL(ask, Numbers) {
  const uint32_t mine = args.in[thread()];
  const uint32_t told = shuffle(mine, mine % 32);
  const uint32_t votes = ballot(mine % 3 == 0);
  const bool some = any(mine == 5);
  args.out[thread()] = told << 2 | (some ? 2u : 0u) | (all(mine < 1000) ? 1u : 0u);
  if (lane() == 0) args.out[threads() + warp()] = votes;
}

// Rows of 16 by 32 times columns of 32 by 8, in: bytes of a, then of b
LK_KERNEL(matrix, Numbers) {
  const uint32_t g = lane() / 4;
  const uint32_t t = lane() % 4;
  const uint8_t* a = reinterpret_cast<const uint8_t*>(args.in);
  const uint8_t* b = a + 16 * 32;  // column by column
  const uint32_t a_words[4] = {load4(a + 32 * g + 4 * t), load4(a + 32 * (g + 8) + 4 * t),
                               load4(a + 32 * g + 16 + 4 * t), load4(a + 32 * (g + 8) + 16 + 4 * t)};
  const uint32_t b_words[2] = {load4(b + 32 * g + 4 * t), load4(b + 32 * g + 16 + 4 * t)};
  int c[4] = {0, 0, 0, 0};
  if (args.n == 32) {
    mma_16x8x32(c, a_words, b_words);
  } else {
    const uint32_t low[2] = {a_words[0], a_words[1]};
    mma_16x8x16(c, low, b_words[0]);
  }
  for (uint32_t i = 0; i < 4; ++i) {
    args.out[8 * (g + i / 2 * 8) + 2 * t + i % 2] = static_cast<uint32_t>(c[i]);
  }
}

// The rows of four matrices: row i, 16 bytes, is where lane 31 - i put it.
LK_KERNEL(matrix_rows, Numbers) {
  LK_DYNAMIC_SHARED(rows);
  store16(rows + 16 * lane(), load16(args.in + 4 * (31 - lane())));
  warp_barrier();
  uint32_t v[4];
  load_matrices(v, rows + 16 * (31 - lane()));
  for (uint32_t i = 0; i < 4; ++i) args.out[4 * lane() + i] = v[i];
}

// Two groups of copies; the first is waited for alone.
LK_KERNEL(copies, Numbers) {
  LK_DYNAMIC_SHARED(bytes);
  for (uint32_t half = 0; half < 2; ++half) {
    copy16_async(bytes + 16 * (half * threads() + thread()), args.in + 4 * (half * threads() + thread()));
    copy_commit();
  }
  copy_wait<1>();
  const Words4 first = load16(bytes + 16 * thread());
  copy_wait<0>();
  barrier();
  const Words4 other = load16(bytes + 16 * (threads() + (thread() + 1) % threads()));
  args.out[thread()] = first.x + other.w;
}

// ---- kernels with a fault ----

LK_KERNEL(some_skip_a_barrier, Numbers) {
  if (thread() < 40) barrier();
}
LK_KERNEL(two_barriers, Numbers) {
  if (warp() == 0) {
    barrier();
  } else {
    barrier();
  }
}
LK_KERNEL(lane_skips_shuffle, Numbers) {
  if (lane() != 7) args.out[thread()] = shuffle(1u, 0);
}
LK_KERNEL(barrier_against_shuffle, Numbers) {
  if (lane() < 16) {
    barrier();
  } else {
    args.out[thread()] = shuffle(1u, 0);
  }
}
LK_KERNEL(two_shuffles, Numbers) {
  if (lane() < 16) {
    args.out[thread()] = shuffle(1u, 0);
  } else {
    args.out[thread()] = shuffle(2u, 0);
  }
}
LK_KERNEL(lane_32, Numbers) { args.out[thread()] = shuffle(1u, 32); }
LK_KERNEL(no_barrier, Numbers) {
  LK_SHARED(uint32_t, numbers, 64);
  numbers[thread()] = thread();
  if (args.n == 1) warp_barrier();
  if (args.n == 2) barrier();
  args.out[thread()] = numbers[thread() ^ (args.n == 3 ? 1u : 32u)];
}
// Between warps it is right, inside a warp it is not.
LK_KERNEL(no_warp_barrier, Numbers) {
  LK_SHARED(uint32_t, numbers, 64);
  numbers[thread()] = thread();
  if (args.n == 1) warp_barrier();
  args.out[thread()] = numbers[thread() ^ 1u];
}
// The second round overwrites what the first may still read.
LK_KERNEL(no_second_barrier, Numbers) {
  LK_SHARED(uint32_t, numbers, 64);
  uint32_t sum = 0;
  for (uint32_t i = 0; i < 2; ++i) {
    numbers[thread()] = thread() + i;
    barrier();
    sum += numbers[thread() ^ 32u];
    if (args.n == 1) barrier();
  }
  args.out[thread()] = sum;
}
LK_KERNEL(unwritten, Numbers) {
  LK_SHARED(uint32_t, numbers, 64);
  if (thread() > 0) numbers[thread()] = 1;
  barrier();
  args.out[thread()] = numbers[63 - thread()];
}
LK_KERNEL(past_array, Numbers) {
  LK_SHARED(uint32_t, numbers, 64);
  numbers[thread() + args.n] = 1;
}
LK_KERNEL(past_dynamic, Numbers) {
  LK_DYNAMIC_SHARED(bytes);
  bytes[thread() + args.n] = 1;
}
LK_KERNEL(large_array, Numbers) {
  LK_SHARED(uint8_t, bytes, 49 * 1024);
  bytes[thread()] = 1;
}
LK_KERNEL(misaligned, Numbers) { args.out[thread()] = load16(args.in + args.n).x; }
LK_KERNEL(past_memory, Numbers) { args.out[thread()] = constant_load4(args.in + args.n + thread()); }
LK_KERNEL(past_memory_plainly, Numbers) { args.out[thread() + args.n] = args.in[thread()]; }
LK_KERNEL(same_place, Numbers) { args.out[thread() / 2] = 1; }
LK_KERNEL(same_place_of_blocks, Numbers) { args.out[thread()] = 1; }
LK_KERNEL(early_copy, Numbers) {
  LK_DYNAMIC_SHARED(bytes);
  copy16_async(bytes + 16 * thread(), args.in + 4 * thread());
  copy_commit();
  if (args.n == 1) copy_wait<0>();
  args.out[thread()] = load4(bytes + 16 * thread());
  copy_wait<0>();
}
LK_KERNEL(stops, Numbers) {
  if (thread() == 33 && block_x() == 1) trap();
}

}  // namespace cuda
}  // namespace lutkern

namespace {

using lutkern::cuda::Numbers;
using Words = std::vector<uint32_t>;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kWatched = false;  // then -fsanitize=thread is not there to see plain loads and stores
#else
constexpr bool kWatched = true;
#endif

int g_checks;

[[noreturn]] __attribute__((format(printf, 1, 2))) void stop(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  vfprintf(stderr, text, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

struct Shape {
  uint32_t blocks = 1;
  uint32_t threads = 64;
  uint32_t shared = 0;
};

// The text of the error, "" if there is none.
const char* run(const char* kernel, Words& out, const Words& in, uint32_t n, const Shape& shape, uint64_t seed) {
  static char error[400];
  error[0] = 0;
  const Numbers args = {out.data(), in.data(), n};
  const uint32_t grid[3] = {shape.blocks, 1, 1};
  const int status =
      lk_sim_launch(kernel, &args, sizeof(args), grid, shape.threads, shape.shared, seed, error, sizeof(error));
  if ((status != 0) != (error[0] != 0)) stop("%s: status %d with the text '%s'", kernel, status, error);
  ++g_checks;
  return error;
}

void expect_fault(const char* kernel, uint32_t n, const Shape& shape, const char* text) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Words out(512);
    const Words in(512);
    const char* error = run(kernel, out, in, n, shape, seed);
    if (strstr(error, text) == nullptr) stop("%s, seed %d: '%s', expected '%s'", kernel, int(seed), error, text);
  }
}

void expect_fine(const char* kernel, uint32_t n, const Shape& shape) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Words out(512);
    const Words in(512);
    const char* error = run(kernel, out, in, n, shape, seed);
    if (error[0] != 0) stop("%s, seed %d: '%s', expected no error", kernel, int(seed), error);
  }
}

void expect_equal(const char* kernel, uint64_t seed, size_t i, uint32_t found, uint32_t expected) {
  if (found != expected) stop("%s, seed %d: number %zu is %x, expected %x", kernel, int(seed), i, found, expected);
}

// ---- right ones ----

void check_places(uint64_t seed) {
  Words out(2 * 3 * 4 * 64);
  char error[400] = "";
  const Numbers args = {out.data(), nullptr, 0};
  const uint32_t grid[3] = {2, 3, 4};
  if (lk_sim_launch("places", &args, sizeof(args), grid, 64, 0, seed, error, sizeof(error)) != 0) stop("%s", error);
  for (uint32_t i = 0; i < out.size(); ++i) {
    expect_equal("places", seed, i, out[i], i / 64 << 16 | i % 64 / 32 << 8 | i % 32);
  }
}

void check_sum(uint64_t seed) {
  const Shape shape = {5, 1024, 0};
  Words in(5 * 1024), out(5), expected(5);
  for (uint32_t i = 0; i < in.size(); ++i) expected[i / 1024] += in[i] = i * 2654435761u;
  if (*run("sum", out, in, 0, shape, seed) != 0) stop("sum: there is an error");
  for (uint32_t i = 0; i < 5; ++i) expect_equal("sum", seed, i, out[i], expected[i]);
}

void check_ask(uint64_t seed) {
  Words in(64), out(66);
  for (uint32_t i = 0; i < 64; ++i) in[i] = i < 32 ? 7 * i : 11 * i + 500;
  if (*run("ask", out, in, 0, {}, seed) != 0) stop("ask: there is an error");
  uint32_t votes[2] = {0, 0};
  for (uint32_t i = 0; i < 64; ++i) {
    const bool all = i < 32;
    expect_equal("ask", seed, i, out[i], in[i / 32 * 32 + in[i] % 32] << 2 | (all ? 1u : 0u));
    votes[i / 32] |= (in[i] % 3 == 0 ? 1u : 0u) << i % 32;
  }
  for (uint32_t i = 0; i < 2; ++i) expect_equal("ask", seed, 64 + i, out[64 + i], votes[i]);
}

void check_matrix(uint64_t seed) {
  for (uint32_t depth = 16; depth <= 32; depth += 16) {
    Words in((16 + 8) * 32 / 4), out(16 * 8);
    for (uint32_t i = 0; i < in.size(); ++i) in[i] = (i + 1) * 2654435761u;
    const int8_t* a = reinterpret_cast<const int8_t*>(in.data());
    const int8_t* b = a + 16 * 32;
    if (*run("matrix", out, in, depth, {1, 32, 0}, seed) != 0) stop("matrix: there is an error");
    for (uint32_t row = 0; row < 16; ++row) {
      for (uint32_t col = 0; col < 8; ++col) {
        int sum = 0;
        for (uint32_t k = 0; k < depth; ++k) sum += a[32 * row + k] * b[32 * col + k];
        expect_equal("matrix", seed, 8 * row + col, out[8 * row + col], static_cast<uint32_t>(sum));
      }
    }
  }
}

// Lane 4 g + t has word t of row g of each matrix: what `matrix` above loads for its fragments.
void check_matrix_rows(uint64_t seed) {
  Words in(128), out(128);
  for (uint32_t i = 0; i < 128; ++i) in[i] = i * i;
  if (*run("matrix_rows", out, in, 0, {1, 32, 512}, seed) != 0) stop("matrix_rows: there is an error");
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t i = 0; i < 4; ++i) {
      expect_equal("matrix_rows", seed, 4 * lane + i, out[4 * lane + i], in[4 * (8 * i + lane / 4) + lane % 4]);
    }
  }
}

void check_copies(uint64_t seed) {
  Words in(512), out(64);
  for (uint32_t i = 0; i < 512; ++i) in[i] = i * i;
  if (*run("copies", out, in, 0, {1, 64, 2048}, seed) != 0) stop("copies: there is an error");
  for (uint32_t i = 0; i < 64; ++i) {
    expect_equal("copies", seed, i, out[i], in[4 * i] + in[4 * (64 + (i + 1) % 64) + 3]);
  }
}

// ---- words: what an instruction does with one number ----

void check_word(const char* what, uint32_t found, uint32_t expected) {
  ++g_checks;
  if (found != expected) stop("%s: %08x, expected %08x", what, found, expected);
}

void check_words() {
  using namespace lutkern::cuda;
  check_word("dp4a", static_cast<uint32_t>(dp4a(0x80ff017fu, 0x7f02fe80u, 5)),
             static_cast<uint32_t>(5 - 128 * 127 - 2 - 2 - 128 * 127));
  check_word("dp4a_us", static_cast<uint32_t>(dp4a_us(0x80ff017fu, 0x7f02fe80u, 5)),
             static_cast<uint32_t>(5 + 128 * 127 + 510 - 2 - 127 * 128));
  check_word("dp4a wraps", static_cast<uint32_t>(dp4a(0x7f7f7f7fu, 0x7f7f7f7fu, 0x7fffffff)),
             0x7fffffffu + 4u * 127u * 127u);
  check_word("byte_perm", byte_perm(0x83020100u, 0x07060584u, 0xb417u), 0xff840107u);
  check_word("funnel_right", funnel_right(0x89abcdefu, 0x01234567u, 36), 0x789abcdeu);
  check_word("funnel_left", funnel_left(0x89abcdefu, 0x01234567u, 4), 0x12345678u);
  const float nan = float_of_bits(0x7fc00000u);
  const struct {
    float x;
    int n;
  } rounded[] = {{0.5f, 0}, {1.5f, 2}, {-2.5f, -2}, {3e9f, 2147483647}, {-3e9f, -2147483647 - 1}, {nan, 0}};
  for (const auto& [x, n] : rounded)
    check_word("round_s32", static_cast<uint32_t>(round_s32(x)), static_cast<uint32_t>(n));
  const struct {
    float x;
    uint32_t half;
  } halves[] = {{1.0f, 0x3c00u},     {-2.0f, 0xc000u},      {65519.0f, 0x7bffu},   {65520.0f, 0x7c00u},
                {0x1p-24f, 0x0001u}, {0x1p-25f, 0x0000u},   {0x1.8p-25f, 0x0001u}, {0x1.ff8p-15f, 0x03ffu},
                {-0.0f, 0x8000u},    {0x1.002p0f, 0x3c00u}, {0x1.006p0f, 0x3c02u}, {0x1.ffep-15f, 0x0400u},
                {nan, 0x7fffu}};
  for (const auto& [x, half] : halves) check_word("half_of_float", half_of_float(x), half);
  for (uint32_t half = 0; half < 0x10000u; ++half) {
    if ((half & 0x7fffu) <= 0x7c00u) check_word("half", half_of_float(float_of_half(half)), half);
  }
}

}  // namespace

int main() {
  check_words();
  for (uint64_t seed = 0; seed < 6; ++seed) {
    check_places(seed);
    check_sum(seed);
    check_ask(seed);
    check_matrix(seed);
    check_matrix_rows(seed);
    check_copies(seed);
  }

  expect_fault("some_skip_a_barrier", 0, {}, "has left the kernel");
  expect_fault("some_skip_a_barrier", 0, {}, "divergent barrier: thread");
  expect_fault("two_barriers", 0, {}, "divergent barrier: thread 0 waits in barrier at test_simt.cpp:");
  expect_fault("lane_skips_shuffle", 0, {}, "waits in shuffle at test_simt.cpp:");
  expect_fault("lane_skips_shuffle", 0, {1, 32, 0}, "thread 7 has left the kernel");
  expect_fault("barrier_against_shuffle", 0, {}, "deadlock: thread 16 waits in shuffle");
  expect_fault("two_shuffles", 0, {}, "the lanes of a warp meet in different places");
  expect_fault("lane_32", 0, {}, "shuffle: lane 32, expected 0 .. 31");
  expect_fault("large_array", 0, {}, "50176 bytes of shared arrays, the limit is 49152");
  expect_fault("stops", 0, {2, 64, 0}, "stops: block (1, 0, 0): thread 33: trap at test_simt.cpp:");
  expect_fault("misaligned", 1, {}, "reads 16 bytes at");
  expect_fault("sum", 0, {1, 48, 0}, "launch: 48 threads in a block, expected a multiple of 32 up to 1024");
  expect_fault("sum", 0, {1, 64, 227 * 1024 + 1},
               "launch: 232449 bytes of dynamic shared memory, the device has 232448");
  expect_fault("sum", 0, {1, 64, 227 * 1024}, "bytes of shared memory, the device has 232448");
  expect_fault("sum", 0, {0, 64, 0}, "launch: a grid of (0, 1, 1) blocks");
  expect_fault("nothing", 0, {}, "launch: there is no kernel nothing");
  lk_sim_shared_limit(1000);
  expect_fault("past_dynamic", 0, {1, 64, 1001}, "launch: 1001 bytes of dynamic shared memory, the device has 1000");
  lk_sim_shared_limit(227 * 1024);
  expect_fine("early_copy", 1, {1, 64, 1024});

  expect_fine("no_barrier", 2, {});
  expect_fine("no_warp_barrier", 1, {});
  expect_fine("no_second_barrier", 1, {});
  expect_fine("past_array", 0, {});
  expect_fine("past_dynamic", 0, {1, 64, 64});
  if (kWatched) {
    expect_fault("early_copy", 0, {1, 64, 1024}, "reads shared memory that no thread has written at test_simt.cpp:");
    expect_fault("no_barrier", 0, {}, "shared memory that no thread has written");
    expect_fault("no_barrier", 1, {}, "shared memory that no thread has written");
    expect_fault("no_warp_barrier", 0, {}, "shared memory");
    expect_fault("no_second_barrier", 0, {}, "race: ");
    expect_fault("unwritten", 0, {}, "reads shared memory that no thread has written");
    expect_fault("past_array", 1, {}, "writes outside of its shared array");
    expect_fault("past_dynamic", 1, {1, 64, 64}, "writes outside of its shared array");
    expect_fault("same_place", 0, {}, "race: writes byte");
    expect_fault("same_place_of_blocks", 0, {2, 64, 0}, "race: writes global memory that another block wrote");
  }

  Words out(64);
  const Words in(64);
  lk_sim_register(out.data(), 256);
  lk_sim_register(in.data(), 256);
  for (uint64_t seed = 0; seed < 4; ++seed) {
    if (*run("past_memory", out, in, 0, {}, seed) != 0) stop("past_memory: there is an error");
    const char* error = run("past_memory", out, in, 1, {}, seed);
    if (strstr(error, "thread 63: reads 4 bytes at byte 256 of an allocation of 256") == nullptr) stop("'%s'", error);
    if (!kWatched) continue;
    error = run("past_memory_plainly", out, in, 1, {}, seed);
    if (strstr(error, "thread 63: writes 4 bytes at byte 256 of an allocation of 256") == nullptr) stop("'%s'", error);
  }
  lk_sim_unregister(out.data());
  lk_sim_unregister(in.data());
  printf("simt: %d checks\n", g_checks);
  return 0;
}
