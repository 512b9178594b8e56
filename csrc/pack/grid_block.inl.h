// One block of a codebook format: rows, signs and scales that minimise the importance-weighted squared error.
//
//   minimise  sum_i importance[i] * (w[i] - d * unit(s) * code[i])^2
//             over d (fp16), s (small integer per sub-block), rows of the codebook, signs (IQ2, IQ3) or shifts (IQ1)
//
// 1. Signs. IQ2 and IQ3 rows hold magnitudes, so a weight takes its own sign. Where the format stores seven signs and
//    lets parity give the eighth, and the parity is wrong, the weight whose flip costs least takes the other sign; from
//    there on it is a negative magnitude, and the row search sees what that costs. The rounds of step 4 may choose rows
//    and flips together, exactly: the cheapest flip lies in the low or in the high half of a row, so each half gets a
//    second table of costs that holds its cheapest flip, and the search runs with either.
// 2. Scales. As if every combination of levels were a row, the error of a sub-block is estimated at a few scales around
//    its root mean square. Around the lowest estimate a few scales are searched for the exact best rows
//    (grid_search.inl.h), and then the least-squares scale of the best of them.
// 3. d is fitted to the scales that the sub-blocks want (grid_scale.inl.h) and rounded to fp16.
// 4. With that d every sub-block is searched at the two integers around its wanted scale; the better one stays. A
//    least-squares d for everything chosen, rounded to fp16, is the last word, or the d of another round.
//
// Lanes: a lane is a group of kDims weights, a row of the codebook. Lane g * kSubs + b is group g of sub-block b, so
// what sub-blocks have of their own (scale, error) repeats every kSubs lanes and no operation crosses lanes.
//
// A format F gives
//   kRows, kDims      codebook rows of kDims codes
//   kLevels, kKeys    values that a code takes; combinations of a half row, kLevels^(kDims / 2)
//   kSubs             sub-blocks with a scale of their own
//   kSigned, kParity  rows hold magnitudes; seven stored signs for eight weights
//   kVariants         1, or 2 for the two shifts of IQ1; kVariantPerGroup: chosen per row and not per sub-block
//   kLevel[variant][level], kUnits
//   kUsualScale       of a sub-block, relative to its root mean square
//   kEffort[effort]
//   Block, store(GridBlock<F>::Result, Block*), codebook(), level_of(byte of the codebook)

// Added to every high cost: a tagged zero would be a subnormal number.
static constexpr float kLeastCost = 1e-30f;

// Ratio of two scales that are estimated one after the other.
static constexpr float kEstimateStep = 1.13f;

// A block whose largest importance is this many times the mean takes the next higher effort.
static constexpr float kConcentrated = 64.0f;

struct GridEffort {
  int estimates;  // scales that are estimated, around the usual one
  int trials;     // scales searched: first_trial times the lowest estimate, and on in ratios of trial_step
  float first_trial;
  float trial_step;
  int polishes;       // searches at the least-squares scale of what was found
  int scales;         // values of d that are tried
  int rounds;         // of each
  int integers;       // 1: the one nearest to the wanted scale is searched; 2: both around it
  bool parity;        // rounds choose rows and flips together
  bool all_variants;  // searched for each sub-block and not only the one with the lower estimate; anew in each round
};

template <typename F>
struct GridBook {
  GridTable<F::kRows, F::kKeys> table;
  int8_t code[F::kRows][F::kDims];  // without shift

  // level[row][j]: the level number of a code.
  void build(const uint8_t (*level)[F::kDims], const int8_t* value) {
    uint8_t low[F::kRows], high[F::kRows];
    for (int r = 0; r < F::kRows; ++r) {
      int key[2] = {0, 0};
      for (int j = F::kDims - 1; j >= 0; --j) {
        int& half = key[j / (F::kDims / 2)];
        half = half * F::kLevels + level[r][j];
        code[r][j] = value[level[r][j]];
      }
      low[r] = static_cast<uint8_t>(key[0]);
      high[r] = static_cast<uint8_t>(key[1]);
    }
    table.build(low, high);
  }
};

