// Walks every format, instruction set row and odd shape through the C API, with memory of exactly the size that the
// header promises to touch, so that a sanitizer sees any step outside; and judges the results.
//
//   walk                all parts
//   walk PART ...       some of: activations floats products moe pack threads errors fork
//
// Exit status 0: all parts passed. The first failure ends the program with one line.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <iterator>
#include <thread>

#include "walk_support.h"

// Sanitizers call these before the program ends: their reports do not say which case they met.
extern "C" {
__attribute__((visibility("default"))) void __ubsan_on_report(void);
__attribute__((visibility("default"))) void __asan_on_error(void);
void __ubsan_on_report(void) { fprintf(stderr, "walk: FAILED: %s: see the report of the sanitizer\n", g_case); }
void __asan_on_error(void) { __ubsan_on_report(); }
}

// walk_errors.cpp
void walk_errors();
// walk_floats.cpp
void walk_floats();

namespace {

long long number(int64_t n) { return static_cast<long long>(n); }

// Whole blocks, and 33, 100, 300 and 576, which leave padding in blocks of 256.
std::vector<int64_t> columns_for(const lutkern_format& f) {
  std::vector<int64_t> cols = {33, 100, 256, 300, 512, 576, f.block_size};
  if (f.is_float) cols.push_back(55);  // 16 and 7 more than a multiple of 32
  std::sort(cols.begin(), cols.end());
  cols.erase(std::unique(cols.begin(), cols.end()), cols.end());
  return cols;
}

constexpr int64_t kRowCounts[] = {1, 3, 5, 43};  // 43: two whole tiles, one of 11 rows
constexpr int64_t kTokenCounts[] = {1, 2, 3, 5, 17};

void for_isas(const std::function<void(const char*)>& body) {
  for (const char* isa : all_isas()) {
    check_ok(lutkern_use_isa(isa));
    body(isa);
  }
  check_ok(lutkern_use_isa("scalar"));
}

// ---- int8 activations ----

// The rule of the header, in the same float32 operations: 32 columns share largest / 127.
void expected_codes(const float* x, int64_t n, int8_t* q, float* scale) {
  float largest = 0.0f;
  for (int64_t c = 0; c < n; ++c) {
    if (!isfinite(x[c])) largest = INFINITY;
    if (fabsf(x[c]) > largest) largest = fabsf(x[c]);
  }
  *scale = isfinite(largest) ? largest / 127.0f : NAN;
  if (*scale < 0x1p-126f) *scale = 0.0f;
  for (int64_t c = 0; c < n; ++c) {
    q[c] = *scale > 0.0f ? static_cast<int8_t>(nearbyintf(x[c] * (127.0f / largest))) : int8_t{0};
  }
}

void check_codes(const lutkern_matrix& row) {
  const Input floats = to_f32(row);
  Floats x(row.cols);
  memcpy(x.get(), floats.bytes.get(), x.nbytes());
  const int64_t groups = (row.cols + 31) / 32;
  Exact<int8_t> expected_q(row.cols);
  Floats expected_scale(groups);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t n = std::min<int64_t>(32, row.cols - 32 * g);
    expected_codes(x.get() + 32 * g, n, expected_q.get() + 32 * g, expected_scale.get() + g);
  }
  for_isas([&](const char* isa) {
    Exact<int8_t> q(row.cols);
    Floats scale(groups);
    check_ok(lutkern_quantize_activations(&row, q.get(), scale.get()));
    check_same(scale, expected_scale, isa);
    if (memcmp(q.get(), expected_q.get(), q.nbytes()) != 0) fail("%s: codes differ from the rule", isa);
  });
}

void walk_activations() {
  Random random{1};
  const float special[] = {0.0f,    -0.0f,    1e-45f,   1e-38f,    2e-37f, 1.6e-36f,
                           3.4e38f, -3.4e38f, INFINITY, -INFINITY, NAN,    0.5f};
  for (const int64_t cols : {1, 31, 32, 33, 100, 255, 256, 257, 576}) {
    for (const lutkern_dtype dtype : {LUTKERN_F32, LUTKERN_F16, LUTKERN_BF16}) {
      set_case("activations, %lld columns, dtype %d", number(cols), dtype);
      Input x = make_input(1, cols, cols, dtype, random);
      check_codes(x.matrix);
      random.fill(x.bytes.get(), x.bytes.size());
      check_codes(x.matrix);
    }
    for (const float value : special) {
      set_case("activations, %lld columns, %g", number(cols), static_cast<double>(value));
      const Input x = make_input(1, cols, cols, LUTKERN_F32, random);
      memcpy(x.bytes.get() + 4 * (cols / 2), &value, 4);
      check_codes(x.matrix);
      for (int64_t c = 0; c < cols; ++c) memcpy(x.bytes.get() + 4 * c, &value, 4);
      check_codes(x.matrix);
    }
  }
}

