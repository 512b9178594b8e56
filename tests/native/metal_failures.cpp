// Each call of Metal that may fail does so once: a text that names it, no crash, nothing left behind.
#include "device_metal.h"

namespace {

// A little of everything; the first error ends it. Returns its text, "" if all went well.
std::string all_operations() {
  std::string text;
  const auto step = [&](lutkern_status status) {
    if (status && text.empty()) text = lutkern_last_error();
    return text.empty();
  };
  if (lutkern_device_count(LUTKERN_METAL) == 0) return lutkern_device_absent(LUTKERN_METAL);
  const Host host = host_weight("iq1_m", 2, 32, 256);
  const int64_t n = lutkern_device_tensor_bytes(kFirst, host.tensor.ggml_type, LUTKERN_TILES, 2, 32, 256);
  const size_t weight_bytes = static_cast<size_t>(n);
  void* stream = nullptr;
  void* event = nullptr;
  void* weight = nullptr;
  void* wrapped = nullptr;
  void* x_there = nullptr;
  void* y_there = nullptr;
  void* other = nullptr;
  const std::vector<float> x = floats(20 * 256);
  std::vector<float> y(2 * 32);
  std::vector<uint8_t> back(host.bytes.size());
  lutkern_device_info info;
  lutkern_tensor t{};
  lutkern_tensor one{};
  lutkern_options options{};
  const lutkern_matrix m = matrix(x.data(), 2, 256, LUTKERN_CPU);
  const auto matmul_there = [&] {
    options.stream = stream;
    const lutkern_matrix mt = matrix(x_there, 1, 256, kFirst);
    return lutkern_matmul(&one, &mt, static_cast<float*>(y_there), &options);
  };
  step(lutkern_get_device_info(kFirst, &info)) && step(lutkern_stream_create(kFirst, &stream)) &&
      step(lutkern_event_create(kFirst, &event)) &&
      step(lutkern_device_alloc(kFirst, weight_bytes, nullptr, &weight)) &&
      step(lutkern_device_alloc(kFirst, x.size() * 4, nullptr, &x_there)) &&
      step(lutkern_device_alloc(kFirst, y.size() * 4, nullptr, &y_there)) &&
      step(lutkern_device_alloc(kSecond, 64, nullptr, &other)) &&
      step(lutkern_device_wrap(kFirst, host.bytes.data(), host.bytes.size(), &wrapped)) &&
      step(lutkern_repack_to(&host.tensor, LUTKERN_TILES, kFirst, weight, weight_bytes, nullptr)) &&
      step(lutkern_device_tensor_init(&t, kFirst, host.tensor.ggml_type, LUTKERN_TILES, 2, 32, 256, weight,
                                      weight_bytes)) &&
      step(lutkern_repack_to(&t, LUTKERN_BLOCKS, LUTKERN_CPU, back.data(), back.size(), nullptr)) &&
      step(lutkern_tensor_expert(&t, 1, &one)) && step(lutkern_matmul(&one, &m, y.data(), nullptr)) &&
      step(lutkern_device_copy(x_there, kFirst, x.data(), LUTKERN_CPU, x.size() * 4, nullptr)) &&
      step(lutkern_device_copy(other, kSecond, x_there, kFirst, 64, nullptr)) && step(matmul_there()) &&
      step(lutkern_event_record(kFirst, event, stream)) && step(lutkern_event_wait(kFirst, event, nullptr)) &&
      step(lutkern_dequantize_to(&one, LUTKERN_BF16, x_there, &options)) &&
      step(lutkern_device_copy(x_there, kFirst, y_there, kFirst, 64, stream)) &&
      step(lutkern_device_synchronize(kFirst, stream)) && step(lutkern_device_synchronize(kSecond, nullptr));
  // Whatever has failed since, and could not be told by the call itself
  step(lutkern_device_synchronize(kFirst, LUTKERN_ALL_STREAMS));
  for (void* p : {weight, wrapped, x_there, y_there}) step(lutkern_device_free(kFirst, p, LUTKERN_ALL_STREAMS));
  step(lutkern_device_free(kSecond, other, nullptr));
  step(lutkern_event_destroy(kFirst, event));
  step(lutkern_stream_destroy(kFirst, stream));
  return text;
}

}  // namespace

void case_nothing_fails(int report) {
  const std::string text = all_operations();
  if (!text.empty()) die("nothing was to fail: %s", text.c_str());
  nothing_is_left();
  const int n = static_cast<int>(count("calls"));
  if (write(report, &n, sizeof(n)) != sizeof(n)) die("no report");
}

void case_one_fails() {
  const std::string text = all_operations();
  const std::string call = failed_call();
  need(!call.empty(), "a call was to fail");
  // -[MTLDevice newBufferWithLength:options:] is told as newBufferWithLength.
  const size_t space = call.find(' ');
  std::string name = space == std::string::npos ? call : call.substr(space + 1);
  name = name.substr(0, name.find_first_of(":]"));
  if (name == "MTLCopyAllDevices") name = "no Metal";
  if (name == "commit") name = "commandBuffer";
  // A small array that cannot be wrapped is copied.
  const bool untold = name == "newBufferWithBytesNoCopy";
  if (untold ? !text.empty() : text.find(name) == std::string::npos) {
    die("%s failed, the text is '%s'", call.c_str(), text.c_str());
  }
  nothing_is_left(call.find("commit") != std::string::npos ? 1 : 0);
}
