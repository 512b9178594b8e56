// The codebooks, expanded from the generated data to what a decoder loads: one row in one word, weight j in byte j.
#pragma once
#include "port.h"

#define LK_IQ4_VALUES {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}
#define LK_MXFP4_VALUES {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

#if defined(__METAL_VERSION__)
#include "codebook_codes.h"
#else

namespace lutkern {

// 32 bytes before and after: a load of a whole vector that begins or ends at any row stays inside.
template <typename Word, int kRows>
struct Codebook {
  Word before[32 / sizeof(Word)];
  Word row[kRows];
  Word after[32 / sizeof(Word)];
};

// The same rows for machines that look bytes up in registers: low[i] has the first half of the codes of row i, first
// weight lowest, high[i] the second half; value[code] is the weight, repeated where a code has fewer than three bits.
template <int kRows>
struct CodePlanes {
  alignas(64) uint8_t low[kRows];
  uint8_t high[kRows];
  uint8_t value[8];
};

#if !defined(__CUDACC__)
extern LK_TABLE Codebook<uint64_t, 2048> kIq1Grid;    // int8 {-1, 0, 1}
extern LK_TABLE Codebook<uint64_t, 256> kIq2XxsGrid;  // {8, 25, 43}
extern LK_TABLE Codebook<uint64_t, 512> kIq2XsGrid;   // {8, 25, 43}
extern LK_TABLE Codebook<uint64_t, 1024> kIq2SGrid;   // {8, 25, 43}
extern LK_TABLE Codebook<uint32_t, 256> kIq3XxsGrid;  // {4, 12, 20, 28, 36, 44, 52, 62}
extern LK_TABLE Codebook<uint32_t, 512> kIq3SGrid;    // {1, 3, 5, 7, 9, 11, 13, 15}
extern LK_TABLE CodePlanes<256> kIq2XxsPlanes;        // eight codes of two bits
extern LK_TABLE CodePlanes<512> kIq2XsPlanes;         // eight codes of two bits
extern LK_TABLE CodePlanes<1024> kIq2SPlanes;         // eight codes of two bits
extern LK_TABLE CodePlanes<256> kIq3XxsPlanes;        // four codes of three bits
extern LK_TABLE CodePlanes<512> kIq3SPlanes;          // four codes of three bits
extern LK_TABLE Codebook<uint64_t, 128> kSigns;  // byte j is -1 where sign j of a seven-bit sign code is minus, else 1
extern LK_TABLE int8_t kIq4Values[16];           // iq4_nl, iq4_xs
extern LK_TABLE int8_t kMxfp4Values[16];         // twice the e2m1 values
#endif

}  // namespace lutkern

#if defined(__CUDACC__)
#include "codebooks.cpp"
#endif

namespace lutkern {

// Row i of a codebook, weight j in byte j
LK_FN uint64_t iq1_row(uint32_t i) { return kIq1Grid.row[i]; }
LK_FN uint64_t iq2_xxs_row(uint32_t i) { return kIq2XxsGrid.row[i]; }
LK_FN uint64_t iq2_xs_row(uint32_t i) { return kIq2XsGrid.row[i]; }
LK_FN uint64_t iq2_s_row(uint32_t i) { return kIq2SGrid.row[i]; }
LK_FN uint32_t iq3_xxs_row(uint32_t i) { return kIq3XxsGrid.row[i]; }
LK_FN uint32_t iq3_s_row(uint32_t i) { return kIq3SGrid.row[i]; }

}  // namespace lutkern

#endif
