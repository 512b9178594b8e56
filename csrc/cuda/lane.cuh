// The seven codebook formats in registers: a lane loads its row of a tile (tile.h), codebook entries come from a table in
// shared memory.
//
//   entry   4 bytes, kCopies of it side by side; lane l reads copy l % kCopies, so that lanes meet in fewer banks:
//           a warp's load takes about 3.5 cycles with 1 copy, 3 with 8, 2 with 16, 1 with 32. A table has 32 KB (iq1: 16),
//           three of them fit an SM of 228 KB, and filling one (from the L2 cache, once for a block) takes as long as the
//           products of about 2000 columns.
//   iq1     nibble n of {0, 1, 4, 5, 8, 9}: 8 * (codebook +- 1/8) = 2 n - 9, the shift folded in; weight j < 4 in the low
//           nibble of byte j, weight 4 + j in its high nibble
//   iq2     nibble j is the code of weight j: 0, 1, 2 for 8, 25, 43. The sign goes to its bit 2, then one PRMT makes four
//           signed bytes of four nibbles.
//   iq3     four magnitudes in four bytes. PRMT makes a mask of four signs.
//
//   codes(i): offset = (word >> s) & mask; entry = table[offset]; iq2: nibbles = entry | (signs << t) & 0x44444444;
//             low, high = PRMT(values, nibbles), PRMT(values, nibbles >> 16)
//
// SHF and LOP3 make an offset; LDS reads an entry; LOP3 merges signs; PRMT is a table of eight bytes.
// The caller guarantees a full warp, and a table that was filled before a barrier.
#pragma once
#include "machine.h"
#include "tile.h"

#if !defined(LK_MEMBER)
#if defined(__CUDACC__)
#define LK_MEMBER __device__ __forceinline__
#else
#define LK_MEMBER inline
#endif
#endif

namespace lutkern {
namespace cuda {

// ---- entries ----

LK_DEVICE uint32_t low_word(uint64_t row) { return static_cast<uint32_t>(row); }
LK_DEVICE uint32_t high_word(uint64_t row) { return static_cast<uint32_t>(row >> 32); }

// Four bytes of -1, 0, 1 to 0, 1, 2
LK_DEVICE uint32_t ternary_codes(uint32_t bytes) { return ((bytes & 0x03030303u) + 0x01010101u) & 0x03030303u; }

// Without the shift: + 0x11111111 where it is +1/8
LK_DEVICE uint32_t iq1_entry(uint64_t row) {
  return ternary_codes(low_word(row)) << 2 | ternary_codes(high_word(row)) << 6;
}

// Four bytes of 8, 25, 43 to four nibbles
LK_DEVICE uint32_t iq2_nibbles(uint32_t bytes) {
  const uint32_t codes = (bytes >> 4) & 0x03030303u;
  return byte_perm(codes | codes >> 4, 0, 0x4420);
}

LK_DEVICE uint32_t iq2_entry(uint64_t row) { return iq2_nibbles(low_word(row)) | iq2_nibbles(high_word(row)) << 16; }

LK_DEVICE uint32_t entry(const Iq1S*, int i) {
  return iq1_entry(kIq1Grid.row[i & 2047]) + (i < 2048 ? 0x11111111u : 0);
}
LK_DEVICE uint32_t entry(const Iq1M*, int i) {
  return iq1_entry(kIq1Grid.row[i & 2047]) + (i < 2048 ? 0x11111111u : 0);
}
LK_DEVICE uint32_t entry(const Iq2Xxs*, int i) { return iq2_entry(kIq2XxsGrid.row[i]); }
LK_DEVICE uint32_t entry(const Iq2Xs*, int i) { return iq2_entry(kIq2XsGrid.row[i]); }
LK_DEVICE uint32_t entry(const Iq2S*, int i) { return iq2_entry(kIq2SGrid.row[i]); }
LK_DEVICE uint32_t entry(const Iq3Xxs*, int i) { return kIq3XxsGrid.row[i]; }
LK_DEVICE uint32_t entry(const Iq3S*, int i) { return kIq3SGrid.row[i]; }

// ---- the table ----

template <class Block>
struct Table {
  enum : int {
    kEntries = 1 << Tile<Block>::kBits,
    kCopies = 1 << (Tile<Block>::kPlace - 2),
    kBytes = 4 * kEntries * kCopies
  };
  const uint8_t* entries;  // the copy of this lane

