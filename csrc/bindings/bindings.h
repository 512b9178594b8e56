// What the files of the Python face share: views of weights and numbers, statuses as exceptions.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>

#include "../lutkern.h"

namespace lutkern {
namespace bindings {

namespace py = pybind11;

using Floats = py::array_t<float, py::array::c_style>;

inline void check(lutkern_status status) {
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

// Calls a function of the C API without the GIL, and raises what it says.
template <class Call>
void run(const Call& call) {
  lutkern_status status = LUTKERN_OK;
  {
    py::gil_scoped_release unlocked;
    status = call();
  }
  check(status);
}

// The default stream has two names, null and 1.
inline bool same_stream(uintptr_t a, uintptr_t b) { return a == b || (a <= 1 && b <= 1); }

inline void* stream_of(uintptr_t handle) { return reinterpret_cast<void*>(handle); }

// Memory of a device, given back when the last of its users is gone.
class DeviceMemory {
 public:
  DeviceMemory(int32_t device, size_t nbytes, uintptr_t stream);
  // Memory of the CPU, which must outlive this, as memory of a device
  DeviceMemory(int32_t device, const void* data, size_t nbytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Work that is queued on another stream reads or writes it.
  void use_on(uintptr_t stream) const;

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data_); }
  size_t nbytes() const { return nbytes_; }
  int32_t device() const { return device_; }
  uintptr_t stream() const { return stream_; }

 private:
  int32_t device_;
  int process_;
  size_t nbytes_;
  uintptr_t stream_;
  void* data_ = nullptr;
  std::shared_ptr<void> alive_;  // the stream, if it is one of ours
  mutable bool elsewhere_ = false;
};

// A packed weight and what its bytes live in: a buffer of the CPU or memory of a device.
class Tensor {
 public:
  Tensor(int32_t ggml_type, int32_t layout, int64_t experts, int64_t rows, int64_t cols, const py::buffer& bytes);
  Tensor(int32_t ggml_type, int32_t layout, int64_t experts, int64_t rows, int64_t cols,
         std::shared_ptr<DeviceMemory> memory);

  Tensor expert(int64_t e) const;
  // The bytes of a weight of the CPU as a weight of a device, without a copy
  Tensor wrapped(int32_t device) const;

  const lutkern_tensor& view() const { return view_; }
  const lutkern_tensor& use_on(uintptr_t stream) const {
    if (memory_) memory_->use_on(stream);
    return view_;
  }

 private:
  std::shared_ptr<py::buffer_info> buffer_;
  std::shared_ptr<DeviceMemory> memory_;  // goes first: it may be the memory of buffer_
  lutkern_tensor view_{};
};

inline lutkern_options options_of(bool exact, int32_t threads, uintptr_t stream = 0) {
  lutkern_options options{};
  options.exact = exact ? 1 : 0;
  options.threads = threads;
  options.stream = stream_of(stream);
  return options;
}

void add_arrays(py::module_& m);
void add_devices(py::module_& m);

}  // namespace bindings
}  // namespace lutkern
