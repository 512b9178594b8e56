// Part "floats" of walk: dequantize to numbers of 16 bits, and to more numbers than a cache holds.
#include "walk_support.h"

namespace {

long long number(int64_t n) { return static_cast<long long>(n); }

template <typename Body>
void for_isas(const Body& body) {
  for (const char* isa : all_isas()) {
    check_ok(lutkern_use_isa(isa));
    body(isa);
  }
  check_ok(lutkern_use_isa("scalar"));
}

bool is_nan(uint16_t bits, lutkern_dtype dtype) {
  return (bits & 0x7fffu) > (dtype == LUTKERN_F16 ? 0x7c00u : 0x7f80u);
}

// The same on every instruction set. A sum of two NaNs may be either of them.
void check_halves(const lutkern_tensor& w) {
  const int64_t size = w.experts * w.rows * w.cols;
  for (const lutkern_dtype dtype : {LUTKERN_F16, LUTKERN_BF16}) {
    Exact<uint16_t> expected(size);
    check_ok(lutkern_dequantize_to(&w, dtype, expected.get(), nullptr));
    for_isas([&](const char* isa) {
      Exact<uint16_t> got(size);
      check_ok(lutkern_dequantize_to(&w, dtype, got.get(), nullptr));
      for (int64_t i = 0; i < size; ++i) {
        const uint16_t a = got.get()[i];
        const uint16_t b = expected.get()[i];
        if (a != b && !(is_nan(a, dtype) && is_nan(b, dtype))) {
          fail("%s: dtype %d: element %lld is %04x, expected %04x", isa, dtype, number(i), a, b);
        }
      }
    });
  }
}

// Results that no cache holds are written in another way: three experts together, not one after another.
void check_large(const lutkern_tensor& w) {
  const int64_t size = w.rows * w.cols;
  for_isas([&](const char* isa) {
    Floats all = output(w.experts * size);
    check_ok(lutkern_dequantize(&w, all.get(), nullptr));
    for (int64_t e = 0; e < w.experts; ++e) {
      lutkern_tensor one;
      check_ok(lutkern_tensor_expert(&w, e, &one));
      Floats got = output(size);
      Floats part(size);
      memcpy(part.get(), all.get() + e * size, part.nbytes());
      check_ok(lutkern_dequantize(&one, got.get(), nullptr));
      check_same(part, got, isa);
    }
  });
}

}  // namespace

void walk_floats() {
  Random random{8};
  for (const lutkern_format& f : all_formats()) {
    for (const int64_t rows : {5, 27}) {
      for (const int64_t cols : {33, 300, 512}) {
        set_case("floats, %s, %lld x %lld", f.name, number(rows), number(cols));
        const Sample w = make_sample(f, 2, rows, cols, Content::any, 0, random);
        check_halves(w.tensor);
        check_halves(in_tiles(w.tensor, 0).tensor);
      }
    }
  }
  // Scales of 256 columns; blocks of 32; floats of 16 bits
  for (const char* name : {"iq1_m", "q4_1", "f16"}) {
    lutkern_format f;
    check_ok(lutkern_find_format(name, &f));
    for (const int64_t cols : {69888, 70004}) {
      set_case("floats, %s, 3 x 21 x %lld", name, number(cols));
      const Sample w = make_sample(f, 3, 21, cols, Content::any, 0, random);
      check_large(w.tensor);
      check_large(in_tiles(w.tensor, 0).tensor);
    }
  }
}
