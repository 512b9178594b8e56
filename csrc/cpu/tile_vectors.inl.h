// The vectors of the tile kernels. Included by each ISA file inside its anonymous namespace, after kVectorBytes.

using Vu8 = uint8_t __attribute__((vector_size(kVectorBytes)));
using Vi8 = int8_t __attribute__((vector_size(kVectorBytes)));
using Vu16 = uint16_t __attribute__((vector_size(kVectorBytes)));
using Vi16 = int16_t __attribute__((vector_size(kVectorBytes)));
using Vu32 = uint32_t __attribute__((vector_size(kVectorBytes)));
using Vi32 = int32_t __attribute__((vector_size(kVectorBytes)));
using Vf32 = float __attribute__((vector_size(kVectorBytes)));
