// Operations on a device against those of the CPU: the same for CUDA and Metal, whose fakes run kernels as a device would.
//
// What the kernels compute is judged elsewhere; here the judge is the CPU, within the bound of quantised activations, so
// that a wrong pointer, a wrong size or a missing synchronisation shows.
#include <thread>

#include "device_layers.h"

// ---- layouts ----

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
    const std::string text =
        std::string("repack: out has the layout tiles, ") + name + " on " + place(0) + " has blocks only";
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
  expect(
      lutkern_repack_to(&device_tiles.tensor, LUTKERN_BLOCKS, kSecond, other_blocks.memory.data(),
                        other_blocks.memory.bytes(), nullptr),
      LUTKERN_ERROR_VALUE,
      ("repack: the weight is in tiles on " + place(0) + ", out is in blocks on " + place(1) + ", expected one layout")
          .c_str());
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

// ---- products ----

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

namespace {

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

}  // namespace

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
  expect(lutkern_moe(&args, nullptr), LUTKERN_ERROR_VALUE,
         ("moe: gate is on " + place(0) + ", up is on the CPU").c_str());
  args = layer.args(false, out.data());
  args.x.device = kFirst;
  expect(lutkern_moe(&args, nullptr), LUTKERN_ERROR_VALUE,
         ("moe: x is on " + place(0) + ", the weight is on the CPU").c_str());
}

// ---- streams and threads ----

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
