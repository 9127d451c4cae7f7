// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <deq/core/error.hpp>

#include "text.hpp"

namespace examples {

/// The command line is wrong: the program says so and ends with exit code 2.
struct UsageError : deq::Error {
  using Error::Error;
};

/// The values that a numeric option takes.
template <class T>
struct Bounds {
  T min = std::numeric_limits<T>::lowest();
  T max = std::numeric_limits<T>::max();
};

/// A strict command line: `--name value` or `--name=value`, every option bound to a variable, whose
/// value beforehand is the default. Options are declared as the help shows them, "--epochs N". The
/// last of several equal options counts.
///
///     CommandLine cli("train", "Trains a model.");
///     cli.option("--epochs N", epochs, "passes over the data", {.min = 1});
///     if (!cli.parse(argc, argv)) return 0;  // --help was asked for, and printed
class CommandLine {
 public:
  CommandLine(std::string program, std::string summary)
      : program_(std::move(program)), summary_(std::move(summary)) {}

  /// A heading in the help, above the options that follow.
  void section(std::string title) { section_ = std::move(title); }

  /// An integer or a real number.
  template <Number T>
  void option(std::string_view declaration, T& target, std::string help, Bounds<T> bounds = {}) {
    add(declaration, std::move(help), shortest(target), describe(bounds),
        [&target, bounds](const std::string& text) {
          T value{};
          const char* const end = text.data() + text.size();
          const auto [stop, error] = std::from_chars(text.data(), end, value);
          // Written so that a NaN is outside.
          const bool inside = value >= bounds.min && value <= bounds.max;
          if (error != std::errc{} || stop != end || !inside) return false;
          target = value;
          return true;
        });
  }
  /// A text, not empty.
  void option(std::string_view declaration, std::string& target, std::string help) {
    add(declaration, std::move(help), target, "a text that is not empty",
        [&target](const std::string& text) {
          if (!text.empty()) target = text;
          return !text.empty();
        });
  }
  /// One of several words.
  void choice(std::string_view name, std::string& target, std::vector<std::string> words,
              std::string help) {
    const std::string declaration = std::string(name) + ' ' + join(words, "|");
    const std::string expected = "one of " + join(words, ", ");
    add(declaration, std::move(help), target, expected,
        [&target, words = std::move(words)](const std::string& text) {
          const bool known = contains(words, text);
          if (known) target = text;
          return known;
        });
  }
  /// A list of words, separated by commas, none twice. An empty default means that it is not asked
  /// for.
  void choices(std::string_view name, std::vector<std::string>& target,
               std::vector<std::string> words, std::string help) {
    const std::string known = join(words, ", ");
    add(std::string(name) + " LIST", std::move(help) + ": a comma-separated list of " + known,
        join(target, ","), "a comma-separated list, without repetition, of " + known,
        [&target, words = std::move(words)](const std::string& text) {
          std::vector<std::string> list;
          for (std::size_t begin = 0; begin <= text.size();) {
            const std::size_t end = std::min(text.find(',', begin), text.size());
            list.push_back(text.substr(begin, end - begin));
            begin = end + 1;
            if (!contains(words, list.back())) return false;
            if (std::count(list.begin(), list.end(), list.back()) > 1) return false;
          }
          target = std::move(list);
          return true;
        });
  }
  /// Set to true if given; takes no value.
  void flag(std::string_view name, bool& target, std::string help) {
    add(name, std::move(help), "", "", [&target](const std::string&) { return target = true; });
  }

  /// Reads the arguments after the program's name. Returns false if they asked for --help, which is
  /// then printed. Throws UsageError for anything that was not declared.
  bool parse(int argc, const char* const* argv) {
    const std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      const std::string& argument = arguments[i];
      if (argument == "--help" || argument == "-h") {
        std::fputs(help().c_str(), stdout);
        return false;
      }
      deq::require<UsageError>(argument.starts_with('-'), "unexpected argument '", argument, '\'');
      const std::size_t equals = argument.find('=');
      const std::string name = argument.substr(0, equals);
      const Option& found = find(name);
      std::optional<std::string> value;
      if (equals != std::string::npos) value = argument.substr(equals + 1);
      if (found.is_flag()) {
        deq::require<UsageError>(!value, name, " takes no value, got '", value.value_or(""), '\'');
      } else if (!value && i + 1 < arguments.size() && !arguments[i + 1].starts_with("--")) {
        value = arguments[++i];
      }
      deq::require<UsageError>(found.is_flag() || value, name, " needs a value: ", found.expected);
      deq::require<UsageError>(found.assign(value.value_or("")), name, ": expected ",
                               found.expected, ", got '", value.value_or(""), '\'');
    }
    return true;
  }

