#include "watch.h"

#if defined(__linux__)
#include <link.h>
#endif
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace lutkern {
namespace sim {

Clock g_clock;

namespace {

enum : uint32_t { kRedStamp = 0xffffffffu, kPageBytes = 4096 };
enum : size_t { kMaxPages = 8192, kKeptPages = 256 };
enum : uint16_t { kOneReader = 0, kReadersOfWarp = 1, kReadersOfBlock = 2 };

// Of one word of shared memory, or one byte: its last write, and who read it since.
struct SharedCell {
  uint32_t write;
  uint32_t read;
  uint16_t writer;
  uint16_t reader;
  uint16_t readers;
  uint16_t is_split;  // a word: its bytes have cells of their own
};

struct GlobalByte {
  uint32_t write;
  uint16_t writer;
};

struct Page {
  GlobalByte byte[kPageBytes];
};

struct Range {
  uintptr_t begin;
  uintptr_t end;
  bool has(uintptr_t from, size_t bytes) const { return from >= begin && from + bytes <= end; }
};

struct Watch {
  Range args;
  Range shared;
  std::vector<SharedCell> words;
  std::vector<SharedCell> split;  // bytes
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  uintptr_t last_number = 0;  // of the page that was used last
  Page* last_page = nullptr;
  std::vector<Range> registered;  // in order
  Range last_registered = {0, 0};
  Range image = {0, 0};        // the tables of the text that is linked in
  Range tables = {0, 0};       // the tables of a text that is not
  const void* told = nullptr;  // the last checked access, and where it is
  Site site;
  char text[256];
};

Watch g;
bool g_sees_all;  // plain loads and stores too
std::mutex g_registry;
std::map<uintptr_t, size_t> g_registered;

// The library that has a place in it
struct Image {
  uintptr_t place;
  Range whole;
};
#if defined(__linux__)
int find_image(dl_phdr_info* info, size_t, void* found) {
  Image* image = static_cast<Image*>(found);
  Range whole = {UINTPTR_MAX, 0};
  bool is_it = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD) continue;
    const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
    const Range range = {begin, begin + part.p_memsz};
    whole = {std::min(whole.begin, range.begin), std::max(whole.end, range.end)};
    is_it = is_it || range.has(image->place, 1);
  }
  if (is_it) image->whole = whole;
  return is_it ? 1 : 0;
}
#endif
Range image_of([[maybe_unused]] const void* place) {
  Image image = {reinterpret_cast<uintptr_t>(place), {0, 0}};
#if defined(__linux__)
  dl_iterate_phdr(find_image, &image);
#endif
  return image.whole;
}

uint32_t warp_of(uint32_t thread) { return thread / kWarp; }

// Whether what thread `other` did at that time is seen now by the running thread.
bool is_ordered(const Clock::Barriers& last, uint32_t stamp, uint32_t other) {
  const uint32_t self = here.thread;
  if (other == self || stamp < last.block) return true;
  return warp_of(other) == warp_of(self) && stamp < last.warp[warp_of(self)];
}

const char* race(const char* where, bool is_write, size_t offset, uint32_t other, const char* did) {
  snprintf(g.text, sizeof(g.text), "race: %s byte %zu of %s that thread %u %s with no barrier between",
           is_write ? "writes" : "reads", offset, where, other, did);
  return g.text;
}

void note_read(SharedCell& byte) {
  const uint16_t self = static_cast<uint16_t>(here.thread);
  if (byte.read < g_clock.shared.block) {
    byte.readers = kOneReader;
  } else if (byte.reader != self) {
    if (warp_of(byte.reader) != warp_of(self)) {
      byte.readers = kReadersOfBlock;
    } else if (byte.read < g_clock.shared.warp[warp_of(self)]) {
      byte.readers = byte.readers == kReadersOfBlock ? kReadersOfBlock : kOneReader;
    } else if (byte.readers == kOneReader) {
      byte.readers = kReadersOfWarp;
    }
  }
  byte.reader = self;
  byte.read = g_clock.now;
}

bool may_overwrite(const SharedCell& byte) {
  if (byte.read < g_clock.shared.block) return true;
  if (byte.readers == kReadersOfBlock) return false;
  if (byte.readers == kOneReader && byte.reader == here.thread) return true;
  return warp_of(byte.reader) == warp_of(here.thread) && byte.read < g_clock.shared.warp[warp_of(here.thread)];
}

const char* touch(SharedCell& cell, size_t offset, bool is_write) {
  static const char kWhere[] = "shared memory";
  if (cell.write == kRedStamp) {
    return is_write ? "writes outside of its shared array" : "reads outside of its shared array";
  }
  if (!g_sees_all) return nullptr;
  const bool is_written = cell.write >= g_clock.block;
  if (!is_written && !is_write) return "reads shared memory that no thread has written";
  if (is_written && !is_ordered(g_clock.shared, cell.write, cell.writer))
    return race(kWhere, is_write, offset, cell.writer, "wrote");
  if (!is_write) {
    note_read(cell);
    return nullptr;
  }
  if (!may_overwrite(cell)) return race(kWhere, true, offset, cell.reader, "read");
  cell.write = g_clock.now;
  cell.writer = static_cast<uint16_t>(here.thread);
  cell.read = 0;
  return nullptr;
}

void split_word(size_t word) {
  if (g.words[word].is_split) return;
  for (size_t i = 0; i < 4; ++i) g.split[4 * word + i] = g.words[word];
  g.words[word].is_split = 1;
}

// Words are kept whole as long as only whole words are touched.
const char* shared_access(uintptr_t begin, size_t bytes, bool is_write) {
  const size_t first = begin - g.shared.begin;
  const char* text = nullptr;
  for (size_t i = first; i < first + bytes && text == nullptr;) {
    SharedCell& word = g.words[i / 4];
    const bool is_whole = i % 4 == 0 && i + 4 <= first + bytes;
    if (is_whole && !word.is_split) {
      text = touch(word, i, is_write);
      i += 4;
      continue;
    }
    split_word(i / 4);
    const size_t end = std::min(i / 4 * 4 + 4, first + bytes);
    for (size_t j = i; j < end && text == nullptr; ++j) text = touch(g.split[j], j, is_write);
    if (is_whole && is_write) {
      word = g.split[i];
      word.is_split = 0;
    }
    i = end;
  }
  return text;
}

Page* find_page(uintptr_t number, bool make) {
  if (number == g.last_number) return g.last_page;
  const auto found = g.pages.find(number);
  Page* page = found == g.pages.end() ? nullptr : found->second.get();
  if (page == nullptr && make && g.pages.size() < kMaxPages) {
    page = (g.pages[number] = std::make_unique<Page>()).get();
  }
  if (page == nullptr && make) return nullptr;
  g.last_number = number;
  g.last_page = page;
  return page;
}

const char* global_race(uintptr_t begin, size_t bytes, bool is_write) {
  for (uintptr_t at = begin; at < begin + bytes; ++at) {
    const uintptr_t number = at / kPageBytes;
    Page* page = find_page(number, false);
    if (page == nullptr && is_write) {
      g.last_number = 0;
      page = find_page(number, true);
    }
    if (page == nullptr) return nullptr;
    GlobalByte& byte = page->byte[at % kPageBytes];
    if (byte.write >= g_clock.launch) {
      if (byte.write < g_clock.block) {
        return is_write ? "race: writes global memory that another block wrote"
                        : "race: reads global memory that another block wrote";
      }
      if (!is_ordered(g_clock.global, byte.write, byte.writer))
        return race("global memory", is_write, at, byte.writer, "wrote");
    }
    if (is_write) byte = {g_clock.now, static_cast<uint16_t>(here.thread)};
  }
  return nullptr;
}

const char* outside(uintptr_t begin, size_t bytes, bool is_write) {
  if (g.registered.empty() || g.last_registered.has(begin, bytes)) return nullptr;
  const auto after = std::upper_bound(g.registered.begin(), g.registered.end(), begin,
                                      [](uintptr_t a, const Range& b) { return a < b.begin; });
  const char* verb = is_write ? "writes" : "reads";
  if (after != g.registered.begin()) {
    const Range& range = *(after - 1);
    if (range.has(begin, bytes)) {
      g.last_registered = range;
      return nullptr;
    }
    if (begin < range.end + kPageBytes) {
      snprintf(g.text, sizeof(g.text), "%s %zu bytes at byte %zu of an allocation of %zu", verb, bytes,
               static_cast<size_t>(begin - range.begin), static_cast<size_t>(range.end - range.begin));
      return g.text;
    }
  }
  snprintf(g.text, sizeof(g.text), "%s %zu bytes at %#zx, which is in no allocation", verb, bytes,
           static_cast<size_t>(begin));
  return g.text;
}

}  // namespace

