// The fake Metal, for the tests of its host.
#pragma once
#include "device_support.h"

inline int alive(const char* what) { return fake<int(const char*)>("fake_metal_alive")(what); }
inline int64_t count(const char* what) { return fake<int64_t(const char*)>("fake_metal_count")(what); }
inline uint64_t bytes_of(int device) { return fake<uint64_t(int)>("fake_metal_bytes")(device); }
inline std::string failed_call() { return fake<const char*()>("fake_metal_failed_call")(); }
inline std::string fault() { return fake<const char*()>("fake_metal_fault")(); }
inline std::string kernels() { return fake<const char*()>("fake_metal_kernels")(); }

// metal_failures.cpp: each call fails once. report: a pipe for the number of calls.
void case_nothing_fails(int report);
void case_one_fails();
