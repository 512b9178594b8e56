// One block of a codebook format: rows, signs and scales that minimise the importance-weighted squared error.
//
//   minimise  sum_i importance[i] * (w[i] - d * unit(s) * code[i])^2
//             over d (fp16), s (small integer per sub-block), rows of the codebook, signs (IQ2, IQ3) or shifts (IQ1)
//
// 1. Signs. IQ2 and IQ3 rows hold magnitudes, so a weight takes its own sign. Where the format stores seven signs and
//    lets parity give the eighth, and the parity is wrong, the weight whose flip costs least takes the other sign; from
//    there on it is a negative magnitude, and the row search sees what that costs.
// 2. Scales. As if every combination of levels were a row, the error of a sub-block is estimated at a few scales around
//    its root mean square. Around the lowest estimate a few scales are searched for the exact best rows
//    (grid_search.h), and then the least-squares scale of the best of them.
// 3. d is fitted to the scales that the sub-blocks want (scale_fit.h) and rounded to fp16.
// 4. With that d every sub-block is searched at the two integers around its wanted scale; the better one stays.
// 5. A last least-squares d for everything chosen, rounded to fp16.
//
// A format F gives
//   kRows, kDims      codebook rows of kDims codes
//   kLevels, kKeys    values that a code takes; combinations of a half row, kLevels^(kDims / 2)
//   kSubs             sub-blocks with a scale of their own
//   kSigned, kParity  rows hold magnitudes; seven stored signs for eight weights
//   kVariants         1, or 2 for the two shifts of IQ1; kVariantPerGroup: chosen per row and not per sub-block
//   kLevel[variant][level], kUnits
//   kUsualScale       of a sub-block, relative to its root mean square; kEstimates scales are estimated around it
//   kTrials           scales searched: kFirstTrial times the lowest estimate, and on in ratios of kTrialStep
//   Block, store(GridBlock<F>, Block*), codebook(), level_of(byte of the codebook)

// Added to every cost: a tagged zero would be a subnormal number.
static constexpr float kLeastCost = 1e-30f;

static constexpr float kWorst = 3e38f;

// Ratio of two scales that are estimated one after the other.
static constexpr float kEstimateStep = 1.13f;

template <typename F>
struct GridBook {
  GridTable<F::kRows, F::kKeys> table;
  float code[F::kRows][F::kDims];  // without shift

  // level[row][j]: the level number of a code.
  void build(const uint8_t (*level)[F::kDims], const float* value) {
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
    kGroups = 256 / F::kDims,
    kSets = kGroups / kLanes,
    kGroupsPerSub = kGroups / F::kSubs,
    kSubsPerSet = kLanes / kGroupsPerSub,
    kSubSize = 256 / F::kSubs,
    kHalf = F::kDims / 2,
    kScaleSets = F::kVariants == 2 && !F::kVariantPerGroup ? 2 : 1
  };

  // What the block's bytes are made of.
  uint32_t half;             // d
  int scale_code[F::kSubs];  // s
  uint16_t row[kGroups];
  uint8_t variant[kGroups];
  uint8_t signs[32];  // bit j: weight 8 i + j is negative

  // False: d does not fit fp16.
  bool quantise(const GridBook<F>& book, const float* weights, const float* importance) {
    if (!input_.load(weights, importance)) {
      clear();
      return true;
    }
    measure();
    if (F::kSigned) take_signs();
    arrange();
    Choice wanted;
    float square[F::kSubs];
    search_scales(book, &wanted, square);
    const float d = fit_block_scale(F::kUnits, wanted.scale, square, F::kSubs);
    half = half_reaching(input_.unscaled(d));
    if (half >= kHalfInfinity) return false;
    return finish(book, wanted);
  }

 private:
  struct Choice {
    float scale[F::kSubs];
    float error[F::kSubs];
    float cost[kGroups];  // error of each row
    uint16_t row[kGroups];
    uint8_t variant[kGroups];

    void forget() {
      for (int b = 0; b < F::kSubs; ++b) error[b] = kWorst;
    }

