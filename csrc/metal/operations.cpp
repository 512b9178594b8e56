#include "operations.h"

#include <string.h>

namespace lutkern {
namespace metal {

using metal_args::DequantizeArgs;
using metal_args::kGroup;
using metal_args::MatrixArgs;
using metal_args::MoeArgs;
using metal_args::ProductArgs;
using metal_args::WeightArgs;

namespace {

enum : int64_t {
  kPad = 256,          // numbers of h are padded to a multiple of this
  kTileAlignment = 16  // the kernels load words of tiles by four
};

int64_t padded(int64_t cols) { return (cols + kPad - 1) / kPad * kPad; }

WeightArgs args_of(const Weight* w) {
  if (!w) return WeightArgs{};
  return WeightArgs{w->expert_bytes,
                    w->row_bytes,
                    w->layout == Layout::tiles,
                    static_cast<int32_t>(w->experts),
                    static_cast<int32_t>(w->rows),
                    static_cast<int32_t>(w->cols),
                    static_cast<int32_t>(w->stored_cols),
                    0};
}

MatrixArgs args_of(const Matrix& m, int64_t row_stride) {
  return MatrixArgs{row_stride, static_cast<int32_t>(m.dtype), static_cast<int32_t>(m.rows),
                    static_cast<int32_t>(m.cols), 0};
}

size_t element_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

size_t bytes_of(const Weight& w) { return static_cast<size_t>(w.experts * w.expert_bytes); }

bool place_weight(Device& device, const char* what, const Weight* w, Place* out) {
  if (!w) return true;
  const uintptr_t past = reinterpret_cast<uintptr_t>(w->data) % kTileAlignment;
  if (w->layout == Layout::tiles && past != 0) {
    return failed(Cause::device, "%s is %d bytes past a multiple of %d, expected tiles at a multiple", what,
                  static_cast<int>(past), static_cast<int>(kTileAlignment));
  }
  if (device.memory().find_for_work(w->data, bytes_of(*w), out)) return true;
  return failed(Cause::device, "%s is not in memory of metal:%d, expected lutkern_device_alloc or lutkern_device_wrap",
                what, device.index());
}

// An array of an operation. One of the CPU is staged, but for one that lies in memory of the device by chance or by intent:
// there it can be used in place.
class Array {
 public:
  // rows of row_bytes each, stride bytes apart; element: what its address is a multiple of
  Array(const char* what, const void* data, int64_t rows, size_t row_bytes, size_t stride, size_t element)
      : what_(what),
        data_(static_cast<uint8_t*>(const_cast<void*>(data))),
        rows_(rows),
        row_bytes_(row_bytes),
        stride_(stride),
        element_(element) {}

  // Finds its buffer, or its part of the staging room.
  bool place(Device& device, bool on_cpu, StagingRoom* room) {
    const size_t bytes = rows_ == 0 ? 0 : static_cast<size_t>(rows_ - 1) * stride_ + row_bytes_;
    const bool aligned = reinterpret_cast<uintptr_t>(data_) % element_ == 0;
    if (aligned && device.memory().find_for_work(data_, bytes, &place_)) return true;
    if (!on_cpu) {
      return failed(Cause::device,
                    "%s is not in memory of metal:%d, expected lutkern_device_alloc, at a multiple of %zu", what_,
                    device.index(), element_);
    }
    staged_ = true;
    at_ = room->add(static_cast<size_t>(rows_) * row_bytes_);
    return true;
  }
  void copy_in(const StagingRoom& room) {
    if (!staged_) return;
    place_ = Place{room.buffer(), at_};
    for (int64_t r = 0; r < rows_; ++r) {
      memcpy(room.part(at_) + static_cast<size_t>(r) * row_bytes_, data_ + static_cast<size_t>(r) * stride_,
             row_bytes_);
    }
  }
  // Where the result will be
  void expect(const StagingRoom& room) {
    if (staged_) place_ = Place{room.buffer(), at_};
  }
  // Bytes first .. first + n - 1 of every row
  void copy_out(const StagingRoom& room, size_t first, size_t n) const {
    for (int64_t r = 0; staged_ && r < rows_; ++r) {
      memcpy(data_ + static_cast<size_t>(r) * stride_ + first,
             room.part(at_) + static_cast<size_t>(r) * row_bytes_ + first, n);
    }
  }
  // Bytes from row to row for the kernel
  size_t stride() const { return staged_ ? row_bytes_ : stride_; }
  const Place& place() const { return place_; }

