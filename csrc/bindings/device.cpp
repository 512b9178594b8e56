// Devices: their memory, what is copied there and back, streams, graphs, events, and the operations on numbers that lie
// there.
#include <pybind11/stl.h>
#include <unistd.h>

#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>

#include "bindings.h"

namespace lutkern {
namespace bindings {

namespace {

// Something of the driver that goes with its Python object. A child of fork leaves those of its parent alone.
template <lutkern_status (*kDestroy)(int32_t, void*)>
class Handle {
 public:
  Handle(int32_t device, void* handle) : device_(device), process_(getpid()), handle_(handle) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (handle_ && getpid() == process_) kDestroy(device_, handle_);
  }
  int32_t device() const { return device_; }
  void* get() const { return handle_; }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(handle_); }

 private:
  int32_t device_;
  int process_;
  void* handle_;
};

using Stream = Handle<lutkern_stream_destroy>;

// Our streams by handle: memory keeps alive the stream in whose order it goes back. Never destroyed, as memory may be freed
// while the process ends.
struct Streams {
  std::mutex mutex;
  std::unordered_map<uintptr_t, std::weak_ptr<Stream>> by_handle;
};

Streams& streams() {
  static Streams* all = new Streams;
  return *all;
}

std::shared_ptr<Stream> create_stream(int32_t device) {
  void* handle = nullptr;
  check(lutkern_stream_create(device, &handle));
  auto stream = std::make_shared<Stream>(device, handle);
  const std::lock_guard<std::mutex> locked(streams().mutex);
  streams().by_handle[stream->address()] = stream;
  return stream;
}

std::shared_ptr<void> stream_alive(uintptr_t handle) {
  const std::lock_guard<std::mutex> locked(streams().mutex);
  const auto found = streams().by_handle.find(handle);
  return found == streams().by_handle.end() ? nullptr : found->second.lock();
}

}  // namespace

DeviceMemory::DeviceMemory(int32_t device, size_t nbytes, uintptr_t stream)
    : device_(device), process_(getpid()), nbytes_(nbytes), stream_(stream), alive_(stream_alive(stream)) {
  check(lutkern_device_alloc(device, nbytes, stream_of(stream), &data_));
}

// When it goes back, no stream may still read it: the memory is not ours to keep.
DeviceMemory::DeviceMemory(int32_t device, const void* data, size_t nbytes)
    : device_(device), process_(getpid()), nbytes_(nbytes), stream_(0), elsewhere_(true) {
  check(lutkern_device_wrap(device, data, nbytes, &data_));
}

// The memory goes back in the order of its stream, behind everything that was queued there. What other streams still do
// with it is not known by then: where there was such work, the device is waited for.
DeviceMemory::~DeviceMemory() {
  if (getpid() != process_) return;  // a child of fork has no device
  const auto release = [&] {
    lutkern_device_free(device_, data_, elsewhere_ ? LUTKERN_ALL_STREAMS : stream_of(stream_));
  };
  // The last user may be another library, on a thread without the GIL.
  if (elsewhere_ && Py_IsInitialized() && PyGILState_Check()) {
    py::gil_scoped_release unlocked;
    release();
  } else {
    release();
  }
}

void DeviceMemory::use_on(uintptr_t stream) const {
  if (!same_stream(stream, stream_)) elsewhere_ = true;
}

