// Tiles as floats, written once. Included after tile_codes.inl.h and tile_grids.inl.h.
//
//   for each 256 columns, for each part (one row a lane):
//     for each group of 32 columns:
//       number = code - offset of the codes                 int8, 4 columns of a row in a lane
//       turned = 8 columns of a row side by side             in the first-level cache
//     for each row: out = scale * float(turned)  [+ offset]   to the bit what the formats define: no fusing
//
// Bytes are turned, not floats: a fourth of the data. What the ISA gives, see avx2_tiles.cpp:
//
//   kPartRows                     rows of a part
//   TurnedRows                    put(number) keeps 8 vectors, 32 columns of the rows of a part;
//                                 weights<kTwo, kAdd, kStores>(r, scale, offset, out) writes those of row r. If kTwo, the
//                                 second 16 columns have scale[kPartRows] and offset[kPartRows].
//   turn_words                    8 words of the rows of a part
//   store_weights8<kStores>       8 columns of a float format
//   stores_done()                 after the last streamed store

// Of 16 columns, all rows of a part
struct GroupScales {
  alignas(kVectorBytes) float scale[2][kPartRows];
  alignas(kVectorBytes) float offset[2][kPartRows];
};

static inline Vi32 first_of(Vi16 pairs) { return reinterpret_cast<Vi32>(reinterpret_cast<Vu32>(pairs) << 16) >> 16; }
static inline Vi32 second_of(Vi16 pairs) { return reinterpret_cast<Vi32>(pairs) >> 16; }

template <class Codes>
static inline void put_scales(const Codes& codes, int g, GroupScales& s) {
  const Vf32 factor = codes.factor();
  if constexpr (Codes::kScales == 0) {
    store(s.scale[0], factor);
  } else {
    const Vi16 scales = codes.scales(g);
    store(s.scale[0], factor * float_of(first_of(scales)));
    if constexpr (Codes::kScales == 2) store(s.scale[1], factor * float_of(second_of(scales)));
  }
  if constexpr (Codes::kMinimum) {
    const Vi16 minima = codes.minima(g);
    const Vf32 minus = -codes.minimum_factor();
    store(s.offset[0], minus * float_of(first_of(minima)));
    if constexpr (Codes::kScales == 2) store(s.offset[1], minus * float_of(second_of(minima)));
  }
  if constexpr (Codes::kFloatOffset) store(s.offset[0], codes.float_offset());
}

// 256 columns of a part
struct TurnedPart {
  TurnedRows group[8];
  GroupScales scales[8];

  // Group g of row r
  template <bool kTwo, bool kAdd, Stores kStores>
  inline void store(int g, int r, float* out) const {
    group[g].weights<kTwo, kAdd, kStores>(r, scales[g].scale[0] + r, scales[g].offset[0] + r, out);
  }
};

// n columns of n_rows rows. In a cache lines of many rows can be on their way at once; past it a row is written through.
template <bool kTwo, bool kAdd>
[[gnu::noinline]] static void store_part(const TurnedPart& part, int n_rows, int64_t n, float* out, int64_t out_stride,
                                         Stores stores) {
  const int rows = n_rows < kPartRows ? n_rows : int{kPartRows};
  const int groups = static_cast<int>(n / 32);
  // Unrolled, the place of a row is known.
  if (stores == Stores::streamed) {
#pragma GCC unroll 16
    for (int r = 0; r < kPartRows && r < rows; ++r) {
      for (int g = 0; g < groups; ++g) part.store<kTwo, kAdd, Stores::streamed>(g, r, out + r * out_stride + 32 * g);
    }
  } else {
    for (int g = 0; g < groups; ++g) {
#pragma GCC unroll 16
      for (int r = 0; r < kPartRows && r < rows; ++r)
        part.store<kTwo, kAdd, Stores::cached>(g, r, out + r * out_stride + 32 * g);
    }
  }
  for (int r = 0; r < rows && n % 32 > 0; ++r) {
    float w[32];
    part.store<kTwo, kAdd, Stores::cached>(groups, r, w);
    __builtin_memcpy(out + r * out_stride + 32 * groups, w, static_cast<size_t>(n % 32) * sizeof(float));
  }
}

