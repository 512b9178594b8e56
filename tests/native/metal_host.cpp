// The Metal host over the fake Objective-C runtime: life cycle, memory without copies, every error path, fork, leaks,
// streams, two devices, and each call of Metal failing in turn. The cases that are those of any device are in
// device_operations.cpp.
//
// Each case runs in a process of its own: a process has one runtime, which reads its settings once.
#include <sys/mman.h>
#include <sys/wait.h>

#include <thread>

#include "device_layers.h"
#include "device_metal.h"

// Staging and scratch are kept for the next operation, libraries and pipelines for ever; so are the default streams.
constexpr int kKeptBuffers = 2 * 5;  // of two devices

void nothing_is_left(int tolerated) {
  fake<void()>("fake_metal_finish")();
  for (const char* what : {"pending", "pools", "pooled", "MTLCommandBuffer", "MTLComputeCommandEncoder",
                           "MTLBlitCommandEncoder", "MTLCompileOptions", "NSString", "NSError"}) {
    if (alive(what) > tolerated) die("%d %s are left", alive(what), what);
  }
  if (alive("MTLFunction") > alive("MTLComputePipelineState")) die("a function is left that no pipeline has");
  if (alive("MTLBuffer") > kKeptBuffers + tolerated) die("%d buffers are left", alive("MTLBuffer"));
  if (alive("MTLCommandQueue") > 2 + tolerated) die("%d queues are left", alive("MTLCommandQueue"));
  if (!fault().empty() && tolerated == 0) die("fault: %s", fault().c_str());
}

