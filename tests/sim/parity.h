// What the kernels are held against: weights of random blocks, decoded by formats/, and products in double.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include <vector>

#include "cuda/arguments.h"
#include "launch.h"

namespace parity {

[[noreturn]] void stop(const char* text, ...) __attribute__((format(printf, 1, 2)));

uint32_t random_word();
int random_below(int n);
float random_number();  // about normal

// Memory of a device: exactly as large as asked, at a multiple of 256, and known to the simulator.
class Memory {
 public:
  explicit Memory(size_t bytes, uint8_t fill = 0xff) : bytes_(bytes) {
    if (posix_memalign(&data_, 256, bytes > 0 ? bytes : 1) != 0) abort();
    for (size_t i = 0; i < bytes; ++i) at<uint8_t>()[i] = fill;
    lk_sim_register(data_, bytes);
  }
  ~Memory() {
    lk_sim_unregister(data_);
    free(data_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <class T>
  T* at() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  std::vector<uint8_t> copy() const { return std::vector<uint8_t>(at<uint8_t>(), at<uint8_t>() + bytes_); }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

enum class Layout { kBlocks, kTiles };

// weight[e, r, c] = scale[c / 16] * code[c] + offset[c / 16], or a float
struct Weight {
  Weight(int format, int experts, int rows, int cols, Layout layout);
  lutkern::cuda::WeightArgs args() const;
  float at(int expert, int row, int col) const;
  int64_t row_of(int expert, int row) const { return int64_t{expert} * rows + row; }

  int format, experts, rows, cols, stored_cols;
  bool is_float;
  Layout layout;
  std::vector<uint8_t> blocks;  // of GGUF
  std::vector<uint8_t> tiles;   // of tile.h, empty where the format has none
  std::vector<int8_t> code;     // of each stored column
  std::vector<float> scale;     // of 16, or of each column of floats
  std::vector<float> offset;    // of 16
  Memory data;

 private:
  void decode_all();
};

// Rows of activations, and what becomes of them as integers
struct Activations {
  Activations(int rows, int cols, int dtype, int gap);
  lutkern::cuda::MatrixArgs args() const;
  lutkern::cuda::Quantized quantized() const;  // codes and scales on the device

  int rows, cols, dtype, stride, padded;  // padded: columns of codes
  std::vector<float> x;                   // rows x padded, as the device sees them
  std::vector<int8_t> q;
  std::vector<float> scale;
  Memory data, q_data, scale_data;
};

// How 32 numbers become integers
float quantize_group(const float* x, int8_t* q);

struct Sum {
  double value = 0;
  double bound = 0;  // of what single precision may make of it
};

// Row of an expert times row `token`, as integers or as numbers
Sum product(const Weight& w, int expert, int row, const Activations& x, int token, bool exact);

}  // namespace parity
