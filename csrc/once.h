// A value that is made at its first use, by one thread, while others that need it wait.
//
// A static inside of a function would do, but for fork: if another thread is making the value at that moment, the child
// finds the guard of the static held by a thread that it does not have, and waits for ever. pthread_once sees that the
// process is another one, and makes the value anew.
#pragma once
#include <pthread.h>

namespace lutkern {

// make fills a value of zeros; it may run a second time on what a first run left half-made.
template <typename T, void (*kMake)(T*)>
static inline T& made_once() {
  static T value;
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, [] { kMake(&value); });
  return value;
}

}  // namespace lutkern
