// The kernels as the driver loads them: a fat binary, embedded at build time (cmake/cuda.cmake).
#pragma once
#include <stddef.h>

namespace lutkern {
namespace cuda {

// Names of their own: the assembler defines them.
extern const unsigned char kImage[] __asm__("lutkern_cuda_image");
extern const size_t kImageBytes __asm__("lutkern_cuda_image_bytes");
extern const char* const kImageArchitectures;  // what it is made for, "75 80 PTX 75"
extern const bool kImageReal;                  // false: a placeholder of the same shape, built without nvcc

}  // namespace cuda
}  // namespace lutkern
