// The Objective-C runtime of the fake: selectors, classes, messages, who keeps what.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <map>
#include <set>
#include <unordered_map>

#include "fake_metal.h"
#include "metal/selectors.h"
#include "objects.h"
#include "work.h"

extern "C" void fake_objc_nothing();

namespace fake {

namespace {

std::recursive_mutex& lock() {
  static auto* m = new std::recursive_mutex;
  return *m;
}

std::vector<Class*>& registered() {
  static auto* all = new std::vector<Class*>;
  return *all;
}

struct Known {
  Class* isa;
  bool freed;
};
std::unordered_map<const void*, Known>& objects() {
  static auto* all = new std::unordered_map<const void*, Known>;
  return *all;
}

std::set<std::string>& selectors() {
  static auto* all = new std::set<std::string>;
  return *all;
}

// Of one thread: a null marks where a pool begins.
struct Pools {
  std::vector<Object*> objects;
  int count = 0;
};
struct ThreadEnd {
  const Pools* pools;
  ~ThreadEnd() {
    if (pools->count) fault("a thread ended inside of an autorelease pool");
  }
};
Pools& pools() {
  static auto* all = new std::vector<Pools*>;  // of every thread
  static thread_local Pools* mine = nullptr;
  if (!mine) {
    all->push_back(mine = new Pools);
    static thread_local ThreadEnd end{mine};
  }
  return *mine;
}

// Calls may come after the objects of a thread are gone: neither this nor the pools of the main thread are ever freed.
std::string& call() {
  static thread_local std::string* mine = nullptr;
  static auto* all = new std::vector<std::string*>;  // of every thread
  if (!mine) all->push_back(mine = new std::string);
  return *mine;
}
pid_t g_process = 0;  // that used the runtime first
int g_calls = 0;
std::string* g_failed_call = new std::string;
std::string* g_fault = new std::string;
std::map<std::string, int64_t>& counts() {
  static auto* all = new std::map<std::string, int64_t>;
  return *all;
}

void destroy_if_unused(Object* object) {
  if (object->owned + object->pooled + object->kept == 0) delete object;
}

const Method* find_method(const std::vector<Method>& methods, const char* selector) {
  for (const Method& m : methods) {
    if (strcmp(m.selector, selector) == 0 && m.macos <= settings().macos) return &m;
  }
  return nullptr;
}

// ---- what every object can do ----

Object* object_retain(Object* self, Selector) {
  own(self);
  return self;
}
void object_release(Object* self, Selector) { disown(self); }
bool object_responds(Object* self, Selector, Selector asked);
const std::vector<Method>& root_methods() {
  static const auto* all = new std::vector<Method>{method<object_retain>("retain"), method<object_release>("release"),
                                                   method<object_responds>("respondsToSelector:")};
  return *all;
}
bool object_responds(Object* self, Selector, Selector asked) {
  return find_method(self->isa->methods, asked) || find_method(root_methods(), asked);
}

// What the host sends
struct Message {
  const char* isa;
  const char* selector;
  std::string signature;
};
const std::vector<Message>& messages() {
  using namespace lutkern::metal;
  static const auto* all = new std::vector<Message>{
#define LUTKERN_MESSAGE(name, isa, selector, result, parameters) {#isa, selector, Signature<result parameters>::text()},
      LUTKERN_OBJC_MESSAGES(LUTKERN_MESSAGE)
#undef LUTKERN_MESSAGE
  };
  return *all;
}

void check_signatures(const char* isa, const std::vector<Method>& methods) {
  for (const Method& m : methods) {
    for (const Message& sent : messages()) {
      if (strcmp(sent.isa, isa) != 0 || strcmp(sent.selector, m.selector) != 0 || sent.signature == m.signature)
        continue;
      call() = std::string("-[") + isa + " " + m.selector + "]";
      stop("selectors.h has the types %s, the method %s", sent.signature.c_str(), m.signature.c_str());
    }
  }
}

const std::vector<Class*>& classes() {
  if (registered().empty()) {
    check_signatures("NSObject", root_methods());
    make_foundation();
    make_metal();
    make_commands();
  }
  return registered();
}

void write_report() {
  const Held held;
  if (getpid() != g_process || settings().report.empty()) return;
  FILE* file = fopen(settings().report.c_str(), "w");
  if (!file) return;
  fprintf(file, "{\"calls\": %d, \"fault\": \"", g_calls);
  for (const char c : *g_fault) {
    if (c == '"' || c == '\\' || c == '\n') fputc('\\', file);
    fputc(c == '\n' ? 'n' : c, file);
  }
  fputc('"', file);
  for (const auto& [what, n] : counts()) fprintf(file, ", \"%s\": %lld", what.c_str(), static_cast<long long>(n));
  for (const Class* c : classes()) fprintf(file, ", \"%s\": %d", c->name, c->alive);
  fprintf(file, "}\n");
  fclose(file);
}

void begin_process() {
  if (g_process == 0) {
    g_process = getpid();
    classes();
    atexit(write_report);
  }
  if (getpid() != g_process) stop("called in the child of a process that used Metal");
}

Implementation find(void* receiver, Selector selector) {
  const Held held;
  if (!receiver) {
    count("nil");
    return &fake_objc_nothing;
  }
  for (const Class* c : classes()) {
    if (c != receiver) continue;
    call() = std::string("+[") + c->name + " " + selector + "]";
    const Method* m = find_method(c->class_methods, selector);
    if (!m) stop("the class has no such method");
    return m->implementation;
  }
  const auto found = objects().find(receiver);
  if (found == objects().end()) {
    call() = std::string("-[") + "unknown " + selector + "]";
    stop("%p is not an object", receiver);
  }
  const Class* c = found->second.isa;
  call() = std::string("-[") + c->name + " " + selector + "]";
  if (found->second.freed) stop("the object was freed");
  const Method* m = find_method(c->methods, selector);
  if (!m) m = find_method(root_methods(), selector);
  if (!m) stop("the class has no such method");
  if (strncmp(c->name, "MTL", 3) == 0) wander();
  return m->implementation;
}

}  // namespace

Held::Held() : hold_(lock()) {}

Class* new_class(const char* name, std::vector<Method> methods, std::vector<Method> class_methods) {
  check_signatures(name, methods);
  check_signatures(name, class_methods);
  registered().push_back(new Class{name, std::move(methods), std::move(class_methods), 0});
  return registered().back();
}

// ---- objects ----

Object::Object(Class* c) : isa(c) {
  ++c->alive;
  objects()[this] = Known{c, false};
}

Object::~Object() {
  --isa->alive;
  objects()[this].freed = true;
}

void own(Object* object) { ++object->owned; }

void disown(Object* object) {
  if (object->owned < 1) stop("released more often than it was made or retained");
  --object->owned;
  destroy_if_unused(object);
}

void into_pool(Object* object) {
  if (object->owned < 1) stop("autoreleased more often than it was made or retained");
  if (pools().count == 0) stop("an object of class %s is autoreleased, but there is no pool", object->isa->name);
  --object->owned;
  ++object->pooled;
  pools().objects.push_back(object);
}

void need_object(Object* object, const Class* c, const char* what) {
  if (!object) stop("%s is nil, expected an object of class %s", what, c->name);
  const auto found = objects().find(object);
  if (found == objects().end()) stop("%s is not an object, expected one of class %s", what, c->name);
  if (found->second.freed) stop("%s is an object of class %s that was freed", what, found->second.isa->name);
  if (found->second.isa != c) stop("%s is of class %s, expected %s", what, found->second.isa->name, c->name);
}

bool is_freed(const Object* object) { return objects().at(object).freed; }

void keep(Object* object) { ++object->kept; }

void let_go(Object* object) {
  --object->kept;
  destroy_if_unused(object);
}

// ---- what is wrong ----

void stop(const char* text, ...) {
  char line[1024];
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(line, sizeof(line), text, arguments);
  va_end(arguments);
  fprintf(stderr, "fake metal: %s: %s\n", call().c_str(), line);
  abort();
}

void enter_function(const char* name) {
  call() = name;
  begin_process();
}

bool fails() {
  if (++g_calls != settings().fail) return false;
  *g_failed_call = call();
  return true;
}

void fault(const std::string& text) {
  fprintf(stderr, "fake metal: %s\n", text.c_str());
  if (g_fault->empty()) *g_fault = text;
}

void count(const char* what) { ++counts()[what]; }

}  // namespace fake