template <typename F>
class GridBlock {
 public:
  enum : int {
    kSubs = F::kSubs,
    kDims = F::kDims,
    kLevels = F::kLevels,
    kGroups = 256 / kDims,
    kGroupsPerSub = kGroups / kSubs,
    kSets = kGroups / kLanes,
    kSubSize = 256 / kSubs,
    kEights = kSubSize / 8,
    kHalf = kDims / 2,
    kScaleSets = F::kVariants == 2 && !F::kVariantPerGroup ? 2 : 1
  };

  // What the block's bytes are made of.
  struct Result {
    uint32_t half;          // d
    int scale_code[kSubs];  // s
    uint16_t row[kGroups];
    uint8_t variant[kGroups];
    uint8_t signs[32];  // bit j: weight 8 i + j is negative
  };
  Result result;

  // False: d does not fit fp16.
  bool quantise(const GridBook<F>& book, const float* weights, const float* importance, const GridEffort& effort) {
    clear();
    if (!input_.load(weights, importance)) return true;
    arrange();
    measure();
    if (F::kSigned) take_signs();
    Choice wanted{};
    Subs square;
    search_scales(book, effort, &wanted, &square);
    float d[kMostScales];
    const int n = fit_grid_scale(F::kUnits, wanted.scale, square, effort.scales, d);
    float least = input_.energy;
    bool found = false;
    Result best;
    for (int i = 0; i < n; ++i) {
      result.half = half_reaching(input_.unscaled(d[i]));
      if (result.half >= kHalfInfinity) return false;
      const float error = finish(book, effort, wanted);
      if (result.half >= kHalfInfinity) return false;
      if (!(error < least)) continue;
      least = error;
      best = result;
      found = true;
    }
    if (found) {
      result = best;
    } else {
      clear();
    }
    return true;
  }

 private:
  using Subs = Floats<kSubs>;
  enum : int { kSubVectors = Subs::kVectors, kGroupsPerSet = kLanes / kSubs };
  static constexpr int32_t kVariantBit = 1 << (2 * kTagBits);

  // Vector i of the sub-blocks, in the lanes of their group g.
  template <typename T>
  static auto& part(T* sets, int g, int i) {
    return sets[g / kGroupsPerSet].v[g % kGroupsPerSet * kSubVectors + i];
  }

  static Subs sum_of_groups(const Lanes* cost) {
    Subs out;
    for (int i = 0; i < kSubVectors; ++i) {
      FloatVec sum = part(cost, 0, i);
      for (int g = 1; g < kGroupsPerSub; ++g) sum = sum + part(cost, g, i);
      out.v[i] = sum;
    }
    return out;
  }

  static void spread(const Subs& of_sub, Lanes* out) {
    for (int i = 0; i < Lanes::kVectors; ++i) out->v[i] = of_sub.v[i % kSubVectors];
  }

  struct Choice {
    Subs scale;
    Subs error;
    Lanes cost[kSets];     // of each row
    LaneInts pair[kSets];  // the row's two keys, and kVariantBit

    int32_t pair_of(int b, int g) const { return pair[g / kGroupsPerSet].get(g % kGroupsPerSet * kSubs + b); }

    // Sub-block by sub-block the better of the two.
    void keep_better_subs(const Choice& other) {
      const Ints<kSubs> better = less(other.error, error);
      error = select(better, other.error, error);
      scale = select(better, other.scale, scale);
      for (int g = 0; g < kGroupsPerSub; ++g) {
        for (int i = 0; i < kSubVectors; ++i) {
          part(cost, g, i) = better.v[i] ? part(other.cost, g, i) : part(cost, g, i);
          part(pair, g, i) = better.v[i] ? part(other.pair, g, i) : part(pair, g, i);
        }
      }
    }

    // Row by row the better of the two; both have the same scales.
    void keep_better_groups(const Choice& other) {
      for (int set = 0; set < kSets; ++set) {
        const LaneInts better = less(other.cost[set], cost[set]);
        cost[set] = select(better, other.cost[set], cost[set]);
        pair[set] = select(better, other.pair[set], pair[set]);
      }
      error = sum_of_groups(cost);
    }
  };

  void clear() { memset(&result, 0, sizeof result); }

  void arrange() {
    for (int b = 0; b < kSubs; ++b) {
      for (int g = 0; g < kGroupsPerSub; ++g) {
        const int first = b * kSubSize + g * kDims, lane = g % kGroupsPerSet * kSubs + b;
        for (int j = 0; j < kDims; ++j) {
          w_[g / kGroupsPerSet][j].set(lane, input_.w[first + j]);
          importance_[g / kGroupsPerSet][j].set(lane, input_.importance[first + j]);
        }
      }
    }
  }

