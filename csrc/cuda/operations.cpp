#include "operations.h"

#include <string.h>

namespace lutkern {
namespace cuda {

namespace {

enum : int64_t { kPad = 256 /* columns of activations are padded to a multiple of this */ };

int64_t padded(int64_t cols) { return (cols + kPad - 1) / kPad * kPad; }

// -1 where the format has no tiles
int tile_index(FormatId format) {
  enum class Index : int {
#define LUTKERN_INDEX(name, Block) name,
    LUTKERN_CUDA_TILE_FORMATS(LUTKERN_INDEX)
#undef LUTKERN_INDEX
  };
  switch (format) {
#define LUTKERN_INDEX(name, Block) \
  case FormatId::name:             \
    return static_cast<int>(Index::name);
    LUTKERN_CUDA_TILE_FORMATS(LUTKERN_INDEX)
#undef LUTKERN_INDEX
    default:
      return -1;
  }
}

// The kernel of a format, from that of the first one: the list has them format by format.
KernelId of_format(KernelId iq1_s, FormatId format) {
  constexpr int kStride = static_cast<int>(KernelId::to_tiles_iq1_m) - static_cast<int>(KernelId::to_tiles_iq1_s);
  static_assert(static_cast<int>(KernelId::moe_down_batch_iq3_s) ==
                    static_cast<int>(KernelId::moe_down_batch_iq1_s) + 6 * kStride,
                "the list has the kernels format by format");
  return static_cast<KernelId>(static_cast<int>(iq1_s) + kStride * tile_index(format));
}

bool in_tiles(const WeightArgs& w) { return w.tiles != 0; }

WeightArgs args_of(const Weight* w) {
  if (!w) return WeightArgs{};
  return WeightArgs{w->data,
                    w->expert_bytes,
                    w->row_bytes,
                    static_cast<int32_t>(w->format),
                    w->layout == Layout::tiles,
                    static_cast<int32_t>(w->experts),
                    static_cast<int32_t>(w->rows),
                    static_cast<int32_t>(w->cols),
                    static_cast<int32_t>(w->stored_cols)};
}

MatrixArgs args_of(const Matrix& m) {
  return MatrixArgs{
      m.data, m.row_stride, static_cast<int32_t>(m.dtype), static_cast<int32_t>(m.rows), static_cast<int32_t>(m.cols),
      0};
}

Address address_of(const void* p) { return static_cast<Address>(reinterpret_cast<uintptr_t>(p)); }

// Memory of the device for one operation: all its parts at once, each aligned for any load.
class Scratch {
 public:
  Scratch(Device& device, Stream stream) : device_(device), stream_(stream) {}
  ~Scratch() {
    if (base_) device_.release(base_, stream_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // The place of a part, before allocate()
  size_t add(size_t bytes) {
    const size_t at = bytes_;
    bytes_ += (bytes + 255) / 256 * 256;
    return at;
  }
  bool allocate() { return bytes_ == 0 || device_.allocate(bytes_, stream_, &base_); }
  template <typename T>
  T* part(size_t at) const {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(base_ + at));
  }

 private:
  Device& device_;
  Stream stream_;
  size_t bytes_ = 0;
  Address base_ = 0;
};

// Activations as integers, and where they lie in scratch
struct QuantizedPart {
  int64_t stride;
  size_t q;
  size_t scale;

