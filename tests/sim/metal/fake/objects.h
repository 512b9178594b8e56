// The runtime behind the fake Metal: classes with typed methods, objects that count who keeps them, autorelease pools.
//
// objc_msgSend (send_*.cpp) looks the method up and jumps to it with all arguments as they came: a method is a C++
// function whose parameters are the receiver, the selector and what the host passed. Whatever a program must not do ends
// the process with a line that names class and selector. An object that was freed stays as a name, so that a message to
// it is known.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "settings.h"
#include "signature.h"

#define FAKE_API extern "C" __attribute__((visibility("default")))

namespace fake {

// ---- one thread at a time ----

class Held {
 public:
  Held();

 private:
  std::lock_guard<std::recursive_mutex> hold_;
};

// ---- classes ----

using Selector = const char*;  // each name has one address
using Implementation = void (*)();

struct Method {
  const char* selector;
  Implementation implementation;
  std::string signature;  // without receiver and selector
  int macos;              // the first version that has it; 0: all of them
};

struct Class {
  const char* name;
  std::vector<Method> methods;
  std::vector<Method> class_methods;
  int alive;
};
// Makes it known to objc_getClass. The name is a constant. A method that selectors.h has with other types ends the process.
Class* new_class(const char* name, std::vector<Method> methods, std::vector<Method> class_methods = {});

// A method that runs under the lock
template <auto fn>
struct Locked;
template <typename Result, typename Receiver, typename... Parameters, Result (*fn)(Receiver*, Selector, Parameters...)>
struct Locked<fn> {
  static Result run(Receiver* self, Selector selector, Parameters... parameters) {
    const Held held;
    return fn(self, selector, parameters...);
  }
  static std::string signature() { return Signature<Result(Parameters...)>::text(); }
};
template <auto fn>
Method method(const char* selector, int macos = 0) {
  return Method{selector, reinterpret_cast<Implementation>(&Locked<fn>::run), Locked<fn>::signature(), macos};
}

// ---- objects ----

// The last one who lets go of it destroys it.
class Object {
 public:
  explicit Object(Class* c);  // owned once, by the program
  virtual ~Object();
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  static void operator delete(void*) {}  // its address is never used again

  Class* const isa;
  long owned = 1;   // by the program
  long pooled = 0;  // how often it lies in autorelease pools
  long kept = 0;    // by other objects
};

void own(Object* object);
void disown(Object* object);
// From the program into the pool of this thread, which must be there
void into_pool(Object* object);
template <typename T>
T* autoreleased(T* object) {
  into_pool(object);
  return object;
}
// The parameter must be a living object of the class.
void need_object(Object* object, const Class* c, const char* what);

bool is_freed(const Object* object);

void keep(Object* object);
void let_go(Object* object);

// A reference from object to object; it may be null.
template <typename T>
class Kept {
 public:
  Kept() = default;
  explicit Kept(T* object) : object_(object) {
    if (object_) keep(object_);
  }
  Kept(const Kept& other) : Kept(other.object_) {}
  Kept(Kept&& other) noexcept : object_(other.object_) { other.object_ = nullptr; }
  Kept& operator=(Kept other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Kept() {
    if (object_) let_go(object_);
  }
  T* get() const { return object_; }
  T* operator->() const { return object_; }
  explicit operator bool() const { return object_; }

 private:
  T* object_ = nullptr;
};

// ---- what is wrong ----

// The process ends with "fake metal: -[CLASS SELECTOR]: TEXT", of the method that this thread called last.
[[noreturn]] __attribute__((format(printf, 1, 2))) void stop(const char* text, ...);
// A function that is no method: its name takes the place of the method's. Ends the process in the child of a process
// that used Metal.
void enter_function(const char* name);
// One more call that may fail; true: this one does.
bool fails();
// Work went wrong: told on stderr, and kept for tests.
void fault(const std::string& text);

// ---- for tests ----

void count(const char* what);

}  // namespace fake
