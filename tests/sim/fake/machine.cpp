#include "machine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>

#include "cuda/plans.h"
#include "launch.h"

namespace fake {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kArena = size_t{1} << 36;  // addresses of a device, each used once
constexpr size_t kAlignment = 256;
constexpr uint8_t kUnwritten = 0xcd;
constexpr uint8_t kMargin = 0xa7;  // around an array

[[noreturn]] void broken(const char* text) {
  fprintf(stderr, "fake cuda: %s: %s\n", text, strerror(errno));
  abort();
}

Settings read_settings() {
  Settings s;
  const char* text = getenv("LUTKERN_FAKE_CUDA");
  std::string all = text ? text : "";
  while (!all.empty()) {
    const size_t comma = all.find(',');
    const std::string item = all.substr(0, comma);
    all = comma == std::string::npos ? "" : all.substr(comma + 1);
    const size_t equals = item.find('=');
    const std::string name = item.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : item.substr(equals + 1);
    const int n = atoi(value.c_str());
    const std::map<std::string, int*> numbers = {{"devices", &s.devices},     {"capability", &s.capability},
                                                 {"version", &s.version},     {"pools", &s.pools},
                                                 {"shared", &s.shared},       {"fail", &s.fail},
                                                 {"fail_with", &s.fail_with}, {"init", &s.init},
                                                 {"refuse", &s.refuse},       {"slow", &s.slow}};
    const auto found = numbers.find(name);
    if (found != numbers.end()) {
      *found->second = n;
    } else if (name == "memory") {
      s.memory = strtoull(value.c_str(), nullptr, 10);
    } else if (name == "seed") {
      s.seed = strtoull(value.c_str(), nullptr, 10);
    } else if (name == "report") {
      s.report = value;
    } else {
      fprintf(stderr, "fake cuda: LUTKERN_FAKE_CUDA has the unknown setting '%s'\n", item.c_str());
      abort();
    }
  }
  return s;
}

struct Arena {
  uint8_t* base = nullptr;
  size_t next = kPage;
  size_t used = 0;
};

Arena& arena(int device) {
  static std::map<int, Arena>* all = new std::map<int, Arena>;
  Arena& a = (*all)[device];
  if (!a.base) {
    void* p = mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) broken("no addresses for a device");
    a.base = static_cast<uint8_t*>(p);
  }
  return a;
}

std::map<Address, Array>& arrays() {
  static auto* all = new std::map<Address, Array>;
  return *all;
}

uint8_t* pointer(Address a) { return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(a)); }

size_t up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// An array ends where its last page ends, but for the alignment.
struct Pages {
  uint8_t* begin;
  size_t bytes;
};
Pages pages_of(const Array& a) {
  const size_t aligned = up(a.bytes, kAlignment);
  const size_t all = up(aligned, kPage);
  return {pointer(a.begin) + aligned - all, all};
}

void protect(const Array& a, int how) {
  const Pages p = pages_of(a);
  if (mprotect(p.begin, p.bytes, how) != 0) broken("mprotect");
}

int g_opened = 0;
Result g_sticky = kSuccess;
std::string* g_fault = new std::string;

bool margins_are_whole(const Array& a) {
  const Pages p = pages_of(a);
  const uint8_t* data = pointer(a.begin);
  for (const uint8_t* q = p.begin; q < data; ++q) {
    if (*q != kMargin) return false;
  }
  for (const uint8_t* q = data + a.bytes; q < p.begin + p.bytes; ++q) {
    if (*q != kMargin) return false;
  }
  return true;
}

std::mt19937_64& random() {
  static auto* engine = new std::mt19937_64(settings().seed);
  return *engine;
}

double now() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool is_ready(const Work& work) {
  for (const TicketPtr& t : work.after) {
    if (!t->done) return false;
  }
  return true;
}

void run_front(StreamHandle* stream) {
  Work work = std::move(stream->queue.front());
  stream->queue.pop_front();
  if (g_sticky == kSuccess) work.run();
  work.ticket->time = now();
  work.ticket->done = true;
}

}  // namespace

