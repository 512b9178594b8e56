// The CUDA host over the fake driver: life cycle, every error path, fork, leaks, graphs, two devices, and each call of
// the driver failing in turn. What the kernels compute is judged elsewhere; here the judge is the CPU, within the bound
// of quantised activations, so that a wrong pointer, a wrong size or a missing synchronisation shows.
//
// Each case runs in a process of its own: a process has one driver, which reads its settings once.
#include <signal.h>
#include <sys/wait.h>

#include <thread>

#include "device_cuda.h"
#include "device_layers.h"

namespace {

// kKept: events and pinned buffers of the staging stay for the next operation.
constexpr int kKeptEvents = 2 * 2;  // of two devices

}  // namespace

void nothing_is_left(int tolerated) {
  finish();
  int left = 0;
  for (const char* what : {"arrays", "streams", "graphs", "contexts"}) {
    left += alive(what);
    if (left > tolerated) die("%d %s are left", alive(what), what);
  }
  if (alive("events") > kKeptEvents + tolerated) die("%d events are left", alive("events"));
  if (!fault().empty()) die("fault: %s", fault().c_str());
}

namespace {

// ---- the cases ----

void absent(const char* reason) {
  need(lutkern_device_count(LUTKERN_CUDA) == 0, "no device was expected");
  const char* text = lutkern_device_absent(LUTKERN_CUDA);
  if (!text || strcmp(text, reason) != 0) die("absent: '%s', expected '%s'", text ? text : "null", reason);
  void* p = nullptr;
  expect(lutkern_device_alloc(kFirst, 1, nullptr, &p), LUTKERN_ERROR_DEVICE,
         (std::string("device_alloc: ") + reason).c_str());
}

void case_present() {
  need(lutkern_device_count(LUTKERN_CUDA) == 2, "two devices");
  need(lutkern_device_absent(LUTKERN_CUDA) == nullptr, "no reason");
  need(lutkern_device_count(LUTKERN_METAL) == 0 && lutkern_device_absent(LUTKERN_METAL), "no Metal");
  lutkern_device_info info;
  ok(lutkern_get_device_info(kSecond, &info));
  need(strcmp(info.name, "Simulated device 1") == 0 && info.capability == 90 && info.processors == 4, "attributes");
  need(info.memory_bytes == 1 << 30 && info.free_bytes == 1 << 30, "memory");
  expect(lutkern_get_device_info(LUTKERN_CUDA + 2, &info), LUTKERN_ERROR_DEVICE,
         "device_info: cuda:2 does not exist, expected cuda:0 to cuda:1");
  expect(lutkern_get_device_info(LUTKERN_CPU, &info), LUTKERN_ERROR_VALUE,
         "device_info: the device is the CPU, expected a CUDA or Metal device");
  expect(lutkern_get_device_info(kNowhere, &info), LUTKERN_ERROR_VALUE,
         "device_info: the device is device 768, expected a CUDA or Metal device");
  expect(lutkern_get_device_info(kFirst, nullptr), LUTKERN_ERROR_VALUE, "device_info: out is null");
  nothing_is_left();
}

void case_two_old_devices() { absent("cuda:1 has compute capability 6.1, expected 7.5 or newer"); }
// The PTX is taken where the code is refused; where that is refused too, operations say so.
void case_refused_once() {
  const Memory memory(kFirst, 64);
  ok(memory.status());
}
void case_refused() {
  void* p = nullptr;
  expect(lutkern_device_alloc(kFirst, 64, nullptr, &p), LUTKERN_ERROR_DEVICE,
         "device_alloc: cuModuleLoadData failed: no kernel image is available for execution on the device "
         "(CUDA_ERROR_NO_BINARY_FOR_GPU)");
}
void case_no_device() { absent("the CUDA driver reports no device"); }
void case_old_driver() { absent("the CUDA driver is of version 11.3, expected 11.4 or newer"); }
void case_broken_driver() { absent("cuInit failed: unknown error (CUDA_ERROR_UNKNOWN)"); }
void case_no_library() {
  absent("no CUDA driver: LUTKERN_LIBCUDA names '/no/such/library.so', which could not be loaded");
}
void case_no_functions() { absent("the CUDA driver has no cuInit, expected version 11.4 or newer"); }

void case_memory() {
  void* p = nullptr;
  expect(lutkern_device_alloc(kFirst, 0, nullptr, &p), LUTKERN_ERROR_VALUE,
         "device_alloc: 0 bytes, expected at least 1");
  expect(lutkern_device_alloc(kFirst, 1, nullptr, nullptr), LUTKERN_ERROR_VALUE, "device_alloc: out is null");
  expect(lutkern_device_alloc(kFirst, size_t{1} << 31, nullptr, &p), LUTKERN_ERROR_MEMORY,
         "device_alloc: cuMemAllocFromPoolAsync failed: out of memory (CUDA_ERROR_OUT_OF_MEMORY)");
  ok(lutkern_device_free(kFirst, nullptr, nullptr));
  // More than two buffers of the staging, and not a multiple of one
  const size_t n = (size_t{20} << 20) + 12345;
  std::vector<uint8_t> sent(n);
  Random random;
  for (uint8_t& b : sent) b = static_cast<uint8_t>(random.bits());
  std::vector<uint8_t> got(n, 0);
  {
    const Memory a(kFirst, n);
    const Memory b(kFirst, n);
    const Memory c(kSecond, n);
    ok(a.status());
    ok(lutkern_device_copy(a.data(), kFirst, sent.data(), LUTKERN_CPU, n, nullptr));
    ok(lutkern_device_copy(b.data(), kFirst, a.data(), kFirst, n, nullptr));
    ok(lutkern_device_synchronize(kFirst, nullptr));
    ok(lutkern_device_copy(c.data(), kSecond, b.data(), kFirst, n, nullptr));
    ok(lutkern_device_copy(got.data(), LUTKERN_CPU, c.data(), kSecond, n, nullptr));
    need(got == sent, "bytes come back");
    need(alive("arrays") == 3, "three arrays");
    expect(lutkern_device_copy(got.data(), LUTKERN_CPU, sent.data(), kFirst, n, nullptr), LUTKERN_ERROR_DEVICE,
           "device_copy: cuMemcpyDtoHAsync_v2 failed: invalid argument (CUDA_ERROR_INVALID_VALUE)");
    expect(lutkern_device_copy(nullptr, kFirst, sent.data(), LUTKERN_CPU, n, nullptr), LUTKERN_ERROR_VALUE,
           "device_copy: to or from is null");
    ok(lutkern_device_copy(nullptr, kFirst, nullptr, LUTKERN_CPU, 0, nullptr));
    ok(lutkern_device_copy(got.data(), LUTKERN_CPU, sent.data(), LUTKERN_CPU, n, nullptr));
    expect(lutkern_device_free(kFirst, got.data(), nullptr), LUTKERN_ERROR_DEVICE,
           "device_free: cuMemFreeAsync failed: invalid argument (CUDA_ERROR_INVALID_VALUE)");
  }
  nothing_is_left();
}

void case_memory_without_pools() {
  void* p = nullptr;
  expect(lutkern_device_alloc(kFirst, size_t{1} << 31, nullptr, &p), LUTKERN_ERROR_MEMORY,
         "device_alloc: cuMemAlloc_v2 failed: out of memory (CUDA_ERROR_OUT_OF_MEMORY)");
  void* stream = nullptr;
  ok(lutkern_stream_create(kFirst, &stream));
  ok(lutkern_graph_begin(kFirst, stream));
  expect(lutkern_device_alloc(kFirst, 8, stream, &p), LUTKERN_ERROR_DEVICE,
         "device_alloc: cuda:0 has no memory pools, expected them where a stream is captured");
  void* graph = nullptr;
  ok(lutkern_graph_end(kFirst, stream, &graph));
  ok(lutkern_graph_destroy(kFirst, graph));
  ok(lutkern_stream_destroy(kFirst, stream));
  nothing_is_left();
}

void case_repack() {
  round_trip("iq1_m", 3, 40, 512);
  round_trip("iq2_xxs", 1, 32, 256);
  round_trip("q8_0", 2, 5, 96);
  nothing_is_left();
}

// A layer is kept for a graph, which runs on what its arrays hold at that time.
void case_graph() {
  {
    Layer layer("iq1_m", "iq2_xxs", "iq1_m", 1, 2);
    const LayerThere there(layer);
    void* stream = nullptr;
    void* graph = nullptr;
    ok(lutkern_stream_create(kFirst, &stream));
    lutkern_options options{};
    options.stream = stream;
    int32_t captured = -1;
    ok(lutkern_stream_capturing(kFirst, stream, &captured));
    need(captured == 0, "not captured");
    ok(lutkern_device_synchronize(kFirst, LUTKERN_ALL_STREAMS));
    ok(lutkern_graph_begin(kFirst, stream));
    ok(lutkern_stream_capturing(kFirst, stream, &captured));
    need(captured == 1, "captured");
    ok(lutkern_moe(&there.args, &options));
    std::vector<float> out(layer.numbers());
    const lutkern_moe_args staged = layer.args(true, out.data());
    expect(lutkern_moe(&staged, &options), LUTKERN_ERROR_DEVICE,
           "moe: the stream is captured, expected arrays on cuda:0: the CPU has no part in a graph");
    // Memory that dies during the capture stays until it has ended.
    void* dying = nullptr;
    ok(lutkern_device_alloc(kFirst, 64, nullptr, &dying));
    ok(lutkern_device_free(kFirst, dying, stream));
    ok(lutkern_graph_end(kFirst, stream, &graph));
    for (int turn = 0; turn < 3; ++turn) {
      for (float& v : layer.x) v = -0.75f * v;
      layer.ids[0] = (layer.ids[0] + 1) % 4;
      there.fill(layer);
      ok(lutkern_device_synchronize(kFirst, nullptr));
      ok(lutkern_graph_launch(kFirst, graph, stream));
      std::vector<float> expected(layer.numbers());
      const lutkern_moe_args here = layer.args(false, expected.data());
      ok(lutkern_moe(&here, nullptr));
      near(there.result(stream), expected, "graph");
    }
    ok(lutkern_graph_destroy(kFirst, graph));
    ok(lutkern_graph_destroy(kFirst, nullptr));
    ok(lutkern_stream_destroy(kFirst, stream));
    void* any = nullptr;
    ok(lutkern_device_alloc(kFirst, 64, nullptr, &any));
    ok(lutkern_device_free(kFirst, any, nullptr));  // and with it what was put off
  }
  expect(lutkern_graph_begin(kFirst, nullptr), LUTKERN_ERROR_VALUE,
         "graph_begin: the stream is null, expected one of lutkern_stream_create");
  void* graph = nullptr;
  expect(lutkern_graph_end(kFirst, nullptr, &graph), LUTKERN_ERROR_VALUE,
         "graph_end: the stream is null, expected one of lutkern_stream_create");
  expect(lutkern_graph_launch(kFirst, nullptr, nullptr), LUTKERN_ERROR_VALUE, "graph_launch: the graph is null");
  nothing_is_left();
}

// What LUTKERN_SIM_TRACE writes of a launch
void case_trace() {
  char folder[] = "/tmp/lutkern_trace_XXXXXX";
  need(mkdtemp(folder) != nullptr, "a folder");
  setenv("LUTKERN_SIM_TRACE", folder, 1);
  const Host host = host_weight("q8_0", 1, 4, 64);
  const OnDevice weight = upload(host.tensor, LUTKERN_BLOCKS, kFirst);
  const std::vector<float> x = floats(64);
  const lutkern_matrix m = matrix(x.data(), 1, 64, LUTKERN_CPU);
  float out[4];
  ok(lutkern_matvec(&weight.tensor, &m, out, nullptr));
  const std::string launch = std::string(folder) + "/launch_00000/";
  std::vector<std::string> texts;
  for (const char* name : {"launch.json", "args.bin", "before_0.bin", "before_1.bin", "after_0.bin", "after_1.bin"}) {
    FILE* file = fopen((launch + name).c_str(), "rb");
    if (!file) die("no %s", name);
    std::string text;
    for (int c = fgetc(file); c != EOF; c = fgetc(file)) text.push_back(static_cast<char>(c));
    fclose(file);
    remove((launch + name).c_str());
    texts.push_back(text);
  }
  rmdir(launch.c_str());
  rmdir(folder);
  need(texts[0].find("\"kernel\": \"product_any\"") != std::string::npos, "the name of the kernel");
  need(texts[2].size() == host.bytes.size(), "the weight");
  need(memcmp(texts[2].data(), host.bytes.data(), host.bytes.size()) == 0 && texts[2] == texts[4], "its bytes");
  need(texts[3] != texts[5], "the kernel has written");
}

// In the child of a process that used CUDA nothing works, nothing hangs, and giving back does nothing.
void case_fork() {
  const Memory memory(kFirst, 64);
  ok(memory.status());
  void* stream = nullptr;
  ok(lutkern_stream_create(kFirst, &stream));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    absent("CUDA was used before this process was forked, expected a process that was started by spawn");
    ok(lutkern_device_free(kFirst, memory.data(), nullptr));
    ok(lutkern_stream_destroy(kFirst, stream));
    exit(0);  // with the handlers of the end, as a program would
  }
  int status = 0;
  waitpid(child, &status, 0);
  need(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child");
  ok(lutkern_stream_destroy(kFirst, stream));
}

// Forked while another thread looks for the driver, which holds locks of its own then: the child does not touch it.
void case_fork_at_start() {
  std::thread first([] { need(lutkern_device_count(LUTKERN_CUDA) == 1, "the thread has a device"); });
  usleep(100000);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    lutkern_device_count(LUTKERN_CUDA);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  need(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child");
  first.join();
  need(lutkern_device_count(LUTKERN_CUDA) == 1, "the parent has a device");
}

// Objects that outlive main: the driver has gone before them.
struct AtEnd {
  void* memory = nullptr;
  ~AtEnd() {
    if (memory && lutkern_device_free(kFirst, memory, nullptr)) die("free at the end: %s", lutkern_last_error());
  }
};
AtEnd g_at_end;

void case_end() {
  ok(lutkern_device_alloc(kFirst, 64, nullptr, &g_at_end.memory));
  exit(0);
}

void case_names() {
  const int32_t iq1_m = format("iq1_m").ggml_type;
  const auto name = [](int32_t type, lutkern_operation op, lutkern_layout layout, int64_t tokens) {
    const char* n = lutkern_device_kernel(kFirst, type, op, layout, tokens);
    return std::string(n ? n : "none");
  };
  need(name(iq1_m, LUTKERN_MATVEC, LUTKERN_TILES, 1) == "matvec_iq1_m", "matvec");
  need(name(iq1_m, LUTKERN_MATMUL, LUTKERN_TILES, 1) == "matvec_iq1_m", "matmul of one");
  need(name(iq1_m, LUTKERN_MATMUL, LUTKERN_TILES, 8) == "matmul_small_iq1_m", "small");
  need(name(iq1_m, LUTKERN_MATMUL, LUTKERN_TILES, 9) == "matmul_large_iq1_m", "large");
  need(name(iq1_m, LUTKERN_MATMUL, LUTKERN_BLOCKS, 9) == "product_any", "blocks");
  need(name(iq1_m, LUTKERN_DEQUANTIZE, LUTKERN_TILES, 1) == "dequantize_iq1_m", "dequantize");
  need(name(iq1_m, LUTKERN_MOE, LUTKERN_TILES, 32) == "moe_up_iq1_m", "moe");
  need(name(iq1_m, LUTKERN_MOE, LUTKERN_TILES, 33) == "moe_up_batch_iq1_m", "batch");
  need(name(format("q8_0").ggml_type, LUTKERN_MOE, LUTKERN_BLOCKS, 1) == "moe_up_any", "any");
  need(name(format("q8_0").ggml_type, LUTKERN_MATVEC, LUTKERN_TILES, 1) == "none", "no tiles");
  need(name(iq1_m, LUTKERN_PACK, LUTKERN_TILES, 1) == "none", "pack");
  need(name(3000, LUTKERN_MATVEC, LUTKERN_TILES, 1) == "none", "unknown");
}

// A device with too little shared memory for a kernel takes the one for every format.
void case_little_shared_memory() {
  products("iq1_m", LUTKERN_TILES, 1, false);
  nothing_is_left();
}

void case_errors() {
  const Host host = host_weight("q8_0", 1, 4, 64);
  const OnDevice weight = upload(host.tensor, LUTKERN_BLOCKS, kFirst);
  const std::vector<float> x = floats(64);
  float out[4];
  lutkern_matrix m = matrix(x.data(), 1, 64, kSecond);
  expect(lutkern_matvec(&weight.tensor, &m, out, nullptr), LUTKERN_ERROR_VALUE,
         "matvec: x is on cuda:1, the weight is on cuda:0");
  lutkern_tensor t = weight.tensor;
  t.device = LUTKERN_CUDA + 7;
  m.device = LUTKERN_CPU;
  expect(lutkern_matvec(&t, &m, out, nullptr), LUTKERN_ERROR_DEVICE,
         "matvec: cuda:7 does not exist, expected cuda:0 to cuda:1");
  t.device = kNowhere;
  expect(lutkern_matvec(&t, &m, out, nullptr), LUTKERN_ERROR_VALUE,
         "matvec: the device is device 768, expected a CUDA or Metal device");
  m.device = kFirst;
  expect(lutkern_matvec(&host.tensor, &m, out, nullptr), LUTKERN_ERROR_VALUE,
         "matvec: x is on cuda:0, the weight is on the CPU");
  int8_t q[64];
  float scale[2];
  expect(lutkern_quantize_activations(&m, q, scale), LUTKERN_ERROR_VALUE,
         "quantize_activations: x is on cuda:0, expected the CPU");
  uint8_t packed[68];
  expect(lutkern_pack(host.tensor.ggml_type, 1, &m, nullptr, packed, sizeof(packed), nullptr, nullptr),
         LUTKERN_ERROR_VALUE, "pack: w is on cuda:0, expected the CPU");
  expect(lutkern_repack(&weight.tensor, LUTKERN_BLOCKS, weight.memory.data(), 5, nullptr), LUTKERN_ERROR_VALUE,
         "repack: out has 5 bytes, expected 272");
  expect(lutkern_dequantize_to(&weight.tensor, static_cast<lutkern_dtype>(3), weight.memory.data(), nullptr),
         LUTKERN_ERROR_TYPE, "dequantize: out has the dtype 3, expected float32, float16 or bfloat16");
  int64_t huge = int64_t{1} << 33;
  lutkern_tensor wide{host.tensor.ggml_type, LUTKERN_BLOCKS, 1, 1, huge, weight.memory.data(), 0, kFirst};
  wide.nbytes = static_cast<size_t>(lutkern_row_bytes(wide.ggml_type, huge));
  expect(lutkern_dequantize(&wide, out, nullptr), LUTKERN_ERROR_VALUE,
         "dequantize: the weight is 1 x 1 x 8589934592, expected sizes below 2^31 on cuda:0");
  expect(lutkern_device_synchronize(kFirst, packed), LUTKERN_ERROR_DEVICE,
         "synchronize: cuStreamSynchronize failed: invalid resource handle (CUDA_ERROR_INVALID_HANDLE)");
}

// ---- processes ----

struct Case {
  const char* name;
  void (*run)();
  const char* settings;
  const char* library;
};

const Case kCases[] = {
    {"present", case_present, "devices=2", LUTKERN_FAKE_LIBRARY},
    {"two_old_devices", case_two_old_devices, "devices=2,capability=61", LUTKERN_FAKE_LIBRARY},
    {"refused_once", case_refused_once, "refuse=1", LUTKERN_FAKE_LIBRARY},
    {"refused", case_refused, "refuse=2", LUTKERN_FAKE_LIBRARY},
    {"no_device", case_no_device, "devices=0", LUTKERN_FAKE_LIBRARY},
    {"old_driver", case_old_driver, "version=11030", LUTKERN_FAKE_LIBRARY},
    {"broken_driver", case_broken_driver, "init=999", LUTKERN_FAKE_LIBRARY},
    {"no_library", case_no_library, "", "/no/such/library.so"},
    {"no_functions", case_no_functions, "", LUTKERN_SIM_LIBRARY},
    {"memory", case_memory, "devices=2", LUTKERN_FAKE_LIBRARY},
    {"memory_eagerly", case_memory, "devices=2,seed=3", LUTKERN_FAKE_LIBRARY},
    {"memory_without_pools", case_memory_without_pools, "pools=0", LUTKERN_FAKE_LIBRARY},
    {"repack", case_repack, "devices=2,seed=0", LUTKERN_FAKE_LIBRARY},
    {"repack_in_chunks", case_repack_in_chunks, "", LUTKERN_FAKE_LIBRARY},
    {"repack_without_pools", case_repack, "devices=2,pools=0", LUTKERN_FAKE_LIBRARY},
    {"products", case_products, "seed=0", LUTKERN_FAKE_LIBRARY},
    {"products_without_pools", case_products, "pools=0,seed=2", LUTKERN_FAKE_LIBRARY},
    {"little_shared_memory", case_little_shared_memory, "shared=49152", LUTKERN_FAKE_LIBRARY},
    {"dequantize", case_dequantize, "seed=0", LUTKERN_FAKE_LIBRARY},
    {"moe", case_moe, "seed=0", LUTKERN_FAKE_LIBRARY},
    {"moe_edges", case_moe_edges, "seed=5", LUTKERN_FAKE_LIBRARY},
    {"graph", case_graph, "seed=0", LUTKERN_FAKE_LIBRARY},
    {"graph_eagerly", case_graph, "seed=4", LUTKERN_FAKE_LIBRARY},
    {"events", case_events, "seed=0", LUTKERN_FAKE_LIBRARY},
    {"threads", case_threads, "seed=8", LUTKERN_FAKE_LIBRARY},
    {"trace", case_trace, "", LUTKERN_FAKE_LIBRARY},
    {"fork", case_fork, "", LUTKERN_FAKE_LIBRARY},
    {"fork_at_start", case_fork_at_start, "slow=400", LUTKERN_FAKE_LIBRARY},
    {"end", case_end, "", LUTKERN_FAKE_LIBRARY},
    {"names", case_names, "", LUTKERN_FAKE_LIBRARY},
    {"errors", case_errors, "devices=2", LUTKERN_FAKE_LIBRARY},
};

bool run_case(const Case& c) {
  if (in_child({c.library, c.settings}, c.run)) return true;
  fprintf(stderr, "device: case %s failed\n", c.name);
  return false;
}

// Each call of the driver fails once, with memory pools and without
bool run_failures() {
  int total = 0;
  for (const char* settings : {"devices=2,seed=0", "devices=2,seed=6,pools=0"}) {
    int pipe_ends[2];
    if (pipe(pipe_ends) != 0) die("no pipe");
    int n = 0;
    const bool fine = in_child({LUTKERN_FAKE_LIBRARY, settings}, [&] { case_nothing_fails(pipe_ends[1]); });
    if (!fine || read(pipe_ends[0], &n, sizeof(n)) != sizeof(n)) return false;
    for (int i = 1; i <= n; ++i) {
      const std::string failing = std::string(settings) + ",fail=" + std::to_string(i);
      if (!in_child({LUTKERN_FAKE_LIBRARY, failing}, case_one_fails)) {
        fprintf(stderr, "device: failing call %d of %d failed, settings %s\n", i, n, settings);
        return false;
      }
    }
    total += n;
  }
  printf("device: %d failing calls were told\n", total);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string wanted = argc > 1 ? argv[1] : "";
  bool fine = true;
  int count = 0;
  for (const Case& c : kCases) {
    if (!wanted.empty() && wanted != c.name) continue;
    fine = run_case(c) && fine;
    ++count;
  }
  if (wanted.empty() || wanted == "failures") {
    fine = run_failures() && fine;
    ++count;
  }
  if (count == 0) die("there is no case %s", wanted.c_str());
  if (fine) printf("device: %d cases passed\n", count);
  return fine ? 0 : 1;
}
