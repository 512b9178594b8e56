// Every wrong argument gives its status and its text, and leaves the outputs as they were.
#include "walk_support.h"

void walk_errors();

namespace {

// A correct call of each operation; a case spoils one argument.
struct Calls {
  lutkern_format f;
  Sample w;
  Sample down;
  Input x;
  Floats out;
  Exact<int32_t> ids;
  Floats shares;
  Bytes packed;
  lutkern_options options{};
  lutkern_moe_args moe{};

  explicit Calls(Random& random)
      : f(format("q4_0")),
        w(make_sample(f, 1, 5, 64, Content::sane, 0, random)),
        down(make_sample(f, 1, 64, 5, Content::sane, 0, random)),
        x(make_input(2, 64, 64, LUTKERN_F32, random)),
        out(2 * 64),
        ids(2),
        shares(2),
        packed(5 * lutkern_row_bytes(f.ggml_type, 64)) {
    ids[0] = ids[1] = 0;
    shares[0] = shares[1] = 1.0f;
    moe = lutkern_moe_args{
        &w.tensor, &w.tensor, &down.tensor, x.matrix, ids.get(), shares.get(), 1, LUTKERN_ACTIVATION_SILU,
        out.get(), 0};
    out.fill_bytes(kUntouched);
    packed.fill_bytes(kUntouched);
  }

  static lutkern_format format(const char* name) {
    lutkern_format out;
    check_ok(lutkern_find_format(name, &out));
    return out;
  }

  lutkern_matrix row() const { return row_of(x.matrix, 0); }