namespace {

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

// ---- what is there ----

void absent(const char* reason) {
  need(lutkern_device_count(LUTKERN_METAL) == 0, "no device was expected");
  const char* text = lutkern_device_absent(LUTKERN_METAL);
  if (!text || strcmp(text, reason) != 0) die("absent: '%s', expected '%s'", text ? text : "null", reason);
  void* p = nullptr;
  expect(lutkern_device_alloc(kFirst, 1, nullptr, &p), LUTKERN_ERROR_DEVICE,
         (std::string("device_alloc: ") + reason).c_str());
}

void case_present() {
  need(lutkern_device_count(LUTKERN_METAL) == 2, "two devices");
  need(lutkern_device_absent(LUTKERN_METAL) == nullptr, "no reason");
  lutkern_device_info info;
  ok(lutkern_get_device_info(kSecond, &info));
  need(strcmp(info.name, "Simulated device 1") == 0, "name");
  need(info.memory_bytes == 1 << 30 && info.free_bytes == 1 << 30, "memory");
  expect(lutkern_get_device_info(LUTKERN_METAL + 2, &info), LUTKERN_ERROR_DEVICE,
         "device_info: metal:2 does not exist, expected metal:0 to metal:1");
  nothing_is_left();
  need(count("nil") == 0, "no message to nil");
}

void case_no_library() { absent("no Metal: LUTKERN_OBJC names '/no/such/library.so', which could not be loaded"); }
void case_no_functions() { absent("no Metal: the Objective-C runtime has no objc_getClass"); }
void case_no_class() { absent("no Metal: the Objective-C runtime has no class NSString"); }
void case_no_device() { absent("no Metal: this Mac has no Metal device"); }
void case_old_device() {
  absent("metal:0 (Simulated device 0) is of no family of Apple GPUs that is known, expected Apple7 or newer");
}
void case_own_memory() { absent("metal:0 (Simulated device 0) has memory of its own, expected unified memory"); }

// ---- memory ----

std::vector<uint8_t> random_bytes(size_t n) {
  std::vector<uint8_t> out(n);
  Random random;
  for (uint8_t& b : out) b = static_cast<uint8_t>(random.bits());
  return out;
}

void case_memory() {
  void* p = nullptr;
  expect(lutkern_device_alloc(kFirst, 0, nullptr, &p), LUTKERN_ERROR_VALUE,
         "device_alloc: 0 bytes, expected at least 1");
  expect(lutkern_device_alloc(kFirst, 1, nullptr, nullptr), LUTKERN_ERROR_VALUE, "device_alloc: out is null");
  expect(lutkern_device_alloc(kFirst, 3000001, nullptr, &p), LUTKERN_ERROR_MEMORY,
         "device_alloc: 3000001 bytes, a buffer of metal:0 has at most 3000000");
  ok(lutkern_device_free(kFirst, nullptr, nullptr));
  const size_t n = 1200345;
  const std::vector<uint8_t> sent = random_bytes(n);
  std::vector<uint8_t> got(n, 0);
  {
    const Memory a(kFirst, n);
    const Memory b(kFirst, n);
    const Memory c(kSecond, n);
    ok(a.status());
    need(bytes_of(0) == 2 * n && bytes_of(1) == n, "what was asked for, and no more");
    const Memory d(kFirst, 2900000);
    expect(d.status(), LUTKERN_ERROR_MEMORY, "device_alloc: newBufferWithLength failed: no memory for 2900000 bytes");
    ok(lutkern_device_copy(a.data(), kFirst, sent.data(), LUTKERN_CPU, n, nullptr));
    need(memcmp(a.data(), sent.data(), n) == 0, "the CPU reads it in place");
    ok(lutkern_device_copy(b.data(), kFirst, a.data(), kFirst, n, nullptr));
    ok(lutkern_device_synchronize(kFirst, nullptr));
    ok(lutkern_device_copy(c.data(), kSecond, b.data(), kFirst, n, nullptr));
    ok(lutkern_device_copy(got.data(), LUTKERN_CPU, c.data(), kSecond, n, nullptr));
    need(got == sent, "bytes come back");
    // By the device itself: offsets and sizes are multiples of 4.
    uint8_t* words = static_cast<uint8_t*>(b.data());
    ok(lutkern_device_copy(words, kFirst, words + 400000, kFirst, 4000, nullptr));
    ok(lutkern_device_synchronize(kFirst, nullptr));
    need(memcmp(words, sent.data() + 400000, 4000) == 0, "copied inside of an array");
    expect(lutkern_device_copy(nullptr, kFirst, sent.data(), LUTKERN_CPU, n, nullptr), LUTKERN_ERROR_VALUE,
           "device_copy: to or from is null");
    ok(lutkern_device_copy(nullptr, kFirst, nullptr, LUTKERN_CPU, 0, nullptr));
    expect(lutkern_device_free(kFirst, got.data(), nullptr), LUTKERN_ERROR_DEVICE,
           "device_free: the memory is not of metal:0, expected what it gave");
    expect(lutkern_device_free(kSecond, a.data(), nullptr), LUTKERN_ERROR_DEVICE,
           "device_free: the memory is not of metal:1, expected what it gave");
  }
  need(bytes_of(0) + bytes_of(1) < 1 << 20, "given back");
  nothing_is_left();
}

// ---- memory of the CPU ----

// Any address and size, without a copy
void case_wrap() {
  const std::vector<float> x = floats(512);
  const Host host = host_weight("iq1_m", 3, 24, 512);
  std::vector<float> expected(24);
  std::vector<float> got(24, -1.0f);
  const lutkern_matrix m = matrix(x.data(), 1, 512, LUTKERN_CPU);
  // Once for what is kept by the first operation
  for (int turn = 0; turn < 2; ++turn) {
    const uint64_t before = turn ? bytes_of(0) : 0;
    void* there = nullptr;
    ok(lutkern_device_wrap(kFirst, host.bytes.data(), host.bytes.size(), &there));
    need(there == host.bytes.data(), "the same address");
    lutkern_tensor t;
    ok(lutkern_device_tensor_init(&t, kFirst, host.tensor.ggml_type, LUTKERN_BLOCKS, 3, 24, 512, there,
                                  host.bytes.size()));
    for (int64_t e = 0; e < 3; ++e) {
      lutkern_tensor one;
      lutkern_tensor one_here;
      ok(lutkern_tensor_expert(&t, e, &one));
      ok(lutkern_tensor_expert(&host.tensor, e, &one_here));
      ok(lutkern_matvec(&one_here, &m, expected.data(), nullptr));
      ok(lutkern_matvec(&one, &m, got.data(), nullptr));
      near(got, expected, "an expert of wrapped blocks");
    }
    if (turn) need(bytes_of(0) == before, "no memory of its own");
    ok(lutkern_device_free(kFirst, there, LUTKERN_ALL_STREAMS));
    expect(lutkern_device_free(kFirst, there, nullptr), LUTKERN_ERROR_DEVICE,
           "device_free: the memory is not of metal:0, expected what it gave");
  }
  void* out = nullptr;
  expect(lutkern_device_wrap(kFirst, nullptr, 1, &out), LUTKERN_ERROR_VALUE, "device_wrap: data or out is null");
  expect(lutkern_device_wrap(kFirst, &out, 0, &out), LUTKERN_ERROR_VALUE, "device_wrap: 0 bytes, expected at least 1");
  expect(lutkern_device_wrap(LUTKERN_CPU, &out, 8, &out), LUTKERN_ERROR_VALUE,
         "device_wrap: the device is the CPU, expected a CUDA or Metal device");
  nothing_is_left();
}

// The same memory again, and longer; each wrap is freed.
void case_wrap_twice() {
  const std::vector<uint8_t> memory = random_bytes(5 * page());
  const uint8_t* begin = memory.data() + 100;
  void* first = nullptr;
  void* second = nullptr;
  void* third = nullptr;
  ok(lutkern_device_wrap(kFirst, begin, 10, &first));
  ok(lutkern_device_wrap(kFirst, begin, 4 * page(), &second));
  ok(lutkern_device_wrap(kFirst, begin + 7, 3, &third));
  const Memory copy(kFirst, 4 * page());
  ok(lutkern_device_copy(copy.data(), kFirst, second, kFirst, 4 * page(), nullptr));
  ok(lutkern_device_synchronize(kFirst, nullptr));
  need(memcmp(copy.data(), begin, 4 * page()) == 0, "the longer one");
  for (void* p : {first, second, third}) ok(lutkern_device_free(kFirst, p, LUTKERN_ALL_STREAMS));
  expect(lutkern_device_free(kFirst, first, nullptr), LUTKERN_ERROR_DEVICE,
         "device_free: the memory is not of metal:0, expected what it gave");
  nothing_is_left();
}

// The call that wraps fails for more than what is copied instead.
void case_wrap_fails() {
  const size_t n = size_t{17} << 20;
  const std::vector<uint8_t> memory = random_bytes(n);
  void* there = nullptr;
  const std::string text = "device_wrap: newBufferWithBytesNoCopy failed: " + std::to_string(n) + " bytes of the CPU";
  expect(lutkern_device_wrap(kFirst, memory.data(), n, &there), LUTKERN_ERROR_MEMORY, text.c_str());
  need(failed_call().find("NoCopy") != std::string::npos, "the call that was to fail");
  nothing_is_left();
}

// A file that may only be read, as weights are
void case_wrap_file() {
  char name[] = "/tmp/lutkern_wrap_XXXXXX";
  const int file = mkstemp(name);
  unlink(name);
  const Host host = host_weight("iq2_xxs", 1, 8, 256);
  const size_t before = 96;  // where the weight begins in it
  const std::string front(before, 'x');
  need(file >= 0 && write(file, front.data(), before) == static_cast<ssize_t>(before) &&
           write(file, host.bytes.data(), host.bytes.size()) == static_cast<ssize_t>(host.bytes.size()),
       "a file");
  const size_t size = before + host.bytes.size();
  uint8_t* mapped = static_cast<uint8_t*>(mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0));
  void* there = nullptr;
  ok(lutkern_device_wrap(kFirst, mapped + before, host.bytes.size(), &there));
  lutkern_tensor t;
  ok(lutkern_device_tensor_init(&t, kFirst, host.tensor.ggml_type, LUTKERN_BLOCKS, 1, 8, 256, there,
                                host.bytes.size()));
  std::vector<float> expected(8 * 256);
  ok(lutkern_dequantize(&host.tensor, expected.data(), nullptr));
  const Memory out(kFirst, expected.size() * 4);
  ok(lutkern_dequantize_to(&t, LUTKERN_F32, out.data(), nullptr));
  // Work that is queued on it is done before the memory may go.
  ok(lutkern_device_free(kFirst, there, nullptr));
  munmap(mapped, size);
  close(file);
  ok(lutkern_device_synchronize(kFirst, nullptr));
  need(memcmp(out.data(), expected.data(), out.bytes()) == 0, "to the bit");
  nothing_is_left();
}

