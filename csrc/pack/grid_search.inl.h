// The row of a codebook that costs least, exactly, for 32 groups of weights at a time; one lane is one group.
//
//   row[lane] = argmin over rows r of  sum_j cost_j[lane](level of row r at position j)
//
// A row is cut into a low and a high half; a half is one of kKeys level combinations (3^4 for eight ternary positions,
// 8^2 for four positions of eight levels). The caller fills low[key] and high[key] with the cost of each combination.
// The rows are sorted by low key, so the search is, per low key, a minimum over the high keys that occur with it:
//
//   for k in low keys:  m = min over h in rows(k) of high[h];  best = min(best, low[k] + m)
//
// A row costs one minimum with a memory operand per vector; everything else is per low key. Rows come in chunks of four
// (the last ones of a list repeat, which changes no minimum) and lists in the order of their length, so that the branch
// at the end of a list is foreseen. High costs carry their key
// in the lowest 7 bits of the mantissa, so that the minimum brings its argument along: the error of a cost is below
// 2^-16 of its value, far less than what separates two rows.

enum : int { kLanes = 32 };
constexpr int32_t kTagBits = 7;
constexpr int32_t kTagMask = (1 << kTagBits) - 1;

using Lanes = Floats<kLanes>;
using LaneInts = Ints<kLanes>;

static constexpr float kWorst = 3e38f;

static inline FloatVec tagged(FloatVec cost, int32_t tag) { return floats_of((bits_of(cost) & ~kTagMask) | tag); }

template <int kRows, int kKeys>
struct GridTable {
  enum : int { kChunk = 4 };

  struct List {
    int32_t key;
    int32_t chunks;  // of its rows
  };

  int n_lists;
  List list[kKeys];
  uint16_t high_offset[kRows + kKeys * (kChunk - 1)];  // of the high key's lanes, in bytes
  uint16_t row[kKeys << kTagBits];                     // codebook row of a low key << kTagBits | high key

  // low_key and high_key of every row, in codebook order.
  void build(const uint8_t* low_key, const uint8_t* high_key) {
    static_assert((kKeys - 1) * sizeof(Lanes) < 65536 && kKeys <= kTagMask, "a key fits its offset and its tag");
    int length[kKeys] = {};
    for (int r = 0; r < kRows; ++r) {
      ++length[low_key[r]];
      row[low_key[r] << kTagBits | high_key[r]] = static_cast<uint16_t>(r);
    }
    int entry = 0;
    n_lists = 0;
    for (int chunks = (kKeys + kChunk - 1) / kChunk; chunks > 0; --chunks) {
      for (int k = 0; k < kKeys; ++k) {
        if ((length[k] + kChunk - 1) / kChunk != chunks) continue;
        list[n_lists++] = {k, chunks};
        const int end = entry + chunks * kChunk;
        for (int r = 0; r < kRows; ++r) {
          if (low_key[r] == k) high_offset[entry++] = static_cast<uint16_t>(high_key[r] * sizeof(Lanes));
        }
        for (; entry < end; ++entry) high_offset[entry] = high_offset[entry - 1];
      }
    }
  }

  // high_cost is tagged with its key. cost is that of the best row, pair its two keys, as the index of row[].
  void search(const Lanes* low_cost, const Lanes* high_cost, Lanes* cost, LaneInts* pair) const {
    // Four vectors at a time hold their minimum in registers.
    for (int at = 0; at < Lanes::kVectors; at += 4) {
      const char* high = reinterpret_cast<const char*>(&high_cost[0].v[at]);
      FloatVec best[4], tag[4];
      IntVec key[4];
      for (int i = 0; i < 4; ++i) {
        best[i] = tag[i] = FloatVec{} + kWorst;
        key[i] = IntVec{};
      }
      const uint16_t* entry = high_offset;
      for (int n = 0; n < n_lists; ++n) {
        FloatVec m0 = FloatVec{} + kWorst, m1 = m0, m2 = m0, m3 = m0;
        for (int chunk = list[n].chunks; chunk > 0; --chunk, entry += kChunk) {
          for (int e = 0; e < kChunk; ++e) {
            const FloatVec* other = reinterpret_cast<const FloatVec*>(high + entry[e]);
            m0 = min(m0, other[0]);
            m1 = min(m1, other[1]);
            m2 = min(m2, other[2]);
            m3 = min(m3, other[3]);
          }
        }
        const FloatVec least[4] = {m0, m1, m2, m3};
        const FloatVec* low = &low_cost[list[n].key].v[at];
        for (int i = 0; i < 4; ++i) {
          const FloatVec sum = low[i] + least[i];
          const IntVec better = sum < best[i];
          best[i] = better ? sum : best[i];
          tag[i] = better ? least[i] : tag[i];
          key[i] = better ? IntVec{} + (list[n].key << kTagBits) : key[i];
        }
      }
      for (int i = 0; i < 4; ++i) {
        cost->v[at + i] = best[i];
        pair->v[at + i] = key[i] | (bits_of(tag[i]) & kTagMask);
      }
    }
  }
};
