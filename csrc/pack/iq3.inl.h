// IQ3_XXS, IQ3_S: float -> blocks.
//
//   iq3_xxs  weight = d * (s + 0.5) / 2 * codebook[row][j] * sign[j]        codebook of {4, 12, 20, 28, 36, 44, 52, 62}
//   iq3_s    weight = d * (2 s + 1) * codebook[row][j] * sign[j]            codebook of {1, 3, 5, 7, 9, 11, 13, 15}
//
// The search is grid_block.h's; a row is four weights, signs belong to eight.

struct GridIq3 {
  enum : int { kDims = 4, kLevels = 8, kKeys = 64, kSubs = 8, kSigned = 1, kVariants = 1, kVariantPerGroup = 0 };
};

struct GridIq3Xxs : GridIq3 {
  using Block = Iq3Xxs;
  enum : int { kRows = 256, kParity = 1 };
  static constexpr float kLevel[1][8] = {{4.0f, 12.0f, 20.0f, 28.0f, 36.0f, 44.0f, 52.0f, 62.0f}};
  static constexpr GridUnits kUnits = {0.5f, 0.5f, 15};
  static constexpr float kUsualScale = 0.036f;
  static constexpr GridEffort kEffort[3] = {
      {11, 4, 0.85f, 1.13f, 1, 1, 1, 2, true, false},  // default
      {7, 2, 0.9f, 1.2f, 0, 1, 1, 1, false, false},    // fast
      {15, 8, 0.8f, 1.07f, 2, 2, 4, 2, true, false},   // best
  };
  static int level_of(uint8_t code) { return code == 62 ? 7 : code / 8; }
  static const auto& codebook() { return kIq3XxsGrid; }

  static void store(const GridBlock<GridIq3Xxs>::Result& from, Block* to) {
    store_u16(to->d, from.half);
    for (int i = 0; i < 64; ++i) to->index[i] = static_cast<uint8_t>(from.row[i]);
    for (int b = 0; b < 8; ++b) {
      uint32_t word = static_cast<uint32_t>(from.scale_code[b]) << 28;
      for (int k = 0; k < 4; ++k) word |= (from.signs[4 * b + k] & 127u) << (7 * k);
      store_u32(to->word[b], word);
    }
  }
};

struct GridIq3S : GridIq3 {
  using Block = Iq3S;
  enum : int { kRows = 512, kParity = 0 };
  static constexpr float kLevel[1][8] = {{1.0f, 3.0f, 5.0f, 7.0f, 9.0f, 11.0f, 13.0f, 15.0f}};
  static constexpr GridUnits kUnits = {0.5f, 2.0f, 15};
  static constexpr float kUsualScale = 0.145f;
  static constexpr GridEffort kEffort[3] = {
      {11, 3, 0.9f, 1.15f, 1, 1, 1, 1, false, false},   // default
      {11, 2, 0.95f, 1.15f, 0, 1, 1, 1, false, false},  // fast
      {15, 8, 0.8f, 1.07f, 2, 4, 4, 2, false, false},   // best
  };
  static int level_of(uint8_t code) { return code / 2; }
  static const auto& codebook() { return kIq3SGrid; }

  static void store(const GridBlock<GridIq3S>::Result& from, Block* to) {
    store_u16(to->d, from.half);
    for (int k = 0; k < 8; ++k) {
      int high = 0;
      for (int m = 0; m < 8; ++m) high |= (from.row[8 * k + m] >> 8) << m;
      to->high[k] = static_cast<uint8_t>(high);
    }
    for (int i = 0; i < 64; ++i) to->index[i] = static_cast<uint8_t>(from.row[i]);
    for (int i = 0; i < 32; ++i) to->sign[i] = from.signs[i];
    for (int k = 0; k < 4; ++k) {
      to->scale[k] = static_cast<uint8_t>(from.scale_code[2 * k] | from.scale_code[2 * k + 1] << 4);
    }
  }
};

template <>
constexpr Packer packer_of<Iq3Xxs>() {
  return grid_packer<GridIq3Xxs>();
}

template <>
constexpr Packer packer_of<Iq3S>() {
  return grid_packer<GridIq3S>();
}
