// The CUDA host over the fake driver: life cycle, every error path, fork, leaks, graphs, two devices, and each call of
// the driver failing in turn. What the kernels compute is judged elsewhere; here the judge is the CPU, within the bound
// of quantised activations, so that a wrong pointer, a wrong size or a missing synchronisation shows.
//
// Each case runs in a process of its own: a process has one driver, which reads its settings once.
#include <signal.h>
#include <sys/wait.h>

#include <thread>

#include "device_support.h"

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

void round_trip(const char* name, int64_t experts, int64_t rows, int64_t cols) {
  const Host host = host_weight(name, experts, rows, cols);
  const lutkern_tensor& t = host.tensor;
  std::vector<uint8_t> got(host.bytes.size());
  const auto back = [&](const lutkern_tensor& from) {
    memset(got.data(), 0, got.size());
    ok(lutkern_repack_to(&from, LUTKERN_BLOCKS, LUTKERN_CPU, got.data(), got.size(), nullptr));
    need(got == host.bytes, "the blocks come back");
  };
  const OnDevice blocks = upload(t, LUTKERN_BLOCKS, kFirst);
  back(blocks.tensor);
  // The CPU's tiles, up and down
  std::vector<uint8_t> tiles(
      static_cast<size_t>(lutkern_tensor_bytes(t.ggml_type, LUTKERN_TILES, experts, rows, cols)));
  ok(lutkern_repack(&t, LUTKERN_TILES, tiles.data(), tiles.size(), nullptr));
  lutkern_tensor cpu_tiles;
  ok(lutkern_tensor_init(&cpu_tiles, t.ggml_type, LUTKERN_TILES, experts, rows, cols, tiles.data(), tiles.size()));
  back(upload(cpu_tiles, LUTKERN_BLOCKS, kFirst).tensor);
  std::vector<uint8_t> tiles_back(tiles.size(), 0xa5);
  ok(lutkern_repack_to(&blocks.tensor, LUTKERN_TILES, LUTKERN_CPU, tiles_back.data(), tiles_back.size(), nullptr));
  need(tiles_back == tiles, "the tiles of the CPU come back");
  if (!lutkern_device_has_tiles(kFirst, t.ggml_type)) {
    need(lutkern_device_tensor_bytes(kFirst, t.ggml_type, LUTKERN_TILES, experts, rows, cols) == 0, "no tiles");
    const std::string text = std::string("repack: out has the layout tiles, ") + name + " on cuda:0 has blocks only";
    expect(lutkern_repack_to(&t, LUTKERN_TILES, kFirst, blocks.memory.data(), 1, nullptr), LUTKERN_ERROR_VALUE,
           text.c_str());
    return;
  }
  const OnDevice device_tiles = upload(t, LUTKERN_TILES, kFirst);
  back(device_tiles.tensor);
  back(upload(cpu_tiles, LUTKERN_TILES, kFirst).tensor);
  // On the device, both ways
  const OnDevice again = device_weight(t, LUTKERN_BLOCKS, kFirst);
  ok(lutkern_repack(&device_tiles.tensor, LUTKERN_BLOCKS, again.memory.data(), again.memory.bytes(), nullptr));
  back(again.tensor);
  const OnDevice tiles_again = device_weight(t, LUTKERN_TILES, kFirst);
  ok(lutkern_repack(&again.tensor, LUTKERN_TILES, tiles_again.memory.data(), tiles_again.memory.bytes(), nullptr));
  ok(lutkern_device_synchronize(kFirst, nullptr));
  back(tiles_again.tensor);
  // One expert, and the other device
  lutkern_tensor last;
  ok(lutkern_tensor_expert(&device_tiles.tensor, experts - 1, &last));
  std::vector<uint8_t> one(host.bytes.size() / static_cast<size_t>(experts));
  ok(lutkern_repack_to(&last, LUTKERN_BLOCKS, LUTKERN_CPU, one.data(), one.size(), nullptr));
  need(memcmp(one.data(), host.bytes.data() + host.bytes.size() - one.size(), one.size()) == 0, "the last expert");
  OnDevice other = device_weight(t, LUTKERN_TILES, kSecond);
  ok(lutkern_repack_to(&device_tiles.tensor, LUTKERN_TILES, kSecond, other.memory.data(), other.memory.bytes(),
                       nullptr));
  back(other.tensor);
  OnDevice other_blocks = device_weight(t, LUTKERN_BLOCKS, kSecond);
  expect(lutkern_repack_to(&device_tiles.tensor, LUTKERN_BLOCKS, kSecond, other_blocks.memory.data(),
                           other_blocks.memory.bytes(), nullptr),
         LUTKERN_ERROR_VALUE,
         "repack: the weight is in tiles on cuda:0, out is in blocks on cuda:1, expected one layout");
}

