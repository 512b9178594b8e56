// The boundary of the devices: checks, error texts, and the way to the room of the device.
#include <stdio.h>

#include "boundary.h"
#include "cuda/kernels.h"

namespace lutkern {

namespace {

const char* const kAbsent = "this build has no CUDA kernels";

lutkern_status absent(const char* op) { return fail(LUTKERN_ERROR_DEVICE, "%s: %s", op, kAbsent); }

bool has_tiles(FormatId format) {
  switch (format) {
#define LUTKERN_CASE(name, Block) case FormatId::name:
    LUTKERN_CUDA_TILE_FORMATS(LUTKERN_CASE)
#undef LUTKERN_CASE
    return true;
    default:
      return false;
  }
}

}  // namespace

DeviceName device_name(int32_t device) {
  DeviceName name{};
  if (device == 0) {
    snprintf(name.text, sizeof(name.text), "the CPU");
  } else if (is_cuda(device)) {
    snprintf(name.text, sizeof(name.text), "cuda:%d", device - LUTKERN_CUDA);
  } else {
    snprintf(name.text, sizeof(name.text), "device %d", device);
  }
  return name;
}

lutkern_status check_device(const char* op, int32_t) { return absent(op); }

int64_t device_tile_row_bytes(FormatId format, int64_t cols) {
  if (!has_tiles(format)) return 0;
  const int64_t row_of_blocks = (cols + cuda::kTileCols - 1) / cuda::kTileCols;
  return row_of_blocks * cuda::kTileRows * kFormatInfo[static_cast<int>(format)].block_bytes;
}

lutkern_status device_dequantize(const Weight&, Dtype, void*, const lutkern_options*) { return absent("dequantize"); }
lutkern_status device_multiply(const char* op, const Weight&, const Matrix&, int64_t, int64_t, float*,
                               const lutkern_options*) {
  return absent(op);
}
lutkern_status device_moe(const MoeWork&, const lutkern_options*) { return absent("moe"); }
lutkern_status device_repack(const Weight&, const Weight&, const lutkern_options*) { return absent("repack"); }

}  // namespace lutkern

using namespace lutkern;

extern "C" {

int32_t lutkern_device_count(lutkern_device_kind) { return 0; }
const char* lutkern_device_absent(lutkern_device_kind) { return kAbsent; }
lutkern_status lutkern_get_device_info(int32_t, lutkern_device_info*) { return absent("device_info"); }

int64_t lutkern_device_tensor_bytes(int32_t device, int32_t ggml_type, lutkern_layout layout, int64_t experts,
                                    int64_t rows, int64_t cols) {
  FormatId id{};
  if (device == 0) return lutkern_tensor_bytes(ggml_type, layout, experts, rows, cols);
  if (!is_cuda(device) || !find_type(ggml_type, &id) || (layout != LUTKERN_BLOCKS && layout != LUTKERN_TILES) ||
      check_shape("tensor", experts, rows, cols) != LUTKERN_OK) {
    return 0;
  }
  return experts * weight_of(id, static_cast<Layout>(layout), device, experts, rows, cols, nullptr).expert_bytes;
}

lutkern_status lutkern_device_tensor_init(lutkern_tensor* out, int32_t device, int32_t ggml_type, lutkern_layout layout,
                                          int64_t experts, int64_t rows, int64_t cols, const void* data,
                                          size_t nbytes) {
  if (!out) return fail(LUTKERN_ERROR_VALUE, "tensor: out is null");
  const lutkern_tensor candidate{ggml_type, layout, experts, rows, cols, data, nbytes, device};
  Weight w{};
  if (const lutkern_status status = check_weight("tensor", "the weight", &candidate, &w)) return status;
  *out = candidate;
  return LUTKERN_OK;
}

int32_t lutkern_device_has_tiles(int32_t device, int32_t ggml_type) {
  FormatId id{};
  return is_cuda(device) && find_type(ggml_type, &id) && has_tiles(id) ? 1 : 0;
}

lutkern_status lutkern_device_alloc(int32_t, size_t, void*, void**) { return absent("device_alloc"); }
lutkern_status lutkern_device_free(int32_t, void*, void*) { return LUTKERN_OK; }
lutkern_status lutkern_device_copy(void*, int32_t, const void*, int32_t, size_t, void*) {
  return absent("device_copy");
}
lutkern_status lutkern_device_synchronize(int32_t, void*) { return absent("device_synchronize"); }
lutkern_status lutkern_stream_capturing(int32_t, void*, int32_t*) { return absent("stream_capturing"); }
lutkern_status lutkern_stream_create(int32_t, void**) { return absent("stream_create"); }
lutkern_status lutkern_stream_destroy(int32_t, void*) { return absent("stream_destroy"); }
lutkern_status lutkern_graph_begin(int32_t, void*) { return absent("graph_begin"); }
lutkern_status lutkern_graph_end(int32_t, void*, void**) { return absent("graph_end"); }
lutkern_status lutkern_graph_launch(int32_t, void*, void*) { return absent("graph_launch"); }
lutkern_status lutkern_graph_destroy(int32_t, void*) { return absent("graph_destroy"); }
lutkern_status lutkern_event_create(int32_t, void**) { return absent("event_create"); }
lutkern_status lutkern_event_record(int32_t, void*, void*) { return absent("event_record"); }
lutkern_status lutkern_event_wait(int32_t, void*, void*) { return absent("event_wait"); }
lutkern_status lutkern_event_elapsed(int32_t, void*, void*, float*) { return absent("event_elapsed"); }
lutkern_status lutkern_event_destroy(int32_t, void*) { return absent("event_destroy"); }
const char* lutkern_device_kernel(int32_t, int32_t, lutkern_operation, lutkern_layout, int64_t) { return nullptr; }

}  // extern "C"
