// What tests ask of libcuda_fake.so, beside the functions of the driver.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

// How many are alive: "arrays" of the devices, "streams", "events", "graphs", "pinned" arrays, "contexts" that are
// current on this thread; -1 for another name.
int fake_cuda_alive(const char* what);
// Calls of the driver until now.
int fake_cuda_calls(void);
// The call that failed because the settings asked for it, or "".
const char* fake_cuda_failed_call(void);
// What was wrong with work on a stream, or "".
const char* fake_cuda_fault(void);
// Runs all work that is queued.
void fake_cuda_finish(void);

#ifdef __cplusplus
}
#endif
