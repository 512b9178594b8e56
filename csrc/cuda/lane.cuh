// The seven codebook formats in registers: a lane loads its row of a tile (gpu/tile.h), codebook entries come from a table
// in shared memory.
//
//   entry   4 bytes, kCopies of it side by side; lane l reads copy l % kCopies, so that lanes meet in fewer banks:
//           by count, a warp's load of 32 random entries takes about 3.5 cycles with 1 copy, 3 with 8, 2 with 16, 1
//           with 32. A table has 32 KB: iq2_xxs and iq3_xxs 32 copies, iq2_xs and iq3_s 16, iq2_s 8. Iq1 has 1 copy,
//           16 KB: fewer conflicts would need 16 copies, 256 KB; so iq1 may be bound by shared memory. Filling a table
//           (from the L2 cache, once for a block) takes about as long as the products of 600 columns.
//   iq1     nibble n of {0, 1, 4, 5, 8, 9}: 8 * (codebook +- 1/8) = 2 n - 9, the shift folded in; weight j < 4 in the
//           low nibble of byte j, weight 4 + j in its high nibble
//   iq2     nibble j is the code of weight j: 0, 1, 2 for 8, 25, 43. The sign goes to its bit 2, then one PRMT makes
//           four signed bytes of four nibbles.
//   iq3     four magnitudes in four bytes. PRMT makes a mask of four signs.
//
//   codes(i): offset = (word >> s) & mask; entry = table[offset]; iq2: nibbles = entry | (signs << t) & 0x44444444;
//             low, high = PRMT(values, nibbles), PRMT(values, nibbles >> 16)
//
// SHF and LOP3 make an offset; LDS reads an entry; LOP3 merges signs; PRMT is a table of eight bytes.
// The caller guarantees a full warp, and a table that was filled before a barrier.
#pragma once
#include "../gpu/tile_blocks.h"
#include "machine.h"

namespace lutkern {
namespace cuda {

// The same number, and the same number for all lanes, which the compiler cannot take apart: they stay in a register,
// where numbers that it knows would be made again for each use.
LK_DEVICE uint32_t kept(uint32_t number) { return shuffle(number, lane()); }
LK_DEVICE uint32_t kept_constant(uint32_t number) { return shuffle(number + lane(), 0); }

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

LK_DEVICE uint32_t entry(const Iq1S*, uint32_t i) { return iq1_entry(kIq1Grid.row[i]); }
LK_DEVICE uint32_t entry(const Iq1M*, uint32_t i) { return iq1_entry(kIq1Grid.row[i]); }
LK_DEVICE uint32_t entry(const Iq2Xxs*, uint32_t i) { return iq2_entry(kIq2XxsGrid.row[i]); }
LK_DEVICE uint32_t entry(const Iq2Xs*, uint32_t i) { return iq2_entry(kIq2XsGrid.row[i]); }
LK_DEVICE uint32_t entry(const Iq2S*, uint32_t i) { return iq2_entry(kIq2SGrid.row[i]); }
LK_DEVICE uint32_t entry(const Iq3Xxs*, uint32_t i) { return kIq3XxsGrid.row[i]; }
LK_DEVICE uint32_t entry(const Iq3S*, uint32_t i) { return kIq3SGrid.row[i]; }

// ---- the table ----

template <class Block>
struct Table {
  enum : int {
    kEntries = 1 << Tile<Block>::kBits,
    kCopies = 1 << (Tile<Block>::kPlace - 2),
    kBytes = 4 * kEntries * kCopies
  };
  const uint8_t* entries;
  uint32_t copy;  // of this lane: its bytes, below those that an index makes

  // shared: kBytes, at a multiple of 16. By a whole warp.
  LK_MEMBER Table(const uint8_t* shared, uint32_t lane) : entries(shared), copy(kept(4 * (lane % kCopies))) {}

  // offset: of the first copy
  LK_MEMBER uint32_t at(uint32_t offset) const { return load4(entries + (kCopies > 1 ? offset | copy : offset)); }

