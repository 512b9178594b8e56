// Expands the generated codebooks at compile time: the tables are constant data, there is nothing to initialise.
// Device text is one translation unit that includes this file: a device has no linker.
#include "codebooks.h"

namespace lutkern {
namespace {

#include "codebooks.inc"

// A row of the generated data is kWidth-bit codes, first weight lowest; value maps a code to its byte.
template <typename Word, int kWidth, int kRows, int kValues>
constexpr Codebook<Word, kRows> expand(const uint16_t (&codes)[kRows], const int (&value)[kValues]) {
  Codebook<Word, kRows> out{};
  for (int r = 0; r < kRows; ++r) {
    for (unsigned j = 0; j < sizeof(Word); ++j) {
      const int code = (codes[r] >> (kWidth * j)) & ((1 << kWidth) - 1);
      out.row[r] |= static_cast<Word>(static_cast<uint8_t>(value[code])) << (8 * j);
    }
  }
  return out;
}

template <int kRows, int kValues>
constexpr CodePlanes<kRows> planes(const uint16_t (&codes)[kRows], const int (&value)[kValues]) {
  constexpr int kBits = kValues > 4 ? 6 : 8;
  CodePlanes<kRows> out{};
  for (int r = 0; r < kRows; ++r) {
    out.low[r] = static_cast<uint8_t>(codes[r] & (kBits == 8 ? 255 : 63));
    out.high[r] = static_cast<uint8_t>(codes[r] >> kBits);
  }
  const int period = kValues > 4 ? 8 : 4;
  for (int i = 0; i < 8; ++i) out.value[i] = static_cast<uint8_t>(i % period < kValues ? value[i % period] : 0);
  return out;
}

constexpr Codebook<uint64_t, 128> expand_signs() {
  Codebook<uint64_t, 128> out{};
  for (unsigned seven = 0; seven < 128; ++seven) {
    unsigned minus = 0;
    for (unsigned j = 0; j < 7; ++j) minus += (seven >> j) & 1u;
    const unsigned eight = seven | (minus & 1u) << 7;
    for (unsigned j = 0; j < 8; ++j) {
      out.row[seven] |= static_cast<uint64_t>(((eight >> j) & 1u) ? 0xffu : 0x01u) << (8 * j);
    }
  }
  return out;
}

constexpr int kTernary[] = {-1, 0, 1};
constexpr int kIq2Values[] = {8, 25, 43};
constexpr int kIq3XxsValues[] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr int kIq3SValues[] = {1, 3, 5, 7, 9, 11, 13, 15};

}  // namespace

LK_TABLE_DEFINITION Codebook<uint64_t, 2048> kIq1Grid = expand<uint64_t, 2>(kIq1Codes, kTernary);
LK_TABLE_DEFINITION Codebook<uint64_t, 256> kIq2XxsGrid = expand<uint64_t, 2>(kIq2XxsCodes, kIq2Values);
LK_TABLE_DEFINITION Codebook<uint64_t, 512> kIq2XsGrid = expand<uint64_t, 2>(kIq2XsCodes, kIq2Values);
LK_TABLE_DEFINITION Codebook<uint64_t, 1024> kIq2SGrid = expand<uint64_t, 2>(kIq2SCodes, kIq2Values);
LK_TABLE_DEFINITION Codebook<uint32_t, 256> kIq3XxsGrid = expand<uint32_t, 3>(kIq3XxsCodes, kIq3XxsValues);
LK_TABLE_DEFINITION Codebook<uint32_t, 512> kIq3SGrid = expand<uint32_t, 3>(kIq3SCodes, kIq3SValues);
LK_TABLE_DEFINITION int8_t kIq4Values[16] = LK_IQ4_VALUES;
LK_TABLE_DEFINITION int8_t kMxfp4Values[16] = LK_MXFP4_VALUES;

// What only vector instructions read
#if !defined(__CUDACC__)
LK_TABLE_DEFINITION CodePlanes<256> kIq2XxsPlanes = planes(kIq2XxsCodes, kIq2Values);
LK_TABLE_DEFINITION CodePlanes<512> kIq2XsPlanes = planes(kIq2XsCodes, kIq2Values);
LK_TABLE_DEFINITION CodePlanes<1024> kIq2SPlanes = planes(kIq2SCodes, kIq2Values);
LK_TABLE_DEFINITION CodePlanes<256> kIq3XxsPlanes = planes(kIq3XxsCodes, kIq3XxsValues);
LK_TABLE_DEFINITION CodePlanes<512> kIq3SPlanes = planes(kIq3SCodes, kIq3SValues);
LK_TABLE_DEFINITION Codebook<uint64_t, 128> kSigns = expand_signs();
#endif

}  // namespace lutkern
