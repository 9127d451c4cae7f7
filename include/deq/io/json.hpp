// SPDX-License-Identifier: MIT
// A small strict JSON reader (RFC 8259), for the header of a safetensors file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include <deq/core/error.hpp>
#include <deq/core/types.hpp>

namespace deq {

/// A JSON value. An object keeps its members in the order of the text; none appears twice.
struct Json {
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;
  /// A number as written, so that nothing is rounded.
  struct Number {
    std::string text;
  };

  std::variant<std::nullptr_t, bool, Number, std::string, Array, Object> value = nullptr;

  /// The value as an Array, Object, std::string, Number or bool; null if it is of another type.
  template <class T>
  const T* get_if() const {
    return std::get_if<T>(&value);
  }
  /// The member of an object with that key; null if there is none or this is no object.
  const Json* find(std::string_view key) const {
    const Object* members = get_if<Object>();
    if (!members) return nullptr;
    for (const auto& [name, member] : *members)
      if (name == key) return &member;
    return nullptr;
  }
};

/// True if `text` is well-formed UTF-8 (Unicode 15, table 3-7): no overlong form, no surrogate,
/// nothing above U+10FFFF.
inline bool is_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  for (std::size_t i = 0; i < text.size();) {
    const unsigned lead = byte(i);
    const std::size_t length = lead < 0x80   ? 1
                               : lead < 0xC2 ? 0
                               : lead < 0xE0 ? 2
                               : lead < 0xF0 ? 3
                               : lead < 0xF5 ? 4
                                             : 0;
    if (length == 0 || length > text.size() - i) return false;
    for (std::size_t k = 1; k < length; ++k)
      if ((byte(i + k) & 0xC0) != 0x80) return false;
    if (lead == 0xE0 && byte(i + 1) < 0xA0) return false;  // overlong
    if (lead == 0xED && byte(i + 1) > 0x9F) return false;  // surrogate
    if (lead == 0xF0 && byte(i + 1) < 0x90) return false;  // overlong
    if (lead == 0xF4 && byte(i + 1) > 0x8F) return false;  // above U+10FFFF
    i += length;
  }
  return true;
}

namespace detail {

/// Against texts that exhaust the memory: a value of two bytes takes some hundred.
inline constexpr std::size_t max_json_values = 1 << 20;

/// Recursive descent over one text; every function leaves `at_` behind what it has read.
class JsonParser {
 public:
  JsonParser(std::string_view text, std::string_view source) : text_(text), source_(source) {}

  Json parse() {
    if (!is_utf8(text_)) fail("not valid UTF-8");
    Json json = value(0);
    skip_space();
    if (at_ != text_.size()) fail("unexpected text after the JSON value");
    return json;
  }

