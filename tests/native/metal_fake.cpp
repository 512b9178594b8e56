// The fake Objective-C runtime and Metal are strict: each thing that a program must not do ends it, with a text that says
// what; work runs late, and in the order of its queue.
//
// Each case runs in a process of its own, because it ends, and because the settings are read once.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "metal/selectors.h"

using namespace lutkern::metal;

namespace {

[[noreturn]] void die(const std::string& text) {
  fprintf(stderr, "metal_fake: %s\n", text.c_str());
  _exit(1);
}

void need(bool truth, const char* what) {
  if (!truth) die(what);
}

// ---- the functions of the fake ----

template <typename Fn>
Fn* fake(const char* name) {
  static void* library = dlopen(LUTKERN_FAKE_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  void* symbol = library ? dlsym(library, name) : nullptr;
  if (!symbol) die(std::string("there is no ") + name + ": " + dlerror());
  Fn* fn = nullptr;
  memcpy(&fn, &symbol, sizeof(fn));
  return fn;
}

SelectorId selector(Text name) { return fake<SelectorId(Text)>("sel_registerName")(name); }
Id class_of(Text name) { return fake<Id(Text)>("objc_getClass")(name); }
int alive(Text what) { return fake<int(Text)>("fake_metal_alive")(what); }
int64_t count(Text what) { return fake<int64_t(Text)>("fake_metal_count")(what); }
std::string fault() { return fake<Text()>("fake_metal_fault")(); }

template <typename Result = void, typename... Parameters>
Result send(Id receiver, Text name, Parameters... parameters) {
  return fake<Result(Id, SelectorId, Parameters...)>("objc_msgSend")(receiver, selector(name), parameters...);
}

Id string(Text text) { return send<Id>(class_of("NSString"), "stringWithUTF8String:", text); }
std::string text_of(Id s) { return send<Text>(s, "UTF8String"); }

// ---- a device, and a kernel ----

constexpr char kText[] = R"(
#include <metal_stdlib>
using namespace metal;
struct Args { int32_t begin; int32_t step; };
kernel void count_up(constant Args& args [[buffer(0)]], device int* out [[buffer(1)]],
                     uint3 group [[threadgroup_position_in_grid]], uint3 threads [[threads_per_threadgroup]],
                     uint thread_index [[thread_index_in_threadgroup]]) {
  const int i = int(group.x * threads.x + thread_index);
  out[i] = args.begin + args.step * i;
}
kernel void add_one(device int* out [[buffer(0)]], uint thread_index [[thread_index_in_threadgroup]]) {
  out[thread_index] += 1;
}
kernel void much_memory(device int* out [[buffer(0)]], uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup int all[5000];
  all[thread_index] = int(thread_index);
  out[thread_index] = all[thread_index];
}
)";

struct Pool {
  void* token = fake<void*()>("objc_autoreleasePoolPush")();
  ~Pool() { fake<void(void*)>("objc_autoreleasePoolPop")(token); }
};

Id device_at(Unsigned index) {
  const Id all = fake<Id()>("MTLCopyAllDevices")();
  const Id device = send<Id>(all, "objectAtIndex:", index);
  send(all, "release");
  return device;
}

Id new_buffer(Id device, Unsigned bytes) {
  return send<Id>(device, "newBufferWithLength:options:", bytes, Unsigned{0});
}

Id new_library(Id device, Text text, Id* error) {
  const Id options = send<Id>(class_of("MTLCompileOptions"), "new");
  send(options, "setFastMathEnabled:", Flag{false});
  const Id library = send<Id>(device, "newLibraryWithSource:options:error:", string(text), options, error);
  send(options, "release");
  return library;
}

Id new_pipeline(Id device, Text kernel, Id* error) {
  const Id library = new_library(device, kText, error);
  if (!library) die(text_of(send<Id>(*error, "localizedDescription")));
  const Id function = send<Id>(library, "newFunctionWithName:", string(kernel));
  const Id pipeline = send<Id>(device, "newComputePipelineStateWithFunction:error:", function, error);
  send(function, "release");
  send(library, "release");
  return pipeline;
}

struct Args {
  int32_t begin, step;
};

// What most cases begin with; objects of one device
struct Machine {
  Pool pool;
  Id device = device_at(0);
  Id queue = send<Id>(device, "newCommandQueue");
  Id buffer = new_buffer(device, 64 * sizeof(int));
  Id error = nullptr;
  Id pipeline = new_pipeline(device, "count_up", &error);

