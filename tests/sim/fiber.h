// A stack, and a jump from one stack to another: what a fiber needs.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace lutkern {
namespace sim {

struct Stack {
  void* low = nullptr;  // null: the stack of the thread that the process gave us
  size_t bytes = 0;
  void* pointer = nullptr;  // where it was left
  void* shadow = nullptr;   // of AddressSanitizer
  bool is_dirty = false;    // its last fiber was abandoned
};

// Memory for stack i of n, with a page below that nothing may touch; false if there is none. All lie side by side.
bool map_stack(Stack& stack, size_t i, size_t n);
extern uintptr_t g_stacks_begin;
extern uintptr_t g_stacks_end;
inline bool is_stack(uintptr_t p) { return p >= g_stacks_begin && p < g_stacks_end; }
// The next jump to the stack calls entry, which never returns.
void prepare_stack(Stack& stack, void (*entry)());
// Goes on where `to` was left; comes back when something jumps to `from`. last: nothing ever will.
void jump(Stack& from, Stack& to, bool last);
// The first thing that an entry does.
void arrived(Stack* left);

}  // namespace sim
}  // namespace lutkern
