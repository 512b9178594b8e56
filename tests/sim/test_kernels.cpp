// Every kernel of csrc/cuda that is linked in, against formats/ and sums in double, with several seeds: the results of all
// seeds are the same bits.
//
//   kernels [SEEDS [KERNEL ...]]        KERNEL: how the names of kernels begin
#include <stdio.h>
#include <string.h>

#include <functional>
#include <string>

#include "cuda/block_plan.h"
#include "cuda/kernels.h"
#include "formats/formats.h"
#include "parity.h"

namespace {

using namespace lutkern::cuda;
using parity::Activations;
using parity::Layout;
using parity::Memory;
using parity::stop;
using parity::Sum;
using parity::Weight;

int g_seeds = 2;
std::string g_kernel;  // that is tested

const char* const kFormatNames[] = {
#define LUTKERN_NAME(name, Block) #name,
    LUTKERN_FORMATS(LUTKERN_NAME)
#undef LUTKERN_NAME
};

// Runs the kernel with each seed; out is what it writes, the same each time.
template <class Args>
void run(const Args& args, const std::vector<const Memory*>& out) {
  std::vector<std::vector<uint8_t>> before, first;
  for (const Memory* memory : out) before.push_back(memory->copy());
  for (int seed = 0; seed < g_seeds; ++seed) {
    for (size_t i = 0; i < out.size(); ++i) memcpy(out[i]->at<uint8_t>(), before[i].data(), before[i].size());
    char error[400] = "";
    if (lk_sim_run(g_kernel.c_str(), &args, sizeof(args), 0, static_cast<uint64_t>(seed), error, sizeof(error)) != 0) {
      stop("seed %d: %s", seed, error);
    }
    for (size_t i = 0; i < out.size(); ++i) {
      if (seed == 0) {
        first.push_back(out[i]->copy());
      } else if (memcmp(out[i]->at<uint8_t>(), first[i].data(), first[i].size()) != 0) {
        stop("%s: seed %d gives another result", g_kernel.c_str(), seed);
      }
    }
  }
}

void expect_near(float found, const Sum& expected, const char* what, int64_t i, int64_t j) {
  const bool nan = expected.value != expected.value;
  if (nan ? found != found : fabs(found - expected.value) <= expected.bound + 1e-37) return;
  stop("%s: %s %lld, %lld is %.9g, expected %.9g within %.3g", g_kernel.c_str(), what, static_cast<long long>(i),
       static_cast<long long>(j), found, expected.value, expected.bound);
}

void expect_bytes(const uint8_t* found, const uint8_t* expected, size_t n, const char* what) {
  for (size_t i = 0; i < n; ++i) {
    if (found[i] != expected[i]) {
      stop("%s: byte %zu of %s is %02x, expected %02x", g_kernel.c_str(), i, what, found[i], expected[i]);
    }
  }
}

bool is_untouched(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits == 0xffffffffu;
}

// ---- repack, dequantize, quantize ----

void check_repack(int format, bool to_tiles) {
  const Weight w(format, 2, 45, 768, Layout::kBlocks);
  const std::vector<uint8_t>& from = to_tiles ? w.blocks : w.tiles;
  const std::vector<uint8_t>& to = to_tiles ? w.tiles : w.blocks;
  Memory from_data(from.size()), to_data(to.size());
  memcpy(from_data.at<uint8_t>(), from.data(), from.size());
  const RepackArgs args = {from_data.at<uint8_t>(), to_data.at<uint8_t>(), w.experts, w.rows, w.stored_cols / 256, 0};
  run(args, {&to_data});
  expect_bytes(to_data.at<uint8_t>(), to.data(), to.size(), to_tiles ? "tiles" : "blocks");
}

void check_dequantize(int format, Layout layout) {
  const Weight w(format, 2, 37, 330, layout);
  for (int dtype = 0; dtype < 3; ++dtype) {
    const size_t n = static_cast<size_t>(w.experts) * w.rows * w.cols;
    Memory out(n * (dtype == 0 ? 4 : 2));
    run(DequantizeArgs{w.args(), out.at<void>(), dtype, 0}, {&out});
    for (size_t i = 0; i < n; ++i) {
      const int row = static_cast<int>(i / w.cols);
      const float expected = w.at(row / w.rows, row % w.rows, static_cast<int>(i % w.cols));
      float found;
      Sum sum = {expected, 0};
      if (dtype == 0) {
        found = out.at<float>()[i];
      } else if (dtype == 1) {
        found = lutkern::float_from_half(out.at<uint16_t>()[i]);
        sum.bound = fmax(fabs(expected) * 0x1p-11, 0x1p-25);
      } else {
        found = lutkern::float_from_bits(static_cast<uint32_t>(out.at<uint16_t>()[i]) << 16);
        sum.bound = fabs(expected) * 0x1p-8;
      }
      expect_near(found, sum, "number", static_cast<int64_t>(i), dtype);
    }
  }
}

void check_quantize() {
  for (int dtype = 0; dtype < 3; ++dtype) {
    const Activations x(7, 700, dtype, dtype * 4);
    Memory q(x.q.size()), scale(4 * x.scale.size());
    run(QuantizeArgs{x.args(), {q.at<int8_t>(), scale.at<float>(), x.padded}}, {&q, &scale});
    expect_bytes(q.at<uint8_t>(), reinterpret_cast<const uint8_t*>(x.q.data()), x.q.size(), "codes");
    for (size_t i = 0; i < x.scale.size(); ++i) {
      expect_near(scale.at<float>()[i], {x.scale[i], 0}, "scale", static_cast<int64_t>(i), dtype);
    }
  }
}

// ---- products ----

enum : int { kManyCols = 256 * (kStagedTiles + 2) };  // more than are staged at once

void check_product(int format, Layout layout, int tokens, int dtype, int cols, bool exact) {
  const Weight w(format, 1, 77, cols, layout);
  const Activations x(tokens, cols, dtype, dtype == 1 ? 3 : 0);
  const int begin = tokens % 2 == 0 ? 5 : 0, end = tokens % 2 == 0 ? 70 : w.rows;
  const int stride = w.rows + 3;
  Memory out(4 * static_cast<size_t>(tokens) * stride);
  ProductArgs args = {w.args(), x.args(), {nullptr, nullptr, 0}, out.at<float>(), stride, begin, end, exact ? 1 : 0, 0};
  if (g_kernel.compare(0, 12, "matmul_large") == 0) args.xq = x.quantized();
  run(args, {&out});
  for (int t = 0; t < tokens; ++t) {
    for (int row = 0; row < stride; ++row) {
      const float found = out.at<float>()[t * stride + row];
      if (row >= begin && row < end) {
        expect_near(found, parity::product(w, 0, row, x, t, exact), "token, row", t, row);
      } else if (!is_untouched(found)) {
        stop("%s: token %d writes row %d", g_kernel.c_str(), t, row);
      }
    }
  }
}

// ---- experts ----

enum : int { kExperts = 5, kSlots = 3, kHidden = 300, kInter = 290 };

struct Ids {
  Ids(int tokens, bool broken) : ids(4 * static_cast<size_t>(tokens) * kSlots), weights(ids.bytes()) {
    for (int i = 0; i < tokens * kSlots; ++i) {
      at(i) = i % 7 == 3 ? -1 : parity::random_below(kExperts);
      weights.at<float>()[i] = parity::random_number();
    }
    at(1) = at(0);  // the same expert twice
    if (broken) at(4) = kExperts;
  }
  int32_t& at(int pair) { return ids.at<int32_t>()[pair]; }
  Memory ids, weights;
};

Sum activated(int activation, const Sum& g) {
  const double x = g.value;
  const double y = activation == 1   ? x / (1 + exp(-x))
                   : activation == 2 ? x / 2 * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
                   : activation == 3 ? fmax(x, 0) * fmax(x, 0)
                                     : x;
  // No slope is above 1.2, but that of the square.
  return {y, (activation == 3 ? 2 * fabs(x) + g.bound : 1.2) * g.bound + 1e-6 * fabs(y) + 1e-7};
}

// 32 rows of h as integers, against h
void expect_group(const float* scale, const int8_t* q, const Sum* h, int64_t pair, int row) {
  double largest = 0, bound = 0;
  bool nan = false;
  for (int i = 0; i < 32; ++i) {
    nan = nan || h[i].value != h[i].value;
    largest = fmax(largest, fabs(h[i].value));
    bound = fmax(bound, h[i].bound);
  }
  if (nan) largest = NAN;
  expect_near(*scale, {largest / 127, bound / 127 + largest * 1e-9}, "scale of h", pair, row);
  for (int i = 0; i < 32 && !nan; ++i) {
    expect_near(*scale * static_cast<float>(q[i]), {h[i].value, 0.5001 * largest / 127 + 2 * bound}, "h", pair,
                row + i);
  }
}

void check_up(const Weight* gate, const Weight& up, int tokens, int activation, bool exact) {
  const Activations x(tokens, kHidden, tokens % 3, 0);
  Ids ids(tokens, true);
  const int stride = 512;
  const int pairs = tokens * kSlots;
  Memory q(static_cast<size_t>(pairs) * stride), scale(4 * static_cast<size_t>(pairs) * stride / 32);
  Memory floats(4 * static_cast<size_t>(pairs) * stride);
  MoeArgs args = {};
  if (gate != nullptr) args.gate = gate->args();
  args.up = up.args();
  args.x = x.args();
  args.ids = ids.ids.at<int32_t>();
  args.weights = ids.weights.at<float>();
  args.h = {q.at<int8_t>(), scale.at<float>(), stride};
  args.h_float = floats.at<float>();
  args.h_stride = stride;
  args.k = kSlots;
  args.activation = activation;
  args.exact = exact ? 1 : 0;
  args.partial = 1;
  run(args, {&q, &scale, &floats});
  for (int pair = 0; pair < pairs; ++pair) {
    const int expert = ids.at(pair);
    if (expert < 0 || expert >= kExperts) continue;
    for (int group = 0; group < stride / 32; ++group) {
      Sum h[32];
      for (int i = 0; i < 32 && 32 * group + i < kInter; ++i) {
        const int row = 32 * group + i;
        const Sum u = parity::product(up, expert, row, x, pair / kSlots, exact);
        const Sum a = activated(activation, gate ? parity::product(*gate, expert, row, x, pair / kSlots, exact) : u);
        h[i] = a;
        if (gate != nullptr) {
          h[i] = {a.value * u.value, a.bound * (fabs(u.value) + u.bound) + fabs(a.value) * u.bound};
          h[i].bound += 1e-7 * fabs(h[i].value);
        }
        expect_near(floats.at<float>()[pair * stride + row], h[i], "h", pair, row);
      }
      expect_group(scale.at<float>() + pair * (stride / 32) + group, q.at<int8_t>() + pair * stride + 32 * group, h,
                   pair, 32 * group);
    }
  }
}

void check_down(const Weight& down, int tokens, bool broken, bool exact) {
  const Activations h(tokens * kSlots, kInter, 0, 0);
  Ids ids(tokens, broken);
  Memory out(4 * static_cast<size_t>(tokens) * down.rows);
  MoeArgs args = {};
  args.up = down.args();  // for its number of experts
  args.up.data = nullptr;
  args.down = down.args();
  args.x.rows = tokens;
  args.ids = ids.ids.at<int32_t>();
  args.weights = ids.weights.at<float>();
  args.h = h.quantized();
  Memory floats(4 * h.x.size());
  memcpy(floats.at<float>(), h.x.data(), 4 * h.x.size());
  args.h_float = floats.at<float>();
  args.h_stride = h.padded;
  args.out = out.at<float>();
  args.k = kSlots;
  args.exact = exact ? 1 : 0;
  args.partial = 1;
  run(args, {&out});
  for (int t = 0; t < tokens; ++t) {
    for (int row = 0; row < down.rows; ++row) {
      Sum sum;
      for (int pair = t * kSlots; pair < (t + 1) * kSlots; ++pair) {
        if (ids.at(pair) >= kExperts) sum.value = NAN;
        if (ids.at(pair) < 0 || ids.at(pair) >= kExperts) continue;
        const Sum part = parity::product(down, ids.at(pair), row, h, pair, exact);
        const double weight = ids.weights.at<float>()[pair];
        sum.value += weight * part.value;
        sum.bound += fabs(weight) * (part.bound + 1e-6 * fabs(part.value));
      }
      expect_near(out.at<float>()[t * down.rows + row], sum, "token, row", t, row);
    }
  }
}

Weight expert_weight(int format, bool down, Layout layout) {
  return Weight(format, kExperts, down ? kHidden : kInter, down ? kInter : kHidden, layout);
}

// ---- which check a kernel has ----

// The number of the format that ends the name; -1: none does.
int format_of(const std::string& name) {
  for (int i = 0; i < lutkern::kFormatCount; ++i) {
    const std::string end = std::string("_") + kFormatNames[i];
    if (name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0) return i;
  }
  return -1;
}

void check_tile_kernel(const std::string& family, int format) {
  const Layout tiles = Layout::kTiles;
  if (family == "to_tiles" || family == "to_blocks") {
    check_repack(format, family == "to_tiles");
  } else if (family == "dequantize") {
    check_dequantize(format, tiles);
  } else if (family == "matvec") {
    for (int dtype = 0; dtype < 3; ++dtype) check_product(format, tiles, 1 + dtype % 2, dtype, 720, false);
    check_product(format, tiles, 1, 0, kManyCols, false);
  } else if (family == "matmul_small") {
    for (int tokens = 2; tokens <= 8; tokens += 3) check_product(format, tiles, tokens, tokens % 3, 720, false);
  } else if (family == "matmul_large") {
    for (int tokens : {9, 66}) check_product(format, tiles, tokens, 0, 720, false);
  } else if (family == "moe_up" || family == "moe_up_batch") {
    const Weight gate = expert_weight(format, false, tiles), up = expert_weight(format, false, tiles);
    for (int tokens : {2, 7}) check_up(tokens == 2 ? nullptr : &gate, up, tokens, 1 + format % 3, false);
  } else if (family == "moe_down" || family == "moe_down_batch") {
    const Weight down = expert_weight(format, true, tiles);
    for (int tokens : {2, 7}) check_down(down, tokens, tokens == 2, false);
  } else {
    stop("%s: there is no check for it", g_kernel.c_str());
  }
}

void check_mixed() {
  const int last = static_cast<int>(lutkern::FormatId::iq3_s);
  for (int format = 0; format <= last; ++format) {
    const Weight gate = expert_weight(format, false, Layout::kTiles);
    const Weight up = expert_weight((format + 2) % (last + 1), false, Layout::kTiles);
    check_up(&gate, up, 6, 1, false);
  }
}

// Every format in both layouts, integers and numbers
void check_any() {
  const int tile_formats = static_cast<int>(lutkern::FormatId::iq3_s) + 1;
  // A layer has the same decoder as a product: it meets each third format.
  const int step = g_kernel.compare(0, 4, "moe_") == 0 ? 3 : 1;
  for (int i = 0; i < lutkern::kFormatCount + tile_formats; i += step) {
    const int format = i % lutkern::kFormatCount;
    const Layout layout = i < lutkern::kFormatCount ? Layout::kBlocks : Layout::kTiles;
    const bool exact = i % 2 == 1;
    if (g_kernel == "dequantize_any") {
      check_dequantize(format, layout);
    } else if (g_kernel == "product_any") {
      check_product(format, layout, 1 + i % 10, i % 3, i % 4 == 0 ? 1300 : 720, exact);
    } else if (g_kernel == "moe_up_any") {
      const Weight gate = expert_weight(format, false, layout), up = expert_weight(format, false, layout);
      check_up(i % 4 == 0 ? nullptr : &gate, up, 2, i % 4, exact);
    } else {
      check_down(expert_weight(format, true, layout), 2, i % 5 == 0, exact);
    }
  }
}

void check_kernel(const std::string& kernel) {
  g_kernel = kernel;
  const int format = format_of(kernel);
  if (kernel == "quantize") {
    check_quantize();
  } else if (format >= 0) {
    check_tile_kernel(kernel.substr(0, kernel.size() - strlen(kFormatNames[format]) - 1), format);
  } else if (kernel == "moe_up_mixed" || kernel == "moe_up_batch_mixed") {
    check_mixed();
  } else if (kernel.size() > 4 && kernel.compare(kernel.size() - 4, 4, "_any") == 0) {
    check_any();
  } else {
    stop("%s: there is no check for it", kernel.c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) g_seeds = atoi(argv[1]);
  int checked = 0;
  for (int i = 0; const char* kernel = lk_sim_kernel_at(i, nullptr); ++i) {
    bool wanted = argc <= 2;
    for (int j = 2; j < argc; ++j) wanted = wanted || strncmp(argv[j], kernel, strlen(argv[j])) == 0;
    if (!wanted) continue;
    check_kernel(kernel);
    ++checked;
  }
  if (checked == 0) stop("kernels: there is none");
  printf("kernels: %d checked with %d seeds\n", checked, g_seeds);
  return 0;
}
