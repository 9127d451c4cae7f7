// SPDX-License-Identifier: MIT
// Misuse throws, and says what was expected and what came. Not converging is no misuse: it is a
// result, in core/report.hpp.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace deq {

/// Base of everything that the library throws.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A parameter or an argument outside its domain (a negative tolerance, an empty batch).
struct InvalidArgument : Error {
  using Error::Error;
};

/// Two shapes that do not fit.
struct ShapeError : Error {
  using Error::Error;
};

/// A file that cannot be opened, read or written.
struct IoError : Error {
  using Error::Error;
};

/// A file whose content is not what its format says.
struct FormatError : Error {
  using Error::Error;
};

/// A device that is missing, or that could not do what it was asked to.
struct DeviceError : Error {
  using Error::Error;
};

/// Concatenates its arguments as a stream would print them: the message of a `require`.
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

/// Throws `Exception` with the concatenated parts unless `condition` holds. The message is only
/// built when it is needed.
template <class Exception = InvalidArgument, class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw Exception(message(parts...));
}

}  // namespace deq