    void take_group(const Choice& from, int g) {
      cost[g] = from.cost[g];
      row[g] = from.row[g];
      variant[g] = from.variant[g];
    }

    // Sub-block by sub-block the better of the two.
    void keep_better_subs(const Choice& other) {
      for (int b = 0; b < F::kSubs; ++b) {
        if (!(other.error[b] < error[b])) continue;
        error[b] = other.error[b];
        scale[b] = other.scale[b];
        for (int g = b * kGroupsPerSub; g < (b + 1) * kGroupsPerSub; ++g) take_group(other, g);
      }
    }

    // Row by row the better of the two; both have the same scales.
    void keep_better_groups(const Choice& other) {
      for (int g = 0; g < kGroups; ++g) {
        if (!(other.cost[g] < cost[g])) continue;
        error[g / kGroupsPerSub] += other.cost[g] - cost[g];
        take_group(other, g);
      }
    }
  };

  void clear() {
    half = 0;
    for (int b = 0; b < F::kSubs; ++b) scale_code[b] = 0;
    for (int g = 0; g < kGroups; ++g) row[g] = variant[g] = 0;
    for (int i = 0; i < 32; ++i) signs[i] = 0;
  }

  void measure() {
    for (int b = 0; b < F::kSubs; ++b) {
      float squares = 0.0f, total = 0.0f;
      for (int i = b * kSubSize; i < (b + 1) * kSubSize; ++i) {
        squares += input_.importance[i] * input_.w[i] * input_.w[i];
        total += input_.importance[i];
      }
      rms_[b] = sqrtf(squares / total);
    }
  }

  // Splits the weights into signs and magnitudes; a flipped weight becomes a negative magnitude. What a flip costs is
  // judged at the usual scale, where the lowest level decodes to low: w and -low differ by w + low, w and its own level
  // by less.
  void take_signs() {
    for (int i = 0; i < 32; ++i) {
      const float low = F::kLevel[0][0] * F::kUsualScale * rms_[8 * i / kSubSize];
      float* w = input_.w + 8 * i;
      const float* a = input_.importance + 8 * i;
      uint32_t minus = 0, parity = 0;
      int cheapest = 0;
      float least = kWorst;
      for (int j = 0; j < 8; ++j) {
        const uint32_t negative = w[j] < 0.0f;
        minus |= negative << j;
        parity ^= negative;
        w[j] = fabsf(w[j]);
        const float cost = a[j] * (w[j] < 2.0f * low ? 4.0f * low * w[j] : (w[j] + 2.0f * low) * w[j]);
        cheapest = cost < least ? j : cheapest;
        least = cost < least ? cost : least;
      }
      if (F::kParity && parity) {
        w[cheapest] = -w[cheapest];
        minus ^= 1u << cheapest;
      }
      signs[i] = static_cast<uint8_t>(minus);
    }
  }

  void arrange() {
    for (int set = 0; set < kSets; ++set) {
      for (int l = 0; l < kLanes; ++l) {
        const int first = (set * kLanes + l) * F::kDims;
        for (int j = 0; j < F::kDims; ++j) {
          w_[set][j].v[l] = input_.w[first + j];
          importance_[set][j].v[l] = input_.importance[first + j];
        }
      }
    }
  }