  void measure() {
    Lanes squares[kSets], totals[kSets];
    for (int set = 0; set < kSets; ++set) {
      squares[set] = totals[set] = Lanes::all(0.0f);
      for (int j = 0; j < kDims; ++j) {
        squares[set] = squares[set] + importance_[set][j] * w_[set][j] * w_[set][j];
        totals[set] = totals[set] + importance_[set][j];
      }
    }
    total_ = sum_of_groups(totals);
    const Subs mean_square = sum_of_groups(squares) / total_;
    for (int b = 0; b < kSubs; ++b) rms_.set(b, sqrtf(mean_square.get(b)));
  }

  // Splits the weights into signs and magnitudes; a flipped weight becomes a negative magnitude. What a flip costs is
  // judged at the usual scale, where the lowest level decodes to low: w and -low differ by w + low, w and its own level
  // by less.
  void take_signs() {
    IntVec minus[kEights][kSubVectors], flipped[kEights][kSubVectors];
    for (int k = 0; k < kEights; ++k) {
      for (int i = 0; i < kSubVectors; ++i) take_eight_signs(k, i, &minus[k][i], &flipped[k][i]);
    }
    for (int c = 0; c < 256; ++c) input_.w[c] = fabsf(input_.w[c]);
    for (int b = 0; b < kSubs; ++b) {
      for (int k = 0; k < kEights; ++k) {
        const int e = b * kEights + k;
        result.signs[e] = static_cast<uint8_t>(minus[k][b / kVectorLanes][b % kVectorLanes]);
        if (!F::kParity) continue;
        const int flip = flipped[k][b / kVectorLanes][b % kVectorLanes];
        input_.w[8 * e + (flip & 7)] *= flip < 8 ? -1.0f : 1.0f;
      }
    }
  }

  // Where the parity is wrong, the flip that costs least with these rows.
  void take_flips(const GridBook<F>& book, const Choice& choice) {
    for (int b = 0; b < kSubs; ++b) {
      for (int k = 0; k < kEights; ++k) {
        const int e = b * kEights + k;
        if (!(odd_[k][b / kVectorLanes][b % kVectorLanes])) continue;
        float w[8], cost[8];
        for (int j = 0; j < 8; ++j) w[j] = fabsf(input_.w[8 * e + j]);
        const Floats<8> weighted = Floats<8>::load(input_.importance + 8 * e) * Floats<8>::load(w);
        (weighted * codes(book, choice, b, k)).store(cost);
        int flip = 0, before = 0;
        for (int j = 1; j < 8; ++j) flip = cost[j] < cost[flip] ? j : flip;
        for (int j = 1; j < 8; ++j) before = bits_from_float(input_.w[8 * e + j]) >> 31 ? j : before;  // -0 counts
        memcpy(input_.w + 8 * e, w, sizeof w);
        input_.w[8 * e + flip] = -w[flip];
        result.signs[e] = static_cast<uint8_t>(result.signs[e] ^ 1 << before ^ 1 << flip);
      }
    }
  }

  // The eighth number k of the sub-blocks of vector i: a bit for each minus, and the weight that is flipped or 8.
  void take_eight_signs(int k, int i, IntVec* minus, IntVec* flipped) {
    const FloatVec low = rms_.v[i] * (F::kLevel[0][0] * F::kUsualScale);
    IntVec bits = {}, odd = {}, cheapest = {};
    FloatVec least = FloatVec{} + kWorst;
    for (int j = 0; j < 8; ++j) {
      FloatVec& w = eighth(w_, k, i, j);
      const IntVec negative = w < 0.0f;
      bits |= negative & (1 << j);
      odd ^= negative;
      w = floats_of(bits_of(w) & 0x7fffffff);
      if (!F::kParity) continue;
      const FloatVec cost = eighth(importance_, k, i, j) * w * (w < 2.0f * low ? 4.0f * low : w + 2.0f * low);
      const IntVec better = cost < least;
      least = better ? cost : least;
      cheapest = better ? IntVec{} + j : cheapest;
    }
    odd_[k][i] = odd;
    cheapest = odd ? cheapest : IntVec{} + 8;
    for (int j = 0; F::kParity && j < 8; ++j) {
      FloatVec& w = eighth(w_, k, i, j);
      const IntVec flip = cheapest == j;
      w = floats_of(bits_of(w) ^ (flip & static_cast<int32_t>(0x80000000u)));
      bits ^= flip & (1 << j);
    }
    *minus = bits;
    *flipped = cheapest;
  }

