// How the parameters and the result of a function are passed, as text: one letter each, the result first. The host casts
// objc_msgSend to the types of metal/selectors.h, and a method takes what comes: both must be of one signature.
#pragma once
#include <string>
#include <type_traits>

namespace fake {

template <typename T>
constexpr char letter() {
  if constexpr (std::is_void_v<T>) {
    return 'v';
  } else if constexpr (std::is_pointer_v<T>) {
    return 'p';
  } else if constexpr (std::is_same_v<T, bool>) {
    return 'B';
  } else if constexpr (std::is_same_v<T, double>) {
    return 'd';
  } else if constexpr (std::is_class_v<T>) {
    static_assert(sizeof(T) == 24 && alignof(T) == 8, "three numbers, in memory on x86-64 and by address on arm64");
    return 'S';
  } else {
    static_assert(std::is_integral_v<T> && sizeof(T) == 8, "in one register");
    return std::is_signed_v<T> ? 'q' : 'Q';
  }
}

template <typename F>
struct Signature;
template <typename Result, typename... Parameters>
struct Signature<Result(Parameters...)> {
  static std::string text() { return {letter<Result>(), letter<Parameters>()...}; }
};

}  // namespace fake