// ---- dequantize, matvec, matmul ----

Floats matmul(const lutkern_tensor& w, const lutkern_matrix& x, const lutkern_options& options) {
  Floats y = output(x.rows * w.rows);
  check_ok(lutkern_matmul(&w, &x, y.get(), &options));
  return y;
}

lutkern_options mode(bool exact) {
  lutkern_options options{};
  options.exact = exact ? 1 : 0;
  return options;
}

void check_dequantize(const lutkern_tensor& w) {
  Floats expected = output(w.experts * w.rows * w.cols);
  check_ok(lutkern_dequantize(&w, expected.get(), nullptr));
  for_isas([&](const char*) {
    Floats got = output(expected.size());
    check_ok(lutkern_dequantize(&w, got.get(), nullptr));
    check_same(got, expected, "dequantize");
    const lutkern_options host = with_host(backwards);
    check_ok(lutkern_dequantize(&w, got.get(), &host));
    check_same(got, expected, "dequantize, host threads");
  });
  const int64_t size = w.rows * w.cols;
  for (int64_t e = 0; e < w.experts; ++e) {
    lutkern_tensor one;
    check_ok(lutkern_tensor_expert(&w, e, &one));
    Floats got = output(size);
    Floats part(size);
    memcpy(part.get(), expected.get() + e * size, part.nbytes());
    check_ok(lutkern_dequantize(&one, got.get(), nullptr));
    check_same(got, part, "dequantize of an expert");
  }
}

// A range writes its rows and no others, and its rows are those of the whole.
void check_row_ranges(const lutkern_tensor& w, const lutkern_matrix& x, bool exact, const Floats& whole) {
  const int64_t cuts[] = {0, 1, w.rows / 2, w.rows};
  lutkern_options options = mode(exact);
  Floats pieces = output(whole.size());
  for (int i = 0; i < 3; ++i) {
    if (cuts[i] >= cuts[i + 1]) continue;
    options.row_begin = cuts[i];
    options.row_end = cuts[i + 1];
    const Floats part = matmul(w, x, options);
    for (int64_t at = 0; at < part.size(); ++at) {
      const bool inside = at % w.rows >= cuts[i] && at % w.rows < cuts[i + 1];
      if (!inside && !untouched(&part[at], sizeof(float)))
        fail("rows %lld to %lld: wrote row %lld", number(cuts[i]), number(cuts[i + 1]), number(at % w.rows));
      if (inside) pieces[at] = part[at];
    }
  }
  if (w.rows > 1) check_same(pieces, whole, "row ranges");
}

void check_not_finite(const lutkern_tensor& w, const Input& x, bool exact) {
  const Floats before = matmul(w, x.matrix, mode(exact));
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    const Input bad = first_tokens(x, x.matrix.rows);
    memcpy(bad.bytes.get() + 4 * (w.cols - 1), &value, 4);
    const Floats y = matmul(w, bad.matrix, mode(exact));
    for (int64_t at = 0; at < y.size(); ++at) {
      const bool same = memcmp(&y[at], &before[at], sizeof(float)) == 0;
      if (at < w.rows ? isfinite(y[at]) : !same) {
        fail("%g in token 0: row %lld of token %lld is %g", static_cast<double>(value), number(at % w.rows),
             number(at / w.rows), static_cast<double>(y[at]));
      }
    }
  }
}

// One column of the weight, to the bit but for the sign of zero.
void check_one_hot(const lutkern_tensor& w, const std::vector<double>& weights) {
  for (const int64_t c : {int64_t{0}, w.cols / 2, w.cols - 1}) {
    Floats x(w.cols);
    x.fill_bytes(0);
    x[c] = 1.0f;
    const lutkern_matrix m{x.get(), LUTKERN_F32, 1, w.cols, w.cols, LUTKERN_CPU};
    const Floats y = matmul(w, m, mode(true));
    for (int64_t r = 0; r < w.rows; ++r) {
      const double expected = weights[static_cast<size_t>(r * w.cols + c)];
      if (static_cast<double>(y[r]) != expected) {
        fail("one-hot column %lld: row %lld is %a, expected %a", number(c), number(r), static_cast<double>(y[r]),
             expected);
      }
    }
  }
}

