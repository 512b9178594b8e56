// What the fake has of Foundation: strings, errors, arrays.
#pragma once
#include "objects.h"

namespace fake {

struct String : Object {
  explicit String(std::string what);
  ~String() override;
  std::string text;
};

struct Error : Object {
  Error(long number, std::string what);
  long code;
  std::string text;
};

struct Array : Object {
  explicit Array(std::vector<Kept<Object>> all);
  std::vector<Kept<Object>> items;
};

// Where the program asked for it: *where becomes an error that it does not own.
void give_error(Error** where, long code, const std::string& text);

extern Class* g_string;

void make_foundation();

}  // namespace fake
