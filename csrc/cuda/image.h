// The kernels as the driver loads them, embedded at build time (cmake/cuda.cmake).
#pragma once
#include <stddef.h>

namespace lutkern {
namespace cuda {

// Names of their own: the assembler defines them.
extern const unsigned char kImage[] __asm__("lutkern_cuda_image");  // a fat binary: code for each architecture
extern const size_t kImageBytes __asm__("lutkern_cuda_image_bytes");
extern const char kPtx[] __asm__("lutkern_cuda_ptx");  // for a driver or a device that refuses kImage; ends with 0
extern const char* const kImageArchitectures;          // what it is made for, "75 80 PTX 75"
extern const bool kImageReal;                          // false: placeholders of the same shape, built without nvcc

}  // namespace cuda
}  // namespace lutkern