  // cost[key] of every level combination of half a row, positions w[0] .. w[kHalf - 1]; point[n] is what level n
  // decodes to.
  static void fill_costs(const Lanes* w, const Lanes* importance, const Lanes* point, bool tag, Lanes* cost) {
    enum : int { kPairKeys = F::kLevels * F::kLevels, kPairs = kHalf / 2 };
    Lanes pair[kPairs][kPairKeys];
    for (int p = 0; p < kPairs; ++p) {
      Lanes single[2][F::kLevels];
      for (int j = 0; j < 2; ++j) {
        for (int n = 0; n < F::kLevels; ++n) {
          for (int l = 0; l < kLanes; ++l) {
            const float off = w[2 * p + j].v[l] - point[n].v[l];
            single[j][n].v[l] = importance[2 * p + j].v[l] * off * off + kLeastCost;
          }
        }
      }
      for (int key = 0; key < kPairKeys; ++key) {
        const Lanes& a = single[0][key % F::kLevels];
        const Lanes& b = single[1][key / F::kLevels];
        for (int l = 0; l < kLanes; ++l) pair[p][key].v[l] = a.v[l] + b.v[l];
      }
    }
    for (int key = 0; key < F::kKeys; ++key) {
      const Lanes& a = pair[0][key % kPairKeys];
      const Lanes& b = pair[kPairs - 1][key / kPairKeys];
      const uint32_t name = static_cast<uint32_t>(key);
      if (kPairs == 1) {
        for (int l = 0; l < kLanes; ++l) cost[key].v[l] = tag ? tagged(a.v[l], name) : a.v[l];
      } else if (tag) {
        for (int l = 0; l < kLanes; ++l) cost[key].v[l] = tagged(a.v[l] + b.v[l], name);
      } else {
        for (int l = 0; l < kLanes; ++l) cost[key].v[l] = a.v[l] + b.v[l];
      }
    }
  }

  // What the levels of each lane decode to.
  void points(int set, const float* scale, const uint8_t* variant_of, Lanes* point) const {
    for (int n = 0; n < F::kLevels; ++n) {
      for (int l = 0; l < kLanes; ++l) {
        const int v = F::kVariants == 2 ? variant_of[set * kLanes + l] : 0;
        point[n].v[l] = scale[set * kSubsPerSet + l / kGroupsPerSub] * F::kLevel[v][n];
      }
    }
  }

  // The exact best rows of every sub-block at its scale, with the given variants.
  void search(const GridBook<F>& book, const float* scale, const uint8_t* variant_of, Choice* out) const {
    for (int set = 0; set < kSets; ++set) {
      Lanes point[F::kLevels], low[F::kKeys], high[F::kKeys], cost;
      uint16_t found[kLanes];
      points(set, scale, variant_of, point);
      fill_costs(w_[set], importance_[set], point, false, low);
      fill_costs(w_[set] + kHalf, importance_[set] + kHalf, point, true, high);
      book.table.search(low, high, found, &cost);
      for (int l = 0; l < kLanes; ++l) {
        out->cost[set * kLanes + l] = cost.v[l];
        out->row[set * kLanes + l] = found[l];
        out->variant[set * kLanes + l] = variant_of[set * kLanes + l];
      }
    }
    for (int b = 0; b < F::kSubs; ++b) {
      out->scale[b] = scale[b];
      out->error[b] = 0.0f;
      for (int g = b * kGroupsPerSub; g < (b + 1) * kGroupsPerSub; ++g) out->error[b] += out->cost[g];
    }
  }

  // What the rows would cost if every combination of levels were in the codebook: cheap, and lowest at nearly the same
  // scale.
  void estimate(const float* scale, const uint8_t* variant_of, float* cost) const {
    for (int set = 0; set < kSets; ++set) {
      Lanes point[F::kLevels];
      float sum[kLanes] = {};
      points(set, scale, variant_of, point);
      for (int j = 0; j < F::kDims; ++j) {
        const Lanes& w = w_[set][j];
        float least[kLanes];
        for (int l = 0; l < kLanes; ++l) least[l] = kWorst;
        for (int n = 0; n < F::kLevels; ++n) {
          for (int l = 0; l < kLanes; ++l) {
            const float off = w.v[l] - point[n].v[l];
            least[l] = off * off < least[l] ? off * off : least[l];
          }
        }
        for (int l = 0; l < kLanes; ++l) sum[l] += importance_[set][j].v[l] * least[l];
      }
      for (int l = 0; l < kLanes; ++l) cost[set * kLanes + l] = sum[l];
    }
  }