void watch_launch(const void* args, size_t args_bytes, uint8_t* shared, size_t shared_bytes) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(args);
  g.args = {from, from + args_bytes};
  const uintptr_t low = reinterpret_cast<uintptr_t>(shared);
  g.shared = {low, low + shared_bytes};
  g.words.resize(shared_bytes / 4 + 1);
  g.split.resize(4 * g.words.size());
  if (g_clock.now > 0x40000000u) {  // far from kRedStamp
    g_clock = Clock();
    std::fill(g.words.begin(), g.words.end(), SharedCell());
    g.pages.clear();
  }
  if (g.pages.size() > kKeptPages) g.pages.clear();
  g.last_number = 0;
  g.last_page = nullptr;
  g_clock.launch = ++g_clock.now;
  if (g.image.end == 0) g.image = image_of(&g_clock);
  const std::lock_guard<std::mutex> lock(g_registry);
  g.registered.clear();
  g.last_registered = {0, 0};
  for (const auto& [begin, bytes] : g_registered) g.registered.push_back({begin, begin + bytes});
}

void watch_block() {
  g_clock.block = ++g_clock.now;
  for (Clock::Barriers* last : {&g_clock.global, &g_clock.shared}) {
    last->block = g_clock.block;
    for (uint32_t& time : last->warp) time = g_clock.block;
  }
}

