#include "binder.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <set>

#include "builtins.h"

namespace lutkern {
namespace sim {
namespace metal {

namespace {

enum : size_t { kNone = static_cast<size_t>(-1) };

const std::set<std::string> kVectors = [] {
  std::set<std::string> names;
  for (const char* type : {"char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "float"}) {
    for (const char* n : {"2", "3", "4"}) names.insert(std::string(type) + n);
  }
  return names;
}();

// Of a builtin: whether it may be a vector; all that may must have one type in a kernel.
const std::map<std::string, bool> kBuiltins = {
    {"thread_position_in_grid", true},         {"threads_per_grid", true},
    {"thread_position_in_threadgroup", true},  {"threads_per_threadgroup", true},
    {"threadgroup_position_in_grid", true},    {"threadgroups_per_grid", true},
    {"thread_index_in_threadgroup", false},    {"thread_index_in_simdgroup", false},
    {"simdgroup_index_in_threadgroup", false}, {"simdgroups_per_threadgroup", false},
    {"threads_per_simdgroup", false}};

struct Edit {
  size_t begin;
  size_t end;
  std::string text;
};

class Binder {
 public:
  Binder(const std::string& text, bool checks, Findings& findings)
      : text_(text), checks_(checks), findings_(findings), tokens_(tokens_of(text)) {}
  std::string run();

 private:
  struct Parameter {
    std::string type;
    std::string name;
    std::string attribute;
    std::string number;
    int line;
  };
  bool is(size_t i, const char* sign) const { return i < tokens_.size() && tokens_[i].text == sign; }
  size_t matching(size_t i) const;
  std::string source(size_t from, size_t to) const;  // tokens from .. to - 1, on one line
  void vectors();
  size_t kernel(size_t i);
  std::vector<Parameter> parameters(size_t open, size_t close);
  Parameter parameter(size_t from, size_t to);
  void check(const std::string& kernel, const std::vector<Parameter>& parameters);
  void check_buffer(const Parameter& p, std::map<std::string, std::string>& buffers);
  void arrays(const std::string& kernel, size_t open, size_t close);
  void array(const std::string& kernel, size_t i);
  void stray_arrays(size_t from, size_t to);
  bool is_array(size_t i) const;
  std::string glue(const std::string& kernel, const std::vector<Parameter>& parameters, const std::string& max) const;

  const std::string& text_;
  bool checks_;
  Findings& findings_;
  std::vector<Token> tokens_;
  std::vector<Edit> edits_;
  std::map<std::string, int> kernels_;
};

size_t Binder::matching(size_t i) const {
  int depth = 0;
  for (size_t j = i; j < tokens_.size(); ++j) {
    const Token& t = tokens_[j];
    if (t.is_directive || t.kind != Token::kSign) continue;
    if (t.text == "(" || t.text == "[" || t.text == "{") ++depth;
    if (t.text == ")" || t.text == "]" || t.text == "}") {
      if (--depth == 0) return j;
    }
  }
  return kNone;
}

std::string Binder::source(size_t from, size_t to) const {
  std::string out;
  for (size_t i = from; i < to; ++i) {
    const bool is_word = tokens_[i].kind != Token::kSign;
    if (i > from && is_word && tokens_[i - 1].kind != Token::kSign) out += ' ';
    out += tokens_[i].text;
  }
  return out;
}

void Binder::vectors() {
  for (size_t i = 0; i + 2 < tokens_.size(); ++i) {
    const Token& t = tokens_[i];
    if (t.kind != Token::kName || kVectors.count(t.text) == 0 || !is(i + 1, "(")) continue;
    if (is(i + 2, "&") || is(i + 2, "*") || is(i + 2, "thread") || is(i + 2, "threadgroup")) continue;
    edits_.push_back({t.begin, t.begin + t.text.size(), "lk_make<" + t.text + ">"});
  }
}

Binder::Parameter Binder::parameter(size_t from, size_t to) {
  Parameter p;
  p.line = tokens_[from].line;
  size_t name_end = to;
  for (size_t i = from; i + 1 < to; ++i) {
    if (is(i, "[") && is(i + 1, "[")) {
      name_end = i;
      break;
    }
  }
  if (name_end > from && tokens_[name_end - 1].kind == Token::kName) p.name = tokens_[name_end - 1].text;
  p.type = source(from, name_end - (name_end > from ? 1 : 0));
  if (name_end == to) {
    findings_.add(p.line, "the parameter " + source(from, to) + " has no attribute");
    return p;
  }
  const size_t close = matching(name_end);
  const size_t inner = name_end + 2;
  p.attribute = tokens_[inner].text;
  if (is(inner + 1, "(")) p.number = source(inner + 2, matching(inner + 1));
  if (close != to - 1) findings_.add(p.line, "one attribute is expected behind " + p.name);
  const size_t expected = p.number.empty() ? inner + 1 : matching(inner + 1) + 1;
  if (expected != close - 1) findings_.add(p.line, "unknown attribute [[" + source(inner, close - 1) + "]]");
  return p;
}

std::vector<Binder::Parameter> Binder::parameters(size_t open, size_t close) {
  std::vector<Parameter> found;
  size_t from = open + 1;
  int depth = 0;
  for (size_t i = open + 1; i <= close && from < close; ++i) {
    const std::string& t = tokens_[i].text;
    if (i == close || (t == "," && depth == 0)) {
      found.push_back(parameter(from, i));
      from = i + 1;
    }
    if (t == "(" || t == "[" || t == "<") ++depth;
    if (t == ")" || t == "]" || t == ">") --depth;
  }
  return found;
}

bool has_word(const std::string& type, const char* word) {
  const size_t length = strlen(word);
  for (size_t at = type.find(word); at != std::string::npos; at = type.find(word, at + 1)) {
    const auto is_name = [&](size_t i) { return i < type.size() && (isalnum(type[i]) != 0 || type[i] == '_'); };
    if ((at == 0 || !is_name(at - 1)) && !is_name(at + length)) return true;
  }
  return false;
}

void Binder::check_buffer(const Parameter& p, std::map<std::string, std::string>& buffers) {
  const std::string what = "buffer " + p.number + " (" + p.name + ")";
  if (p.number.empty() || p.number.find_first_not_of("0123456789") != std::string::npos || p.number.size() > 2 ||
      std::stoul(p.number) >= kMaxBuffers) {
    findings_.add(p.line, what + ": expected a number from 0 to " + std::to_string(kMaxBuffers - 1));
    return;
  }
  const auto other = buffers.emplace(p.number, p.name);
  if (!other.second) findings_.add(p.line, what + ": " + other.first->second + " has the same number");
  const bool is_device = has_word(p.type, "device");
  const bool is_constant = has_word(p.type, "constant");
  const char last = p.type.empty() ? ' ' : p.type.back();
  if (last != '*' && last != '&') {
    findings_.add(p.line, what + " is passed by value, expected a pointer or a reference");
  } else if (std::count(p.type.begin(), p.type.end(), '*') + std::count(p.type.begin(), p.type.end(), '&') != 1) {
    findings_.add(p.line, what + " is a pointer to a pointer");
  } else if (is_device == is_constant) {
    findings_.add(p.line, what + " has the type " + p.type + ", expected the address space device or constant");
  }
}

void Binder::check(const std::string& kernel, const std::vector<Parameter>& parameters) {
  std::map<std::string, std::string> buffers;
  std::set<std::string> builtins;
  std::string vector_type;
  for (const Parameter& p : parameters) {
    if (p.attribute.empty()) continue;
    if (p.attribute == "buffer") {
      check_buffer(p, buffers);
      continue;
    }
    const auto found = kBuiltins.find(p.attribute);
    if (found == kBuiltins.end() || !p.number.empty()) {
      findings_.add(p.line,
                    "unknown attribute [[" + p.attribute + (p.number.empty() ? "" : "(" + p.number + ")") + "]]");
      continue;
    }
    if (!builtins.insert(p.attribute).second) findings_.add(p.line, kernel + " has [[" + p.attribute + "]] twice");
    const bool is_scalar = p.type == "uint" || p.type == "ushort";
    const bool is_vector = p.type == "uint2" || p.type == "uint3" || p.type == "ushort2" || p.type == "ushort3";
    if (!is_scalar && !(is_vector && found->second)) {
      findings_.add(p.line, "[[" + p.attribute + "]] has the type " + p.type + ", expected uint" +
                                (found->second ? ", uint2 or uint3" : "") + ", or the same of ushort");
    } else if (found->second) {
      if (!vector_type.empty() && vector_type != p.type) {
        findings_.add(p.line, "[[" + p.attribute + "]] has the type " + p.type + ", another position has the type " +
                                  vector_type + ": Metal wants the same");
      }
      vector_type = p.type;
    }
  }
}

bool Binder::is_array(size_t i) const {
  for (size_t j = i + 1; j < tokens_.size(); ++j) {
    const std::string& t = tokens_[j].text;
    if (t == "*" || t == "&") return false;
    if (t == "[" || t == ";" || t == "=" || t == "{") return true;
    if (t == ")" || t == "}") return false;
  }
  return false;
}

void Binder::array(const std::string& kernel, size_t i) {
  size_t end = i;
  size_t dims = 0;
  while (end < tokens_.size() && !is(end, ";")) {
    if (is(end, "[") && dims == 0) dims = end;
    if (is(end, "[")) {
      end = matching(end);
    } else if (is(end, "=") || is(end, "{") || is(end, ",")) {
      const bool is_list = is(end, ",") && dims == 0;
      if (!is_list) {
        findings_.add(tokens_[end].line, "a threadgroup variable has no initial value and is declared alone");
        return;
      }
    }
    ++end;
  }
  if (end == tokens_.size()) return;
  if (dims == 0) dims = end;
  const std::string name = tokens_[dims - 1].text;
  size_t from = i + 1;
  const std::string type = source(from, dims - 1);
  std::string text;
  if (checks_) {
    text = "static " + source(i, end) + ";";
  } else {
    text = "typedef " + type + " " + name + "_lk_type" + source(dims, end) + "; LK_ARRAY_RECORD " + name +
           "_lk_array = {\"" + kernel + "\", sizeof(" + name + "_lk_type)}; " + name + "_lk_type& " + name +
           " = ::metal::lk_threadgroup<" + name + "_lk_type>(&" + name + "_lk_array);";
  }
  text.append(static_cast<size_t>(tokens_[end].line - tokens_[i].line), '\n');
  edits_.push_back({tokens_[i].begin, tokens_[end].begin + 1, text});
}

// A type in angle brackets, a cast or a parameter is no variable: those have * or & before anything that ends them.
void Binder::arrays(const std::string& kernel, size_t open, size_t close) {
  int depth = 0;
  for (size_t i = open; i < close; ++i) {
    const Token& t = tokens_[i];
    if (t.is_directive) continue;
    if (t.text == "{" || t.text == "(") ++depth;
    if (t.text == "}" || t.text == ")") --depth;
    if (t.text != "threadgroup" || !is_array(i)) continue;
    if (depth == 1) {
      array(kernel, i);
    } else {
      findings_.add(t.line, "a threadgroup variable inside of a block, expected at the top of the kernel " + kernel);
    }
  }
}

void Binder::stray_arrays(size_t from, size_t to) {
  for (size_t i = from; i < to; ++i) {
    if (tokens_[i].is_directive || tokens_[i].text != "threadgroup" || !is_array(i)) continue;
    findings_.add(tokens_[i].line, "a threadgroup variable outside of a kernel");
  }
}

std::string Binder::glue(const std::string& kernel, const std::vector<Parameter>& parameters,
                         const std::string& max) const {
  std::string call;
  std::string records;
  size_t n = 0;
  for (const Parameter& p : parameters) {
    if (!call.empty()) call += ", ";
    if (p.attribute == "buffer") {
      const std::string type = "::metal::LkArgument<" + p.type + ">";
      call += type + "::from(lk_bound, " + p.number + ")";
      records += "{" + p.number + ", " + type + "::kBytes, " + type + "::kAlignment, \"" + p.name + "\"}, ";
      ++n;
    } else {
      call += "::metal::lk_" + p.attribute + "<" + p.type + ">()";
    }
  }
  return " static void " + kernel + "_lk_body(const void* lk_bound) { (void)lk_bound; " + kernel + "(" + call +
         "); } static const ::lutkern::sim::metal::BufferRecord " + kernel + "_lk_buffers[] = {" + records +
         "{0, 0, 0, nullptr}}; LK_KERNEL_RECORD " + kernel + "_lk_record = {\"" + kernel + "\", " + kernel +
         "_lk_body, " + (max.empty() ? "0" : max) + ", " + std::to_string(n) + ", " + kernel + "_lk_buffers};";
}

// Returns the index of the last token of the kernel.
size_t Binder::kernel(size_t i) {
  const int line = tokens_[i].line;
  if (!is(i + 1, "void") || !is(i + 3, "(")) {
    findings_.add(line, "expected: kernel void name(...)");
    return i;
  }
  const std::string name = tokens_[i + 2].text;
  const size_t close = matching(i + 3);
  size_t open = close == kNone ? kNone : close + 1;
  std::string max;
  if (open != kNone && is(open, "[") && is(open + 1, "[")) {
    const size_t end = matching(open);
    if (is(open + 2, "max_total_threads_per_threadgroup") && is(open + 3, "(")) {
      max = source(open + 4, matching(open + 3));
    } else {
      findings_.add(line, "unknown attribute " + source(open, end + 1) + " of the kernel " + name);
    }
    open = end + 1;
  }
  if (open == kNone || !is(open, "{")) {
    findings_.add(line, "the kernel " + name + " has no body");
    return i;
  }
  const size_t last = matching(open);
  if (last == kNone) {
    findings_.add(line, "the kernel " + name + " has no end");
    return tokens_.size() - 1;
  }
  const std::vector<Parameter> found = parameters(i + 3, close);
  check(name, found);
  arrays(name, open, last);
  if (!checks_) edits_.push_back({tokens_[last].begin + 1, tokens_[last].begin + 1, glue(name, found, max)});
  return last;
}

std::string Binder::run() {
  vectors();
  int depth = 0;
  size_t after = 0;  // the last kernel
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const Token& t = tokens_[i];
    if (t.is_directive) continue;
    if (t.text == "{") ++depth;
    if (t.text == "}") --depth;
    if (t.text == "kernel" && depth == 0) {
      stray_arrays(after, i);
      i = kernel(i);
      after = i + 1;
    } else if (t.text == "kernel") {
      findings_.add(t.line, "a kernel inside of a namespace, expected at the top of the text");
    }
  }
  stray_arrays(after, tokens_.size());
  std::stable_sort(edits_.begin(), edits_.end(), [](const Edit& a, const Edit& b) { return a.begin < b.begin; });
  std::string out;
  size_t at = 0;
  for (const Edit& edit : edits_) {
    if (edit.begin < at) continue;  // inside of another one
    out.append(text_, at, edit.begin - at);
    out += edit.text;
    at = edit.end;
  }
  out.append(text_, at, std::string::npos);
  return out;
}

}  // namespace

Findings::Findings(const std::string& source) {
  parts_.push_back({1, 1, "program_source"});
  int line = 1;
  for (size_t at = 0; at < source.size(); ++line) {
    const size_t end = std::min(source.find('\n', at), source.size());
    const size_t word = source.compare(at, 6, "#line ") == 0 ? 6 : (source.compare(at, 2, "# ") == 0 ? 2 : 0);
    if (word != 0) {  // the preprocessor leaves out the word "line"
      const std::string rest = source.substr(at + word, end - at - word);
      const size_t open = rest.find('"');
      const size_t close = rest.rfind('"');
      const std::string file = open == close ? parts_.back().file : rest.substr(open + 1, close - open - 1);
      parts_.push_back({line + 1, atoi(rest.c_str()), file});
    }
    at = end + 1;
  }
}

void Findings::add(int line, const std::string& what) {
  size_t i = parts_.size() - 1;
  while (i > 0 && parts_[i].first > line) --i;
  const Part& part = parts_[i];
  text += part.file + ":" + std::to_string(line - part.first + part.line) + ":1: error: " + what + "\n";
}

std::vector<Token> tokens_of(const std::string& text) {
  std::vector<Token> tokens;
  int line = 1;
  bool is_directive = false;
  bool is_first = true;  // on its line
  const size_t n = text.size();
  for (size_t i = 0; i < n;) {
    const char c = text[i];
    if (c == '\n') {
      const bool goes_on = i > 0 && text[i - 1] == '\\';
      if (!goes_on) is_directive = false;
      is_first = !goes_on;
      ++line;
      ++i;
      continue;
    }
    if (isspace(static_cast<unsigned char>(c)) != 0 || c == '\\') {
      ++i;
      continue;
    }
    if (text.compare(i, 2, "//") == 0) {
      i = std::min(text.find('\n', i), n);
      continue;
    }
    if (text.compare(i, 2, "/*") == 0) {
      const size_t end = std::min(text.find("*/", i + 2), n - 2) + 2;
      line += static_cast<int>(
          std::count(text.begin() + static_cast<ptrdiff_t>(i), text.begin() + static_cast<ptrdiff_t>(end), '\n'));
      i = end;
      continue;
    }
    if (c == '#' && is_first) is_directive = true;
    is_first = false;
    size_t end = i + 1;
    Token::Kind kind = Token::kSign;
    if (isalpha(static_cast<unsigned char>(c)) != 0 || c == '_') {
      kind = Token::kName;
      while (end < n && (isalnum(static_cast<unsigned char>(text[end])) != 0 || text[end] == '_')) ++end;
    } else if (isdigit(static_cast<unsigned char>(c)) != 0 ||
               (c == '.' && end < n && isdigit(static_cast<unsigned char>(text[end])) != 0)) {
      kind = Token::kNumber;
      while (end < n && (isalnum(static_cast<unsigned char>(text[end])) != 0 || text[end] == '.' || text[end] == '\'' ||
                         ((text[end] == '+' || text[end] == '-') && strchr("eEpP", text[end - 1]) != nullptr &&
                          (text.compare(i, 2, "0x") != 0 || strchr("pP", text[end - 1]) != nullptr)))) {
        ++end;
      }
    } else if (c == '"' || c == '\'') {
      kind = Token::kString;
      while (end < n && text[end] != c && text[end] != '\n') end += text[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, n);
    }
    tokens.push_back({kind, text.substr(i, end - i), i, line, is_directive});
    i = end;
  }
  return tokens;
}

std::string bind(const std::string& text, bool checks, Findings& findings) {
  return Binder(text, checks, findings).run();
}

}  // namespace metal
}  // namespace sim
}  // namespace lutkern
