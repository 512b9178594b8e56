// The Objective-C runtime, found when it is first needed: nothing of Apple's is linked, and no header of it is included.
//
// objc::new_buffer(device, bytes, options) sends the message of that name in selectors.h, with its types. A message to null
// does nothing and returns zero, as in Objective-C.
//
// A function that fails returns false and keeps its reason, one line that names the call: failure().
#pragma once
#include <stddef.h>

#include "selectors.h"

namespace lutkern {
namespace metal {

// ---- failing ----

enum class Cause { device, memory };

struct Failure {
  Cause cause;
  char text[400];
};

// Of the last function that returned false on this thread
const Failure& failure();
// Keeps the text; returns false.
__attribute__((format(printf, 2, 3))) bool failed(Cause cause, const char* text, ...);
// Keeps "CALL failed: what the NSError says"; null: nothing is said.
bool failed_call(const char* call, Id error);

// ---- the one runtime of the process ----

// Loads it at the first call. False: there is none, or this is the child of a process that used Metal.
bool find_runtime();
// 1000 * major + 10 * minor of macOS; 0 where it is not known. After find_runtime()
int system_version();
// Why find_runtime() returned false
const char* no_runtime();
// True in the child of a process that used Metal: no message may be sent there, not even to release.
bool is_forked();

enum class MessageId : int {
#define LUTKERN_MESSAGE_ID(name, owner, selector, result, parameters) name,
  LUTKERN_OBJC_MESSAGES(LUTKERN_MESSAGE_ID)
#undef LUTKERN_MESSAGE_ID
};

enum class ClassId : int {
#define LUTKERN_CLASS_ID(name) name,
  LUTKERN_OBJC_CLASSES(LUTKERN_CLASS_ID)
#undef LUTKERN_CLASS_ID
};

enum : int {
#define LUTKERN_ONE_MESSAGE(name, owner, selector, result, parameters) +1
#define LUTKERN_ONE_CLASS(name) +1
  kMessages = LUTKERN_OBJC_MESSAGES(LUTKERN_ONE_MESSAGE),
  kClasses = LUTKERN_OBJC_CLASSES(LUTKERN_ONE_CLASS)
#undef LUTKERN_ONE_CLASS
#undef LUTKERN_ONE_MESSAGE
};

struct Runtime {
  Id (*get_class)(Text);
  SelectorId (*register_name)(Text);
  void (*send)();
  void* (*push_pool)();
  void (*pop_pool)(void*);
  Id (*copy_all_devices)();
  int (*read_system)(Text, void*, size_t*, void*, size_t);  // null: unknown
  SelectorId selector[kMessages];
  Id classes[kClasses];
};

// Filled by find_runtime()
extern Runtime g_runtime;

// ---- sending ----

template <class Function>
struct Message;

template <class Result, class... Parameters>
struct Message<Result(Parameters...)> {
  MessageId id;

  SelectorId selector() const { return g_runtime.selector[static_cast<int>(id)]; }
  Result operator()(Id object, Parameters... parameters) const {
    using Call = Result (*)(Id, SelectorId, Parameters...);
    return reinterpret_cast<Call>(g_runtime.send)(object, selector(), parameters...);
  }
};

namespace objc {
#define LUTKERN_MESSAGE(name, owner, selector, result, parameters) \
  inline constexpr Message<result parameters> name{MessageId::name};
LUTKERN_OBJC_MESSAGES(LUTKERN_MESSAGE)
#undef LUTKERN_MESSAGE
}  // namespace objc

enum Number : int64_t {
#define LUTKERN_NUMBER(name, metal_name, value) name = value,
  LUTKERN_METAL_NUMBERS(LUTKERN_NUMBER)
#undef LUTKERN_NUMBER
};

inline Id class_of(ClassId id) { return g_runtime.classes[static_cast<int>(id)]; }

// What is autoreleased while this lives goes when it ends: around everything that sends messages.
class Pool {
 public:
  Pool() : pool_(g_runtime.push_pool()) {}
  ~Pool() { g_runtime.pop_pool(pool_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

 private:
  void* pool_;
};

// An object that belongs to us
class Owned {
 public:
  Owned() = default;
  explicit Owned(Id object) : object_(object) {}
  ~Owned() { reset(); }
  Owned(Owned&& other) noexcept : object_(other.take()) {}
  Owned& operator=(Owned&& other) noexcept {
    if (this != &other) reset(other.take());
    return *this;
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  Id get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }
  Id take() {
    const Id object = object_;
    object_ = nullptr;
    return object;
  }
  void reset(Id object = nullptr) {
    if (object_) objc::release(object_);
    object_ = object;
  }

 private:
  Id object_ = nullptr;
};

// One more owner of an object that somebody else owns
inline Owned retained(Id object) { return Owned(objc::retain(object)); }

// An NSString; goes with the pool.
inline Id string_of(const char* text) { return objc::string(class_of(ClassId::NSString), text); }
// The text of an NSString, cut to fit, in one line
void copy_text(Id string, char* out, size_t size);

}  // namespace metal
}  // namespace lutkern
