// Weights as float, to the bit what the formats define: one product, one sum, no fusing. Included by avx2.cpp after
// avx2_rows.inl.h and avx2_stores.inl.h.

constexpr int kChunk = 256;

static inline int chunk_columns(int64_t cols, int64_t chunk) {
  const int64_t left = cols - chunk * kChunk;
  return static_cast<int>(left < kChunk ? left : kChunk);
}

// 256 weights are scale * q + offset, one scale and one offset for 16.
struct Unpacked {
  alignas(32) int8_t q[256];
  alignas(32) float scale[16];
  alignas(32) float offset[16];  // read only if the format has one
};

static inline void store_twice(float* p, __m256 v) {
  const __m256 low = _mm256_unpacklo_ps(v, v);
  const __m256 high = _mm256_unpackhi_ps(v, v);
  _mm256_store_ps(p, _mm256_permute2f128_ps(low, high, 0x20));
  _mm256_store_ps(p + 8, _mm256_permute2f128_ps(low, high, 0x31));
}

static inline void store_scaled(float* p, __m256i number_i16x16, float factor) {
  _mm256_store_ps(p, times(factor, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(low_lane(number_i16x16)))));
  _mm256_store_ps(p + 8, times(factor, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(high_lane(number_i16x16)))));
}

template <class Block>
static inline void unpack(const Block* block, Unpacked& u) {
  if constexpr (IsCodebook<Block>::kExists) {
    Fields f;
    fields_of(*block, f);
    for (int g = 0; g < 8; ++g) _mm256_store_si256(reinterpret_cast<__m256i*>(u.q + 32 * g), codes32(*block, f, g));
    const __m128i even = low_lane(f.scale_i16x16);
    const __m128i odd = high_lane(f.scale_i16x16);
    store_scaled(u.scale, _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd)),
                 code_factor(*block));
  } else {
    using P = Plain<Block>;
    P unit(block);
    if constexpr (P::kScales == 1) {
      for (int g = 0; g < 16; g += 8) _mm256_store_ps(u.scale + g, _mm256_set1_ps(unit.factor()));
    } else if constexpr (P::kScales == 8) {
      store_twice(u.scale, unit.scales());
    } else {
      store_scaled(u.scale, _mm256_cvtepi8_epi16(unit.scales()), unit.factor());
    }
    if constexpr (P::kMinimum && Block::kBlockSize == 256) {
      store_scaled(u.offset, unit.minima(), unit.minimum_factor());
    } else if constexpr (P::kMinimum) {
      store_twice(u.offset, unit.offsets());
    }
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      __m256i code = _mm256_srli_epi16(unit.code(g), P::shift(g));
      if (P::kLift) code = _mm256_sub_epi8(code, _mm256_set1_epi8(P::kLift));
      _mm256_store_si256(reinterpret_cast<__m256i*>(u.q + 32 * g), code);
    }
  }
}

template <class Block, Stores kStores>
static inline void unit_to_float(const Block* block, float* w) {
  Unpacked u;
  unpack(block, u);
  for (int g = 0; g < 16; ++g) {
    const __m256 scale = _mm256_broadcast_ss(u.scale + g);
    const __m256 offset = Block::kHasOffset ? _mm256_broadcast_ss(u.offset + g) : _mm256_setzero_ps();
    for (int c = 16 * g; c < 16 * g + 16; c += 8) {
      const __m256 product = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_u8x8(u.q + c))));
      store_f32x8<kStores>(w + c, Block::kHasOffset ? _mm256_add_ps(product, offset) : product);
    }
  }
}

// Chunk number chunk of a row; returns its columns. w has room for 256.
template <class Block, Stores kStores = Stores::cached, bool kFloat = Block::kIsFloat != 0>
struct ChunkToFloat {
  static inline int run(const uint8_t* row, int64_t chunk, int64_t cols, float* w) {
    const int n = chunk_columns(cols, chunk);
    const Block* block = reinterpret_cast<const Block*>(row) + chunk * (kChunk / Block::kBlockSize);
    if (n == kChunk) {
      unit_to_float<Block, kStores>(block, w);
    } else {
      const Rest<Block> rest(block, n / Block::kBlockSize);
      unit_to_float<Block, kStores>(rest.block, w);
    }
    return n;
  }
};

template <class Block, Stores kStores>
struct ChunkToFloat<Block, kStores, true> {
  static inline int run(const uint8_t* row, int64_t chunk, int64_t cols, float* w) {
    const int n = chunk_columns(cols, chunk);
    const Block* block = reinterpret_cast<const Block*>(row) + chunk * kChunk;
    int c = 0;
    for (; c + 8 <= n; c += 8) store_f32x8<kStores>(w + c, weights8(block + c));
    for (; c < n; ++c) w[c] = weight(block[c]);
    return n;
  }
};

template <class Block, Stores kStores>
static inline void row_to_float(const uint8_t* row, int64_t cols, float* out) {
  const int64_t stored = (cols + Block::kBlockSize - 1) / Block::kBlockSize * Block::kBlockSize;
  const int64_t whole = cols / kChunk;
  for (int64_t chunk = 0; chunk < whole; ++chunk) {
    ChunkToFloat<Block, kStores>::run(row, chunk, stored, out + chunk * kChunk);
  }
  if (whole * kChunk < cols) {
    alignas(32) float w[kChunk];
    ChunkToFloat<Block>::run(row, whole, stored, w);
    __builtin_memcpy(out + whole * kChunk, w, static_cast<size_t>(cols - whole * kChunk) * sizeof(float));
  }
}

template <class Block>
static void dequantize(const uint8_t* row, int64_t cols, float* out, Stores stores) {
  if (stores == Stores::cached) return row_to_float<Block, Stores::cached>(row, cols, out);
  row_to_float<Block, Stores::streamed>(row, cols, out);
  stores_done();
}

static inline float dot_float(const float* w, const float* x, int n) {
  __m256 even = _mm256_setzero_ps();
  __m256 odd = _mm256_setzero_ps();
  int c = 0;
  for (; c + 16 <= n; c += 16) {
    even = _mm256_fmadd_ps(_mm256_loadu_ps(w + c), _mm256_loadu_ps(x + c), even);
    odd = _mm256_fmadd_ps(_mm256_loadu_ps(w + c + 8), _mm256_loadu_ps(x + c + 8), odd);
  }
  float tail = 0.0f;
  for (; c < n; ++c) tail += w[c] * x[c];
  return sum_of_lanes(_mm256_add_ps(even, odd)) + tail;
}
