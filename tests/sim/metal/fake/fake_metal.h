// What tests ask of libobjc_fake.so, beside the functions of the Objective-C runtime and of Metal.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// How many are alive: objects of a class by its name ("MTLBuffer"), "objects" of all classes, "pools" of this thread,
// "pooled": objects that lie in its pools, "pending": command buffers that were committed and are not done; -1 for
// another name.
int fake_metal_alive(const char* what);
// How often until now: "calls" that may fail, "dispatches" that ran, "commits", "libraries" compiled, "waits",
// messages to "nil"; 0 for another name.
int64_t fake_metal_count(const char* what);
// Bytes of buffers that a device has allocated; without those that lie in the memory of the CPU.
uint64_t fake_metal_bytes(int device);
// The call that failed because the settings asked for it, "-[MTLDevice newCommandQueue]", or "".
const char* fake_metal_failed_call(void);
// What was wrong with work, or "".
const char* fake_metal_fault(void);
// The kernels that ran, in order, one a line.
const char* fake_metal_kernels(void);
// Runs all work that is committed.
void fake_metal_finish(void);

#ifdef __cplusplus
}
#endif
