// One small pool of threads for the CPU kernels.
//
// No thread exists before the first parallel call. A worker that finds no work spins for a moment, then parks, and so does
// a caller whose workers still have work: another process on the same cores is not starved. After fork the child starts
// with an empty pool. A call that finds the pool busy (another thread of the program is in it, or the call is made from
// inside another) works on the calling thread, until the pool is free.
//
// Workers run on the processors of the process (processors.h), also if the thread that starts them has pinned itself to
// one of them. They are as many for every caller: a pinned one takes its own pieces where it is.
#pragma once
#include "../parallel.h"

namespace lutkern {

// Works on every item of 0 .. n - 1 once, in ranges of grain items. Of T threads, number i begins with the i-th part of
// the items, in order; one that has finished its part takes ranges from the ends of the others.
// The signature is that of Runner; context is the number of threads as an integer, zero for num_threads().
void parallel_for(void* context, int64_t n, int64_t grain, RangeFn fn, void* state);

// Threads of the next parallel call, the caller included.
int num_threads();
// 0: LUTKERN_NUM_THREADS, else the processors that this process may use now (affinity mask and control groups). The
// first call of an operation does the same, if nobody has.
void set_num_threads(int n);
// The text of LUTKERN_NUM_THREADS if it is not a number of threads, else null.
const char* invalid_thread_count();

}  // namespace lutkern
