// What the C API says of Metal devices that it cannot do: the texts that no other test of the host reaches. LUTKERN_OBJC names
// the fake runtime.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "lutkern.h"

namespace {

constexpr int32_t kDevice = LUTKERN_METAL;

void expect(lutkern_status got, lutkern_status wanted, const char* text) {
  if (got == wanted && strcmp(lutkern_last_error(), text) == 0) return;
  fprintf(stderr, "got %d '%s', expected %d '%s'\n", got, lutkern_last_error(), wanted, text);
  exit(1);
}

void ok(lutkern_status status) {
  if (!status) return;
  fprintf(stderr, "status %d: %s\n", status, lutkern_last_error());
  exit(1);
}

void* allocate(size_t nbytes) {
  void* p = nullptr;
  ok(lutkern_device_alloc(kDevice, nbytes, nullptr, &p));
  return p;
}

void release(void* p) { ok(lutkern_device_free(kDevice, p, LUTKERN_ALL_STREAMS)); }

void wraps() {
  int32_t numbers[4] = {};
  void* out = nullptr;
  expect(lutkern_device_wrap(LUTKERN_CUDA, numbers, 4, &out), LUTKERN_ERROR_DEVICE,
         "device_wrap: cuda:0 has memory of its own, expected a Metal device");
  expect(lutkern_device_wrap(LUTKERN_CPU, numbers, 4, &out), LUTKERN_ERROR_VALUE,
         "device_wrap: the device is the CPU, expected a CUDA or Metal device");
  expect(lutkern_device_wrap(kDevice, nullptr, 4, &out), LUTKERN_ERROR_VALUE, "device_wrap: data or out is null");
  expect(lutkern_device_wrap(kDevice, numbers, 4, nullptr), LUTKERN_ERROR_VALUE, "device_wrap: data or out is null");
  expect(lutkern_device_wrap(kDevice, numbers, 0, &out), LUTKERN_ERROR_VALUE,
         "device_wrap: 0 bytes, expected at least 1");
  void* own = allocate(256);
  expect(lutkern_device_wrap(kDevice, own, 512, &out), LUTKERN_ERROR_DEVICE,
         "device_wrap: 512 bytes, the memory of metal:0 that begins there has 256");
  release(own);
}

void copies() {
  void* own = allocate(16);
  int32_t numbers[4] = {};
  expect(lutkern_device_copy(numbers, LUTKERN_CUDA, own, kDevice, 16, nullptr), LUTKERN_ERROR_VALUE,
         "device_copy: from metal:0 to cuda:0, expected devices of one kind");
  release(own);
}

// Memory that the device was never told of
void places() {
  lutkern_format format{};
  ok(lutkern_find_format("iq1_m", &format));
  const int64_t nbytes = lutkern_device_tensor_bytes(kDevice, format.ggml_type, LUTKERN_TILES, 1, 32, 256);
  const size_t n = static_cast<size_t>(nbytes);
  std::vector<uint8_t> cpu(n + 32);
  uint8_t* own = static_cast<uint8_t*>(allocate(n + 32));
  void* at = nullptr;
  lutkern_tensor t{};
  float x[256] = {};
  float y[32] = {};
  lutkern_matrix m{x, LUTKERN_F32, 1, 256, 256, LUTKERN_CPU};

  at = cpu.data() + (16 - reinterpret_cast<uintptr_t>(cpu.data()) % 16);
  ok(lutkern_device_tensor_init(&t, kDevice, format.ggml_type, LUTKERN_TILES, 1, 32, 256, at, n));
  expect(lutkern_matvec(&t, &m, y, nullptr), LUTKERN_ERROR_DEVICE,
         "matvec: the weight is not in memory of metal:0, expected lutkern_device_alloc or lutkern_device_wrap");
  ok(lutkern_device_tensor_init(&t, kDevice, format.ggml_type, LUTKERN_TILES, 1, 32, 256, own + 1, n));
  expect(lutkern_matvec(&t, &m, y, nullptr), LUTKERN_ERROR_DEVICE,
         "matvec: the weight is 1 bytes past a multiple of 16, expected tiles at a multiple");
  ok(lutkern_device_tensor_init(&t, kDevice, format.ggml_type, LUTKERN_TILES, 1, 32, 256, own, n));
  m.device = kDevice;
  expect(lutkern_matvec(&t, &m, y, nullptr), LUTKERN_ERROR_DEVICE,
         "matvec: x is not in memory of metal:0, expected lutkern_device_alloc, at a multiple of 4");
  expect(lutkern_dequantize(&t, y, nullptr), LUTKERN_ERROR_DEVICE,
         "dequantize: out is not in memory of metal:0, expected lutkern_device_alloc");
  release(own);
}

void events() {
  void* stream = nullptr;
  void* first = nullptr;
  void* second = nullptr;
  float milliseconds = 0.0f;
  ok(lutkern_stream_create(kDevice, &stream));
  ok(lutkern_event_create(kDevice, &first));
  ok(lutkern_event_create(kDevice, &second));
  ok(lutkern_event_record(kDevice, first, stream));
  ok(lutkern_event_wait(kDevice, second, stream));  // nothing to wait for
  expect(lutkern_event_elapsed(kDevice, first, second, &milliseconds), LUTKERN_ERROR_DEVICE,
         "event_elapsed: an event was not recorded, expected two that were");
  ok(lutkern_event_record(kDevice, second, nullptr));
  expect(lutkern_event_elapsed(kDevice, first, second, &milliseconds), LUTKERN_ERROR_DEVICE,
         "event_elapsed: the events are of two streams, expected one");
  ok(lutkern_event_record(kDevice, second, stream));
  ok(lutkern_event_elapsed(kDevice, first, second, &milliseconds));
  ok(lutkern_stream_destroy(kDevice, stream));
  ok(lutkern_event_destroy(kDevice, first));
  ok(lutkern_event_destroy(kDevice, second));
}

}  // namespace

int main() {
  wraps();
  copies();
  places();
  events();
  printf("metal_texts: every text is as expected\n");
  return 0;
}