void case_repack() {
  round_trip("iq1_m", 3, 40, 512);
  round_trip("iq2_xxs", 1, 32, 256);
  round_trip("q8_0", 2, 5, 96);
  nothing_is_left();
}

// Larger than a chunk: rows of an expert are cut, and experts are put together
void case_repack_in_chunks() {
  const lutkern_format f = format("iq1_m");
  for (const auto& shape : {std::vector<int64_t>{1, 8200, 5120}, std::vector<int64_t>{70, 260, 2560}}) {
    const int64_t rows = shape[1];
    const int64_t cols = shape[2];
    std::vector<uint8_t> bytes(static_cast<size_t>(shape[0] * rows * lutkern_row_bytes(f.ggml_type, cols)));
    Random random;
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.bits());
    need(bytes.size() > size_t{8} << 20, "larger than a chunk");
    lutkern_tensor t;
    ok(lutkern_tensor_init(&t, f.ggml_type, LUTKERN_BLOCKS, shape[0], rows, cols, bytes.data(), bytes.size()));
    const OnDevice tiles = upload(t, LUTKERN_TILES, kFirst);
    std::vector<uint8_t> got(bytes.size());
    ok(lutkern_repack_to(&tiles.tensor, LUTKERN_BLOCKS, LUTKERN_CPU, got.data(), got.size(), nullptr));
    need(got == bytes, "the blocks come back");
  }
  nothing_is_left();
}

// x and out on the CPU, on the device, and on a stream: the same numbers as the CPU's
void products(const char* name, lutkern_layout layout, int64_t tokens, bool exact) {
  const int64_t rows = 70;
  const int64_t cols = 512;
  const Host host = host_weight(name, 1, rows, cols);
  const OnDevice weight = upload(host.tensor, layout, kFirst);
  const std::vector<float> x = floats(tokens * cols);
  lutkern_options options{};
  options.exact = exact;
  std::vector<float> expected(static_cast<size_t>(tokens * rows));
  const lutkern_matrix on_cpu = matrix(x.data(), tokens, cols, LUTKERN_CPU);
  ok(lutkern_matmul(&host.tensor, &on_cpu, expected.data(), &options));
  std::vector<float> got(expected.size(), -1.0f);
  ok(lutkern_matmul(&weight.tensor, &on_cpu, got.data(), &options));
  near(got, expected, "x on the CPU");
  // Some rows: the others stay
  lutkern_options some = options;
  some.row_begin = 3;
  some.row_end = 50;
  std::vector<float> partly(expected.size(), 7.0f);
  ok(lutkern_matmul(&weight.tensor, &on_cpu, partly.data(), &some));
  for (size_t i = 0; i < partly.size(); ++i) {
    const size_t row = i % static_cast<size_t>(rows);
    if (row >= 3 && row < 50 ? partly[i] != got[i] : partly[i] != 7.0f) die("row %zu of some rows", row);
  }
  void* stream = nullptr;
  ok(lutkern_stream_create(kFirst, &stream));
  {
    const Memory x_there(kFirst, x.size() * sizeof(float));
    const Memory out_there(kFirst, expected.size() * sizeof(float));
    ok(lutkern_device_copy(x_there.data(), kFirst, x.data(), LUTKERN_CPU, x_there.bytes(), nullptr));
    options.stream = stream;
    const lutkern_matrix m = matrix(x_there.data(), tokens, cols, kFirst);
    ok(lutkern_device_synchronize(kFirst, nullptr));
    ok(lutkern_matmul(&weight.tensor, &m, out_there.floats(), &options));
    std::vector<float> there(expected.size());
    ok(lutkern_device_copy(there.data(), LUTKERN_CPU, out_there.data(), kFirst, out_there.bytes(), stream));
    need(memcmp(there.data(), got.data(), out_there.bytes()) == 0, "the same numbers wherever x is");
  }
  ok(lutkern_stream_destroy(kFirst, stream));
}