namespace {

using Memory = std::shared_ptr<DeviceMemory>;
// address, lutkern_dtype, rows, cols, row stride, device
using Numbers = std::tuple<uintptr_t, int32_t, int64_t, int64_t, int64_t, int32_t>;

lutkern_matrix matrix_of(const Numbers& x) {
  return lutkern_matrix{reinterpret_cast<const void*>(std::get<0>(x)),
                        std::get<1>(x),
                        std::get<2>(x),
                        std::get<3>(x),
                        std::get<4>(x),
                        std::get<5>(x)};
}

float* floats_at(uintptr_t address) { return reinterpret_cast<float*>(address); }

// ---- the operations ----

using Product = lutkern_status (*)(const lutkern_tensor*, const lutkern_matrix*, float*, const lutkern_options*);

template <Product kProduct>
void multiply(const Tensor& t, const Numbers& x, uintptr_t out, bool exact, uintptr_t stream) {
  const lutkern_matrix m = matrix_of(x);
  const lutkern_options options = options_of(exact, 0, stream);
  const lutkern_tensor& weight = t.use_on(stream);
  run([&] { return kProduct(&weight, &m, floats_at(out), &options); });
}

void dequantize(const Tensor& t, int32_t dtype, uintptr_t out, uintptr_t stream) {
  const lutkern_options options = options_of(false, 0, stream);
  const lutkern_tensor& weight = t.use_on(stream);
  run([&] {
    return lutkern_dequantize_to(&weight, static_cast<lutkern_dtype>(dtype), reinterpret_cast<void*>(out), &options);
  });
}

void moe(const Numbers& x, uintptr_t ids, uintptr_t weights, int64_t k, const Tensor* gate, const Tensor& up,
         const Tensor& down, int32_t activation, bool exact, bool partial, uintptr_t out, uintptr_t stream) {
  lutkern_moe_args args{};
  args.gate = gate ? &gate->use_on(stream) : nullptr;
  args.up = &up.use_on(stream);
  args.down = &down.use_on(stream);
  args.x = matrix_of(x);
  args.expert_ids = reinterpret_cast<const int32_t*>(ids);
  args.expert_weights = floats_at(weights);
  args.k = k;
  args.activation = activation;
  args.out = floats_at(out);
  args.partial = partial ? 1 : 0;
  const lutkern_options options = options_of(exact, 0, stream);
  run([&] { return lutkern_moe(&args, &options); });
}

// ---- weights go there and back ----

// The weight in a layout of a device
Tensor repack_to(const Tensor& t, int32_t device, int32_t layout, uintptr_t stream) {
  const lutkern_tensor& from = t.use_on(stream);
  const auto wanted = static_cast<lutkern_layout>(layout);
  const int64_t nbytes =
      lutkern_device_tensor_bytes(device, from.ggml_type, wanted, from.experts, from.rows, from.cols);
  auto memory = std::make_shared<DeviceMemory>(device, static_cast<size_t>(nbytes), stream);
  const lutkern_options options = options_of(false, 0, stream);
  run([&] {
    const lutkern_status status = lutkern_repack_to(&from, wanted, device, memory->data(), memory->nbytes(), &options);
    // From now on any stream may read it.
    return status ? status : lutkern_device_synchronize(device, stream_of(stream));
  });
  return Tensor(from.ggml_type, layout, from.experts, from.rows, from.cols, memory);
}

// The bytes of a weight of a device in a layout of the CPU
void download(const Tensor& t, int32_t layout, py::array_t<uint8_t, py::array::c_style>& out, uintptr_t stream) {
  const lutkern_tensor& from = t.use_on(stream);
  uint8_t* bytes = out.mutable_data();
  const size_t nbytes = static_cast<size_t>(out.nbytes());
  const lutkern_options options = options_of(false, 0, stream);
  run([&] {
    return lutkern_repack_to(&from, static_cast<lutkern_layout>(layout), LUTKERN_CPU, bytes, nbytes, &options);
  });
}

// ---- copies ----

void copy_in(uintptr_t to, int32_t device, const py::buffer& from, uintptr_t stream) {
  const py::buffer_info info = from.request();
  run([&] {
    return lutkern_device_copy(reinterpret_cast<void*>(to), device, info.ptr, LUTKERN_CPU,
                               static_cast<size_t>(info.size * info.itemsize), stream_of(stream));
  });
}

void copy_out(const py::buffer& to, uintptr_t from, int32_t device, uintptr_t stream) {
  const py::buffer_info info = to.request(true);
  run([&] {
    return lutkern_device_copy(info.ptr, LUTKERN_CPU, reinterpret_cast<const void*>(from), device,
                               static_cast<size_t>(info.size * info.itemsize), stream_of(stream));
  });
}

void copy_there(uintptr_t to, int32_t to_device, uintptr_t from, int32_t from_device, size_t nbytes, uintptr_t stream) {
  run([&] {
    return lutkern_device_copy(reinterpret_cast<void*>(to), to_device, reinterpret_cast<const void*>(from), from_device,
                               nbytes, stream_of(stream));
  });
}

// ---- streams, events, graphs ----

using Event = Handle<lutkern_event_destroy>;
using Graph = Handle<lutkern_graph_destroy>;

template <class Kind, lutkern_status (*kCreate)(int32_t, void**)>
std::unique_ptr<Kind> create(int32_t device) {
  void* handle = nullptr;
  check(kCreate(device, &handle));
  return std::make_unique<Kind>(device, handle);
}

std::unique_ptr<Graph> graph_end(int32_t device, uintptr_t stream) {
  void* handle = nullptr;
  check(lutkern_graph_end(device, stream_of(stream), &handle));
  return std::make_unique<Graph>(device, handle);
}

float elapsed(const Event& begin, const Event& end) {
  float milliseconds = 0.0f;
  run([&] { return lutkern_event_elapsed(begin.device(), begin.get(), end.get(), &milliseconds); });
  return milliseconds;
}

// What is queued on `waiting` from now on waits for what is queued on `awaited`.
void wait(int32_t device, uintptr_t waiting, uintptr_t awaited) {
  const std::unique_ptr<Event> event = create<Event, lutkern_event_create>(device);
  check(lutkern_event_record(device, event->get(), stream_of(awaited)));
  check(lutkern_event_wait(device, event->get(), stream_of(waiting)));
}

// ---- what is there ----

std::optional<std::string> absent(int32_t kind) {
  const char* text = lutkern_device_absent(static_cast<lutkern_device_kind>(kind));
  return text ? std::optional<std::string>(text) : std::nullopt;
}

py::tuple device_info(int32_t device) {
  lutkern_device_info info{};
  check(lutkern_get_device_info(device, &info));
  return py::make_tuple(info.name, info.memory_bytes, info.free_bytes, info.cache_bytes, info.processors,
                        info.capability);
}

std::optional<std::string> device_kernel(int32_t device, int32_t ggml_type, int operation, int layout, int64_t tokens) {
  const char* name = lutkern_device_kernel(device, ggml_type, static_cast<lutkern_operation>(operation),
                                           static_cast<lutkern_layout>(layout), tokens);
  return name ? std::optional<std::string>(name) : std::nullopt;
}

template <class Kind, class Holder = std::unique_ptr<Kind>>
py::class_<Kind, Holder> add_handle(py::module_& m, const char* name) {
  return py::class_<Kind, Holder>(m, name)
      .def_property_readonly("device", &Kind::device)
      .def_property_readonly("address", &Kind::address);
}

}  // namespace

