// Memory that lives as long as one operation: every array aligned to a cache line, all given back together.
//
// Each thread that calls operations keeps the memory of its last one, up to kKeptBytes, so that a decode step allocates
// nothing. What is larger, or taken by an operation inside an operation, comes from the system and goes back to it.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace lutkern {

class Scratch {
 public:
  enum : size_t { kKeptBytes = size_t{64} << 20 };

  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // n elements, or null; once one is null, ok() is false.
  template <typename T>
  T* take(int64_t n) {
    return static_cast<T*>(bytes(static_cast<size_t>(n) * sizeof(T)));
  }

  bool ok() const { return ok_; }

 private:
  struct Header {
    Header* previous;
  };
  void* bytes(size_t n);

  bool owner_;         // of the memory that the thread keeps
  size_t used_ = 0;    // of it
  size_t wanted_ = 0;  // what would have had to be kept for this operation
  Header* last_ = nullptr;
  bool ok_ = true;
};

}  // namespace lutkern
