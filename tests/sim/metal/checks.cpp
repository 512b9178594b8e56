#include "checks.h"

#include <ctype.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "binder.h"
#include "compile.h"

namespace lutkern {
namespace sim {
namespace metal {

namespace {

enum : size_t { kNone = static_cast<size_t>(-1) };

const std::set<std::string> kSpaces = {"thread", "threadgroup", "device", "constant"};
const std::set<std::string> kForbidden = {
    "double",   "goto", "throw",        "try",          "catch",  "virtual",       "new",
    "delete",   "asm",  "dynamic_cast", "thread_local", "typeid", "mutable",       "noexcept",
    "register", "std",  "long_double",  "wchar_t",      "bfloat", "__attribute__", "__builtin_bit_cast"};
const std::set<std::string> kFunctionWords = {"vertex", "fragment", "visible", "stitchable", "sampler"};

std::set<std::string> builtin_types() {
  std::set<std::string> names = {"void",    "bool",     "auto",    "size_t",   "ptrdiff_t", "int8_t",   "uint8_t",
                                 "int16_t", "uint16_t", "int32_t", "uint32_t", "int64_t",   "uint64_t", "unsigned"};
  for (const char* type : {"char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "float"}) {
    for (const char* n : {"", "2", "3", "4"}) names.insert(std::string(type) + n);
  }
  for (const char* type : {"simdgroup_float8x8", "simdgroup_half8x8"}) names.insert(type);
  return names;
}

class Checker {
 public:
  Checker(const std::string& text, Findings& findings) : findings_(findings), builtin_(builtin_types()) {
    for (Token& token : tokens_of(text)) {
      if (!token.is_directive) tokens_.push_back(std::move(token));
    }
  }
  void run();

 private:
  struct Function {
    int n = 0;  // definitions of this name
    int line = 0;
    std::set<std::string> calls;
  };
  bool is(size_t i, const char* text) const { return i < tokens_.size() && tokens_[i].text == text; }
  bool is_name(size_t i) const { return i < tokens_.size() && tokens_[i].kind == Token::kName; }
  void found(size_t i, const std::string& what) { findings_.add(tokens_[std::min(i, tokens_.size() - 1)].line, what); }
  size_t matching(size_t i) const;
  size_t matching_angle(size_t i) const;       // of an opening one
  size_t matching_angle_back(size_t i) const;  // of a closing one
  void collect_types();
  void words();
  void number(size_t i);
  void word(size_t i);
  void pointers();
  void pointer(size_t i, size_t type);
  size_t type_before(size_t i) const;
  void scope(size_t from, size_t to, bool is_struct);
  size_t statement(size_t from, size_t to, bool is_struct);
  size_t function(size_t from, size_t open, size_t body);
  void recursion();
  bool reaches(const std::string& from, const std::string& to, std::set<std::string>& seen) const;

  Findings& findings_;
  std::vector<Token> tokens_;
  std::set<std::string> builtin_;
  std::set<std::string> types_;
  std::map<std::string, Function> functions_;
};

size_t Checker::matching(size_t i) const {
  int depth = 0;
  for (size_t j = i; j < tokens_.size(); ++j) {
    if (is(j, "(") || is(j, "[") || is(j, "{")) ++depth;
    if ((is(j, ")") || is(j, "]") || is(j, "}")) && --depth == 0) return j;
  }
  return tokens_.size();
}

size_t Checker::matching_angle(size_t i) const {
  int depth = 0;
  for (size_t j = i; j < tokens_.size() && !is(j, ";") && !is(j, "{"); ++j) {
    if (is(j, "(")) j = matching(j);
    if (is(j, "<")) ++depth;
    if (is(j, ">") && --depth == 0) return j;
  }
  return kNone;
}

size_t Checker::matching_angle_back(size_t i) const {
  int depth = 0;
  for (size_t j = i + 1; j-- > 0;) {
    if (is(j, ";") || is(j, "{") || is(j, "}")) return kNone;
    if (is(j, ">")) ++depth;
    if (is(j, "<") && --depth == 0) return j;
  }
  return kNone;
}

void Checker::collect_types() {
  types_ = builtin_;
  for (size_t i = 0; i + 1 < tokens_.size(); ++i) {
    const std::string& t = tokens_[i].text;
    const bool names_next =
        t == "struct" || t == "class" || t == "union" || t == "typename" || t == "enum" || t == "using";
    if (names_next && is_name(i + 1)) types_.insert(tokens_[i + 1].text);
    if (t == "typedef") {
      size_t end = i;
      while (end < tokens_.size() && !is(end, ";")) ++end;
      if (is_name(end - 1)) types_.insert(tokens_[end - 1].text);
    }
  }
  for (const char* word : {"namespace", "struct", "class"}) types_.erase(word);
}

// ---- words and numbers ----

void Checker::number(size_t i) {
  const std::string& t = tokens_[i].text;
  const bool is_hex = t.size() > 1 && (t[1] == 'x' || t[1] == 'X');
  const bool is_real =
      is_hex ? t.find_first_of(".pP") != std::string::npos : t.find_first_of(".eE") != std::string::npos;
  const char last = t.back();
  if (is_real && strchr("fFhH", last) == nullptr) found(i, t + " is a double, expected " + t + "f");
  if (is_hex && is_real) found(i, t + " is a hexadecimal number with a fraction, which C++14 does not have");
  if (!is_real && t.size() > 2 && (t.find("ll") != std::string::npos || t.find("LL") != std::string::npos)) {
    found(i, t + " is a long long, which Metal does not have");
  }
}

void Checker::word(size_t i) {
  const std::string& t = tokens_[i].text;
  if (kForbidden.count(t) != 0) found(i, "Metal text has no " + t + (t == "std" ? "::" : ""));
  if (kFunctionWords.count(t) != 0) found(i, t + " is a word of Metal");
  if (t == "long" && is(i + 1, "long")) found(i, "Metal has no long long");
  // `uint half`: a type where a name is expected
  const bool is_modifier =
      i > 0 && (is(i - 1, "unsigned") || is(i - 1, "signed") || is(i - 1, "long") || is(i - 1, "short"));
  if (i > 0 && builtin_.count(t) != 0 && t != "auto" && !is_modifier && types_.count(tokens_[i - 1].text) != 0) {
    found(i, t + " is a type of Metal, and no name");
  }
  if (t == "static" || t == "operator") return;
  const bool is_lambda = is(i + 1, "[") && (t == "return" || t == "=");
  if (is_lambda) found(i, "Metal has no lambdas");
}

void Checker::words() {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    if (tokens_[i].kind == Token::kNumber) number(i);
    if (tokens_[i].kind == Token::kName) word(i);
    const bool is_value = is(i, "=") || is(i, "(") || is(i, ",");
    const bool is_capture = is(i + 2, "]") || (is(i + 2, "&") && is(i + 3, "]")) || (is(i + 2, "=") && is(i + 3, "]"));
    if (is_value && is(i + 1, "[") && is_capture) found(i, "Metal has no lambdas");
  }
}

// ---- pointers ----

// The last token of the type that ends before i; kNone if none does.
size_t Checker::type_before(size_t i) const {
  if (i == 0) return kNone;
  const size_t last = i - 1;
  if (is(last, ">")) {
    const size_t open = matching_angle_back(last);
    return open != kNone && open > 0 && types_.count(tokens_[open - 1].text) != 0 ? last : kNone;
  }
  if (is(last, "const")) return last;
  return is_name(last) && types_.count(tokens_[last].text) != 0 ? last : kNone;
}

// A `*` or `&` behind the type that ends at `type`: an address space stands in front of it.
void Checker::pointer(size_t i, size_t type) {
  for (size_t j = type + 1; j-- > 0;) {
    if (is(j, ">")) {
      const size_t open = matching_angle_back(j);
      if (open == kNone) break;
      j = open;
      continue;
    }
    const bool is_part = is_name(j) || is(j, ":");
    if (!is_part || is(j, "return") || is(j, "template")) break;
    if (kSpaces.count(tokens_[j].text) != 0) return;
  }
  found(i, std::string(is(i, "*") ? "a pointer" : "a reference") + " to " + tokens_[type].text +
               " without an address space: thread, threadgroup, device or constant");
}

void Checker::pointers() {
  for (size_t i = 1; i < tokens_.size(); ++i) {
    if (!is(i, "*") && !is(i, "&")) continue;
    size_t type = type_before(i);
    // thread float (&sums)[4]
    if (type == kNone && is(i - 1, "(") && is_name(i + 1) && is(i + 2, ")")) type = type_before(i - 1);
    if (type == kNone) continue;
    pointer(i, type);
    const bool is_cast = is(i, "*") && is(i + 1, ")") && (is_name(i + 2) || is(i + 2, "(") || is(i + 2, "&"));
    if (is_cast)
      found(i, "a C cast of a pointer could change its address space, expected static_cast or reinterpret_cast");
  }
}

// ---- what stands outside of functions ----

size_t Checker::function(size_t from, size_t open, size_t body) {
  const std::string name = tokens_[open - 1].text;
  const size_t end = matching(body);
  Function& f = functions_[name];
  ++f.n;
  f.line = tokens_[from].line;
  for (size_t i = body; i < end; ++i) {
    size_t call = i + 1;
    if (is_name(i) && is(call, "<")) call = matching_angle(call) == kNone ? call : matching_angle(call) + 1;
    if (is_name(i) && is(call, "(")) f.calls.insert(tokens_[i].text);
    if (is(i, "static") && !is(i + 1, "constant")) found(i, "static data of a function, expected static constant");
  }
  return end + 1;
}

// Returns where the next one begins.
size_t Checker::statement(size_t from, size_t to, bool is_struct) {
  if (is(from, ";")) return from + 1;
  if (is(from, "template") && is(from + 1, "<")) {
    const size_t close = matching_angle(from + 1);
    return close == kNone ? to : close + 1;
  }
  if (is_struct && is(from + 1, ":") && (is(from, "public") || is(from, "private"))) return from + 2;
  size_t open = kNone;  // of the parameters
  size_t equals = kNone;
  bool has_constant = false;
  bool has_static = false;
  for (size_t i = from; i < to; ++i) {
    has_constant = has_constant || is(i, "constant");
    has_static = has_static || is(i, "static");
    if (is(i, "=") && equals == kNone && open == kNone) equals = i;
    if (is(i, "(") && open == kNone && equals == kNone) open = i;
    if (is(i, "(") || is(i, "[")) {
      i = matching(i);
      continue;
    }
    const bool is_brace = is(i, "{");
    if (!is_brace && !is(i, ";")) continue;
    if (is(from, "namespace") || is(from, "struct") || is(from, "class") || is(from, "union")) {
      if (is_brace) {
        scope(i + 1, matching(i), !is(from, "namespace"));
        i = matching(i);
        if (is(from, "namespace")) return i + 1;
        continue;
      }
      return i + 1;
    }
    if (is_brace && open != kNone) return function(from, open, i);
    if (is_brace) {
      i = matching(i);
      continue;
    }
    const bool is_other = is(from, "using") || is(from, "typedef") || is(from, "static_assert") || is(from, "enum");
    if (is_other || open != kNone) return i + 1;
    if (!has_constant && (!is_struct || has_static)) {
      found(from, "data of the program that is not constant: " + tokens_[from].text);
    }
    return i + 1;
  }
  return to;
}

void Checker::scope(size_t from, size_t to, bool is_struct) {
  while (from < to) from = statement(from, to, is_struct);
}

// ---- recursion ----

bool Checker::reaches(const std::string& from, const std::string& to, std::set<std::string>& seen) const {
  const auto f = functions_.find(from);
  // one name for several functions: which one is called is not known here
  if (f == functions_.end() || f->second.n != 1 || !seen.insert(from).second) return false;
  for (const std::string& next : f->second.calls) {
    if (next == to || reaches(next, to, seen)) return true;
  }
  return false;
}

void Checker::recursion() {
  for (const auto& [name, f] : functions_) {
    std::set<std::string> seen;
    if (f.n == 1 && reaches(name, name, seen))
      findings_.add(f.line, name + " calls itself, which Metal does not allow");
  }
}

void Checker::run() {
  if (tokens_.empty()) return;
  collect_types();
  words();
  pointers();
  scope(0, tokens_.size(), false);
  recursion();
}

}  // namespace

bool is_plain(const std::string& text, std::string& error) {
  std::string plain;
  if (!preprocessed(text, plain, error)) return false;
  Findings findings(plain);
  Checker(plain, findings).run();
  error = findings.text;
  return findings.text.empty();
}

}  // namespace metal
}  // namespace sim
}  // namespace lutkern