void check_products(const lutkern_tensor& w, const std::vector<double>& weights, bool integer, Random& random) {
  for (const lutkern_dtype dtype : {LUTKERN_F32, LUTKERN_F16, LUTKERN_BF16}) {
    for (const int64_t tokens : kTokenCounts) {
      if (dtype != LUTKERN_F32 && tokens != 3) continue;
      const Input x = make_input(tokens, w.cols, w.cols + (tokens % 2 ? 7 : 0), dtype, random);
      const Input floats = to_f32(x.matrix);
      for (const bool exact : {false, true}) {
        const std::vector<double> seen = activations_of(x.matrix, integer && !exact);
        const Product expected = multiply(weights.data(), w.rows, w.cols, seen.data(), tokens);
        for_isas([&](const char*) {
          const Floats y = matmul(w, x.matrix, mode(exact));
          check_product(y, expected, exact ? "exact matmul" : "matmul");
          if (dtype != LUTKERN_F32) check_same(matmul(w, floats.matrix, mode(exact)), y, "the same numbers in float32");
          if (tokens == 1) {
            Floats one = output(w.rows);
            const lutkern_options options = mode(exact);
            check_ok(lutkern_matvec(&w, &x.matrix, one.get(), &options));
            check_same(one, y, "matvec and matmul of one token");
          }
          if (tokens == 1 || tokens == 3) check_row_ranges(w, x.matrix, exact, y);
          lutkern_options host = with_host(backwards);
          host.exact = exact ? 1 : 0;
          check_same(matmul(w, x.matrix, host), y, "host threads");
          if (tokens == 2) check_not_finite(w, x, exact);
        });
      }
    }
  }
  for_isas([&](const char*) { check_one_hot(w, weights); });
}

// Tiles hold the blocks to the bit, whoever makes them, and are the same weights.
void check_tiles(const lutkern_tensor& blocks, const lutkern_tensor& tiles) {
  Bytes back(static_cast<int64_t>(blocks.nbytes), 1);
  back.fill_bytes(kUntouched);
  check_ok(lutkern_repack(&tiles, LUTKERN_BLOCKS, back.get(), back.nbytes(), nullptr));
  if (memcmp(back.get(), blocks.data, back.nbytes()) != 0) fail("tiles do not give the blocks back");
  const lutkern_options host = with_host(backwards);
  Bytes again(static_cast<int64_t>(tiles.nbytes), 1);
  again.fill_bytes(0);
  check_ok(lutkern_repack(&blocks, LUTKERN_TILES, again.get(), again.nbytes(), &host));
  if (memcmp(again.get(), tiles.data, again.nbytes()) != 0) fail("tiles made by host threads are others");
  Floats expected = output(blocks.experts * blocks.rows * blocks.cols);
  Floats got = output(expected.size());
  check_ok(lutkern_dequantize(&blocks, expected.get(), nullptr));
  check_ok(lutkern_dequantize(&tiles, got.get(), nullptr));
  check_same(got, expected, "dequantize of tiles");
}

// In tiles a token has the same result alone and among others, to the bit.
void check_batches(const lutkern_format& f, Random& random) {
  const Sample w = make_sample(f, 1, 37, 544, Content::sane, 0, random);
  const Sample tiles = in_tiles(w.tensor, 1);
  const std::vector<double> weights = weights_of(w.tensor);
  const Input x = make_input(130, 544, 544, LUTKERN_F32, random);
  const Product expected =
      multiply(weights.data(), 37, 544, activations_of(x.matrix, !f.is_float).data(), x.matrix.rows);
  for_isas([&](const char*) {
    const Floats all = matmul(tiles.tensor, x.matrix, mode(false));
    check_product(all, expected, "130 tokens");
    check_product(matmul(w.tensor, x.matrix, mode(false)), expected, "130 tokens, blocks");
    for (const int64_t tokens : {1, 2, 3, 4, 6, 8, 12, 16, 24, 31, 32, 33, 48, 64, 128}) {
      const Floats some = matmul(tiles.tensor, first_tokens(x, tokens).matrix, mode(false));
      Floats part(some.size());
      memcpy(part.get(), all.get(), part.nbytes());
      check_same(some, part, "tokens of a batch");
    }
  });
}

// Any bytes at any address are memory-safe, and so are any activations.
void check_any_bytes(const lutkern_format& f, int64_t rows, int64_t cols, Random& random) {
  const Sample w = make_sample(f, 1, rows, cols, Content::any, 1, random);
  check_dequantize(w.tensor);
  check_tiles(w.tensor, in_tiles(w.tensor, 1).tensor);
  const Sample tiles = random_tiles(f, rows, cols, 1, random);
  // Digits of base 3 that no row of the codebook has are other weights as blocks, through which some instruction sets go.
  if (strncmp(f.name, "iq1", 3) != 0) check_dequantize(tiles.tensor);
  for_isas([&](const char*) { weights_of(tiles.tensor); });
  for (const int64_t tokens : {1, 3}) {
    const Input x = make_input(tokens, cols, cols, LUTKERN_F32, random);
    if (tokens == 3) random.fill(x.bytes.get(), x.bytes.size());
    for_isas([&](const char*) {
      for (const bool exact : {false, true}) {
        matmul(w.tensor, x.matrix, mode(exact));
        matmul(tiles.tensor, x.matrix, mode(exact));
      }
    });
  }
}

