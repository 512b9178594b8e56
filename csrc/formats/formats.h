// The formats, names only. Everything that enumerates formats expands this list; the order is the enum's order.
#pragma once

#include "bf16.h"
#include "f16.h"
#include "f32.h"
#include "iq1_m.h"
#include "iq1_s.h"
#include "iq2_s.h"
#include "iq2_xs.h"
#include "iq2_xxs.h"
#include "iq3_s.h"
#include "iq3_xxs.h"
#include "iq4_nl.h"
#include "iq4_xs.h"
#include "mxfp4.h"
#include "q2_k.h"
#include "q3_k.h"
#include "q4_0.h"
#include "q4_1.h"
#include "q4_k.h"
#include "q5_0.h"
#include "q5_1.h"
#include "q5_k.h"
#include "q6_k.h"
#include "q8_0.h"
#include "tq1_0.h"
#include "tq2_0.h"

// X(name in GGUF, lower case; block type)
#define LUTKERN_FORMATS(X) \
  X(iq1_s, Iq1S)           \
  X(iq1_m, Iq1M)           \
  X(iq2_xxs, Iq2Xxs)       \
  X(iq2_xs, Iq2Xs)         \
  X(iq2_s, Iq2S)           \
  X(iq3_xxs, Iq3Xxs)       \
  X(iq3_s, Iq3S)           \
  X(tq1_0, Tq10)           \
  X(tq2_0, Tq20)           \
  X(q2_k, Q2K)             \
  X(q3_k, Q3K)             \
  X(q4_k, Q4K)             \
  X(q5_k, Q5K)             \
  X(q6_k, Q6K)             \
  X(iq4_nl, Iq4Nl)         \
  X(iq4_xs, Iq4Xs)         \
  X(mxfp4, Mxfp4)          \
  X(q4_0, Q40)             \
  X(q4_1, Q41)             \
  X(q5_0, Q50)             \
  X(q5_1, Q51)             \
  X(q8_0, Q80)             \
  X(bf16, Bf16)            \
  X(f16, F16)              \
  X(f32, F32)

namespace lutkern {

enum class FormatId : int {
#define LUTKERN_ENUM(name, Block) name,
  LUTKERN_FORMATS(LUTKERN_ENUM)
#undef LUTKERN_ENUM
      count
};

enum : int { kFormatCount = static_cast<int>(FormatId::count) };

}  // namespace lutkern
