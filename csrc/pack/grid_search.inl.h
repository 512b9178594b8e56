// The row of a codebook that costs least, exactly, for 32 groups of weights at a time.
//
//   row[lane] = argmin over rows r of  sum_j cost_j[lane](level of row r at position j)
//
// One lane is one group, so every step is the same short loop over 32 floats, which a compiler turns into plain vector
// code. A row is cut into a low and a high half; a half is one of kKeys level combinations (3^4 for eight ternary
// positions, 8^2 for four positions of eight levels). The caller fills low[key] and high[key] with the cost of each
// combination. The rows are sorted by low key, so the search is, per low key, a minimum over the high keys that occur
// with it:
//
//   for k in low keys:  m = min over h in rows(k) of high[h];  best = min(best, low[k] + m)
//
// Costs carry the key in the lowest 7 bits of their mantissa: the minimum brings its argument along. The error of a
// cost is below 2^-16 of its value, far less than what separates two rows.

enum : int { kLanes = 32 };

struct alignas(64) Lanes {
  float v[kLanes];
};

enum : uint32_t { kTagMask = 127u };

static inline float tagged(float cost, uint32_t tag) {
  uint32_t bits;
  memcpy(&bits, &cost, sizeof bits);
  bits = (bits & ~kTagMask) | tag;
  memcpy(&cost, &bits, sizeof bits);
  return cost;
}

static inline uint32_t tag_of(float cost) {
  uint32_t bits;
  memcpy(&bits, &cost, sizeof bits);
  return bits & kTagMask;
}

template <int kRows, int kKeys>
struct GridTable {
  enum : int { kEntries = kRows + kKeys };
  enum : uint8_t { kEnd = 255 };

  uint16_t first[kKeys];       // where the rows of a low key start
  uint8_t high[kEntries];      // their high keys; kEnd closes a low key
  uint16_t row[kKeys][kKeys];  // codebook row of a low and a high key

  // low_key and high_key of every row, in codebook order.
  void build(const uint8_t* low_key, const uint8_t* high_key) {
    int entry = 0;
    for (int k = 0; k < kKeys; ++k) {
      first[k] = static_cast<uint16_t>(entry);
      for (int r = 0; r < kRows; ++r) {
        if (low_key[r] != k) continue;
        high[entry++] = high_key[r];
        row[k][high_key[r]] = static_cast<uint16_t>(r);
      }
      high[entry++] = kEnd;
    }
  }

  // high_cost is tagged with its key. row_of[lane] is the best row, cost->v[lane] what it costs.
  void search(const Lanes* low_cost, const Lanes* high_cost, uint16_t* row_of, Lanes* cost) const {
    float best[kLanes];
    for (int l = 0; l < kLanes; ++l) best[l] = 3e38f;
    const uint8_t* entry = high;
    for (int k = 0; k < kKeys; ++k, ++entry) {
      if (*entry == kEnd) continue;
      float least[kLanes];
      const float* other = high_cost[*entry].v;
      for (int l = 0; l < kLanes; ++l) least[l] = other[l];
      while (*++entry != kEnd) {
        other = high_cost[*entry].v;
        for (int l = 0; l < kLanes; ++l) least[l] = other[l] < least[l] ? other[l] : least[l];
      }
      for (int l = 0; l < kLanes; ++l) {
        const float sum = tagged(low_cost[k].v[l] + least[l], static_cast<uint32_t>(k));
        best[l] = sum < best[l] ? sum : best[l];
      }
    }
    for (int l = 0; l < kLanes; ++l) {
      const uint32_t k = tag_of(best[l]);
      entry = high + first[k];
      float least = high_cost[*entry].v[l];
      while (*++entry != kEnd) {
        const float other = high_cost[*entry].v[l];
        least = other < least ? other : least;
      }
      row_of[l] = row[k][tag_of(least)];
      cost->v[l] = best[l];
    }
  }
};
