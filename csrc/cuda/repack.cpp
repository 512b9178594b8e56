// Weights to a device, from a device, and from one layout to the other there. The device does the repacking; from and
// to the CPU a weight goes in chunks of blocks, so that nothing of it is held twice.
#include "operations.h"

namespace lutkern {
namespace cuda {

namespace {

enum : int64_t { kChunkBytes = Staging::kBytes };

Address address_of(const uint8_t* p) { return static_cast<Address>(reinterpret_cast<uintptr_t>(p)); }

int64_t bytes_of(const Weight& w) { return w.experts * w.expert_bytes; }

HostRows host_bytes(const uint8_t* data, int64_t n) {
  return HostRows{const_cast<uint8_t*>(data), 1, static_cast<size_t>(n), static_cast<size_t>(n)};
}

// Whole experts, or a part of one: rows first .. first + rows - 1, first a multiple of kTileRows
struct Chunk {
  int64_t expert;
  int64_t experts;
  int64_t first;
  int64_t rows;

  int64_t bytes(const Weight& blocks) const { return experts * rows * blocks.row_bytes; }
  const uint8_t* of(const Weight& w) const {
    return w.row(expert, w.layout == Layout::tiles ? first / kTileRows : first);
  }
};

// Chunks of about kChunkBytes of blocks: at least 32 rows, so that a chunk may be larger.
template <class Work>
bool for_chunks(const Weight& blocks, Work work) {
  int64_t experts = kChunkBytes / blocks.expert_bytes;
  if (experts < 1) experts = 1;
  int64_t rows = blocks.rows;
  if (blocks.expert_bytes > kChunkBytes) {
    rows = kChunkBytes / blocks.row_bytes / kTileRows * kTileRows;
    if (rows < kTileRows) rows = kTileRows;
  }
  for (int64_t e = 0; e < blocks.experts; e += experts) {
    const int64_t n = blocks.experts - e < experts ? blocks.experts - e : experts;
    for (int64_t first = 0; first < blocks.rows; first += rows) {
      if (!work(Chunk{e, n, first, blocks.rows - first < rows ? blocks.rows - first : rows})) return false;
    }
  }
  return true;
}

bool run_repack(Device& device, const Weight& shape, bool to_tiles, const Chunk& chunk, const uint8_t* from,
                uint8_t* to, Stream stream) {
  const RepackArgs args{from,
                        to,
                        static_cast<int32_t>(chunk.experts),
                        static_cast<int32_t>(chunk.rows),
                        static_cast<int32_t>(shape.stored_cols / shape.info().block_size),
                        0};
  return device.launch(repack_kernel(shape.format, to_tiles), &args, stream);
}

// Room on the device for the blocks of the largest chunk
class Room {
 public:
  Room(Device& device, Stream stream) : device_(device), stream_(stream) {}
  ~Room() {
    if (memory_) device_.release(memory_, stream_);
  }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  bool allocate(const Weight& blocks) {
    int64_t largest = 0;
    for_chunks(blocks, [&](const Chunk& chunk) {
      if (chunk.bytes(blocks) > largest) largest = chunk.bytes(blocks);
      return true;
    });
    return device_.allocate(static_cast<size_t>(largest), stream_, &memory_);
  }
  uint8_t* data() const { return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(memory_)); }

 private:
  Device& device_;
  Stream stream_;
  Address memory_ = 0;
};

bool upload(Device& device, const Weight& blocks, const Weight& to, Stream stream) {
  if (!check_not_captured(device, stream)) return false;
  Transfer transfer(device, stream);
  if (to.layout == Layout::blocks) {
    return transfer.to_device(address_of(to.data), host_bytes(blocks.data, bytes_of(blocks))) && transfer.finish();
  }
  Room room(device, stream);
  if (!room.allocate(blocks)) return false;
  const bool done = for_chunks(blocks, [&](const Chunk& chunk) {
    return transfer.to_device(address_of(room.data()), host_bytes(chunk.of(blocks), chunk.bytes(blocks))) &&
           run_repack(device, blocks, true, chunk, room.data(), const_cast<uint8_t*>(chunk.of(to)), stream);
  });
  return done && transfer.finish();
}

bool download(Device& device, const Weight& from, const Weight& blocks, Stream stream) {
  if (!check_not_captured(device, stream)) return false;
  Transfer transfer(device, stream);
  if (from.layout == Layout::blocks) {
    return transfer.to_host(host_bytes(blocks.data, bytes_of(blocks)), address_of(from.data));
  }
  Room room(device, stream);
  if (!room.allocate(blocks)) return false;
  return for_chunks(blocks, [&](const Chunk& chunk) {
    return run_repack(device, blocks, false, chunk, chunk.of(from), room.data(), stream) &&
           transfer.to_host(host_bytes(chunk.of(blocks), chunk.bytes(blocks)), address_of(room.data()));
  });
}

}  // namespace

bool repack(Device& device, const Weight& from, const Weight& to, Stream stream) {
  if (from.device == 0) return upload(device, from, to, stream);
  if (to.device == 0) return download(device, from, to, stream);
  if (from.layout == to.layout) {
    const Result copied = device.driver().cuMemcpyDtoDAsync_v2(address_of(to.data), address_of(from.data),
                                                               static_cast<size_t>(bytes_of(from)), stream);
    return check(copied, "cuMemcpyDtoDAsync_v2");
  }
  const Chunk all{0, from.experts, 0, from.rows};
  return run_repack(device, from, to.layout == Layout::tiles, all, from.data, const_cast<uint8_t*>(to.data), stream);
}

}  // namespace cuda
}  // namespace lutkern