// The first groups of a tile, which hold n columns
template <class Block>
static inline void turn_tile(const uint8_t* body, const uint8_t* tail, int64_t n, TurnedRows* turned,
                             GroupScales* scales) {
  using Codes = TileCodes<Block>;
  Codes codes(body, tail);
#pragma GCC unroll 8
  for (int g = 0; g < Codes::kGroups; ++g) {
    if (32 * g >= n) break;
    Vu8 number[8];
    codes.codes(g, number);
    for (int v = 0; v < 8; ++v) number[v] -= uint8_t{Codes::kOffset};
    turned[g].put(number);
    put_scales(codes, g, scales[g]);
  }
}

template <class Block>
static void dequantize_tiles(const TileRows& rows, int64_t first, int64_t n, int n_rows, float* out, int64_t out_stride,
                             Stores stores) {
  using T = Tile<Block>;
  using Codes = TileCodes<Block>;
  constexpr int64_t kBody = T::kWords * 4 * kTileRows;
  constexpr int64_t kTail = T::kTailBytes * kTileRows;
  const uint8_t* tails = rows.data + rows.cols / T::kColumns * kBody;
  TurnedPart part;
  for (int64_t c = 0; c < n; c += 256) {
    const int64_t left = n - c < 256 ? n - c : 256;
    for (int p = 0; p < kParts && p * kPartRows < n_rows; ++p) {
      // A share of what comes later with each part: while rows are written, nothing else is read.
      constexpr int64_t kShare = 256 / T::kColumns * kBody / kParts;
      const uint8_t* ahead = rows.data + (first + c) / T::kColumns * kBody + 4096 + p * kShare;
      for (int64_t at = 0; at < kShare; at += 64) prefetch(ahead + at, tails);
      for (int64_t at = 0; at < left; at += T::kColumns) {
        const int64_t t = (first + c + at) / T::kColumns;
        turn_tile<Block>(rows.data + t * kBody + p * kVectorBytes,
                         tails + t * kTail + p * kVectorBytes / 4 * T::kTailItem, left - at, part.group + at / 32,
                         part.scales + at / 32);
      }
      store_part<Codes::kScales == 2, Codes::kMinimum || Codes::kFloatOffset>(
          part, n_rows - p * kPartRows, left, out + p * kPartRows * out_stride + c, out_stride, stores);
    }
  }
  if (stores == Stores::streamed) stores_done();
}

// ---- tiles of float formats: words of 32 bits, one or two columns each, are turned ----

template <class Block, Stores kStores>
static inline void store_row(const Block* row, int64_t n, float* out) {
  int64_t c = 0;
  for (; c + 8 <= n; c += 8) store_weights8<kStores>(row + c, out + c);
  if (c < n) {
    float w[8];
    store_weights8<Stores::cached>(row + c, w);
    __builtin_memcpy(out + c, w, static_cast<size_t>(n - c) * sizeof(float));
  }
}

template <class Block>
static void dequantize_float_tiles(const TileRows& rows, int64_t first, int64_t n, int n_rows, float* out,
                                   int64_t out_stride, Stores stores) {
  using T = Tile<Block>;
  constexpr int64_t kBody = T::kWords * 4 * kTileRows;
  constexpr int64_t kStride = 8 * T::kWords;  // words of 256 columns
  alignas(64) uint32_t turned[kPartRows * kStride];
  for (int64_t c = 0; c < n; c += 256) {
    const int64_t left = n - c < 256 ? n - c : 256;
    for (int p = 0; p < kParts && p * kPartRows < n_rows; ++p) {
      for (int64_t at = 0; at < left; at += T::kColumns) {
        const uint8_t* body = rows.data + (first + c + at) / T::kColumns * kBody + p * kVectorBytes;
        uint32_t* words = turned + at / T::kColumns * T::kWords;
        for (int u = 0; u < T::kWords; u += 8) turn_words(body + 64 * u, words + u, kStride);
      }
      for (int r = 0; r < kPartRows && p * kPartRows + r < n_rows; ++r) {
        const Block* row = reinterpret_cast<const Block*>(turned + r * kStride);
        float* at = out + (p * kPartRows + r) * out_stride + c;
        if (stores == Stores::streamed) {
          store_row<Block, Stores::streamed>(row, left, at);
        } else {
          store_row<Block, Stores::cached>(row, left, at);
        }
      }
    }
  }
  if (stores == Stores::streamed) stores_done();
}

// The table entry of a format
template <class Block, bool kFloat = Block::kIsFloat != 0>
struct TileFloatsOf {
  static constexpr DequantizeTilesFn kDequantize = dequantize_tiles<Block>;
};

template <class Block>
struct TileFloatsOf<Block, true> {
  static constexpr DequantizeTilesFn kDequantize = dequantize_float_tiles<Block>;
};