 private:
  const char* what_;
  uint8_t* data_;
  int64_t rows_;
  size_t row_bytes_;
  size_t stride_;
  size_t element_;
  bool staged_ = false;
  size_t at_ = 0;
  Place place_{};
};

Array array_of(const Matrix& m) {
  const size_t element = element_bytes(m.dtype);
  return Array("x", m.data, m.rows, static_cast<size_t>(m.cols) * element, static_cast<size_t>(m.row_stride) * element,
               element);
}

Array plain_array(const char* what, const void* data, int64_t rows, int64_t cols) {
  const size_t row_bytes = static_cast<size_t>(cols) * 4;
  return Array(what, data, rows, row_bytes, row_bytes, 4);
}

double products_of(const Weight& w, int64_t tokens) {
  return static_cast<double>(w.experts * w.rows * w.cols) * static_cast<double>(tokens);
}

bool is_tuned(Layout layout, bool exact) { return layout == Layout::tiles && !exact; }

bool wants_floats(const Weight& w, bool exact) { return exact || w.info().is_float; }

static_assert(static_cast<int>(kFewPairs) <= metal_args::kMostSlots, "k of moe_down");
bool is_few(const MoeWork& work) {
  const int64_t pairs = work.x.rows * work.k;
  return pairs <= kFewPairs || (pairs <= work.up->experts && work.k <= metal_args::kMostSlots);
}

KernelId choose_up(const MoeWork& work) {
  const bool tuned = is_tuned(work.up->layout, work.exact) && !wants_floats(*work.down, work.exact) &&
                     (!work.gate || is_tuned(work.gate->layout, work.exact));
  if (!tuned) return KernelId::moe_up_any;
  return is_few(work) ? KernelId::moe_up : KernelId::moe_up_batch;
}

KernelId choose_down(const MoeWork& work) {
  if (!is_tuned(work.down->layout, work.exact)) return KernelId::moe_down_any;
  return is_few(work) ? KernelId::moe_down : KernelId::moe_down_batch;
}

}  // namespace

KernelId dequantize_kernel(Layout layout) {
  return layout == Layout::tiles ? KernelId::dequantize : KernelId::dequantize_any;
}

KernelId product_kernel(Layout layout, bool exact, int64_t tokens) {
  if (!is_tuned(layout, exact)) return KernelId::product_any;
  if (tokens == 1) return KernelId::matvec;
  return tokens <= kSmallTokens ? KernelId::matmul_small : KernelId::matmul_large;
}

KernelId moe_kernel(FormatId format, Layout layout, int64_t pairs) {
  Weight w{};
  w.format = format;
  w.layout = layout;
  MoeWork work{};
  work.gate = work.up = work.down = &w;
  work.x.rows = pairs;
  work.k = 1;
  return choose_up(work);
}

bool wait_for_users(Device& device, const void* data, void* stream) {
  return !device.memory().is_used(data) || device.finish(stream);
}

bool dequantize(Device& device, const Weight& w, Dtype dtype, void* out, void* stream) {
  const KernelId kernel = dequantize_kernel(w.layout);
  const int64_t rows = w.experts * w.rows;
  const DequantizeArgs args{args_of(&w), static_cast<int32_t>(dtype), 0};
  const HeldStream held(device, stream);
  Pipeline pipeline{};
  Place weight{};
  Place place{};
  if (!held.ok() || !device.libraries().find(kernel, Formats{kNoGate, w.format}, &pipeline) ||
      !place_weight(device, "the weight", &w, &weight)) {
    return false;
  }
  const size_t bytes = static_cast<size_t>(rows * w.cols) * element_bytes(dtype);
  if (!device.memory().find_for_work(out, bytes, &place)) {
    return failed(Cause::device, "out is not in memory of metal:%d, expected lutkern_device_alloc", device.index());
  }
  Encoding encoding(*held);
  const Binding bindings[] = {{1, weight}, {2, place}};
  return encoding.begin() && encoding.dispatch(pipeline, kernel, &args, bindings, 2, products_of(w, 1));
}

bool multiply(Device& device, const ProductWork& work, void* stream) {
  if (work.row_begin == work.row_end || work.x.rows == 0) return true;
  const KernelId kernel = product_kernel(work.w->layout, work.exact, work.x.rows);
  const bool on_cpu = work.x.device == 0;
  const HeldStream held(device, stream);
  Pipeline pipeline{};
  Place weight{};
  if (!held.ok() || !device.libraries().find(kernel, Formats{kNoGate, work.w->format}, &pipeline) ||
      !place_weight(device, "the weight", work.w, &weight)) {
    return false;
  }
  StagingRoom room(device.staging());
  Array x = array_of(work.x);
  Array out = plain_array("out", work.out, work.x.rows, work.w->rows);
  if (!x.place(device, on_cpu, &room) || !out.place(device, on_cpu, &room) || !room.allocate()) return false;
  x.copy_in(room);
  out.expect(room);
  const ProductArgs args{args_of(work.w),
                         args_of(work.x, static_cast<int64_t>(x.stride() / element_bytes(work.x.dtype))),
                         work.w->rows,
                         static_cast<int32_t>(work.row_begin),
                         static_cast<int32_t>(work.row_end),
                         work.exact,
                         0};
  uint64_t moment = 0;
  {
    Encoding encoding(*held);
    const Binding bindings[] = {{1, weight}, {2, x.place()}, {3, out.place()}};
    if (!encoding.begin() ||
        !encoding.dispatch(pipeline, kernel, &args, bindings, 3, products_of(*work.w, work.x.rows)))
      return false;
    moment = encoding.moment();
  }
  if (!on_cpu) return true;
  if (!held->finish(moment)) return false;
  out.copy_out(room, static_cast<size_t>(work.row_begin) * sizeof(float),
               static_cast<size_t>(work.row_end - work.row_begin) * sizeof(float));
  return true;
}

namespace {

// The arrays of an expert layer
struct MoeArrays {
  Array x;
  Array ids;
  Array weights;
  Array out;

