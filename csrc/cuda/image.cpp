#include "image.h"

namespace lutkern {
namespace cuda {

#ifdef LUTKERN_CUDA_IMAGE

// The files go in by the assembler: as initialisers they would take the compiler minutes.
#define LUTKERN_HIDDEN(name) ".globl " name "\n.hidden " name "\n.type " name ", %object\n" name ":\n"
__asm__(
    ".pushsection .rodata\n"
    ".balign 64\n"  //
    LUTKERN_HIDDEN("lutkern_cuda_image") ".incbin \"" LUTKERN_CUDA_IMAGE
    "/kernels.fatbin\"\n"
    ".size lutkern_cuda_image, . - lutkern_cuda_image\n"
    ".balign 8\n"  //
    LUTKERN_HIDDEN("lutkern_cuda_ptx") ".incbin \"" LUTKERN_CUDA_IMAGE
    "/lowered.ptx\"\n"
    ".byte 0\n"
    ".size lutkern_cuda_ptx, . - lutkern_cuda_ptx\n"
    ".balign 8\n"  //
    LUTKERN_HIDDEN("lutkern_cuda_image_bytes")
    ".quad lutkern_cuda_ptx - lutkern_cuda_image\n"
    ".size lutkern_cuda_image_bytes, 8\n"
    ".popsection\n");
extern const char* const kImageArchitectures = LUTKERN_CUDA_MADE_FOR;
extern const bool kImageReal = true;

#else

extern const unsigned char kImage[] = "built without nvcc";
extern const size_t kImageBytes = sizeof(kImage);
extern const char kPtx[] = "built without nvcc";
extern const char* const kImageArchitectures = "";
extern const bool kImageReal = false;

#endif

}  // namespace cuda
}  // namespace lutkern
