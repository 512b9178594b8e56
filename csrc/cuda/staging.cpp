#include "staging.h"

#include <string.h>

#include "device.h"

namespace lutkern {
namespace cuda {

namespace {

// Bytes first .. first + n - 1 of all rows, one row after another
template <class Copy>
void for_pieces(const HostRows& rows, size_t first, size_t n, Copy copy) {
  uint8_t* data = static_cast<uint8_t*>(rows.data);
  if (rows.stride == rows.row_bytes) {
    copy(data + first, size_t{0}, n);
    return;
  }
  for (size_t done = 0; done < n;) {
    const size_t row = (first + done) / rows.row_bytes;
    const size_t at = (first + done) % rows.row_bytes;
    const size_t left = rows.row_bytes - at;
    const size_t count = left < n - done ? left : n - done;
    copy(data + row * rows.stride + at, done, count);
    done += count;
  }
}

void gather(const HostRows& rows, size_t first, size_t n, uint8_t* out) {
  for_pieces(rows, first, n, [out](const uint8_t* piece, size_t at, size_t count) { memcpy(out + at, piece, count); });
}

void scatter(const HostRows& rows, size_t first, size_t n, const uint8_t* from) {
  for_pieces(rows, first, n, [from](uint8_t* piece, size_t at, size_t count) { memcpy(piece, from + at, count); });
}

size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

}  // namespace

Transfer::Transfer(Device& device, Stream stream) : device_(device), stream_(stream), held_(device.staging().lock_) {}

// Also after an error: the buffers must not be in use when the next operation takes them.
Transfer::~Transfer() {
  if (pending_) device_.driver().cuStreamSynchronize(stream_);
}

bool Transfer::prepare() {
  if (prepared_) return true;
  const Driver& d = device_.driver();
  Staging& staging = device_.staging();
  for (int i = 0; i < 2; ++i) {
    if (!staging.done_[i] && !check(d.cuEventCreate(&staging.done_[i], 0), "cuEventCreate")) return false;
    if (staging.buffer_[i]) continue;
    void* memory = nullptr;
    if (!check(d.cuMemHostAlloc(&memory, Staging::kBytes, 0), "cuMemHostAlloc")) return false;
    staging.buffer_[i] = static_cast<uint8_t*>(memory);
  }
  prepared_ = true;
  return true;
}

bool Transfer::to_device(Address to, const HostRows& from) {
  if (!prepare()) return false;
  const Driver& d = device_.driver();
  Staging& staging = device_.staging();
  for (size_t done = 0; done < from.bytes();) {
    if (used_ == Staging::kBytes) {
      if (!check(d.cuEventRecord(staging.done_[turn_], stream_), "cuEventRecord")) return false;
      turn_ ^= 1;
      used_ = 0;
      if (!check(d.cuEventSynchronize(staging.done_[turn_]), "cuEventSynchronize")) return false;
    }
    const size_t n = smaller(from.bytes() - done, Staging::kBytes - used_);
    uint8_t* part = staging.buffer_[turn_] + used_;
    gather(from, done, n, part);
    pending_ = true;
    if (!check(d.cuMemcpyHtoDAsync_v2(to + done, part, n, stream_), "cuMemcpyHtoDAsync_v2")) return false;
    done += n;
    used_ += n;
  }
  return true;
}

bool Transfer::to_host(const HostRows& to, Address from) {
  if (!prepare()) return false;
  if (to.bytes() > Staging::kBytes - used_) return finish() && to_host_in_parts(to, from);
  uint8_t* part = device_.staging().buffer_[turn_] + used_;
  pending_ = true;
  if (!check(device_.driver().cuMemcpyDtoHAsync_v2(part, from, to.bytes(), stream_), "cuMemcpyDtoHAsync_v2")) {
    return false;
  }
  used_ += to.bytes();
  if (!finish()) return false;
  scatter(to, 0, to.bytes(), part);
  return true;
}

// While one part is copied by the driver, the one before it is scattered.
bool Transfer::to_host_in_parts(const HostRows& to, Address from) {
  const Driver& d = device_.driver();
  Staging& staging = device_.staging();
  const size_t bytes = to.bytes();
  const auto take = [&](size_t first, int turn) {
    if (!check(d.cuEventSynchronize(staging.done_[turn]), "cuEventSynchronize")) return false;
    scatter(to, first, smaller(bytes - first, Staging::kBytes), staging.buffer_[turn]);
    return true;
  };
  int turn = 0;
  for (size_t first = 0; first < bytes; first += Staging::kBytes, turn ^= 1) {
    const size_t n = smaller(bytes - first, Staging::kBytes);
    pending_ = true;
    const Result copied = d.cuMemcpyDtoHAsync_v2(staging.buffer_[turn], from + first, n, stream_);
    if (!check(copied, "cuMemcpyDtoHAsync_v2")) return false;
    if (!check(d.cuEventRecord(staging.done_[turn], stream_), "cuEventRecord")) return false;
    if (first > 0 && !take(first - Staging::kBytes, turn ^ 1)) return false;
  }
  const size_t last = (bytes - 1) / Staging::kBytes * Staging::kBytes;
  return take(last, turn ^ 1) && finish();
}

bool Transfer::finish() {
  pending_ = false;
  used_ = 0;
  return check(device_.driver().cuStreamSynchronize(stream_), "cuStreamSynchronize");
}

}  // namespace cuda
}  // namespace lutkern