  // By all threads of a block; a barrier follows.
  LK_MEMBER static void fill(uint8_t* shared, uint32_t thread, uint32_t threads) {
    const Block* format = nullptr;
    if constexpr (kCopies == 1) {  // iq1: both shifts of four rows of the codebook
      for (uint32_t i = thread; i < kEntries / 8; i += threads) {
        uint32_t rows[4];
        for (uint32_t j = 0; j < 4; ++j) rows[j] = entry(format, 4 * i + j);
        store16(shared + kBytes / 2 + 16 * i, Words4{rows[0], rows[1], rows[2], rows[3]});
        for (uint32_t& row : rows) row += 0x11111111u;
        store16(shared + 16 * i, Words4{rows[0], rows[1], rows[2], rows[3]});
      }
      return;
    }
    // Eight threads that store together store to different banks.
    constexpr uint32_t kPieces = kCopies < 4 ? 1 : kCopies / 4;
    for (uint32_t i = thread; i < kEntries; i += threads) {
      const uint32_t word = entry(format, i);
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

enum : uint32_t { kIq2Positive = 0x002b1908u };  // 8, 25, 43 in the bytes that codes select

// Entry with eight nibbles, their signs, four bytes each
LK_DEVICE uint32_t signed_nibbles(uint32_t entry, uint32_t signs, int k) {
  return entry | ((k < 2 ? signs << (2 - k) : signs >> (k - 2)) & 0x44444444u);
}
LK_DEVICE uint32_t iq2_bytes(uint32_t nibbles, uint32_t positive) { return byte_perm(positive, 0x00d5e7f8u, nibbles); }

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

// iq1_s: twice the scale of 32 columns. Its bits stand 12 apart; a product brings them to bits 29 .. 31.
LK_DEVICE uint32_t iq1_s_scale(const uint32_t* words, int group) {
  if (group % 2 == 0) return ((words[3 * (group / 2) + 1] & 0x20020020u) * 0x01002004u) >> 28;
  return ((words[3 * (group / 2)] & 0x02002002u) * 0x10020040u) >> 28;
}

// The integer that the scale of columns 16 g .. 16 g + 15 is made of
template <class Block>
LK_DEVICE uint32_t scale_bits(const uint32_t* words, int g) {
  using T = Tile<Block>;
  if constexpr (T::kFamily == 1 && T::kHasHalf != 0) {
    return iq1_s_scale(words, g / 2) >> 1;
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

// fp16 scale of the block
template <class Block>
LK_DEVICE uint32_t scale_half(const LaneWords<Block>& words) {
  return Tile<Block>::kHasHalf ? words.half : words.word[Tile<Block>::kWords - 1] >> 16;
}

template <class Block>
LK_DEVICE void set_words(LaneWords<Block>& to, int i, Words4 v) {
  to.word[i] = v.x;
  to.word[i + 1] = v.y;
  to.word[i + 2] = v.z;
  to.word[i + 3] = v.w;
}
template <class Block>
LK_DEVICE void set_words(LaneWords<Block>& to, int i, Words2 v) {
  to.word[i] = v.x;
  to.word[i + 1] = v.y;
}

// Global memory that nothing writes meanwhile
struct StreamLoads {
  LK_MEMBER static Words4 of16(const uint8_t* p) { return stream_load16(p); }
  LK_MEMBER static Words2 of8(const uint8_t* p) { return stream_load8(p); }
  LK_MEMBER static uint32_t of4(const uint8_t* p) { return stream_load4(p); }
  LK_MEMBER static uint32_t of2(const uint8_t* p) { return constant_load2(p); }
};

struct SharedLoads {
  LK_MEMBER static Words4 of16(const uint8_t* p) { return load16(p); }
  LK_MEMBER static Words2 of8(const uint8_t* p) { return load8(p); }
  LK_MEMBER static uint32_t of4(const uint8_t* p) { return load4(p); }
  LK_MEMBER static uint32_t of2(const uint8_t* p) { return load2(p); }
};

template <class Loads = StreamLoads, class Block>
LK_DEVICE void load_words(LaneWords<Block>& to, const uint8_t* tile, uint32_t lane) {
  using T = Tile<Block>;
  constexpr int kTail = 4 * T::kChunks;
  const int l = static_cast<int>(lane);
#pragma unroll
  for (int i = 0; i < kTail; i += 4) set_words(to, i, Loads::of16(tile + word_offset<T>(l, i)));
#pragma unroll
  for (int i = kTail; i < kTail + T::kFours; ++i) to.word[i] = Loads::of4(tile + word_offset<T>(l, i));
#pragma unroll
  for (int i = kTail + T::kFours; i < T::kWords; i += 2) set_words(to, i, Loads::of8(tile + word_offset<T>(l, i)));
  to.half = T::kHasHalf ? Loads::of2(tile + T::kHalfAt + 2 * l) : 0;
}

// The last 32 columns, 0 to 7, that word i is needed for
template <class T>
LK_FN constexpr int last_group(int i) {
  if (i >= T::kCodes && i < T::kCodes + T::kRing * (T::kFamily == 3 ? 64 : 32) / T::kFields) {
    const int ring = (i - T::kCodes) / T::kRing;
    const int bits =
        32 * ((i - T::kCodes) % T::kRing + 1);  // fields that begin below; the last goes on in the first word
    const int per_group = T::kFamily == 3 ? 8 : 4;
    const int field = (i - T::kCodes) % T::kRing == 0 ? T::kFields - 1 : (bits - T::kPlace - 1) / T::kBits;
    return (ring * T::kFields + (field < T::kFields ? field : T::kFields - 1)) / per_group;
  }
  return i < T::kCodes ? i : 7;
}

// Where there is more, loads the words that are needed for group g and none after it.
template <class Block>
LK_DEVICE void load_words_after(LaneWords<Block>& to, bool more, const uint8_t* tile, uint32_t lane, int g) {
  using T = Tile<Block>;
  constexpr int kTail = 4 * T::kChunks;
  const int l = static_cast<int>(lane);
  uint32_t* w = to.word;
#pragma unroll
  for (int i = 0; i < kTail; i += 4) {
    int last = 0;
    for (int j = 0; j < 4; ++j) last = last_group<T>(i + j) > last ? last_group<T>(i + j) : last;
    if (last != g) continue;
    Words4 v = {w[i], w[i + 1], w[i + 2], w[i + 3]};
    stream_load16_if(more, tile + word_offset<T>(l, i), v);
    set_words(to, i, v);
  }
  if (g < 7) return;
#pragma unroll
  for (int i = kTail; i < kTail + T::kFours; ++i) stream_load4_if(more, tile + word_offset<T>(l, i), w[i]);
#pragma unroll
  for (int i = kTail + T::kFours; i < T::kWords; i += 2) {
    Words2 v = {w[i], w[i + 1]};
    stream_load8_if(more, tile + word_offset<T>(l, i), v);
    set_words(to, i, v);
  }
  if (T::kHasHalf) stream_load2_if(more, tile + T::kHalfAt + 2 * l, to.half);
}

template <class Block>
struct Lane {
  using T = Tile<Block>;
  LaneWords<Block> words;
  float d;

  LK_MEMBER void load(const uint8_t* tile, int lane) {
    load_words(words, tile, static_cast<uint32_t>(lane));
    d = float_from_half(scale_half(words));
  }
  LK_MEMBER void load_shared(const uint8_t* tile, int lane) {
    load_words<SharedLoads>(words, tile, static_cast<uint32_t>(lane));
    d = float_from_half(scale_half(words));
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
      low = iq2_bytes(nibbles, kIq2Positive);
      high = iq2_bytes(nibbles >> 16, kIq2Positive);
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
  LK_MEMBER static uint32_t iq3_bytes(uint32_t magnitudes, uint32_t mask) {
    // iq3_s: -v is v ^ 0xfe, all are odd. The others are not 0, so that no byte overflows.
    if (T::kBits == 9) return magnitudes ^ (mask & 0xfefefefeu);
    return (magnitudes ^ mask) + (mask & 0x01010101u);
  }
};

}  // namespace cuda
}  // namespace lutkern
