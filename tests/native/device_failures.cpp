// Each call of the driver fails once: a text that names it, no crash, nothing left behind.
#include "device_cuda.h"

namespace {

// A little of everything; the first error ends it. Returns its text, "" if all went well.
std::string all_operations() {
  std::string text;
  const auto step = [&](lutkern_status status) {
    if (status && text.empty()) text = lutkern_last_error();
    return text.empty();
  };
  if (lutkern_device_count(LUTKERN_CUDA) == 0) return lutkern_device_absent(LUTKERN_CUDA);
  const Host host = host_weight("iq1_m", 2, 32, 256);
  void* stream = nullptr;
  void* event = nullptr;
  void* graph = nullptr;
  lutkern_device_info info;
  const int64_t n = lutkern_device_tensor_bytes(kFirst, host.tensor.ggml_type, LUTKERN_TILES, 2, 32, 256);
  void* weight = nullptr;
  void* x_there = nullptr;
  void* y_there = nullptr;
  void* other = nullptr;
  const std::vector<float> x = floats(20 * 256);
  std::vector<float> y(20 * 32);
  std::vector<uint8_t> back(host.bytes.size());
  lutkern_tensor t{};
  lutkern_tensor one{};
  lutkern_options options{};
  const lutkern_matrix m = matrix(x.data(), 20, 256, LUTKERN_CPU);
  // Many tokens take scratch, which a captured stream can have from a pool only.
  const int64_t captured_tokens = strstr(getenv("LUTKERN_FAKE_CUDA"), "pools=0") ? 5 : 20;
  const auto there = [&] { return matrix(x_there, captured_tokens, 256, kFirst); };
  const auto matmul_there = [&] {
    const lutkern_matrix mt = there();
    return lutkern_matmul(&one, &mt, static_cast<float*>(y_there), &options);
  };
  step(lutkern_get_device_info(kFirst, &info)) && step(lutkern_stream_create(kFirst, &stream)) &&
      step(lutkern_event_create(kFirst, &event)) &&
      step(lutkern_device_alloc(kFirst, static_cast<size_t>(n), nullptr, &weight)) &&
      step(lutkern_device_alloc(kFirst, x.size() * 4, nullptr, &x_there)) &&
      step(lutkern_device_alloc(kFirst, y.size() * 4, nullptr, &y_there)) &&
      step(lutkern_device_alloc(kSecond, 64, nullptr, &other)) &&
      step(lutkern_repack_to(&host.tensor, LUTKERN_TILES, kFirst, weight, static_cast<size_t>(n), nullptr)) &&
      step(lutkern_device_tensor_init(&t, kFirst, host.tensor.ggml_type, LUTKERN_TILES, 2, 32, 256, weight,
                                      static_cast<size_t>(n))) &&
      step(lutkern_repack_to(&t, LUTKERN_BLOCKS, LUTKERN_CPU, back.data(), back.size(), nullptr)) &&
      step(lutkern_tensor_expert(&t, 1, &one)) && step(lutkern_matmul(&one, &m, y.data(), nullptr)) &&
      step(lutkern_device_copy(x_there, kFirst, x.data(), LUTKERN_CPU, x.size() * 4, nullptr)) &&
      step(lutkern_device_copy(other, kSecond, x_there, kFirst, 64, nullptr)) &&
      step(lutkern_device_synchronize(kSecond, nullptr)) && step(lutkern_device_synchronize(kFirst, nullptr));
  if (text.empty()) {
    options.stream = stream;
    if (step(lutkern_graph_begin(kFirst, stream))) {
      step(matmul_there());
      // A capture is ended in any case: otherwise the stream stays in it.
      step(lutkern_graph_end(kFirst, stream, &graph));
      for (int turn = 0; turn < 2; ++turn) {
        int32_t captured = 0;
        step(lutkern_stream_capturing(kFirst, stream, &captured));
        if (captured) lutkern_graph_end(kFirst, stream, &graph);
      }
    }
  }
  if (text.empty()) {
    step(lutkern_graph_launch(kFirst, graph, stream)) && step(lutkern_event_record(kFirst, event, stream)) &&
        step(lutkern_event_wait(kFirst, event, nullptr)) &&
        step(lutkern_dequantize_to(&one, LUTKERN_BF16, x_there, nullptr)) &&
        step(lutkern_device_copy(y.data(), LUTKERN_CPU, y_there, kFirst, y.size() * 4, nullptr));
  }
  // After an error, the copy from the first device may still be under way.
  step(lutkern_device_synchronize(kSecond, LUTKERN_ALL_STREAMS));
  for (void* p : {weight, x_there, y_there}) step(lutkern_device_free(kFirst, p, LUTKERN_ALL_STREAMS));
  step(lutkern_device_free(kSecond, other, nullptr));
  step(lutkern_graph_destroy(kFirst, graph));
  step(lutkern_event_destroy(kFirst, event));
  step(lutkern_stream_destroy(kFirst, stream));
  return text;
}

}  // namespace

void case_nothing_fails(int report) {
  const std::string text = all_operations();
  if (!text.empty()) die("nothing was to fail: %s", text.c_str());
  nothing_is_left();
  const int n = calls();
  if (write(report, &n, sizeof(n)) != sizeof(n)) die("no report");
}

void case_one_fails() {
  const std::string text = all_operations();
  const std::string call = failed_call();
  need(!call.empty(), "a call was to fail");
  // What an operation gives back when its work is done: the fault, if there is one, is told by the next call.
  bool unheard = false;
  for (const char* name : {"cuCtxPopCurrent_v2", "cuMemFreeAsync", "cuMemFree_v2", "cuGraphDestroy"}) {
    unheard = unheard || call == name;
  }
  if (text.empty() ? !unheard : text.find(call + " failed: unknown error (CUDA_ERROR_UNKNOWN)") == std::string::npos) {
    die("%s failed, the text is '%s'", call.c_str(), text.c_str());
  }
  const bool before_giving_back = call == "cuCtxPushCurrent_v2" || call == "cuStreamIsCapturing";
  nothing_is_left(before_giving_back ? 1 : 0);
}
