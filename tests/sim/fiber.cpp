// Saves the registers that a called function must keep, swaps the stack pointer, and takes them back from the other stack.
#include "fiber.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "asan.h"

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <stdlib.h>
#include <ucontext.h>
#endif

#if defined(__APPLE__)
#define LK_SYMBOL "_lutkern_sim_switch"
#else
#define LK_SYMBOL "lutkern_sim_switch"
#endif

#if defined(__x86_64__)
asm(".text\n.p2align 4\n.globl " LK_SYMBOL
    "\n"
#if !defined(__APPLE__)
    ".hidden " LK_SYMBOL "\n.type " LK_SYMBOL ",@function\n"
#endif
    LK_SYMBOL
    ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  popq %rcx\n"
    "  jmp *%rcx\n");
extern "C" void lutkern_sim_switch(void** save, void* to);
#elif defined(__aarch64__)
asm(".text\n.p2align 4\n.globl " LK_SYMBOL
    "\n"
#if !defined(__APPLE__)
    ".hidden " LK_SYMBOL "\n.type " LK_SYMBOL ",%function\n"
#endif
    LK_SYMBOL
    ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  br x30\n");
extern "C" void lutkern_sim_switch(void** save, void* to);
#endif

namespace lutkern {
namespace sim {

// Frames are larger with red zones.
static size_t stack_bytes() { return (has_asan() ? 512 : 128) * size_t{1024}; }

uintptr_t g_stacks_begin;
uintptr_t g_stacks_end;

bool map_stack(Stack& stack, size_t i, size_t n) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t step = page + stack_bytes();
  if (g_stacks_begin == 0) {
    void* memory = mmap(nullptr, n * step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    g_stacks_begin = reinterpret_cast<uintptr_t>(memory);
    g_stacks_end = g_stacks_begin + n * step;
  }
  uint8_t* low = reinterpret_cast<uint8_t*>(g_stacks_begin) + i * step;
  if (mprotect(low, page, PROT_NONE) != 0) return false;
  stack.low = low + page;
  stack.bytes = stack_bytes();
  return true;
}

void prepare_stack(Stack& stack, void (*entry)()) {
  // What the frames of the last fiber left there: of one that was abandoned, anywhere.
  const size_t used = stack.is_dirty ? stack.bytes : 4096;
  set_poison(static_cast<uint8_t*>(stack.low) + stack.bytes - used, used, false);
  stack.is_dirty = false;
  stack.shadow = nullptr;
  uint8_t* top = static_cast<uint8_t*>(stack.low) + stack.bytes;
#if defined(__x86_64__)
  // Six registers and the entry; on entry the stack pointer is 8 past a multiple of 16, as after a call.
  void** frame = reinterpret_cast<void**>(top - 80);
  memset(frame, 0, 72);
  frame[6] = reinterpret_cast<void*>(entry);
  stack.pointer = frame;
#elif defined(__aarch64__)
  void** frame = reinterpret_cast<void**>(top - 160);
  memset(frame, 0, 160);
  frame[11] = reinterpret_cast<void*>(entry);
  stack.pointer = frame;
#else
  if (stack.pointer == nullptr) stack.pointer = malloc(sizeof(ucontext_t));
  ucontext_t* context = static_cast<ucontext_t*>(stack.pointer);
  getcontext(context);
  context->uc_stack.ss_sp = stack.low;
  context->uc_stack.ss_size = stack.bytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  (void)top;
#endif
}

static Stack* g_left;  // where the running fiber was jumped to from

void arrived(Stack* left) {
  const void* low = nullptr;
  size_t bytes = 0;
  if (!finish_switch(left == nullptr ? nullptr : left->shadow, &low, &bytes)) return;
  if (g_left != nullptr && g_left->low == nullptr) {  // the stack of the process tells its place by being left
    g_left->low = const_cast<void*>(low);
    g_left->bytes = bytes;
  }
}

void jump(Stack& from, Stack& to, bool last) {
  g_left = &from;
  start_switch(last ? nullptr : &from.shadow, to.low, to.bytes);
#if defined(__x86_64__) || defined(__aarch64__)
  lutkern_sim_switch(&from.pointer, to.pointer);
#else
  if (from.pointer == nullptr) from.pointer = malloc(sizeof(ucontext_t));
  swapcontext(static_cast<ucontext_t*>(from.pointer), static_cast<ucontext_t*>(to.pointer));
#endif
  arrived(&from);
}

}  // namespace sim
}  // namespace lutkern
