// The boundary: every check and every error text. What passes here is trusted below.
//
// Grammar of a text: operation, what came, what was expected.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "boundary.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "gpu/tile.h"
#include "once.h"
#include "pack/pack.h"
#include "pack/pack_rows.h"
#include "tiles/repack.h"
#include "tiles/tile.h"

namespace lutkern {
namespace {

thread_local char g_error[512] = "";

}  // namespace

lutkern_status fail(lutkern_status status, const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(g_error, sizeof(g_error), text, arguments);
  va_end(arguments);
  return status;
}

namespace {

lutkern_status no_memory(const char* op) { return fail(LUTKERN_ERROR_MEMORY, "%s: no memory for scratch", op); }

void list_isas(char* text, size_t size) {
  text[0] = '\0';
  for (int i = 0; isa_at(i); ++i) {
    if (!isa_supported(isa_at(i))) continue;
    const size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%s", used ? ", " : "", isa_at(i));
  }
}

lutkern_status check_isa(const char* source, const char* name) {
  if (isa_supported(name)) return LUTKERN_OK;
  char names[128];
  list_isas(names, sizeof(names));
  for (int i = 0; isa_at(i); ++i) {
    if (strcmp(isa_at(i), name) == 0) {
      return fail(LUTKERN_ERROR_DEVICE, "%s: this processor has no %s, expected one of: %s", source, name, names);
    }
  }
  return fail(LUTKERN_ERROR_VALUE, "%s: unknown ISA '%.32s', expected one of: %s", source, name, names);
}

// Environment variables are read once, at the first operation. A wrong one is an error of every operation until the
// program chooses by use_isa or set_num_threads.
struct Environment {
  char isa_error[sizeof(g_error)] = "";
  lutkern_status isa_status = LUTKERN_OK;
  char threads_error[sizeof(g_error)] = "";
  // Whether a text is in force: operations on other threads may be reading it.
  std::atomic<bool> isa_wrong{false};
  std::atomic<bool> threads_wrong{false};
};

void read_environment(Environment* e) {
  if (const char* count = invalid_thread_count()) {
    snprintf(e->threads_error, sizeof(e->threads_error),
             "LUTKERN_NUM_THREADS: got '%.32s', expected a number from 1 to 1024", count);
    e->threads_wrong = true;
  }
  const char* isa = getenv("LUTKERN_ISA");
  if (!isa || !*isa) return;
  e->isa_status = check_isa("LUTKERN_ISA", isa);
  if (e->isa_status == LUTKERN_OK) {
    use_isa(isa);
  } else {
    memcpy(e->isa_error, g_error, sizeof(e->isa_error));
    e->isa_wrong = true;
  }
}

Environment& environment() { return made_once<Environment, read_environment>(); }

lutkern_status check_environment() {
  const Environment& e = environment();
  if (e.isa_wrong) return fail(e.isa_status, "%s", e.isa_error);
  return e.threads_wrong ? fail(LUTKERN_ERROR_VALUE, "%s", e.threads_error) : LUTKERN_OK;
}

// The row of quantisers of the instruction set in use, or of the next one down the list.
const PackKernels& current_pack_kernels() {
  const char* wanted = kernels().name;
  int i = 0;
  while (strcmp(isa_at(i), wanted) != 0) ++i;
  for (; isa_at(i); ++i) {
    const PackKernels* row = isa_supported(isa_at(i)) ? pack_kernels(isa_at(i)) : nullptr;
    if (row) return *row;
  }
  return kScalarPackKernels;
}

bool can_pack(FormatId format) { return kScalarPackKernels.packer[static_cast<int>(format)].row != nullptr; }

}  // namespace

const FormatInfo* find_type(int32_t ggml_type, FormatId* id) {
  for (int f = 0; f < kFormatCount; ++f) {
    if (kFormatInfo[f].ggml_type == ggml_type) {
      if (id) *id = static_cast<FormatId>(f);
      return &kFormatInfo[f];
    }
  }
  return nullptr;
}

namespace {

void describe(int f, lutkern_format* out) {
  const FormatInfo& info = kFormatInfo[f];
  const bool packs = can_pack(static_cast<FormatId>(f));
  *out = lutkern_format{info.name, info.ggml_type, info.block_size, info.block_bytes, info.is_float, packs};
}

int64_t row_bytes_of(const FormatInfo& info, int64_t cols) {
  return (cols + info.block_size - 1) / info.block_size * info.block_bytes;
}

}  // namespace

lutkern_status check_shape(const char* op, int64_t experts, int64_t rows, int64_t cols) {
  const bool positive = experts >= 1 && rows >= 1 && cols >= 1;
  if (!positive || experts > kMaxElements / rows || experts * rows > kMaxElements / cols) {
    return fail(LUTKERN_ERROR_VALUE,
                "%s: shape is %lld x %lld x %lld, expected sizes of at least 1 and at most 2^46 weights", op,
                number(experts), number(rows), number(cols));
  }
  return LUTKERN_OK;
}

const char* layout_name(Layout layout) { return layout == Layout::tiles ? "tiles" : "blocks"; }

Weight weight_of(FormatId id, Layout layout, int32_t device, int64_t experts, int64_t rows, int64_t cols,
                 const void* data) {
  const FormatInfo& info = kFormatInfo[static_cast<int>(id)];
  int64_t row_bytes = row_bytes_of(info, cols);
  int64_t rows_down = rows;
  if (layout == Layout::tiles) {
    const int64_t tile_rows = device ? int64_t{gpu::kTileRows} : int64_t{kTileRows};
    row_bytes = device ? device_tile_row_bytes(id, cols) : tile_row_bytes(id, cols);
    rows_down = (rows + tile_rows - 1) / tile_rows;
  }
  return Weight{id,
                layout,
                experts,
                rows,
                cols,
                (cols + info.block_size - 1) / info.block_size * info.block_size,
                row_bytes,
                rows_down * row_bytes,
                static_cast<const uint8_t*>(data),
                device};
}

namespace {

lutkern_status no_tiles(const char* op, const char* what, const Weight& w) {
  return fail(LUTKERN_ERROR_VALUE, "%s: %s has the layout tiles, %s on %s has blocks only", op, what, w.info().name,
              device_name(w.device).text);
}

}  // namespace

lutkern_status check_weight(const char* op, const char* what, const lutkern_tensor* t, Weight* out) {
  if (!t || !t->data) return fail(LUTKERN_ERROR_VALUE, "%s: %s is null, expected a weight", op, what);
  FormatId id{};
  const FormatInfo* info = find_type(t->ggml_type, &id);
  if (!info)
    return fail(LUTKERN_ERROR_VALUE, "%s: %s has the unknown ggml type %d, expected one of lutkern_format_at", op, what,
                t->ggml_type);
  if (t->layout != LUTKERN_BLOCKS && t->layout != LUTKERN_TILES) {
    return fail(LUTKERN_ERROR_VALUE, "%s: %s has the layout %d, expected blocks (0) or tiles (1)", op, what, t->layout);
  }
  if (const lutkern_status status = check_shape(op, t->experts, t->rows, t->cols)) return status;
  if (t->device) {
    if (const lutkern_status status = check_device(op, t->device)) return status;
  }
  const Weight w = weight_of(id, static_cast<Layout>(t->layout), t->device, t->experts, t->rows, t->cols, t->data);
  if (w.row_bytes == 0) return no_tiles(op, what, w);
  const int64_t expected = t->experts * w.expert_bytes;
  if (t->nbytes != static_cast<size_t>(expected)) {
    return fail(LUTKERN_ERROR_VALUE, "%s: %s has %zu bytes, %s of %lld x %lld x %lld in %s needs %lld", op, what,
                t->nbytes, info->name, number(t->experts), number(t->rows), number(t->cols), layout_name(w.layout),
                number(expected));
  }
  *out = w;
  return LUTKERN_OK;
}

lutkern_status check_matrix(const char* op, const char* what, const lutkern_matrix& m, Matrix* out) {
  if (m.dtype < LUTKERN_F32 || m.dtype > LUTKERN_BF16) {
    return fail(LUTKERN_ERROR_TYPE, "%s: %s has the dtype %d, expected float32, float16 or bfloat16", op, what,
                m.dtype);
  }
  if (m.rows < 0 || m.cols < 0 || (m.rows > 1 && m.row_stride < m.cols)) {
    return fail(LUTKERN_ERROR_VALUE, "%s: %s is %lld x %lld with a row stride of %lld", op, what, number(m.rows),
                number(m.cols), number(m.row_stride));
  }
  if (!m.data && m.rows > 0 && m.cols > 0) return fail(LUTKERN_ERROR_VALUE, "%s: %s is null, expected data", op, what);
  *out = Matrix{m.data, static_cast<Dtype>(m.dtype), m.rows, m.cols, m.row_stride, m.device};
  return LUTKERN_OK;
}

Runner runner_of(const lutkern_options* options) {
  if (options && options->parallel_for) return Runner{options->parallel_for, options->parallel_context};
  return Runner{parallel_for, reinterpret_cast<void*>(static_cast<intptr_t>(options ? options->threads : 0))};
}

namespace {

// x may be where the weight is; for a weight on a device also in the memory of the CPU.
lutkern_status check_place(const char* op, const Matrix& x, const Weight& w) {
  if (x.device == 0 || x.device == w.device) return LUTKERN_OK;
  return fail(LUTKERN_ERROR_VALUE, "%s: x is on %s, the weight is on %s", op, device_name(x.device).text,
              device_name(w.device).text);
}

lutkern_status multiply(const char* op, const lutkern_tensor* weight, const lutkern_matrix* x, bool one_row, float* out,
                        const lutkern_options* options) {
  if (const lutkern_status status = check_environment()) return status;
  Weight w{};
  Matrix m{};
  if (const lutkern_status status = check_weight(op, "the weight", weight, &w)) return status;
  if (!x) return fail(LUTKERN_ERROR_VALUE, "%s: x is null, expected a matrix", op);
  if (const lutkern_status status = check_matrix(op, "x", *x, &m)) return status;
  if (w.experts != 1) {
    return fail(LUTKERN_ERROR_VALUE, "%s: the weight has %lld experts, expected one matrix: index it", op,
                number(w.experts));
  }
  if (one_row && m.rows != 1) return fail(LUTKERN_ERROR_VALUE, "%s: x has %lld rows, expected 1", op, number(m.rows));
  if (m.cols != w.cols) {
    return fail(LUTKERN_ERROR_VALUE, "%s: x has %lld columns, the weight has %lld", op, number(m.cols), number(w.cols));
  }
  if (m.rows > INT32_MAX) {
    return fail(LUTKERN_ERROR_VALUE, "%s: x has %lld tokens, expected less than 2^31", op, number(m.rows));
  }
  const int64_t begin = options ? options->row_begin : 0;
  const int64_t end = options && options->row_end ? options->row_end : w.rows;
  if (begin < 0 || begin > end || end > w.rows) {
    return fail(LUTKERN_ERROR_VALUE, "%s: rows %lld to %lld, the weight has %lld", op, number(begin), number(end),
                number(w.rows));
  }
  if (!out && m.rows > 0) return fail(LUTKERN_ERROR_VALUE, "%s: out is null, expected room for the result", op);
  if (const lutkern_status status = check_place(op, m, w)) return status;
  if (w.device) return m.rows == 0 ? LUTKERN_OK : device_multiply(op, w, m, begin, end, out, options);
  return m.rows == 0 || matmul(w, m, exact_of(options), begin, end, out, runner_of(options)) ? LUTKERN_OK
                                                                                             : no_memory(op);
}

lutkern_status check_moe_shapes(const Weight* gate, const Weight& up, const Weight& down, const Matrix& x) {
  const Weight* projections[] = {gate, &down};
  const char* names[] = {"gate", "down"};
  for (int i = 0; i < 2; ++i) {
    if (projections[i] && projections[i]->experts != up.experts) {
      return fail(LUTKERN_ERROR_VALUE, "moe: %s has %lld experts, up has %lld", names[i],
                  number(projections[i]->experts), number(up.experts));
    }
    if (projections[i] && projections[i]->device != up.device) {
      return fail(LUTKERN_ERROR_VALUE, "moe: %s is on %s, up is on %s", names[i],
                  device_name(projections[i]->device).text, device_name(up.device).text);
    }
  }
  if (gate && (gate->rows != up.rows || gate->cols != up.cols)) {
    return fail(LUTKERN_ERROR_VALUE, "moe: gate is %lld x %lld, up is %lld x %lld", number(gate->rows),
                number(gate->cols), number(up.rows), number(up.cols));
  }
  if (down.cols != up.rows || down.rows != up.cols) {
    return fail(LUTKERN_ERROR_VALUE, "moe: down is %lld x %lld, expected %lld x %lld, the transpose of up",
                number(down.rows), number(down.cols), number(up.cols), number(up.rows));
  }
  if (x.cols != up.cols) {
    return fail(LUTKERN_ERROR_VALUE, "moe: x has %lld columns, the hidden size of up is %lld", number(x.cols),
                number(up.cols));
  }
  return check_place("moe", x, up);
}

lutkern_status check_moe(const lutkern_moe_args& a, Weight* gate, Weight* up, Weight* down, Matrix* x) {
  if (a.gate) {
    if (const lutkern_status status = check_weight("moe", "gate", a.gate, gate)) return status;
  }
  if (const lutkern_status status = check_weight("moe", "up", a.up, up)) return status;
  if (const lutkern_status status = check_weight("moe", "down", a.down, down)) return status;
  if (const lutkern_status status = check_matrix("moe", "x", a.x, x)) return status;
  if (const lutkern_status status = check_moe_shapes(a.gate ? gate : nullptr, *up, *down, *x)) return status;
  if (a.activation < LUTKERN_ACTIVATION_NONE || a.activation > LUTKERN_ACTIVATION_RELU2) {
    return fail(LUTKERN_ERROR_VALUE, "moe: unknown activation %d, expected 0 to 3", a.activation);
  }
  if (a.k < 0 || (a.k > 0 && x->rows > INT32_MAX / a.k)) {
    return fail(LUTKERN_ERROR_VALUE, "moe: %lld tokens of %lld experts each, expected less than 2^31 pairs",
                number(x->rows), number(a.k));
  }
  const int64_t pairs = x->rows * a.k;
  if (pairs > 0 && (!a.expert_ids || !a.expert_weights)) {
    return fail(LUTKERN_ERROR_VALUE, "moe: expert_ids or expert_weights is null");
  }
  if (!a.out && x->rows > 0) return fail(LUTKERN_ERROR_VALUE, "moe: out is null, expected room for the result");
  const int32_t least = a.partial ? -1 : 0;
  for (int64_t i = 0; i < pairs && x->device == 0; ++i) {
    if (a.expert_ids[i] < least || a.expert_ids[i] >= up->experts) {
      return fail(LUTKERN_ERROR_VALUE, "moe: expert_ids[%lld, %lld] is %d, expected %d to %lld", number(i / a.k),
                  number(i % a.k), a.expert_ids[i], least, number(up->experts - 1));
    }
  }
  return LUTKERN_OK;
}

lutkern_status check_pack(int32_t ggml_type, int64_t experts, const lutkern_matrix* w, const void* out,
                          size_t out_bytes, FormatId* format, Matrix* m) {
  const FormatInfo* info = find_type(ggml_type, format);
  if (!info)
    return fail(LUTKERN_ERROR_VALUE, "pack: unknown ggml type %d, expected one of lutkern_format_at", ggml_type);
  if (!can_pack(*format)) return fail(LUTKERN_ERROR_VALUE, "pack: %s can be read but not packed", info->name);
  if (!w || !out) return fail(LUTKERN_ERROR_VALUE, "pack: w or out is null");
  if (const lutkern_status status = check_matrix("pack", "w", *w, m)) return status;
  if (m->device) {
    return fail(LUTKERN_ERROR_VALUE, "pack: w is on %s, expected the CPU", device_name(m->device).text);
  }
  if (experts < 1 || m->rows % experts != 0) {
    return fail(LUTKERN_ERROR_VALUE, "pack: w has %lld rows, expected a multiple of %lld experts", number(m->rows),
                number(experts));
  }
  if (const lutkern_status status = check_shape("pack", experts, m->rows / experts, m->cols)) return status;
  const int64_t expected = m->rows * row_bytes_of(*info, m->cols);
  if (out_bytes != static_cast<size_t>(expected)) {
    return fail(LUTKERN_ERROR_VALUE, "pack: out has %zu bytes, expected %lld", out_bytes, number(expected));
  }
  return LUTKERN_OK;
}

}  // namespace
}  // namespace lutkern

