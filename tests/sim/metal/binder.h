// Reads Metal text, and writes it as C++ that clang compiles against include/metal_stdlib. Line numbers are kept.
//
//   kernel void f(...) {...}        behind it stands its glue: parameters from buffers and builtins, a KernelRecord
//   threadgroup T a[n];             a shared array of the simulator, and an ArrayRecord
//   float4(a, b, c, d)              lk_make<float4>(a, b, c, d)
//
// Refused: attributes that are unknown, missing, doubled or of the wrong type, buffers by value, pointers without an
// address space, kernels that are not at the top of the file, threadgroup arrays anywhere but at the top of a kernel.
#pragma once
#include <string>
#include <vector>

namespace lutkern {
namespace sim {
namespace metal {

struct Token {
  enum Kind { kName, kNumber, kString, kSign } kind;
  std::string text;
  size_t begin;  // in the source
  int line;
  bool is_directive;  // on a line of the preprocessor
};
std::vector<Token> tokens_of(const std::string& text);

// What a reader found: "program_source:LINE:1: error: ...", a line each, by the file and line that #line names
struct Findings {
  explicit Findings(const std::string& source);
  std::string text;
  void add(int line, const std::string& what);

 private:
  struct Part {
    int first;  // line of the source
    int line;   // that it has by name
    std::string file;
  };
  std::vector<Part> parts_;
};

// checks: for a compile that only checks address spaces, without glue.
std::string bind(const std::string& text, bool checks, Findings& findings);

}  // namespace metal
}  // namespace sim
}  // namespace lutkern