 private:
  static constexpr int max_depth = 32;

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw FormatError(message(source_, ": invalid JSON at byte ", at_, ": ", parts...));
  }
  bool at_end() const { return at_ == text_.size(); }
  char peek() const { return at_end() ? '\0' : text_[at_]; }
  bool accept(char c) {
    if (at_end() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void skip_space() { at_ = std::min(text_.find_first_not_of(" \t\n\r", at_), text_.size()); }

  Json value(int depth) {
    if (depth > max_depth) fail("nested deeper than ", max_depth, " levels");
    if (++values_ > max_json_values) fail("more than ", max_json_values, " values");
    skip_space();
    if (at_end()) fail("unexpected end, expected a value");
    switch (peek()) {
      case '{': return {object(depth)};
      case '[': return {array(depth)};
      case '"': return {string()};
      case 't': return literal("true", true);
      case 'f': return literal("false", false);
      case 'n': return literal("null", nullptr);
      default: return {number()};
    }
  }

  template <class T>
  Json literal(std::string_view word, T meaning) {
    if (text_.substr(at_, word.size()) != word) fail("expected a value");
    at_ += word.size();
    return {meaning};
  }

  Json::Array array(int depth) {
    Json::Array elements;
    ++at_;
    skip_space();
    if (accept(']')) return elements;
    while (true) {
      elements.push_back(value(depth + 1));
      skip_space();
      if (accept(']')) return elements;
      if (!accept(',')) fail("expected ',' or ']'");
    }
  }

  Json::Object object(int depth) {
    Json::Object members;
    std::unordered_set<std::string> keys;
    ++at_;
    skip_space();
    if (accept('}')) return members;
    while (true) {
      skip_space();
      if (peek() != '"') fail("expected a string as key");
      std::string key = string();
      if (!keys.insert(key).second) fail("duplicate name \"", key, '"');
      skip_space();
      if (!accept(':')) fail("expected ':' after \"", key, '"');
      Json member = value(depth + 1);
      members.emplace_back(std::move(key), std::move(member));
      skip_space();
      if (accept('}')) return members;
      if (!accept(',')) fail("expected ',' or '}'");
    }
  }

  Json::Number number() {
    const std::size_t start = at_;
    accept('-');
    if (!accept('0')) digits("expected a value");
    if (accept('.')) digits("expected a digit after '.'");
    if (accept('e') || accept('E')) {
      if (!accept('+')) accept('-');
      digits("expected a digit in the exponent");
    }
    return {std::string(text_.substr(start, at_ - start))};
  }
  void digits(const char* complaint) {
    const std::size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    if (at_ == start) fail(complaint);
  }

  std::string string() {
    std::string out;
    ++at_;
    while (true) {
      if (at_end()) fail("unterminated string");
      const char c = text_[at_];
      if (static_cast<unsigned char>(c) < 0x20) fail("control character in a string");
      ++at_;
      if (c == '"') return out;
      if (c == '\\') {
        escape(out);
      } else {
        out += c;
      }
    }
  }

  void escape(std::string& out) {
    constexpr std::string_view letters = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    if (accept('u')) return append_utf8(out, code_point());
    const std::size_t which = at_end() ? std::string_view::npos : letters.find(text_[at_]);
    if (which == std::string_view::npos) fail("unknown escape in a string");
    ++at_;
    out += meanings[which];
  }

  /// What a \u stands for, its second half included if it is the first of a surrogate pair.
  std::uint32_t code_point() {
    const std::uint32_t first = four_hex_digits();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || !accept('\\') || !accept('u')) fail("unpaired surrogate in a string");
    const std::uint32_t second = four_hex_digits();
    if (second < 0xDC00 || second > 0xDFFF) fail("unpaired surrogate in a string");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }
  std::uint32_t four_hex_digits() {
    std::uint32_t out = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("expected four hexadecimal digits after \\u");
      out = out * 16 + static_cast<std::uint32_t>(digit);
    }
    return out;
  }

  static void append_utf8(std::string& out, std::uint32_t code) {
    const auto append = [&](std::uint32_t byte) { out += static_cast<char>(byte); };
    const auto append_tail = [&](int shift) { append(0x80 | ((code >> shift) & 0x3F)); };
    if (code < 0x80) {
      append(code);
    } else if (code < 0x800) {
      append(0xC0 | (code >> 6));
      append_tail(0);
    } else if (code < 0x10000) {
      append(0xE0 | (code >> 12));
      append_tail(6);
      append_tail(0);
    } else {
      append(0xF0 | (code >> 18));
      append_tail(12);
      append_tail(6);
      append_tail(0);
    }
  }

  std::string_view text_;
  std::string_view source_;
  std::size_t at_ = 0;
  std::size_t values_ = 0;
};

}  // namespace detail

/// Reads one JSON value, white space around it allowed. Throws FormatError, its message beginning
/// with `source` (a file name) and giving the byte, if the text is not well-formed UTF-8, not JSON,
/// names a member of an object twice, is nested deeper than 32 levels, or has more than 2^20
/// values.
inline Json parse_json(std::string_view text, std::string_view source) {
  return detail::JsonParser(text, source).parse();
}

/// `text`, which is UTF-8, as a JSON string with its quotation marks.
inline std::string json_string(std::string_view text) {
  constexpr std::string_view hex = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += hex[byte >> 4];
      out += hex[byte & 15];
    } else {
      out += c;
    }
  }
  return out += '"';
}

}  // namespace deq
