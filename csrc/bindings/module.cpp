// The Python face of the C API, and nothing else: views in, status codes out as exceptions, the GIL released around
// the work.
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings.h"

namespace lutkern {
namespace bindings {

Tensor::Tensor(int32_t ggml_type, int32_t layout, int64_t experts, int64_t rows, int64_t cols, const py::buffer& bytes)
    : buffer_(std::make_shared<py::buffer_info>(bytes.request())) {
  if (!PyBuffer_IsContiguous(buffer_->view(), 'C')) {
    throw py::value_error("tensor: the bytes are not contiguous, expected a C-contiguous buffer");
  }
  check(lutkern_tensor_init(&view_, ggml_type, static_cast<lutkern_layout>(layout), experts, rows, cols, buffer_->ptr,
                            static_cast<size_t>(buffer_->size * buffer_->itemsize)));
}

Tensor::Tensor(int32_t ggml_type, int32_t layout, int64_t experts, int64_t rows, int64_t cols,
               std::shared_ptr<DeviceMemory> memory)
    : memory_(std::move(memory)) {
  check(lutkern_device_tensor_init(&view_, memory_->device(), ggml_type, static_cast<lutkern_layout>(layout), experts,
                                   rows, cols, memory_->data(), memory_->nbytes()));
}

Tensor Tensor::expert(int64_t e) const {
  Tensor out(*this);
  check(lutkern_tensor_expert(&view_, e, &out.view_));
  return out;
}

Tensor Tensor::wrapped(int32_t device) const {
  Tensor out(*this);
  out.memory_ = std::make_shared<DeviceMemory>(device, view_.data, view_.nbytes);
  check(lutkern_device_tensor_init(&out.view_, device, view_.ggml_type, static_cast<lutkern_layout>(view_.layout),
                                   view_.experts, view_.rows, view_.cols, out.memory_->data(), view_.nbytes));
  return out;
}

namespace {

constexpr int kHalf = 23;  // NumPy's number of float16

// One or two dimensions of numbers; the caller has made the inner one contiguous. dtype: lutkern_dtype.
lutkern_matrix matrix_of(const py::buffer_info& info, int32_t dtype) {
  lutkern_matrix m{};
  m.data = info.ptr;
  m.dtype = dtype;
  m.rows = info.ndim == 2 ? info.shape[0] : 1;
  m.cols = info.shape[static_cast<size_t>(info.ndim - 1)];
  m.row_stride = info.ndim == 2 && m.rows > 1 ? info.strides[0] / info.itemsize : m.cols;
  return m;
}

float* writable(Floats& out) { return out.mutable_data(); }

// out: numbers of the dtype, checked by the caller
void dequantize(const Tensor& t, int32_t dtype, const py::buffer& out) {
  const py::buffer_info info = out.request(true);
  run([&] { return lutkern_dequantize_to(&t.view(), static_cast<lutkern_dtype>(dtype), info.ptr, nullptr); });
}

using Product = lutkern_status (*)(const lutkern_tensor*, const lutkern_matrix*, float*, const lutkern_options*);

template <Product kProduct>
void multiply(const Tensor& t, const py::buffer& x, int32_t dtype, Floats& out, bool exact, uintptr_t stream) {
  const py::buffer_info info = x.request();
  const lutkern_matrix m = matrix_of(info, dtype);
  const lutkern_options options = options_of(exact, 0, stream);
  const lutkern_tensor& weight = t.use_on(stream);
  float* data = writable(out);
  run([&] { return kProduct(&weight, &m, data, &options); });
}

// The dtype of an array that needs nothing before kernels use it in place: NumPy's own and no subclass, of float32 or
// float16 in the machine's order of bytes, aligned, in C order. -1 for anything else.
int32_t plain_dtype(py::handle x, py::ssize_t dimensions) {
  const auto& numpy = py::detail::npy_api::get();
  if (Py_TYPE(x.ptr()) != numpy.PyArray_Type_) return -1;
  const py::array array = py::reinterpret_borrow<py::array>(x);
  constexpr int kInPlace = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (array.ndim() != dimensions || (array.flags() & kInPlace) != kInPlace) return -1;
  const py::dtype dtype = array.dtype();
  if (dtype.byteorder() != '=') return -1;
  if (dtype.num() == py::dtype::num_of<float>()) return LUTKERN_F32;
  return dtype.num() == kHalf ? LUTKERN_F16 : -1;
}

// A product of what needs no conversion: x and out (or None, for a new array) as plain_dtype has it, a weight of the
// CPU. Returns the result, or None without having done anything: then Python converts or refuses.
template <Product kProduct, py::ssize_t kDimensions>
py::object multiply_plain(const Tensor& t, py::handle x, py::handle out, bool exact) {
  const lutkern_tensor& weight = t.view();
  const int32_t dtype = plain_dtype(x, kDimensions);
  if (weight.device != LUTKERN_CPU || dtype < 0) return py::none();
  const py::array in = py::reinterpret_borrow<py::array>(x);
  const py::ssize_t tokens = kDimensions == 1 ? 1 : in.shape(0);
  Floats result;
  if (!out.is_none()) {
    if (plain_dtype(out, kDimensions) != LUTKERN_F32) return py::none();
    result = py::reinterpret_borrow<Floats>(out);
    const bool fits = result.shape(kDimensions - 1) == weight.rows && (kDimensions == 1 || result.shape(0) == tokens);
    if (!fits || !result.writeable()) return py::none();
  } else if (kDimensions == 1) {
    result = Floats(weight.rows);
  } else {
    result = Floats({tokens, static_cast<py::ssize_t>(weight.rows)});
  }
  const py::ssize_t cols = in.shape(kDimensions - 1);
  const lutkern_matrix m{in.data(), dtype, tokens, cols, cols, LUTKERN_CPU};
  const lutkern_options options = options_of(exact, 0);
  float* data = writable(result);
  run([&] { return kProduct(&weight, &m, data, &options); });
  return std::move(result);
}

void moe(const py::buffer& x, int32_t dtype, const py::array_t<int32_t, py::array::c_style>& expert_ids,
         const Floats& expert_weights, const Tensor* gate, const Tensor& up, const Tensor& down, int32_t activation,
         bool exact, bool partial, Floats& out, uintptr_t stream) {
  const py::buffer_info info = x.request();
  lutkern_moe_args args{};
  args.gate = gate ? &gate->use_on(stream) : nullptr;
  args.up = &up.use_on(stream);
  args.down = &down.use_on(stream);
  args.x = matrix_of(info, dtype);
  args.expert_ids = expert_ids.data();
  args.expert_weights = expert_weights.data();
  args.k = expert_ids.shape(1);
  args.activation = activation;
  args.out = writable(out);
  args.partial = partial ? 1 : 0;
  const lutkern_options options = options_of(exact, 0, stream);
  run([&] { return lutkern_moe(&args, &options); });
}

// Returns how many entries of importance were replaced.
int64_t pack(int32_t ggml_type, int64_t experts, const py::buffer& w, int32_t dtype,
             const std::optional<Floats>& importance, py::array_t<uint8_t, py::array::c_style>& out, int32_t threads,
             int32_t effort) {
  const py::buffer_info info = w.request();
  const lutkern_matrix m = matrix_of(info, dtype);
  lutkern_options options = options_of(false, threads);
  options.effort = effort;
  const float* weights = importance ? importance->data() : nullptr;
  uint8_t* bytes = out.mutable_data();
  const size_t nbytes = static_cast<size_t>(out.nbytes());
  int64_t replaced = 0;
  run([&] { return lutkern_pack(ggml_type, experts, &m, weights, bytes, nbytes, &replaced, &options); });
  return replaced;
}

py::tuple quantize_activations(const py::buffer& x, int32_t dtype) {
  const py::buffer_info info = x.request();
  const lutkern_matrix m = matrix_of(info, dtype);
  py::array_t<int8_t> q(m.cols);
  py::array_t<float> scale((m.cols + 31) / 32);
  check(lutkern_quantize_activations(&m, q.mutable_data(), scale.mutable_data()));
  return py::make_tuple(q, scale);
}

py::list formats() {
  py::list out;
  for (int32_t i = 0; i < lutkern_format_count(); ++i) {
    lutkern_format f{};
    check(lutkern_format_at(i, &f));
    out.append(py::make_tuple(f.name, f.ggml_type, f.block_size, f.block_bytes, f.is_float != 0, f.can_pack != 0));
  }
  return out;
}

py::list isas() {
  py::list out;
  for (int32_t i = 0; lutkern_isa_at(i); ++i) {
    out.append(py::make_tuple(lutkern_isa_at(i), lutkern_isa_supported(lutkern_isa_at(i)) != 0));
  }
  return out;
}

void repack(const Tensor& t, int32_t layout, py::array_t<uint8_t, py::array::c_style>& out) {
  uint8_t* bytes = out.mutable_data();
  const size_t nbytes = static_cast<size_t>(out.nbytes());
  run([&] { return lutkern_repack(&t.view(), static_cast<lutkern_layout>(layout), bytes, nbytes, nullptr); });
}

std::optional<std::string> kernel_isa(int32_t ggml_type, int operation, int layout) {
  const char* name =
      lutkern_kernel_isa(ggml_type, static_cast<lutkern_operation>(operation), static_cast<lutkern_layout>(layout));
  return name ? std::optional<std::string>(name) : std::nullopt;
}

}  // namespace
}  // namespace bindings
}  // namespace lutkern