  static FloatVec& eighth(Lanes (*x)[kDims], int k, int i, int j) {
    const int g = (8 * k + j) / kDims;
    return x[g / kGroupsPerSet][j % kDims].v[g % kGroupsPerSet * kSubVectors + i];
  }

  // cost[low + n * high] = a[low] + b[high]
  template <int n>
  static void add_all(const FloatVec* a, const FloatVec* b, bool tag, int i, Lanes* cost) {
    for (int high = 0; high < n; ++high) {
      for (int low = 0; low < n; ++low) {
        const FloatVec sum = a[low] + b[high];
        cost[high * n + low].v[i] = tag ? tagged(sum, high * n + low) : sum;
      }
    }
  }

  // cost[key] of every level combination of half a row, positions w[0] .. w[kHalf - 1]; point[n] is what level n
  // decodes to.
  static void fill_costs(const Lanes* w, const Lanes* importance, const Lanes* point, bool tag, Lanes* cost) {
    for (int i = 0; i < Lanes::kVectors; ++i) {
      FloatVec single[kHalf][kLevels];
      for (int j = 0; j < kHalf; ++j) {
        for (int n = 0; n < kLevels; ++n) {
          const FloatVec off = w[j].v[i] - point[n].v[i];
          single[j][n] = importance[j].v[i] * off * off;
          if (tag && j == 0) single[j][n] = single[j][n] + kLeastCost;
        }
      }
      if constexpr (kHalf == 2) {
        add_all<kLevels>(single[0], single[1], tag, i, cost);
      } else {
        FloatVec pair[2][kLevels * kLevels];
        for (int p = 0; p < 2; ++p) {
          for (int key = 0; key < kLevels * kLevels; ++key) {
            pair[p][key] = single[2 * p][key % kLevels] + single[2 * p + 1][key / kLevels];
          }
        }
        add_all<kLevels * kLevels>(pair[0], pair[1], tag, i, cost);
      }
    }
  }

  // The same for magnitudes w; flipped[key] has the cheapest of the half's weights take the other sign where odd. A flip
  // costs importance * ((w + point)^2 - (w - point)^2).
  static void fill_flipped(const Lanes* w, const Lanes* importance, const Lanes* point, const LaneInts& odd, bool tag,
                           Lanes* flipped) {
    for (int i = 0; i < Lanes::kVectors; ++i) {
      FloatVec single[kHalf][kLevels], flip[kHalf][kLevels];
      for (int j = 0; j < kHalf; ++j) {
        const FloatVec magnitude = floats_of(bits_of(w[j].v[i]) & 0x7fffffff);
        for (int n = 0; n < kLevels; ++n) {
          const FloatVec off = magnitude - point[n].v[i];
          single[j][n] = importance[j].v[i] * off * off;
          flip[j][n] = floats_of(bits_of(4.0f * importance[j].v[i] * magnitude * point[n].v[i]) & odd.v[i]);
          if (tag && j == 0) single[j][n] = single[j][n] + kLeastCost;
        }
      }
      for (int key = 0; key < F::kKeys; ++key) {
        FloatVec sum = single[0][key % kLevels] + single[1][key / kLevels % kLevels];
        FloatVec least = min(flip[0][key % kLevels], flip[1][key / kLevels % kLevels]);
        if constexpr (kHalf == 4) {
          const int rest = key / (kLevels * kLevels);
          sum = sum + (single[2][rest % kLevels] + single[3][rest / kLevels]);
          least = min(least, min(flip[2][rest % kLevels], flip[3][rest / kLevels]));
        }
        sum = sum + least;
        flipped[key].v[i] = tag ? tagged(sum, key) : sum;
      }
    }
  }

