#include "image.h"

namespace lutkern {
namespace cuda {

#ifdef LUTKERN_CUDA_IMAGE

// The file goes in by the assembler: as an initialiser it would take the compiler minutes.
__asm__(
    ".pushsection .rodata\n"
    ".balign 64\n"
    ".globl lutkern_cuda_image\n"
    ".hidden lutkern_cuda_image\n"
    ".type lutkern_cuda_image, %object\n"
    "lutkern_cuda_image:\n"
    ".incbin \"" LUTKERN_CUDA_IMAGE
    "\"\n"
    ".Llutkern_cuda_image_end:\n"
    ".byte 0\n"
    ".size lutkern_cuda_image, . - lutkern_cuda_image\n"
    ".balign 8\n"
    ".globl lutkern_cuda_image_bytes\n"
    ".hidden lutkern_cuda_image_bytes\n"
    ".type lutkern_cuda_image_bytes, %object\n"
    ".size lutkern_cuda_image_bytes, 8\n"
    "lutkern_cuda_image_bytes:\n"
    ".quad .Llutkern_cuda_image_end - lutkern_cuda_image\n"
    ".popsection\n");
extern const char* const kImageArchitectures = LUTKERN_CUDA_MADE_FOR;
extern const bool kImageReal = true;

#else

extern const unsigned char kImage[] = "built without nvcc";
extern const size_t kImageBytes = sizeof(kImage);
extern const char* const kImageArchitectures = "";
extern const bool kImageReal = false;

#endif

}  // namespace cuda
}  // namespace lutkern
