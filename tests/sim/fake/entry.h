// What every function of the fake driver does first, and what they all ask.
#pragma once
#include <mutex>

#include "machine.h"

#define FAKE_API extern "C" __attribute__((visibility("default")))

namespace fake {

enum Needs { kNothing, kInit, kContextCurrent };

// The lock, and every reason to refuse the call
class Entry {
 public:
  Entry(const char* name, Needs needs, bool gives_back = false);
  // A call that gives something back does so also where it reports an error.
  bool refused() const { return refused_; }
  Result result() const { return result_; }
  // What was asked for is wrong: said on stderr, as a program that asks for it is.
  Result no(Result result, const char* text) const;

 private:
  std::lock_guard<std::recursive_mutex> hold_;
  const char* name_;
  Result result_ = kSuccess;
  bool refused_ = false;
};

ContextHandle* current();
bool is_known(ContextHandle* context);
// 0 and 1 are the default stream, 2 is that of the thread; null: the stream does not exist or is of another context.
StreamHandle* stream_of(Stream handle);
StreamHandle* new_stream(ContextHandle* context, bool blocking);
// A call that must not be made while this thread captures; it spoils the capture.
bool spoils_capture();

}  // namespace fake
