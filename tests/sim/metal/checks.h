// Rules of Metal text that clang does not know, checked word by word.
#pragma once
#include <string>

namespace lutkern {
namespace sim {
namespace metal {

// False: error has a line for each word that breaks a rule.
bool is_plain(const std::string& text, std::string& error);

}  // namespace metal
}  // namespace sim
}  // namespace lutkern