using namespace fake;

// ---- the functions of the runtime ----

FAKE_API void* objc_getClass(const char* name) {
  const Held held;
  enter_function("objc_getClass");
  if (settings().without == name) return nullptr;
  for (Class* c : classes()) {
    if (strcmp(c->name, name) == 0) return c;
  }
  stop("there is no class %s", name);
}

FAKE_API Selector sel_registerName(const char* name) {
  const Held held;
  enter_function("sel_registerName");
  return selectors().insert(name).first->c_str();
}

FAKE_API void* objc_autoreleasePoolPush(void) {
  const Held held;
  enter_function("objc_autoreleasePoolPush");
  pools().objects.push_back(nullptr);
  ++pools().count;
  return reinterpret_cast<void*>(pools().objects.size());
}

FAKE_API void objc_autoreleasePoolPop(void* pool) {
  const Held held;
  enter_function("objc_autoreleasePoolPop");
  std::vector<Object*>& all = pools().objects;
  const size_t begin = reinterpret_cast<uintptr_t>(pool);
  if (begin < 1 || begin > all.size() || all[begin - 1]) stop("not a pool of this thread");
  while (all.size() >= begin) {
    Object* object = all.back();
    all.pop_back();
    if (!object) {
      --pools().count;
      continue;
    }
    --object->pooled;
    destroy_if_unused(object);
  }
}

// What send_*.cpp calls: the function that the message is for
extern "C" __attribute__((visibility("hidden"), used)) Implementation fake_objc_find(void* receiver,
                                                                                     Selector selector) {
  const Held held;
  begin_process();
  if (!selector || selectors().count(selector) == 0 || selectors().find(selector)->c_str() != selector) {
    call() = "objc_msgSend";
    stop("the selector is not one of sel_registerName");
  }
  return find(receiver, selector);
}

// ---- what tests ask ----

FAKE_API int fake_metal_alive(const char* what) {
  const Held held;
  int all = 0;
  for (const Class* c : classes()) {
    if (strcmp(c->name, what) == 0) return c->alive;
    all += c->alive;
  }
  if (strcmp(what, "objects") == 0) return all;
  if (strcmp(what, "pools") == 0) return pools().count;
  if (strcmp(what, "pooled") == 0) return static_cast<int>(pools().objects.size()) - pools().count;
  return strcmp(what, "pending") == 0 ? pending() : -1;
}

FAKE_API int64_t fake_metal_count(const char* what) {
  const Held held;
  if (strcmp(what, "calls") == 0) return g_calls;
  const auto found = counts().find(what);
  return found == counts().end() ? 0 : found->second;
}

FAKE_API const char* fake_metal_failed_call(void) { return g_failed_call->c_str(); }
FAKE_API const char* fake_metal_fault(void) { return g_fault->c_str(); }
