#include "walk_support.h"

#include <algorithm>

void set_case(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(g_case, sizeof(g_case), text, arguments);
  va_end(arguments);
}

void fail(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  fprintf(stderr, "walk: FAILED: %s: ", g_case);
  vfprintf(stderr, text, arguments);
  fprintf(stderr, "\n");
  va_end(arguments);
  exit(1);
}

void check_ok(lutkern_status status) {
  if (status != LUTKERN_OK) fail("status %d, %s", status, lutkern_last_error());
}

Floats output(int64_t n) {
  Floats out(n);
  out.fill_bytes(kUntouched);
  return out;
}

bool untouched(const void* memory, size_t nbytes) {
  const uint8_t* bytes = static_cast<const uint8_t*>(memory);
  for (size_t i = 0; i < nbytes; ++i) {
    if (bytes[i] != kUntouched) return false;
  }
  return true;
}

void check_same(const Floats& got, const Floats& expected, const char* what) {
  for (int64_t i = 0; i < expected.size(); ++i) {
    if (memcmp(got.get() + i, expected.get() + i, sizeof(float)) == 0) continue;
    if (isnan(got[i]) && isnan(expected[i])) continue;
    fail("%s: element %lld is %a, expected %a to the bit", what, static_cast<long long>(i), static_cast<double>(got[i]),
         static_cast<double>(expected[i]));
  }
}

std::vector<lutkern_format> all_formats() {
  std::vector<lutkern_format> out(static_cast<size_t>(lutkern_format_count()));
  for (int32_t i = 0; i < lutkern_format_count(); ++i) check_ok(lutkern_format_at(i, &out[static_cast<size_t>(i)]));
  return out;
}

std::vector<const char*> all_isas() {
  std::vector<const char*> out;
  for (int32_t i = 0; lutkern_isa_at(i); ++i) {
    if (lutkern_isa_supported(lutkern_isa_at(i))) out.push_back(lutkern_isa_at(i));
  }
  return out;
}

namespace {

bool is_sane(const lutkern_format& f, const uint8_t* block) {
  lutkern_tensor one;
  check_ok(lutkern_tensor_init(&one, f.ggml_type, LUTKERN_BLOCKS, 1, 1, f.block_size, block,
                               static_cast<size_t>(f.block_bytes)));
  float weights[256];
  check_ok(lutkern_dequantize(&one, weights, nullptr));
  float largest = 0.0f;
  for (int i = 0; i < f.block_size; ++i) {
    if (!isfinite(weights[i])) return false;
    if (fabsf(weights[i]) > largest) largest = fabsf(weights[i]);
  }
  return largest >= 0.125f && largest <= 8.0f;
}

std::vector<uint8_t> sane_blocks(const lutkern_format& f, int n, Random& random) {
  const size_t block_bytes = static_cast<size_t>(f.block_bytes);
  std::vector<uint8_t> out(static_cast<size_t>(n) * block_bytes);
  for (int i = 0; i < n; ++i) {
    uint8_t* block = out.data() + static_cast<size_t>(i) * block_bytes;
    do {
      random.fill(block, f.block_bytes);
    } while (!is_sane(f, block));
  }
  return out;
}

}  // namespace

Sample make_sample(const lutkern_format& f, int64_t experts, int64_t rows, int64_t cols, Content content, int shift,
                   Random& random) {
  const int64_t nbytes = experts * rows * lutkern_row_bytes(f.ggml_type, cols);
  Sample out{Bytes(nbytes, shift), {}};
  if (content == Content::any) {
    random.fill(out.bytes.get(), nbytes);
  } else {
    const int kBlocks = 32;
    const std::vector<uint8_t> pool = sane_blocks(f, kBlocks, random);
    for (int64_t at = 0; at < nbytes; at += f.block_bytes) {
      memcpy(out.bytes.get() + at, pool.data() + random.below(kBlocks) * f.block_bytes,
             static_cast<size_t>(f.block_bytes));
    }
  }
  check_ok(lutkern_tensor_init(&out.tensor, f.ggml_type, LUTKERN_BLOCKS, experts, rows, cols, out.bytes.get(),
                               out.bytes.nbytes()));
  return out;
}

