#include "parity.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gpu/tile_blocks.h"

namespace parity {

using lutkern::FormatId;

void stop(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  vfprintf(stderr, text, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

uint32_t random_word() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state >> 32);
}

int random_below(int n) { return static_cast<int>(random_word() % static_cast<uint32_t>(n)); }

float random_number() {
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(random_word()) * 0x1p-32f - 0.5f;
  return 2 * sum;
}

// ---- weights ----

namespace {

struct Decoded {
  int8_t code[256];
  float scale[16];
  float offset[16];
};

bool is_handy(float x, float least) { return std::isfinite(x) && fabsf(x) <= 64 && fabsf(x) >= least; }

// Decodes a block; false if its scales are not finite numbers of a handy size.
template <class Block>
bool decode(const uint8_t* bytes, Decoded& out) {
  Block block;
  memcpy(&block, bytes, sizeof(block));
  if constexpr (Block::kIsFloat != 0) {
    out.scale[0] = weight(block);
    return is_handy(out.scale[0], 0x1p-14f);
  } else {
    float largest = 0;
    for (int i = 0; i < Block::kBlockSize / 8; ++i) memcpy(out.code + 8 * i, codes8(block, i).v, 8);
    for (int g = 0; g < Block::kBlockSize / 16; ++g) {
      out.scale[g] = scale16(block, g);
      out.offset[g] = offset16(block, g);
      if (!is_handy(out.scale[g], 0) || !is_handy(out.offset[g], 0)) return false;
      largest = fmaxf(largest, fabsf(out.scale[g]));
    }
    return largest > 0x1p-14f;
  }
}

struct Format {
  int block_size, block_bytes, tile_bytes;
  bool is_float;
  bool (*decode)(const uint8_t*, Decoded&);
  void (*encode)(const uint8_t* block, uint8_t* tile, int lane);
};

template <class Block>
void encode_block(const uint8_t* bytes, uint8_t* tile, int lane) {
  Block block;
  memcpy(&block, bytes, sizeof(block));
  lutkern::gpu::encode(block, tile, lane);
}

const Format& format_of(int format) {
  using namespace lutkern;
  static Format formats[kFormatCount];
  if (formats[0].block_size == 0) {
    int i = 0;
#define LUTKERN_FORMAT(name, Block)                                                           \
  formats[i++] = {Block::kBlockSize,    Block::kBlockBytes, cuda::tile_bytes(FormatId::name), \
                  Block::kIsFloat != 0, decode<Block>,      nullptr};
    LUTKERN_FORMATS(LUTKERN_FORMAT)
#undef LUTKERN_FORMAT
#define LUTKERN_ENCODE(name, Block) formats[static_cast<int>(FormatId::name)].encode = encode_block<Block>;
    LUTKERN_ENCODE(iq1_s, Iq1S)
    LUTKERN_ENCODE(iq1_m, Iq1M)
    LUTKERN_ENCODE(iq2_xxs, Iq2Xxs)
    LUTKERN_ENCODE(iq2_xs, Iq2Xs)
    LUTKERN_ENCODE(iq2_s, Iq2S)
    LUTKERN_ENCODE(iq3_xxs, Iq3Xxs)
    LUTKERN_ENCODE(iq3_s, Iq3S)
#undef LUTKERN_ENCODE
  }
  return formats[format];
}

int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

int64_t row_bytes_of(const Format& f, int stored_cols, Layout layout) {
  return layout == Layout::kTiles ? int64_t{stored_cols} / 256 * f.tile_bytes
                                  : int64_t{stored_cols} / f.block_size * f.block_bytes;
}

int64_t expert_bytes_of(const Format& f, int rows, int stored_cols, Layout layout) {
  return row_bytes_of(f, stored_cols, layout) * (layout == Layout::kTiles ? (rows + 31) / 32 : rows);
}

}  // namespace

Weight::Weight(int format_, int experts_, int rows_, int cols_, Layout layout_)
    : format(format_),
      experts(experts_),
      rows(rows_),
      cols(cols_),
      stored_cols(round_up(cols_, format_of(format_).block_size)),
      is_float(format_of(format_).is_float),
      layout(layout_),
      data(static_cast<size_t>(experts_ * expert_bytes_of(format_of(format_), rows_, stored_cols, layout_)), 0) {
  const Format& f = format_of(format);
  const size_t n_blocks = static_cast<size_t>(experts) * rows * (stored_cols / f.block_size);
  blocks.resize(n_blocks * f.block_bytes);
  code.resize(is_float ? 0 : n_blocks * f.block_size);
  scale.resize(is_float ? n_blocks : n_blocks * f.block_size / 16);
  offset.resize(is_float ? 0 : scale.size());
  decode_all();
  if (f.tile_bytes != 0) {
    tiles.resize(static_cast<size_t>(experts * expert_bytes_of(f, rows, stored_cols, Layout::kTiles)));
    const int tiles_of_row = stored_cols / 256;
    for (int64_t i = 0; i < static_cast<int64_t>(n_blocks); ++i) {
      const int64_t row = i / tiles_of_row;
      const int64_t tile_row = row / rows * ((rows + 31) / 32) + row % rows / 32;
      uint8_t* tile = tiles.data() + (tile_row * tiles_of_row + i % tiles_of_row) * f.tile_bytes;
      f.encode(blocks.data() + i * f.block_bytes, tile, static_cast<int>(row % rows % 32));
    }
  }
  const std::vector<uint8_t>& bytes = layout == Layout::kTiles ? tiles : blocks;
  if (bytes.size() != data.bytes()) stop("parity: %zu bytes of a weight, expected %zu", bytes.size(), data.bytes());
  memcpy(data.at<uint8_t>(), bytes.data(), bytes.size());
}

void Weight::decode_all() {
  const Format& f = format_of(format);
  Decoded d = {};
  for (size_t i = 0; i < blocks.size() / f.block_bytes; ++i) {
    uint8_t* block = blocks.data() + i * f.block_bytes;
    do {
      for (int j = 0; j < f.block_bytes; ++j) block[j] = static_cast<uint8_t>(random_word() >> 24);
    } while (!f.decode(block, d));
    if (is_float) {
      scale[i] = d.scale[0];
      continue;
    }
    memcpy(&code[i * f.block_size], d.code, f.block_size);
    memcpy(&scale[i * f.block_size / 16], d.scale, sizeof(float) * f.block_size / 16);
    memcpy(&offset[i * f.block_size / 16], d.offset, sizeof(float) * f.block_size / 16);
  }
}

lutkern::cuda::WeightArgs Weight::args() const {
  const Format& f = format_of(format);
  return {data.at<uint8_t>(),
          expert_bytes_of(f, rows, stored_cols, layout),
          row_bytes_of(f, stored_cols, layout),
          format,
          layout == Layout::kTiles ? 1 : 0,
          experts,
          rows,
          cols,
          stored_cols};
}

float Weight::at(int expert, int row, int col) const {
  const size_t i = static_cast<size_t>(row_of(expert, row)) * stored_cols + col;
  return is_float ? scale[i] : scale[i / 16] * static_cast<float>(code[i]) + offset[i / 16];
}

// ---- activations ----

float quantize_group(const float* x, int8_t* q) {
  float largest = 0;
  bool finite = true;
  for (int i = 0; i < 32; ++i) {
    finite = finite && std::isfinite(x[i]);
    largest = fmaxf(largest, fabsf(x[i]));
  }
  const float scale = largest / 127.0f;
  for (int i = 0; i < 32; ++i) {
    q[i] = !finite || scale < 0x1p-126f ? int8_t{0} : static_cast<int8_t>(nearbyintf(x[i] * (127.0f / largest)));
  }
  return !finite ? NAN : (scale < 0x1p-126f ? 0.0f : scale);
}

static float rounded(float x, int dtype, void* to, size_t i) {
  if (dtype == 0) {
    static_cast<float*>(to)[i] = x;
    return x;
  }
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (dtype == 2) {
    bits &= 0xffff0000u;
    static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(bits >> 16);
    return lutkern::float_from_bits(bits);
  }
  if (!std::isfinite(x)) {
    static_cast<uint16_t*>(to)[i] = 0x7e00;
    return NAN;
  }
  // Ten bits after the point, of numbers between 2^-14 and 2^15; others become 0.
  const bool small = fabsf(x) < 0x1p-14f;
  bits = small ? 0 : bits & 0xffffe000u;
  const uint32_t half = small ? 0 : (bits >> 16 & 0x8000u) | ((bits & 0x7fffffffu) - (112u << 23)) >> 13;
  static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(half);
  return lutkern::float_from_bits(bits);
}

Activations::Activations(int rows_, int cols_, int dtype_, int gap)
    : rows(rows_),
      cols(cols_),
      dtype(dtype_),
      stride(cols_ + gap),
      padded(round_up(cols_, 256)),
      x(static_cast<size_t>(rows_) * padded),
      q(x.size()),
      scale(x.size() / 32),
      data(static_cast<size_t>((rows_ - 1) * stride + cols_) * (dtype_ == 0 ? 4 : 2)),
      q_data(x.size()),
      scale_data(4 * scale.size()) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < cols; ++c) {
      float number = random_number();
      if (c / 32 == 2) number = 0;                             // a group without a scale
      if (r == 5 && c == 70) number = NAN;                     // a token that is not a number
      if (c / 32 == 4) number *= dtype == 0 ? 0x1p-60f : 1.f;  // numbers far smaller than the others
      x[static_cast<size_t>(r) * padded + c] =
          rounded(number, dtype, data.at<void>(), static_cast<size_t>(r) * stride + c);
    }
  }
  for (size_t g = 0; g < scale.size(); ++g) scale[g] = quantize_group(&x[32 * g], &q[32 * g]);
  memcpy(q_data.at<int8_t>(), q.data(), q.size());
  memcpy(scale_data.at<float>(), scale.data(), 4 * scale.size());
}

