// SPDX-License-Identifier: MIT
// Numbers and texts as the programs print them.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

namespace examples {

/// As printf's "%.*f"; a NaN is "-", since a table has nothing to show there.
inline std::string fixed(double x, int decimals) {
  if (std::isnan(x)) return "-";
  char text[400];
  std::snprintf(text, sizeof text, "%.*f", decimals, x);
  return text;
}

/// As printf's "%.*e"; a NaN is "-".
inline std::string scientific(double x, int decimals) {
  if (std::isnan(x)) return "-";
  char text[64];
  std::snprintf(text, sizeof text, "%.*e", decimals, x);
  return text;
}

template <class T>
concept Number = std::integral<T> || std::floating_point<T>;

/// The shortest digits that read back as the same number.
template <Number T>
std::string shortest(T x) {
  char digits[64];
  return {digits, std::to_chars(digits, digits + sizeof digits, x).ptr};
}

/// hh:mm:ss, rounded to whole seconds; "--:--:--" for a NaN or an infinity.
inline std::string hours_minutes_seconds(double seconds) {
  if (!std::isfinite(seconds)) return "--:--:--";
  const auto s = static_cast<std::int64_t>(std::llround(std::max(seconds, 0.0)));
  char text[64];
  std::snprintf(text, sizeof text, "%02lld:%02d:%02d", static_cast<long long>(s / 3600),
                static_cast<int>(s / 60 % 60), static_cast<int>(s % 60));
  return text;
}

/// Columns that UTF-8 text takes on a terminal, one a code point.
inline int display_width(std::string_view text) {
  return static_cast<int>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

/// `count` times `piece`.
inline std::string repeat(std::string_view piece, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += piece;
  return text;
}

/// The words, with a separator between them.
inline std::string join(std::span<const std::string> words, std::string_view separator) {
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i) text.append(i ? separator : "").append(words[i]);
  return text;
}

}  // namespace examples