void case_products() {
  products("iq1_m", LUTKERN_TILES, 1, false);
  products("iq1_m", LUTKERN_TILES, 5, false);
  products("iq1_m", LUTKERN_TILES, 20, false);
  products("iq1_m", LUTKERN_TILES, 3, true);
  products("iq2_xxs", LUTKERN_BLOCKS, 2, false);
  products("q8_0", LUTKERN_BLOCKS, 1, false);
  products("f16", LUTKERN_BLOCKS, 2, false);
  nothing_is_left();
}

void case_dequantize() {
  for (const char* name : {"iq1_m", "q4_k"}) {
    const int64_t n = 2 * 40 * 256;
    const Host host = host_weight(name, 2, 40, 256);
    const lutkern_layout layout =
        lutkern_device_has_tiles(kFirst, host.tensor.ggml_type) ? LUTKERN_TILES : LUTKERN_BLOCKS;
    const OnDevice weight = upload(host.tensor, layout, kFirst);
    for (const lutkern_dtype dtype : {LUTKERN_F32, LUTKERN_F16, LUTKERN_BF16}) {
      const size_t bytes = static_cast<size_t>(n) * (dtype == LUTKERN_F32 ? 4 : 2);
      std::vector<uint8_t> expected(bytes);
      std::vector<uint8_t> got(bytes);
      ok(lutkern_dequantize_to(&host.tensor, dtype, expected.data(), nullptr));
      const Memory out(kFirst, bytes);
      ok(lutkern_dequantize_to(&weight.tensor, dtype, out.data(), nullptr));
      ok(lutkern_device_copy(got.data(), LUTKERN_CPU, out.data(), kFirst, bytes, nullptr));
      need(got == expected, "equal to the bit");
    }
  }
  nothing_is_left();
}

// ---- layers of experts ----

struct Layer {
  Host gate, up, down;
  OnDevice gate_there, up_there, down_there;
  std::vector<float> x;
  std::vector<int32_t> ids;
  std::vector<float> weights;
  int64_t tokens, k;

  static constexpr int64_t kExperts = 4, kHidden = 256, kInter = 288;

  Layer(const char* gate_format, const char* up_format, const char* down_format, int64_t n_tokens, int64_t slots)
      : gate(host_weight(gate_format, kExperts, kInter, kHidden)),
        up(host_weight(up_format, kExperts, kInter, kHidden)),
        down(host_weight(down_format, kExperts, kHidden, kInter)),
        gate_there(upload(gate.tensor, best(gate), kFirst)),
        up_there(upload(up.tensor, best(up), kFirst)),
        down_there(upload(down.tensor, best(down), kFirst)),
        x(floats(n_tokens * kHidden)),
        weights(floats(n_tokens * slots)),
        tokens(n_tokens),
        k(slots) {
    Random random;
    for (int64_t i = 0; i < tokens * k; ++i) ids.push_back(static_cast<int32_t>(random.bits() % kExperts));
  }

  static lutkern_layout best(const Host& h) {
    return lutkern_device_has_tiles(kFirst, h.tensor.ggml_type) ? LUTKERN_TILES : LUTKERN_BLOCKS;
  }

  lutkern_moe_args args(bool there, float* out) const {
    lutkern_moe_args a{};
    a.gate = there ? &gate_there.tensor : &gate.tensor;
    a.up = there ? &up_there.tensor : &up.tensor;
    a.down = there ? &down_there.tensor : &down.tensor;
    a.x = matrix(x.data(), tokens, kHidden, LUTKERN_CPU);
    a.expert_ids = ids.data();
    a.expert_weights = weights.data();
    a.k = k;
    a.activation = LUTKERN_ACTIVATION_SILU;
    a.out = out;
    return a;
  }
  size_t numbers() const { return static_cast<size_t>(tokens * kHidden); }
};

// All arrays of a layer on the device
struct LayerThere {
  Memory x, ids, weights, out;
  lutkern_moe_args args;

  explicit LayerThere(const Layer& layer)
      : x(kFirst, layer.x.size() * 4),
        ids(kFirst, layer.ids.size() * 4),
        weights(kFirst, layer.weights.size() * 4),
        out(kFirst, layer.numbers() * 4),
        args(layer.args(true, out.floats())) {
    fill(layer);
    args.x = matrix(x.data(), layer.tokens, Layer::kHidden, kFirst);
    args.expert_ids = static_cast<const int32_t*>(ids.data());
    args.expert_weights = weights.floats();
  }
  void fill(const Layer& layer) const {
    ok(lutkern_device_copy(x.data(), kFirst, layer.x.data(), LUTKERN_CPU, x.bytes(), nullptr));
    ok(lutkern_device_copy(ids.data(), kFirst, layer.ids.data(), LUTKERN_CPU, ids.bytes(), nullptr));
    ok(lutkern_device_copy(weights.data(), kFirst, layer.weights.data(), LUTKERN_CPU, weights.bytes(), nullptr));
  }
  std::vector<float> result(void* stream) const {
    std::vector<float> got(out.bytes() / 4);
    ok(lutkern_device_copy(got.data(), LUTKERN_CPU, out.data(), kFirst, out.bytes(), stream));
    return got;
  }
};

