#pragma once

#include <stdexcept>
#include <string>

namespace weightshare {

/// Sizes or shapes that do not fit each other.
struct ShapeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// An element type that is not supported, or differs where it must not.
struct ElementError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A value that cannot be used.
struct ArgumentError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// Throws `Error` with `message` unless `holds`.
template <class Error>
void require(bool holds, const std::string& message) {
  if (!holds) {
    throw Error(message);
  }
}

}  // namespace weightshare
