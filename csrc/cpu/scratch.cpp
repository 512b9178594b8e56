#include "scratch.h"

#include <stdlib.h>

namespace lutkern {
namespace {

constexpr size_t kLine = 64;

struct Kept {
  uint8_t* memory = nullptr;
  size_t size = 0;
  bool taken = false;
  ~Kept() { free(memory); }
};

thread_local Kept g_kept;

size_t whole_lines(size_t n) { return (n + kLine - 1) / kLine * kLine; }

}  // namespace

// AddressSanitizer sees the ends of arrays that are allocated one by one, not of parts of one allocation.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeeps = false;
#else
constexpr bool kKeeps = true;
#endif

Scratch::Scratch() : owner_(kKeeps && !g_kept.taken) {
  if (owner_) g_kept.taken = true;
}

Scratch::~Scratch() {
  while (last_) {
    Header* previous = last_->previous;
    free(last_);
    last_ = previous;
  }
  if (!owner_) return;
  if (wanted_ > g_kept.size && wanted_ <= kKeptBytes) {
    free(g_kept.memory);
    void* memory = nullptr;
    g_kept.size = posix_memalign(&memory, kLine, wanted_) == 0 ? wanted_ : 0;
    g_kept.memory = g_kept.size > 0 ? static_cast<uint8_t*>(memory) : nullptr;
  }
  g_kept.taken = false;
}

void* Scratch::bytes(size_t n) {
  n = whole_lines(n);
  wanted_ += n;
  if (owner_ && n <= g_kept.size - used_) {
    void* out = g_kept.memory + used_;
    used_ += n;
    return out;
  }
  void* memory = nullptr;
  if (posix_memalign(&memory, kLine, kLine + n) != 0) {
    ok_ = false;
    return nullptr;
  }
  Header* header = static_cast<Header*>(memory);
  header->previous = last_;
  last_ = header;
  return static_cast<uint8_t*>(memory) + kLine;
}

}  // namespace lutkern