  QuantizedPart(Scratch& scratch, int64_t rows, int64_t cols)
      : stride(padded(cols)),
        q(scratch.add(static_cast<size_t>(rows * stride))),
        scale(scratch.add(static_cast<size_t>(rows * (stride / kGroup)) * sizeof(float))) {}
  Quantized in(const Scratch& scratch) const {
    return Quantized{scratch.part<int8_t>(q), scratch.part<float>(scale), stride};
  }
};

int64_t element_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

HostRows host_rows(const Matrix& m) {
  const int64_t element = element_bytes(m.dtype);
  return HostRows{const_cast<void*>(m.data), m.rows, static_cast<size_t>(m.cols * element),
                  static_cast<size_t>(m.row_stride * element)};
}

HostRows host_bytes(const void* data, int64_t n) {
  return HostRows{const_cast<void*>(data), 1, static_cast<size_t>(n), static_cast<size_t>(n)};
}

// The matrix when its rows lie side by side on the device.
Matrix moved(const Matrix& m, const void* data, int32_t device) {
  return Matrix{data, m.dtype, m.rows, m.cols, m.cols, device};
}

bool tuned(const WeightArgs& w, bool exact) { return in_tiles(w) && !exact; }

KernelId choose_product(const Device& device, const ProductArgs& args) {
  if (!tuned(args.w, args.exact != 0)) return KernelId::product_any;
  KernelId kernel = KernelId::matmul_large_iq1_s;
  if (args.x.rows == 1) {
    kernel = KernelId::matvec_iq1_s;
  } else if (args.x.rows <= kSmallTokens) {
    kernel = KernelId::matmul_small_iq1_s;
  }
  kernel = of_format(kernel, static_cast<FormatId>(args.w.format));
  return device.fits(kernel, &args) ? kernel : KernelId::product_any;
}

bool wants_floats(const WeightArgs& w, bool exact) { return exact || kFormatInfo[w.format].is_float; }

KernelId choose_up(const Device& device, const MoeArgs& args) {
  const bool exact = args.exact != 0;
  const bool gated = args.gate.data != nullptr;
  if (!tuned(args.up, exact) || (gated && !tuned(args.gate, exact)) || args.h_float) return KernelId::moe_up_any;
  const bool few = int64_t{args.x.rows} * args.k <= kFewPairs;
  KernelId kernel = few ? KernelId::moe_up_mixed : KernelId::moe_up_batch_mixed;
  if (!gated || args.gate.format == args.up.format) {
    kernel =
        of_format(few ? KernelId::moe_up_iq1_s : KernelId::moe_up_batch_iq1_s, static_cast<FormatId>(args.up.format));
  }
  return device.fits(kernel, &args) ? kernel : KernelId::moe_up_any;
}

KernelId choose_down(const Device& device, const MoeArgs& args) {
  if (!tuned(args.down, args.exact != 0)) return KernelId::moe_down_any;
  const bool few = int64_t{args.x.rows} * args.k <= kFewPairs;
  const KernelId kernel = of_format(few ? KernelId::moe_down_iq1_s : KernelId::moe_down_batch_iq1_s,
                                    static_cast<FormatId>(args.down.format));
  return device.fits(kernel, &args) ? kernel : KernelId::moe_down_any;
}

}  // namespace

bool has_tiles(FormatId format) { return tile_index(format) >= 0; }

int64_t tile_row_bytes(FormatId format, int64_t cols) {
  return has_tiles(format) ? (cols + kTileCols - 1) / kTileCols * tile_bytes(format) : 0;
}

KernelId repack_kernel(FormatId format, bool to_tiles) {
  return of_format(to_tiles ? KernelId::to_tiles_iq1_s : KernelId::to_blocks_iq1_s, format);
}

KernelId dequantize_kernel(FormatId format, Layout layout) {
  return layout == Layout::tiles ? of_format(KernelId::dequantize_iq1_s, format) : KernelId::dequantize_any;
}

bool dequantize(Device& device, const Weight& w, Dtype dtype, void* out, Stream stream) {
  const DequantizeArgs args{args_of(&w), out, static_cast<int32_t>(dtype), 0};
  return device.launch(dequantize_kernel(w.format, w.layout), &args, stream);
}

namespace {

bool run_product(Device& device, ProductArgs& args, const QuantizedPart& xq, const Scratch& scratch, Stream stream) {
  const KernelId kernel = choose_product(device, args);
  if (args.x.rows > kSmallTokens && kernel != KernelId::product_any) {
    args.xq = xq.in(scratch);
    const QuantizeArgs quantize{args.x, args.xq};
    if (!device.launch(KernelId::quantize, &quantize, stream)) return false;
  }
  return device.launch(kernel, &args, stream);
}

// x and out in the memory of the CPU
bool multiply_staged(Device& device, const ProductWork& work, ProductArgs& args, Scratch& scratch,
                     const QuantizedPart& xq, Stream stream) {
  const int64_t rows = work.row_end - work.row_begin;
  const HostRows x = host_rows(work.x);
  const size_t x_at = scratch.add(x.bytes());
  const size_t out_at = scratch.add(static_cast<size_t>(work.x.rows * rows) * sizeof(float));
  if (!check_not_captured(device, stream) || !scratch.allocate()) return false;
  Transfer transfer(device, stream);
  const void* x_data = scratch.part<void>(x_at);
  float* out = scratch.part<float>(out_at);
  if (!transfer.to_device(address_of(x_data), x)) return false;
  args.x = args_of(moved(work.x, x_data, work.w->device));
  // Only the rows that are wanted have a place.
  args.out = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(out) -
                                      static_cast<uintptr_t>(work.row_begin) * sizeof(float));
  args.out_stride = rows;
  if (!run_product(device, args, xq, scratch, stream)) return false;
  const HostRows wanted{work.out + work.row_begin, work.x.rows, static_cast<size_t>(rows) * sizeof(float),
                        static_cast<size_t>(work.w->rows) * sizeof(float)};
  return transfer.to_host(wanted, address_of(out));
}

}  // namespace

bool multiply(Device& device, const ProductWork& work, Stream stream) {
  if (work.row_begin == work.row_end || work.x.rows == 0) return true;
  ProductArgs args{args_of(work.w),
                   args_of(work.x),
                   {},
                   work.out,
                   work.w->rows,
                   static_cast<int32_t>(work.row_begin),
                   static_cast<int32_t>(work.row_end),
                   work.exact,
                   0};
  const bool large = work.x.rows > kSmallTokens && choose_product(device, args) != KernelId::product_any;
  Scratch scratch(device, stream);
  const QuantizedPart xq(scratch, large ? work.x.rows : 0, work.x.cols);
  if (work.x.device == 0) return multiply_staged(device, work, args, scratch, xq, stream);
  return scratch.allocate() && run_product(device, args, xq, scratch, stream);
}

namespace {

// What the first launch writes and the second reads: integers, or floats where down wants them
struct HiddenPart {
  bool floats;
  QuantizedPart integers;
  size_t values;

