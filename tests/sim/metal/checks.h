// Rules of Metal text that a C++ compiler does not know, checked word by word in what the preprocessor leaves:
//
//   a pointer or reference without an address space, a pointer that a C cast makes
//   data of the program, and static data, that is not constant
//   numbers of double precision, long long, the standard library, other headers
//   functions that call themselves
//   words that Metal does not have, and words of Metal as names
#pragma once
#include <string>

namespace lutkern {
namespace sim {
namespace metal {

// False: error has a line for each place that breaks a rule.
bool is_plain(const std::string& text, std::string& error);

}  // namespace metal
}  // namespace sim
}  // namespace lutkern