  // What the levels of each lane decode to. shifted: the lanes that take variant 1.
  static void points(const Subs& scale, const LaneInts& shifted, Lanes* point) {
    Lanes lanes;
    spread(scale, &lanes);
    for (int n = 0; n < kLevels; ++n) {
      point[n] = lanes * F::kLevel[0][n];
      if (F::kVariants == 2) point[n] = select(shifted, lanes * F::kLevel[F::kVariants - 1][n], point[n]);
    }
  }

  // The exact best rows of every sub-block at its scale, with the given variants.
  void search(const GridBook<F>& book, const Subs& scale, const LaneInts* shifted, Choice* out) const {
    for (int set = 0; set < kSets; ++set) {
      Lanes point[kLevels], low[F::kKeys], high[F::kKeys];
      points(scale, shifted[set], point);
      fill_costs(w_[set], importance_[set], point, false, low);
      fill_costs(w_[set] + kHalf, importance_[set] + kHalf, point, true, high);
      book.table.search(low, high, &out->cost[set], &out->pair[set]);
      for (int i = 0; F::kVariants == 2 && i < LaneInts::kVectors; ++i) {
        out->pair[set].v[i] |= shifted[set].v[i] & kVariantBit;
      }
    }
    out->scale = scale;
    out->error = sum_of_groups(out->cost);
  }

  // The exact best rows and flips.
  void search_flips(const GridBook<F>& book, const Subs& scale, Choice* out) const {
    Choice plain, in_low, in_high;
    for (int set = 0; set < kSets; ++set) {
      Lanes point[kLevels], low[F::kKeys], high[F::kKeys], flipped[F::kKeys];
      LaneInts odd;
      for (int i = 0; i < LaneInts::kVectors; ++i) {
        const int g = set * kGroupsPerSet + i / kSubVectors;
        odd.v[i] = odd_[g * kDims / 8][i % kSubVectors];
      }
      const LaneInts none = LaneInts::all(0);
      points(scale, none, point);
      fill_flipped(w_[set], importance_[set], point, none, false, low);
      fill_flipped(w_[set] + kHalf, importance_[set] + kHalf, point, none, true, high);
      if (kDims == 4) book.table.search(low, high, &plain.cost[set], &plain.pair[set]);
      fill_flipped(w_[set], importance_[set], point, odd, false, flipped);
      book.table.search(flipped, high, &in_low.cost[set], &in_low.pair[set]);
      fill_flipped(w_[set] + kHalf, importance_[set] + kHalf, point, odd, true, flipped);
      book.table.search(low, flipped, &in_high.cost[set], &in_high.pair[set]);
    }
    *out = in_low;
    out->keep_better_groups(in_high);
    if constexpr (kDims == 4) flip_one_of_two(plain, out);
    out->scale = scale;
    out->error = sum_of_groups(out->cost);
  }

  // Of the two rows that share a parity one keeps its signs: out holds rows with a flip, plain without.
  static void flip_one_of_two(const Choice& plain, Choice* out) {
    for (int g = 0; g < kGroupsPerSub; g += 2) {
      for (int i = 0; i < kSubVectors; ++i) {
        const FloatVec first = part(out->cost, g, i) + part(plain.cost, g + 1, i);
        const FloatVec second = part(plain.cost, g, i) + part(out->cost, g + 1, i);
        const IntVec in_second = second < first;
        part(out->cost, g, i) = in_second ? part(plain.cost, g, i) : part(out->cost, g, i);
        part(out->pair, g, i) = in_second ? part(plain.pair, g, i) : part(out->pair, g, i);
        part(out->cost, g + 1, i) = in_second ? part(out->cost, g + 1, i) : part(plain.cost, g + 1, i);
        part(out->pair, g + 1, i) = in_second ? part(out->pair, g + 1, i) : part(plain.pair, g + 1, i);
      }
    }
  }

  // The same with the better variant of each row.
  void search_variants(const GridBook<F>& book, const Subs& scale, Choice* out) const {
    LaneInts shifted[kSets];
    same_variant(0, shifted);
    search(book, scale, shifted, out);
    if (F::kVariants == 1) return;
    Choice other;
    same_variant(1, shifted);
    search(book, scale, shifted, &other);
    out->keep_better_groups(other);
  }

  static void same_variant(int v, LaneInts* shifted) {
    for (int set = 0; set < kSets; ++set) shifted[set] = LaneInts::all(-v);
  }