using namespace lutkern;

extern "C" {

const char* lutkern_last_error(void) { return g_error; }

const char* lutkern_version(void) { return LUTKERN_VERSION; }

int32_t lutkern_format_count(void) { return kFormatCount; }

lutkern_status lutkern_format_at(int32_t index, lutkern_format* out) {
  if (!out) return fail(LUTKERN_ERROR_VALUE, "format: out is null");
  if (index < 0 || index >= kFormatCount) {
    return fail(LUTKERN_ERROR_VALUE, "format: index is %d, expected 0 to %d", index, kFormatCount - 1);
  }
  describe(index, out);
  return LUTKERN_OK;
}

lutkern_status lutkern_find_format(const char* name, lutkern_format* out) {
  if (!out) return fail(LUTKERN_ERROR_VALUE, "format: out is null");
  for (int f = 0; name && f < kFormatCount; ++f) {
    if (strcmp(kFormatInfo[f].name, name) == 0) {
      describe(f, out);
      return LUTKERN_OK;
    }
  }
  return fail(LUTKERN_ERROR_VALUE, "format: unknown format '%.32s', expected a name of lutkern_format_at",
              name ? name : "");
}

int64_t lutkern_row_bytes(int32_t ggml_type, int64_t cols) {
  const FormatInfo* info = find_type(ggml_type, nullptr);
  return info && cols >= 1 && cols <= kMaxElements ? row_bytes_of(*info, cols) : 0;
}

int64_t lutkern_tensor_bytes(int32_t ggml_type, lutkern_layout layout, int64_t experts, int64_t rows, int64_t cols) {
  FormatId id{};
  if (!find_type(ggml_type, &id) || (layout != LUTKERN_BLOCKS && layout != LUTKERN_TILES) ||
      check_shape("tensor", experts, rows, cols) != LUTKERN_OK) {
    return 0;
  }
  return experts * weight_of(id, static_cast<Layout>(layout), 0, experts, rows, cols, nullptr).expert_bytes;
}

lutkern_status lutkern_repack(const lutkern_tensor* weight, lutkern_layout layout, void* out, size_t out_bytes,
                              const lutkern_options* options) {
  return lutkern_repack_to(weight, layout, weight ? weight->device : 0, out, out_bytes, options);
}

lutkern_status lutkern_repack_to(const lutkern_tensor* weight, lutkern_layout layout, int32_t device, void* out,
                                 size_t out_bytes, const lutkern_options* options) {
  if (const lutkern_status status = check_environment()) return status;
  Weight w{};
  if (const lutkern_status status = check_weight("repack", "the weight", weight, &w)) return status;
  if (!out) return fail(LUTKERN_ERROR_VALUE, "repack: out is null");
  if (layout != LUTKERN_BLOCKS && layout != LUTKERN_TILES) {
    return fail(LUTKERN_ERROR_VALUE, "repack: unknown layout %d, expected blocks (0) or tiles (1)", layout);
  }
  if (device) {
    if (const lutkern_status status = check_device("repack", device)) return status;
  }
  const Weight to = weight_of(w.format, static_cast<Layout>(layout), device, w.experts, w.rows, w.cols, out);
  if (to.row_bytes == 0) return no_tiles("repack", "out", to);
  const int64_t expected = to.experts * to.expert_bytes;
  if (out_bytes != static_cast<size_t>(expected)) {
    return fail(LUTKERN_ERROR_VALUE, "repack: out has %zu bytes, expected %lld", out_bytes, number(expected));
  }
  if (w.device || device) return device_repack(w, to, options);
  uint8_t* bytes = static_cast<uint8_t*>(out);
  const Runner runner = runner_of(options);
  if (to.layout == w.layout) {
    memcpy(bytes, w.data, out_bytes);
  } else if (layout == LUTKERN_TILES) {
    to_tiles(w, bytes, runner);
  } else {
    to_blocks(w, bytes, runner);
  }
  return LUTKERN_OK;
}

int32_t lutkern_tile_version(void) { return kTileVersion; }

lutkern_status lutkern_tensor_init(lutkern_tensor* out, int32_t ggml_type, lutkern_layout layout, int64_t experts,
                                   int64_t rows, int64_t cols, const void* data, size_t nbytes) {
  if (!out) return fail(LUTKERN_ERROR_VALUE, "tensor: out is null");
  const lutkern_tensor candidate{ggml_type, layout, experts, rows, cols, data, nbytes, LUTKERN_CPU};
  Weight w{};
  if (const lutkern_status status = check_weight("tensor", "the weight", &candidate, &w)) return status;
  *out = candidate;
  return LUTKERN_OK;
}

lutkern_status lutkern_tensor_expert(const lutkern_tensor* tensor, int64_t expert, lutkern_tensor* out) {
  Weight w{};
  if (const lutkern_status status = check_weight("tensor", "the weight", tensor, &w)) return status;
  if (!out) return fail(LUTKERN_ERROR_VALUE, "tensor: out is null");
  if (expert < 0 || expert >= w.experts) {
    return fail(LUTKERN_ERROR_VALUE, "tensor: expert is %lld, expected 0 to %lld", number(expert),
                number(w.experts - 1));
  }
  *out = *tensor;
  out->experts = 1;
  out->data = w.row(expert, 0);
  out->nbytes = static_cast<size_t>(w.expert_bytes);
  return LUTKERN_OK;
}

lutkern_status lutkern_dequantize(const lutkern_tensor* weight, float* out, const lutkern_options* options) {
  return lutkern_dequantize_to(weight, LUTKERN_F32, out, options);
}

lutkern_status lutkern_dequantize_to(const lutkern_tensor* weight, lutkern_dtype dtype, void* out,
                                     const lutkern_options* options) {
  if (const lutkern_status status = check_environment()) return status;
  if (dtype < LUTKERN_F32 || dtype > LUTKERN_BF16) {
    return fail(LUTKERN_ERROR_TYPE, "dequantize: out has the dtype %d, expected float32, float16 or bfloat16", dtype);
  }
  Weight w{};
  if (const lutkern_status status = check_weight("dequantize", "the weight", weight, &w)) return status;
  if (!out) return fail(LUTKERN_ERROR_VALUE, "dequantize: out is null");
  if (w.device) return device_dequantize(w, static_cast<Dtype>(dtype), out, options);
  const Dtype wanted = static_cast<Dtype>(dtype);
  return dequantize(w, wanted, out, runner_of(options)) ? LUTKERN_OK : no_memory("dequantize");
}

lutkern_status lutkern_matvec(const lutkern_tensor* weight, const lutkern_matrix* x, float* out,
                              const lutkern_options* options) {
  return multiply("matvec", weight, x, true, out, options);
}

lutkern_status lutkern_matmul(const lutkern_tensor* weight, const lutkern_matrix* x, float* out,
                              const lutkern_options* options) {
  return multiply("matmul", weight, x, false, out, options);
}

lutkern_status lutkern_moe(const lutkern_moe_args* args, const lutkern_options* options) {
  if (const lutkern_status status = check_environment()) return status;
  if (!args) return fail(LUTKERN_ERROR_VALUE, "moe: args is null");
  Weight gate{};
  Weight up{};
  Weight down{};
  Matrix x{};
  if (const lutkern_status status = check_moe(*args, &gate, &up, &down, &x)) return status;
  const MoeWork work{args->gate ? &gate : nullptr,
                     &up,
                     &down,
                     x,
                     args->expert_ids,
                     args->expert_weights,
                     args->k,
                     static_cast<Activation>(args->activation),
                     exact_of(options),
                     args->out,
                     args->partial != 0};
  if (up.device) return x.rows == 0 ? LUTKERN_OK : device_moe(work, options);
  return x.rows == 0 || moe(work, runner_of(options)) ? LUTKERN_OK : no_memory("moe");
}

lutkern_status lutkern_pack(int32_t ggml_type, int64_t experts, const lutkern_matrix* w, const float* importance,
                            void* out, size_t out_bytes, int64_t* replaced, const lutkern_options* options) {
  if (const lutkern_status status = check_environment()) return status;
  FormatId format{};
  Matrix m{};
  if (const lutkern_status status = check_pack(ggml_type, experts, w, out, out_bytes, &format, &m)) return status;
  const int32_t effort = options ? options->effort : LUTKERN_EFFORT_DEFAULT;
  if (effort < LUTKERN_EFFORT_DEFAULT || effort > LUTKERN_EFFORT_BEST) {
    return fail(LUTKERN_ERROR_VALUE, "pack: unknown effort %d, expected 0 to 2", effort);
  }
  const Packer packer = current_pack_kernels().packer[static_cast<int>(format)];
  PackWork work{format, packer, static_cast<Effort>(effort), m, experts, importance, static_cast<uint8_t*>(out)};
  const PackResult result = pack_rows(work, runner_of(options));
  if (replaced) *replaced = result.replaced;
  const char* name = kFormatInfo[static_cast<int>(format)].name;
  switch (result.outcome) {
    case PackOutcome::ok:
      return LUTKERN_OK;
    case PackOutcome::no_memory:
      return no_memory("pack");
    case PackOutcome::not_finite:
      return fail(LUTKERN_ERROR_VALUE, "pack: w[%lld, %lld] is not finite, expected finite weights", number(result.row),
                  number(result.col));
    case PackOutcome::too_large:
      return fail(LUTKERN_ERROR_VALUE, "pack: row %lld of w reaches %g, too large for the fp16 scale of %s",
                  number(result.row), static_cast<double>(result.magnitude), name);
  }
  return LUTKERN_OK;
}

lutkern_status lutkern_quantize_activations(const lutkern_matrix* x, int8_t* q, float* scale) {
  if (const lutkern_status status = check_environment()) return status;
  if (!x || !q || !scale) return fail(LUTKERN_ERROR_VALUE, "quantize_activations: x, q or scale is null");
  Matrix m{};
  if (const lutkern_status status = check_matrix("quantize_activations", "x", *x, &m)) return status;
  if (m.device) {
    return fail(LUTKERN_ERROR_VALUE, "quantize_activations: x is on %s, expected the CPU", device_name(m.device).text);
  }
  if (m.rows != 1) {
    return fail(LUTKERN_ERROR_VALUE, "quantize_activations: x has %lld rows, expected 1", number(m.rows));
  }
  quantize_row(m, q, scale);
  return LUTKERN_OK;
}

const char* lutkern_isa_at(int32_t index) { return isa_at(index); }

int32_t lutkern_isa_supported(const char* name) { return name && isa_supported(name) ? 1 : 0; }

lutkern_status lutkern_use_isa(const char* name) {
  Environment& e = environment();
  if (!name) {
    const char* wished = getenv("LUTKERN_ISA");
    name = wished && *wished ? wished : nullptr;
  }
  if (name) {
    if (const lutkern_status status = check_isa("use_isa", name)) return status;
  }
  use_isa(name);
  e.isa_wrong = false;
  return LUTKERN_OK;
}

const char* lutkern_current_isa(void) {
  environment();
  return kernels().name;
}

const char* lutkern_kernel_isa(int32_t ggml_type, lutkern_operation operation, lutkern_layout layout) {
  environment();
  FormatId format{};
  const FormatInfo* info = find_type(ggml_type, &format);
  if (!info || (layout != LUTKERN_BLOCKS && layout != LUTKERN_TILES)) return nullptr;
  const int f = static_cast<int>(format);
  const CpuKernels::Sources& source = kernels().source;
  // Tiles without a kernel of their own go through blocks.
  const bool tiles = layout == LUTKERN_TILES && source.gemv_tiles[f];
  switch (operation) {
    case LUTKERN_DEQUANTIZE:
      return layout == LUTKERN_TILES && source.dequantize_tiles[f] ? source.dequantize_tiles[f] : source.dequantize[f];
    case LUTKERN_MATVEC:
      if (info->is_float) return source.gemm_float[f];
      return tiles ? source.gemv_tiles[f] : source.gemv[f];
    case LUTKERN_MATMUL:
    case LUTKERN_MOE:
      if (info->is_float) return source.gemm_float[f];
      return tiles ? source.gemm_tiles[f] : source.gemm[f];
    case LUTKERN_PACK:
      return can_pack(format) ? current_pack_kernels().name : nullptr;
  }
  return nullptr;
}

lutkern_status lutkern_set_num_threads(int32_t n) {
  if (n < 0 || n > 1024) return fail(LUTKERN_ERROR_VALUE, "set_num_threads: got %d, expected 0 to 1024", n);
  set_num_threads(n);
  environment().threads_wrong = false;
  return LUTKERN_OK;
}

int32_t lutkern_num_threads(void) { return num_threads(); }

}  // extern "C"