  HiddenPart(Scratch& scratch, bool wants_floats, int64_t pairs, int64_t inter)
      : floats(wants_floats),
        integers(scratch, wants_floats ? 0 : pairs, inter),
        values(scratch.add(wants_floats ? static_cast<size_t>(pairs * padded(inter)) * sizeof(float) : 0)) {}

  void place(const Scratch& scratch, MoeArgs* args) const {
    if (floats) {
      args->h_float = scratch.part<float>(values);
    } else {
      args->h = integers.in(scratch);
    }
  }
};

// One launch for gate and up, one for down
bool run_moe(Device& device, const MoeArgs& args, Stream stream) {
  return device.launch(choose_up(device, args), &args, stream) &&
         device.launch(choose_down(device, args), &args, stream);
}

// x, ids, weights and out in the memory of the CPU
bool moe_staged(Device& device, const MoeWork& work, MoeArgs& args, Scratch& scratch, const HiddenPart& h,
                Stream stream) {
  const int64_t pairs = work.x.rows * work.k;
  const HostRows x = host_rows(work.x);
  const HostRows ids = host_bytes(work.expert_ids, pairs * int64_t{sizeof(int32_t)});
  const HostRows weights = host_bytes(work.expert_weights, pairs * int64_t{sizeof(float)});
  const HostRows out = host_bytes(work.out, work.x.rows * work.down->rows * int64_t{sizeof(float)});
  const size_t x_at = scratch.add(x.bytes());
  const size_t ids_at = scratch.add(ids.bytes());
  const size_t weights_at = scratch.add(weights.bytes());
  const size_t out_at = scratch.add(out.bytes());
  if (!check_not_captured(device, stream) || !scratch.allocate()) return false;
  h.place(scratch, &args);
  const void* x_data = scratch.part<void>(x_at);
  args.x = args_of(moved(work.x, x_data, work.up->device));
  args.ids = scratch.part<int32_t>(ids_at);
  args.weights = scratch.part<float>(weights_at);
  args.out = scratch.part<float>(out_at);
  Transfer transfer(device, stream);
  return transfer.to_device(address_of(x_data), x) && transfer.to_device(address_of(args.ids), ids) &&
         transfer.to_device(address_of(args.weights), weights) && run_moe(device, args, stream) &&
         transfer.to_host(out, address_of(args.out));
}

// No pairs: zeros
bool moe_of_none(Device& device, const MoeWork& work, Stream stream) {
  const size_t bytes = static_cast<size_t>(work.x.rows * work.down->rows) * sizeof(float);
  if (work.x.device == 0) {
    memset(work.out, 0, bytes);
    return true;
  }
  return check(device.driver().cuMemsetD8Async(address_of(work.out), 0, bytes, stream), "cuMemsetD8Async");
}

}  // namespace

bool moe(Device& device, const MoeWork& work, Stream stream) {
  if (work.x.rows == 0) return true;
  if (work.k == 0) return moe_of_none(device, work, stream);
  MoeArgs args{args_of(work.gate),
               args_of(work.up),
               args_of(work.down),
               args_of(work.x),
               work.expert_ids,
               work.expert_weights,
               {},
               nullptr,
               padded(work.up->rows),
               work.out,
               static_cast<int32_t>(work.k),
               static_cast<int32_t>(work.activation),
               work.exact,
               work.partial};
  Scratch scratch(device, stream);
  const HiddenPart h(scratch, wants_floats(args.down, work.exact), work.x.rows * work.k, work.up->rows);
  if (work.x.device == 0) return moe_staged(device, work, args, scratch, h, stream);
  if (!scratch.allocate()) return false;
  h.place(scratch, &args);
  return run_moe(device, args, stream);
}

namespace {

// A kernel's shared memory may depend on the sizes: these stand for a layer of a large model.
enum : int32_t { kUsualSize = 8192 };

WeightArgs usual_weight(FormatId format, Layout layout) {
  static const uint8_t kAnything = 0;
  Weight w{};
  w.format = format;
  w.layout = layout;
  w.experts = 1;
  w.rows = w.cols = w.stored_cols = kUsualSize;
  w.data = &kAnything;
  return args_of(&w);
}

}  // namespace

KernelId product_kernel(const Device& device, FormatId format, Layout layout, int64_t tokens) {
  ProductArgs args{};
  args.w = usual_weight(format, layout);
  args.x.rows = static_cast<int32_t>(tokens);
  args.x.cols = args.row_end = kUsualSize;
  return choose_product(device, args);
}

KernelId moe_kernel(const Device& device, FormatId format, Layout layout, int64_t pairs) {
  MoeArgs args{};
  args.gate = args.up = args.down = usual_weight(format, layout);
  args.x.rows = static_cast<int32_t>(pairs);
  args.x.cols = kUsualSize;
  args.h_stride = kUsualSize;
  args.k = 1;
  float anything = 0.0f;
  if (wants_floats(args.down, false)) args.h_float = &anything;
  return choose_up(device, args);
}

}  // namespace cuda
}  // namespace lutkern