  // along = sum importance * w * code and square = sum importance * code^2: along / square is the best scale of the
  // rows.
  void moments(const GridBook<F>& book, const Choice& choice, float* along, float* square) const {
    for (int b = 0; b < F::kSubs; ++b) along[b] = square[b] = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      const float* code = book.code[choice.row[g]];
      const float shift = F::kVariants == 2 ? F::kLevel[choice.variant[g]][1] : 0.0f;
      const float* w = input_.w + g * F::kDims;
      const float* a = input_.importance + g * F::kDims;
      float sum = 0.0f, squares = 0.0f;
      for (int j = 0; j < F::kDims; ++j) {
        const float weighted = a[j] * (code[j] + shift);
        sum += weighted * w[j];
        squares += weighted * (code[j] + shift);
      }
      along[g / kGroupsPerSub] += sum;
      square[g / kGroupsPerSub] += squares;
    }
  }

  // Per sub-block the scale at which the estimate is lowest; for each variant if sub-blocks choose one.
  void likely_scales(const uint8_t (*variant_of)[kGroups], float (*likely)[F::kSubs]) const {
    float scale[F::kSubs], lowest[kScaleSets][F::kSubs], cost[F::kVariants][kGroups];
    float factor = F::kUsualScale;
    for (int t = 1; t < F::kEstimates; t += 2) factor /= kEstimateStep;
    for (int b = 0; b < F::kSubs; ++b) {
      scale[b] = rms_[b] * factor;
      for (int v = 0; v < kScaleSets; ++v) lowest[v][b] = kWorst;
    }
    for (int t = 0; t < F::kEstimates; ++t) {
      for (int v = 0; v < F::kVariants; ++v) estimate(scale, variant_of[v], cost[v]);
      for (int g = 0; F::kVariantPerGroup && g < kGroups; ++g) {
        cost[0][g] = cost[1][g] < cost[0][g] ? cost[1][g] : cost[0][g];
      }
      for (int v = 0; v < kScaleSets; ++v) {
        for (int b = 0; b < F::kSubs; ++b) {
          float error = 0.0f;
          for (int g = b * kGroupsPerSub; g < (b + 1) * kGroupsPerSub; ++g) error += cost[v][g];
          if (error < lowest[v][b]) {
            lowest[v][b] = error;
            likely[v][b] = scale[b];
          }
        }
      }
      for (int b = 0; b < F::kSubs; ++b) scale[b] *= kEstimateStep;
    }
  }

  // Sub-blocks of nearly equal magnitudes are best as rows of the lowest level alone, at a scale far from the usual.
  // True if one would gain by it; the others get the scale that they have.
  bool flat_scales(const Choice& best, float* scale) const {
    bool found = false;
    for (int b = 0; b < F::kSubs; ++b) {
      float along = 0.0f, total = 0.0f, rest = 0.0f;
      for (int i = b * kSubSize; i < (b + 1) * kSubSize; ++i) {
        along += input_.importance[i] * input_.w[i];
        total += input_.importance[i];
      }
      const float mean = along / total;
      for (int i = b * kSubSize; i < (b + 1) * kSubSize; ++i) {
        const float off = input_.w[i] - mean;
        rest += input_.importance[i] * off * off;
      }
      const bool flat = mean > 0.0f && rest < best.error[b];
      scale[b] = flat ? mean / F::kLevel[0][0] : best.scale[b];
      found = found || flat;
    }
    return found;
  }

  // The scale that each sub-block wants for itself, and its curvature.
  void search_scales(const GridBook<F>& book, Choice* best, float* square) const {
    uint8_t variant_of[F::kVariants][kGroups];
    float likely[kScaleSets][F::kSubs], scale[F::kSubs], along[F::kSubs];
    Choice other;
    for (int g = 0; g < kGroups; ++g) {
      for (int v = 0; v < F::kVariants; ++v) variant_of[v][g] = static_cast<uint8_t>(v);
    }
    likely_scales(variant_of, likely);
    best->forget();
    for (int v = 0; v < kScaleSets; ++v) {
      float factor = F::kFirstTrial;
      for (int t = 0; t < F::kTrials; ++t, factor *= F::kTrialStep) {
        for (int b = 0; b < F::kSubs; ++b) scale[b] = likely[v][b] * factor;
        search(book, scale, variant_of[v], &other);
        if (F::kVariantPerGroup) {
          Choice shifted;
          search(book, scale, variant_of[1], &shifted);
          other.keep_better_groups(shifted);
        }
        best->keep_better_subs(other);
      }
    }
    moments(book, *best, along, square);
    for (int b = 0; b < F::kSubs; ++b) scale[b] = along[b] > 0.0f ? along[b] / square[b] : 0.0f;
    search(book, scale, best->variant, &other);
    best->keep_better_subs(other);
    if (F::kSigned && flat_scales(*best, scale)) {
      search(book, scale, best->variant, &other);
      best->keep_better_subs(other);
    }
    moments(book, *best, along, square);
    for (int b = 0; b < F::kSubs; ++b) best->scale[b] = along[b] > 0.0f ? along[b] / square[b] : 0.0f;
  }

  // Rows and integers for the rounded d, then the d that suits them best.
  bool finish(const GridBook<F>& book, const Choice& wanted) {
    const float d = input_.scaled(float_from_half(half));
    Choice best, other;
    int below[F::kSubs];
    float scale[F::kSubs], along[F::kSubs], square[F::kSubs];
    float error = 0.0f, total_along = 0.0f, total_square = 0.0f;
    if (!(d > 0.0f && d < kTooCoarse)) {
      clear();
      return true;
    }
    for (int b = 0; b < F::kSubs; ++b) {
      below[b] = F::kUnits.below(wanted.scale[b], d);
    }
    best.forget();
    for (int step = 0; step < 2; ++step) {
      for (int b = 0; b < F::kSubs; ++b) scale[b] = d * F::kUnits.unit(below[b] + step);
      search(book, scale, wanted.variant, &other);
      best.keep_better_subs(other);
    }
    moments(book, best, along, square);
    for (int b = 0; b < F::kSubs; ++b) {
      scale_code[b] = below[b] + (best.scale[b] > d * F::kUnits.unit(below[b]));
      const float unit = F::kUnits.unit(scale_code[b]);
      error += best.error[b];
      total_along += along[b] * unit;
      total_square += square[b] * unit * unit;
    }
    if (!(error < input_.energy && total_along > 0.0f)) {
      clear();
      return true;
    }
    half = half_from_float(input_.unscaled(total_along / total_square));
    for (int g = 0; g < kGroups; ++g) {
      row[g] = best.row[g];
      variant[g] = best.variant[g];
    }
    return half < kHalfInfinity;
  }

  BlockInput<256> input_;
  float rms_[F::kSubs];  // of a sub-block, weighted by importance
  Lanes w_[kSets][F::kDims];
  Lanes importance_[kSets][F::kDims];
};

