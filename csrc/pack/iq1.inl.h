// IQ1_S, IQ1_M: float -> blocks.
//
//   weight = d * (2 s + 1) * (codebook[row][j] + shift)        codebook of {-1, 0, 1}, shift +1/8 or -1/8
//
// The search is grid_block.h's. The rows carry the signs; the two shifts are two variants of the codebook, chosen for
// 32 weights in IQ1_S and for each row in IQ1_M.

struct GridIq1 {
  enum : int { kRows = 2048, kDims = 8, kLevels = 3, kKeys = 81, kSigned = 0, kParity = 0, kVariants = 2 };
  static constexpr float kLevel[2][3] = {{-0.875f, 0.125f, 1.125f}, {-1.125f, -0.125f, 0.875f}};
  static constexpr GridUnits kUnits = {0.5f, 2.0f, 7};
  static int level_of(uint8_t code) { return static_cast<int8_t>(code) + 1; }
  static const auto& codebook() { return kIq1Grid; }
};

struct GridIq1S : GridIq1 {
  using Block = Iq1S;
  enum : int { kSubs = 8, kVariantPerGroup = 0 };
  static constexpr float kUsualScale = 1.2f;
  static constexpr GridEffort kEffort[3] = {
      {7, 1, 1.03f, 1.0f, 0, 1, 1, 1, false, true},   // default
      {7, 1, 1.03f, 1.0f, 0, 1, 1, 1, false, false},  // fast
      {11, 4, 0.9f, 1.1f, 2, 1, 4, 2, false, true},   // best
  };

  static void store(const GridBlock<GridIq1S>::Result& from, Block* to) {
    store_u16(to->d, from.half);
    for (int i = 0; i < 32; ++i) to->index[i] = static_cast<uint8_t>(from.row[i]);
    for (int b = 0; b < 8; ++b) {
      uint32_t word = static_cast<uint32_t>(from.scale_code[b]) << 12 | static_cast<uint32_t>(from.variant[4 * b])
                                                                            << 15;
      for (int k = 0; k < 4; ++k) word |= static_cast<uint32_t>(from.row[4 * b + k] >> 8) << (3 * k);
      store_u16(to->word[b], word);
    }
  }
};

struct GridIq1M : GridIq1 {
  using Block = Iq1M;
  enum : int { kSubs = 16, kVariantPerGroup = 1 };
  static constexpr float kUsualScale = 1.2f;
  static constexpr GridEffort kEffort[3] = {
      {7, 2, 0.95f, 1.15f, 1, 1, 1, 2, false, false},  // default
      {7, 1, 1.03f, 1.0f, 0, 1, 1, 1, false, false},   // fast
      {11, 4, 0.9f, 1.1f, 2, 2, 4, 2, false, true},    // best
  };

  static void store(const GridBlock<GridIq1M>::Result& from, Block* to) {
    for (int i = 0; i < 32; ++i) to->index[i] = static_cast<uint8_t>(from.row[i]);
    for (int k = 0; k < 16; ++k) {
      const int low = from.row[2 * k] >> 8 | from.variant[2 * k] << 3;
      const int high = from.row[2 * k + 1] >> 8 | from.variant[2 * k + 1] << 3;
      to->high[k] = static_cast<uint8_t>(low | high << 4);
    }
    for (int k = 0; k < 4; ++k) {
      uint32_t word = ((from.half >> (4 * k)) & 15u) << 12;
      for (int m = 0; m < 4; ++m) word |= static_cast<uint32_t>(from.scale_code[4 * k + m]) << (3 * m);
      store_u16(to->word[k], word);
    }
  }
};

template <>
constexpr Packer packer_of<Iq1S>() {
  return grid_packer<GridIq1S>();
}

template <>
constexpr Packer packer_of<Iq1M>() {
  return grid_packer<GridIq1M>();
}