  static void variants_of(const Choice& choice, LaneInts* shifted) {
    for (int set = 0; set < kSets; ++set) {
      for (int i = 0; i < LaneInts::kVectors; ++i) shifted[set].v[i] = (choice.pair[set].v[i] & kVariantBit) != 0;
    }
  }

  // What the rows would cost if every combination of levels were in the codebook: cheap, and lowest at nearly the same
  // scale.
  void estimate(const Subs& scale, int v, Lanes* cost) const {
    Lanes point[kLevels];
    points(scale, LaneInts::all(-v), point);
    for (int set = 0; set < kSets; ++set) {
      for (int i = 0; i < Lanes::kVectors; ++i) {
        FloatVec sum = {};
        for (int j = 0; j < kDims; ++j) {
          FloatVec least = FloatVec{} + kWorst;
          for (int n = 0; n < kLevels; ++n) {
            const FloatVec off = w_[set][j].v[i] - point[n].v[i];
            least = min(off * off, least);
          }
          sum = sum + importance_[set][j].v[i] * least;
        }
        cost[set].v[i] = sum;
      }
    }
  }

  // Per sub-block the scale at which the estimate is lowest; for each variant if sub-blocks choose one.
  void likely_scales(const GridEffort& effort, Subs* likely, Subs* lowest) const {
    float factor = F::kUsualScale;
    for (int t = 1; t < effort.estimates; t += 2) factor /= kEstimateStep;
    Subs scale = rms_ * factor;
    for (int v = 0; v < kScaleSets; ++v) {
      lowest[v] = Subs::all(kWorst);
      likely[v] = scale;
    }
    for (int t = 0; effort.estimates > 1 && t < effort.estimates; ++t) {
      for (int v = 0; v < kScaleSets; ++v) {
        Lanes cost[kSets], other[kSets];
        estimate(scale, v, cost);
        if (F::kVariantPerGroup) {
          estimate(scale, 1, other);
          for (int set = 0; set < kSets; ++set) cost[set] = select(less(other[set], cost[set]), other[set], cost[set]);
        }
        const Subs error = sum_of_groups(cost);
        const Ints<kSubs> better = less(error, lowest[v]);
        lowest[v] = select(better, error, lowest[v]);
        likely[v] = select(better, scale, likely[v]);
      }
      scale = scale * kEstimateStep;
    }
  }

  // along = sum importance * w * code and square = sum importance * code^2: along / square is the best scale of the
  // rows.
  void moments(const GridBook<F>& book, const Choice& choice, Subs* along, Subs* square) const {
    for (int b = 0; b < kSubs; ++b) {
      Floats<8> sum = Floats<8>::all(0.0f), squares = sum;
      for (int k = 0; k < kEights; ++k) {
        const Floats<8> code = codes(book, choice, b, k);
        const Floats<8> weighted = Floats<8>::load(input_.importance + b * kSubSize + 8 * k) * code;
        sum = sum + weighted * Floats<8>::load(input_.w + b * kSubSize + 8 * k);
        squares = squares + weighted * code;
      }
      along->set(b, sum_8(sum));
      square->set(b, sum_8(squares));
    }
  }

  static Floats<8> codes(const GridBook<F>& book, const Choice& choice, int b, int k) {
    using Bytes = int8_t __attribute__((vector_size(8)));
    using Eight = float __attribute__((vector_size(32)));
    Bytes code;
    for (int h = 0; h < 8 / kDims; ++h) {
      const int32_t pair = choice.pair_of(b, 8 / kDims * k + h);
      memcpy(reinterpret_cast<char*>(&code) + h * kDims, book.code[book.table.row[pair & (kVariantBit - 1)]],
             sizeof book.code[0]);
    }
    const Eight wide = __builtin_convertvector(code, Eight);
    Floats<8> out;
    memcpy(out.v, &wide, sizeof out.v);
    if (F::kVariants == 1) return out;
    return out + Floats<8>::all(F::kLevel[choice.pair_of(b, k) & kVariantBit ? F::kVariants - 1 : 0][1]);
  }

  // The best scale of the rows, zero where there is none.
  static Subs best_scale(const Subs& along, const Subs& square) {
    const Subs zero = Subs::all(0.0f);
    return select(less(zero, along), along / square, zero);
  }