  explicit MoeArrays(const MoeWork& work)
      : x(array_of(work.x)),
        ids(plain_array("expert_ids", work.expert_ids, work.x.rows, work.k)),
        weights(plain_array("expert_weights", work.expert_weights, work.x.rows, work.k)),
        out(plain_array("out", work.out, work.x.rows, work.down->rows)) {}

  bool place(Device& device, bool on_cpu, StagingRoom* room) {
    if (!x.place(device, on_cpu, room) || !ids.place(device, on_cpu, room) || !weights.place(device, on_cpu, room) ||
        !out.place(device, on_cpu, room) || !room->allocate()) {
      return false;
    }
    x.copy_in(*room);
    ids.copy_in(*room);
    weights.copy_in(*room);
    out.expect(*room);
    return true;
  }
};

// Where the weights lie, and what works with them
struct MoeKernels {
  KernelId up;
  KernelId down;
  Pipeline up_pipeline;
  Pipeline down_pipeline;
  Place gate_place;
  Place up_place;
  Place down_place;

  bool find(Device& device, const MoeWork& work) {
    up = choose_up(work);
    down = choose_down(work);
    const int gate = work.gate ? static_cast<int>(work.gate->format) : int{kNoGate};
    return device.libraries().find(up, Formats{gate, work.up->format}, &up_pipeline) &&
           device.libraries().find(down, Formats{kNoGate, work.down->format}, &down_pipeline) &&
           place_weight(device, "gate", work.gate, &gate_place) && place_weight(device, "up", work.up, &up_place) &&
           place_weight(device, "down", work.down, &down_place);
  }
};

// One dispatch for gate and up, one for down, in one command buffer
bool encode_moe(Encoding& encoding, const MoeArgs& args, const MoeKernels& kernels, const MoeArrays& arrays,
                double products) {
  const size_t numbers = static_cast<size_t>(int64_t{args.x.rows} * args.k * args.h_stride);
  const size_t h_bytes = numbers * (args.h_floats ? sizeof(float) : sizeof(uint16_t));
  const size_t scale_bytes = args.h_floats ? 0 : numbers / kGroup * sizeof(float);
  Id scratch = nullptr;
  if (!encoding.begin() || !encoding.scratch(h_bytes + scale_bytes, &scratch)) return false;
  const Place h{scratch, 0};
  const Place h_scale{scratch, args.h_floats ? 0 : h_bytes};
  // Metal wants a buffer behind every parameter, also of a gate that is not there.
  const Binding up[] = {{1, args.gate.experts > 0 ? kernels.gate_place : kernels.up_place},
                        {2, kernels.up_place},
                        {3, arrays.x.place()},
                        {4, arrays.ids.place()},
                        {5, h},
                        {6, h_scale}};
  const Binding down[] = {
      {1, kernels.down_place}, {2, arrays.ids.place()}, {3, arrays.weights.place()}, {4, h}, {5, h_scale},
      {6, arrays.out.place()}};
  return encoding.dispatch(kernels.up_pipeline, kernels.up, &args, up, 6, products) &&
         encoding.dispatch(kernels.down_pipeline, kernels.down, &args, down, 6, products);
}

// No pairs: zeros
bool moe_of_none(Device& device, const MoeWork& work, void* stream) {
  if (work.x.device && !wait_for_users(device, work.out, stream)) return false;
  memset(work.out, 0, static_cast<size_t>(work.x.rows * work.down->rows) * sizeof(float));
  return true;
}

}  // namespace

bool moe(Device& device, const MoeWork& work, void* stream) {
  if (work.x.rows == 0) return true;
  if (work.k == 0) return moe_of_none(device, work, stream);
  const bool on_cpu = work.x.device == 0;
  const HeldStream held(device, stream);
  MoeKernels kernels{};
  StagingRoom room(device.staging());
  MoeArrays arrays(work);
  if (!held.ok() || !kernels.find(device, work) || !arrays.place(device, on_cpu, &room)) return false;
  const MoeArgs args{args_of(work.gate),
                     args_of(work.up),
                     args_of(work.down),
                     args_of(work.x, static_cast<int64_t>(arrays.x.stride() / element_bytes(work.x.dtype))),
                     padded(work.up->rows),
                     static_cast<int32_t>(work.k),
                     static_cast<int32_t>(work.activation),
                     work.exact,
                     work.partial,
                     wants_floats(*work.down, work.exact),
                     0};
  const double products = products_of(*work.up, work.x.rows * work.k) / static_cast<double>(work.up->experts);
  uint64_t moment = 0;
  {
    Encoding encoding(*held);
    if (!encode_moe(encoding, args, kernels, arrays, products)) return false;
    moment = encoding.moment();
  }
  if (!on_cpu) return true;
  if (!held->finish(moment)) return false;
  arrays.out.copy_out(room, 0, static_cast<size_t>(work.down->rows) * sizeof(float));
  return true;
}

}  // namespace metal
}  // namespace lutkern