void walk_products() {
  Random random{2};
  for (const lutkern_format& f : all_formats()) {
    for (const int64_t rows : kRowCounts) {
      for (const int64_t cols : columns_for(f)) {
        set_case("products, %s, %lld x %lld", f.name, number(rows), number(cols));
        const Sample w = make_sample(f, 1, rows, cols, Content::sane, 0, random);
        check_dequantize(w.tensor);
        check_products(w.tensor, weights_of(w.tensor), !f.is_float, random);
        const Sample tiles = in_tiles(w.tensor, 0);
        check_tiles(w.tensor, tiles.tensor);
        set_case("products, %s, %lld x %lld, tiles", f.name, number(rows), number(cols));
        check_products(tiles.tensor, weights_of(w.tensor), !f.is_float, random);
        check_any_bytes(f, rows, cols, random);
      }
    }
    set_case("products, %s, 3 experts", f.name);
    const Sample experts = make_sample(f, 3, 5, 300, Content::any, 0, random);
    check_dequantize(experts.tensor);
    const Sample tiles = in_tiles(experts.tensor, 0);
    check_tiles(experts.tensor, tiles.tensor);
    check_dequantize(tiles.tensor);
    set_case("products, %s, batches", f.name);
    check_batches(f, random);
  }
}

// ---- mixture of experts ----

struct Layer {
  Sample gate;
  Sample up;
  Sample down;
  bool has_gate;
  bool integer[3];  // gate, up, down
  int32_t activation;
  int64_t tokens;
  int64_t k;
  Input x;
  Exact<int32_t> ids;
  Floats shares;

  int64_t inter() const { return up.tensor.rows; }
  int64_t hidden() const { return up.tensor.cols; }

  Floats run(lutkern_options options) const {
    Floats out = output(tokens * hidden());
    const lutkern_moe_args args{has_gate ? &gate.tensor : nullptr,
                                &up.tensor,
                                &down.tensor,
                                x.matrix,
                                ids.get(),
                                shares.get(),
                                k,
                                activation,
                                out.get(),
                                0};
    check_ok(lutkern_moe(&args, &options));
    return out;
  }
};

// In either layout
Sample make_projection(const lutkern_format& f, int64_t experts, int64_t rows, int64_t cols, Random& random) {
  Sample blocks = make_sample(f, experts, rows, cols, Content::sane, 1, random);
  return random.below(2) ? in_tiles(blocks.tensor, 1) : std::move(blocks);
}

Layer make_layer(const std::vector<lutkern_format>& formats, size_t first, int64_t experts, int64_t inter,
                 int64_t hidden, int64_t tokens, int64_t k, int32_t activation, bool has_gate, Random& random) {
  const lutkern_format& gate = formats[first];
  const lutkern_format& up = formats[(first + 7) % formats.size()];
  const lutkern_format& down = formats[(first + 3) % formats.size()];
  Layer out{make_projection(gate, experts, inter, hidden, random),
            make_projection(up, experts, inter, hidden, random),
            make_projection(down, experts, hidden, inter, random),
            has_gate,
            {!gate.is_float, !up.is_float, !down.is_float},
            activation,
            tokens,
            k,
            make_input(tokens, hidden, hidden + 3, LUTKERN_F32, random),
            Exact<int32_t>(tokens * k),
            Floats(tokens * k)};
  for (int64_t i = 0; i < tokens * k; ++i) {
    out.ids[i] = static_cast<int32_t>(random.below(experts));
    out.shares[i] = random.uniform();
  }
  return out;
}

double activate(int32_t activation, double g) {
  switch (activation) {
    case LUTKERN_ACTIVATION_SILU:
      return g / (1.0 + exp(-g));
    case LUTKERN_ACTIVATION_GELU:
      return 0.5 * g * (1.0 + tanh(sqrt(2.0 / 3.141592653589793) * (g + 0.044715 * g * g * g)));
    case LUTKERN_ACTIVATION_RELU2:
      return g < 0.0 ? 0.0 : g * g;
    default:
      return g;
  }
}

