// IQ2_XXS, IQ2_XS, IQ2_S: float -> blocks.
//
//   weight = d * (s + 0.5) / 4 * codebook[row][j] * sign[j]        codebook of {8, 25, 43}
//
// The search is grid_block.h's. Here is what the three formats differ in: the codebook, how many weights share a scale,
// how signs are stored, and the bytes.

template <int kRowCount, int kSubCount, int kSevenSigns>
struct GridIq2 {
  enum : int {
    kRows = kRowCount,
    kDims = 8,
    kLevels = 3,
    kKeys = 81,
    kSubs = kSubCount,
    kSigned = 1,
    kParity = kSevenSigns,
    kVariants = 1,
    kVariantPerGroup = 0
  };
  static constexpr float kLevel[1][3] = {{8.0f, 25.0f, 43.0f}};
  static constexpr GridUnits kUnits = {0.5f, 0.25f, 15};
  static constexpr float kUsualScale = 0.045f;
  static constexpr GridEffort kEffort[3] = {
      {11, 3, 0.9f, 1.15f, 1, 1, 1, 1, true, false},  // default
      {9, 1, 1.03f, 1.0f, 0, 1, 1, 1, false, false},  // fast
      {15, 6, 0.8f, 1.1f, 2, 2, 4, 2, true, false},   // best
  };
  static int level_of(uint8_t code) { return code == 8 ? 0 : code == 25 ? 1 : 2; }
};

template <typename Block>
void store_scales(const int* code, Block* to) {
  for (int k = 0; k < 8; ++k) to->scale[k] = static_cast<uint8_t>(code[2 * k] | code[2 * k + 1] << 4);
}

struct GridIq2Xxs : GridIq2<256, 8, 1> {
  using Block = Iq2Xxs;
  static const auto& codebook() { return kIq2XxsGrid; }
  static void store(const GridBlock<GridIq2Xxs>::Result& from, Block* to) {
    store_u16(to->d, from.half);
    for (int b = 0; b < 8; ++b) {
      uint32_t word = static_cast<uint32_t>(from.scale_code[b]) << 28;
      for (int k = 0; k < 4; ++k) {
        to->group[b].index[k] = static_cast<uint8_t>(from.row[4 * b + k]);
        word |= (from.signs[4 * b + k] & 127u) << (7 * k);
      }
      store_u32(to->group[b].word, word);
    }
  }
};

struct GridIq2Xs : GridIq2<512, 16, 1> {
  using Block = Iq2Xs;
  static const auto& codebook() { return kIq2XsGrid; }
  static void store(const GridBlock<GridIq2Xs>::Result& from, Block* to) {
    store_u16(to->d, from.half);
    for (int i = 0; i < 32; ++i) store_u16(to->word[i], from.row[i] | (from.signs[i] & 127u) << 9);
    store_scales(from.scale_code, to);
  }
};

struct GridIq2S : GridIq2<1024, 16, 0> {
  using Block = Iq2S;
  static const auto& codebook() { return kIq2SGrid; }
  static void store(const GridBlock<GridIq2S>::Result& from, Block* to) {
    store_u16(to->d, from.half);
    for (int k = 0; k < 8; ++k) {
      int high = 0;
      for (int m = 0; m < 4; ++m) high |= (from.row[4 * k + m] >> 8) << (2 * m);
      to->high[k] = static_cast<uint8_t>(high);
    }
    for (int i = 0; i < 32; ++i) {
      to->index[i] = static_cast<uint8_t>(from.row[i]);
      to->sign[i] = from.signs[i];
    }
    store_scales(from.scale_code, to);
  }
};

template <>
constexpr Packer packer_of<Iq2Xxs>() {
  return grid_packer<GridIq2Xxs>();
}

template <>
constexpr Packer packer_of<Iq2Xs>() {
  return grid_packer<GridIq2Xs>();
}

template <>
constexpr Packer packer_of<Iq2S>() {
  return grid_packer<GridIq2S>();
}
