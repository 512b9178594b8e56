// The scalar row: plain C++ for every format, the judge of the faster rows and their fall-through.
//
//   y = sum over 32 columns of x.scale * (scale0 * dot16 + scale1 * dot16' + offset terms)
//
// dot16 is an exact integer (16 * 127 * 128 < 2^31); fp32 enters at the scales. The caller guarantees whole blocks and
// activations padded to 256 columns.
#include "kernels.h"

namespace lutkern {
namespace {

template <class Block>
struct OwnUnpack {
  static constexpr bool kExists = false;
};

#include "unpack.inl.h"

struct Sum {
  float value;
};

template <bool kHasOffset>
static inline float dot_chunk(const Unpacked& u, int n, const int8_t* q, const float* scale, const int16_t* sum) {
  float out = 0.0f;
  for (int g = 0; g < n / kActivationGroup; ++g) {
    float group = 0.0f;
    for (int half = 2 * g; half < 2 * g + 2; ++half) {
      int32_t dot = 0;
      for (int j = 16 * half; j < 16 * half + 16; ++j) dot += static_cast<int32_t>(u.q[j]) * q[j];
      group += u.scale[half] * static_cast<float>(dot);
      if (kHasOffset) group += u.offset[half] * static_cast<float>(sum[2 * half] + sum[2 * half + 1]);
    }
    out += scale[g] * group;
  }
  return out;
}

template <bool kHasOffset>
static inline void add_chunk(Sum& total_sum, const Unpacked& u, int n, const int8_t* q, const float* scale,
                             const int16_t* sum) {
  total_sum.value += dot_chunk<kHasOffset>(u, n, q, scale, sum);
}

static inline float total(const Sum& sum) { return sum.value; }

struct PanelScales {};

static inline void load_scales(const Unpacked*, int, int, PanelScales&) {}

template <bool kHasOffset>
static inline void dot_panel(const Unpacked* u, const PanelScales&, int n_rows, int n, const int8_t* q,
                             const float* scale, const int16_t* sum, float* dots) {
  for (int p = 0; p < n_rows; ++p) dots[p] = dot_chunk<kHasOffset>(u[p], n, q, scale, sum);
}

// Eight partial sums: the error grows with n / 8, and a compiler may keep them in one vector.
static inline float dot_float(const float* w, const float* x, int n) {
  float lane[8] = {};
  int c = 0;
  for (; c + 8 <= n; c += 8) {
    for (int j = 0; j < 8; ++j) lane[j] += w[c + j] * x[c + j];
  }
  for (; c < n; ++c) lane[c % 8] += w[c] * x[c];
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

static inline float largest_magnitude(const float* x) {
  float largest = 0.0f;
  for (int j = 0; j < kActivationGroup; ++j) {
    const float magnitude = __builtin_fabsf(x[j]);
    if (!(magnitude <= largest)) largest = magnitude;
    if (largest != largest) return largest;
  }
  return largest;
}

static inline void round_group(const float* x, float inverse, int8_t* q) {
  // Adding 1.5 * 2^23 rounds to an integer, half to even, for magnitudes below 2^22.
  for (int j = 0; j < kActivationGroup; ++j) {
    const float shifted = x[j] * inverse + 12582912.0f;
    q[j] = static_cast<int8_t>(shifted - 12582912.0f);
  }
}

#include "gemv.inl.h"

#include "gemm.inl.h"

#include "integer_kernels.inl.h"

#include "quantize.inl.h"

#include "narrow.inl.h"

static void to_f16(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = half_of_float(x[i]);
}
static void to_bf16(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = bf16_of_float(x[i]);
}

}  // namespace

#define LUTKERN_GEMV(name, Block) IntegerKernels<Block>::kGemv,
#define LUTKERN_GEMM(name, Block) IntegerKernels<Block>::kGemm,
#define LUTKERN_GEMM_FLOAT(name, Block) gemm_float<Block>,
#define LUTKERN_DEQUANTIZE(name, Block) dequantize<Block>,

extern const BlockKernels kScalarKernels = {
    "scalar",
    {LUTKERN_FORMATS(LUTKERN_GEMV)},
    {LUTKERN_FORMATS(LUTKERN_GEMM)},
    {LUTKERN_FORMATS(LUTKERN_GEMM_FLOAT)},
    {LUTKERN_FORMATS(LUTKERN_DEQUANTIZE)},
    quantize,
    to_f16,
    to_bf16,
};

}  // namespace lutkern