// h of one pair and how far a float32 h may be from it.
void expected_hidden(const Layer& layer, int64_t token, int64_t expert, bool exact, std::vector<double>* h,
                     std::vector<double>* error) {
  const Sample* projections[] = {&layer.gate, &layer.up};
  Product product[2];
  for (int p = layer.has_gate ? 0 : 1; p < 2; ++p) {
    lutkern_tensor one;
    check_ok(lutkern_tensor_expert(&projections[p]->tensor, expert, &one));
    const std::vector<double> x = activations_of(row_of(layer.x.matrix, token), layer.integer[p] && !exact);
    product[p] = multiply(weights_of(one).data(), one.rows, one.cols, x.data(), 1);
  }
  const Product& g = layer.has_gate ? product[0] : product[1];
  for (size_t i = 0; i < g.value.size(); ++i) {
    const double g_error = kBound * kUlp * g.magnitude[i];
    const double u = layer.has_gate ? product[1].value[i] : 1.0;
    const double u_error = layer.has_gate ? kBound * kUlp * product[1].magnitude[i] : 0.0;
    const double a = activate(layer.activation, g.value[i]);
    const double slope = layer.activation == LUTKERN_ACTIVATION_RELU2 ? 2.0 * (fabs(g.value[i]) + g_error) : 1.13;
    h->push_back(a * u);
    // exp of a float32 argument is off by a part of that argument
    error->push_back(slope * g_error * (fabs(u) + u_error) + fabs(a) * u_error +
                     kBound * kUlp * (1.0 + fabs(g.value[i])) * fabs(a * u));
  }
}

// int8 is off by half a step of 1 / 127 of the largest of 32.
void add_int8_error(const std::vector<double>& h, std::vector<double>* error) {
  const std::vector<double> before(*error);
  for (size_t i = 0; i < h.size(); ++i) {
    const size_t first = i / 32 * 32;
    double largest = 0.0;
    for (size_t j = first; j < std::min(h.size(), first + 32); ++j) largest = std::max(largest, fabs(h[j]) + before[j]);
    (*error)[i] += 0.51 / 127.0 * largest;
  }
}

struct Expected {
  std::vector<double> value;
  std::vector<double> bound;
};

Expected expected_moe(const Layer& layer, bool exact) {
  const int64_t hidden = layer.hidden();
  const size_t size = static_cast<size_t>(layer.tokens * hidden);
  Expected out{std::vector<double>(size), std::vector<double>(size)};
  for (int64_t pair = 0; pair < layer.tokens * layer.k; ++pair) {
    std::vector<double> h;
    std::vector<double> error;
    expected_hidden(layer, pair / layer.k, layer.ids[pair], exact, &h, &error);
    if (layer.integer[2] && !exact) add_int8_error(h, &error);
    lutkern_tensor one;
    check_ok(lutkern_tensor_expert(&layer.down.tensor, layer.ids[pair], &one));
    const std::vector<double> w = weights_of(one);
    h.insert(h.end(), error.begin(), error.end());
    const Product y = multiply(w.data(), one.rows, one.cols, h.data(), 2);  // of h and of its error
    const double share = static_cast<double>(layer.shares[pair]);
    for (int64_t r = 0; r < hidden; ++r) {
      const size_t at = static_cast<size_t>(pair / layer.k * hidden + r);
      const size_t row = static_cast<size_t>(r);
      const double rounding = kBound * kUlp * (y.magnitude[row] + fabs(y.value[row]));
      out.value[at] += share * y.value[row];
      out.bound[at] += fabs(share) * (y.magnitude[row + static_cast<size_t>(hidden)] + rounding);
    }
  }
  return out;
}

// One token, one expert, no activation function: the products of matvec, to the bit.
void check_moe_is_matvecs(const Layer& layer) {
  lutkern_tensor one[3];
  check_ok(lutkern_tensor_expert(&layer.gate.tensor, layer.ids[0], &one[0]));
  check_ok(lutkern_tensor_expert(&layer.up.tensor, layer.ids[0], &one[1]));
  check_ok(lutkern_tensor_expert(&layer.down.tensor, layer.ids[0], &one[2]));
  Floats h = matmul(one[1], layer.x.matrix, mode(false));
  if (layer.has_gate) {
    const Floats g = matmul(one[0], layer.x.matrix, mode(false));
    for (int64_t i = 0; i < h.size(); ++i) h[i] *= g[i];
  }
  const lutkern_matrix m{h.get(), LUTKERN_F32, 1, layer.inter(), layer.inter(), LUTKERN_CPU};
  Floats expected = matmul(one[2], m, mode(false));
  for (int64_t i = 0; i < expected.size(); ++i) expected[i] = 0.0f + layer.shares[0] * expected[i];
  check_same(layer.run(mode(false)), expected, "moe of one pair and its matvecs");
}