namespace {

Sample tiles_like(const lutkern_tensor& t, int shift) {
  Sample out{Bytes(lutkern_tensor_bytes(t.ggml_type, LUTKERN_TILES, t.experts, t.rows, t.cols), shift), {}};
  out.bytes.fill_bytes(kUntouched);
  check_ok(lutkern_tensor_init(&out.tensor, t.ggml_type, LUTKERN_TILES, t.experts, t.rows, t.cols, out.bytes.get(),
                               out.bytes.nbytes()));
  return out;
}

}  // namespace

Sample in_tiles(const lutkern_tensor& blocks, int shift) {
  Sample out = tiles_like(blocks, shift);
  check_ok(lutkern_repack(&blocks, LUTKERN_TILES, out.bytes.get(), out.bytes.nbytes(), nullptr));
  return out;
}

Sample random_tiles(const lutkern_format& f, int64_t rows, int64_t cols, int shift, Random& random) {
  Sample out = tiles_like(lutkern_tensor{f.ggml_type, LUTKERN_BLOCKS, 1, rows, cols, nullptr, 0, LUTKERN_CPU}, shift);
  random.fill(out.bytes.get(), out.bytes.size());
  return out;
}

std::vector<double> weights_of(const lutkern_tensor& tensor) {
  Floats w = output(tensor.experts * tensor.rows * tensor.cols);
  check_ok(lutkern_dequantize(&tensor, w.get(), nullptr));
  return std::vector<double>(w.get(), w.get() + w.size());
}

Input make_input(int64_t tokens, int64_t cols, int64_t stride, lutkern_dtype dtype, Random& random) {
  const int64_t n = (tokens - 1) * stride + cols;
  Input out{Bytes(n * kElementBytes[dtype], 1), {nullptr, dtype, tokens, cols, stride, LUTKERN_CPU}};
  out.matrix.data = out.bytes.get();
  for (int64_t i = 0; i < n; ++i) {
    if (dtype == LUTKERN_F32) {
      const float value = random.uniform();
      memcpy(out.bytes.get() + 4 * i, &value, 4);
      continue;
    }
    // random sign and mantissa, exponents of 1/8 to 1
    const uint64_t bits = random.bits();
    const uint64_t half = dtype == LUTKERN_F16 ? (bits & 0x83ff) | (12 + (bits >> 20) % 4) << 10
                                               : (bits & 0x807f) | (124 + (bits >> 20) % 4) << 7;
    out.bytes[2 * i] = static_cast<uint8_t>(half);
    out.bytes[2 * i + 1] = static_cast<uint8_t>(half >> 8);
  }
  return out;
}

Input to_f32(const lutkern_matrix& m) {
  Input out{Bytes(m.rows * m.cols * 4, 1), {nullptr, LUTKERN_F32, m.rows, m.cols, m.cols, LUTKERN_CPU}};
  out.matrix.data = out.bytes.get();
  lutkern_format format;
  check_ok(lutkern_find_format(m.dtype == LUTKERN_F32 ? "f32" : (m.dtype == LUTKERN_F16 ? "f16" : "bf16"), &format));
  Floats row = output(m.cols);
  for (int64_t r = 0; r < m.rows; ++r) {
    const uint8_t* data = static_cast<const uint8_t*>(m.data) + r * m.row_stride * kElementBytes[m.dtype];
    lutkern_tensor t;
    check_ok(lutkern_tensor_init(&t, format.ggml_type, LUTKERN_BLOCKS, 1, 1, m.cols, data,
                                 static_cast<size_t>(m.cols * kElementBytes[m.dtype])));
    check_ok(lutkern_dequantize(&t, row.get(), nullptr));
    memcpy(out.bytes.get() + r * m.cols * 4, row.get(), row.nbytes());
  }
  return out;
}

