// Blocks to plain integers, written once. Included by each ISA file inside its anonymous namespace, after
//
//   template <class Block> OwnUnpack      kExists: the ISA has its own run(block, q, scale, offset) for that format
//
// Every integer format is, for 16 columns at a time, weight = scale * q + offset with an int8 q; a chunk is 256 columns
// of that, or fewer at the end of a row whose format has blocks of 32.

constexpr int kChunk = 256;
constexpr int kPanel = 4;  // rows that a batch kernel unpacks together

struct Unpacked {
  alignas(64) int8_t q[kChunk];
  alignas(64) float scale[kChunk / 16];
  alignas(64) float offset[kChunk / 16];  // read only if the format has one
};

static inline int chunk_columns(int64_t cols, int64_t chunk) {
  const int64_t left = cols - chunk * kChunk;
  return static_cast<int>(left < kChunk ? left : kChunk);
}

template <class Block>
static inline void unpack_block(const Block& block, int8_t* q, float* scale, float* offset) {
  if constexpr (OwnUnpack<Block>::kExists) {
    OwnUnpack<Block>::run(block, q, scale, offset);
  } else {
    for (int i = 0; i < Block::kBlockSize / 8; ++i) {
      const Codes8 codes = codes8(block, i);
      for (int j = 0; j < 8; ++j) q[8 * i + j] = codes.v[j];
    }
    for (int g = 0; g < Block::kBlockSize / 16; ++g) {
      scale[g] = scale16(block, g);
      if (Block::kHasOffset) offset[g] = offset16(block, g);
    }
  }
}

// Chunk number chunk of a row; returns its columns.
template <class Block>
static inline int unpack_chunk(const uint8_t* row, int64_t chunk, int64_t cols, Unpacked& u) {
  const int n = chunk_columns(cols, chunk);
  const Block* block = reinterpret_cast<const Block*>(row) + chunk * (kChunk / Block::kBlockSize);
  for (int b = 0; b < n / Block::kBlockSize; ++b) {
    unpack_block(block[b], u.q + b * Block::kBlockSize, u.scale + b * Block::kBlockSize / 16,
                 u.offset + b * Block::kBlockSize / 16);
  }
  return n;
}

// The weights of a chunk as float, to the bit what the format defines: one product, one sum, no fusing.
template <class Block, bool kFloat = Block::kIsFloat != 0>
struct ChunkToFloat {
  static inline int run(const uint8_t* row, int64_t chunk, int64_t cols, float* w) {
    Unpacked u;
    const int n = unpack_chunk<Block>(row, chunk, cols, u);
    for (int c = 0; c < n; ++c) {
      const float product = u.scale[c / 16] * static_cast<float>(u.q[c]);
      w[c] = Block::kHasOffset ? product + u.offset[c / 16] : product;
    }
    return n;
  }
};

template <class Block>
struct ChunkToFloat<Block, true> {
  static inline int run(const uint8_t* row, int64_t chunk, int64_t cols, float* w) {
    const int n = chunk_columns(cols, chunk);
    const Block* block = reinterpret_cast<const Block*>(row) + chunk * kChunk;
    for (int c = 0; c < n; ++c) w[c] = weight(block[c]);
    return n;
  }
};

template <class Block>
static void dequantize(const uint8_t* row, int64_t cols, float* out, Stores) {
  const int64_t stored = (cols + Block::kBlockSize - 1) / Block::kBlockSize * Block::kBlockSize;
  alignas(64) float w[kChunk];
  for (int64_t chunk = 0; chunk * kChunk < cols; ++chunk) {
    ChunkToFloat<Block>::run(row, chunk, stored, w);
    const int n = chunk_columns(cols, chunk);
    for (int c = 0; c < n; ++c) out[chunk * kChunk + c] = w[c];
  }
}