  // shared: kBytes, at a multiple of 16
  LK_MEMBER Table(const uint8_t* shared, uint32_t lane) : entries(shared + 4 * (lane % kCopies)) {}

  LK_MEMBER uint32_t at(uint32_t offset) const { return load4(entries + offset); }

  // By all threads of a block; a barrier follows.
  LK_MEMBER static void fill(uint8_t* shared, uint32_t thread, uint32_t threads) {
    const Block* format = nullptr;
    if (kCopies == 1) {
      for (uint32_t i = thread; i < kEntries / 4; i += threads) {
        const int first = static_cast<int>(4 * i);
        store16(shared + 16 * i, Words4{entry(format, first), entry(format, first + 1), entry(format, first + 2),
                                        entry(format, first + 3)});
      }
      return;
    }
    // Eight threads that store together store to different banks.
    constexpr uint32_t kPieces = kCopies < 4 ? 1 : kCopies / 4;
    for (uint32_t i = thread; i < kEntries; i += threads) {
      const uint32_t word = entry(format, static_cast<int>(i));
#pragma unroll
      for (uint32_t k = 0; k < kPieces; ++k) {
        const uint32_t piece = (k + i * kPieces / 8) % kPieces;
        store16(shared + 4 * kCopies * i + 16 * piece, Words4{word, word, word, word});
      }
    }
  }
};

// ---- a lane ----

// Offset of the entry of index i in the table; i is known when the program is compiled.
template <class Block>
LK_DEVICE uint32_t entry_offset(const uint32_t* words, int i) {
  using T = Tile<Block>;
  const uint32_t* ring = words + T::kCodes + T::kRing * (i / T::kFields);
  const int bit = T::kBits * (i % T::kFields);
  const int shift = bit % 32;
  const uint32_t word = ring[bit / 32];
  const uint32_t mask = ((1u << T::kBits) - 1) << T::kPlace;
  if (shift == 0) return word & mask;
  if (shift + T::kPlace + T::kBits <= 32) return (word >> shift) & mask;
  return funnel_right(word, ring[(bit / 32 + 1) % T::kRing], static_cast<uint32_t>(shift)) & mask;
}

// Entry with eight nibbles, their signs, four bytes each
LK_DEVICE uint32_t signed_nibbles(uint32_t entry, uint32_t signs, int k) {
  return entry | ((k < 2 ? signs << (2 - k) : signs >> (k - 2)) & 0x44444444u);
}
LK_DEVICE uint32_t iq2_bytes(uint32_t nibbles) { return byte_perm(0x002b1908u, 0x00d5e7f8u, nibbles); }

// 0xff in each byte whose weight is negative: index k of the eight of a word
LK_DEVICE uint32_t sign_mask(uint32_t signs, int k) { return byte_perm(signs << (7 - k), 0, 0xba98); }

// The weights of iq1 are 2 n - 9: of four bytes 2 n
LK_DEVICE uint32_t iq1_bytes(uint32_t twice) { return ((twice | 0x80808080u) - 0x09090909u) ^ 0x80808080u; }

// The 12 bits of a codeword of iq1: iq1_s has the shift once for four codewords.
template <class Block>
LK_DEVICE uint32_t iq1_offset(const uint32_t* words, int i) {
  const uint32_t offset = entry_offset<Block>(words, i);
  if (Tile<Block>::kHasHalf == 0) return offset;
  const int first = 8 * (i / 8);
  const uint32_t shift = entry_offset<Block>(words, first + shift_field((i % 8) / 4));
  return (offset & 0x1ffcu) | (shift & 0x2000u);
}

// The integer that the scale of columns 16 g .. 16 g + 15 is made of
template <class Block>
LK_DEVICE uint32_t scale_bits(const uint32_t* words, int g) {
  using T = Tile<Block>;
  if constexpr (T::kFamily == 1 && T::kHasHalf != 0) {
    uint32_t s = 0;
    for (int bit = 0; bit < 3; ++bit) {
      const int field = 8 * (g / 4) + scale_field((g / 2) % 2, bit);
      s |= (get_field<T>(words, field) >> 11) << bit;
    }
    return s;
  } else if constexpr (T::kFamily == 1) {
    const uint32_t low = words[T::kScales];
    const int bit = 3 * g;
    if (bit > 32) return (words[T::kScales + 1] >> (bit - 32)) & 7u;
    return funnel_right(low, words[T::kScales + 1], static_cast<uint32_t>(bit)) & 7u;
  } else {
    const int i = T::kFamily == 2 && T::kBits > 8 ? g : g / 2;
    return (words[T::kScales + i / 8] >> (4 * (i % 8))) & 15u;
  }
}

template <class Block>
struct Lane {
  using T = Tile<Block>;
  LaneWords<Block> words;
  float d;