  // Sub-blocks of nearly equal magnitudes are best as rows of the lowest level alone, at a scale far from the usual.
  // True if one would gain by it; the others get the scale that they have.
  bool flat_scales(const Choice& best, Subs* scale) const {
    Lanes sums[kSets], rests[kSets], mean;
    for (int set = 0; set < kSets; ++set) {
      sums[set] = Lanes::all(0.0f);
      for (int j = 0; j < kDims; ++j) sums[set] = sums[set] + importance_[set][j] * w_[set][j];
    }
    const Subs means = sum_of_groups(sums) / total_;
    spread(means, &mean);
    for (int set = 0; set < kSets; ++set) {
      rests[set] = Lanes::all(0.0f);
      for (int j = 0; j < kDims; ++j) {
        const Lanes off = w_[set][j] - mean;
        rests[set] = rests[set] + importance_[set][j] * off * off;
      }
    }
    Ints<kSubs> flat = less(sum_of_groups(rests), best.error);
    const Ints<kSubs> positive = less(Subs::all(0.0f), means);
    for (int i = 0; i < kSubVectors; ++i) flat.v[i] &= positive.v[i];
    *scale = select(flat, means * (1.0f / F::kLevel[0][0]), best.scale);
    return any(flat);
  }

  // The scale that each sub-block wants for itself, and its curvature.
  void search_scales(const GridBook<F>& book, const GridEffort& effort, Choice* best, Subs* square) const {
    LaneInts shifted_of[kScaleSets][kSets], shifted[kSets];
    Subs likely[kScaleSets], lowest[kScaleSets], along;
    Choice other;
    likely_scales(effort, likely, lowest);
    best->error = Subs::all(kWorst);
    int sets = kScaleSets;
    for (int v = 0; v < kScaleSets; ++v) same_variant(v, shifted_of[v]);
    if (kScaleSets == 2 && !effort.all_variants) {
      const Ints<kSubs> second = less(lowest[kScaleSets - 1], lowest[0]);
      likely[0] = select(second, likely[kScaleSets - 1], likely[0]);
      for (int i = 0; i < LaneInts::kVectors; ++i) shifted_of[0][0].v[i] = second.v[i % kSubVectors];
      sets = 1;
    }
    for (int v = 0; v < sets; ++v) {
      float factor = effort.first_trial;
      for (int t = 0; t < effort.trials; ++t, factor *= effort.trial_step) {
        if (F::kVariantPerGroup) {
          search_variants(book, likely[v] * factor, &other);
        } else {
          search(book, likely[v] * factor, shifted_of[v], &other);
        }
        best->keep_better_subs(other);
      }
    }
    moments(book, *best, &along, square);
    for (int p = 0; p < effort.polishes; ++p) {
      variants_of(*best, shifted);
      search(book, best_scale(along, *square), shifted, &other);
      best->keep_better_subs(other);
      moments(book, *best, &along, square);
    }
    Subs flat;
    if (F::kSigned && flat_scales(*best, &flat)) {
      variants_of(*best, shifted);
      search(book, flat, shifted, &other);
      best->keep_better_subs(other);
      moments(book, *best, &along, square);
    }
    best->scale = best_scale(along, *square);
  }

  // Rows and integers for the rounded d, then the d that suits them best. Returns the error before that last step,
  // the block's energy if zeros are no worse.
  float finish(const GridBook<F>& book, const GridEffort& effort, const Choice& wanted) {
    LaneInts shifted[kSets];
    Subs want = wanted.scale;
    float least = input_.energy;
    variants_of(wanted, shifted);
    for (int round = 0; round < effort.rounds; ++round) {
      const float d = input_.scaled(float_from_half(result.half));
      if (!(d > 0.0f && d < kTooCoarse)) break;
      Choice best, other;
      Subs along, square;
      const Subs position = want * (1.0f / (d * F::kUnits.step)) - Subs::all(F::kUnits.offset);
      const bool both = effort.integers == 2;
      const float last = static_cast<float>(F::kUnits.max_code);
      Subs code =
          truncated(both ? clamped(position, 0.0f, last - 1.0f) : clamped(position + Subs::all(0.5f), 0.0f, last));
      search_round(book, effort, units_of(code) * d, shifted, &best);
      if (both) {
        const Subs next = code + Subs::all(1.0f);
        search_round(book, effort, units_of(next) * d, shifted, &other);
        code = select(less(other.error, best.error), next, code);
        best.keep_better_subs(other);
      }
      if (F::kParity && effort.parity) take_flips(book, best);
      moments(book, best, &along, &square);
      const Subs units = units_of(code);
      float error = 0.0f, total_along = 0.0f, total_square = 0.0f;
      for (int b = 0; b < kSubs; ++b) {
        error += best.error.get(b);
        total_along += along.get(b) * units.get(b);
        total_square += square.get(b) * units.get(b) * units.get(b);
      }
      if (!(error < least && total_along > 0.0f)) break;
      least = error;
      result.half = half_from_float(input_.unscaled(total_along / total_square));
      if (result.half >= kHalfInfinity) return least;
      for (int b = 0; b < kSubs; ++b) result.scale_code[b] = static_cast<int>(code.get(b));
      take_rows(book, best);
      want = best_scale(along, square);
      variants_of(best, shifted);
    }
    return least;
  }

