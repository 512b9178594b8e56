// Between the memory of the CPU and a device, through two pinned buffers that are kept: the driver copies from and to
// them beside other work, at the full rate of the bus.
#pragma once
#include <mutex>

#include "driver.h"

namespace lutkern {
namespace cuda {

class Device;

// Rows of bytes in the memory of the CPU, stride bytes apart
struct HostRows {
  void* data;
  int64_t rows;
  size_t row_bytes;
  size_t stride;

  size_t bytes() const { return static_cast<size_t>(rows) * row_bytes; }
};

class Staging {
 public:
  enum : size_t { kBytes = size_t{8} << 20 };  // of a buffer

 private:
  friend class Transfer;
  std::mutex lock_;
  uint8_t* buffer_[2] = {};
  Event done_[2] = {};  // after the last copy from or to the buffer
};

// The copies of one operation on one stream. When it ends, all of them are done.
class Transfer {
 public:
  Transfer(Device& device, Stream stream);
  ~Transfer();
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  // Queues a copy to the device, rows side by side there; the rows have been read on return.
  bool to_device(Address to, const HostRows& from);
  // Copies from the device, where the rows are side by side; done on return, and with it all work on the stream.
  bool to_host(const HostRows& to, Address from);
  // All work on the stream is done.
  bool finish();

 private:
  bool prepare();
  bool to_host_in_parts(const HostRows& to, Address from);

  Device& device_;
  Stream stream_;
  std::unique_lock<std::mutex> held_;
  bool prepared_ = false;
  bool pending_ = false;
  int turn_ = 0;     // the buffer in use
  size_t used_ = 0;  // of it
};

}  // namespace cuda
}  // namespace lutkern