  /// The text of --help, for a terminal of 80 columns.
  std::string help() const {
    std::string text = "Usage: " + program_ + " [options]\n\n" + wrap(summary_, 0) + '\n';
    const std::string* section = nullptr;
    for (const Option& option : options_) {
      if (!section || *section != option.section)
        text += '\n' + (option.section.empty() ? "Options" : option.section) + ":\n";
      section = &option.section;
      text += entry(option.name + (option.is_flag() ? "" : " " + option.placeholder),
                    option.help + (option.preset.empty() ? "" : " (" + option.preset + ')'));
    }
    return text + '\n' + entry("-h, --help", "print this text");
  }

 private:
  struct Option {
    std::string name, placeholder, help, preset, expected, section;
    std::function<bool(const std::string&)> assign;

    bool is_flag() const { return expected.empty(); }
  };
  static constexpr int width = 80, indent = 26;

  void add(std::string_view declaration, std::string help, std::string preset, std::string expected,
           std::function<bool(const std::string&)> assign) {
    const std::size_t space = std::min(declaration.find(' '), declaration.size());
    const std::size_t rest = std::min(space + 1, declaration.size());
    options_.push_back({std::string(declaration.substr(0, space)),
                        std::string(declaration.substr(rest)), std::move(help), std::move(preset),
                        std::move(expected), section_, std::move(assign)});
  }

  const Option& find(const std::string& name) const {
    const Option* nearest = nullptr;
    std::size_t least = std::numeric_limits<std::size_t>::max();
    for (const Option& option : options_) {
      if (option.name == name) return option;
      const std::size_t d = distance(name, option.name);
      if (d < least) {
        least = d;
        nearest = &option;
      }
    }
    const bool near = nearest && least <= std::max<std::size_t>(2, nearest->name.size() / 3);
    throw UsageError("unknown option " + name +
                     (near ? ", did you mean " + nearest->name + '?' : "; --help lists them all"));
  }

  /// Insertions, deletions and replacements from a to b (Levenshtein).
  static std::size_t distance(const std::string& a, const std::string& b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (const char letter : a) {
      std::size_t diagonal = row[0]++;
      for (std::size_t j = 0; j < b.size(); ++j) {
        const std::size_t replaced = diagonal + (letter != b[j]);
        diagonal = row[j + 1];
        row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
      }
    }
    return row.back();
  }

  static bool contains(const std::vector<std::string>& words, const std::string& word) {
    return std::find(words.begin(), words.end(), word) != words.end();
  }

  template <class T>
  static std::string describe(const Bounds<T>& bounds) {
    const std::string kind = std::integral<T> ? "an integer" : "a number";
    const bool below = std::unsigned_integral<T> || bounds.min != Bounds<T>{}.min;
    const bool above = bounds.max != Bounds<T>{}.max;
    if (below && above)
      return kind + " from " + shortest(bounds.min) + " to " + shortest(bounds.max);
    if (below) return kind + " >= " + shortest(bounds.min);
    return above ? kind + " <= " + shortest(bounds.max) : kind;
  }

  static std::string entry(const std::string& left, const std::string& text) {
    std::string out = "  " + left;
    const int used = display_width(out);
    out += used + 2 > indent ? '\n' + repeat(" ", indent) : repeat(" ", indent - used);
    return out + wrap(text, indent) + '\n';
  }

  /// Breaks a text at its spaces; the first line starts in column `column` already.
  static std::string wrap(const std::string& text, int column) {
    std::string out;
    int used = column;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find_first_of(" \n", begin), text.size());
      const std::string word = text.substr(begin, end - begin);
      const int length = display_width(word);
      const bool broken = begin > 0 && text[begin - 1] == '\n';
      if (broken || used + 1 + length > width) {
        out += '\n' + repeat(" ", column);
        used = column;
      } else if (begin > 0) {
        out += ' ';
        ++used;
      }
      out += word;
      used += length;
      begin = end + 1;
    }
    return out;
  }

  std::string program_, summary_, section_;
  std::vector<Option> options_;
};

/// What every program's main returns: body()'s value, or, with one line on the error stream, 2 for
/// a wrong command line and 1 for any other error.
template <class Body>
int run_program(const std::string& program, Body&& body) {
  try {
    return body();
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s: %s\nTry '%s --help'.\n", program.c_str(), error.what(),
                 program.c_str());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: error: %s\n", program.c_str(), error.what());
    return 1;
  }
}

}  // namespace examples