  // From global memory that nothing writes meanwhile
  LK_MEMBER void load(const uint8_t* tile, int lane) {
#pragma unroll
    for (int c = 0; c < T::kChunks; ++c) set16(4 * c, stream_load16(tile + word_offset<T>(lane, 4 * c)));
#pragma unroll
    for (int i = 4 * T::kChunks; i < 4 * T::kChunks + T::kFours; ++i) {
      words.word[i] = stream_load4(tile + word_offset<T>(lane, i));
    }
#pragma unroll
    for (int i = 4 * T::kChunks + T::kFours; i < T::kWords; i += 2) {
      set8(i, stream_load8(tile + word_offset<T>(lane, i)));
    }
    words.half = T::kHasHalf ? constant_load2(tile + T::kHalfAt + 2 * lane) : words.word[T::kWords - 1] >> 16;
    d = float_from_half(words.half);
  }

  // From shared memory
  LK_MEMBER void load_shared(const uint8_t* tile, int lane) {
#pragma unroll
    for (int c = 0; c < T::kChunks; ++c) set16(4 * c, load16(tile + word_offset<T>(lane, 4 * c)));
#pragma unroll
    for (int i = 4 * T::kChunks; i < 4 * T::kChunks + T::kFours; ++i) {
      words.word[i] = load4(tile + word_offset<T>(lane, i));
    }
#pragma unroll
    for (int i = 4 * T::kChunks + T::kFours; i < T::kWords; i += 2) set8(i, load8(tile + word_offset<T>(lane, i)));
    words.half = T::kHasHalf ? load2(tile + T::kHalfAt + 2 * lane) : words.word[T::kWords - 1] >> 16;
    d = float_from_half(words.half);
  }

  // Eight signed weights of codeword i, before the scale: the first four and the others, one to a byte
  LK_MEMBER void codes(int i, const Table<Block>& table, uint32_t& low, uint32_t& high) const {
    const uint32_t* word = words.word;
    if constexpr (T::kFamily == 1) {
      const uint32_t nibbles = table.at(iq1_offset<Block>(word, i));
      low = iq1_bytes((nibbles << 1) & 0x1e1e1e1eu);
      high = iq1_bytes((nibbles >> 3) & 0x1e1e1e1eu);
    } else if constexpr (T::kFamily == 2) {
      const uint32_t nibbles = signed_nibbles(table.at(entry_offset<Block>(word, i)), word[i / 4], i % 4);
      low = iq2_bytes(nibbles);
      high = iq2_bytes(nibbles >> 16);
    } else {
      low = iq3_bytes(table.at(entry_offset<Block>(word, 2 * i)), sign_mask(word[i / 4], 2 * i % 8));
      high = iq3_bytes(table.at(entry_offset<Block>(word, 2 * i + 1)), sign_mask(word[i / 4], 2 * i % 8 + 1));
    }
  }

  // Of columns 16 g .. 16 g + 15: equal to formats/ to the bit
  LK_MEMBER float scale16(int g) const {
    const uint32_t s = scale_bits<Block>(words.word, g);
    if constexpr (T::kFamily == 1) return d * static_cast<float>(2 * s + 1) * 0.125f;
    if constexpr (T::kFamily == 2) return d * (static_cast<float>(s) + 0.5f) * 0.25f;
    if constexpr (T::kBits == 8) return d * (static_cast<float>(s) + 0.5f) * 0.5f;
    return d * static_cast<float>(2 * s + 1);
  }

 private:
  LK_MEMBER void set16(int i, Words4 v) {
    words.word[i] = v.x;
    words.word[i + 1] = v.y;
    words.word[i + 2] = v.z;
    words.word[i + 3] = v.w;
  }
  LK_MEMBER void set8(int i, Words2 v) {
    words.word[i] = v.x;
    words.word[i + 1] = v.y;
  }
  LK_MEMBER static uint32_t iq3_bytes(uint32_t magnitudes, uint32_t mask) {
    // iq3_s: -v is v ^ 0xfe, all are odd. The others are not 0, so that no byte overflows.
    if (T::kBits == 9) return magnitudes ^ (mask & 0xfefefefeu);
    return (magnitudes ^ mask) + (mask & 0x01010101u);
  }
};

}  // namespace cuda
}  // namespace lutkern