// The search tables of a format, built at the first use; the compiler makes that thread-safe.
template <typename F>
const GridBook<F>& grid_book() {
  struct Built {
    GridBook<F> book;
    Built() {
      uint8_t level[F::kRows][F::kDims];
      for (int r = 0; r < F::kRows; ++r) {
        for (int j = 0; j < F::kDims; ++j) {
          level[r][j] = static_cast<uint8_t>(F::level_of(static_cast<uint8_t>(F::codebook().row[r] >> (8 * j))));
        }
      }
      float value[F::kLevels];
      for (int n = 0; n < F::kLevels; ++n) {
        value[n] = F::kLevel[0][n] - (F::kVariants == 2 ? F::kLevel[0][1] : 0.0f);
      }
      book.build(level, value);
    }
  };
  static const Built built;
  return built.book;
}

template <typename F>
bool pack_grid_row(const float* w, const float* importance, int64_t cols, Effort, uint8_t* blocks) {
  using Block = typename F::Block;
  const GridBook<F>& book = grid_book<F>();
  GridBlock<F> block;
  for (int64_t c = 0; c < cols; c += Block::kBlockSize, blocks += Block::kBlockBytes) {
    if (!block.quantise(book, w + c, importance + c)) return false;
    F::store(block, reinterpret_cast<Block*>(blocks));
  }
  return true;
}

template <typename F>
constexpr Packer grid_packer() {
  return {pack_grid_row<F>, [] { grid_book<F>(); }};
}
