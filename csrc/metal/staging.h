// Buffers for the arrays of the CPU while an operation works with them: the processor writes and reads them in place, so that
// a copy is a memcpy. They are kept for the next operation.
#pragma once
#include <mutex>

#include "objc.h"

namespace lutkern {
namespace metal {

class Staging {
 public:
  void open(Id device) { device_ = device; }

 private:
  friend class StagingRoom;
  enum : int { kKept = 4 };
  enum : size_t { kUnit = size_t{1} << 16, kLargestKept = size_t{1} << 26 };
  struct Room {
    Id buffer;
    uint8_t* contents;
    size_t bytes;
  };

  bool take(size_t bytes, Room* out);
  void give_back(const Room& room);

  std::mutex lock_;
  Id device_ = nullptr;
  Room kept_[kKept] = {};
  int n_kept_ = 0;
};

// Room for one operation: all its parts at once, each aligned for any load.
class StagingRoom {
 public:
  explicit StagingRoom(Staging& staging) : staging_(staging) {}
  ~StagingRoom() {
    if (room_.buffer) staging_.give_back(room_);
  }
  StagingRoom(const StagingRoom&) = delete;
  StagingRoom& operator=(const StagingRoom&) = delete;

  // The place of a part, before allocate()
  size_t add(size_t bytes) {
    const size_t at = bytes_;
    bytes_ += (bytes + 255) / 256 * 256;
    return at;
  }
  bool allocate() { return bytes_ == 0 || staging_.take(bytes_, &room_); }
  Id buffer() const { return room_.buffer; }
  uint8_t* part(size_t at) const { return room_.contents + at; }

 private:
  Staging& staging_;
  size_t bytes_ = 0;
  Staging::Room room_{};
};

}  // namespace metal
}  // namespace lutkern
