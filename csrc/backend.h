// What a kind of devices can do, as a table of functions: one for CUDA, one for Metal. The boundary (api_device.cpp) checks
// arguments and words errors; a backend trusts it. Devices are counted from 0, streams are the handles of lutkern.h.
//
// A function that fails returns false, and reason() says why. A null function: devices of this kind cannot do it.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "cpu/operations.h"
#include "lutkern.h"
#include "parallel.h"
#include "tensor.h"

namespace lutkern {

// One line, of the last function of the backend that returned false on this thread
struct Reason {
  lutkern_status status;
  const char* text;
};

struct ProductWork {
  const Weight* w;  // of one expert
  Matrix x;
  bool exact;
  int64_t row_begin;
  int64_t row_end;
  float* out;  // where x is
};

// A side is 0, the CPU, or a device number of lutkern.h; one side at least is a device.
struct CopyWork {
  void* to;
  int32_t to_device;
  const void* from;
  int32_t from_device;
  size_t nbytes;
};

struct Backend {
  lutkern_device_kind kind;
  const char* name;  // "cuda": devices are cuda:0, cuda:1

  // ---- what is there ----
  Reason (*reason)();
  int32_t (*count)();
  const char* (*absent)();  // null: there is one
  int32_t (*driver_version)();
  const char* (*image)(int64_t* nbytes);
  bool (*open)(int device);
  bool (*info)(int device, lutkern_device_info* out);
  // null: there is none
  const char* (*kernel)(int device, FormatId format, lutkern_operation operation, Layout layout, int64_t tokens);

  // ---- memory ----
  bool (*allocate)(int device, size_t nbytes, void* stream, void** out);
  bool (*wrap)(int device, const void* data, size_t nbytes, void** out);
  bool (*copy)(int device, const CopyWork& work, void* stream);

  // ---- operations: lutkern.h ----
  bool (*dequantize)(int device, const Weight& w, Dtype dtype, void* out, void* stream);
  bool (*multiply)(int device, const ProductWork& work, void* stream);
  bool (*moe)(int device, const MoeWork& work, void* stream);
  // From or to the CPU, there in blocks, or inside of the device
  bool (*repack)(int device, const Weight& from, const Weight& to, const Runner& runner, void* stream);

  // ---- streams, graphs, events ----
  bool (*synchronize)(int device, void* stream);
  bool (*stream_create)(int device, void** out);
  bool (*capturing)(int device, void* stream, bool* out);
  bool (*graph_begin)(int device, void* stream);
  bool (*graph_end)(int device, void* stream, void** out);
  bool (*graph_launch)(int device, void* graph, void* stream);
  bool (*event_create)(int device, void** out);
  bool (*event_record)(int device, void* event, void* stream);
  bool (*event_wait)(int device, void* event, void* stream);
  bool (*event_elapsed)(int device, void* begin, void* end, float* milliseconds);

  // ---- giving back: true where there is nothing left to give back, in a child of fork or while the process ends ----
  bool (*release)(int device, void* data, void* stream);
  bool (*stream_destroy)(int device, void* stream);
  bool (*graph_destroy)(int device, void* graph);
  bool (*event_destroy)(int device, void* event);
};

extern const Backend kCudaBackend;
extern const Backend kMetalBackend;

}  // namespace lutkern