void walk_moe() {
  Random random{3};
  const std::vector<lutkern_format> formats = all_formats();
  const int64_t shapes[][2] = {{33, 40}, {100, 300}, {32, 256}, {5, 576}};   // inter, hidden
  const int64_t routes[][3] = {{1, 1, 1}, {3, 1, 2}, {3, 5, 2}, {3, 3, 1}};  // experts, tokens, k
  int32_t turn = 0;
  for (size_t f = 0; f < formats.size(); ++f) {
    for (const auto& shape : shapes) {
      for (const auto& route : routes) {
        const int32_t activation = turn++ % 4;
        const bool has_gate = turn % 3 != 0;
        set_case("moe from %s, %lld x %lld, %lld experts, %lld tokens, k %lld, activation %d", formats[f].name,
                 number(shape[0]), number(shape[1]), number(route[0]), number(route[1]), number(route[2]), activation);
        Layer layer =
            make_layer(formats, f, route[0], shape[0], shape[1], route[1], route[2], activation, has_gate, random);
        const Expected expected[] = {expected_moe(layer, false), expected_moe(layer, true)};
        for_isas([&](const char*) {
          for (const bool exact : {false, true}) {
            const Floats y = layer.run(mode(exact));
            check_near(y, expected[exact].value.data(), expected[exact].bound.data(), exact ? "exact moe" : "moe");
            lutkern_options host = with_host(backwards);
            host.exact = exact ? 1 : 0;
            check_same(layer.run(host), y, "host threads");
          }
          if (layer.tokens * layer.k == 1) {
            layer.activation = LUTKERN_ACTIVATION_NONE;
            check_moe_is_matvecs(layer);
            layer.activation = activation;
          }
        });
      }
    }
  }
}

// ---- pack ----

enum class Fill { random, outlier, zero, constant, denormal, tiny, huge, largest, not_a_number, count };

float fill_value(Fill fill, int64_t i, Random& random) {
  const float value = random.uniform();
  switch (fill) {
    case Fill::outlier:
      return i % 61 == 7 ? 300.0f * value : value;
    case Fill::zero:
      return i % 2 ? 0.0f : -0.0f;
    case Fill::constant:
      return -0.37f;
    case Fill::denormal:
      return value * 1e-40f;
    case Fill::tiny:
      return value * 1e-30f;
    case Fill::huge:
      return value * 30000.0f;
    case Fill::largest:
      return value < 0.0f ? -3.4e38f : 3.4e38f;
    case Fill::not_a_number:
      return i == 5 ? NAN : value;
    default:
      return value;
  }
}

enum class Importance { none, positive, zero, wrong, count };

Floats make_importance(Importance kind, int64_t n, Random& random) {
  Floats out(n);
  const float wrong[] = {NAN, -1.0f, INFINITY, 0.0f, 1e-45f, 3.4e38f};
  for (int64_t i = 0; i < n; ++i) {
    const float positive = 1.5f + random.uniform();
    out[i] = kind == Importance::zero ? 0.0f : (kind == Importance::wrong && i % 3 ? wrong[i % 6] : positive);
  }
  return out;
}

struct PackCase {
  const lutkern_format* format;
  int64_t experts;
  lutkern_matrix w;
  const float* importance;

  int64_t nbytes() const { return w.rows * lutkern_row_bytes(format->ggml_type, w.cols); }

  lutkern_status run(const Bytes& out, int64_t* replaced, const lutkern_options& options) const {
    out.fill_bytes(kUntouched);
    return lutkern_pack(format->ggml_type, experts, &w, importance, out.get(), out.nbytes(), replaced, &options);
  }
};

// What was packed decodes to finite numbers; numbers of a usual size stay near.
void check_packed(const PackCase& c, const Bytes& packed, Fill fill, Importance importance) {
  lutkern_tensor t;
  check_ok(lutkern_tensor_init(&t, c.format->ggml_type, LUTKERN_BLOCKS, c.experts, c.w.rows / c.experts, c.w.cols,
                               packed.get(), packed.nbytes()));
  const std::vector<double> decoded = weights_of(t);
  double error = 0.0;
  double power = 0.0;
  for (size_t i = 0; i < decoded.size(); ++i) {
    float value;
    memcpy(&value, static_cast<const uint8_t*>(c.w.data) + 4 * i, 4);
    if (!isfinite(decoded[i])) fail("%g was packed to %g", static_cast<double>(value), decoded[i]);
    error += (decoded[i] - value) * (decoded[i] - value);
    power += static_cast<double>(value) * value;
  }
  if (fill == Fill::zero && error > 0.0) fail("zeros were packed to %g", sqrt(error));
  if (fill == Fill::random && importance != Importance::wrong && error > 0.5 * power)
    fail("relative error %g", sqrt(error / power));
}

