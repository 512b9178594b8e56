// Text to a library that the process can load: clang at run time, and a folder of what it made.
#pragma once
#include <string>

namespace lutkern {
namespace sim {
namespace metal {

// Path of the library; empty: error says why.
std::string compiled(const std::string& text, std::string& error);
// What the preprocessor leaves of a text, with markers of lines and without the words of metal_stdlib; no other header is
// allowed.
bool preprocessed(const std::string& text, std::string& plain, std::string& error);
// Whether clang takes the text with address spaces and C++14.
bool is_accepted(const std::string& text, std::string& error);
// "program_source:12" of a place in the code of a library; empty if nobody knows.
std::string line_of(const std::string& library, size_t offset);

}  // namespace metal
}  // namespace sim
}  // namespace lutkern