  static Subs units_of(const Subs& code) { return (code + Subs::all(F::kUnits.offset)) * F::kUnits.step; }

  void search_round(const GridBook<F>& book, const GridEffort& effort, const Subs& scale, const LaneInts* shifted,
                    Choice* out) const {
    if (F::kVariantPerGroup && effort.all_variants) {
      search_variants(book, scale, out);
    } else if (F::kParity && effort.parity) {
      search_flips(book, scale, out);
    } else {
      search(book, scale, shifted, out);
    }
  }

  void take_rows(const GridBook<F>& book, const Choice& choice) {
    for (int b = 0; b < kSubs; ++b) {
      for (int g = 0; g < kGroupsPerSub; ++g) {
        const int32_t pair = choice.pair_of(b, g);
        result.row[b * kGroupsPerSub + g] = book.table.row[pair & (kVariantBit - 1)];
        result.variant[b * kGroupsPerSub + g] = (pair & kVariantBit) != 0;
      }
    }
  }

  BlockInput input_;
  IntVec odd_[kEights][kSubVectors];  // eights of the wrong parity
  Subs rms_;                          // of a sub-block, weighted by importance
  Subs total_;                        // importance of a sub-block
  Lanes w_[kSets][kDims];
  Lanes importance_[kSets][kDims];
};

template <typename F>
void build_grid_book(GridBook<F>* book) {
  uint8_t level[F::kRows][F::kDims];
  for (int r = 0; r < F::kRows; ++r) {
    for (int j = 0; j < F::kDims; ++j) {
      level[r][j] = static_cast<uint8_t>(F::level_of(static_cast<uint8_t>(F::codebook().row[r] >> (8 * j))));
    }
  }
  int8_t value[F::kLevels];
  for (int n = 0; n < F::kLevels; ++n) {
    value[n] = static_cast<int8_t>(F::kLevel[0][n] - (F::kVariants == 2 ? F::kLevel[0][1] : 0.0f));
  }
  book->build(level, value);
}

// The search tables of a format, built at the first use.
template <typename F>
const GridBook<F>& grid_book() {
  return made_once<GridBook<F>, build_grid_book<F>>();
}

// Whether a few columns of a block carry most of its importance. Then few scales serve these and the other columns, and
// a short search misses them.
static inline bool concentrated(const float* importance) {
  float most = 0.0f, total = 0.0f;
  for (int i = 0; i < 256; ++i) {
    most = importance[i] > most ? importance[i] : most;
    total += importance[i];
  }
  return most > kConcentrated / 256.0f * total;
}

template <typename F>
bool pack_grid_row(const float* w, const float* importance, int64_t cols, Effort effort, uint8_t* blocks) {
  using Block = typename F::Block;
  const GridBook<F>& book = grid_book<F>();
  const Effort more = effort == Effort::kFast ? Effort::kDefault : Effort::kBest;
  GridBlock<F> block;
  for (int64_t c = 0; c < cols; c += Block::kBlockSize, blocks += Block::kBlockBytes) {
    const Effort chosen = concentrated(importance + c) ? more : effort;
    if (!block.quantise(book, w + c, importance + c, F::kEffort[static_cast<int>(chosen)])) return false;
    F::store(block.result, reinterpret_cast<Block*>(blocks));
  }
  return true;
}

template <typename F>
constexpr Packer grid_packer() {
  return {pack_grid_row<F>, [] { grid_book<F>(); }};
}