const Settings& settings() {
  static const auto* s = new Settings(read_settings());
  return *s;
}

Handles& handles() {
  static auto* all = new Handles;
  return *all;
}

// ---- memory ----

Array* find_array(Address begin, size_t bytes) {
  auto next = arrays().upper_bound(begin);
  if (next == arrays().begin()) return nullptr;
  Array& a = std::prev(next)->second;
  const size_t offset = begin - a.begin;
  return offset <= a.bytes && bytes <= a.bytes - offset ? &a : nullptr;
}

bool is_device_address(const void* p) {
  for (int i = 0; i < settings().devices; ++i) {
    const uint8_t* base = arena(i).base;
    if (p >= base && p < base + kArena) return true;
  }
  return false;
}

Array* reserve_array(int device, size_t bytes, bool from_pool, bool of_graph) {
  Arena& a = arena(device);
  if (bytes > settings().memory || a.used > settings().memory - bytes) return nullptr;
  const size_t aligned = up(bytes, kAlignment);
  const size_t all = up(aligned, kPage);
  if (a.next + all + kPage > kArena) broken("all addresses of a device were used");
  const Address begin = reinterpret_cast<uintptr_t>(a.base) + a.next + all - aligned;
  a.next += all + kPage;
  a.used += bytes;
  Array& array = arrays()[begin];
  array = Array{begin, bytes, device, from_pool, of_graph, false, false};
  return &array;
}

void enliven(Array* a) {
  protect(*a, PROT_READ | PROT_WRITE);
  const Pages p = pages_of(*a);
  memset(p.begin, kMargin, p.bytes);
  memset(pointer(a->begin), kUnwritten, a->bytes);
  a->live = true;
  if (g_opened == 0) protect(*a, PROT_NONE);
  lk_sim_register(pointer(a->begin), a->bytes);
}

void kill(Array* a) {
  lk_sim_unregister(pointer(a->begin));
  protect(*a, PROT_READ);
  if (!margins_are_whole(*a))
    fault(kIllegalAddress, "memory beside an array of " + std::to_string(a->bytes) + " bytes was written");
  const Pages p = pages_of(*a);
  protect(*a, PROT_NONE);
  madvise(p.begin, p.bytes, MADV_DONTNEED);
  a->live = false;
}

void forget(Array* a) {
  arena(a->device).used -= a->bytes;
  arrays().erase(a->begin);
}

size_t used_bytes(int device) { return arena(device).used; }

std::vector<const Array*> live_arrays() {
  std::vector<const Array*> out;
  for (const auto& [begin, a] : arrays()) {
    if (a.live) out.push_back(&a);
  }
  return out;
}

Opened::Opened() {
  if (g_opened++ > 0) return;
  for (const auto& [begin, a] : arrays()) {
    if (a.live) protect(a, PROT_READ | PROT_WRITE);
  }
}

Opened::~Opened() {
  if (--g_opened > 0) return;
  for (const auto& [begin, a] : arrays()) {
    if (a.live) protect(a, PROT_NONE);
  }
}

// ---- streams ----

void fault(Result result, const std::string& text) {
  fprintf(stderr, "fake cuda: %s\n", text.c_str());
  if (g_sticky != kSuccess) return;
  g_sticky = result;
  *g_fault = text;
}

Result sticky() { return g_sticky; }

const std::string& fault_text() { return *g_fault; }

void enqueue(StreamHandle* stream, std::function<void()> run, std::vector<TicketPtr> after) {
  if (stream->capture) {
    stream->capture->nodes.push_back(std::move(run));
    if (stream != stream->capture->origin) stream->capture->unjoined.insert(stream);
    return;
  }
  // The default stream waits for the blocking ones, and they for it.
  if (stream == stream->context->legacy) {
    for (StreamHandle* other : handles().streams) {
      if (other->context == stream->context && other->blocking && other->last) after.push_back(other->last);
    }
  } else if (stream->blocking && stream->context->legacy->last) {
    after.push_back(stream->context->legacy->last);
  }
  Work work{std::move(run), std::move(after), std::make_shared<Ticket>()};
  work.ticket->stream = stream;
  stream->last = work.ticket;
  stream->queue.push_back(std::move(work));
}

