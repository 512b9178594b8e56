// The Python face of the C API, and nothing else: views in, status codes out as exceptions, the GIL released around
// the work.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../lutkern.h"

namespace py = pybind11;

namespace {

void check(lutkern_status status) {
  const char* text = lutkern_last_error();
  switch (status) {
    case LUTKERN_OK:
      return;
    case LUTKERN_ERROR_VALUE:
      throw py::value_error(text);
    case LUTKERN_ERROR_TYPE:
      throw py::type_error(text);
    case LUTKERN_ERROR_DEVICE:
      throw std::runtime_error(text);
    case LUTKERN_ERROR_MEMORY:
      PyErr_SetString(PyExc_MemoryError, text);
      throw py::error_already_set();
  }
}

// A packed weight and the buffer that its bytes live in.
class Tensor {
 public:
  Tensor(int32_t ggml_type, int32_t layout, int64_t experts, int64_t rows, int64_t cols, const py::buffer& bytes)
      : owner_(std::make_shared<py::buffer_info>(bytes.request())) {
    if (!PyBuffer_IsContiguous(owner_->view(), 'C')) {
      throw py::value_error("tensor: the bytes are not contiguous, expected a C-contiguous buffer");
    }
    check(lutkern_tensor_init(&view_, ggml_type, static_cast<lutkern_layout>(layout), experts, rows, cols, owner_->ptr,
                              static_cast<size_t>(owner_->size * owner_->itemsize)));
  }

  Tensor expert(int64_t e) const {
    Tensor out(*this);
    check(lutkern_tensor_expert(&view_, e, &out.view_));
    return out;
  }

  const lutkern_tensor& view() const { return view_; }

 private:
  std::shared_ptr<py::buffer_info> owner_;
  lutkern_tensor view_{};
};

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

using Floats = py::array_t<float, py::array::c_style>;

float* writable(Floats& out) { return out.mutable_data(); }

lutkern_options options_of(bool exact, int32_t threads) {
  lutkern_options options{};
  options.exact = exact ? 1 : 0;
  options.threads = threads;
  return options;
}

void dequantize(const Tensor& t, Floats& out) {
  float* data = writable(out);
  lutkern_status status = LUTKERN_OK;
  {
    py::gil_scoped_release unlocked;
    status = lutkern_dequantize(&t.view(), data, nullptr);
  }
  check(status);
}

using Product = lutkern_status (*)(const lutkern_tensor*, const lutkern_matrix*, float*, const lutkern_options*);

template <Product kProduct>
void multiply(const Tensor& t, const py::buffer& x, int32_t dtype, Floats& out, bool exact) {
  const py::buffer_info info = x.request();
  const lutkern_matrix m = matrix_of(info, dtype);
  const lutkern_options options = options_of(exact, 0);
  float* data = writable(out);
  lutkern_status status = LUTKERN_OK;
  {
    py::gil_scoped_release unlocked;
    status = kProduct(&t.view(), &m, data, &options);
  }
  check(status);
}

void moe(const py::buffer& x, int32_t dtype, const py::array_t<int32_t, py::array::c_style>& expert_ids,
         const Floats& expert_weights, const Tensor* gate, const Tensor& up, const Tensor& down, int32_t activation,
         bool exact, Floats& out) {
  const py::buffer_info info = x.request();
  lutkern_moe_args args{};
  args.gate = gate ? &gate->view() : nullptr;
  args.up = &up.view();
  args.down = &down.view();
  args.x = matrix_of(info, dtype);
  args.expert_ids = expert_ids.data();
  args.expert_weights = expert_weights.data();
  args.k = expert_ids.shape(1);
  args.activation = activation;
  args.out = writable(out);
  const lutkern_options options = options_of(exact, 0);
  lutkern_status status = LUTKERN_OK;
  {
    py::gil_scoped_release unlocked;
    status = lutkern_moe(&args, &options);
  }
  check(status);
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
  lutkern_status status = LUTKERN_OK;
  {
    py::gil_scoped_release unlocked;
    status = lutkern_pack(ggml_type, experts, &m, weights, bytes, nbytes, &replaced, &options);
  }
  check(status);
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

// What the DLPack capsule "dltensor" points to, as the DLPack specification lays it out.
struct DlTensor {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t ndim;
  uint8_t dtype_code;
  uint8_t dtype_bits;
  uint16_t dtype_lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

// NumPy has no bfloat16: its bits come as uint16, zero-copy. Null for every other element type.
py::object bfloat16_bits(py::capsule capsule) {
  constexpr int kCpu = 1;
  constexpr int kPinned = 3;  // memory of the CPU that a GPU may read
  constexpr int kBfloat = 4;
  if (!PyCapsule_IsValid(capsule.ptr(), "dltensor")) return py::none();
  auto* managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  const DlTensor& t = managed->tensor;
  if (t.device_type != kCpu && t.device_type != kPinned) return py::none();
  if (t.dtype_code != kBfloat || t.dtype_bits != 16 || t.dtype_lanes != 1) return py::none();
  std::vector<py::ssize_t> shape(t.shape, t.shape + t.ndim);
  std::vector<py::ssize_t> strides(shape.size());
  py::ssize_t step = 2;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = t.strides ? static_cast<py::ssize_t>(t.strides[i]) * 2 : step;
    step *= shape[i];
  }
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  py::capsule owner(managed, [](void* p) {
    auto* held = static_cast<DlManagedTensor*>(p);
    if (held->deleter) held->deleter(held);
  });
  return py::array(py::dtype::of<uint16_t>(), shape, strides, static_cast<uint8_t*>(t.data) + t.byte_offset, owner);
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
  lutkern_status status = LUTKERN_OK;
  {
    py::gil_scoped_release unlocked;
    status = lutkern_repack(&t.view(), static_cast<lutkern_layout>(layout), bytes, nbytes, nullptr);
  }
  check(status);
}

std::optional<std::string> kernel_isa(int32_t ggml_type, int operation, int layout) {
  const char* name =
      lutkern_kernel_isa(ggml_type, static_cast<lutkern_operation>(operation), static_cast<lutkern_layout>(layout));
  return name ? std::optional<std::string>(name) : std::nullopt;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  py::class_<Tensor>(m, "Tensor")
      .def(py::init<int32_t, int32_t, int64_t, int64_t, int64_t, const py::buffer&>())
      .def("expert", &Tensor::expert)
      .def_property_readonly("address", [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.view().data); });
  m.def("dequantize", &dequantize, py::arg(), py::arg().noconvert());
  m.def("matvec", &multiply<lutkern_matvec>, py::arg(), py::arg(), py::arg(), py::arg().noconvert(), py::arg());
  m.def("matmul", &multiply<lutkern_matmul>, py::arg(), py::arg(), py::arg(), py::arg().noconvert(), py::arg());
  m.def("moe", &moe, py::arg(), py::arg(), py::arg(), py::arg(), py::arg().none(true), py::arg(), py::arg(), py::arg(),
        py::arg(), py::arg().noconvert());
  m.def("pack", &pack, py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg().noconvert(), py::arg(),
        py::arg());
  m.def("repack", &repack, py::arg(), py::arg(), py::arg().noconvert());
  m.def("quantize_activations", &quantize_activations);
  m.def("bfloat16_bits", &bfloat16_bits);
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
