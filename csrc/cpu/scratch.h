// Memory that lives as long as one operation: every array aligned to a cache line, all given back together.
#pragma once
#include <stdint.h>
#include <stdlib.h>

namespace lutkern {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  ~Scratch() {
    while (last_) {
      Header* previous = last_->previous;
      free(last_);
      last_ = previous;
    }
  }

  // n elements, or null; once one is null, ok() is false.
  template <typename T>
  T* take(int64_t n) {
    const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + kLine - 1) / kLine * kLine;
    void* memory = nullptr;
    if (posix_memalign(&memory, kLine, kLine + bytes) != 0) {
      ok_ = false;
      return nullptr;
    }
    Header* header = static_cast<Header*>(memory);
    header->previous = last_;
    last_ = header;
    return reinterpret_cast<T*>(static_cast<uint8_t*>(memory) + kLine);
  }

  bool ok() const { return ok_; }

 private:
  static constexpr size_t kLine = 64;
  struct Header {
    Header* previous;
  };
  Header* last_ = nullptr;
  bool ok_ = true;
};

}  // namespace lutkern