Input first_tokens(const Input& x, int64_t tokens) {
  Input out{Bytes(((tokens - 1) * x.matrix.row_stride + x.matrix.cols) * kElementBytes[x.matrix.dtype], 1), x.matrix};
  memcpy(out.bytes.get(), x.bytes.get(), out.bytes.nbytes());
  out.matrix.data = out.bytes.get();
  out.matrix.rows = tokens;
  return out;
}

lutkern_matrix row_of(const lutkern_matrix& m, int64_t row) {
  const uint8_t* data = static_cast<const uint8_t*>(m.data) + row * m.row_stride * kElementBytes[m.dtype];
  return {data, m.dtype, 1, m.cols, m.cols, m.device};
}

std::vector<double> activations_of(const lutkern_matrix& m, bool quantised) {
  std::vector<double> out;
  const Input floats = to_f32(m);
  for (int64_t r = 0; r < m.rows; ++r) {
    const lutkern_matrix row = row_of(floats.matrix, r);
    Exact<int8_t> q(m.cols);
    Floats scale((m.cols + 31) / 32);
    check_ok(lutkern_quantize_activations(&row, q.get(), scale.get()));
    for (int64_t c = 0; c < m.cols; ++c) {
      float value;
      memcpy(&value, static_cast<const uint8_t*>(row.data) + 4 * c, 4);
      out.push_back(quantised ? static_cast<double>(scale[c / 32]) * q[c] : static_cast<double>(value));
    }
  }
  return out;
}

Product multiply(const double* w, int64_t rows, int64_t cols, const double* x, int64_t tokens) {
  Product out;
  std::vector<double> largest(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t first = 0; first < cols; first += 16) {
      const int64_t end = first + 16 < cols ? first + 16 : cols;
      double top = 0.0;
      for (int64_t c = first; c < end; ++c) top = std::max(top, fabs(w[r * cols + c]));
      for (int64_t c = first; c < end; ++c) largest[static_cast<size_t>(r * cols + c)] = top;
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < rows; ++r) {
      double value = 0.0;
      double magnitude = 0.0;
      for (int64_t c = 0; c < cols; ++c) {
        value += w[r * cols + c] * x[t * cols + c];
        magnitude += largest[static_cast<size_t>(r * cols + c)] * fabs(x[t * cols + c]);
      }
      out.value.push_back(value);
      out.magnitude.push_back(magnitude);
    }
  }
  return out;
}

void check_near(const Floats& got, const double* expected, const double* bound, const char* what) {
  for (int64_t i = 0; i < got.size(); ++i) {
    const double error = fabs(static_cast<double>(got[i]) - expected[i]);
    if (!(error <= bound[i])) {
      fail("%s: element %lld is %.9g, expected %.9g within %.3g", what, static_cast<long long>(i),
           static_cast<double>(got[i]), expected[i], bound[i]);
    }
    if (bound[i] > 0.0) g_worst = fmax(g_worst, error / bound[i]);
  }
}

void check_product(const Floats& got, const Product& p, const char* what) {
  std::vector<double> bound(p.magnitude);
  for (double& b : bound) b *= kBound * kUlp;
  check_near(got, p.value.data(), bound.data(), what);
}

void backwards(void* context, int64_t n, int64_t grain, lutkern_range_fn fn, void* state) {
  if (grain < 1 || !context) fail("parallel_for: grain %lld, context %p", static_cast<long long>(grain), context);
  for (int64_t i = n - 1; i >= 0; --i) fn(state, i, i + 1);
}

lutkern_options with_threads(int32_t threads) {
  lutkern_options options{};
  options.threads = threads;
  return options;
}

lutkern_options with_host(lutkern_parallel_for run) {
  static char context;
  lutkern_options options{};
  options.parallel_for = run;
  options.parallel_context = &context;
  return options;
}