void complete(const TicketPtr& ticket) {
  while (ticket && !ticket->done) {
    StreamHandle* stream = ticket->stream;
    const std::vector<TicketPtr> after = stream->queue.front().after;
    for (const TicketPtr& t : after) complete(t);
    run_front(stream);
  }
}

void complete(StreamHandle* stream) { complete(stream->last); }

void complete_device(int device) {
  const std::set<StreamHandle*> streams = handles().streams;
  for (StreamHandle* stream : streams) {
    if (stream->context->device == device) complete(stream);
  }
}

void wander() {
  if (settings().seed == 0) return;
  for (uint64_t turns = random()() % 3; turns > 0; --turns) {
    std::vector<StreamHandle*> ready;
    for (StreamHandle* s : handles().streams) {
      if (!s->queue.empty() && is_ready(s->queue.front())) ready.push_back(s);
    }
    if (ready.empty()) return;
    run_front(ready[random()() % ready.size()]);
  }
}

// ---- kernels ----

namespace {

void write_file(const std::string& path, const void* data, size_t bytes) {
  FILE* file = fopen(path.c_str(), "wb");
  if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) broken(path.c_str());
}

// LUTKERN_SIM_TRACE: what a launch got, and all memory of the devices before and after it.
struct Trace {
  std::string folder;
  std::vector<const Array*> arrays;

  Trace(int kernel, const void* args, const unsigned grid[3], unsigned threads, unsigned shared_bytes) {
    const char* where = getenv("LUTKERN_SIM_TRACE");
    if (!where || !*where) return;
    static int count = 0;
    char name[32];
    snprintf(name, sizeof(name), "/launch_%05d", count++);
    mkdir(where, 0777);
    folder = std::string(where) + name;
    if (mkdir(folder.c_str(), 0777) != 0) broken(folder.c_str());
    arrays = live_arrays();
    std::string json = std::string("{\"kernel\": \"") + kKernelName[kernel] + "\", \"grid\": [" +
                       std::to_string(grid[0]) + ", " + std::to_string(grid[1]) + ", " + std::to_string(grid[2]) +
                       "], \"block\": [" + std::to_string(threads) +
                       ", 1, 1], \"shared\": " + std::to_string(shared_bytes) + ", \"allocations\": [";
    for (size_t i = 0; i < arrays.size(); ++i) {
      json += std::string(i ? ", " : "") + "{\"address\": " + std::to_string(arrays[i]->begin) +
              ", \"bytes\": " + std::to_string(arrays[i]->bytes) + "}";
    }
    json += "]}\n";
    write_file(folder + "/launch.json", json.data(), json.size());
    write_file(folder + "/args.bin", args, static_cast<size_t>(kKernelArgsBytes[kernel]));
    write_all("before");
  }

  void write_all(const char* when) const {
    for (size_t i = 0; i < arrays.size(); ++i) {
      write_file(folder + "/" + when + "_" + std::to_string(i) + ".bin", pointer(arrays[i]->begin), arrays[i]->bytes);
    }
  }
};

}  // namespace

std::string run_kernel(int kernel, const void* args, const unsigned grid[3], unsigned threads, unsigned shared_bytes) {
  const Opened opened;
  const Trace trace(kernel, args, grid, threads, shared_bytes);
  const uint32_t sizes[3] = {grid[0], grid[1], grid[2]};
  char error[512] = "";
  lk_sim_shared_limit(static_cast<uint32_t>(settings().shared));
  const uint64_t seed = settings().seed ? random()() : 0;
  const int failed = lk_sim_launch(kKernelName[kernel], args, static_cast<size_t>(kKernelArgsBytes[kernel]), sizes,
                                   threads, shared_bytes, seed, error, sizeof(error));
  if (!trace.folder.empty()) trace.write_all("after");
  return failed ? error : "";
}

}  // namespace fake
