// The codebooks for Metal: the generated codes as they are, a quarter of the bytes of whole rows. A row is spread out when it
// is read, in about ten operations for four weights.
#pragma once
#include "port.h"

namespace lutkern {

#include "codebooks.inc"

LK_CODES int8_t kIq4Values[16] = LK_IQ4_VALUES;
LK_CODES int8_t kMxfp4Values[16] = LK_MXFP4_VALUES;

// Four codes of two or three bits to a byte each, first code lowest
LK_FN uint32_t spread2(uint32_t codes) {
  const uint32_t pairs = (codes | codes << 12) & 0x000f000fu;
  return (pairs | pairs << 6) & 0x03030303u;
}
LK_FN uint32_t spread3(uint32_t codes) {
  const uint32_t pairs = (codes | codes << 10) & 0x003f003fu;
  return (pairs | pairs << 5) & 0x07070707u;
}

// Codes in bytes to the weights of their codebook
LK_FN uint32_t iq1_values(uint32_t codes) { return ((codes | 0x80808080u) - 0x01010101u) ^ 0x80808080u; }  // -1, 0, 1
LK_FN uint32_t iq2_values(uint32_t codes) { return 0x08080808u + 17u * codes + ((codes >> 1) & 0x01010101u); }
LK_FN uint32_t iq3_xxs_values(uint32_t codes) {  // 4 + 8 code, but 62 for code 7
  return 0x04040404u + 8u * codes + ((codes & codes >> 1 & codes >> 2 & 0x01010101u) << 1);
}
LK_FN uint32_t iq3_s_values(uint32_t codes) { return 0x01010101u + 2u * codes; }

LK_FN uint64_t iq1_row_of(uint32_t codes) {
  return iq1_values(spread2(codes & 255u)) | static_cast<uint64_t>(iq1_values(spread2(codes >> 8))) << 32;
}
LK_FN uint64_t iq2_row_of(uint32_t codes) {
  return iq2_values(spread2(codes & 255u)) | static_cast<uint64_t>(iq2_values(spread2(codes >> 8))) << 32;
}

// Row i of a codebook, weight j in byte j
LK_FN uint64_t iq1_row(uint32_t i) { return iq1_row_of(kIq1Codes[i]); }
LK_FN uint64_t iq2_xxs_row(uint32_t i) { return iq2_row_of(kIq2XxsCodes[i]); }
LK_FN uint64_t iq2_xs_row(uint32_t i) { return iq2_row_of(kIq2XsCodes[i]); }
LK_FN uint64_t iq2_s_row(uint32_t i) { return iq2_row_of(kIq2SCodes[i]); }
LK_FN uint32_t iq3_xxs_row(uint32_t i) { return iq3_xxs_values(spread3(kIq3XxsCodes[i])); }
LK_FN uint32_t iq3_s_row(uint32_t i) { return iq3_s_values(spread3(kIq3SCodes[i])); }

}  // namespace lutkern
