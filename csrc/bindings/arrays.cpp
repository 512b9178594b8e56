// DLPack, in and out: arrays of other libraries without a copy.
#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"

namespace lutkern {
namespace bindings {
namespace {

// What the DLPack capsules "dltensor" and "dltensor_versioned" point to, as the DLPack specification lays it out.
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
struct DlManaged {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManaged*);
};
struct DlManagedVersioned {
  uint32_t major;
  uint32_t minor;
  void* context;
  void (*deleter)(DlManagedVersioned*);
  uint64_t flags;
  DlTensor tensor;
};

constexpr int kCpu = 1;
constexpr int kCuda = 2;
constexpr int kPinned = 3;  // memory of the CPU that a GPU may read
constexpr int kBfloat = 4;
constexpr uint64_t kReadOnly = 1;
const char* const kName = "dltensor";
const char* const kVersionedName = "dltensor_versioned";

// NumPy has no bfloat16: its bits come as uint16, zero-copy. Null for every other element type.
py::object bfloat16_bits(py::capsule capsule) {
  if (!PyCapsule_IsValid(capsule.ptr(), kName)) return py::none();
  auto* managed = static_cast<DlManaged*>(PyCapsule_GetPointer(capsule.ptr(), kName));
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
    auto* held = static_cast<DlManaged*>(p);
    if (held->deleter) held->deleter(held);
  });
  return py::array(py::dtype::of<uint16_t>(), shape, strides, static_cast<uint8_t*>(t.data) + t.byte_offset, owner);
}

// An array of another library, borrowed until this object dies.
class Borrowed {
 public:
  explicit Borrowed(const py::object& capsule) {
    PyObject* p = capsule.ptr();
    if (PyCapsule_IsValid(p, kName)) {
      plain_ = static_cast<DlManaged*>(PyCapsule_GetPointer(p, kName));
      tensor_ = &plain_->tensor;
      PyCapsule_SetName(p, "used_dltensor");
    } else if (PyCapsule_IsValid(p, kVersionedName)) {
      versioned_ = static_cast<DlManagedVersioned*>(PyCapsule_GetPointer(p, kVersionedName));
      tensor_ = &versioned_->tensor;
      PyCapsule_SetName(p, "used_dltensor_versioned");
    } else {
      throw py::type_error("DLPack: no capsule of an array that is still to be taken");
    }
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  ~Borrowed() {
    if (plain_ && plain_->deleter) plain_->deleter(plain_);
    if (versioned_ && versioned_->deleter) versioned_->deleter(versioned_);
  }

  bool read_only() const { return versioned_ && (versioned_->flags & kReadOnly) != 0; }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(tensor_->data) + tensor_->byte_offset; }
  py::tuple device() const { return py::make_tuple(tensor_->device_type, tensor_->device_id); }
  py::tuple dtype() const { return py::make_tuple(tensor_->dtype_code, tensor_->dtype_bits, tensor_->dtype_lanes); }
  py::tuple shape() const { return numbers(tensor_->shape); }
  // In elements; of C order where the array names none
  py::tuple strides() const {
    if (tensor_->strides) return numbers(tensor_->strides);
    std::vector<int64_t> steps(static_cast<size_t>(tensor_->ndim));
    int64_t step = 1;
    for (size_t i = steps.size(); i-- > 0;) {
      steps[i] = step;
      step *= tensor_->shape[i];
    }
    return numbers(steps.data());
  }

 private:
  py::tuple numbers(const int64_t* values) const {
    py::tuple out(static_cast<size_t>(tensor_->ndim));
    for (int i = 0; i < tensor_->ndim; ++i) out[static_cast<size_t>(i)] = values[i];
    return out;
  }

  DlManaged* plain_ = nullptr;
  DlManagedVersioned* versioned_ = nullptr;
  const DlTensor* tensor_ = nullptr;
};

// What a capsule that we hand out keeps: whoever takes it may drop it on any thread, without the GIL.
template <class Managed>
struct Lent {
  Managed managed;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  std::shared_ptr<DeviceMemory> memory;
};

template <class Managed>
py::object lend(const std::shared_ptr<DeviceMemory>& memory, const std::vector<int64_t>& shape, uint8_t code,
                uint8_t bits, const char* name) {
  auto* lent = new Lent<Managed>{{}, shape, std::vector<int64_t>(shape.size()), memory};
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    lent->strides[i] = step;
    step *= shape[i];
  }
  const bool cuda = memory->device() < LUTKERN_METAL;  // memory of Metal is that of the CPU
  const int32_t index = cuda ? memory->device() - LUTKERN_CUDA : 0;
  const int32_t ndim = static_cast<int32_t>(shape.size());
  lent->managed.tensor = DlTensor{memory->data(),     cuda ? kCuda : kCpu,  index, ndim, code, bits, 1,
                                  lent->shape.data(), lent->strides.data(), 0};
  lent->managed.context = lent;
  lent->managed.deleter = [](Managed* self) { delete static_cast<Lent<Managed>*>(self->context); };
  PyObject* capsule = PyCapsule_New(&lent->managed, name, [](PyObject* p) {
    // A capsule that was taken has another name by now, and its taker calls the deleter.
    const char* now = PyCapsule_GetName(p);
    if (!now || (strcmp(now, kName) != 0 && strcmp(now, kVersionedName) != 0)) return;
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(p, now));
    managed->deleter(managed);
  });
  if (!capsule) {
    delete lent;
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(capsule);
}

py::object lend_either(const std::shared_ptr<DeviceMemory>& memory, const std::vector<int64_t>& shape, uint8_t code,
                       uint8_t bits, bool versioned) {
  if (!versioned) return lend<DlManaged>(memory, shape, code, bits, kName);
  py::object capsule = lend<DlManagedVersioned>(memory, shape, code, bits, kVersionedName);
  static_cast<DlManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), kVersionedName))->major = 1;
  return capsule;
}

}  // namespace

void add_arrays(py::module_& m) {
  py::class_<Borrowed>(m, "Borrowed")
      .def(py::init<const py::object&>())
      .def_property_readonly("address", &Borrowed::address)
      .def_property_readonly("device", &Borrowed::device)
      .def_property_readonly("dtype", &Borrowed::dtype)
      .def_property_readonly("shape", &Borrowed::shape)
      .def_property_readonly("strides", &Borrowed::strides)
      .def_property_readonly("read_only", &Borrowed::read_only);
  m.def("lend", &lend_either);
  m.def("bfloat16_bits", &bfloat16_bits);
}

}  // namespace bindings
}  // namespace lutkern
