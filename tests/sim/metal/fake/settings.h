// What the environment asks of the fake: LUTKERN_FAKE_METAL is a list of name=value, separated by commas.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>

namespace fake {

struct Settings {
  int devices = 1;
  int family = 9;                   // Apple1 to Apple9
  int metal3 = 1;                   // MTLGPUFamilyMetal3
  int unified = 1;                  // hasUnifiedMemory
  int macos = 14;                   // methods that are newer do not exist
  int shared = 32768;               // bytes of threadgroup memory, at most
  int threads = 1024;               // of a threadgroup, at most, of any pipeline
  int wraps = 1;                    // 0: no buffer is made of memory of the CPU
  int fail = 0;                     // the number of the call that fails, from 1 on
  size_t page = 0;                  // of newBufferWithBytesNoCopy; 0: the page of this system
  size_t memory = size_t{1} << 30;  // of a device
  size_t buffer = size_t{1} << 30;  // longest buffer
  uint64_t seed = 1;                // 0: work runs only when it is waited for
  std::string compile;              // not empty: every library is refused, with this text
  std::string without;              // a class that there is not
  std::string report;               // file for the report at the end of the process
};
const Settings& settings();
// What a call says that fails because of them
constexpr char kAsked[] = "the settings asked for a failure";
// A number that the seed chooses, below bound; 0 where the seed is 0
uint64_t choice(uint64_t bound);

}  // namespace fake
