// The fake CUDA driver, for the tests of its host.
#pragma once
#include "device_support.h"

inline int alive(const char* what) { return fake<int(const char*)>("fake_cuda_alive")(what); }
inline int calls() { return fake<int()>("fake_cuda_calls")(); }
inline std::string failed_call() { return fake<const char*()>("fake_cuda_failed_call")(); }
inline std::string fault() { return fake<const char*()>("fake_cuda_fault")(); }
inline void finish() { fake<void()>("fake_cuda_finish")(); }

// device_failures.cpp: each call of the driver fails once. report: a pipe for the number of calls.
void case_nothing_fails(int report);
void case_one_fails();