PYBIND11_MODULE(_core, m) {
  using namespace lutkern::bindings;
  add_arrays(m);
  add_devices(m);
  py::class_<Tensor>(m, "Tensor")
      .def(py::init<int32_t, int32_t, int64_t, int64_t, int64_t, const py::buffer&>())
      .def(py::init<int32_t, int32_t, int64_t, int64_t, int64_t, std::shared_ptr<DeviceMemory>>())
      .def("expert", &Tensor::expert)
      .def("wrapped", &Tensor::wrapped)
      .def_property_readonly("nbytes", [](const Tensor& t) { return t.view().nbytes; })
      .def_property_readonly("device", [](const Tensor& t) { return t.view().device; })
      .def_property_readonly("address", [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.view().data); });
  m.def("dequantize", &dequantize);
  m.def("matvec", &multiply<lutkern_matvec>, py::arg(), py::arg(), py::arg(), py::arg().noconvert(), py::arg(),
        py::arg());
  m.def("matmul", &multiply<lutkern_matmul>, py::arg(), py::arg(), py::arg(), py::arg().noconvert(), py::arg(),
        py::arg());
  m.def("plain_matvec", &multiply_plain<lutkern_matvec, 1>);
  m.def("plain_matmul", &multiply_plain<lutkern_matmul, 2>);
  m.def("moe", &moe, py::arg(), py::arg(), py::arg(), py::arg(), py::arg().none(true), py::arg(), py::arg(), py::arg(),
        py::arg(), py::arg(), py::arg().noconvert(), py::arg());
  m.def("pack", &pack, py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg().noconvert(), py::arg(),
        py::arg());
  m.def("repack", &repack, py::arg(), py::arg(), py::arg().noconvert());
  m.def("quantize_activations", &quantize_activations);
  m.def("formats", &formats);
  m.def("isas", &isas);
  m.def("use_isa",
        [](const std::optional<std::string>& name) { check(lutkern_use_isa(name ? name->c_str() : nullptr)); });
  m.def("current_isa", &lutkern_current_isa);
  m.def("kernel_isa", &kernel_isa);
  m.def("row_bytes", &lutkern_row_bytes);
  m.def("tensor_bytes", [](int32_t ggml_type, int layout, int64_t experts, int64_t rows, int64_t cols) {
    return lutkern_tensor_bytes(ggml_type, static_cast<lutkern_layout>(layout), experts, rows, cols);
  });
  m.attr("tile_version") = lutkern_tile_version();
  m.def("set_num_threads", [](int32_t n) { check(lutkern_set_num_threads(n)); });
  m.def("num_threads", &lutkern_num_threads);
  m.attr("version") = lutkern_version();
}
