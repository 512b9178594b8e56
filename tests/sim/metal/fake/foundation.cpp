#include "foundation.h"

#include <string.h>

namespace fake {

Class* g_string;

namespace {

Class* g_error;
Class* g_array;

// ---- NSString ----

String* string_of(Class*, Selector, const char* text) {
  if (!text) stop("the text is null");
  return autoreleased(new String(text));
}
const char* string_utf8(String* self, Selector) { return self->text.c_str(); }
// ---- NSError ----

String* error_text(Error* self, Selector) { return autoreleased(new String(self->text)); }
long error_code(Error* self, Selector) { return self->code; }

// ---- NSArray ----

unsigned long array_count(Array* self, Selector) { return self->items.size(); }
Object* array_item(Array* self, Selector, unsigned long index) {
  if (index >= self->items.size()) stop("index %lu of %zu objects", index, self->items.size());
  return self->items[index].get();
}

}  // namespace

String::String(std::string what) : Object(g_string), text(std::move(what)) {}

// Whoever still reads the characters sees that they are gone.
String::~String() { memset(&text[0], '#', text.size()); }

Error::Error(long number, std::string what) : Object(g_error), code(number), text(std::move(what)) {}

Array::Array(std::vector<Kept<Object>> all) : Object(g_array), items(std::move(all)) {}

void give_error(Error** where, long code, const std::string& text) {
  if (where) *where = autoreleased(new Error(code, text));
}

void make_foundation() {
  g_string = new_class("NSString", {method<string_utf8>("UTF8String")}, {method<string_of>("stringWithUTF8String:")});
  g_error = new_class("NSError", {method<error_text>("localizedDescription"), method<error_code>("code")});
  g_array = new_class("NSArray", {method<array_count>("count"), method<array_item>("objectAtIndex:")});
}

}  // namespace fake