  void expect(lutkern_status got, lutkern_status status, const char* text) const {
    set_case("errors, %s", text);
    if (got != status) fail("status %d, expected %d; %s", got, status, lutkern_last_error());
    if (strcmp(lutkern_last_error(), text) != 0) fail("text is '%s'", lutkern_last_error());
    if (!untouched(out.get(), out.nbytes()) || !untouched(packed.get(), packed.nbytes())) fail("an output was written");
  }
};

void wrong_formats(const Calls& c) {
  lutkern_format f;
  memset(&f, kUntouched, sizeof(f));
  c.expect(lutkern_format_at(-1, &f), LUTKERN_ERROR_VALUE, "format: index is -1, expected 0 to 24");
  c.expect(lutkern_format_at(25, &f), LUTKERN_ERROR_VALUE, "format: index is 25, expected 0 to 24");
  c.expect(lutkern_find_format("iq9", &f), LUTKERN_ERROR_VALUE,
           "format: unknown format 'iq9', expected a name of lutkern_format_at");
  c.expect(lutkern_find_format(nullptr, &f), LUTKERN_ERROR_VALUE,
           "format: unknown format '', expected a name of lutkern_format_at");
  c.expect(lutkern_format_at(0, nullptr), LUTKERN_ERROR_VALUE, "format: out is null");
  c.expect(lutkern_find_format("q4_0", nullptr), LUTKERN_ERROR_VALUE, "format: out is null");
  if (!untouched(&f, sizeof(f))) fail("the format was written");
  if (lutkern_row_bytes(3000, 64) != 0 || lutkern_row_bytes(c.f.ggml_type, 0) != 0) fail("row_bytes of nothing");
  if (lutkern_row_bytes(c.f.ggml_type, INT64_MAX) != 0) fail("row_bytes of too much");
}

void wrong_tensors(const Calls& c) {
  const void* data = c.w.bytes.get();
  const size_t n = c.w.bytes.nbytes();
  const int32_t type = c.f.ggml_type;
  lutkern_tensor t;
  memset(&t, kUntouched, sizeof(t));
  c.expect(lutkern_tensor_init(&t, 3000, LUTKERN_BLOCKS, 1, 5, 64, data, n), LUTKERN_ERROR_VALUE,
           "tensor: the weight has the unknown ggml type 3000, expected one of lutkern_format_at");
  c.expect(lutkern_tensor_init(&t, type, LUTKERN_BLOCKS, 1, 5, 64, nullptr, n), LUTKERN_ERROR_VALUE,
           "tensor: the weight is null, expected a weight");
  c.expect(lutkern_tensor_init(&t, type, LUTKERN_BLOCKS, 1, 5, 64, data, n - 1), LUTKERN_ERROR_VALUE,
           "tensor: the weight has 179 bytes, q4_0 of 1 x 5 x 64 in blocks needs 180");
  c.expect(lutkern_tensor_init(&t, type, LUTKERN_BLOCKS, 0, 5, 64, data, n), LUTKERN_ERROR_VALUE,
           "tensor: shape is 0 x 5 x 64, expected sizes of at least 1 and at most 2^46 weights");
  c.expect(lutkern_tensor_init(&t, type, LUTKERN_BLOCKS, INT64_MAX, INT64_MAX, INT64_MAX, data, n), LUTKERN_ERROR_VALUE,
           "tensor: shape is 9223372036854775807 x 9223372036854775807 x 9223372036854775807, expected sizes of at "
           "least 1 and at "
           "most 2^46 weights");
  c.expect(lutkern_tensor_init(nullptr, type, LUTKERN_BLOCKS, 1, 5, 64, data, n), LUTKERN_ERROR_VALUE,
           "tensor: out is null");
  c.expect(lutkern_tensor_expert(&c.w.tensor, 1, &t), LUTKERN_ERROR_VALUE, "tensor: expert is 1, expected 0 to 0");
  c.expect(lutkern_tensor_expert(&c.w.tensor, -1, &t), LUTKERN_ERROR_VALUE, "tensor: expert is -1, expected 0 to 0");
  c.expect(lutkern_tensor_expert(&c.w.tensor, 0, nullptr), LUTKERN_ERROR_VALUE, "tensor: out is null");
  c.expect(lutkern_tensor_expert(nullptr, 0, &t), LUTKERN_ERROR_VALUE, "tensor: the weight is null, expected a weight");
  if (!untouched(&t, sizeof(t))) fail("the tensor was written");
}

// 5 x 64 of q4_0: 180 bytes of blocks; tiles of 16 rows by 32 columns, 288 bytes each, two of them side by side
void wrong_layouts(const Calls& c) {
  const int32_t type = c.f.ggml_type;
  const auto bytes = [&](int32_t t, int layout, int64_t experts, int64_t rows, int64_t cols) {
    return lutkern_tensor_bytes(t, static_cast<lutkern_layout>(layout), experts, rows, cols);
  };
  set_case("errors, tensor_bytes");
  if (bytes(type, 0, 1, 5, 64) != 180 || bytes(type, 1, 1, 5, 64) != 576) fail("bytes of one matrix");
  if (bytes(type, 0, 3, 17, 33) != 3 * 17 * 36 || bytes(type, 1, 3, 17, 33) != 3 * 2 * 576) fail("bytes of three");
  if (bytes(3000, 0, 1, 5, 64) != 0 || bytes(3000, 1, 1, 5, 64) != 0) fail("bytes of an unknown type");
  if (bytes(type, 2, 1, 5, 64) != 0 || bytes(type, -1, 1, 5, 64) != 0) fail("bytes of an unknown layout");
  for (const int64_t bad : {INT64_MIN, int64_t{-1}, int64_t{0}, (int64_t{1} << 46) + 1, INT64_MAX}) {
    for (const int layout : {0, 1}) {
      if (bytes(type, layout, bad, 5, 64) != 0 || bytes(type, layout, 1, bad, 64) != 0 ||
          bytes(type, layout, 1, 5, bad) != 0) {
        fail("bytes of a size of %lld", static_cast<long long>(bad));
      }
    }
  }

  lutkern_tensor t;
  memset(&t, kUntouched, sizeof(t));
  const Bytes data(576);
  c.expect(lutkern_tensor_init(&t, type, LUTKERN_TILES, 1, 5, 64, data.get(), 180), LUTKERN_ERROR_VALUE,
           "tensor: the weight has 180 bytes, q4_0 of 1 x 5 x 64 in tiles needs 576");
  c.expect(lutkern_tensor_init(&t, type, static_cast<lutkern_layout>(2), 1, 5, 64, data.get(), 576),
           LUTKERN_ERROR_VALUE, "tensor: the weight has the layout 2, expected blocks (0) or tiles (1)");
  if (!untouched(&t, sizeof(t))) fail("the tensor was written");

  const lutkern_tensor& w = c.w.tensor;
  uint8_t* out = c.packed.get();
  const size_t n = c.packed.nbytes();
  c.expect(lutkern_repack(nullptr, LUTKERN_TILES, out, n, nullptr), LUTKERN_ERROR_VALUE,
           "repack: the weight is null, expected a weight");
  c.expect(lutkern_repack(&w, LUTKERN_TILES, nullptr, 576, nullptr), LUTKERN_ERROR_VALUE, "repack: out is null");
  c.expect(lutkern_repack(&w, static_cast<lutkern_layout>(2), out, n, nullptr), LUTKERN_ERROR_VALUE,
           "repack: unknown layout 2, expected blocks (0) or tiles (1)");
  c.expect(lutkern_repack(&w, LUTKERN_TILES, out, n, nullptr), LUTKERN_ERROR_VALUE,
           "repack: out has 180 bytes, expected 576");
  c.expect(lutkern_repack(&w, LUTKERN_BLOCKS, out, n - 1, nullptr), LUTKERN_ERROR_VALUE,
           "repack: out has 179 bytes, expected 180");
  lutkern_tensor bad = w;
  bad.layout = LUTKERN_TILES;
  c.expect(lutkern_repack(&bad, LUTKERN_BLOCKS, out, n, nullptr), LUTKERN_ERROR_VALUE,
           "repack: the weight has 180 bytes, q4_0 of 1 x 5 x 64 in tiles needs 576");
  bad = w;
  bad.ggml_type = 3000;
  c.expect(lutkern_repack(&bad, LUTKERN_TILES, out, n, nullptr), LUTKERN_ERROR_VALUE,
           "repack: the weight has the unknown ggml type 3000, expected one of lutkern_format_at");

  const Bytes copy(static_cast<int64_t>(n));  // the same layout is a copy
  check_ok(lutkern_repack(&w, LUTKERN_BLOCKS, copy.get(), n, nullptr));
  if (memcmp(copy.get(), w.data, n) != 0) fail("a copy of blocks is another weight");
  if (lutkern_tile_version() != 2) fail("the version of tiles is %d", lutkern_tile_version());
}

void wrong_weights(const Calls& c) {
  const lutkern_matrix x = c.row();
  c.expect(lutkern_dequantize(nullptr, c.out.get(), nullptr), LUTKERN_ERROR_VALUE,
           "dequantize: the weight is null, expected a weight");
  c.expect(lutkern_dequantize(&c.w.tensor, nullptr, nullptr), LUTKERN_ERROR_VALUE, "dequantize: out is null");
  lutkern_tensor bad = c.w.tensor;
  bad.layout = 7;
  c.expect(lutkern_matvec(&bad, &x, c.out.get(), nullptr), LUTKERN_ERROR_VALUE,
           "matvec: the weight has the layout 7, expected blocks (0) or tiles (1)");
  bad = c.w.tensor;
  bad.nbytes += 18;
  c.expect(lutkern_matvec(&bad, &x, c.out.get(), nullptr), LUTKERN_ERROR_VALUE,
           "matvec: the weight has 198 bytes, q4_0 of 1 x 5 x 64 in blocks needs 180");
  bad = c.w.tensor;
  bad.experts = 5;
  bad.rows = 1;
  c.expect(lutkern_matmul(&bad, &x, c.out.get(), nullptr), LUTKERN_ERROR_VALUE,
           "matmul: the weight has 5 experts, expected one matrix: index it");
}

void wrong_inputs(const Calls& c) {
  const lutkern_tensor& w = c.w.tensor;
  c.expect(lutkern_matvec(&w, nullptr, c.out.get(), nullptr), LUTKERN_ERROR_VALUE,
           "matvec: x is null, expected a matrix");
  c.expect(lutkern_matvec(&w, &c.x.matrix, c.out.get(), nullptr), LUTKERN_ERROR_VALUE,
           "matvec: x has 2 rows, expected 1");
  lutkern_matrix x = c.row();
  c.expect(lutkern_matvec(&w, &x, nullptr, nullptr), LUTKERN_ERROR_VALUE,
           "matvec: out is null, expected room for the result");
  x.cols = 63;
  c.expect(lutkern_matvec(&w, &x, c.out.get(), nullptr), LUTKERN_ERROR_VALUE,
           "matvec: x has 63 columns, the weight has 64");
  x = c.row();
  x.dtype = 3;
  c.expect(lutkern_matvec(&w, &x, c.out.get(), nullptr), LUTKERN_ERROR_TYPE,
           "matvec: x has the dtype 3, expected float32, float16 or bfloat16");
  x = c.row();
  x.data = nullptr;
  c.expect(lutkern_matvec(&w, &x, c.out.get(), nullptr), LUTKERN_ERROR_VALUE, "matvec: x is null, expected data");
  x = c.x.matrix;
  x.row_stride = 63;
  c.expect(lutkern_matmul(&w, &x, c.out.get(), nullptr), LUTKERN_ERROR_VALUE,
           "matmul: x is 2 x 64 with a row stride of 63");
  x = c.x.matrix;
  x.rows = -1;
  c.expect(lutkern_matmul(&w, &x, c.out.get(), nullptr), LUTKERN_ERROR_VALUE,
           "matmul: x is -1 x 64 with a row stride of 64");
  x = c.x.matrix;
  x.rows = INT64_MAX;
  c.expect(lutkern_matmul(&w, &x, c.out.get(), nullptr), LUTKERN_ERROR_VALUE,
           "matmul: x has 9223372036854775807 tokens, expected less than 2^31");
  x.data = nullptr;
  x.cols = INT64_MAX;
  x.row_stride = INT64_MAX;
  c.expect(lutkern_matmul(&w, &x, c.out.get(), nullptr), LUTKERN_ERROR_VALUE, "matmul: x is null, expected data");
  x = c.x.matrix;
  x.rows = 0;
  check_ok(lutkern_matmul(&w, &x, nullptr, nullptr));  // nothing to do
}

void wrong_ranges(const Calls& c) {
  const lutkern_matrix x = c.row();
  const struct {
    int64_t begin;
    int64_t end;
    const char* text;
  } ranges[] = {{-1, 2, "matvec: rows -1 to 2, the weight has 5"},
                {0, 6, "matvec: rows 0 to 6, the weight has 5"},
                {3, 2, "matvec: rows 3 to 2, the weight has 5"},
                {6, 0, "matvec: rows 6 to 5, the weight has 5"}};
  for (const auto& range : ranges) {
    lutkern_options options{};
    options.row_begin = range.begin;
    options.row_end = range.end;
    c.expect(lutkern_matvec(&c.w.tensor, &x, c.out.get(), &options), LUTKERN_ERROR_VALUE, range.text);
  }
}

void wrong_moe(Calls& c) {
  const lutkern_moe_args good = c.moe;
  lutkern_moe_args a = good;
  const auto expect = [&](lutkern_status status, const char* text) {
    c.expect(lutkern_moe(&a, nullptr), status, text);
    a = good;
  };
  c.expect(lutkern_moe(nullptr, nullptr), LUTKERN_ERROR_VALUE, "moe: args is null");
  a.up = nullptr;
  expect(LUTKERN_ERROR_VALUE, "moe: up is null, expected a weight");
  a.down = nullptr;
  expect(LUTKERN_ERROR_VALUE, "moe: down is null, expected a weight");
  a.down = &c.w.tensor;
  expect(LUTKERN_ERROR_VALUE, "moe: down is 5 x 64, expected 64 x 5, the transpose of up");
  a.gate = &c.down.tensor;
  expect(LUTKERN_ERROR_VALUE, "moe: gate is 64 x 5, up is 5 x 64");
  lutkern_tensor five = c.w.tensor;
  five.experts = 5;
  five.rows = 1;
  a.gate = &five;
  expect(LUTKERN_ERROR_VALUE, "moe: gate has 5 experts, up has 1");
  a.x.cols = 63;
  expect(LUTKERN_ERROR_VALUE, "moe: x has 63 columns, the hidden size of up is 64");
  a.x.dtype = -1;
  expect(LUTKERN_ERROR_TYPE, "moe: x has the dtype -1, expected float32, float16 or bfloat16");
  a.activation = 4;
  expect(LUTKERN_ERROR_VALUE, "moe: unknown activation 4, expected 0 to 3");
  a.k = -1;
  expect(LUTKERN_ERROR_VALUE, "moe: 2 tokens of -1 experts each, expected less than 2^31 pairs");
  a.k = INT64_MAX;
  expect(LUTKERN_ERROR_VALUE, "moe: 2 tokens of 9223372036854775807 experts each, expected less than 2^31 pairs");
  a.expert_ids = nullptr;
  expect(LUTKERN_ERROR_VALUE, "moe: expert_ids or expert_weights is null");
  a.expert_weights = nullptr;
  expect(LUTKERN_ERROR_VALUE, "moe: expert_ids or expert_weights is null");
  a.out = nullptr;
  expect(LUTKERN_ERROR_VALUE, "moe: out is null, expected room for the result");
  for (const int32_t id : {-1, 1, INT32_MIN, INT32_MAX}) {
    c.ids[1] = id;
    char text[80];
    snprintf(text, sizeof(text), "moe: expert_ids[1, 0] is %d, expected 0 to 0", id);
    expect(LUTKERN_ERROR_VALUE, text);
  }
  c.ids[1] = 0;
  check_ok(lutkern_moe(&good, nullptr));
  c.out.fill_bytes(kUntouched);
}

void wrong_pack(const Calls& c) {
  const lutkern_matrix w{c.x.bytes.get(), LUTKERN_F32, 2, 64, 64, LUTKERN_CPU};
  const lutkern_format f = Calls::format("f32");
  const size_t n = 2 * 64 * 4;
  const Bytes out(static_cast<int64_t>(n));
  out.fill_bytes(kUntouched);
  const auto pack = [&](int32_t type, int64_t experts, const lutkern_matrix* m, void* to, size_t nbytes) {
    return lutkern_pack(type, experts, m, nullptr, to, nbytes, nullptr, nullptr);
  };
  c.expect(pack(3000, 1, &w, out.get(), n), LUTKERN_ERROR_VALUE,
           "pack: unknown ggml type 3000, expected one of lutkern_format_at");
  for (const lutkern_format& read_only : all_formats()) {
    if (read_only.can_pack) continue;
    char text[64];
    snprintf(text, sizeof text, "pack: %s can be read but not packed", read_only.name);
    c.expect(pack(read_only.ggml_type, 1, &w, out.get(), n), LUTKERN_ERROR_VALUE, text);
  }
  if (f.can_pack) {
    lutkern_options options{};
    options.effort = 3;
    c.expect(lutkern_pack(f.ggml_type, 1, &w, nullptr, out.get(), n, nullptr, &options), LUTKERN_ERROR_VALUE,
             "pack: unknown effort 3, expected 0 to 2");
    c.expect(pack(f.ggml_type, 1, nullptr, out.get(), n), LUTKERN_ERROR_VALUE, "pack: w or out is null");
    c.expect(pack(f.ggml_type, 1, &w, nullptr, n), LUTKERN_ERROR_VALUE, "pack: w or out is null");
    c.expect(pack(f.ggml_type, 1, &w, out.get(), n + 1), LUTKERN_ERROR_VALUE, "pack: out has 513 bytes, expected 512");
    c.expect(pack(f.ggml_type, 3, &w, out.get(), n), LUTKERN_ERROR_VALUE,
             "pack: w has 2 rows, expected a multiple of 3 experts");
    c.expect(pack(f.ggml_type, 0, &w, out.get(), n), LUTKERN_ERROR_VALUE,
             "pack: w has 2 rows, expected a multiple of 0 experts");
    const Input bad = to_f32(w);
    const float nan = NAN;
    memcpy(bad.bytes.get() + 4 * (64 + 3), &nan, 4);
    c.expect(pack(f.ggml_type, 1, &bad.matrix, out.get(), n), LUTKERN_ERROR_VALUE,
             "pack: w[1, 3] is not finite, expected finite weights");
  }
  if (!untouched(out.get(), out.nbytes())) fail("the packed bytes were written");
}

void wrong_choices(const Calls& c) {
  const lutkern_matrix x = c.row();
  Exact<int8_t> q(64);
  Floats scale(2);
  c.expect(lutkern_quantize_activations(&x, nullptr, scale.get()), LUTKERN_ERROR_VALUE,
           "quantize_activations: x, q or scale is null");
  c.expect(lutkern_quantize_activations(&c.x.matrix, q.get(), scale.get()), LUTKERN_ERROR_VALUE,
           "quantize_activations: x has 2 rows, expected 1");
  c.expect(lutkern_set_num_threads(-1), LUTKERN_ERROR_VALUE, "set_num_threads: got -1, expected 0 to 1024");
  c.expect(lutkern_set_num_threads(1025), LUTKERN_ERROR_VALUE, "set_num_threads: got 1025, expected 0 to 1024");
  char text[256] = "use_isa: unknown ISA 'vax', expected one of: ";
  const char* separator = "";
  for (const char* isa : all_isas()) {
    const size_t used = strlen(text);
    snprintf(text + used, sizeof(text) - used, "%s%s", separator, isa);
    separator = ", ";
  }
  c.expect(lutkern_use_isa("vax"), LUTKERN_ERROR_VALUE, text);
  if (strcmp(lutkern_current_isa(), "scalar") != 0) fail("the instruction set changed to %s", lutkern_current_isa());
  if (lutkern_isa_at(-1) || lutkern_isa_supported("vax") || lutkern_isa_supported(nullptr))
    fail("an ISA that is not there");
  if (lutkern_kernel_isa(3000, LUTKERN_MATVEC, LUTKERN_TILES)) fail("a kernel for an unknown type");
}

}  // namespace

void walk_errors() {
  Random random{6};
  Calls calls(random);
  wrong_formats(calls);
  wrong_tensors(calls);
  wrong_layouts(calls);
  wrong_weights(calls);
  wrong_inputs(calls);
  wrong_ranges(calls);
  wrong_moe(calls);
  wrong_pack(calls);
  wrong_choices(calls);
}