lutkern_options with_effort(lutkern_options options, int effort) {
  options.effort = effort;
  return options;
}

void check_pack(const PackCase& c, Fill fill, Importance importance, int effort) {
  int64_t replaced = -1;
  const Bytes packed(c.nbytes(), 1);
  const lutkern_status status = c.run(packed, &replaced, with_effort(with_threads(1), effort));
  const bool refused = status == LUTKERN_ERROR_VALUE;
  if (fill == Fill::not_a_number && !refused) fail("NaN gave the status %d", status);
  if (refused && fill != Fill::not_a_number && fill != Fill::largest) fail("refused: %s", lutkern_last_error());
  if (!refused) {
    check_ok(status);
    check_packed(c, packed, fill, importance);
    if (replaced < 0 || replaced > c.experts * c.w.cols) fail("replaced is %lld", number(replaced));
  }
  for (const lutkern_options& host : {with_threads(2), with_host(backwards)}) {
    const lutkern_options options = with_effort(host, effort);
    const Bytes again(c.nbytes(), 0);
    int64_t replaced_again = -1;
    if (c.run(again, &replaced_again, options) != status || (!refused && replaced_again != replaced)) {
      fail("other threads: %s", lutkern_last_error());
    }
    if (!refused && memcmp(again.get(), packed.get(), packed.nbytes()) != 0) fail("other threads pack other bytes");
  }
}

void walk_pack() {
  Random random{4};
  const int64_t shapes[][3] = {{1, 1, 33}, {1, 3, 256}, {3, 1, 300}};  // experts, rows, cols
  for (const lutkern_format& f : all_formats()) {
    if (!f.can_pack) continue;
    for (const auto& shape : shapes) {
      for (int fill = 0; fill < static_cast<int>(Fill::count); ++fill) {
        for (int kind = 0; kind < static_cast<int>(Importance::count); ++kind) {
          if (fill > 1 && kind % 2 == 0 && shape[2] != 33) continue;  // fewer pairings on the larger shapes
          const int effort = (fill + kind) % 3;                       // lutkern_effort
          set_case("pack, %s, %lld x %lld x %lld, content %d, importance %d, effort %d", f.name, number(shape[0]),
                   number(shape[1]), number(shape[2]), fill, kind, effort);
          const int64_t n = shape[0] * shape[1] * shape[2];
          const Bytes w(4 * n, 1);
          for (int64_t i = 0; i < n; ++i) {
            const float value = fill_value(static_cast<Fill>(fill), i, random);
            memcpy(w.get() + 4 * i, &value, 4);
          }
          const Floats importance = make_importance(static_cast<Importance>(kind), shape[0] * shape[2], random);
          const PackCase c{&f,
                           shape[0],
                           {w.get(), LUTKERN_F32, shape[0] * shape[1], shape[2], shape[2], LUTKERN_CPU},
                           kind ? importance.get() : nullptr};
          check_pack(c, static_cast<Fill>(fill), static_cast<Importance>(kind), effort);
        }
      }
    }
  }
}

// ---- threads ----

// Two host threads, each its half, item by item.
void two_threads(void*, int64_t n, int64_t, lutkern_range_fn fn, void* state) {
  const auto work = [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fn(state, i, i + 1);
  };
  std::thread other(work, n / 2, n);
  work(0, n / 2);
  other.join();
}

std::vector<lutkern_options> ways_to_run() {
  return {with_threads(2), with_threads(3), with_threads(0), with_host(two_threads), with_host(backwards)};
}

// Large enough for several tasks of every operation.
void check_threads(const std::vector<lutkern_format>& formats, size_t f, Random& random) {
  const Sample w = make_sample(formats[f], 1, 150, 1056, Content::sane, 1, random);
  Floats weights = output(w.tensor.rows * w.tensor.cols);
  const lutkern_options alone = with_threads(1);
  check_ok(lutkern_dequantize(&w.tensor, weights.get(), &alone));
  for (const lutkern_options& options : ways_to_run()) {
    Floats again = output(weights.size());
    check_ok(lutkern_dequantize(&w.tensor, again.get(), &options));
    check_same(again, weights, "dequantize on other threads");
  }
  for (const int64_t tokens : {1, 40}) {
    const Input x = make_input(tokens, w.tensor.cols, w.tensor.cols, LUTKERN_F32, random);
    const Floats y = matmul(w.tensor, x.matrix, alone);
    for (const lutkern_options& options : ways_to_run())
      check_same(matmul(w.tensor, x.matrix, options), y, "matmul on other threads");
  }
  const Layer layer = make_layer(formats, f, 3, 150, 288, 6, 2, LUTKERN_ACTIVATION_SILU, true, random);
  const Floats y = layer.run(alone);
  for (const lutkern_options& options : ways_to_run()) check_same(layer.run(options), y, "moe on other threads");
}

