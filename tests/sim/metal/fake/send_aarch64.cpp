// objc_msgSend for 64-bit ARM: the method gets every register of arguments, and the stack, as the caller left them.
#if !defined(__aarch64__)
#error "built for another processor"
#endif

asm(R"(
  .text
  .globl objc_msgSend
  .type objc_msgSend, %function
objc_msgSend:
  .cfi_startproc
  stp x29, x30, [sp, #-224]!
  .cfi_def_cfa_offset 224
  .cfi_offset x29, -224
  .cfi_offset x30, -216
  mov x29, sp
  stp x0, x1, [sp, #16]
  stp x2, x3, [sp, #32]
  stp x4, x5, [sp, #48]
  stp x6, x7, [sp, #64]
  str x8, [sp, #80]
  stp q0, q1, [sp, #96]
  stp q2, q3, [sp, #128]
  stp q4, q5, [sp, #160]
  stp q6, q7, [sp, #192]
  bl fake_objc_find
  mov x16, x0
  ldp x0, x1, [sp, #16]
  ldp x2, x3, [sp, #32]
  ldp x4, x5, [sp, #48]
  ldp x6, x7, [sp, #64]
  ldr x8, [sp, #80]
  ldp q0, q1, [sp, #96]
  ldp q2, q3, [sp, #128]
  ldp q4, q5, [sp, #160]
  ldp q6, q7, [sp, #192]
  ldp x29, x30, [sp], #224
  .cfi_def_cfa_offset 0
  .cfi_restore x29
  .cfi_restore x30
  br x16
  .cfi_endproc
  .size objc_msgSend, . - objc_msgSend

  // What a message to nil gives: zero, in the register of whatever was asked for
  .globl fake_objc_nothing
  .hidden fake_objc_nothing
  .type fake_objc_nothing, %function
fake_objc_nothing:
  mov x0, #0
  fmov d0, xzr
  ret
  .size fake_objc_nothing, . - fake_objc_nothing
)");
