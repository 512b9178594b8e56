// The machine behind the fake driver: devices with memory of their own, streams whose work is put off, events, graphs.
//
// Work on a stream is queued and runs when something waits for it, or earlier, at a moment that a seed chooses: a
// missing synchronisation gives a wrong result. Memory of a device is closed to the CPU but for the time of a kernel or
// a copy. All of it is under one lock, which the driver's functions hold.
#pragma once
#include <stdint.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cuda/driver.h"

namespace fake {

using namespace lutkern::cuda;

// ---- what the environment asks for ----

// LUTKERN_FAKE_CUDA is a list of name=value, separated by commas.
struct Settings {
  int devices = 1;
  int capability = 90;
  int version = 12040;
  int pools = 1;
  int shared = 232448;              // of a block, at most
  size_t memory = size_t{1} << 30;  // of a device
  uint64_t seed = 1;                // 0: work runs only when it is waited for
  int fail = 0;                     // the number of the call that fails, from 1 on
  int fail_with = 999;
  int init = 0;        // what cuInit returns
  int slow = 0;        // milliseconds that cuInit takes
  int refuse = 0;      // how many modules are refused, as code for no device of the machine
  std::string report;  // file for the report at the end of the process
};
const Settings& settings();

// ---- memory ----

struct Array {
  Address begin;
  size_t bytes;
  int device;
  bool from_pool;
  bool of_graph;  // allocated by a captured call: comes to life whenever the graph runs
  bool live;      // the work that allocates it has run, and that which frees it has not
  bool doomed;    // a free has been asked for
};

// The array that holds all of a range, or null
Array* find_array(Address begin, size_t bytes);
bool is_device_address(const void* p);
// Reserves addresses; null: no memory left. The array is not live yet.
Array* reserve_array(int device, size_t bytes, bool from_pool, bool of_graph);
void enliven(Array* array);
void kill(Array* array);    // contents are gone; a graph may enliven it again
void forget(Array* array);  // the addresses are never used again
size_t used_bytes(int device);
std::vector<const Array*> live_arrays();

// Device memory is open while one of these lives.
struct Opened {
  Opened();
  ~Opened();
};

// ---- streams ----

struct Ticket {  // of one piece of work
  struct lutkern::cuda::StreamHandle* stream = nullptr;
  bool done = false;
  double time = 0.0;
};
using TicketPtr = std::shared_ptr<Ticket>;

struct Work {
  std::function<void()> run;
  std::vector<TicketPtr> after;
  TicketPtr ticket;
};

struct Capture {
  lutkern::cuda::StreamHandle* origin;
  std::thread::id thread;
  int mode;
  bool invalid = false;
  std::vector<std::function<void()>> nodes;
  std::vector<Array*> arrays;
  std::set<lutkern::cuda::StreamHandle*> unjoined;  // streams that took part and have not been waited for
};
using CapturePtr = std::shared_ptr<Capture>;

// Queues work, or keeps it for a graph.
void enqueue(lutkern::cuda::StreamHandle* stream, std::function<void()> run, std::vector<TicketPtr> after = {});
void complete(const TicketPtr& ticket);
void complete(lutkern::cuda::StreamHandle* stream);
void complete_device(int device);
// Runs some work at random, as a device would.
void wander();

// A fault of work: the context is lost, every call from now on says so.
void fault(Result result, const std::string& text);
Result sticky();
const std::string& fault_text();

}  // namespace fake

// What handles point to
struct lutkern::cuda::ContextHandle {
  int device;
  int retained = 0;
  StreamHandle* legacy = nullptr;
  StreamHandle* per_thread = nullptr;
};
struct lutkern::cuda::StreamHandle {
  ContextHandle* context;
  bool blocking;  // ordered with the default stream
  std::deque<fake::Work> queue;
  fake::TicketPtr last;
  fake::CapturePtr capture;
};
struct lutkern::cuda::EventHandle {
  ContextHandle* context;
  fake::TicketPtr ticket;
  fake::CapturePtr capture;
  StreamHandle* recorded_on = nullptr;
};
struct lutkern::cuda::ModuleHandle {
  ContextHandle* context;
};
struct lutkern::cuda::FunctionHandle {
  ModuleHandle* module;
  int kernel;
  int shared_bytes = 48 << 10;
};
struct lutkern::cuda::GraphHandle {
  fake::CapturePtr capture;
};
struct lutkern::cuda::GraphExecHandle {
  fake::CapturePtr capture;
  ContextHandle* context;
};
struct lutkern::cuda::MemoryPoolHandle {
  int device;
};

namespace fake {

// Every handle that is alive
struct Handles {
  std::map<int, std::unique_ptr<ContextHandle>> contexts;
  std::set<StreamHandle*> streams;
  std::set<EventHandle*> events;
  std::set<ModuleHandle*> modules;
  std::set<FunctionHandle*> functions;
  std::set<GraphHandle*> graphs;
  std::set<GraphExecHandle*> execs;
  std::set<MemoryPoolHandle*> pools;
  std::set<void*> pinned;
  std::map<void*, size_t> pinned_bytes;
  std::set<CapturePtr> captures;
};
Handles& handles();

// Runs a kernel now; null, or a line that says what is wrong.
std::string run_kernel(int kernel, const void* args, const unsigned grid[3], unsigned threads, unsigned shared_bytes);

}  // namespace fake