void layer_agrees(const Layer& layer, bool exact) {
  lutkern_options options{};
  options.exact = exact;
  std::vector<float> expected(layer.numbers());
  std::vector<float> got(layer.numbers(), -1.0f);
  const lutkern_moe_args here = layer.args(false, expected.data());
  const lutkern_moe_args staged = layer.args(true, got.data());
  ok(lutkern_moe(&here, &options));
  ok(lutkern_moe(&staged, &options));
  near(got, expected, "moe");
  const LayerThere there(layer);
  ok(lutkern_moe(&there.args, &options));
  need(there.result(nullptr) == got, "the same numbers wherever x is");
}

void case_moe() {
  layer_agrees(Layer("iq1_m", "iq1_m", "iq1_m", 2, 2), false);
  layer_agrees(Layer("iq1_m", "iq2_xxs", "iq3_xxs", 1, 3), false);
  layer_agrees(Layer("iq1_m", "iq2_xxs", "iq1_m", 20, 2), false);
  layer_agrees(Layer("iq1_m", "iq1_m", "q4_k", 1, 2), false);
  layer_agrees(Layer("iq1_m", "q8_0", "iq1_m", 1, 2), false);
  layer_agrees(Layer("iq1_m", "iq1_m", "f16", 1, 2), false);
  layer_agrees(Layer("iq1_m", "iq1_m", "iq1_m", 1, 2), true);
  nothing_is_left();
}