// ---- layouts ----

void case_repack() {
  for (const char* name : {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"}) {
    need(lutkern_device_has_tiles(kFirst, format(name).ggml_type), "tiles");
    round_trip(name, 2, 40, 512);
  }
  round_trip("iq1_m", 1, 1, 256);
  round_trip("iq2_xxs", 3, 33, 768);
  round_trip("q8_0", 2, 5, 96);
  nothing_is_left();
}

// ---- work ----

// Nothing runs before it is waited for; then all of it has.
void case_late() {
  const Host host = host_weight("iq1_m", 1, 64, 256);
  const OnDevice weight = upload(host.tensor, LUTKERN_TILES, kFirst);
  const Memory x(kFirst, 256 * 4);
  const Memory y(kFirst, 64 * 4);
  const std::vector<float> numbers = floats(256);
  memcpy(x.data(), numbers.data(), x.bytes());
  const lutkern_matrix m = matrix(x.data(), 1, 256, kFirst);
  memset(y.data(), 0xa5, y.bytes());
  const int64_t before = count("dispatches");
  for (int turn = 0; turn < 5; ++turn) ok(lutkern_matvec(&weight.tensor, &m, y.floats(), nullptr));
  need(count("dispatches") == before && static_cast<uint8_t*>(y.data())[0] == 0xa5, "only queued");
  ok(lutkern_device_synchronize(kFirst, nullptr));
  need(count("dispatches") == before + 5, "done");
  need(kernels().find("matvec\n") != std::string::npos, "the kernel for one token");
  std::vector<float> expected(64);
  const lutkern_matrix here = matrix(numbers.data(), 1, 256, LUTKERN_CPU);
  ok(lutkern_matvec(&host.tensor, &here, expected.data(), nullptr));
  near(std::vector<float>(y.floats(), y.floats() + 64), expected, "late");
}

// Many dispatches are committed in parts; waiting for one stream does not wait for the others.
void case_batches() {
  const Host host = host_weight("q8_0", 1, 4, 64);
  const OnDevice weight = upload(host.tensor, LUTKERN_BLOCKS, kFirst);
  const Memory x(kFirst, 64 * 4);
  const Memory y(kFirst, 4 * 4);
  memset(x.data(), 0, x.bytes());
  const lutkern_matrix m = matrix(x.data(), 1, 64, kFirst);
  for (int turn = 0; turn < 200; ++turn) ok(lutkern_matvec(&weight.tensor, &m, y.floats(), nullptr));
  need(count("commits") > 1 && count("commits") < 100, "several, and not one for each");
  ok(lutkern_device_synchronize(kFirst, nullptr));
  need(count("dispatches") == 200 && y.floats()[3] == 0.0f, "all of them");
}

// Small threadgroups: what a pipeline allows is what runs.
void case_few_threads() {
  products("iq1_m", LUTKERN_TILES, 1, false);
  products("iq1_m", LUTKERN_TILES, 20, false);
  products("q8_0", LUTKERN_BLOCKS, 2, false);
  nothing_is_left();
}

void case_new_system() { products("iq1_m", LUTKERN_TILES, 1, false); }

// ---- what fails ----

void case_compiler() {
  const Host host = host_weight("iq1_m", 1, 8, 256);
  const OnDevice weight = upload(host.tensor, LUTKERN_TILES, kFirst);
  const std::vector<float> x = floats(256);
  const lutkern_matrix m = matrix(x.data(), 1, 256, LUTKERN_CPU);
  std::vector<float> out(8, 7.0f);
  expect(lutkern_matvec(&weight.tensor, &m, out.data(), nullptr), LUTKERN_ERROR_DEVICE,
         "matvec: matvec_iq1_m: newLibraryWithSource failed: program_source:1:1: error: no");
  for (const float v : out) need(v == 7.0f, "nothing is written");
  nothing_is_left();
}

void case_threadgroup_memory() {
  const Host host = host_weight("iq1_m", 1, 8, 256);
  const OnDevice weight = upload(host.tensor, LUTKERN_TILES, kFirst);
  const std::vector<float> x = floats(256);
  const lutkern_matrix m = matrix(x.data(), 1, 256, LUTKERN_CPU);
  std::vector<float> out(8);
  need(lutkern_matvec(&weight.tensor, &m, out.data(), nullptr) == LUTKERN_ERROR_DEVICE, "too little");
  const std::string text = lutkern_last_error();
  const std::string begin = "matvec: matvec_iq1_m: newComputePipelineStateWithFunction failed: Threadgroup memory size";
  if (text.compare(0, begin.size(), begin) != 0) die("the text is '%s'", text.c_str());
  nothing_is_left();
}

void case_errors() {
  const Host host = host_weight("q8_0", 1, 4, 64);
  const OnDevice weight = upload(host.tensor, LUTKERN_BLOCKS, kFirst);
  const std::vector<float> x = floats(64);
  float out[4];
  lutkern_matrix m = matrix(x.data(), 1, 64, kSecond);
  expect(lutkern_matvec(&weight.tensor, &m, out, nullptr), LUTKERN_ERROR_VALUE,
         "matvec: x is on metal:1, the weight is on metal:0");
  lutkern_tensor t = weight.tensor;
  t.device = LUTKERN_METAL + 7;
  m.device = LUTKERN_CPU;
  expect(lutkern_matvec(&t, &m, out, nullptr), LUTKERN_ERROR_DEVICE,
         "matvec: metal:7 does not exist, expected metal:0 to metal:1");
  int stranger = 0;
  lutkern_options options{};
  options.stream = &stranger;
  char text[160];
  snprintf(text, sizeof(text), "matvec: the stream %p is not of metal:0, expected one of lutkern_stream_create",
           static_cast<void*>(&stranger));
  expect(lutkern_matvec(&weight.tensor, &m, out, &options), LUTKERN_ERROR_DEVICE, text);
  void* graph = nullptr;
  void* stream = nullptr;
  ok(lutkern_stream_create(kFirst, &stream));
  expect(lutkern_graph_begin(kFirst, stream), LUTKERN_ERROR_DEVICE,
         "graph_begin: metal:0 has no graphs, expected a CUDA device");
  expect(lutkern_graph_end(kFirst, stream, &graph), LUTKERN_ERROR_DEVICE,
         "graph_end: metal:0 has no graphs, expected a CUDA device");
  expect(lutkern_graph_launch(kFirst, stream, stream), LUTKERN_ERROR_DEVICE,
         "graph_launch: metal:0 has no graphs, expected a CUDA device");
  expect(lutkern_graph_destroy(kFirst, stream), LUTKERN_ERROR_DEVICE,
         "graph_destroy: metal:0 has no graphs, expected a CUDA device");
  int32_t captured = -1;
  ok(lutkern_stream_capturing(kFirst, stream, &captured));
  need(captured == 0, "never captured");
  ok(lutkern_stream_destroy(kFirst, stream));
  int64_t huge = int64_t{1} << 33;
  lutkern_tensor wide{host.tensor.ggml_type, LUTKERN_BLOCKS, 1, 1, huge, weight.memory.data(), 0, kFirst};
  wide.nbytes = static_cast<size_t>(lutkern_row_bytes(wide.ggml_type, huge));
  expect(lutkern_dequantize(&wide, out, nullptr), LUTKERN_ERROR_VALUE,
         "dequantize: the weight is 1 x 1 x 8589934592, expected sizes below 2^31 on metal:0");
}

// ---- the end ----

// In the child of a process that used Metal nothing works, nothing hangs, and giving back does nothing.
void case_fork() {
  const Memory memory(kFirst, 64);
  ok(memory.status());
  void* stream = nullptr;
  void* event = nullptr;
  ok(lutkern_stream_create(kFirst, &stream));
  ok(lutkern_event_create(kFirst, &event));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    absent("Metal was used before this process was forked, expected a process that was started by spawn");
    ok(lutkern_device_free(kFirst, memory.data(), nullptr));
    ok(lutkern_stream_destroy(kFirst, stream));
    ok(lutkern_event_destroy(kFirst, event));
    exit(0);  // with the handlers of the end, as a program would
  }
  int status = 0;
  waitpid(child, &status, 0);
  need(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child");
  ok(lutkern_event_destroy(kFirst, event));
  ok(lutkern_stream_destroy(kFirst, stream));
}

// Objects that outlive main
struct AtEnd {
  void* memory = nullptr;
  ~AtEnd() {
    if (memory && lutkern_device_free(kFirst, memory, nullptr)) die("free at the end: %s", lutkern_last_error());
  }
};
AtEnd g_at_end;

// Work is queued, and the process ends.
void case_end() {
  ok(lutkern_device_alloc(kFirst, 64 * 4, nullptr, &g_at_end.memory));
  const Host host = host_weight("q8_0", 1, 4, 64);
  static const OnDevice weight = upload(host.tensor, LUTKERN_BLOCKS, kFirst);
  memset(g_at_end.memory, 0, 64 * 4);
  static const Memory out(kFirst, 16);
  const lutkern_matrix m = matrix(g_at_end.memory, 1, 64, kFirst);
  ok(lutkern_matvec(&weight.tensor, &m, out.floats(), nullptr));
  exit(0);
}

void case_names() {
  const int32_t iq1_m = format("iq1_m").ggml_type;
  const auto name = [](int32_t type, lutkern_operation op, lutkern_layout layout, int64_t tokens) {
    const char* n = lutkern_device_kernel(kFirst, type, op, layout, tokens);
    return std::string(n ? n : "none");
  };
  need(name(iq1_m, LUTKERN_MATVEC, LUTKERN_TILES, 1) == "matvec_iq1_m", "matvec");
  need(name(iq1_m, LUTKERN_MATMUL, LUTKERN_TILES, 8) == "matmul_small_iq1_m", "small");
  need(name(iq1_m, LUTKERN_MATMUL, LUTKERN_TILES, 9) == "matmul_large_iq1_m", "large");
  need(name(iq1_m, LUTKERN_MATMUL, LUTKERN_BLOCKS, 9) == "product_any_iq1_m", "blocks");
  need(name(iq1_m, LUTKERN_DEQUANTIZE, LUTKERN_TILES, 1) == "dequantize_iq1_m", "dequantize");
  need(name(format("q8_0").ggml_type, LUTKERN_MATVEC, LUTKERN_TILES, 1) == "none", "no tiles");
  need(name(iq1_m, LUTKERN_PACK, LUTKERN_TILES, 1) == "none", "pack");
}

// ---- processes ----

struct Case {
  const char* name;
  void (*run)();
  const char* settings = "";
  const char* library = LUTKERN_FAKE_LIBRARY;
};

const Case kCases[] = {
    {"present", case_present, "devices=2"},
    {"no_library", case_no_library, "", "/no/such/library.so"},
    {"no_functions", case_no_functions, "", LUTKERN_SIM_LIBRARY},
    {"no_class", case_no_class, "without=NSString"},
    {"no_device", case_no_device, "devices=0"},
    {"no_array", case_no_device, "fail=1"},
    {"old_device", case_old_device, "family=6"},
    {"own_memory", case_own_memory, "unified=0"},
    {"memory", case_memory, "devices=2,memory=4000000,buffer=3000000"},
    {"memory_late", case_memory, "devices=2,memory=4000000,buffer=3000000,seed=0"},
    {"wrap", case_wrap},
    {"wrap_late", case_wrap, "seed=0"},
    {"wrap_twice", case_wrap_twice, "seed=0"},
    {"wrap_fails", case_wrap_fails, "fail=3"},
    {"wrap_file", case_wrap_file, "seed=0"},
    {"repack", case_repack, "devices=2,seed=0"},
    {"repack_in_chunks", case_repack_in_chunks},
    {"late", case_late, "seed=0"},
    {"batches", case_batches, "seed=0"},
    {"products", case_products, "seed=0"},
    {"products_early", case_products, "seed=3"},
    {"few_threads", case_few_threads, "threads=64"},
    {"new_system", case_new_system, "macos=15"},
    {"dequantize", case_dequantize, "seed=0"},
    {"moe", case_moe, "seed=0"},
    {"moe_edges", case_moe_edges, "seed=5"},
    {"events", case_events, "seed=0"},
    {"events_early", case_events, "seed=4"},
    {"threads", case_threads, "seed=8"},
    {"compiler", case_compiler, "compile=program_source:1:1: error: no"},
    {"threadgroup_memory", case_threadgroup_memory, "shared=1024"},
    {"errors", case_errors, "devices=2"},
    {"fork", case_fork},
    {"end", case_end, "seed=0"},
    {"names", case_names},
};

bool run_case(const Case& c) {
  if (in_child({c.library, c.settings}, c.run)) return true;
  fprintf(stderr, "metal_host: case %s failed\n", c.name);
  return false;
}

// Each call that may fail does so once.
bool run_failures() {
  const std::string settings = "devices=2,seed=0";
  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) die("no pipe");
  int n = 0;
  const bool fine = in_child({LUTKERN_FAKE_LIBRARY, settings}, [&] { case_nothing_fails(pipe_ends[1]); });
  if (!fine || read(pipe_ends[0], &n, sizeof(n)) != sizeof(n)) return false;
  for (int i = 1; i <= n; ++i) {
    if (!in_child({LUTKERN_FAKE_LIBRARY, settings + ",fail=" + std::to_string(i)}, case_one_fails)) {
      fprintf(stderr, "metal_host: failing call %d of %d failed\n", i, n);
      return false;
    }
  }
  printf("metal_host: %d failing calls were told\n", n);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string wanted = argc > 1 ? argv[1] : "";
  bool fine = true;
  int n = 0;
  for (const Case& c : kCases) {
    if (!wanted.empty() && wanted != c.name) continue;
    fine = run_case(c) && fine;
    ++n;
  }
  if (wanted.empty() || wanted == "failures") {
    fine = run_failures() && fine;
    ++n;
  }
  if (n == 0) die("there is no case %s", wanted.c_str());
  if (fine) printf("metal_host: %d cases passed\n", n);
  return fine ? 0 : 1;
}