void watch_red_zone(const uint8_t* p, size_t bytes, bool on) {
  const size_t first = reinterpret_cast<uintptr_t>(p) - g.shared.begin;
  for (size_t i = first; i < first + bytes; ++i) {
    split_word(i / 4);
    g.split[i].write = on ? uint32_t{kRedStamp} : 0;
    if (!on && i % 4 == 3) g.words[i / 4] = SharedCell();
  }
}

const char* watch_access(uintptr_t begin, size_t bytes, bool is_write) {
  if (is_stack(begin)) return nullptr;
  if (g.shared.has(begin, bytes)) return shared_access(begin, bytes, is_write);
  if (!is_write && (g.args.has(begin, bytes) || g.image.has(begin, bytes) || g.tables.has(begin, bytes)))
    return nullptr;
  const char* text = outside(begin, bytes, is_write);
  if (text != nullptr || !g_sees_all) return text;
  return global_race(begin, bytes, is_write);
}

void watch_tables(const void* place) { g.tables = place == nullptr ? Range{0, 0} : image_of(place); }

bool watch_site(const void* p, Site site) {
  g.told = p;
  g.site = site;
  return g_sees_all;
}

void register_memory(const void* begin, size_t bytes) {
  const std::lock_guard<std::mutex> lock(g_registry);
  g_registered[reinterpret_cast<uintptr_t>(begin)] = bytes;
}

void unregister_memory(const void* begin) {
  const std::lock_guard<std::mutex> lock(g_registry);
  g_registered.erase(reinterpret_cast<uintptr_t>(begin));
}

static void watched(const void* p, size_t bytes, bool is_write, const void* code) {
  if (!is_running) return;
  const char* text = watch_access(reinterpret_cast<uintptr_t>(p), bytes, is_write);
  if (text == nullptr) return;
  if (p == g.told) fail(g.site, "%s", text);
  fail_at(code, text);
}

}  // namespace sim
}  // namespace lutkern

// ---- what -fsanitize=thread calls ----

extern "C" {

#define LK_WATCH(name, bytes, is_write) \
  void __tsan_##name(void* p) { lutkern::sim::watched(p, bytes, is_write, __builtin_return_address(0)); }
LK_WATCH(read1, 1, false)
LK_WATCH(read2, 2, false)
LK_WATCH(read4, 4, false)
LK_WATCH(read8, 8, false)
LK_WATCH(read16, 16, false)
LK_WATCH(write1, 1, true)
LK_WATCH(write2, 2, true)
LK_WATCH(write4, 4, true)
LK_WATCH(write8, 8, true)
LK_WATCH(write16, 16, true)
LK_WATCH(unaligned_read2, 2, false)
LK_WATCH(unaligned_read4, 4, false)
LK_WATCH(unaligned_read8, 8, false)
LK_WATCH(unaligned_read16, 16, false)
LK_WATCH(unaligned_write2, 2, true)
LK_WATCH(unaligned_write4, 4, true)
LK_WATCH(unaligned_write8, 8, true)
LK_WATCH(unaligned_write16, 16, true)
#undef LK_WATCH

void __tsan_read_range(void* p, size_t bytes) { lutkern::sim::watched(p, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { lutkern::sim::watched(p, bytes, true, __builtin_return_address(0)); }
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  lutkern::sim::watched(from, bytes, false, __builtin_return_address(0));
  lutkern::sim::watched(to, bytes, true, __builtin_return_address(0));
  return memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  lutkern::sim::watched(to, bytes, true, __builtin_return_address(0));
  return memset(to, value, bytes);
}
void __tsan_init() { lutkern::sim::g_sees_all = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

}  // extern "C"