lutkern::cuda::MatrixArgs Activations::args() const { return {data.at<void>(), stride, dtype, rows, cols, 0}; }

lutkern::cuda::Quantized Activations::quantized() const {
  return {q_data.at<int8_t>(), scale_data.at<float>(), padded};
}

// ---- products ----

// Single precision adds at most as many terms as there are one after another, each time with half a unit of error.
Sum product(const Weight& w, int expert, int row, const Activations& x, int token, bool exact) {
  const size_t first = static_cast<size_t>(w.row_of(expert, row)) * w.stored_cols;
  const size_t begin = static_cast<size_t>(token) * x.padded;
  Sum sum;
  double magnitude = 0;
  if (exact || w.is_float) {
    for (int c = 0; c < w.cols; ++c) {
      const double term = static_cast<double>(w.at(expert, row, c)) * x.x[begin + c];
      sum.value += term;
      magnitude += fabs(term);
    }
    sum.bound = (w.cols + 16) * 0x1p-24 * magnitude;
    return sum;
  }
  for (int g = 0; g < (w.cols + 15) / 16; ++g) {
    int dot = 0, total = 0, dot_magnitude = 0;
    for (int j = 0; j < 16; ++j) {
      const int q = x.q[begin + 16 * g + j];
      const int term = q * w.code[first + 16 * g + j];
      dot += term;
      dot_magnitude += abs(term);
      total += q;
    }
    const double scale = x.scale[(begin + 16 * g) / 32];
    sum.value += scale * (static_cast<double>(w.scale[first / 16 + g]) * dot +
                          static_cast<double>(w.offset[first / 16 + g]) * total);
    magnitude += scale * (fabs(w.scale[first / 16 + g]) * dot_magnitude +
                          fabs(static_cast<double>(w.offset[first / 16 + g]) * total));
  }
  sum.bound = (w.cols / 8 + 16) * 0x1p-24 * magnitude;
  return sum;
}

}  // namespace parity