void case_moe_edges() {
  Layer layer("iq1_m", "iq1_m", "iq1_m", 2, 2);
  std::vector<float> out(layer.numbers(), 1.0f);
  lutkern_moe_args args = layer.args(true, out.data());
  args.k = 0;
  ok(lutkern_moe(&args, nullptr));
  for (const float v : out) need(v == 0.0f, "no pairs give zeros");
  {
    LayerThere there(layer);
    there.args.k = 0;
    ok(lutkern_moe(&there.args, nullptr));
    for (const float v : there.result(nullptr)) need(v == 0.0f, "no pairs give zeros there too");
  }
  // What lives elsewhere: the sum of two halves is the whole, up to its roundings.
  layer.ids = {0, 1, 2, 3};
  args = layer.args(true, out.data());
  args.partial = 1;
  std::vector<float> whole(layer.numbers());
  lutkern_moe_args all = layer.args(false, whole.data());
  ok(lutkern_moe(&all, nullptr));
  std::vector<float> sum(layer.numbers(), 0.0f);
  for (const std::vector<int32_t>& half : {std::vector<int32_t>{0, -1, -1, 3}, std::vector<int32_t>{-1, 1, 2, -1}}) {
    args.expert_ids = half.data();
    ok(lutkern_moe(&args, nullptr));
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += out[i];
  }
  near(sum, whole, "halves");
  args.partial = 0;
  const int32_t wrong[] = {0, 1, -1, 2};
  args.expert_ids = wrong;
  expect(lutkern_moe(&args, nullptr), LUTKERN_ERROR_VALUE, "moe: expert_ids[1, 0] is -1, expected 0 to 3");
  args.up = &layer.up.tensor;
  expect(lutkern_moe(&args, nullptr), LUTKERN_ERROR_VALUE, "moe: gate is on cuda:0, up is on the CPU");
  args = layer.args(false, out.data());
  args.x.device = kFirst;
  expect(lutkern_moe(&args, nullptr), LUTKERN_ERROR_VALUE, "moe: x is on cuda:0, the weight is on the CPU");
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

void case_events() {
  void* a = nullptr;
  void* b = nullptr;
  void* begin = nullptr;
  void* end = nullptr;
  ok(lutkern_stream_create(kFirst, &a));
  ok(lutkern_stream_create(kFirst, &b));
  ok(lutkern_event_create(kFirst, &begin));
  ok(lutkern_event_create(kFirst, &end));
  const Host host = host_weight("iq1_m", 1, 64, 256);
  const std::vector<float> x = floats(256);
  {
    const OnDevice weight = upload(host.tensor, LUTKERN_TILES, kFirst);
    const Memory x_there(kFirst, x.size() * 4);
    const Memory y(kFirst, 64 * 4);
    const Memory copy(kFirst, 64 * 4);
    ok(lutkern_device_copy(x_there.data(), kFirst, x.data(), LUTKERN_CPU, x_there.bytes(), nullptr));
    const lutkern_matrix m = matrix(x_there.data(), 1, 256, kFirst);
    lutkern_options options{};
    options.stream = a;
    ok(lutkern_event_record(kFirst, begin, a));
    ok(lutkern_matvec(&weight.tensor, &m, y.floats(), &options));
    ok(lutkern_event_record(kFirst, end, a));
    ok(lutkern_event_wait(kFirst, end, b));
    ok(lutkern_device_copy(copy.data(), kFirst, y.data(), kFirst, y.bytes(), b));
    std::vector<float> got(64);
    ok(lutkern_device_copy(got.data(), LUTKERN_CPU, copy.data(), kFirst, copy.bytes(), b));
    std::vector<float> expected(64);
    const lutkern_matrix here = matrix(x.data(), 1, 256, LUTKERN_CPU);
    ok(lutkern_matvec(&host.tensor, &here, expected.data(), nullptr));
    near(got, expected, "after the event");
    float milliseconds = -1.0f;
    ok(lutkern_event_elapsed(kFirst, begin, end, &milliseconds));
    need(milliseconds > 0.0f, "time has passed");
  }
  expect(lutkern_event_record(kFirst, nullptr, a), LUTKERN_ERROR_VALUE, "event_record: the event is null");
  expect(lutkern_event_wait(kFirst, nullptr, a), LUTKERN_ERROR_VALUE, "event_wait: the event is null");
  for (void* e : {begin, end}) ok(lutkern_event_destroy(kFirst, e));
  for (void* s : {a, b}) ok(lutkern_stream_destroy(kFirst, s));
  nothing_is_left();
}

// Operations of several threads share the staging, the functions and the memory of the device.
void case_threads() {
  const Host host = host_weight("iq1_m", 1, 40, 256);
  const std::vector<float> x = floats(3 * 256);
  const lutkern_matrix m = matrix(x.data(), 3, 256, LUTKERN_CPU);
  std::vector<float> expected(3 * 40);
  std::vector<std::vector<float>> got(4, std::vector<float>(expected.size()));
  std::vector<std::thread> threads;
  for (std::vector<float>& out : got) {
    threads.emplace_back([&] {
      const OnDevice weight = upload(host.tensor, LUTKERN_TILES, kFirst);
      for (int turn = 0; turn < 3; ++turn) ok(lutkern_matmul(&weight.tensor, &m, out.data(), nullptr));
    });
  }
  for (std::thread& t : threads) t.join();
  ok(lutkern_matmul(&host.tensor, &m, expected.data(), nullptr));
  for (const std::vector<float>& out : got) {
    near(out, expected, "a thread");
    need(out == got[0], "every thread has the same");
  }
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
    {"end", case_end, "", LUTKERN_FAKE_LIBRARY},
    {"names", case_names, "", LUTKERN_FAKE_LIBRARY},
    {"errors", case_errors, "devices=2", LUTKERN_FAKE_LIBRARY},
};

// True if the child did what it should.
template <class Run>
bool in_child(const std::string& settings, const char* library, Run run) {
  fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    setenv("LUTKERN_LIBCUDA", library, 1);
    setenv("LUTKERN_FAKE_CUDA", settings.c_str(), 1);
    alarm(200);
    run();
    fflush(nullptr);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) fprintf(stderr, "signal %d\n", WTERMSIG(status));
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool run_case(const Case& c) {
  if (in_child(c.settings, c.library, c.run)) return true;
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
    const bool fine = in_child(settings, LUTKERN_FAKE_LIBRARY, [&] { case_nothing_fails(pipe_ends[1]); });
    if (!fine || read(pipe_ends[0], &n, sizeof(n)) != sizeof(n)) return false;
    for (int i = 1; i <= n; ++i) {
      const std::string failing = std::string(settings) + ",fail=" + std::to_string(i);
      if (!in_child(failing, LUTKERN_FAKE_LIBRARY, case_one_fails)) {
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