void add_devices(py::module_& m) {
  py::class_<DeviceMemory, Memory>(m, "DeviceMemory")
      .def(py::init<int32_t, size_t, uintptr_t>())
      .def("use_on", &DeviceMemory::use_on)
      .def_property_readonly("address", &DeviceMemory::address)
      .def_property_readonly("nbytes", &DeviceMemory::nbytes)
      .def_property_readonly("device", &DeviceMemory::device)
      .def_property_readonly("stream", &DeviceMemory::stream);
  m.def("device_matvec", &multiply<lutkern_matvec>);
  m.def("device_matmul", &multiply<lutkern_matmul>);
  m.def("device_dequantize", &dequantize);
  m.def("device_moe", &moe, py::arg(), py::arg(), py::arg(), py::arg(), py::arg().none(true), py::arg(), py::arg(),
        py::arg(), py::arg(), py::arg(), py::arg(), py::arg());
  m.def("download", &download, py::arg(), py::arg(), py::arg().noconvert(), py::arg());
  m.def("repack_to", &repack_to);
  m.def("copy_in", &copy_in);
  m.def("copy_out", &copy_out);
  m.def("copy_there", &copy_there);
  add_handle<Stream, std::shared_ptr<Stream>>(m, "Stream").def(py::init(&create_stream));
  add_handle<Event>(m, "Event")
      .def(py::init(&create<Event, lutkern_event_create>))
      .def("record", [](const Event& e, uintptr_t stream) {
        check(lutkern_event_record(e.device(), e.get(), stream_of(stream)));
      });
  add_handle<Graph>(m, "Graph").def("launch", [](const Graph& g, uintptr_t stream) {
    run([&] { return lutkern_graph_launch(g.device(), g.get(), stream_of(stream)); });
  });
  m.def("elapsed", &elapsed);
  m.def("wait", &wait);
  m.def("graph_begin", [](int32_t device, uintptr_t stream) { check(lutkern_graph_begin(device, stream_of(stream))); });
  m.def("graph_end", &graph_end);
  m.def("synchronize", [](int32_t device, uintptr_t stream) {
    run([&] { return lutkern_device_synchronize(device, stream_of(stream)); });
  });
  m.def("capturing", [](int32_t device, uintptr_t stream) {
    int32_t kept = 0;
    check(lutkern_stream_capturing(device, stream_of(stream), &kept));
    return kept != 0;
  });
  m.def("device_count", [](int32_t kind) { return lutkern_device_count(static_cast<lutkern_device_kind>(kind)); });
  m.attr("all_streams") = reinterpret_cast<uintptr_t>(LUTKERN_ALL_STREAMS);
  m.def("driver_version", [](int32_t kind) { return lutkern_driver_version(static_cast<lutkern_device_kind>(kind)); });
  m.def("device_image", [](int32_t kind) {
    int64_t nbytes = 0;
    const char* made_for = lutkern_device_image(static_cast<lutkern_device_kind>(kind), &nbytes);
    return py::make_tuple(made_for ? py::object(py::str(made_for)) : py::object(py::none()), nbytes);
  });
  m.def("device_absent", &absent);
  m.def("device_info", &device_info);
  m.def("device_kernel", &device_kernel);
  m.def("device_has_tiles",
        [](int32_t device, int32_t ggml_type) { return lutkern_device_has_tiles(device, ggml_type) != 0; });
}

}  // namespace bindings
}  // namespace lutkern