  int* numbers() const { return send<int*>(buffer, "contents"); }
  Id command_buffer() const { return send<Id>(queue, "commandBuffer"); }
  Id encoder(Id target) const {
    const Id e = send<Id>(target, "computeCommandEncoder");
    send(e, "setComputePipelineState:", pipeline);
    set_args(e, Args{5, 2}, 0);
    send(e, "setBuffer:offset:atIndex:", buffer, Unsigned{0}, Unsigned{1});
    return e;
  }
  static void set_args(Id encoder, Args args, Unsigned index) {
    send(encoder, "setBytes:length:atIndex:", static_cast<const void*>(&args), Unsigned{sizeof(args)}, index);
  }
  static void dispatch(Id encoder, Size groups, Size threads) {
    send(encoder, "dispatchThreadgroups:threadsPerThreadgroup:", groups, threads);
  }
  // Committed, not waited for
  Id run() const {
    const Id b = command_buffer();
    const Id e = encoder(b);
    dispatch(e, Size{2, 1, 1}, Size{32, 1, 1});
    send(e, "endEncoding");
    send(b, "commit");
    return b;
  }
  void release() const {
    for (const Id o : std::vector<Id>{queue, buffer, pipeline}) send(o, "release");
  }
};

// ---- what works ----

void case_work() {
  {
    const Machine m;
    need(text_of(send<Id>(m.device, "name")) == "Simulated device 0", "name");
    need(send<Flag>(m.device, "respondsToSelector:", selector("newCommandQueue")), "responds");
    need(!send<Flag>(m.device, "respondsToSelector:", selector("commit")), "does not respond");
    need(send<Flag>(m.device, "supportsFamily:", Integer{1009}), "family 9");
    need(!send<Flag>(m.device, "supportsFamily:", Integer{1010}), "family 10");
    need(m.error, "an error object beside a library: warnings");
    for (int i = 0; i < 64; ++i) need(m.numbers()[i] == static_cast<int>(0xcdcdcdcd), "unwritten");
    const Id b = m.run();
    // The seed is 0: nothing runs before it is waited for.
    need(m.numbers()[0] == static_cast<int>(0xcdcdcdcd) && alive("pending") == 1, "not yet");
    need(send<Unsigned>(b, "status") == 2 && send<Seconds>(b, "GPUEndTime") == 0.0, "committed");
    send(b, "waitUntilCompleted");
    need(send<Unsigned>(b, "status") == 4 && !send<Id>(b, "error"), "completed");
    need(send<Seconds>(b, "GPUEndTime") >= send<Seconds>(b, "GPUStartTime"), "times");
    need(send<Seconds>(b, "GPUStartTime") > 0.0, "a time");
    for (int i = 0; i < 64; ++i) need(m.numbers()[i] == 5 + 2 * i, "the kernel has run");
    need(count("dispatches") == 1 && count("commits") == 1 && count("waits") == 1 && count("libraries") == 1, "counts");
    need(strcmp(fake<Text()>("fake_metal_kernels")(), "count_up\n") == 0, "kernels");
    m.release();
  }
  need(alive("objects") == 1 && alive("MTLDevice") == 1 && alive("pools") == 0, "the device stays, and no more");
  need(alive("no class") == -1 && count("nothing") == 0 && fault().empty(), "nothing was wrong");
}

// Who asks often enough sees the end; a copy comes after the kernel that was committed before.
void case_copies() {
  const Machine m;
  const Id copy = new_buffer(m.device, 16);
  m.run();
  const Id b = m.command_buffer();
  const Id e = send<Id>(b, "blitCommandEncoder");
  send(e, "copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:", m.buffer, Unsigned{40}, copy, Unsigned{4},
       Unsigned{8});
  send(e, "endEncoding");
  send(b, "commit");
  int polls = 0;
  while (send<Unsigned>(b, "status") != 4 && polls < 1000) ++polls;
  const int* got = send<int*>(copy, "contents");
  need(got[0] == static_cast<int>(0xcdcdcdcd) && got[1] == 25 && got[2] == 27, "copied");
}

// Memory of the CPU without a copy
void case_wrap() {
  const Machine m;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const Id wrapped = send<Id>(m.device, "newBufferWithBytesNoCopy:length:options:deallocator:", memory, Unsigned{page},
                              Unsigned{0}, Block{nullptr});
  need(send<void*>(wrapped, "contents") == memory, "the same memory");
  need(fake<uint64_t(int)>("fake_metal_bytes")(0) == 256, "no memory of its own");
  const Id b = m.command_buffer();
  const Id e = m.encoder(b);
  send(e, "setBuffer:offset:atIndex:", wrapped, Unsigned{64}, Unsigned{1});
  Machine::dispatch(e, Size{1, 1, 1}, Size{32, 1, 1});
  send(e, "endEncoding");
  send(b, "commit");
  send(b, "waitUntilCompleted");
  need(static_cast<int*>(memory)[15] == 0 && static_cast<int*>(memory)[16 + 31] == 67, "written");
}

// In the order of a queue, whatever the seed does
void case_order() {
  const Machine m;
  Id error = nullptr;
  const Id add = new_pipeline(m.device, "add_one", &error);
  Id last = nullptr;
  for (int turn = 0; turn < 20; ++turn) {
    m.run();
    last = m.command_buffer();
    const Id e = send<Id>(last, "computeCommandEncoder");
    send(e, "setComputePipelineState:", add);
    send(e, "setBuffer:offset:atIndex:", m.buffer, Unsigned{0}, Unsigned{0});
    Machine::dispatch(e, Size{1, 1, 1}, Size{32, 1, 1});
    send(e, "endEncoding");
    send(last, "commit");
  }
  need(count("dispatches") > 0 && alive("pending") > 0, "some work ran early, some is left");
  send(last, "waitUntilCompleted");
  for (int i = 0; i < 64; ++i) need(m.numbers()[i] == 5 + 2 * i + (i < 32), "in order");
}

void case_failures() {
  const Pool pool;
  need(!fake<Id()>("MTLCopyAllDevices")(), "the first call fails");
  need(strcmp(fake<Text()>("fake_metal_failed_call")(), "MTLCopyAllDevices") == 0, "its name");
  need(count("calls") == 1, "one call");
}

void case_failing_library() {
  const Pool pool;
  Id error = nullptr;
  need(!new_library(device_at(0), kText, &error), "the second call fails");
  need(text_of(send<Id>(error, "localizedDescription")) == "the settings asked for a failure", "its text");
  need(strcmp(fake<Text()>("fake_metal_failed_call")(), "-[MTLDevice newLibraryWithSource:options:error:]") == 0,
       "name");
}

// The seventh call is the commit: the work is refused when it runs.
void case_failing_work() {
  const Machine m;
  const Id b = m.run();
  send(b, "waitUntilCompleted");
  need(send<Unsigned>(b, "status") == 5, "error");
  need(text_of(send<Id>(send<Id>(b, "error"), "localizedDescription")) == "the settings asked for a failure", "text");
  need(strcmp(fake<Text()>("fake_metal_failed_call")(), "-[MTLCommandBuffer commit]") == 0, "name");
  const Id next = m.run();
  send(next, "waitUntilCompleted");
  need(send<Unsigned>(next, "status") == 4 && m.numbers()[63] == 131, "the next one runs");
}

void case_nil() {
  need(!send<void*>(nullptr, "contents") && send<Seconds>(nullptr, "GPUEndTime") == 0.0, "zero");
  send(nullptr, "release");
  need(count("nil") == 3, "counted");
  need(!class_of("NSError") && class_of("NSString"), "a class that there is not");
}

void case_compiler() {
  const Pool pool;
  Id error = nullptr;
  const Id device = device_at(0);
  need(!new_library(device, "kernel void f(device int* p [[buffer(0)]]) { missing(p); }", &error), "refused");
  const std::string text = text_of(send<Id>(error, "localizedDescription"));
  need(text.find("missing") != std::string::npos, text.c_str());
  const Id library = new_library(device, kText, &error);
  need(!send<Id>(library, "newFunctionWithName:", string("no_such_kernel")), "no such kernel");
  const Id function = send<Id>(library, "newFunctionWithName:", string("much_memory"));
  need(!send<Id>(device, "newComputePipelineStateWithFunction:error:", function, &error), "too much memory");
  need(text_of(send<Id>(error, "localizedDescription")) ==
           "Threadgroup memory size (20000) exceeds the maximum threadgroup memory allowed (16384)",
       "limit of threadgroup memory");
}

void case_limits() {
  const Pool pool;
  const Id device = device_at(0);
  need(send<Unsigned>(device, "maxBufferLength") == 1000, "longest buffer");
  need(!new_buffer(device, 1001), "too long");
  need(send<uint64_t>(device, "recommendedMaxWorkingSetSize") == 1500, "memory");
  const Id first = new_buffer(device, 1000);
  need(first && !new_buffer(device, 501), "no memory left");
  need(send<Unsigned>(device, "currentAllocatedSize") == 1000, "allocated");
  send(first, "release");
  need(new_buffer(device, 501), "memory again");
}

// ---- what is wrong with work ----

void faulty(const Machine& m, Id b, const char* expected) {
  send(b, "waitUntilCompleted");
  need(send<Unsigned>(b, "status") == 5, "an error");
  const std::string text = text_of(send<Id>(send<Id>(b, "error"), "localizedDescription"));
  if (text.find(expected) == std::string::npos || fault() != text) die("the text is '" + text + "'");
  m.release();
}

void case_outside() {
  const Machine m;
  const Id b = m.command_buffer();
  const Id e = m.encoder(b);
  send(e, "setBuffer:offset:atIndex:", m.buffer, Unsigned{4}, Unsigned{1});
  Machine::dispatch(e, Size{2, 1, 1}, Size{32, 1, 1});
  send(e, "endEncoding");
  send(b, "commit");
  faulty(m, b, "count_up");
}

void case_wrap_gone() {
  const Machine m;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const Id wrapped = send<Id>(m.device, "newBufferWithBytesNoCopy:length:options:deallocator:", memory, Unsigned{page},
                              Unsigned{0}, Block{nullptr});
  const Id b = m.command_buffer();
  const Id e = m.encoder(b);
  send(e, "setBuffer:offset:atIndex:", wrapped, Unsigned{0}, Unsigned{1});
  Machine::dispatch(e, Size{1, 1, 1}, Size{32, 1, 1});
  send(e, "endEncoding");
  send(b, "commit");
  send(wrapped, "release");
  faulty(m, b, "count_up: index 1: memory of the CPU was given back before the work that uses it has run");
}

// The CPU writes beside a buffer.
void case_beside() {
  const Pool pool;
  const Id buffer = new_buffer(device_at(0), 100);
  send<uint8_t*>(buffer, "contents")[100] = 1;
  send(buffer, "release");
  need(fault() == "memory beside a buffer of 100 bytes was written", "told");
}

// Metal keeps what work uses; a buffer of its own may be released before.
void case_kept() {
  const Machine m;
  const Id b = m.run();
  m.release();
  need(alive("MTLBuffer") == 1 && alive("MTLComputePipelineState") == 1 && alive("MTLCommandQueue") == 1, "kept");
  send(b, "waitUntilCompleted");
  need(alive("MTLBuffer") == 0 && alive("MTLComputePipelineState") == 0, "let go");
  need(fault().empty(), "nothing was wrong");
}

void case_thread_pool() {
  std::thread([] { fake<void*()>("objc_autoreleasePoolPush")(); }).join();
  need(fault() == "a thread ended inside of an autorelease pool", "told");
}

struct Case {
  const char* name;
  void (*run)();
  const char* settings;
};
const Case kCases[] = {
    {"work", case_work, "seed=0"},
    {"copies", case_copies, "seed=0"},
    {"wrap", case_wrap, "seed=0"},
    {"order", case_order, "seed=1"},
    {"failures", case_failures, "fail=1"},
    {"failing_library", case_failing_library, "fail=2"},
    {"failing_work", case_failing_work, "fail=9"},
    {"nil", case_nil, "without=NSError"},
    {"compiler", case_compiler, "shared=16384"},
    {"limits", case_limits, "memory=1500,buffer=1000"},
    {"outside", case_outside, ""},
    {"wrap_gone", case_wrap_gone, "seed=0"},
    {"beside", case_beside, ""},
    {"kept", case_kept, "seed=0"},
    {"thread_pool", case_thread_pool, ""},
};

// ---- what ends the program ----

struct Death {
  const char* text;  // the end of the last line
  void (*run)(const Machine& m);
  const char* settings = "seed=0";
};

void wrap(const Machine& m, void* from, Unsigned bytes) {
  send<Id>(m.device, "newBufferWithBytesNoCopy:length:options:deallocator:", from, bytes, Unsigned{0}, Block{nullptr});
}
alignas(65536) char g_pages[65536];

const Death kDeaths[] = {
    {"-[MTLDevice newBuffer]: the class has no such method", [](const Machine& m) { send(m.device, "newBuffer"); }},
    {"+[NSString new]: the class has no such method", [](const Machine&) { send(class_of("NSString"), "new"); }},
    {"-[MTLCompileOptions setMathMode:]: the class has no such method",
     [](const Machine&) { send(send<Id>(class_of("MTLCompileOptions"), "new"), "setMathMode:", Integer{0}); }},
    {"-[MTLCompileOptions setMathMode:]: mode 2, expected 0: safe",
     [](const Machine&) { send(send<Id>(class_of("MTLCompileOptions"), "new"), "setMathMode:", Integer{2}); },
     "macos=15"},
    {"objc_getClass: there is no class MTLDevise", [](const Machine&) { class_of("MTLDevise"); }},
    {"objc_msgSend: the selector is not one of sel_registerName",
     [](const Machine& m) {
       static char name[] = "name";
       fake<Id(Id, char*)>("objc_msgSend")(m.device, name);
     }},
    {"-[MTLBuffer contents]: the object was freed",
     [](const Machine& m) {
       send(m.buffer, "release");
       send<void*>(m.buffer, "contents");
     }},
    {"-[MTLCommandQueue release]: released more often than it was made or retained",
     [](const Machine& m) {
       m.run();
       send(m.queue, "release");
       send(m.queue, "release");
     }},
    {"-[MTLCommandBuffer release]: released more often than it was made or retained",
     [](const Machine& m) { send(m.command_buffer(), "release"); }},
    {"+[NSString stringWithUTF8String:]: an object of class NSString is autoreleased, but there is no pool",
     [](const Machine&) { std::thread([] { string("text"); }).join(); }},
    {"objc_autoreleasePoolPop: not a pool of this thread",
     [](const Machine&) { fake<void(void*)>("objc_autoreleasePoolPop")(nullptr); }},
    {"-[MTLDevice newBufferWithLength:options:]: 0 bytes, expected at least 1",
     [](const Machine& m) { new_buffer(m.device, 0); }},
    {"-[MTLDevice newBufferWithLength:options:]: the options are 0x20, expected shared storage with hazard tracking",
     [](const Machine& m) { send<Id>(m.device, "newBufferWithLength:options:", Unsigned{8}, Unsigned{32}); }},
    {"the pointer is not a multiple of the page, 16384 bytes", [](const Machine& m) { wrap(m, g_pages + 4096, 16384); },
     "page=16384"},
    {"the length is 4096, expected a multiple of the page, 16384 bytes",
     [](const Machine& m) { wrap(m, g_pages, 4096); }, "page=16384"},
    {"not all of the 65536 bytes are memory of the process",
     [](const Machine& m) {
       munmap(g_pages + 32768, 32768);
       wrap(m, g_pages, 65536);
     }},
    {"-[MTLDevice newLibraryWithSource:options:error:]: fast math is on, expected off: kernels are exact to the bit",
     [](const Machine& m) {
       Id error = nullptr;
       const Id options = send<Id>(class_of("MTLCompileOptions"), "new");
       send<Id>(m.device, "newLibraryWithSource:options:error:", string(""), options, &error);
     }},
    {"-[MTLDevice newComputePipelineStateWithFunction:error:]: the function is of class MTLBuffer, expected "
     "MTLFunction",
     [](const Machine& m) {
       Id error = nullptr;
       send<Id>(m.device, "newComputePipelineStateWithFunction:error:", m.buffer, &error);
     }},
    {"-[MTLDevice supportsFamily:]: family 7 is not one that the fake knows",
     [](const Machine& m) { send<Flag>(m.device, "supportsFamily:", Integer{7}); }},
    {"-[MTLCommandBuffer computeCommandEncoder]: an encoder is open, expected endEncoding first",
     [](const Machine& m) {
       const Id b = m.command_buffer();
       m.encoder(b);
       m.encoder(b);
     }},
    {"-[MTLCommandBuffer commit]: an encoder is open, expected endEncoding first",
     [](const Machine& m) {
       const Id b = m.command_buffer();
       m.encoder(b);
       send(b, "commit");
     }},
    {"-[MTLCommandBuffer commit]: the command buffer was committed", [](const Machine& m) { send(m.run(), "commit"); }},
    {"-[MTLCommandBuffer computeCommandEncoder]: the command buffer was committed",
     [](const Machine& m) { m.encoder(m.run()); }},
    {"-[MTLCommandBuffer waitUntilCompleted]: the command buffer was not committed: it would wait for ever",
     [](const Machine& m) { send(m.command_buffer(), "waitUntilCompleted"); }},
    {"-[MTLCommandQueue commandBuffer]: waits for ever: nothing that is committed ends the wait for a command buffer",
     [](const Machine& m) {
       for (int i = 0; i < 65; ++i) m.command_buffer();
     }},
    {"-[MTLComputeCommandEncoder endEncoding]: the encoder was ended",
     [](const Machine& m) {
       const Id e = m.encoder(m.command_buffer());
       send(e, "endEncoding");
       send(e, "endEncoding");
     }},
    {"objc_autoreleasePoolPop: an encoder was freed before endEncoding",
     [](const Machine& m) {
       const Pool pool;
       m.encoder(m.command_buffer());
     }},
    {"-[MTLComputeCommandEncoder setBytes:length:atIndex:]: 4097 bytes, expected 1 to 4096",
     [](const Machine& m) {
       const Id e = m.encoder(m.command_buffer());
       send(e, "setBytes:length:atIndex:", static_cast<const void*>(g_pages), Unsigned{4097}, Unsigned{0});
     }},
    {"-[MTLComputeCommandEncoder setBuffer:offset:atIndex:]: index 31, expected at most 30",
     [](const Machine& m) {
       const Id e = m.encoder(m.command_buffer());
       send(e, "setBuffer:offset:atIndex:", m.buffer, Unsigned{0}, Unsigned{31});
     }},
    {"-[MTLComputeCommandEncoder setBuffer:offset:atIndex:]: 1 bytes from 256 on are not inside of a buffer of 256 "
     "bytes",
     [](const Machine& m) {
       const Id e = m.encoder(m.command_buffer());
       send(e, "setBuffer:offset:atIndex:", m.buffer, Unsigned{256}, Unsigned{0});
     }},
    {"-[MTLComputeCommandEncoder setBuffer:offset:atIndex:]: the buffer is of another device",
     [](const Machine& m) {
       const Id e = m.encoder(m.command_buffer());
       send(e, "setBuffer:offset:atIndex:", new_buffer(device_at(1), 4), Unsigned{0}, Unsigned{0});
     },
     "devices=2"},
    {"there is no pipeline",
     [](const Machine& m) {
       const Id e = send<Id>(m.command_buffer(), "computeCommandEncoder");
       Machine::dispatch(e, Size{1, 1, 1}, Size{32, 1, 1});
     }},
    {"count_up: nothing is bound to index 0 of 2",
     [](const Machine& m) {
       const Id e = send<Id>(m.command_buffer(), "computeCommandEncoder");
       send(e, "setComputePipelineState:", m.pipeline);
       send(e, "setBuffer:offset:atIndex:", m.buffer, Unsigned{0}, Unsigned{1});
       Machine::dispatch(e, Size{1, 1, 1}, Size{32, 1, 1});
     }},
    {"count_up: 1 x 0 x 1 threadgroups",
     [](const Machine& m) { Machine::dispatch(m.encoder(m.command_buffer()), Size{1, 0, 1}, Size{32, 1, 1}); }},
    {"count_up: 1025 x 1 x 1 threads, expected 1 to 1024 in one dimension",
     [](const Machine& m) { Machine::dispatch(m.encoder(m.command_buffer()), Size{1, 1, 1}, Size{1025, 1, 1}); }},
    {"count_up: 96 x 1 x 1 threads, expected 1 to 64 in one dimension",
     [](const Machine& m) { Machine::dispatch(m.encoder(m.command_buffer()), Size{1, 1, 1}, Size{96, 1, 1}); },
     "threads=64"},
    {"copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:]: 6 bytes from 0 to 0, expected multiples of 4",
     [](const Machine& m) {
       const Id e = send<Id>(m.command_buffer(), "blitCommandEncoder");
       send(e, "copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:", m.buffer, Unsigned{0}, m.buffer,
            Unsigned{0}, Unsigned{6});
     }},
    {"called in the child of a process that used Metal",
     [](const Machine& m) {
       const pid_t child = fork();
       if (child == 0) send<Id>(m.device, "name");
       int status = 0;
       waitpid(child, &status, 0);
       if (WIFSIGNALED(status)) abort();
     }},
    {"LUTKERN_FAKE_METAL has the unknown setting 'colour=blue'", [](const Machine&) {}, "colour=blue"},
};

// ---- processes ----

// Runs it; what it wrote to stderr. *status: as waitpid tells it.
template <class Run>
std::string in_child(const char* settings, int* status, Run run) {
  int ends[2];
  if (pipe(ends) != 0) die("no pipe");
  fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    setenv("LUTKERN_FAKE_METAL", settings, 1);
    alarm(100);
    run();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char part[512];
  for (ssize_t n = read(ends[0], part, sizeof(part)); n > 0; n = read(ends[0], part, sizeof(part))) {
    text.append(part, static_cast<size_t>(n));
  }
  close(ends[0]);
  waitpid(child, status, 0);
  return text;
}

bool run_case(const Case& c) {
  int status = 0;
  const std::string text = in_child(c.settings, &status, c.run);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
  fprintf(stderr, "metal_fake: case %s failed\n%s", c.name, text.c_str());
  return false;
}

bool run_death(const Death& d) {
  int status = 0;
  const std::string text = in_child(d.settings, &status, [&] {
    const Machine m;
    d.run(m);
    _exit(0);
  });
  const bool died = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
  if (died && text.find(std::string(d.text) + "\n") != std::string::npos) return true;
  fprintf(stderr, "metal_fake: expected '%s', status %d, got: %s\n", d.text, status, text.c_str());
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string wanted = argc > 1 ? argv[1] : "";
  bool fine = true;
  int n = 0;
  for (const Case& c : kCases) {
    if (!wanted.empty() && wanted != c.name) continue;
    fine = run_case(c) && fine;
    ++n;
  }
  for (const Death& d : kDeaths) {
    if (!wanted.empty() && wanted != "deaths") continue;
    fine = run_death(d) && fine;
    ++n;
  }
  if (fine) printf("metal_fake: %d cases passed\n", n);
  return fine && n > 0 ? 0 : 1;
}
