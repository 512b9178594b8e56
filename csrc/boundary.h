// What the two halves of the boundary share, api.cpp (the CPU) and api_device.cpp (devices): checks and error texts.
#pragma once
#include "backend.h"
#include "cpu/operations.h"
#include "lutkern.h"
#include "parallel.h"
#include "tensor.h"

namespace lutkern {

// Keeps the text of lutkern_last_error and returns the status.
__attribute__((format(printf, 2, 3))) lutkern_status fail(lutkern_status status, const char* text, ...);

inline long long number(int64_t n) { return static_cast<long long>(n); }

const FormatInfo* find_type(int32_t ggml_type, FormatId* id);
const char* layout_name(Layout layout);

lutkern_status check_shape(const char* op, int64_t experts, int64_t rows, int64_t cols);
lutkern_status check_weight(const char* op, const char* what, const lutkern_tensor* t, Weight* out);
lutkern_status check_matrix(const char* op, const char* what, const lutkern_matrix& m, Matrix* out);

// device: 0 or the number of a device, which decides what tiles are
Weight weight_of(FormatId id, Layout layout, int32_t device, int64_t experts, int64_t rows, int64_t cols,
                 const void* data);

Runner runner_of(const lutkern_options* options);
inline bool exact_of(const lutkern_options* options) { return options && options->exact != 0; }
inline void* stream_of(const lutkern_options* options) { return options ? options->stream : nullptr; }

// ---- api_device.cpp ----

// Of a device number; null where no such devices exist
const Backend* backend_of(int32_t device);
// "the CPU", "cuda:0", "metal:0"
struct DeviceName {
  char text[24];
};
DeviceName device_name(int32_t device);

// A device that this process can use.
lutkern_status check_device(const char* op, int32_t device);
// Bytes of a row of tiles of the device, 32 rows of a weight; 0 where the format has none.
int64_t device_tile_row_bytes(FormatId format, int64_t cols);

// The operations for weights that lie on a device; what the CPU's operations check is checked.
lutkern_status device_dequantize(const Weight& w, Dtype dtype, void* out, const lutkern_options* options);
lutkern_status device_multiply(const char* op, const Weight& w, const Matrix& x, int64_t row_begin, int64_t row_end,
                               float* out, const lutkern_options* options);
lutkern_status device_moe(const MoeWork& work, const lutkern_options* options);
// The same weight in another layout, in other memory, or both; one side at least is a device.
lutkern_status device_repack(const Weight& from, const Weight& to, const lutkern_options* options);

}  // namespace lutkern