// Several threads of the program call at once, while another changes the settings; some find the pool busy. A call has
// one instruction set from its beginning to its end.
void check_callers(Random& random) {
  set_case("threads, callers at once");
  lutkern_format f;
  check_ok(lutkern_find_format("q4_0", &f));
  const Sample w = make_sample(f, 1, 150, 1056, Content::sane, 0, random);
  const Input x = make_input(3, 1056, 1056, LUTKERN_F32, random);
  std::vector<Floats> expected;
  for_isas([&](const char*) { expected.push_back(matmul(w.tensor, x.matrix, with_threads(1))); });
  const auto call = [&](int i) {
    for (int round = 0; round < 40; ++round) {
      const Floats y = matmul(w.tensor, x.matrix, with_threads(1 + (i + round) % 3));
      const auto same = [&](const Floats& e) { return memcmp(e.get(), y.get(), y.nbytes()) == 0; };
      if (std::none_of(expected.begin(), expected.end(), same)) fail("a result of no instruction set");
    }
  };
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) callers.emplace_back(call, i);
  for (int round = 0; round < 40; ++round) {
    check_ok(lutkern_set_num_threads(1 + round % 3));
    for_isas([](const char*) { std::this_thread::yield(); });
  }
  for (std::thread& caller : callers) caller.join();
}

// How threads share work does not depend on the format, and ThreadSanitizer is slow.
#if defined(__SANITIZE_THREAD__)
constexpr size_t kThreadsStep = 6;
#else
constexpr size_t kThreadsStep = 1;
#endif

void walk_threads() {
  Random random{5};
  const std::vector<lutkern_format> formats = all_formats();
  for (size_t f = 0; f < formats.size(); f += kThreadsStep) {
    set_case("threads, %s", formats[f].name);
    for_isas([&](const char*) { check_threads(formats, f, random); });
  }
  check_callers(random);
  check_ok(lutkern_set_num_threads(0));
}

// A child of fork has none of the pool's threads, and works.
void walk_fork() {
  Random random{7};
  set_case("fork");
  const std::vector<lutkern_format> formats = all_formats();
  const Sample w = make_sample(formats.back(), 1, 150, 1056, Content::sane, 0, random);
  const Input x = make_input(1, 1056, 1056, LUTKERN_F32, random);
  const Floats expected = matmul(w.tensor, x.matrix, with_threads(2));
  const pid_t child = fork();
  if (child < 0) fail("no child");
  if (child == 0) {
    check_same(matmul(w.tensor, x.matrix, with_threads(2)), expected, "child");
    _exit(0);
  }
  int status = -1;
  if (waitpid(child, &status, 0) != child || status != 0) fail("the child ended with %d", status);
}

struct Part {
  const char* name;
  void (*run)();
};

constexpr Part kParts[] = {{"activations", walk_activations},
                           {"floats", walk_floats},
                           {"products", walk_products},
                           {"moe", walk_moe},
                           {"pack", walk_pack},
                           {"threads", walk_threads},
                           {"errors", walk_errors},
                           {"fork", walk_fork}};

}  // namespace

int main(int argc, char** argv) {
  check_ok(lutkern_use_isa("scalar"));
  for (int i = 1; i < argc; ++i) {
    const auto named = [&](const Part& part) { return strcmp(part.name, argv[i]) == 0; };
    if (std::none_of(std::begin(kParts), std::end(kParts), named)) fail("unknown part %s", argv[i]);
  }
  int parts = 0;
  for (const Part& part : kParts) {
    const auto named = [&](const char* argument) { return strcmp(part.name, argument) == 0; };
    if (argc > 1 && std::none_of(argv + 1, argv + argc, named)) continue;
    g_worst = 0.0;
    const auto start = std::chrono::steady_clock::now();
    part.run();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    printf("walk: %-12s passed in %.1f s, worst error %.2f of its bound\n", part.name, seconds, g_worst);
    fflush(stdout);
    ++parts;
  }
  printf("walk: %d parts passed, instruction sets:", parts);
  for (const char* isa : all_isas()) printf(" %s", isa);
  printf("\n");
  return 0;
}
