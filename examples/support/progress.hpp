// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include "text.hpp"

namespace examples {

/// Where a training run is. What is not known is a NaN, and not shown.
struct Progress {
  static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

  std::string label = {};  ///< what is running, such as the gradient method; may be empty
  int epoch = 0;           ///< 1, 2, ..., epochs
  int epochs = 0;          ///< 0: there are none to show
  double fraction = 0;     ///< of the whole run, in [0, 1]
  double loss = unknown;
  double accuracy = unknown;  ///< in [0, 1]
  double images_per_second = unknown;
  double iterations = unknown;  ///< mean of the forward solves
  double residual = unknown;    ///< mean relative residual of the forward solves
  double seconds_left = unknown;
};

/// What a line of progress may be made of.
struct ProgressStyle {
  bool bar = true;
  bool colour = false;
  bool unicode = false;
};

/// One line of at most `width` columns: the run's position, a bar, the numbers, the time left.
/// Where the width is short, the bar goes first, then the numbers, the residual before the loss.
inline std::string progress_line(const Progress& p, int width, ProgressStyle style = {}) {
  struct Field {
    std::string name, value;
    int importance;  ///< the smallest goes first
  };
  std::vector<Field> fields;
  const auto add = [&](double x, const char* name, std::string value, int importance) {
    if (std::isfinite(x)) fields.push_back({name, std::move(value), importance});
  };
  add(p.loss, "loss", fixed(p.loss, 3), 5);
  add(p.accuracy, "acc", fixed(100 * p.accuracy, 1) + "%", 4);
  add(p.images_per_second, "img/s", fixed(p.images_per_second, p.images_per_second < 10 ? 1 : 0),
      2);
  add(p.iterations, "iter", fixed(p.iterations, 1), 1);
  add(p.residual, "res", scientific(p.residual, 1), 0);
  add(p.seconds_left, "left", hours_minutes_seconds(p.seconds_left), 3);

  const double fraction = std::clamp(p.fraction, 0.0, 1.0);
  std::string head = p.label;
  if (p.epochs > 0) {
    head += head.empty() ? "" : "  ";
    head += "epoch " + std::to_string(p.epoch) + '/' + std::to_string(p.epochs);
  }
  const std::string percent = fixed(std::floor(100 * fraction), 0) + '%';
  head += (head.empty() ? "" : " ") + repeat(" ", 4 - display_width(percent)) + percent;

  const auto used = [&] {
    int columns = display_width(head);
    for (const Field& f : fields) columns += 3 + display_width(f.name) + display_width(f.value);
    return columns;
  };
  constexpr int shortest_bar = 8, longest_bar = 24;
  while (!fields.empty() && used() > width)
    fields.erase(std::min_element(fields.begin(), fields.end(), [](const Field& a, const Field& b) {
      return a.importance < b.importance;
    }));
  if (used() > width) return percent.substr(0, static_cast<std::size_t>(std::max(width, 0)));

  const auto paint = [&](const char* code, const std::string& text) {
    return style.colour && !text.empty() ? std::string("\x1b[") + code + 'm' + text + "\x1b[0m"
                                         : text;
  };
  std::string line = head;
  if (const int room = std::min(width - used() - 2, longest_bar);
      style.bar && room >= shortest_bar) {
    const int full = static_cast<int>(fraction * room);
    const std::string done = repeat(style.unicode ? "━" : "=", full);
    const std::string rest = repeat(style.unicode ? "─" : ".", room - full);
    line += "  " + paint("36", done) + paint("2", rest);
  }
  for (const Field& f : fields) line += "  " + paint("2", f.name) + ' ' + f.value;
  return line;
}

/// Shows how far a run is. On a terminal: one line, redrawn in place, at most ten times a second;
/// colours unless NO_COLOR is set. Elsewhere (a file, a pipe): a plain line every `period` seconds.
class ProgressBar {
 public:
  explicit ProgressBar(std::FILE* stream = stderr, double period = 10)
      : stream_(stream),
        terminal_(::isatty(::fileno(stream)) && variable("TERM") != "dumb"),
        style_{terminal_, terminal_ && variable("NO_COLOR").empty(), terminal_ && speaks_utf8()},
        interval_(terminal_ ? 0.1 : period) {}
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// Shows `progress` if it is time to, or if it is complete. The time left, unless given, follows
  /// from the time and the fraction since the first call.
  void update(Progress progress) {
    const Clock::time_point now = Clock::now();
    if (!begun_) {
      begun_ = true;
      begin_ = now;
      begin_fraction_ = progress.fraction;
    }
    const bool complete = progress.fraction >= 1;
    if (shown_ && !complete && seconds(now - last_) < interval_) return;
    last_ = now;
    shown_ = true;
    const double made = progress.fraction - begin_fraction_;
    if (std::isnan(progress.seconds_left) && made > 0)
      progress.seconds_left = seconds(now - begin_) * (1 - progress.fraction) / made;
    // A terminal's last column stays free: some wrap when it is written.
    const std::string line =
        progress_line(progress, terminal_ ? columns() - 1 : plain_width, style_);
    std::fprintf(stream_, terminal_ ? "\r\x1b[K%s" : "%s\n", line.c_str());
    drawn_ = terminal_;
    std::fflush(stream_);
  }

  /// Takes the line away, so that something else can be printed; the next update() redraws it.
  void clear() {
    if (!drawn_) return;
    std::fputs("\r\x1b[K", stream_);
    std::fflush(stream_);
    drawn_ = shown_ = false;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int plain_width = 200;

  static double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }
  static std::string_view variable(const char* name) {
    const char* const value = std::getenv(name);
    return value ? value : "";
  }
  static bool speaks_utf8() {
    for (const char* const name : {"LC_ALL", "LC_CTYPE", "LANG"})
      if (const std::string_view locale = variable(name); !locale.empty())
        return locale.find("UTF-8") != locale.npos || locale.find("utf8") != locale.npos;
    return false;
  }
  int columns() const {
    winsize size = {};
    const bool known = ::ioctl(::fileno(stream_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    return known ? size.ws_col : 80;
  }

  std::FILE* stream_;
  bool terminal_;
  ProgressStyle style_;
  double interval_;
  bool begun_ = false, shown_ = false, drawn_ = false;
  Clock::time_point begin_, last_;
  double begin_fraction_ = 0;
};

}  // namespace examples
